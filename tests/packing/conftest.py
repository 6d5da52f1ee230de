"""Made-up clips of many shapes, and a packed corpus of several shards made from them."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import packing
from packing import Caption, CodecFacts, Manifest, PackedClip, TextEncoderFacts

CHANNELS, PATCH, TEXT_WIDTH, CAPACITY = 4, (1, 2, 2), 6, 40
LATENT_SIZES = [(2, 4, 4), (3, 4, 6), (1, 6, 4), (2, 6, 6), (1, 2, 2), (5, 4, 4), (3, 6, 4), (2, 4, 8)]
PROMPTS = ["short", "dense", "tags"]

MakeClip = Callable[..., PackedClip]
Write = Callable[..., Manifest]
RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_clip() -> MakeClip:
    """A factory: `make_clip(number)` gives the same latent and captions every time; captions are 1 to 3, of 1 to 4 tokens."""

    def make(number: int, *, size: tuple[int, int, int] | None = None, captions: int | None = None) -> PackedClip:
        generator = torch.Generator().manual_seed(number)
        spoken = [
            Caption(
                prompt=PROMPTS[i],
                text=f"{PROMPTS[i]} {number}",
                features=torch.randn(1 + (number + i) % 4, TEXT_WIDTH, generator=generator).bfloat16(),
            )
            for i in range(1 + number % 3 if captions is None else captions)
        ]
        latent = torch.randn(CHANNELS, *(size or LATENT_SIZES[number % len(LATENT_SIZES)]), generator=generator)
        facts = {"source": f"file:///videos/{number}.mp4", "duration_s": 1.5}
        return PackedClip(clip_id=f"{number:032x}", latent=latent, captions=spoken, facts=facts)

    return make


@pytest.fixture(scope="session")
def write() -> Write:
    """Writes clips, planned into rows of 40 tokens, as a packed corpus: `write(url, clips)`; keywords as `write_shards`."""

    def write_corpus(url: str, clips: Sequence[PackedClip], **settings: Any) -> Manifest:
        lengths = [clip.latent[0].numel() // 4 for clip in clips]
        defaults: dict[str, Any] = {
            "rows": packing.plan_rows(lengths, capacity=CAPACITY),
            "codec": CodecFacts(model="codec", subfolder="", weights="w", channels=CHANNELS, stride=(4, 8, 8)),
            "text_encoder": TextEncoderFacts(
                model="text", subfolder="", tokenizer="", weights="w", backend="none", width=TEXT_WIDTH, max_tokens=4
            ),
            "patch": PATCH,
            "sequence_length": CAPACITY,
            "fps": 8.0,
        }
        return packing.write_shards(clips=clips, url=url, **{**defaults, **settings})

    return write_corpus


@pytest.fixture(scope="session")
def clips(make_clip: MakeClip) -> list[PackedClip]:
    """The sixty clips of `corpus`."""
    return [make_clip(number) for number in range(60)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, clips: list[PackedClip], write: Write) -> str:
    """A packed folder of `clips` in several shards, for reading only."""
    folder = tmp_path_factory.mktemp("corpus")
    manifest = write(str(folder), clips, shard_bytes=6000)
    assert len(manifest.shards) > 2
    return str(folder)


@pytest.fixture(scope="session")
def run_python() -> RunPython:
    """Runs Python source in a fresh process at the repository root: `run_python(source, *arguments)`."""
    root = Path(packing.__file__).parents[1]

    def run(source: str, *arguments: str, **settings: Any) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", source, *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, **settings)

    return run


@pytest.fixture
def lengths() -> np.ndarray:
    """Token counts of 5,000 clips: log-normal lengths, and a share of images and of clips as long as a row."""
    generator = np.random.default_rng(7)
    mixed = np.exp(generator.normal(8.0, 1.0, 4_600)).astype(np.int64).clip(64, 36_864)
    return np.concatenate([mixed, generator.integers(64, 1_024, 350), np.full(50, 36_864)])
