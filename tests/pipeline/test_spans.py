"""Spans for training: which frames are wanted, and that every reader gives exactly those."""

import math
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

from pipeline.records import Clip, SplitResult
from pipeline.stages.encode import nearest_frames, output_fps, suits_decord, wanted_times
from tests.media import Picture, decoded, picture, set_matrix, shots, write_image, write_video

MakeClip = Callable[..., Clip]
Scan = Callable[..., tuple[dict[str, Any], dict[str, NDArray[Any]]]]
ReadSpan = Callable[..., tuple[str, NDArray[np.uint8]]]
SIZE = (64, 96)


# ---- which frames ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "wanted", "given_fps"),
    [(30, 16, 16), (16, 16, 16), (14.5, 16, 16), (14.3, 16, 8), (7.0, 16, 4), (1, 16, 1), (25, 24, 24), (0, 16, 16)],
)
def test_the_rate_is_the_wanted_one_or_a_half_or_quarter_of_it(source: float, wanted: float, given_fps: float) -> None:
    assert output_fps(source, wanted) == given_fps


@given(source=st.floats(0.1, 240), target=st.floats(1, 60))
def test_the_rate_is_the_highest_halving_that_the_source_can_give(source: float, target: float) -> None:
    fps = output_fps(source, target)
    halvings = math.log2(target / fps)
    assert halvings == pytest.approx(round(halvings), abs=1e-6)
    assert source >= 0.9 * fps * (1 - 1e-9)
    assert fps == target or source < 0.9 * fps * 2 * (1 + 1e-9)


def test_frames_are_wanted_from_the_start_on_while_inside_the_clip(make_clip: MakeClip) -> None:
    assert wanted_times(make_clip(start_s=5.0, end_s=6.0), 4.0) == [5.0, 5.25, 5.5, 5.75]
    assert wanted_times(make_clip(start_s=5.0, end_s=6.01), 4.0)[-1] == 6.0


def test_an_image_and_a_clip_shorter_than_a_frame_want_one_frame(make_clip: MakeClip) -> None:
    assert wanted_times(make_clip(end_s=0.0, fps=0.0), 8.0) == [0.0]
    assert wanted_times(make_clip(end_s=0.01), 8.0) == [0.0]


@given(start_s=st.floats(0, 1e4), duration_s=st.floats(0.01, 100), fps=st.floats(0.5, 60))
def test_wanted_times_lie_inside_the_clip(make_clip: MakeClip, start_s: float, duration_s: float, fps: float) -> None:
    wanted = wanted_times(make_clip(start_s=start_s, end_s=start_s + duration_s), fps)
    assert wanted[0] == start_s
    assert wanted[-1] < start_s + duration_s + 1e-6
    assert wanted[-1] + 1 / fps >= start_s + duration_s - 1e-6


def test_of_two_frames_as_near_the_earlier_is_taken(make_clip: MakeClip) -> None:
    times = np.array([0.0, 0.25, 0.5, 1.0])
    assert nearest_frames(times, make_clip(end_frame=4), [0.125, 0.375, 0.75, 0.751, 0.1]) == [0, 1, 2, 3, 0]


def test_frames_of_a_variable_rate_are_chosen_by_time_and_may_repeat(make_clip: MakeClip) -> None:
    times = np.array([5.0, 5.04, 5.09, 5.2, 5.9, 6.0])
    assert nearest_frames(times, make_clip(start_frame=1, end_frame=5), [5.04, 5.29, 5.54, 5.79]) == [1, 3, 3, 4]


def test_frames_are_the_clips_own_even_where_a_neighbours_frame_is_nearer(make_clip: MakeClip) -> None:
    times = np.array([0.0, 0.9, 1.0, 1.1, 2.0])
    assert nearest_frames(times, make_clip(start_frame=1, end_frame=3), [0.0, 0.96, 1.9]) == [1, 2, 2]


def test_a_clip_of_one_frame_gives_it_for_every_time(make_clip: MakeClip) -> None:
    assert nearest_frames(np.array([0.0, 3.0, 4.0]), make_clip(start_frame=1, end_frame=2), [0.0, 3.0, 9.0]) == [1, 1, 1]


