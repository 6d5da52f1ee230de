"""The scan: cuts exact to the frame, spans in presentation time, pictures upright, measures and frames of each clip."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from numpy.typing import NDArray

from pipeline.measures import MEASURES
from pipeline.media import MediaError, frames_ahead, opened
from pipeline.media import decoded as decoded_ahead
from tests.media import decoded, leave_out_order, picture, set_matrix, shots, write_audio, write_image, write_video

Scan = Callable[..., tuple[dict[str, Any], dict[str, NDArray[Any]]]]
LENGTHS = (12, 9, 16, 7)
VFR_MS = [0, 40, 90, 200, 230, 300, 333, 400, 500, 510, 530, 900, 1000, 1005, 1100, 1200, 1300, 1400, 1500, 1600, 1650]


def starts(facts: dict[str, Any]) -> list[int]:
    return [clip["start_frame"] for clip in facts["clips"]]


# ---- cuts and spans ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("ts", "libx264"), ("mp4", "libx265"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"), ("mkv", "libsvtav1")],
)
def test_hard_cuts_are_found_to_the_frame(scan: Scan, tmp_path: Path, suffix: str, codec: str) -> None:
    facts, _ = scan(write_video(tmp_path / f"a.{suffix}", shots(LENGTHS), codec=codec))
    assert starts(facts) == [0, 12, 21, 37]
    assert facts["frames"] == sum(LENGTHS)


def test_a_single_shot_is_one_clip(scan: Scan, tmp_path: Path) -> None:
    facts, _ = scan(write_video(tmp_path / "a.mp4", shots([30])))
    assert starts(facts) == [0]


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_a_video_of_a_few_frames_is_one_clip_with_all_of_them(scan: Scan, tmp_path: Path, frames: int) -> None:
    facts, arrays = scan(write_video(tmp_path / "a.mp4", shots([frames])))
    assert [(clip["start_frame"], clip["end_frame"]) for clip in facts["clips"]] == [(0, frames)]
    assert len(arrays["times_s"]) == len(arrays["0"]) == frames


def test_clips_follow_each_other_without_gap_or_overlap(scan: Scan, tmp_path: Path) -> None:
    facts, _ = scan(write_video(tmp_path / "a.mp4", shots(LENGTHS)), max_clip_s=0.4)
    clips = facts["clips"]
    assert [clip["end_s"] for clip in clips[:-1]] == [clip["start_s"] for clip in clips[1:]]
    assert [clip["end_frame"] for clip in clips[:-1]] == [clip["start_frame"] for clip in clips[1:]]
    assert clips[-1]["end_frame"] == facts["frames"]
    assert clips[-1]["end_s"] - clips[0]["start_s"] == facts["duration_s"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_spans_are_presentation_times_of_a_late_start_and_a_variable_rate(scan: Scan, tmp_path: Path, suffix: str) -> None:
    times_ms = [5000 + time for time in VFR_MS]
    facts, arrays = scan(write_video(tmp_path / f"a.{suffix}", shots([11, 10]), times_ms=times_ms))
    assert arrays["times_s"] * 1000 == pytest.approx(times_ms)
    first, second = facts["clips"]
    assert (first["start_s"], first["end_s"], second["start_s"]) == (5.0, 5.9, 5.9)
    assert second["end_s"] >= 6.65
    assert facts["fps"] == pytest.approx(21 / (second["end_s"] - 5.0))


def test_long_shots_are_divided_evenly(scan: Scan, tmp_path: Path) -> None:
    facts, _ = scan(write_video(tmp_path / "a.mp4", shots([40])), max_clip_s=1.0)
    assert starts(facts) == [0, 14, 27]
    assert max(clip["end_s"] - clip["start_s"] for clip in facts["clips"]) <= 1.0


def test_a_shot_of_exactly_the_maximum_is_not_divided(scan: Scan, tmp_path: Path) -> None:
    facts, _ = scan(write_video(tmp_path / "a.mp4", shots([32, 32])), max_clip_s=2.0)
    assert starts(facts) == [0, 32]


def test_no_clip_is_longer_than_the_maximum_at_a_variable_rate(scan: Scan, tmp_path: Path) -> None:
    facts, _ = scan(write_video(tmp_path / "a.mkv", shots([21]), times_ms=VFR_MS), max_clip_s=0.5)
    assert len(facts["clips"]) == 4
    assert all(clip["end_frame"] > clip["start_frame"] for clip in facts["clips"])


def test_the_same_bytes_give_the_same_clips_under_any_name(scan: Scan, tmp_path: Path) -> None:
    one = write_video(tmp_path / "a.mp4", shots(LENGTHS))
    two = tmp_path / "b.webm"
    two.write_bytes(one.read_bytes())
    (facts, arrays), (same_facts, same_arrays) = scan(one), scan(two)
    assert facts == same_facts
    assert all(np.array_equal(arrays[name], same_arrays[name]) for name in arrays)


# ---- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("matrix", "quarters"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_pictures_are_upright_as_a_player_shows_them(
    scan: Scan, tmp_path: Path, matrix: tuple[int, int, int, int], quarters: int
) -> None:
    facts, arrays = scan(set_matrix(write_video(tmp_path / "a.mp4", shots([8])), *matrix), frame_side_px=64)
    upright = np.rot90(picture(1), quarters)
    assert (facts["height_px"], facts["width_px"]) == upright.shape[:2]
    assert np.abs(arrays["0"][0].astype(int) - upright).mean() < 5


def test_a_mirrored_picture_is_mirrored_as_a_player_shows_it(scan: Scan, tmp_path: Path) -> None:
    _, arrays = scan(set_matrix(write_video(tmp_path / "a.mp4", shots([8])), -1, 0, 0, 1), frame_side_px=64)
    assert np.abs(arrays["0"][0].astype(int) - picture(1)[:, ::-1]).mean() < 5


def test_pixels_are_square(scan: Scan, tmp_path: Path) -> None:
    facts, arrays = scan(write_video(tmp_path / "a.mp4", shots([8]), aspect=Fraction(2)), frame_side_px=32)
    assert (facts["height_px"], facts["width_px"]) == (64, 192)
    assert arrays["0"].shape[1:3] == (32, 96)


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv444p", "yuv422p"])
def test_depth_and_subsampling_change_nothing_that_is_seen(scan: Scan, tmp_path: Path, pixel_format: str) -> None:
    path = write_video(tmp_path / "a.mp4", shots([8]), codec="libx265", pixel_format=pixel_format)
    facts, arrays = scan(path, frame_side_px=64)
    assert facts["pixel_format"] == pixel_format
    assert np.abs(arrays["0"][0].astype(int) - picture(1)).mean() < 8


@pytest.mark.parametrize(("height", "width"), [(63, 95), (2, 2), (1, 1), (2, 4096), (241, 321)])
def test_odd_tiny_and_ribbon_pictures_are_scanned(scan: Scan, tmp_path: Path, height: int, width: int) -> None:
    frames = shots([6], height=height, width=width)
    facts, arrays = scan(write_video(tmp_path / "a.mkv", frames, codec="ffv1", pixel_format="yuv444p"))
    assert (facts["height_px"], facts["width_px"], facts["frames"]) == (height, width, 6)
    assert min(arrays["0"].shape[1:3]) >= 2


def test_sampled_frames_are_those_of_their_times(scan: Scan, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", shots(LENGTHS))
    facts, arrays = scan(path, frame_side_px=64)
    times, pictures = decoded(path)
    for number, clip in enumerate(facts["clips"]):
        assert clip["start_s"] <= clip["frame_times_s"][0] <= clip["start_s"] + 2 / 16  # a cut is seen two frames late
        assert clip["frame_times_s"][-1] < clip["end_s"]
        for time_s, sampled in zip(clip["frame_times_s"], arrays[str(number)], strict=True):
            assert np.abs(sampled.astype(int) - pictures[times.index(time_s)]).mean() < 3


def test_at_most_the_wanted_number_of_frames_is_sampled_evenly(scan: Scan, tmp_path: Path) -> None:
    facts, arrays = scan(write_video(tmp_path / "a.mp4", shots([31])), frames_per_clip=4)
    assert facts["clips"][0]["frame_times_s"] == pytest.approx([number / 16 for number in (0, 10, 20, 30)], abs=2 / 16)
    assert arrays["0"].shape == (4, 32, 48, 3)


def test_memory_stays_flat_and_every_clip_keeps_a_frame_of_a_long_video(scan: Scan, tmp_path: Path) -> None:
    lengths = [40, 6, 40, 6, 40, 6, 40]
    facts, arrays = scan(write_video(tmp_path / "a.mp4", shots(lengths)), frames_per_clip=1)
    assert starts(facts) == [0, 40, 46, 86, 92, 132, 138]
    assert all(len(arrays[str(number)]) == 1 for number in range(7))


def test_a_piece_without_a_kept_frame_borrows_one_at_a_time_of_its_own(scan: Scan, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", shots([300]))
    facts, arrays = scan(path, frames_per_clip=1, max_clip_s=0.13)
    assert len(facts["clips"]) > 64  # more pieces than frames are kept
    for number, clip in enumerate(facts["clips"]):
        assert len(arrays[str(number)]) == 1
        assert all(clip["start_s"] <= time_s < clip["end_s"] for time_s in clip["frame_times_s"])


def test_measures_of_a_clip_are_those_of_its_frames(scan: Scan, tmp_path: Path) -> None:
    dark, light = np.zeros((64, 96, 3), np.uint8), np.full((64, 96, 3), 255, np.uint8)
    facts, _ = scan(write_video(tmp_path / "a.mp4", [dark] * 10 + [light] * 10))
    assert starts(facts) == [0, 10]
    for clip, luma in zip(facts["clips"], (0, 1), strict=True):
        assert clip["measures"].keys() == MEASURES.keys()
        for name, value in {"luma": luma, "contrast": 0, "motion": 0}.items():
            assert clip["measures"][name] == pytest.approx(value, abs=0.01)


# ---- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_an_image_is_one_clip_of_one_frame_under_any_name(scan: Scan, tmp_path: Path, name: str) -> None:
    facts, arrays = scan(write_image(tmp_path / name))
    assert (facts["container"], facts["frames"], facts["fps"], facts["duration_s"]) == ("image", 1, 0.0, 0.0)
    assert (facts["height_px"], facts["width_px"]) == (64, 96)
    assert arrays["0"].shape == (1, 32, 48, 3)
    assert arrays["times_s"].tolist() == [0.0]


@pytest.mark.parametrize("ahead", [2, 8, 100])
def test_all_frames_before_an_error_are_given_however_many_are_decoded_ahead(tmp_path: Path, ahead: int) -> None:
    path = write_video(tmp_path / "a.mp4", shots([12, 9]), options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])

    def times_to_the_error(ahead: int) -> list[float]:
        found = []
        with open(path, "rb") as file, opened(file, "mov", 1) as (media, stream):
            frames = decoded_ahead(media, stream, ahead=ahead)
            with pytest.raises(MediaError, match="decoding stops"):
                found.extend(time_s for time_s, _ in frames)
        return found

    wanted = times_to_the_error(1)
    assert 0 < len(wanted) < 21
    assert times_to_the_error(ahead) == wanted


@pytest.mark.parametrize(
    ("name", "codec", "muxer", "alone"),
    [
        ("a.mp4", "libx264", {}, True),
        ("a.mp4", "libx265", {}, True),
        ("a.mp4", "libvpx-vp9", {}, True),
        ("a.webm", "libvpx-vp9", {}, True),
        ("a.webm", "libvpx", {}, True),
        ("a.mp4", "mpeg4", {}, False),
        ("a.mkv", "libx264", {}, False),
        ("a.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}, False),
    ],
)
def test_a_header_that_tells_all_is_enough(
    tmp_path: Path, name: str, codec: str, muxer: dict[str, str], *, alone: bool
) -> None:
    encoder = {"preset": "medium", "bf": "3"} if codec == "libx264" else None
    path = write_video(tmp_path / name, shots([20, 12]), codec=codec, encoder=encoder, options=muxer)
    with av.open(str(path)) as probed:
        wanted = [frame.pts for frame in probed.decode(video=0)]
    with open(path, "rb") as file, opened(file, "matroska" if path.suffix != ".mp4" else "mov", 1) as (media, stream):
        # FFmpeg learns the form of pixels from a first frame, which it has to decode.
        assert (stream.codec_context.pix_fmt is None) == alone
        assert [frame.pts for frame in media.decode(stream)] == wanted
    assert len(wanted) == 32


@pytest.mark.parametrize("encoder", [{"bf": "3"}, {"bf": "8", "x264-params": "b-adapt=0"}, {"bf": "0"}])
@pytest.mark.parametrize("muxer", [{}, {"movflags": "frag_keyframe+empty_moov"}])
def test_frames_are_sorted_where_the_stream_does_not_tell_how(
    tmp_path: Path, encoder: dict[str, str], muxer: dict[str, str]
) -> None:
    path = write_video(tmp_path / "a.mp4", shots([30, 20]), encoder={"preset": "medium", **encoder}, options=muxer)
    wanted = times_and_pictures(path)
    found = times_and_pictures(leave_out_order(path))
    assert len(wanted[0]) == 50
    assert found[0] == wanted[0]
    assert np.array_equal(found[1], wanted[1])


def times_and_pictures(path: Path) -> tuple[list[float], list[NDArray[np.uint8]]]:
    """Decode all frames of an mp4: their times, and their planes."""
    with open(path, "rb") as file, opened(file, "mov", 1) as (media, stream):
        frames = list(decoded_ahead(media, stream))
    return [time_s for time_s, _ in frames], [frame.to_ndarray() for _, frame in frames]


def test_sound_beside_a_video_is_not_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", shots([20]))
    with_sound(path, write_audio(tmp_path / "a.m4a"))
    with open(path, "rb") as file, opened(file, "mov", 1) as (media, stream):
        assert {packet.stream.type for packet in media.demux(stream) if packet.size} == {"video"}
        media.seek(0)
        assert {packet.stream.type for packet in media.demux() if packet.size} == {"video"}


def test_pixels_are_as_wide_as_the_frames_say_where_the_file_says_nothing(scan: Scan, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", shots([20], height=64, width=96), aspect=Fraction(4, 3))
    path.write_bytes(path.read_bytes().replace(b"pasp", b"free"))
    facts, _ = scan(path)
    assert (facts["height_px"], facts["width_px"]) == (64, 128)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_rough_frames_are_those_that_no_other_is_made_from(tmp_path: Path, codec: str) -> None:
    encoder = {
        "preset": "medium",
        "crf": "34",
        "bf": "2",
        "x265-params": "log-level=none:pools=none:frame-threads=1:bframes=3:b-adapt=0",
    }
    encoder = encoder if codec == "libx265" else {name: value for name, value in encoder.items() if name != "x265-params"}
    path = write_video(tmp_path / "a.mp4", shots([40, 20], height=128, width=192), codec=codec, encoder=encoder)
    whole, rough = (decoded_pictures(path, rough=rough) for rough in (False, True))
    assert [kind for kind, _ in rough] == [kind for kind, _ in whole]
    same = [(kind, np.array_equal(a, b)) for (kind, a), (_, b) in zip(whole, rough, strict=True)]
    assert {kind for kind, is_same in same if not is_same} == {"B"}
    assert all(np.abs(a.astype(int) - b).mean() < 1.5 for (_, a), (_, b) in zip(whole, rough, strict=True))


def with_sound(path: Path, sound: Path) -> None:
    """Put the sound of another file beside a video, without encoding either again."""
    silent = path.rename(path.with_stem("silent"))
    with av.open(str(path), "w") as out, av.open(str(silent)) as video, av.open(str(sound)) as audio:
        added = [(media, out.add_stream_from_template(media.streams[0])) for media in (video, audio)]
        for media, stream in added:
            for packet in media.demux():
                packet.stream = stream
                if packet.size:
                    out.mux(packet)


def decoded_pictures(path: Path, *, rough: bool) -> list[tuple[str, NDArray[np.uint8]]]:
    """Decode all frames: the kind of each, I, P or B, and its planes."""
    with open(path, "rb") as file, opened(file, "mov", 1, rough=rough) as (media, stream):
        return [(PictureType(frame.pict_type).name, frame.to_ndarray()) for _, frame in decoded_ahead(media, stream)]


@pytest.mark.parametrize(("height", "width", "frames"), [(240, 320, 8), (720, 1280, 2), (1080, 1920, 1), (2160, 3840, 1)])
def test_few_frames_are_decoded_ahead_and_none_that_are_large(height: int, width: int, frames: int) -> None:
    codec_context = SimpleNamespace(height=height, width=width)
    assert frames_ahead(SimpleNamespace(codec_context=codec_context)) == frames
