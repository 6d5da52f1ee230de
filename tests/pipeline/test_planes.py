"""Planes of decoded frames: the same picture whatever the format, and light and change of every frame, whatever the strip."""

from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.media import UPRIGHT, Scaler
from pipeline.planes import FRAMES, Strip, fitted, hold, planes_of

HEIGHT, WIDTH = 64, 96
BARS = ((255, 255, 255), (200, 30, 60), (10, 120, 240))
FORMATS = [
    "yuv420p",
    "yuv422p",
    "yuv444p",
    "yuvj420p",
    "yuva420p",
    "yuv440p",
    "yuv411p",
    "yuv410p",
    "nv12",
    "rgb24",
    "gbrp",
    "bgra",
]
DEEP = ["yuv420p10le", "yuv444p12le", "yuv420p10be", "p010le", "gbrp10le"]


def bars() -> NDArray[np.uint8]:
    return np.repeat(np.repeat(np.array([BARS], np.uint8), HEIGHT, axis=0), WIDTH // 3, axis=1)


def frame(picture: NDArray[np.uint8], pixel_format: str = "yuv420p") -> Any:
    return av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixel_format)


def grey(level: int) -> Any:
    return frame(np.full((HEIGHT, WIDTH, 3), level, np.uint8), "yuvj420p")


@pytest.mark.parametrize("pixel_format", [*FORMATS, *DEEP])
def test_a_picture_is_the_same_whatever_its_frame_is_stored_as(pixel_format: str) -> None:
    held = hold(planes_of(frame(bars(), pixel_format), Scaler(1)), (HEIGHT, WIDTH), UPRIGHT, 64)
    picture = held.picture((0, 0, HEIGHT, WIDTH), 64).astype(int)
    assert np.abs(picture[32, 16::32] - BARS).max() <= 3


@pytest.mark.parametrize("pixel_format", ["gray", "gray10le"])
def test_a_frame_without_colour_is_grey(pixel_format: str) -> None:
    held = hold(planes_of(frame(bars(), pixel_format), Scaler(1)), (HEIGHT, WIDTH), UPRIGHT, 64)
    picture = held.picture((0, 0, HEIGHT, WIDTH), 64)
    assert (picture[32, 16::32].tolist()) == [[255] * 3, [84] * 3, [101] * 3]


def test_a_held_frame_outlives_the_frame_and_shows_what_a_box_cuts_out() -> None:
    made = frame(bars(), "yuv444p")
    held = hold(planes_of(made, Scaler(1)), (HEIGHT, WIDTH), UPRIGHT, 16)
    for plane in made.planes:
        plane.update(bytes(plane.buffer_size))
    picture = held.picture((0, 32, 64, 32), 16)
    assert picture.shape == (16, 8, 3)
    assert np.abs(picture[:, 1:-1].astype(int) - BARS[1]).max() <= 3


@pytest.mark.parametrize("chunk", [1, 3, FRAMES])
def test_light_and_change_are_those_of_every_frame_wherever_strips_end(chunk: int) -> None:
    strip, light, change, stirred = Strip(), [], [], []
    levels = [0, 51, 51, 255, 0, 102]
    for number, level in enumerate(levels, 1):
        stirred.append(strip.add(planes_of(grey(level), Scaler(1))))
        if strip.count == chunk or number == len(levels):
            developed = strip.develop(12, 16)
            assert developed.pictures.shape == (len(developed.light), 12, 16, 3)
            light += developed.light.tolist()
            change += developed.change.tolist()
    assert light == pytest.approx([0, 0.2, 0.2, 1, 0, 0.4], abs=0.006)
    assert change == pytest.approx([0, 0.2, 0, 0.8, 1, 0.4], abs=0.006)
    assert stirred[1:] == pytest.approx([51, 0, 204, 255, 102], abs=1)


@pytest.mark.parametrize(
    ("shape", "fits"), [((1080, 1920), (224, 398)), ((100, 90), (100, 90)), ((8, 4000), (8, 4000)), ((1, 700), (2, 700))]
)
def test_pictures_are_even_and_never_larger_than_asked_nor_than_the_frame(
    shape: tuple[int, int], fits: tuple[int, int]
) -> None:
    assert fitted(shape, 224) == fits
