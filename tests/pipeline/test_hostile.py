"""Hostile files: each has its named fate, costs no other file, and makes nobody read what is not its own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.media import sniff
from pipeline.sandbox import DecodeError
from tests.media import picture, shots, write_audio, write_image, write_video

Scan = Callable[..., Any]
NAMED = ("corrupt", "truncated", "frame_count", "no_video", "unsupported", "time_base", "shape_change", "too_large")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An mp4 with its index at the end."""
    return write_video(tmp_path_factory.mktemp("good") / "a.mp4", shots([12, 9])).read_bytes()


@pytest.fixture(scope="module")
def streamable(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An mp4 with its index at the start."""
    path = tmp_path_factory.mktemp("good") / "a.mp4"
    return write_video(path, shots([12, 9]), options={"movflags": "faststart"}).read_bytes()


def fate(scan: Scan, path: Path, **options: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        scan(path, **options)
    assert "\n" not in str(caught.value)
    return caught.value.error


def fate_or_none(scan: Scan, path: Path) -> str | None:
    try:
        scan(path)
    except DecodeError as error:
        return error.error
    return None


def patched(data: bytes, box: bytes, offset: int, value: int) -> bytes:
    """Overwrite a big-endian 32-bit number, counted from the start of a box's type."""
    start = data.index(box) + offset
    return data[:start] + value.to_bytes(4, "big") + data[start + 4 :]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"<html>404 not found</html>",
        b"#EXTM3U\n#EXTINF:1,\ncanary.ts\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile canary.mp4\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>',
        b"PK\x03\x04" + bytes(64),
        np.random.default_rng(0).bytes(65536),
    ],
    ids=["empty", "one byte", "html", "m3u8", "ffconcat", "sdp", "dash", "zip", "random"],
)
def test_what_is_no_video_and_no_image_is_unrecognised(scan: Scan, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    assert fate(scan, tmp_path / "a.mp4") == "unrecognised"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data[: len(data) * 6 // 10], "truncated"),
        (lambda data: patched(data, b"stsz", 12, 0x0FFFFFFF), "corrupt"),
        (lambda data: patched(data, b"stts", 8, 0x0FFFFFFF), "corrupt"),
        (lambda data: patched(data, b"moov", -4, 4), "corrupt"),
        (lambda data: patched(data, b"stsz", 16, 0x7FFFFFFF), "frame_count"),
        (lambda data: data.replace(b"avc1", b"zzzz"), "unsupported"),
    ],
    ids=["no index", "samples", "times", "box size", "sample size", "unknown codec"],
)
def test_a_broken_mp4_has_a_named_fate(
    scan: Scan, tmp_path: Path, good: bytes, change: Callable[[bytes], bytes], error: str
) -> None:
    (tmp_path / "a.mp4").write_bytes(change(good))
    assert fate(scan, tmp_path / "a.mp4") == error


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_video_that_ends_inside_a_frame_is_corrupt(scan: Scan, tmp_path: Path, streamable: bytes, share: float) -> None:
    (tmp_path / "a.mp4").write_bytes(streamable[: int(len(streamable) * share)])
    assert fate(scan, tmp_path / "a.mp4") == "corrupt"


def test_a_lie_about_the_duration_is_not_believed(scan: Scan, tmp_path: Path, good: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(patched(good, b"mvhd", 20, 0x7FFFFFFF))
    facts, _ = scan(tmp_path / "a.mp4")
    assert (facts["frames"], facts["duration_s"]) == (21, pytest.approx(21 / 16))


def test_a_file_with_sound_only_has_no_video(scan: Scan, tmp_path: Path) -> None:
    assert fate(scan, write_audio(tmp_path / "a.mp4")) == "no_video"


def test_a_cover_picture_is_no_video(scan: Scan, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        sound: Any = out.add_stream("aac", rate=16000, layout="mono")
        cover: Any = out.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 16000, 0
        art = av.VideoFrame.from_ndarray(picture(1), format="rgb24")
        for packets in (cover.encode(art), cover.encode(), sound.encode(silence), sound.encode()):
            out.mux(packets)
    assert fate(scan, tmp_path / "a.mp4") == "attached_picture"


def test_a_broken_image_is_corrupt(scan: Scan, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:300])
    assert fate(scan, path) == "corrupt"


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_picture_over_the_limit_of_pixels_is_too_large(scan: Scan, tmp_path: Path, good: bytes, kind: str) -> None:
    path = write_image(tmp_path / "a")
    if kind == "video":
        path.write_bytes(good)
    assert fate(scan, path, max_pixels=64 * 96 - 1) == "too_large"
    scan(path, max_pixels=64 * 96)


def test_an_image_whose_header_claims_a_bomb_is_too_large(scan: Scan, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    path.write_bytes(patched(patched(path.read_bytes(), b"IHDR", 4, 50_000), b"IHDR", 8, 50_000))
    assert fate(scan, path) in ("too_large", "corrupt")


def test_times_that_start_again_are_a_broken_time_base(scan: Scan, tmp_path: Path) -> None:
    once = write_video(tmp_path / "a.ts", shots([8])).read_bytes()
    (tmp_path / "twice.ts").write_bytes(once * 2)
    assert fate(scan, tmp_path / "twice.ts") == "time_base"


def test_flipped_bits_give_a_fate_and_never_a_crash(scan: Scan, tmp_path: Path, streamable: bytes) -> None:
    random = np.random.default_rng(0)
    start = streamable.index(b"mdat") + 8
    for trial in range(20):
        data = bytearray(streamable)
        for place in random.integers(start if trial % 2 else 32, len(data), 12):
            data[place] ^= int(random.integers(1, 256))
        (tmp_path / "a.mp4").write_bytes(data)
        assert fate_or_none(scan, tmp_path / "a.mp4") in (None, *NAMED)


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ffconcat", "list.ts"])
def test_a_playlist_reads_no_neighbour(scan: Scan, tmp_path: Path, name: str) -> None:
    canary = write_video(tmp_path / "canary.ts", shots([8]))
    before, old = canary.stat().st_mtime_ns, 10**18
    os.utime(canary, ns=(old, before))
    for content in ("#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{}'\n"):
        (tmp_path / name).write_text(content.format(canary))
        assert fate(scan, tmp_path / name) == "unrecognised"
    assert canary.stat().st_atime_ns == old


@pytest.mark.parametrize("text", ["#EXTM3U\n", "ffconcat version 1.0\n", "[playlist]\n", "v=0\n", "<MPD>", "%!PS"])
def test_no_script_of_a_demuxer_is_on_the_list(text: str) -> None:
    assert sniff(text.encode().ljust(4096)) is None
