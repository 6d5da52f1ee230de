"""Copies of a clip are known by their signatures: what changes one little, what changes it much, and who owns the content."""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import DuplicatesConfig, RunConfig
from pipeline.duplicates import CELLS, TIMES, Bounds, find_copies, signature
from pipeline.job import fingerprints
from tests.media import decoded, write_video

Pictures = NDArray[np.uint8]
BOUNDS = Bounds(distance=0.38, seconds=0.25)
RATES = (12, 15, 24, 30)


def scene(
    *,
    fps: int = 24,
    height: int = 64,
    width: int = 96,
    moves: tuple[float, float] = (0.4, 0.0),
    start: float = 0.2,
    seconds: int = 2,
) -> Pictures:
    """A bright disc that crosses a plain ground; speeds and places are shares of the picture."""
    frames = np.full((fps * seconds, height, width, 3), (90, 110, 60), np.uint8)
    for number, frame in enumerate(frames):
        x, y = (start + way * number / fps for way in moves)
        cv2.circle(
            frame, (round(x * width * 16), round(y * height * 16)), round(0.2 * height * 16), (230, 60, 50), -1, cv2.LINE_AA, 4
        )
    return frames


def signed(frames: Pictures, sampled: int = 8) -> NDArray[np.uint8]:
    """The signature of pictures at an even rate, of which some are sampled."""
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), sampled)).round().astype(int)
    return signature(frames[chosen], chosen / len(frames))


def copied(*signatures: NDArray[np.uint8], seconds: tuple[float, ...] = (), sources: tuple[int, ...] = ()) -> dict[int, int]:
    """Who is a copy of whom, of clips in this order."""
    count = len(signatures)
    found = find_copies(np.stack(signatures), np.array(seconds or [2.0] * count), np.array(sources or range(count)), BOUNDS)
    return {clip: copy.of for clip, copy in found.items()}


def test_a_signature_is_small_and_of_one_shape_however_many_frames_there_are() -> None:
    for frames in (scene(), scene()[:1], scene()[:3]):
        mark = signed(frames)
        assert (mark.shape, mark.dtype) == ((TIMES, CELLS, CELLS, 3), np.uint8)
    assert signed(scene()).nbytes <= 1024


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (120, 180), (50, 74)])
def test_another_size_and_frame_rate_is_a_copy(fps: int, height: int, width: int) -> None:
    assert copied(signed(scene()), signed(scene(fps=fps, height=height, width=width))) == {1: 0}


