"""Dropped tokens: of every clip the promised share is kept, the same each time, and every token still knows where it stood."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import packing.shards
from packing import (
    Batch,
    Manifest,
    MixedLoader,
    Mixture,
    PackedClip,
    ShardLoader,
    Source,
    Store,
    corpus_report,
    corpus_statistics,
    divide_clip,
    drop_tokens,
    kept_count,
    kept_places,
    kept_tokens,
    lint_corpus,
    open_manifest,
    patchify,
    plan_rows,
    positions,
    read_index,
    read_row,
    write_shard,
)
from packing.errors import ShardError
from packing.tokens import most_tokens

MakeClip = Callable[..., PackedClip]
Write = Callable[..., Manifest]
PATCH, CAPACITY, DROP, SEED = (1, 2, 2), 40, 0.4, 5
DROPS = st.floats(0, 0.99)

unhurried = settings(deadline=None)


def length_of(clip: PackedClip) -> int:
    return clip.latent[0].numel() // 4


def grid_of(clip: PackedClip) -> tuple[int, ...]:
    t, h, w = clip.latent.shape[1:]
    return t, h // 2, w // 2


@pytest.fixture(scope="module")
def write_dropped(write: Write) -> Write:
    """Writes clips, planned over what is kept of them, as a corpus of rows of 40 kept tokens; keywords as `write_shards`."""

    def write_corpus(url: str, clips: list[PackedClip], **given: Any) -> Manifest:
        rows = plan_rows([kept_count(length_of(clip), DROP) for clip in clips], capacity=CAPACITY)
        return write(url, clips, **{"rows": rows, "drop": DROP, "seed": SEED, **given})

    return write_corpus


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory, clips: list[PackedClip], write_dropped: Write) -> str:
    """The sixty clips with two fifths of their tokens dropped, in several shards, for reading only."""
    folder = str(tmp_path_factory.mktemp("dropped"))
    assert len(write_dropped(folder, clips, shard_bytes=4000).shards) > 2
    return folder


def rows_of(url: str) -> Iterator[tuple[packing.rows.RowIndex, packing.rows.Row]]:
    manifest, base = open_manifest(url)
    for entry in manifest.shards:
        for index in read_index(Store(base), entry):
            yield index, read_row(Store(base), entry, index)


def epoch_of(loader: ShardLoader) -> list[Batch]:
    return list(itertools.takewhile(lambda batch: batch.epoch == 0, loader))


@given(st.integers(1, 100_000), DROPS)
def test_the_share_that_is_dropped_is_exact_to_half_a_token_and_one_is_kept(tokens: int, drop: float) -> None:
    kept = kept_count(tokens, drop)
    assert 1 <= kept <= tokens
    assert kept == 1 or abs(tokens - kept - drop * tokens) <= 0.5 + 1e-6


@given(st.integers(1, 50_000), DROPS)
def test_the_longest_clip_that_fits_is_the_longest(capacity: int, drop: float) -> None:
    most = most_tokens(capacity, drop)
    assert kept_count(most, drop) <= capacity < kept_count(most + 1, drop)


@unhurried
@given(st.integers(1, 300), DROPS, st.integers(0, 3), st.text(max_size=8))
def test_kept_tokens_ascend_within_the_clip(tokens: int, drop: float, seed: int, clip_id: str) -> None:
    kept = kept_tokens(tokens, drop, seed, clip_id)
    assert kept.dtype == torch.int32
    assert len(kept) == kept_count(tokens, drop)
    assert kept.tolist() == sorted(set(kept.tolist()) & set(range(tokens)))


def test_the_tokens_of_a_clip_that_are_kept_never_change() -> None:
    # Another choice would give other bytes for the same corpus and config.
    assert kept_tokens(12, 0.5, 0, "0" * 32).tolist() == [1, 2, 5, 9, 10, 11]


def test_another_seed_and_another_clip_keep_other_tokens() -> None:
    kept = {tuple(kept_tokens(200, 0.5, *key).tolist()) for key in [(0, "a"), (1, "a"), (0, "b")]}
    assert len(kept) == 3


def test_every_token_is_as_likely_to_be_kept() -> None:
    counts = torch.zeros(10)
    for number in range(2000):
        counts[kept_tokens(10, 0.3, 0, str(number)).long()] += 1
    assert (counts / 2000 - 0.7).abs().max() < 0.05


@pytest.mark.parametrize("drop", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(clips: list[PackedClip], write: Write, tmp_path: Path, drop: float) -> None:
    with pytest.raises(ValueError, match="share of tokens to drop"):
        write(str(tmp_path), clips[:2], drop=drop)


def test_every_clip_is_packed_once_with_its_share_of_tokens(dropped: str, clips: list[PackedClip]) -> None:
    found = {
        clip_id: (tuple(grid), length)
        for index, _ in rows_of(dropped)
        for clip_id, grid, length in zip(index.clip_ids, index.grids, index.lengths.tolist(), strict=True)
    }
    assert sum(len(index.clip_ids) for index, _ in rows_of(dropped)) == len(clips)
    assert found == {clip.clip_id: (grid_of(clip), kept_count(length_of(clip), DROP)) for clip in clips}
    assert all(index.lengths.sum() <= CAPACITY for index, _ in rows_of(dropped))


def test_dropping_packs_the_same_clips_into_fewer_rows(dropped: str, corpus: str) -> None:
    assert open_manifest(dropped)[0].rows < 0.7 * open_manifest(corpus)[0].rows


def test_a_row_holds_the_tokens_of_its_clips_that_it_says_it_keeps(dropped: str, clips: list[PackedClip]) -> None:
    latents = {clip.clip_id: patchify(clip.latent, PATCH).half() for clip in clips}
    for index, row in rows_of(dropped):
        for clip_id, (first, last) in zip(index.clip_ids, itertools.pairwise(row.tensors["cu_seqlens"].tolist()), strict=True):
            kept = row.tensors["kept"][first:last]
            assert torch.equal(kept, kept_tokens(len(latents[clip_id]), DROP, SEED, clip_id))
            assert torch.equal(row.tensors["latents"][first:last], latents[clip_id][kept.long()])


def test_the_share_is_recorded_in_the_row(dropped: str, corpus: str) -> None:
    assert {segment["drop"] for _, row in rows_of(dropped) for segment in row.segments} == {DROP}
    assert not any("drop" in segment for _, row in rows_of(corpus) for segment in row.segments)


def test_the_same_corpus_twice_has_the_same_bytes(
    dropped: str, clips: list[PackedClip], write_dropped: Write, tmp_path: Path
) -> None:
    assert write_dropped(str(tmp_path), clips, shard_bytes=4000).digest == open_manifest(dropped)[0].digest


def test_dropping_nothing_changes_no_byte(corpus: str, clips: list[PackedClip], write: Write, tmp_path: Path) -> None:
    assert write(str(tmp_path), clips, shard_bytes=6000, drop=0.0).digest == open_manifest(corpus)[0].digest
    assert not any("kept" in row.tensors or index.kept for index, row in rows_of(corpus))


def test_a_row_of_whole_clips_and_others_keeps_all_of_the_whole_ones(make_clip: MakeClip, tmp_path: Path) -> None:
    whole, other = make_clip(1), drop_tokens(make_clip(3), PATCH, DROP, SEED)
    store = Store(str(tmp_path))
    entry = write_shard(store, 0, [[whole, other]], PATCH)
    (index,) = read_index(store, entry)
    kept = read_row(store, entry, index).tensors["kept"]
    assert kept[: length_of(whole)].tolist() == list(range(length_of(whole)))
    assert index.lengths.tolist() == [length_of(whole), kept_count(length_of(other), DROP)]


def test_a_clip_is_divided_before_tokens_are_dropped(make_clip: MakeClip) -> None:
    clip = make_clip(2, size=(10, 4, 6))
    pieces = [drop_tokens(piece, PATCH, DROP, SEED) for piece in divide_clip(clip, PATCH, 24, stride=4)]
    assert [len(piece.kept) for piece in pieces if piece.kept is not None] == [11, 11, 14]
    with pytest.raises(ValueError, match="divide it first"):
        divide_clip(drop_tokens(clip, PATCH, DROP, SEED), PATCH, 24, stride=4)


def test_figures_count_the_tokens_that_are_kept(dropped: str, clips: list[PackedClip]) -> None:
    kept = sum(kept_count(length_of(clip), DROP) for clip in clips)
    report, lengths = corpus_report(dropped)
    assert corpus_statistics(dropped)["tokens"] == kept
    assert report.tokens == sum(map(sum, lengths)) == sum(report.tokens_by_grid.values()) == kept
    assert report.fill > 0.9


def batch_parts(batch: Batch) -> dict[str, tuple[Tensor, Tensor | None, list[int]]]:
    """Of each clip of a batch its latents, the numbers of its tokens, and its grid."""
    spans = itertools.pairwise(batch.cu_seqlens.tolist())
    return {
        clip_id: (batch.latents[a:b], None if batch.kept is None else batch.kept[a:b], grid)
        for clip_id, (a, b), grid in zip(batch.clip_ids, spans, batch.grid.tolist(), strict=True)
    }


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_batch_tells_which_tokens_of_each_clip_it_holds(dropped: str, clips: list[PackedClip], ahead: int) -> None:
    by_id = {clip.clip_id: clip for clip in clips}
    seen = []
    for batch in epoch_of(ShardLoader(dropped, global_batch=4, ahead=ahead)):
        assert batch.kept is not None
        assert batch.kept.shape == batch.latents.shape[:1] == (int(batch.cu_seqlens[-1]),)
        for clip_id, (latents, kept, grid) in batch_parts(batch).items():
            assert kept is not None
            assert tuple(grid) == grid_of(by_id[clip_id])
            assert torch.equal(latents, patchify(by_id[clip_id].latent, PATCH).half()[kept.long()])
            seen.append(clip_id)
    assert sorted(seen) == sorted(by_id)


def test_a_batch_of_whole_clips_tells_of_no_kept_tokens(corpus: str) -> None:
    assert all(batch.kept is None for batch in epoch_of(ShardLoader(corpus, global_batch=4)))


def test_a_rank_without_rows_gets_an_empty_batch(dropped: str) -> None:
    last = next(iter(ShardLoader(dropped, global_batch=1, rank=1, world_size=2)))
    assert (last.latents.shape[0], last.cu_seqlens.tolist()) == (0, [0])


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_gets_the_same_tokens(dropped: str, world_size: int) -> None:
    def taken(ranks: int) -> dict[str, list[int]]:
        loaders = [ShardLoader(dropped, global_batch=4, rank=rank, world_size=ranks) for rank in range(ranks)]
        parts = [batch_parts(batch) for loader in loaders for batch in epoch_of(loader)]
        return {clip: kept.tolist() for part in parts for clip, (_, kept, _) in part.items() if kept is not None}

    assert taken(world_size) == taken(1)


def test_a_mixture_holds_whole_clips_and_others(dropped: str, clips: list[PackedClip], write: Write, tmp_path: Path) -> None:
    whole = [replace(clip, clip_id=f"whole {clip.clip_id}") for clip in clips]
    write(str(tmp_path), whole)
    mixture = Mixture(sources=[Source(shards=dropped), Source(shards=str(tmp_path))])
    by_id = {clip.clip_id: clip for clip in [*clips, *whole]}
    shares = set()
    for batch in itertools.islice(MixedLoader(mixture, global_batch=4), 6):
        for clip_id, (latents, kept, _) in batch_parts(batch).items():
            assert kept is not None
            assert torch.equal(latents, patchify(by_id[clip_id].latent, PATCH).half()[kept.long()])
            shares.add((clip_id.startswith("whole"), len(kept) == length_of(by_id[clip_id])))
    assert {(True, True), (False, False)} <= shares
    assert (True, False) not in shares


@unhurried
@given(st.lists(st.tuples(*[st.integers(1, 4)] * 3), max_size=4), DROPS)
def test_a_kept_token_stands_where_it_stood_in_its_clip(grids: list[tuple[int, int, int]], drop: float) -> None:
    kept = [kept_tokens(math.prod(grid), drop, 0, str(number)) for number, grid in enumerate(grids)]
    grid = torch.tensor(grids, dtype=torch.int32).reshape(-1, 3)
    cu_seqlens = torch.tensor(np.cumsum([0, *map(len, kept)]), dtype=torch.int32)
    places = kept_places(torch.cat([torch.zeros(0, dtype=torch.int32), *kept]), cu_seqlens, grid)
    expected = [
        at for numbers, sides in zip(kept, grids, strict=True) for at in positions(torch.tensor([sides]))[numbers.long()]
    ]
    assert [at.tolist() for at in positions(grid)[places]] == [at.tolist() for at in expected]


def damaged(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Rows of clips whose kept tokens cannot be, by what is wrong with them."""
    kept, grid, borders = tensors["kept"], tensors["grid"], tensors["cu_seqlens"]
    first, second = kept.clone(), kept.clone()
    first[0] = -1
    second[int(borders[1]) - 1] = int(grid[0].prod())
    doubled = kept.clone()
    doubled[1] = doubled[0]
    return {
        "below": {**tensors, "kept": first},
        "beyond": {**tensors, "kept": second},
        "twice": {**tensors, "kept": doubled},
        "descending": {**tensors, "kept": kept.flip(0)},
        "too few": {**tensors, "kept": kept[:-1]},
        "other type": {**tensors, "kept": kept.long()},
        "missing": {name: tensor for name, tensor in tensors.items() if name != "kept"},
    }