@given(st.data())
def test_each_chosen_frame_is_the_nearest_of_its_clip(make_clip: MakeClip, data: st.DataObject) -> None:
    times = np.cumsum(data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=30))) / 64
    first = data.draw(st.integers(0, len(times) - 1))
    last = data.draw(st.integers(first + 1, len(times)))
    wanted = sorted(data.draw(st.lists(st.integers(0, 2000).map(lambda n: n / 128), min_size=1, max_size=10)))
    chosen = nearest_frames(times, make_clip(start_frame=first, end_frame=last), wanted)
    for number, time_s in zip(chosen, wanted, strict=True):
        assert first <= number < last
        assert number == first + int(np.abs(times[first:last] - time_s).argmin())  # argmin takes the first of equals
    assert chosen == sorted(chosen)


@pytest.mark.parametrize(
    ("container", "codec", "pixel_format", "suits"),
    [
        ("mov", "h264", "yuv420p", True),
        ("matroska", "vp9", "yuv420p", True),
        ("mov", "hevc", "yuv420p10le", False),
        ("mov", "h264", "yuv444p12le", False),
        ("matroska", "av1", "yuv420p", False),
        ("avi", "mpeg4", "yuv420p", False),
        ("mpegts", "h264", "yuv420p", False),
    ],
)
def test_decord_reads_what_it_reads_as_pyav_does(container: str, codec: str, pixel_format: str, suits: bool) -> None:
    split = SplitResult(
        source_id="",
        container=container,
        codec=codec,
        pixel_format=pixel_format,
        height_px=64,
        width_px=96,
        rotation=0,
        fps=16.0,
        frames=32,
        duration_s=2.0,
        quirks=(),
        clips=(),
    )
    assert suits_decord(split) == suits


# ---- reading them ------------------------------------------------------------------------------------------------------

FORMATS = [
    ("mp4", "libx264"),
    ("mkv", "libx264"),
    ("mp4", "libx265"),
    ("webm", "libvpx-vp9"),
    ("mkv", "libsvtav1"),
    ("avi", "mpeg4"),
]


def stored(path: Path, numbers: tuple[int, ...]) -> Picture:
    pictures = decoded(path)[1]
    return np.stack([pictures[number] for number in numbers])


def difference(one: NDArray[Any], other: NDArray[Any]) -> int:
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize(("suffix", "codec"), FORMATS)
def test_pyav_reads_exactly_the_wanted_frames(read_span: ReadSpan, tmp_path: Path, suffix: str, codec: str) -> None:
    path = write_video(tmp_path / f"a.{suffix}", shots([40, 30]), codec=codec)
    for numbers in ((0, 1, 2), (7, 7, 39, 40), (55, 60, 69)):  # the last lie far enough in for a seek
        reader, frames = read_span(path, numbers, SIZE)
        assert reader == "pyav"
        assert difference(frames, stored(path, numbers)) <= 1


@pytest.mark.parametrize(("suffix", "codec"), FORMATS[:4])
def test_decord_and_pyav_read_the_same_frames_within_rounding(
    read_span: ReadSpan, tmp_path: Path, suffix: str, codec: str
) -> None:
    path, numbers = write_video(tmp_path / f"a.{suffix}", shots([40, 30]), codec=codec), (0, 3, 39, 40, 41, 69)
    reader, frames = read_span(path, numbers, SIZE, reader="decord")
    assert reader == "decord"
    assert difference(frames, read_span(path, numbers, SIZE)[1]) <= 3


