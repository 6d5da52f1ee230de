"""Sizes on the way from pixels to tokens keep the budget, the grid and the aspect ratio."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.geometry import fit_frame, latent_shape, legal_frames, token_grid

# Frames of at least 4 cells a side and no narrower than 1:4, budgets of at least 64 cells: those always fit.
MULTIPLES = st.sampled_from([8, 16, 32])
BUDGETS = st.integers(64 * 32 * 32, 2_000_000)
SIDES = st.tuples(st.integers(128, 2200), st.floats(0.25, 4)).map(lambda f: (f[0], max(128, round(f[0] * f[1]))))

unhurried = settings(deadline=None)


@unhurried
@given(SIDES, BUDGETS, MULTIPLES, MULTIPLES)
def test_a_fitted_frame_keeps_to_the_budget(sides: tuple[int, int], budget: int, rows: int, columns: int) -> None:
    fit = fit_frame(*sides, max_pixels=budget, multiple=(rows, columns))
    assert 0 < fit.size[0] * fit.size[1] <= budget


@unhurried
@given(SIDES, BUDGETS, MULTIPLES, MULTIPLES)
def test_a_fitted_frame_is_on_the_grid(sides: tuple[int, int], budget: int, rows: int, columns: int) -> None:
    fit = fit_frame(*sides, max_pixels=budget, multiple=(rows, columns))
    assert (fit.size[0] % rows, fit.size[1] % columns) == (0, 0)


@unhurried
@given(SIDES, BUDGETS, MULTIPLES, MULTIPLES)
def test_a_frame_is_never_upscaled(sides: tuple[int, int], budget: int, rows: int, columns: int) -> None:
    fit = fit_frame(*sides, max_pixels=budget, multiple=(rows, columns))
    assert fit.resized[0] <= sides[0]
    assert fit.resized[1] <= sides[1]


@unhurried
@given(SIDES, BUDGETS, MULTIPLES, MULTIPLES)
def test_a_resized_frame_covers_its_crop_centred(sides: tuple[int, int], budget: int, rows: int, columns: int) -> None:
    fit = fit_frame(*sides, max_pixels=budget, multiple=(rows, columns))
    for size, resized, before in zip(fit.size, fit.resized, fit.offset, strict=True):
        after = resized - size - before
        assert before >= 0
        assert after - before in (0, 1)


@unhurried
@given(SIDES, BUDGETS, MULTIPLES)
def test_a_resize_keeps_the_aspect_ratio_to_half_a_pixel(sides: tuple[int, int], budget: int, cell: int) -> None:
    fit = fit_frame(*sides, max_pixels=budget, multiple=(cell, cell))
    scales = [((to - 0.5) / side, (to + 0.5) / side) for to, side in zip(fit.resized, sides, strict=True)]
    assert max(low for low, _ in scales) <= min(high for _, high in scales)  # one scale explains both sides


@unhurried
@given(SIDES, st.integers(1024 * 64, 2_000_000))
def test_a_generous_budget_crops_less_than_one_cell_in_eight(sides: tuple[int, int], budget: int) -> None:
    fit = fit_frame(*sides, max_pixels=budget, multiple=(8, 8))
    shortest = min(fit.size) // 8
    aspect_error = abs(math.log(fit.size[0] / fit.size[1] * sides[1] / sides[0]))
    assert aspect_error <= math.log(1 + 1 / shortest)
    assert fit.cropped_share <= 1 / shortest


@unhurried
@given(st.integers(1, 60), st.integers(1, 60), MULTIPLES)
def test_a_frame_on_the_grid_within_the_budget_stays_as_it_is(rows: int, columns: int, cell: int) -> None:
    size = rows * cell, columns * cell
    fit = fit_frame(*size, max_pixels=size[0] * size[1], multiple=(cell, cell))
    assert (fit.size, fit.resized, fit.offset, fit.cropped_share) == (size, size, (0, 0), 0)


def test_portrait_stays_portrait_at_the_same_pixel_count() -> None:
    wide = fit_frame(1080, 1920, max_pixels=512 * 512, multiple=(16, 16))
    tall = fit_frame(1920, 1080, max_pixels=512 * 512, multiple=(16, 16))
    assert tall.size == wide.size[::-1]


@pytest.mark.parametrize(("height", "width"), [(15, 400), (400, 15), (1, 1)])
def test_a_frame_smaller_than_one_cell_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{width}x{height} does not fit"):
        fit_frame(height, width, max_pixels=10**6, multiple=(16, 16))


def test_a_strip_that_does_not_fit_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="20x20000 does not fit"):
        fit_frame(20_000, 20, max_pixels=10_000, multiple=(16, 16))


STRIDES, PATCHES = st.integers(1, 8), st.integers(1, 4)


@unhurried
@given(st.integers(0, 300), STRIDES, PATCHES)
def test_legal_frames_give_whole_latent_frames_and_whole_patches(extra: int, stride: int, patch: int) -> None:
    available = 1 + (patch - 1) * stride + extra
    frames = legal_frames(available, stride=stride, patch=patch)
    assert (frames - 1) % stride == 0
    assert latent_shape(frames, 8, 8, (stride, 8, 8))[0] % patch == 0


@unhurried
@given(st.integers(0, 300), STRIDES, PATCHES)
def test_legal_frames_are_the_most_that_are_available(extra: int, stride: int, patch: int) -> None:
    available = 1 + (patch - 1) * stride + extra
    frames = legal_frames(available, stride=stride, patch=patch)
    assert frames <= available < frames + stride * patch


@unhurried
@given(st.integers(1, 300), st.integers(1, 300), STRIDES)
def test_legal_frames_keep_to_the_most_that_is_wanted(available: int, most: int, stride: int) -> None:
    assert legal_frames(available, stride=stride, most=most) == legal_frames(min(available, most), stride=stride)


@pytest.mark.parametrize(("available", "patch"), [(0, 1), (-3, 1), (4, 2), (8, 3)])
def test_too_few_frames_for_one_patch_are_refused(available: int, patch: int) -> None:
    with pytest.raises(ValueError, match="too few"):
        legal_frames(available, stride=4, patch=patch)


def test_the_latent_of_a_causal_codec_has_one_frame_more_than_strides() -> None:
    assert latent_shape(49, 480, 832, (4, 8, 8)) == (13, 60, 104)


SIZES = st.tuples(*[st.integers(1, 12)] * 3)


@unhurried
@given(SIZES, SIZES)
def test_a_token_grid_times_its_patch_is_the_latent(grid: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    latent = (grid[0] * patch[0], grid[1] * patch[1], grid[2] * patch[2])
    assert token_grid(latent, patch) == grid


@pytest.mark.parametrize("latent", [(3, 4, 4), (4, 5, 4), (4, 4, 7)])
def test_a_patch_that_does_not_divide_the_latent_is_refused(latent: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        token_grid(latent, (2, 2, 2))


def test_a_codec_that_works_in_chunks_gets_whole_chunks() -> None:
    assert [legal_frames(n, stride=2, step=4) for n in (1, 4, 5, 16, 17, 31)] == [1, 1, 5, 13, 17, 29]
    assert legal_frames(32, stride=2, step=4, patch=3) == 29  # 15 latent frames
    with pytest.raises(ValueError, match="too few"):
        legal_frames(4, stride=2, step=4, patch=3)
