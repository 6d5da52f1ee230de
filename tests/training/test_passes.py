"""A step is cut between clips, and the cut loses nothing."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from packing import Batch
from training.passes import split_batch


def batch_of(*lengths: int) -> Batch:
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return Batch(
        latents=torch.arange(int(offsets[-1]))[:, None].half(),
        cu_seqlens=offsets,
        grid=torch.tensor([[1, 1, length] for length in lengths], dtype=torch.int32).reshape(-1, 3),
        clip_ids=tuple(f"clip {number}" for number in range(len(lengths))),
        text=torch.arange(2 * len(lengths))[:, None].bfloat16(),
        cu_text=torch.arange(len(lengths) + 1, dtype=torch.int32) * 2,
        captions=tuple(f"caption {number}" for number in range(len(lengths))),
        epoch=0,
        step=0,
    )


@pytest.mark.parametrize(
    ("lengths", "passes"),
    [((3, 4, 5), [(3, 4), (5,)]), ((9, 1), [(9,), (1,)]), ((4, 4), [(4, 4)]), ((2, 9, 2), [(2,), (9,), (2,)])],
)
def test_passes_hold_whole_clips_up_to_the_limit(lengths: tuple[int, ...], passes: list[tuple[int, ...]]) -> None:
    parts = split_batch(batch_of(*lengths), 8)
    assert [tuple(part.cu_seqlens.diff().tolist()) for part in parts] == passes


def test_passes_joined_are_the_batch() -> None:
    whole = batch_of(3, 4, 5, 6)
    parts = split_batch(whole, 8)
    assert torch.equal(torch.cat([part.latents for part in parts]), whole.latents)
    assert torch.equal(torch.cat([part.text for part in parts]), whole.text)
    assert torch.equal(torch.cat([part.grid for part in parts]), whole.grid)
    assert tuple(caption for part in parts for caption in part.captions) == whole.captions
    assert tuple(clip for part in parts for clip in part.clip_ids) == whole.clip_ids


def test_every_pass_counts_its_tokens_and_its_text_from_zero() -> None:
    for part in split_batch(batch_of(3, 4, 5, 6), 8):
        assert part.cu_seqlens[[0, -1]].tolist() == [0, len(part.latents)]
        assert part.cu_text[[0, -1]].tolist() == [0, len(part.text)]


def test_every_pass_keeps_the_numbers_of_its_tokens() -> None:
    kept = torch.tensor([1, 4, 5, 0, 1, 2, 7, 2, 3, 4, 5, 9], dtype=torch.int32)
    parts = split_batch(replace(batch_of(3, 4, 5), kept=kept), 8)
    assert [part.kept.tolist() for part in parts if part.kept is not None] == [[1, 4, 5, 0, 1, 2, 7], [2, 3, 4, 5, 9]]
    assert all(part.kept is None for part in split_batch(batch_of(3, 4, 5), 8))


def test_a_batch_without_clips_is_one_pass() -> None:
    (only,) = split_batch(batch_of(), 8)
    assert only.latents.shape == (0, 1)
