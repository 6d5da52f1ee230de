"""Defects do what their names say to any scene, and only that."""

import numpy as np
import pytest
from numpy.typing import NDArray

from demo.defects import DEFECTS, blurred, flashing, text_overlay, too_dark, washed_out, watermark
from demo.scenes import draw_scene, render

Frames = NDArray[np.uint8]


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def frames(seed: int) -> Frames:
    scene = draw_scene(generator(seed), seconds=2.0, aspect=4 / 3)
    return render(scene, [number / 12 for number in range(12)], 96, 128)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_keeps_size_and_type_and_is_the_same_for_a_seed(name: str) -> None:
    good = frames(0)
    spoiled = DEFECTS[name](good, generator(1))
    assert spoiled.shape == good.shape
    assert spoiled.dtype == np.uint8
    assert not np.array_equal(spoiled, good)
    assert np.array_equal(spoiled, DEFECTS[name](good, generator(1)))


@pytest.mark.parametrize("seed", range(5))
def test_dark_and_washed_out_pictures_have_little_range(seed: int) -> None:
    assert too_dark(frames(seed), generator(seed)).max() < 20
    pale = washed_out(frames(seed), generator(seed))
    assert pale.min() > 180
    assert np.ptp(pale) < 30


def test_blur_takes_the_steepest_edges_away() -> None:
    good = frames(1)
    assert (
        np.abs(np.diff(blurred(good, generator(0)).astype(int), axis=2)).max()
        < 0.4 * np.abs(np.diff(good.astype(int), axis=2)).max()
    )


def test_a_strobe_lights_half_of_the_frames() -> None:
    good = frames(2)
    lit = [not np.array_equal(a, b) for a, b in zip(flashing(good, generator(0)), good, strict=True)]
    assert sum(lit) == len(good) // 2


def test_words_cover_much_of_the_picture_and_a_watermark_a_corner() -> None:
    for seed in range(6):
        good = frames(seed)
        changed = (text_overlay(good, generator(seed)) != good).any(axis=-1)[0]
        assert changed.any(axis=0).mean() > 0.25  # of the width
        marked = (watermark(good, generator(seed)) != good).any(axis=-1)[0]
        assert 0.01 < marked.mean() < 0.06
        assert not marked[30:66, 45:83].any()
