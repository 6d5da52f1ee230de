"""A small corpus of made-up latents, written as real shards, and jobs that are done in a second or two."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import packing
from packing import Caption, CodecFacts, PackedClip, TextEncoderFacts
from training import DiTConfig, TrainConfig, TrainJob

LATENT_SIZES = [(2, 4, 4), (3, 4, 6), (1, 6, 4), (2, 6, 6), (2, 4, 4), (1, 4, 4), (3, 6, 4), (2, 4, 8)]
CHANNELS, PATCH, TEXT_WIDTH = 4, (1, 2, 2), 12
CODEC = CodecFacts(model="none", subfolder="", weights="", channels=CHANNELS, stride=(2, 8, 8))
TEXT_ENCODER = TextEncoderFacts(
    model="none", subfolder="", tokenizer="", weights="", backend="", width=TEXT_WIDTH, max_tokens=8
)

Corpus = Callable[..., str]
Job = Callable[..., TrainJob]


def made_up_clip(number: int) -> PackedClip:
    """A smooth latent, another level in each channel, and a caption of a few random features."""
    generator = torch.Generator().manual_seed(number)
    level = torch.randn(CHANNELS, 1, 1, 1, generator=generator)
    latent = level + 0.1 * torch.randn(CHANNELS, *LATENT_SIZES[number % len(LATENT_SIZES)], generator=generator)
    features = torch.randn(2 + number % 3, TEXT_WIDTH, generator=generator)
    caption = Caption(prompt="short", text=f"clip {number}", features=features)
    return PackedClip(clip_id=f"{number:032x}", latent=latent, captions=[caption], facts={"duration_s": 1.0})


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Writes a packed folder of so many clips two in a row, a share of their tokens dropped, and returns its path."""

    def write(count: int, drop: float = 0.0) -> str:
        folder = tmp_path_factory.getbasetemp() / f"corpus-{count}-{drop}"
        packing.write_shards(
            [np.arange(first, first + 2) for first in range(0, count, 2)],
            [made_up_clip(number) for number in range(count)],
            str(folder),
            codec=CODEC,
            text_encoder=TEXT_ENCODER,
            patch=PATCH,
            sequence_length=36,
            fps=8.0,
            drop=drop,
        )
        return str(folder)

    return write


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Builds a job for a tiny model on one CPU thread that reports every step; arguments are settings of `train`."""

    def build(**settings: Any) -> TrainJob:
        defaults = {
            "out": str(tmp_path / "out"),
            "steps": 6,
            "global_batch": 3,
            "warmup_steps": 0,
            "device": "cpu",
            "threads": 1,
            "log_every": 1,
            "checkpoint_every": 1000,
        }
        return TrainJob(model=DiTConfig(width=32, depth=2, heads=2), train=TrainConfig(**{**defaults, **settings}))

    return build