@pytest.mark.parametrize("damage", ["below", "beyond", "twice", "descending", "too few", "other type", "missing"])
def test_kept_tokens_that_cannot_be_are_refused_by_name(
    clips: list[PackedClip], write_dropped: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    pack_row = packing.shards.pack_row
    monkeypatch.setattr(packing.shards, "pack_row", lambda row, patch: damaged(pack_row(row, patch))[damage])
    url = str(tmp_path)
    (shard,) = write_dropped(url, clips[:3], rows=[np.arange(3)]).shards
    (finding,) = lint_corpus(url)["findings"]
    assert (finding["rule"], finding["shard"]) == ("kept", shard.name)
    assert "kept" in finding["message"]
    with pytest.raises(ShardError, match=rf"{shard.name}: row {finding['row']}: .*kept"):
        next(iter(ShardLoader(url, global_batch=1)))


def test_kept_tokens_that_the_index_does_not_know_are_refused(
    clips: list[PackedClip], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_row = packing.shards.pack_row
    monkeypatch.setattr(
        packing.shards, "pack_row", lambda row, patch: {**pack_row(row, patch), "kept": torch.arange(8, dtype=torch.int32)}
    )
    write(str(tmp_path), clips[:1])
    assert [finding["rule"] for finding in lint_corpus(str(tmp_path))["findings"]] == ["kept"]
    with pytest.raises(ShardError, match="its index does not tell which tokens are kept"):
        next(iter(ShardLoader(str(tmp_path), global_batch=1)))


def test_a_good_corpus_with_dropped_tokens_has_no_findings(dropped: str) -> None:
    assert lint_corpus(dropped)["findings"] == []
