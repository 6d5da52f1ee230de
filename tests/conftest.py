"""Fixtures for all tiers: the untrained checkpoints, built once a session."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the untrained checkpoints `clip`, `captioner`, `codec` and `text`."""
    from demo.tiny_models import make_tiny_models

    folder = tmp_path_factory.mktemp("tiny_models")
    make_tiny_models(folder)
    return folder
