"""Shard statistics are read from the indexes alone, and right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packing import Manifest, PackedClip, corpus_statistics
from packing.errors import ShardError

MakeClip = Callable[..., PackedClip]
Write = Callable[..., Manifest]


@pytest.fixture
def small_corpus(make_clip: MakeClip, write: Write, tmp_path: Path) -> str:
    """Clips of 4, 4, 1 and 6 tokens in rows of 8: (4, 1), (4), (6)."""
    sizes = [(1, 4, 4), (1, 4, 4), (1, 2, 2), (3, 2, 4)]
    clips = [make_clip(number, size=size) for number, size in enumerate(sizes)]
    rows = [np.array([0, 2]), np.array([1]), np.array([3])]
    write(str(tmp_path), clips, rows=rows, sequence_length=8, shard_bytes=1)
    return str(tmp_path)


def test_the_figures_of_a_small_corpus(small_corpus: str) -> None:
    assert corpus_statistics(small_corpus) == {
        "rows": 3,
        "clips": 4,
        "tokens": 15,
        "sequence_length": 8,
        "fill": 0.625,
        "straggler_efficiency": {"8": 0.0, "64": 0.0},
        "shards": 3,
        "bytes": sum(path.stat().st_size for path in Path(small_corpus).glob("*.tar")),
        "shapes": {"1x2x2": 2, "1x1x1": 1, "3x1x2": 1},
        "duration_s": 6.0,
        "captions": {"short": 4, "dense": 2, "tags": 1},
    }


def test_the_figures_need_no_shard(small_corpus: str) -> None:
    before = corpus_statistics(small_corpus)
    for shard in Path(small_corpus).glob("*.tar"):
        shard.unlink()
    assert corpus_statistics(small_corpus) == before


def test_a_corpus_of_enough_rows_has_an_efficiency(corpus: str) -> None:
    found: dict[str, Any] = corpus_statistics(corpus)["straggler_efficiency"]
    assert 0.5 < found["8"] <= 1


def test_nothing_packed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=f"no packed corpus at {tmp_path}"):
        corpus_statistics(str(tmp_path))
