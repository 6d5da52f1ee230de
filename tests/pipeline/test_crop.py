"""Crop boxes: black bars are found to the pixel, and nothing else is taken for one."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.crop import Box, find_box, lines_of, scaled_box
from tests.media import Picture, picture, set_matrix, write_video

Scan = Callable[..., tuple[dict[str, Any], dict[str, NDArray[Any]]]]
Luma = NDArray[np.uint8]
HEIGHT, WIDTH = 240, 320


def textured(height: int, width: int, seed: int = 0, lowest: int = 60) -> Luma:
    random = np.random.Generator(np.random.Philox(seed))
    coarse = random.integers(lowest, 200, (6, 8)).astype(np.uint8)
    return np.maximum(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), lowest)


def barred(box: Box, *, height: int = HEIGHT, width: int = WIDTH, noise: int = 0, seed: int = 0) -> Luma:
    random = np.random.Generator(np.random.Philox(seed))
    frame = random.integers(0, noise + 1, (height, width)).astype(np.uint8)
    top, left, tall, wide = box
    frame[top : top + tall, left : left + wide] = textured(tall, wide, seed)
    return frame


def found(*frames: Luma) -> Box:
    return find_box([lines_of(frame) for frame in frames], *frames[0].shape)


# ---- planes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0, 12])
@pytest.mark.parametrize(
    "box", [(30, 0, 180, 320), (0, 41, 240, 238), (17, 23, 206, 275), (2, 0, 236, 320), (100, 0, 40, 320), (31, 0, 181, 320)]
)
def test_clean_and_noisy_bars_are_found_to_the_pixel(box: Box, noise: int) -> None:
    assert found(*(barred(box, noise=noise, seed=seed) for seed in range(6))) == box


@given(
    bar=st.integers(2, 100),
    off=st.integers(0, 4),
    side=st.booleans(),
    size=st.sampled_from([(240, 320), (96, 128), (480, 360)]),
)
def test_bars_of_any_width_are_found_to_the_pixel(bar: int, off: int, side: bool, size: tuple[int, int]) -> None:
    height, width = size
    length = width if side else height
    bar = min(bar, int(0.4 * length))
    inside = length - 2 * bar - off
    box = (0, bar, height, inside) if side else (bar, 0, inside, width)
    assert found(*(barred(box, height=height, width=width, seed=seed) for seed in range(3))) == box


def test_bars_wider_than_45_of_100_are_none() -> None:
    assert found(barred((114, 0, 12, 320))) == (0, 0, HEIGHT, WIDTH)


def test_one_dark_side_is_no_bar() -> None:
    assert found(barred((60, 0, 180, 320))) == (0, 0, HEIGHT, WIDTH)
    assert found(barred((60, 0, 150, 320))) == (0, 0, HEIGHT, WIDTH)


def test_a_dark_clip_is_left_whole() -> None:
    dark = (textured(HEIGHT, WIDTH).astype(float) * 0.05).astype(np.uint8)
    assert found(dark, dark) == (0, 0, HEIGHT, WIDTH)
    assert found(np.zeros((HEIGHT, WIDTH), np.uint8)) == (0, 0, HEIGHT, WIDTH)


def test_a_title_on_black_is_left_whole() -> None:
    frame = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.putText(frame, "The End", (90, 130), cv2.FONT_HERSHEY_DUPLEX, 1.2, 255, 2)
    assert found(frame, frame) == (0, 0, HEIGHT, WIDTH)


def test_a_soft_vignette_is_no_bar() -> None:
    across = np.clip(np.sin(np.linspace(0, np.pi, WIDTH)) * 1.5 - 0.2, 0, 1)
    frame = (textured(HEIGHT, WIDTH) * across).astype(np.uint8)
    assert found(frame, frame) == (0, 0, HEIGHT, WIDTH)


def test_a_lit_thing_on_black_that_comes_to_the_edge_keeps_the_frame_whole() -> None:
    frames = []
    for x in range(20, 301, 40):
        frame = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.circle(frame, (x, 120), 40, 200, -1)
        frames.append(frame)
    assert found(*frames) == (0, 0, HEIGHT, WIDTH)


def test_a_dark_picture_between_bars_is_still_found_where_it_is_lighter_than_they_are() -> None:
    box = (30, 0, 180, 320)
    frame = barred(box, noise=8)
    frame[30:210] = 35
    assert found(frame, frame, frame) == box


def test_white_flashes_and_one_frame_of_a_neighbour_do_not_hide_bars() -> None:
    box, white = (30, 0, 180, 320), np.full((HEIGHT, WIDTH), 255, np.uint8)
    frames = [barred(box, seed=seed) for seed in range(12)]
    assert found(white, *frames, white, textured(HEIGHT, WIDTH)) == box


def test_a_small_sign_in_a_bar_does_not_hide_it() -> None:
    box = (40, 0, 160, 320)
    frame = barred(box)
    cv2.putText(frame, "TV", (5, 25), cv2.FONT_HERSHEY_DUPLEX, 0.5, 255, 1)
    assert found(frame, frame) == box


def test_lines_of_sixteen_bits_keep_their_range() -> None:
    assert lines_of(textured(HEIGHT, WIDTH).astype(np.uint16) * 4).rows.max() > 255


@given(st.data())
def test_a_box_at_another_size_lies_inside_the_frame_and_inside_the_box(data: st.DataObject) -> None:
    height, width, tall, wide = (data.draw(st.integers(1, 500)) for _ in range(4))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = (top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    scaled = scaled_box(box, (height, width), (tall, wide))
    assert scaled_box(box, (height, width), (height, width)) == box
    for start, length, whole, size, of in zip(scaled[:2], scaled[2:], (tall, wide), (height, width), range(2), strict=True):
        assert 0 <= start < start + length <= whole
        if length > 1:
            assert box[of] / size <= start / whole
            assert (start + length) / whole <= (box[of] + box[of + 2]) / size + 1e-9


# ---- files -------------------------------------------------------------------------------------------------------------


def bordered(scene: int, number: int, box: Box, size: tuple[int, int]) -> Picture:
    whole = np.zeros((*size, 3), np.uint8)
    top, left, height, width = box
    whole[top : top + height, left : left + width] = np.maximum(picture(scene, number, height=height, width=width), 50)
    return whole


def crop_of(scan: Scan, path: Path) -> list[tuple[int, ...]]:
    return [tuple(clip["crop"]) for clip in scan(path)[0]["clips"]]


@pytest.mark.parametrize(
    ("suffix", "codec", "pixel_format"),
    [
        ("mp4", "libx264", "yuv420p"),
        ("mp4", "libx264", "yuv444p10le"),
        ("mp4", "libx265", "yuv420p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("mkv", "libsvtav1", "yuv420p"),
        ("avi", "mpeg4", "yuv420p"),
    ],
)
def test_bars_survive_every_codec_and_depth(scan: Scan, tmp_path: Path, suffix: str, codec: str, pixel_format: str) -> None:
    box = (18, 0, 108, 192)
    pictures = [bordered(1, number, box, (144, 192)) for number in range(20)]
    path = write_video(tmp_path / f"a.{suffix}", pictures, codec=codec, pixel_format=pixel_format)
    assert crop_of(scan, path) == [box]


def test_rough_coding_moves_no_edge_by_more_than_two_pixels(scan: Scan, tmp_path: Path) -> None:
    box = (21, 0, 101, 192)
    pictures = [bordered(1, number, box, (144, 192)) for number in range(20)]
    path = write_video(tmp_path / "a.mp4", pictures, encoder={"preset": "veryfast", "crf": "38"})
    top, left, height, width = crop_of(scan, path)[0]
    assert max(abs(top - 21), abs(top + height - 122), left, abs(width - 192)) <= 2


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), (16, 0, 62, 128)),
        ((-1, 0, 0, -1), (18, 0, 62, 128)),
        ((0, 1, -1, 0), (0, 18, 128, 62)),
        ((0, -1, 1, 0), (0, 16, 128, 62)),
        ((-1, 0, 0, 1), (16, 0, 62, 128)),
    ],
)
def test_the_box_is_that_of_the_upright_picture(
    scan: Scan, tmp_path: Path, matrix: tuple[int, int, int, int], upright: Box
) -> None:
    pictures = [bordered(1, number, (16, 0, 62, 128), (96, 128)) for number in range(12)]
    path = set_matrix(write_video(tmp_path / "a.mp4", pictures), *matrix)
    assert crop_of(scan, path) == [upright]


def test_the_box_counts_square_pixels(scan: Scan, tmp_path: Path) -> None:
    pictures = [bordered(1, number, (0, 20, 96, 88), (96, 128)) for number in range(12)]
    path = write_video(tmp_path / "a.mp4", pictures, aspect=Fraction(3, 2))
    assert crop_of(scan, path) == [(0, 30, 96, 132)]


def test_clips_of_one_source_have_boxes_of_their_own(scan: Scan, tmp_path: Path) -> None:
    boxes = [(0, 0, 96, 128), (12, 0, 72, 128), (0, 16, 96, 96)]
    pictures = [bordered(1 + 2 * shot, number, box, (96, 128)) for shot, box in enumerate(boxes) for number in range(16)]
    assert crop_of(scan, write_video(tmp_path / "a.mp4", pictures)) == boxes


def test_frames_for_the_models_are_cropped(scan: Scan, tmp_path: Path) -> None:
    pictures = [bordered(1, number, (16, 0, 64, 128), (96, 128)) for number in range(12)]
    frames = scan(write_video(tmp_path / "a.mp4", pictures), frame_side_px=48)[1]["0"]
    assert frames.shape[1:] == (48, 96, 3)
    assert frames.min() > 25  # nothing of a bar is left, nor of its edge


def test_bars_do_not_darken_a_clip(scan: Scan, tmp_path: Path) -> None:
    box = (28, 0, 40, 128)
    barred = write_video(tmp_path / "a.mp4", [bordered(1, number, box, (96, 128)) for number in range(16)])
    plain = write_video(tmp_path / "b.mp4", [bordered(1, number, box, (96, 128))[28:68] for number in range(16)])
    with_bars, without = (scan(path)[0]["clips"][0]["measures"] for path in (barred, plain))
    for name in ("luma", "luma_p01", "contrast", "colour_range", "saturation", "motion"):
        assert with_bars[name] == pytest.approx(without[name], rel=0.1, abs=0.02), name


def test_a_still_image_is_cropped(scan: Scan, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), bordered(1, 0, (16, 0, 64, 128), (96, 128)))
    facts, frames = scan(tmp_path / "a.png")
    assert facts["clips"][0]["crop"] == [16, 0, 64, 128]
    assert frames["0"].shape == (1, 32, 64, 3)
