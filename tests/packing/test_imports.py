"""`import packing` is quick, needs no model library, and gives every public name on first use."""

from collections.abc import Callable
from typing import Any

import pytest

import packing

RunPython = Callable[..., Any]
HEAVY = {"torch", "ray", "transformers", "diffusers", "open_clip", "torchvision"}


@pytest.mark.parametrize("statement", ["import packing", "from packing import Store, fit_frame, plan_rows, open_manifest"])
def test_nothing_heavy_is_imported(run_python: RunPython, statement: str) -> None:
    done = run_python(f"{statement}\nimport sys\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert HEAVY & set(done.stdout.split()) == set()


def test_reading_shards_needs_no_model_library(run_python: RunPython) -> None:
    done = run_python("from packing import ShardLoader, corpus_statistics, write_shards\nimport sys\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert (HEAVY - {"torch"}) & set(done.stdout.split()) == set()


@pytest.mark.parametrize("name", packing.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(packing, name).__module__.startswith("packing.")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = packing.nothing
