"""Rows of several corpora come by their weights, in the same global batches for any ranks, each once an epoch of its corpus."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packing import Batch, Manifest, MixedLoader, Mixture, PackedClip, Phase, ShardLoader, Source, open_loader
from packing.config import load_config
from packing.errors import ConfigError, ShardError
from packing.mixture import shared_out

Write = Callable[..., Manifest]
ROWS = (8, 20)  # of the two corpora, one clip in each row


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., PackedClip], write: Write) -> tuple[str, str]:
    """Two corpora, of clips 0 to 7 and 100 to 119, each clip a row."""
    made = []
    for first, count in zip((0, 100), ROWS, strict=True):
        folder = str(tmp_path_factory.mktemp("source"))
        clips = [replace(make_clip(number), clip_id=f"{number:03}") for number in range(first, first + count)]
        write(folder, clips, rows=[np.array([number]) for number in range(count)])
        made.append(folder)
    return made[0], made[1]


def mixture(folders: Sequence[str], weights: Sequence[float], *curriculum: Phase) -> Mixture:
    sources = [Source(shards=folder, weight=weight) for folder, weight in zip(folders, weights, strict=True)]
    return Mixture(sources=sources, curriculum=list(curriculum))


def steps_of(mix: Mixture, count: int, world_size: int = 1, **settings: Any) -> Iterator[list[Batch]]:
    chosen = {"global_batch": 4, "world_size": world_size, **settings}
    ranks = [MixedLoader(mix, rank=rank, **chosen) for rank in range(world_size)]
    return itertools.islice(map(list, zip(*ranks, strict=True)), count)


def clips_of(steps: Iterator[list[Batch]]) -> list[list[tuple[str, str]]]:
    return [sorted(pair for b in step for pair in zip(b.clip_ids, b.captions, strict=True)) for step in steps]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=5).filter(any), st.integers(0, 10_000))
def test_rows_are_shared_out_by_weight_whole_and_never_fewer(weights: list[float], rows: int) -> None:
    found, more = shared_out(rows, weights), shared_out(rows + 1, weights)
    assert sum(found) == rows
    due = [rows * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    assert all(abs(got - share) <= 1 for got, share in zip(found, due, strict=True))
    assert sum(more) == rows + 1


def test_rows_come_by_their_weights(folders: tuple[str, str]) -> None:
    steps = clips_of(steps_of(mixture(folders, [1, 3]), 40))
    assert all(len(step) == 4 for step in steps)
    assert [sum(clip < "100" for clip, _ in step) for step in steps] == [1] * 40


def test_each_row_comes_once_in_an_epoch_of_its_corpus(folders: tuple[str, str]) -> None:
    taken = [clip for step in clips_of(steps_of(mixture(folders, [1, 1]), 40)) for clip, _ in step]
    counts = Counter(taken)
    assert {counts[f"{number:03}"] for number in range(8)} == {10}
    assert {counts[f"{number:03}"] for number in range(100, 120)} == {4}


def test_a_curriculum_changes_the_weights_at_its_steps(folders: tuple[str, str]) -> None:
    mix = mixture(folders, [0, 1], Phase(steps=3, weights=[1, 0]), Phase(steps=2, weights=[1, 1]))
    steps = clips_of(steps_of(mix, 8))
    assert [sum(clip < "100" for clip, _ in step) for step in steps] == [4, 4, 4, 2, 2, 0, 0, 0]


@pytest.mark.parametrize("world_size", [2, 3, 8, 64])
def test_any_number_of_ranks_sees_the_same_mixed_batches(folders: tuple[str, str], world_size: int) -> None:
    mix = mixture(folders, [2, 5], Phase(steps=2, weights=[1, 0]))
    assert clips_of(steps_of(mix, 12, world_size, caption_drop=0.3)) == clips_of(steps_of(mix, 12, caption_drop=0.3))


@pytest.mark.parametrize("done", [1, 2, 7, 11])
def test_a_mixture_resumes_on_other_ranks_anywhere(folders: tuple[str, str], done: int) -> None:
    mix = mixture(folders, [2, 5], Phase(steps=2, weights=[1, 0]))
    loader = MixedLoader(mix, global_batch=4)
    before = [[batch] for batch in itertools.islice(loader, done)]
    state = json.dumps(loader.state_dict())
    assert len(state) < 1024
    ranks = [MixedLoader(mix, global_batch=4, rank=rank, world_size=3) for rank in range(3)]
    for rank in ranks:
        rank.load_state_dict(json.loads(state))
    after = itertools.islice(map(list, zip(*ranks, strict=True)), 12 - done)
    assert clips_of(iter([*before, *after])) == clips_of(steps_of(mix, 12))


def test_a_state_of_other_weights_is_refused(folders: tuple[str, str]) -> None:
    state = MixedLoader(mixture(folders, [1, 1]), global_batch=4).state_dict()
    with pytest.raises(ShardError, match="cannot resume"):
        MixedLoader(mixture(folders, [1, 2]), global_batch=4).load_state_dict(state)


def test_a_clip_that_comes_again_is_marked_with_another_epoch(folders: tuple[str, str]) -> None:
    seen = [(clip, batch.epoch) for (batch,) in steps_of(mixture(folders, [1, 0]), 9) for clip in batch.clip_ids]
    assert len(set(seen)) == len(seen) == 36


def test_corpora_that_do_not_go_together_are_refused(
    folders: tuple[str, str], write: Write, make_clip: Any, tmp_path: Path
) -> None:
    write(str(tmp_path), [make_clip(0)], patch=(1, 1, 1), rows=[np.array([0])], sequence_length=200)
    with pytest.raises(ConfigError, match=f"{tmp_path} has another patch than {folders[0]}"):
        MixedLoader(mixture([folders[0], str(tmp_path)], [1, 1]), global_batch=4)


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_that_share_out_nothing_are_refused(folders: tuple[str, str], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        mixture(folders, [1, 1], Phase(steps=1, weights=weights))


def test_a_mixture_is_a_yaml_file(folders: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    first, second = (f"  - {{shards: {folder}, weight: {weight}}}\n" for folder, weight in zip(folders, (1, 3), strict=True))
    path.write_text(f"sources:\n{first}{second}curriculum:\n  - {{steps: 2, weights: [1, 0]}}\n")
    loader = open_loader(str(path), global_batch=4)
    expected = MixedLoader(mixture(folders, [1, 3], Phase(steps=2, weights=[1, 0])), global_batch=4)
    assert loader.state_dict() == expected.state_dict()


def test_the_mixture_of_the_examples_is_one() -> None:
    mix = load_config(Mixture, str(Path(__file__).parents[2] / "examples/mixture.yaml"))
    assert (len(mix.sources), len(mix.curriculum)) == (4, 2)


def test_a_folder_is_opened_as_itself(folders: tuple[str, str]) -> None:
    assert isinstance(open_loader(folders[0], global_batch=4), ShardLoader)


def test_a_mistake_in_a_mixture_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text("sources: []\n")
    with pytest.raises(ConfigError, match="at least one source"):
        open_loader(str(tmp_path / "mix.yaml"), global_batch=4)
