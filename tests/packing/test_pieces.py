"""Pieces of a clip are all of it, in order, none longer than a row, each a segment that says where it comes from."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packing import Manifest, PackedClip, ShardLoader, divide_clip
from packing.pieces import clip_id_of, divide

MakeClip = Callable[..., PackedClip]
GRIDS = st.tuples(st.integers(1, 60), st.integers(1, 5), st.integers(1, 5))
PATCH = (1, 2, 2)


@given(GRIDS, st.integers(25, 100))
def test_pieces_are_the_whole_clip_and_none_is_longer_than_a_row(grid: tuple[int, int, int], capacity: int) -> None:
    pieces = divide("clip", grid, capacity)
    assert [pieces[0].first, *(piece.last for piece in pieces)] == [*(piece.first for piece in pieces), grid[0]]
    assert sum(piece.tokens for piece in pieces) == grid[0] * grid[1] * grid[2]
    assert all(0 < piece.tokens <= capacity for piece in pieces)


@given(GRIDS, st.integers(25, 100))
def test_pieces_are_as_few_and_as_even_as_can_be(grid: tuple[int, int, int], capacity: int) -> None:
    frames = [piece.last - piece.first for piece in divide("clip", grid, capacity)]
    assert max(frames) - min(frames) <= 1
    assert (len(frames) - 1) * (capacity // (grid[1] * grid[2])) < grid[0]


@given(GRIDS, st.integers(25, 100))
def test_pieces_have_ids_of_their_own_that_name_the_clip(grid: tuple[int, int, int], capacity: int) -> None:
    ids = [piece.id for piece in divide("clip", grid, capacity)]
    assert len(set(ids)) == len(ids)
    assert {clip_id_of(segment) for segment in ids} == {"clip"}


def test_a_frame_that_is_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="a frame of clip c has 30 tokens, a row 29"):
        divide("c", (4, 5, 6), 29)


def test_a_clip_that_fits_is_itself(make_clip: MakeClip) -> None:
    clip = make_clip(0)
    assert divide_clip(clip, PATCH, 1000, stride=4) == [clip]


def test_pieces_hold_the_latent_between_them_and_share_its_captions(make_clip: MakeClip) -> None:
    clip = make_clip(2, size=(10, 4, 6))
    pieces = divide_clip(clip, (2, 2, 2), 12, stride=4)
    assert torch.equal(torch.cat([piece.latent for piece in pieces], dim=1), clip.latent)
    assert [piece.latent.shape[1] for piece in pieces] == [2, 4, 4]
    assert all(piece.captions == clip.captions for piece in pieces)
    assert [piece.facts["piece"]["latent_frames"] for piece in pieces] == [[0, 2], [2, 6], [6, 10]]
    assert {piece.facts["piece"]["of"] for piece in pieces} == {clip.clip_id}


def test_the_times_of_pieces_follow_each_other_through_the_clip(make_clip: MakeClip) -> None:
    facts = {"fps": 8.0, "frames": 37, "start_s": 2.0, "end_s": 6.7, "duration_s": 4.7}
    clip = replace(make_clip(0, size=(10, 2, 2)), facts=facts)
    pieces = divide_clip(clip, (1, 1, 1), 16, stride=4)
    assert [piece.facts["frames"] for piece in pieces] == [9, 12, 16]
    assert [piece.facts["start_s"] for piece in pieces] == [2.0, 2.0 + 9 / 8, 2.0 + 21 / 8]
    assert all(one.facts["end_s"] == other.facts["start_s"] for one, other in pairwise(pieces))
    assert pieces[-1].facts["end_s"] == 6.7
    assert sum(piece.facts["duration_s"] for piece in pieces) == pytest.approx(4.7)


def test_pieces_are_packed_and_loaded_as_segments(
    make_clip: MakeClip, write: Callable[..., Manifest], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = str(tmp_path_factory.mktemp("pieces"))
    long = make_clip(0, size=(23, 4, 4))
    segments = [*divide_clip(long, PATCH, 40, stride=4), make_clip(1)]
    write(folder, segments)
    batch = next(iter(ShardLoader(folder, global_batch=9)))
    assert sorted(batch.clip_ids) == sorted(segment.clip_id for segment in segments)
    assert len(batch.latents) == 23 * 4 + 18