@pytest.mark.parametrize(("codec", "suffix"), [("libx265", "mkv"), ("libvpx-vp9", "webm"), ("mpeg4", "avi")])
def test_a_rough_encoding_is_a_copy(tmp_path: Path, codec: str, suffix: str) -> None:
    rough = {"mpeg4": {"qscale": "12"}, "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "50", "b": "0"}}
    path = write_video(tmp_path / f"a.{suffix}", scene(), codec=codec, fps=24, encoder=rough.get(codec))
    assert copied(signed(scene()), signed(np.stack(decoded(path)[1]))) == {1: 0}


@pytest.mark.parametrize(("contrast", "brighter"), [(0.7, 0), (1.0, 20), (0.8, 25)])
def test_another_contrast_and_brightness_is_a_copy(contrast: float, brighter: int) -> None:
    assert copied(signed(scene()), signed((scene() * contrast + brighter).astype(np.uint8))) == {1: 0}


def test_a_frame_of_another_scene_at_the_start_does_not_hide_a_copy() -> None:
    late = scene()
    late[0] = 250
    assert copied(signed(scene()), signed(late)) == {1: 0}


@pytest.mark.parametrize("moves", [(-0.4, 0.0), (0.0, 0.4), (0.2, 0.2)])
def test_a_flash_at_one_moment_makes_no_copies_of_two_motions(moves: tuple[float, float]) -> None:
    first, second = scene(start=0.5), scene(start=0.5, moves=moves)
    first[20:22] = second[20:22] = 255  # among the frames that are sampled
    assert copied(signed(first), signed(second)) == {}


def test_a_flash_does_not_hide_a_copy_without_it() -> None:
    lit = scene()
    lit[20:22] = 255
    assert copied(signed(scene()), signed(lit)) == {1: 0}


@pytest.mark.parametrize("moves", [(-0.4, 0.0), (0.0, 0.4), (0.0, 0.0), (0.2, 0.2)])
def test_another_motion_on_one_background_is_no_copy(moves: tuple[float, float]) -> None:
    assert copied(signed(scene(start=0.5)), signed(scene(start=0.5, moves=moves))) == {}


def test_one_motion_from_another_place_is_no_copy() -> None:
    assert copied(signed(scene(start=0.1)), signed(scene(start=0.45))) == {}


def test_still_images_are_copies_in_another_size_and_not_with_the_shape_elsewhere() -> None:
    still, larger, elsewhere = scene()[:1], scene(height=128, width=192)[:1], scene(start=0.7)[:1]
    assert copied(signed(still), signed(larger), signed(elsewhere), seconds=(0.0,) * 3) == {1: 0}


def test_an_image_and_a_short_video_of_it_are_no_copies() -> None:
    assert copied(*[signed(scene()[:1])] * 2, seconds=(0.0, 0.2)) == {}


def test_a_copy_is_of_the_first_and_tells_its_distance() -> None:
    marks = np.stack([signed(scene()), signed(scene(fps=12)), signed(scene(fps=15)), signed(scene())])
    found = find_copies(marks, np.full(4, 2.0), np.arange(4), BOUNDS)
    assert [copy.of for copy in found.values()] == [0, 0, 0]
    assert found[3].distance == 0
    assert 0 < found[1].distance <= BOUNDS.distance


def test_clips_are_compared_with_owners_and_not_with_copies() -> None:
    marks = [signed(scene(moves=(0.4 + step, 0.0))) for step in (0.0, 0.08, 0.16)]
    near, far = copied(marks[0], marks[1]), copied(marks[0], marks[2])
    assert (near, copied(marks[1], marks[2]), far) == ({1: 0}, {1: 0}, {})  # or this test says nothing
    assert copied(*marks) == {1: 0}


def test_clips_of_one_source_are_no_copies_of_each_other() -> None:
    assert copied(*[signed(scene())] * 3, sources=(7, 7, 8)) == {2: 0}


def test_a_copy_has_the_duration_of_its_original() -> None:
    assert copied(*[signed(scene())] * 3, seconds=(2.0, 2.25, 2.26)) == {1: 0}


def test_nothing_has_no_copies() -> None:
    none = np.zeros((0, TIMES, CELLS, CELLS, 3), np.uint8)
    assert find_copies(none, np.zeros(0), np.zeros(0, dtype=np.int64), BOUNDS) == {}


def naive(marks: NDArray[np.uint8], durations_s: NDArray[np.float64], sources: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The definition, pair by pair."""
    values = marks.reshape(len(marks), TIMES, -1) / 255
    moving = np.sqrt(((values - values.mean(axis=1, keepdims=True)) ** 2).mean(axis=(1, 2)))
    owners: list[int] = []
    for clip in range(len(marks)):
        differing = np.sqrt(((values[owners] - values[clip]) ** 2).mean(axis=(1, 2)))
        near = differing / (0.02 + moving[owners] + moving[clip]) <= BOUNDS.distance
        near &= abs(durations_s[owners] - durations_s[clip]) <= BOUNDS.seconds
        near &= (durations_s[owners] == 0) == (durations_s[clip] == 0)
        near &= sources[owners] != sources[clip]
        if near.any():
            yield clip, owners[int(near.argmax())]
        else:
            owners.append(clip)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_change_nothing(seed: int) -> None:
    random = np.random.Generator(np.random.Philox(seed))
    kinds = random.integers(0, 256, (40, TIMES, CELLS, CELLS, 3))
    kinds[:20] = kinds[:20, :1]  # half of them do not move
    count = 1300  # more than two blocks
    noise = random.normal(0, 1, (count, TIMES, CELLS, CELLS, 3)) * random.choice([0.5, 4, 30], (count, 1, 1, 1, 1))
    marks = (kinds[random.integers(0, 40, count)] + noise).clip(0, 255).astype(np.uint8)
    durations_s, sources = random.choice([0.0, 0.2, 1.0, 1.2, 1.4, 5.0], count), random.integers(0, 300, count)
    found = find_copies(marks, durations_s, sources, BOUNDS)
    assert 100 < len(found) < count - 40
    assert {clip: copy.of for clip, copy in found.items()} == dict(naive(marks, durations_s, sources))


@pytest.mark.parametrize("wrong", [{"max_distance": 1.0}, {"max_distance": -0.1}, {"max_seconds": -1.0}])
def test_bounds_out_of_range_are_told(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DuplicatesConfig(**wrong)


@pytest.mark.parametrize("change", ["max_distance=0", "max_distance=0.1", "max_seconds=1"])
def test_what_counts_as_a_copy_changes_no_stage(configure: Callable[..., RunConfig], change: str) -> None:
    assert fingerprints(configure(f"select.duplicates.{change}")) == fingerprints(configure())
