"""Patches go to tokens and back unchanged, in raster order; a clip's random numbers belong to the clip."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from packing.geometry import token_grid
from packing.tokens import clip_generator, fractional_positions, patchify, positions, unpatchify

Triple = tuple[int, int, int]

GRIDS = st.tuples(*[st.integers(1, 5)] * 3)
PATCHES = st.tuples(*[st.integers(1, 3)] * 3)
CHANNELS = st.integers(1, 4)

unhurried = settings(deadline=None)


def counted_latent(channels: int, grid: Triple, patch: Triple) -> Tensor:
    """A latent in which every number is different."""
    shape = [channels, *(cells * side for cells, side in zip(grid, patch, strict=True))]
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


@unhurried
@given(CHANNELS, GRIDS, PATCHES)
def test_unpatchify_undoes_patchify(channels: int, grid: Triple, patch: Triple) -> None:
    latent = counted_latent(channels, grid, patch)
    assert torch.equal(unpatchify(patchify(latent, patch), grid, patch, channels), latent)


@unhurried
@given(CHANNELS, GRIDS, PATCHES)
def test_a_token_is_the_patch_at_its_position(channels: int, grid: Triple, patch: Triple) -> None:
    latent = counted_latent(channels, grid, patch)
    tokens, places = patchify(latent, patch), positions(torch.tensor([grid]))
    number = len(tokens) * 2 // 3
    t, h, w = (slice(int(at) * side, (int(at) + 1) * side) for at, side in zip(places[number], patch, strict=True))
    assert torch.equal(tokens[number], latent[:, t, h, w].flatten())


@unhurried
@given(CHANNELS, GRIDS, PATCHES)
def test_patchify_gives_one_token_of_all_channels_to_a_patch(channels: int, grid: Triple, patch: Triple) -> None:
    latent = counted_latent(channels, grid, patch)
    assert token_grid((latent.shape[1], latent.shape[2], latent.shape[3]), patch) == grid
    assert patchify(latent, patch).shape == (math.prod(grid), channels * math.prod(patch))


def test_patchify_refuses_a_patch_that_does_not_divide_the_latent() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        patchify(torch.zeros(4, 2, 5, 4), (1, 2, 2))


@unhurried
@given(st.lists(GRIDS, max_size=4))
def test_positions_are_the_raster_order_of_each_segment(grids: list[Triple]) -> None:
    expected = [at for grid in grids for at in np.ndindex(*grid)]
    found = positions(torch.tensor(grids, dtype=torch.int32).reshape(-1, 3))
    assert found.dtype == torch.int64
    assert [tuple(at) for at in found.tolist()] == expected


def draw(seed: int, epoch: int, clip_id: str, purpose: str) -> list[int]:
    return clip_generator(seed, epoch, clip_id, purpose).integers(1 << 62, size=4).tolist()


def test_equal_keys_draw_equal_numbers() -> None:
    assert draw(1, 2, "c" * 32, "noise") == draw(1, 2, "c" * 32, "noise")


@pytest.mark.parametrize(
    "other",
    [(2, 2, "c" * 32, "noise"), (1, 3, "c" * 32, "noise"), (1, 2, "d" * 32, "noise"), (1, 2, "c" * 32, "caption")],
    ids=["seed", "epoch", "clip", "purpose"],
)
def test_another_key_draws_other_numbers(other: tuple[int, int, str, str]) -> None:
    assert draw(*other) != draw(1, 2, "c" * 32, "noise")


def test_keys_do_not_run_into_each_other() -> None:
    assert draw(1, 12, "c", "noise") != draw(11, 2, "c", "noise")


def test_the_draws_of_a_key_never_change() -> None:
    # A checkpoint of today resumes tomorrow: another generator or another key would silently change its order.
    assert clip_generator(0, 0, "0" * 32, "noise").integers(1000, size=5).tolist() == [695, 408, 556, 195, 596]


def test_fractional_positions_are_shares_of_each_clips_own_extents() -> None:
    found = fractional_positions(torch.tensor([[2, 1, 4], [1, 2, 1]], dtype=torch.int32))
    t, w = [0.0, 0.5], [0.0, 0.25, 0.5, 0.75]
    expected = [[a, 0.0, b] for a in t for b in w] + [[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert fractional_positions(torch.zeros(0, 3, dtype=torch.int32)).shape == (0, 3)


def test_a_clip_of_twice_the_size_has_the_same_positions_at_every_second_token() -> None:
    small, large = (fractional_positions(torch.tensor([[3 * k, 2 * k, 4 * k]])).reshape(3 * k, 2 * k, 4 * k, 3) for k in (1, 2))
    torch.testing.assert_close(large[::2, ::2, ::2], small)
