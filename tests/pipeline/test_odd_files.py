"""Files that are right and odd: one normalisation for all, frames and times as the file means them, quirks told."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.media import Picture, decoded, picture, shots, write_video

Scan = Callable[..., tuple[dict[str, Any], dict[str, NDArray[Any]]]]
HDR = "log-level=none:pools=none:frame-threads=1:colorprim=bt2020:colormatrix=bt2020nc:transfer="


def difference(one: Picture, other: Picture) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def with_edit(data: bytes, media_time: int) -> bytes:
    """Let the edit list of an mp4 begin at another time of its media."""
    at = data.index(b"elst") + 16
    return data[:at] + media_time.to_bytes(4, "big") + data[at + 4 :]


def write_streams(path: Path, scenes: Sequence[int], sizes: Sequence[tuple[int, int]], default: int) -> Path:
    """Write a file with a video stream for every scene, one of them marked as default."""
    with av.open(str(path), "w") as out:
        streams: list[Any] = []
        for number, (height, width) in enumerate(sizes):
            stream: Any = out.add_stream("mpeg4", rate=16, options={"qscale": "2"})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
            streams.append(stream)
        for number in range(8):
            for scene, stream in zip(scenes, streams, strict=True):
                pixels = picture(scene, number, height=stream.height, width=stream.width)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 16)
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode())
    return path


# ---- times --------------------------------------------------------------------------------------------------------------


def test_an_edit_list_leaves_out_what_it_leaves_out(scan: Scan, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", shots([12, 9]), encoder={"preset": "ultrafast", "crf": "16", "g": "1"})
    path.write_bytes(with_edit(path.read_bytes(), 4 * 1024))  # 1024 ticks are a frame
    facts, arrays = scan(path, frame_side_px=64)
    times, pictures = decoded(path)
    assert facts["frames"] == len(times) == 17
    assert [clip["start_frame"] for clip in facts["clips"]] == [0, 8]
    assert arrays["times_s"] == pytest.approx(np.arange(17) / 16)
    assert difference(arrays["0"][0], pictures[0]) < 3
    assert difference(pictures[0], picture(1, 4)) < 8


def test_frames_that_are_stored_out_of_order_come_in_order(scan: Scan, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", shots([12, 9]), encoder={"preset": "veryfast", "crf": "16", "bf": "3", "g": "60"})
    facts, arrays = scan(path)
    assert facts["frames"] == 21
    assert [clip["start_frame"] for clip in facts["clips"]] == [0, 12]
    assert np.diff(arrays["times_s"]) == pytest.approx(1 / 16)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_start_after_hours_is_kept(scan: Scan, tmp_path: Path, suffix: str) -> None:
    times_ms = [7_200_000 + 50 * number for number in range(12)]
    facts, arrays = scan(write_video(tmp_path / f"a.{suffix}", shots([12]), times_ms=times_ms))
    assert arrays["times_s"][0] == pytest.approx(7200, abs=2)
    assert facts["clips"][0]["start_s"] == arrays["times_s"][0]
    assert facts["duration_s"] < 1


# ---- streams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", [0, 1])
def test_of_several_streams_the_default_one_is_read(scan: Scan, tmp_path: Path, default: int) -> None:
    sizes = [(64, 96), (48, 64)]
    path = write_streams(tmp_path / "a.mkv", [1, 2], sizes, default)
    facts, arrays = scan(path, frame_side_px=256)
    assert (facts["height_px"], facts["width_px"]) == sizes[default]
    assert difference(arrays["0"][0], picture(1 + default, height=sizes[default][0], width=sizes[default][1])) < 12
    assert "several_streams" in facts["quirks"]


def test_without_a_default_the_first_stream_is_read(scan: Scan, tmp_path: Path) -> None:
    facts, _ = scan(write_streams(tmp_path / "a.mkv", [1, 2], [(48, 64), (64, 96)], default=-1))
    assert (facts["height_px"], facts["width_px"]) == (48, 64)


# ---- pictures -----------------------------------------------------------------------------------------------------------


def test_interlaced_pictures_stay_woven_and_are_told(scan: Scan, tmp_path: Path) -> None:
    fields = {"flags": "+ildct+ilme", "qscale": "2"}
    path = write_video(tmp_path / "a.mpg", shots([12]), codec="mpeg2video", fps=25, encoder=fields)
    facts, arrays = scan(path, frame_side_px=64)
    assert "interlaced" in facts["quirks"]
    assert facts["frames"] == 12
    assert difference(arrays["0"][0], picture(1)) < 8


@pytest.mark.parametrize("pixel_format", ["yuv420p12le", "yuv422p10le", "yuv444p10le", "yuv444p12le"])
def test_deep_pictures_are_seen_as_shallow_ones_are(scan: Scan, tmp_path: Path, pixel_format: str) -> None:
    path = write_video(tmp_path / "a.mp4", shots([8]), codec="libx265", pixel_format=pixel_format)
    facts, arrays = scan(path, frame_side_px=64)
    assert facts["pixel_format"] == pixel_format
    assert difference(arrays["0"][0], picture(1)) < 8


@pytest.mark.parametrize(("transfer", "quirk"), [("smpte2084", "hdr_pq"), ("arib-std-b67", "hdr_hlg")])
def test_high_dynamic_range_is_told(scan: Scan, tmp_path: Path, transfer: str, quirk: str) -> None:
    encoder = {"preset": "ultrafast", "x265-params": HDR + transfer}
    path = write_video(tmp_path / "a.mp4", shots([8]), codec="libx265", pixel_format="yuv420p10le", encoder=encoder)
    assert scan(path)[0]["quirks"] == [quirk]


@pytest.mark.parametrize(("code", "level"), [(148, 244), (77, 70), (38, 15), (230, 255)])
def test_pq_is_brought_into_the_standard_range(scan: Scan, tmp_path: Path, code: int, level: int) -> None:
    """Code 148 of 255 is diffuse white (203 cd/m²), 77 a tenth of it and less; highlights are rolled off."""
    encoder = {"preset": "ultrafast", "crf": "4", "x265-params": HDR + "smpte2084"}
    grey = [np.full((64, 96, 3), code, np.uint8)] * 8
    path = write_video(tmp_path / "a.mp4", grey, codec="libx265", pixel_format="yuv420p10le", encoder=encoder)
    _, arrays = scan(path, frame_side_px=64)
    assert float(arrays["0"].mean()) == pytest.approx(level, abs=9)


def test_the_standard_range_stays_what_it_is(scan: Scan, tmp_path: Path) -> None:
    grey = [np.full((64, 96, 3), 148, np.uint8)] * 8
    path = write_video(tmp_path / "a.mp4", grey, codec="libx265", pixel_format="yuv420p10le")
    facts, arrays = scan(path, frame_side_px=64)
    assert facts["quirks"] == []
    assert float(arrays["0"].mean()) == pytest.approx(148, abs=3)


def test_a_picture_that_changes_its_size_is_refused_or_kept_up_to_there(scan: Scan, tmp_path: Path) -> None:
    first = write_video(tmp_path / "a.ts", shots([8]), times_ms=range(0, 400, 50)).read_bytes()
    later = write_video(tmp_path / "b.ts", shots([8], height=32, width=48), times_ms=range(1000, 1400, 50)).read_bytes()
    (tmp_path / "c.ts").write_bytes(first + later)
    with pytest.raises(Exception, match="changes from 96x64 to 48x32"):
        scan(tmp_path / "c.ts")
