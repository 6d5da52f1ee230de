"""Measures have the values that their docstrings promise, on pictures with known values."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import measures
from pipeline.measures import CELLS, MEASURES, View

Picture = NDArray[np.uint8]
HEIGHT, WIDTH = 96, 144


def flat(*rgb: int) -> Picture:
    return np.full((HEIGHT, WIDTH, 3), rgb, dtype=np.uint8)


def half(left: int = 0, right: int = 255) -> Picture:
    picture = flat(left)
    picture[:, WIDTH // 2 :] = right
    return picture


def shape(x: float, *, colour: tuple[int, int, int] = (220, 40, 40), ground: int = 125, radius: int = 18) -> Picture:
    picture = flat(ground)
    cv2.circle(picture, (round(x * 16), 48 * 16), radius * 16, colour, -1, cv2.LINE_AA, shift=4)
    return picture


def checkers(size: int = 12, low: int = 60, high: int = 180) -> Picture:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.repeat(np.where((x // size + y // size) % 2, low, high).astype(np.uint8)[..., None], 3, axis=2)


def view(pictures: Sequence[Picture], *, fps: float = 4.0, **changes: Any) -> View:
    """A clip of just these frames."""
    light = np.array([picture.mean() / 255 for picture in pictures])
    change = np.array([0.0, *(np.abs(b.astype(float) - a).mean() / 255 for a, b in pairwise(pictures))])
    fields = {
        "pictures": np.stack(pictures),
        "cells": np.stack([cv2.resize(p, (WIDTH * CELLS // HEIGHT, CELLS), interpolation=cv2.INTER_AREA) for p in pictures]),
        "times_s": np.arange(len(pictures)) / fps,
        "light": light,
        "change": change,
        "before": np.zeros(0),
        "seconds": len(pictures) / fps,
    }
    return View(**{**fields, **changes})


# ---- light and colour ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "luma", "contrast"),
    [(flat(0), 0, 0), (flat(255), 1, 0), (half(), 0.5, 0.5), (half(100, 151), 125.5 / 255, 0.1)],
)
def test_luma_and_contrast_span_their_range(picture: Picture, luma: float, contrast: float) -> None:
    assert measures.luma(view([picture])) == pytest.approx(luma)
    assert measures.contrast(view([picture])) == pytest.approx(contrast)


def test_a_hundredth_of_the_picture_is_darker_than_the_low_and_lighter_than_the_high_percentile() -> None:
    picture = flat(100)
    picture[:, :3], picture[:, -3:] = 10, 240  # 2 % each
    assert (measures.luma_p01(view([picture])), measures.luma_p99(view([picture]))) == (10 / 255, 240 / 255)
    picture[:, 1:-1] = 100  # now less than 1 %
    assert (measures.luma_p01(view([picture])), measures.luma_p99(view([picture]))) == (100 / 255, 100 / 255)


def test_the_range_counts_colour_where_luma_does_not_differ() -> None:
    picture = shape(72, colour=(35, 165, 60), ground=125)
    assert measures.contrast(view([picture])) < 0.03
    assert measures.colour_range(view([picture])) == pytest.approx(90 / 255, abs=0.02)
    assert measures.colour_range(view([flat(125)])) == 0


@pytest.mark.parametrize(("rgb", "saturation"), [((90, 90, 90), 0), ((255, 0, 0), 1), ((200, 149, 175), 0.2)])
def test_saturation_is_the_distance_of_the_channels(rgb: tuple[int, int, int], saturation: float) -> None:
    assert measures.saturation(view([flat(*rgb)])) == pytest.approx(saturation)


def test_a_fade_at_the_end_of_a_clip_does_not_change_what_it_looks_like() -> None:
    faded = [checkers()] * 5 + [(checkers() * share).astype(np.uint8) for share in (0.6, 0.2)]
    for name in ("luma", "luma_p01", "luma_p99", "contrast", "colour_range", "sharpness"):
        assert MEASURES[name](view(faded)) == MEASURES[name](view([checkers()])), name  # type: ignore[misc]


# ---- sharpness -----------------------------------------------------------------------------------------------------------


def blurred(picture: Picture, share: float) -> Picture:
    return cv2.GaussianBlur(picture, (0, 0), share * HEIGHT, borderType=cv2.BORDER_REPLICATE)


SHARP = {"shape": shape(72), "checkers": checkers(), "step": half(40, 200), "pale": half(200, 220)}


@pytest.mark.parametrize("name", SHARP)
def test_sharp_edges_are_told_from_blurred_ones_at_any_contrast(name: str) -> None:
    assert measures.sharpness(view([SHARP[name]])) > 0.4
    assert measures.sharpness(view([blurred(SHARP[name], 0.06)])) < 0.25


def test_sharpness_falls_with_blur() -> None:
    values = [measures.sharpness(view([blurred(half(40, 200), share)])) for share in (0.01, 0.02, 0.03, 0.06)]
    assert values == sorted(values, reverse=True)
    assert values[2] == pytest.approx(0.006 / 0.03, rel=0.5)


def test_noise_does_not_sharpen_and_a_flat_picture_is_not_blurred() -> None:
    random = np.random.Generator(np.random.Philox(1))
    grainy = np.clip(blurred(half(40, 200), 0.06) + random.normal(0, 3, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
    assert measures.sharpness(view([grainy])) < 0.25
    assert measures.sharpness(view([flat(90)])) == 1


# ---- motion --------------------------------------------------------------------------------------------------------------


def test_motion_is_the_change_in_a_second_whatever_the_frame_rate() -> None:
    def fading(fps: int) -> View:
        return view([flat(round(100 + 50 * n / fps)) for n in range(fps + 1)], fps=fps, seconds=1.0)

    assert measures.motion(fading(10)) == pytest.approx(50 / 255)
    assert measures.motion(fading(50)) == pytest.approx(50 / 255)
    assert measures.motion(view([flat(9)] * 4)) == 0


def test_the_change_across_the_cut_belongs_to_no_clip() -> None:
    cut = view([flat(200), flat(251)], change=np.array([0.9, 51 / 255]), before=np.zeros(3), seconds=1.0)
    assert measures.motion(cut) == pytest.approx(51 / 255)


def test_a_small_thing_that_moves_slowly_is_motion_and_coding_noise_is_none() -> None:
    random = np.random.Generator(np.random.Philox(1))

    def noisy(picture: Picture) -> Picture:
        return np.clip(picture + random.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)

    step = 0.3 * HEIGHT * 0.25  # 0.3 short sides a second, a picture each quarter second
    moving = [noisy(shape(20 + step * n, colour=(35, 170, 60), radius=7)) for n in range(12)]
    assert measures.still_share(view(moving)) == 0
    assert measures.still_share(view([noisy(shape(72)) for _ in range(12)])) == 1


def test_pictures_that_follow_closely_are_compared_over_a_quarter_second() -> None:
    creeping = [shape(30 + 0.6 * n, radius=7) for n in range(16)]
    assert measures.still_share(view(creeping, fps=50)) == 0


def test_what_moves_in_the_dark_moves() -> None:
    dark = [(shape(20 + 7 * n) * 0.05).astype(np.uint8) for n in range(8)]
    assert measures.still_share(view(dark)) == 0


def test_a_single_picture_neither_moves_nor_is_still() -> None:
    assert (measures.motion(view([half()])), measures.still_share(view([half()]))) == (0, 0)


# ---- light over time -----------------------------------------------------------------------------------------------------


def lit(light: Sequence[float], fps: float) -> float:
    return measures.flicker(view([flat(9)] * 2, light=np.array(light), seconds=len(light) / fps))


@pytest.mark.parametrize("fps", [12, 30, 50])
def test_a_strobe_flickers_and_one_or_three_flashes_do_not(fps: int) -> None:
    count = 4 * fps
    steady = np.full(count, 0.3)
    strobe = np.where(np.arange(count) % 6 < 3, 0.3, 0.7)
    flashes = steady.copy()
    for at in (fps // 2, 2 * fps, 3 * fps):
        flashes[at : at + 2] = 1.0
    assert lit(strobe, fps) > 0.8
    assert lit(steady, fps) == lit(flashes, fps) == 0


def test_light_that_changes_slowly_or_steadily_does_not_flicker() -> None:
    assert lit(0.5 + 0.4 * np.sin(np.linspace(0, 12, 100)), 25) == 0
    assert lit(np.linspace(0, 1, 10), 25) == 0  # a fade of 0.4 s: jumps, all upwards
    assert lit(np.where(np.arange(100) // 25 % 2, 0.2, 0.8), 25) == 0  # once a second


def test_a_cut_stands_out_and_a_moment_of_a_moving_shot_does_not() -> None:
    moving = np.full(10, 0.02)
    cut = np.array([0.3, *moving])
    assert measures.cut_confidence(view([flat(9)], change=cut, before=moving)) > 0.85
    assert measures.cut_confidence(view([flat(9)], change=moving, before=moving)) == 0
    assert measures.cut_confidence(view([flat(9)], change=np.array([0.3]), before=np.array([0.3]))) == 0
    assert measures.cut_confidence(view([flat(9)], change=moving, before=np.zeros(0))) == 1


# ---- overlays and text ---------------------------------------------------------------------------------------------------


def scrolled(number: int) -> Picture:
    random = np.random.Generator(np.random.Philox(5))
    coarse = cv2.resize(random.integers(0, 255, (12, 40, 3)).astype(np.uint8), (480, HEIGHT), interpolation=cv2.INTER_NEAREST)
    return np.ascontiguousarray(coarse[:, 9 * number : 9 * number + WIDTH])


def signed(picture: Picture) -> Picture:
    with_sign = picture.copy()
    with_sign[8:20, 100:136] = 255
    with_sign[11:17, 104:132] = 0
    return with_sign


def test_a_sign_over_a_moving_shot_is_an_overlay_of_its_size() -> None:
    area = measures.overlay_area(view([signed(scrolled(n)) for n in range(8)]))
    assert area == pytest.approx(12 * 36 / (HEIGHT * WIDTH), rel=0.3)
    assert measures.overlay_area(view([scrolled(n) for n in range(8)])) < 0.005


def test_where_the_background_stands_still_there_is_no_overlay() -> None:
    assert measures.overlay_area(view([signed(scrolled(0))] * 8)) == 0
    before_checkers = [np.where(shape(20 + 8 * n, ground=0) > 0, shape(20 + 8 * n, ground=0), checkers()) for n in range(8)]
    assert measures.overlay_area(view(before_checkers)) == 0


def test_text_is_told_from_patterns_and_shapes() -> None:
    written = flat(40)
    for row, line in enumerate(("BREAKING", "NEWS TODAY")):
        cv2.putText(written, line, (6, 40 + 28 * row), cv2.FONT_HERSHEY_DUPLEX, 0.7, (250, 250, 250), 2, cv2.LINE_AA)
    assert measures.text_likeness(view([written])) > 0.05
    for other in (shape(72), checkers(), half(), flat(9)):
        assert measures.text_likeness(view([other])) < 0.01


# ---- a clip and its source -----------------------------------------------------------------------------------------------


@given(
    size=st.tuples(st.integers(16, 40), st.integers(16, 40)),
    frames=st.integers(1, 16),
    seed=st.integers(0, 9),
    before=st.integers(0, 3),
)
def test_every_clip_has_a_finite_number_for_every_measure(size: tuple[int, int], frames: int, seed: int, before: int) -> None:
    random = np.random.Generator(np.random.Philox(seed))
    pictures = random.integers(0, 256 if seed else 1, (frames, *size, 3)).astype(np.uint8)
    of_clip = measures.of_clip(view(list(pictures), before=random.random(before)))
    of_source = measures.of_source([of_clip], [0])[0]
    assert of_source.keys() == MEASURES.keys()
    assert np.isfinite(list(of_source.values())).all()


def runs(still: Sequence[int], shots: Sequence[int]) -> list[float]:
    return [m["still_run"] for m in measures.of_source([{"still_share": float(s)} for s in still], shots)]


def test_a_run_counts_still_shots_in_a_row_and_not_the_pieces_of_one() -> None:
    assert runs([1, 1, 1, 0, 1, 0], [0, 1, 2, 3, 4, 5]) == [3, 3, 3, 0, 1, 0]
    assert runs([1, 1, 1, 1], [7, 7, 7, 9]) == [2, 2, 2, 2]
    assert runs([], []) == []