OPEN_GROUPS = {
    "libx264": {"crf": "16", "x264-params": "open-gop=1:keyint=10:min-keyint=5:bframes=3:b-pyramid=normal"},
    "libx265": {
        "crf": "16",
        "x265-params": "log-level=none:pools=none:frame-threads=1:keyint=10:min-keyint=10:bframes=4:open-gop=1",
    },
}


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_files_with_open_groups_of_pictures_are_read_exactly(
    scan: Scan, read_span: ReadSpan, tmp_path: Path, codec: str
) -> None:
    path = write_video(tmp_path / "a.mp4", shots([25, 15]), codec=codec, encoder=OPEN_GROUPS[codec])
    facts, _ = scan(path)
    suited = "decord" if suits_decord(SplitResult(**{**facts, "clips": ()})) else "pyav"
    for numbers in (tuple(range(20, 40)), tuple(range(0, 40, 2))):
        assert difference(read_span(path, numbers, SIZE, reader=suited)[1], stored(path, numbers)) <= 3


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_a_late_start_and_a_variable_rate_move_no_frame(read_span: ReadSpan, tmp_path: Path, reader: str) -> None:
    times_ms = [5000 + number * 40 + 13 * (number % 3) for number in range(90)]
    path, numbers = write_video(tmp_path / "a.mp4", shots([45, 45]), times_ms=times_ms), (0, 1, 44, 45, 89)
    _, frames = read_span(path, numbers, SIZE, reader=reader)
    assert difference(frames, stored(path, numbers)) <= 3


def test_what_decord_counts_otherwise_pyav_reads(read_span: ReadSpan, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", shots([20]), codec="libsvtav1")
    reader, frames = read_span(path, (0, 19), SIZE, reader="decord")
    assert reader in ("pyav", "decord")
    assert difference(frames, stored(path, (0, 19))) <= 3


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize(("matrix", "quarters"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_spans_are_upright_whoever_reads(
    read_span: ReadSpan, tmp_path: Path, reader: str, matrix: tuple[int, int, int, int], quarters: int
) -> None:
    path = set_matrix(write_video(tmp_path / "a.mp4", shots([8])), *matrix)
    upright = np.rot90(picture(1, 3), quarters)
    _, frames = read_span(path, (3,), (upright.shape[0], upright.shape[1]), reader=reader)
    assert np.abs(frames[0].astype(int) - upright).mean() < 5


def test_frames_are_resized_and_then_cropped_at_the_centre(read_span: ReadSpan, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", shots([8]))
    whole, cropped = (read_span(path, (2,), (32, 48), size=size)[1] for size in ((32, 48), (16, 32)))
    assert cropped.shape == (1, 16, 32, 3)
    assert np.array_equal(cropped, whole[:, 8:24, 8:40])


BARRED = (16, 24, 32, 48)  # top, left, height, width


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_bars_are_cut_off_before_a_frame_is_resized(read_span: ReadSpan, tmp_path: Path, reader: str) -> None:
    path = write_video(tmp_path / "a.mp4", shots([8]))
    top, left, height, width = BARRED
    found, frames = read_span(path, (2, 5), (16, 24), crop=BARRED, reader=reader)
    inside = stored(path, (2, 5))[:, top : top + height, left : left + width]
    assert found == reader
    assert difference(frames, np.stack([cv2.resize(p, (24, 16), interpolation=cv2.INTER_AREA) for p in inside])) <= 3


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_the_box_counts_pixels_of_the_upright_picture(read_span: ReadSpan, tmp_path: Path, reader: str) -> None:
    path = set_matrix(write_video(tmp_path / "a.mp4", shots([8])), 0, 1, -1, 0)
    whole = read_span(path, (3,), (96, 64), reader=reader)[1]
    part = read_span(path, (3,), (40, 20), crop=(10, 30, 40, 20), reader=reader)[1]
    assert np.array_equal(part, whole[:, 10:50, 30:50])


def test_the_box_counts_square_pixels(read_span: ReadSpan, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", shots([8]), aspect=Fraction(2))
    frames = read_span(path, (3,), (64, 48), crop=(0, 32, 64, 96))[1]  # of 64 by 192 that are shown
    assert difference(frames, stored(path, (3,))[:, :, 16:64]) <= 1


def test_an_image_is_read_as_one_frame(read_span: ReadSpan, tmp_path: Path) -> None:
    reader, frames = read_span(write_image(tmp_path / "a.png", scene=3), (0,), SIZE)
    assert reader == "pillow"
    assert np.array_equal(frames[0], picture(3))
