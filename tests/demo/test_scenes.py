"""Scenes show what their captions say, at any resolution, and never a held-out combination."""

import numpy as np
import pytest
from numpy.typing import NDArray

from demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Scene,
    Shape,
    dense_caption,
    draw_scene,
    held_out,
    render,
    short_caption,
)

RED = (215, 35, 40)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def scene(motion: str, *, shape: str = "square", seconds: float = 2.0) -> Scene:
    """A red shape in the middle of a plain grey square."""
    grey = (125, 125, 125)
    red = Shape(shape=shape, colour="red", motion=motion, speed="slowly", radius=0.15, x=0.5, y=0.5, angle=0.0, rgb=RED)
    return Scene(shapes=(red,), background="gray", seconds=seconds, aspect=1.0, texture=0, palette=(grey, grey))


def red_pixels(picture: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Rows and columns [n, 2] of what is red."""
    return np.argwhere((picture[..., 0] > 180) & (picture[..., 1] < 80))


def centre(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    middle: NDArray[np.float64] = red_pixels(picture).mean(axis=0)
    return middle


@pytest.mark.parametrize(("motion", "towards"), [("left", (0, -1)), ("right", (0, 1)), ("up", (-1, 0)), ("down", (1, 0))])
def test_a_drifting_shape_moves_the_way_its_caption_says(motion: str, towards: tuple[int, int]) -> None:
    first, last = render(scene(motion), [0.0, 0.5], 100, 100)
    moved = centre(last) - centre(first)
    assert np.allclose(moved, np.array(towards) * 15, atol=1.0)  # 0.3 short sides a second


def test_growing_and_shrinking_shapes_change_size_and_stay_where_they_are() -> None:
    for motion, larger in [("grow", True), ("shrink", False)]:
        first, last = render(scene(motion), [0.0, 2.0], 100, 100)
        assert (len(red_pixels(last)) > 2 * len(red_pixels(first))) == larger
        assert np.allclose(centre(first), centre(last), atol=1.0)


def test_a_still_shape_stays_and_a_spinning_one_turns_in_place() -> None:
    still = render(scene("still"), [0.0, 1.0], 100, 100)
    assert np.array_equal(still[0], still[1])
    spinning = render(scene("spin"), [0.0, 0.7], 100, 100)
    assert not np.array_equal(spinning[0], spinning[1])
    assert np.allclose(centre(spinning[0]), centre(spinning[1]), atol=1.0)


def test_a_circling_shape_comes_back_and_a_bouncing_one_rises_and_falls() -> None:
    path = np.array([centre(picture) for picture in render(scene("circle"), [0.0, 0.7, 1.4, 2.8], 100, 100)])
    assert np.allclose(path[0], path[3], atol=1.0)
    assert np.linalg.norm(path[0] - path[2]) > 25
    low, high, again = (centre(picture)[0] for picture in render(scene("bounce"), [0.0, 1.2, 2.4], 100, 100))
    assert low - high > 40
    assert abs(low - again) < 2


def test_a_shape_that_leaves_on_one_side_comes_in_on_the_other() -> None:
    counts = [len(red_pixels(picture)) for picture in render(scene("right"), np.arange(0, 3.4, 0.2), 100, 100)]
    assert min(counts) > 0.85 * max(counts)


def test_a_scene_looks_the_same_at_any_resolution() -> None:
    random = generator(1)
    for _ in range(12):
        drawn = draw_scene(random, seconds=2.0, aspect=4 / 3)
        small = render(drawn, [0.7], 96, 128)[0].astype(float)
        large = render(drawn, [0.7], 288, 384)[0].reshape(96, 3, 128, 3, 3).mean(axis=(1, 3))
        assert np.abs(small - large).mean() < 4


def test_worlds_never_show_a_held_out_combination_and_a_tenth_is_held_out() -> None:
    random = generator(2)
    drawn = [draw_scene(random, seconds=2.0, aspect=1.0) for _ in range(300)]
    assert not any(held_out(scene.combination) for scene in drawn)
    every = [(s, c, m, b) for s in SHAPES for c in COLOURS for m in MOTIONS for b in BACKGROUNDS]
    assert 0.08 < sum(map(held_out, every)) / len(every) < 0.12


def test_something_moves_in_every_scene() -> None:
    random = generator(3)
    for _ in range(60):
        drawn = draw_scene(random, seconds=1.5, aspect=9 / 16)
        first, last = render(drawn, [0.0, 0.5], 128, 72)
        assert not np.array_equal(first, last), short_caption(drawn)


def test_scenes_that_are_longer_than_a_piece_neither_grow_nor_shrink() -> None:
    random = generator(4)
    motions = {draw_scene(random, seconds=9.0, aspect=1.0).main.motion for _ in range(200)}
    assert motions == set(MOTIONS) - {"grow", "shrink"}


def test_captions_name_what_is_there() -> None:
    assert short_caption(scene("left")) == "A red square moves left on a gray background."
    assert dense_caption(scene("still")) == "A small red square stays still. The background is plain gray."
