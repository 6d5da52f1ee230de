"""Hostile files, made from a seed: each of a class, with the fate that it must have; and canaries that nobody may touch.

Equal seeds give equal files on one machine. A file's fate is "ok" or the name of a failure of the split stage under `CONFIG`,
changed by the file's own `config`.
"""

import contextlib
import ctypes
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from tests.media import picture, set_matrix, shots, write_audio, write_image, write_video

# Small limits, so that bombs can be small.
CONFIG: dict[str, Any] = {
    "min_frames": 2,
    "max_pixels": 1 << 22,
    "max_frames": 1000,
    "max_duration_s": 3600.0,
    "max_bytes": 1 << 30,
    "memory_mb": 768,
    "timeout_s": 30.0,
    "timeout_per_s": 1.0,
    "frames_per_clip": 2,
    "frame_side_px": 32,
}


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One hostile file, its class and the fate that it must have; `frames` where it is ok and they are known."""

    kind: str
    path: Path
    fate: str
    frames: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    size_bytes: int | None = None  # as it was planned, where that is not as it is


@dataclass(frozen=True)
class Canary:
    """Places that no decoder may touch: a file, a pipe, and an address on this machine."""

    file: Path
    pipe: Path
    listener: socket.socket
    watch: int

    @property
    def url(self) -> str:
        """The address, as something that a playlist can name."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/canary.ts"

    def touched(self) -> list[str]:
        """Name what was touched since the canaries were set out."""
        found = []
        with contextlib.suppress(BlockingIOError):
            os.read(self.watch, 4096)
            found.append("file")
        with contextlib.suppress(OSError):  # without a reader, a pipe cannot be opened for writing
            os.close(os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK))
            found.append("pipe")
        with contextlib.suppress(BlockingIOError):
            self.listener.accept()[0].close()
            found.append("address")
        return found


@contextlib.contextmanager
def canaries(folder: Path) -> Iterator[Canary]:
    """Set out canaries in a folder."""
    file = write_video(folder / "canary.ts", shots([8]))
    os.mkfifo(folder / "canary.pipe")
    library = ctypes.CDLL(None, use_errno=True)
    watch = library.inotify_init1(os.O_NONBLOCK)
    assert library.inotify_add_watch(watch, os.fsencode(file), 0x20) >= 0  # IN_OPEN
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield Canary(file, folder / "canary.pipe", listener, watch)
    os.close(watch)


def hostile_files(folder: Path, canary: Canary, seed: int = 0) -> list[Hostile]:
    """Write all hostile files into a folder."""
    found = _Folder(folder, canary, np.random.default_rng(seed))
    for write in (
        _not_media,
        _playlists,
        _references,
        _cut_off,
        _boxes,
        _tables,
        _lies,
        _codecs,
        _damage,
        _without_video,
        _short_and_long,
        _pictures,
        _geometry,
        _bombs,
        _times,
        _streams,
        _texts,
        _matroska,
        _no_files,
        _names,
    ):
        write(found)
    return found.files


# ---- building blocks ----------------------------------------------------------------------------------------------------


class _Folder:
    """The files that have been written, and good videos to spoil."""

    def __init__(self, folder: Path, canary: Canary, random: np.random.Generator) -> None:
        self.folder, self.canary, self.random = folder, canary, random
        self.files: list[Hostile] = []
        good = folder / "good"
        self.good = write_video(good / "a.mp4", shots([12, 9])).read_bytes()
        self.fast = write_video(good / "f.mp4", shots([12, 9]), options={"movflags": "faststart"}).read_bytes()
        self.mkv = write_video(good / "a.mkv", shots([12, 9])).read_bytes()
        self.webm = write_video(good / "a.webm", shots([12, 9]), codec="libvpx-vp9").read_bytes()
        self.avi = write_video(good / "a.avi", shots([12, 9]), codec="mpeg4").read_bytes()
        self.ts = write_video(good / "a.ts", shots([12, 9])).read_bytes()
        self.flv = write_video(good / "a.flv", shots([12, 9]), codec="flv").read_bytes()
        self.asf = write_video(good / "a.asf", shots([12, 9]), codec="wmv2").read_bytes()
        self.mpg = write_video(good / "a.mpg", shots([12, 9]), codec="mpeg2video", fps=25).read_bytes()

    def place(self, kind: str, name: str) -> Path:
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, kind: str, name: str, content: bytes | str, fate: str, **more: Any) -> None:
        """Write a file."""
        path = self.place(kind, name)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.files.append(Hostile(kind=kind, path=path, fate=fate, **more))

    def keep(self, kind: str, path: Path, fate: str, **more: Any) -> None:
        """Count a file in that is there."""
        self.files.append(Hostile(kind=kind, path=path, fate=fate, **more))


def patched(data: bytes, box: bytes, offset: int, value: int, size: int = 4) -> bytes:
    """Overwrite a big-endian number, counted from the start of a box's type."""
    start = data.index(box) + offset
    return data[:start] + value.to_bytes(size, "big") + data[start + size :]


def box(name: bytes, *content: bytes) -> bytes:
    """Make a box of an mp4 file."""
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + name + body


def without_frames(path: Path, **more: Any) -> Path:
    """Write a video whose encoder was opened and given nothing."""
    with av.open(str(path), "w", **more) as out:
        stream: Any = out.add_stream("libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        out.start_encoding()
    return path


def with_cover(path: Path) -> Path:
    """Write a tone with a cover picture."""
    with av.open(str(path), "w") as out:
        sound: Any = out.add_stream("aac", rate=16000, layout="mono")
        cover: Any = out.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 16000, 0
        art = av.VideoFrame.from_ndarray(picture(1), format="rgb24")
        for packets in (cover.encode(art), cover.encode(), sound.encode(silence), sound.encode()):
            out.mux(packets)
    return path


def with_streams(path: Path, codec: str, sizes: list[tuple[int, int]], frames: int = 8) -> Path:
    """Write a file with several video streams of these heights and widths."""
    with av.open(str(path), "w") as out:
        streams: list[Any] = []
        for height, width in sizes:
            stream: Any = out.add_stream(codec, rate=16)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append(stream)
        for number in range(frames):
            for stream in streams:
                pixels = picture(1, number, height=stream.height, width=stream.width)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 16)
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode())
    return path


def endless(data: bytes, frames: int) -> bytes:
    """Make of an mp4 with its index at the end one whose every frame is its first, over and over: 4 bytes a frame."""
    start = data.index(b"moov") - 4
    first_offset = int.from_bytes(data[data.index(b"stco") + 12 :][:4], "big")
    first_size = int.from_bytes(data[data.index(b"stsz") + 16 :][:4], "big")
    tables = {
        b"stts": struct.pack(">IIII", 0, 1, frames, 1024),
        b"stsz": struct.pack(">III", 0, first_size, frames),
        b"stsc": struct.pack(">IIIII", 0, 1, 1, 1, 1),
        b"stco": struct.pack(">II", 0, frames) + struct.pack(">I", first_offset) * frames,
    }
    return data[:start] + _rebuilt(data[start:], tables)


def _rebuilt(data: bytes, tables: dict[bytes, bytes], dropped: tuple[bytes, ...] = (b"ctts", b"stss", b"edts")) -> bytes:
    """Copy boxes with other tables in place of theirs."""
    found, at = b"", 0
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + size]
        if name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            body = _rebuilt(body, tables, dropped)
        if name not in dropped:
            found += box(name, tables.get(name, body))
        at += size
    return found


def with_references(data: bytes, entry: bytes) -> bytes:
    """Make the data reference of an mp4 with its index at the end point at something outside."""
    start = data.index(b"moov") - 4
    return data[:start] + _with_dref(data[start:], struct.pack(">II", 0, 1) + entry)


def _with_dref(data: bytes, dref: bytes) -> bytes:
    found, at = b"", 0
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + size]
        if name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
            body = _with_dref(body, dref)
        found += box(name, dref if name == b"dref" else body)
        at += size
    return found


def element(name: str, content: bytes) -> bytes:
    """Make an element of a Matroska file."""
    return bytes.fromhex(name) + (len(content) | 1 << 56).to_bytes(8, "big") + content


# ---- what is no media, and what points elsewhere ------------------------------------------------------------------------


def _not_media(to: _Folder) -> None:
    contents = {
        "empty": b"",
        "one_byte": b"\x00",
        "zeros": bytes(70_000),
        "ones": b"\xff" * 5000,
        "html": b"<html>404 not found</html>",
        "json": b'{"error": "not found"}',
        "text": b"a text of no interest\n" * 100,
        "pdf": b"%PDF-1.7\n" + bytes(500),
        "zip": b"PK\x03\x04" + bytes(500),
        "gzip": b"\x1f\x8b\x08" + bytes(500),
        "elf": b"\x7fELF" + bytes(500),
        "script": b"#!/bin/sh\nrm -rf /\n",
        "pickle": b"\x80\x04\x95" + bytes(100),
        "sqlite": b"SQLite format 3\x00" + bytes(500),
        "id3": b"ID3\x04" + bytes(500),
        "flac": b"fLaC" + bytes(500),
    }
    for name, content in contents.items():
        to.add("not_media", f"{name}.mp4", content, "unrecognised")
    for number in range(4):
        to.add("random", f"{number}.mp4", to.random.bytes(65536), "unrecognised")
    for name, start in {
        "ebml": b"\x1aE\xdf\xa3",
        "ftyp": b"\0\0\0\x20ftypisom",
        "ogg": b"OggS\0",
        "flv": b"FLV\x01\x05",
    }.items():
        fate = "truncated" if name == "ftyp" else "corrupt"
        to.add("random_after_magic", name, start + to.random.bytes(20_000), fate)
    raw = {"annexb.h264": ("h264", "libx264"), "frames.ivf": ("ivf", "libvpx-vp9"), "frames.nut": ("nut", "mpeg4")}
    for name, (_, codec) in raw.items():
        to.keep("container_not_on_the_list", write_video(to.place("raw", name), shots([8]), codec=codec), "unrecognised")


def _playlists(to: _Folder) -> None:
    places = {
        "file": str(to.canary.file),
        "url": f"file://{to.canary.file}",
        "pipe": str(to.canary.pipe),
        "http": to.canary.url,
    }
    forms = {
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
        "concat": "ffconcat version 1.0\nfile '{}'\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{}</BaseURL></MPD>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=control:{}\n",
        "pls": "[playlist]\nFile1={}\nNumberOfEntries=1\n",
    }
    for form, text in forms.items():
        for name, place in places.items():
            to.add("playlist", f"{form}_{name}.mp4", text.format(place), "unrecognised")
    for suffix in ("m3u8", "ffconcat", "mpd", "ts"):
        to.add("playlist_by_its_name", f"list.{suffix}", forms["hls"].format(to.canary.file), "unrecognised")
    list_text = forms["hls"].format(to.canary.file).encode()
    to.add("playlist_in_disguise", "a.mp4", box(b"ftyp", b"isom" + bytes(8)) + list_text, "truncated")
    to.add("playlist_in_disguise", "b.mp4", to.good + box(b"free", list_text), "ok", frames=21)
    sync = bytearray(list_text.ljust(188 * 40, b"\n"))
    sync[0::188] = b"G" * len(sync[0::188])
    to.add("playlist_in_disguise", "c.ts", bytes(sync), "corrupt")
    to.add("playlist_in_disguise", "d.avi", b"RIFF\xff\xff\0\0AVI " + list_text, "no_video")
    to.add("playlist_in_disguise", "pattern.mp4", f"{to.canary.file.parent}/%03d.png", "unrecognised")


def _references(to: _Folder) -> None:
    """Files that point at others: they are read as if they did not."""
    path = os.fsencode(to.canary.file)
    entries = {
        "url_file": box(b"url ", bytes(4), b"file://", path, b"\0"),
        "url_http": box(b"url ", bytes(4), to.canary.url.encode(), b"\0"),
        "url_pipe": box(b"url ", bytes(4), os.fsencode(to.canary.pipe), b"\0"),
        "alias": box(b"alis", bytes(4), _alias(path)),
    }
    for name, entry in entries.items():
        fate = "corrupt" if name == "alias" else "ok"
        to.add("data_reference", f"{name}.mov", with_references(to.good, entry), fate)
    to.add("reference_movie", "rmra.mov", _reference_movie(path), "no_video")
    title = b"GAB2\0\x02\0" + bytes(8) + b"#EXTM3U\n#EXTINF:1,\n" + path + b"\n"
    to.add("subtitles_in_avi", "gab2.avi", to.avi + b"JUNK" + struct.pack("<I", len(title)) + title, "ok")
    linked = element("3EB923", bytes(16)) + element("3E83BB", path + b"\0")  # NextUID, NextFilename
    to.add("linked_segment", "next.mkv", _with_segment_start(to.mkv, element("1549A966", linked)), "ok")


def _alias(path: bytes) -> bytes:
    """An alias record with the path of a file, as old Macintosh files have them."""
    body = bytes(138) + struct.pack(">HH", 2, len(path)) + path + b"\0" * (len(path) % 2) + b"\xff\xff\0\0"
    return bytes(4) + struct.pack(">H", len(body) + 6) + body


def _reference_movie(path: bytes) -> bytes:
    link = box(b"rmda", box(b"rdrf", bytes(4), b"url ", struct.pack(">I", len(path) + 1), path, b"\0"))
    return box(b"ftyp", b"qt  " + bytes(4)) + box(b"moov", box(b"rmra", link))


# ---- damage -------------------------------------------------------------------------------------------------------------


def _cut_off(to: _Folder) -> None:
    for share in (20, 50, 60, 90, 99):
        to.add("cut_off_index_last", f"{share}.mp4", to.good[: len(to.good) * share // 100], "truncated")
        to.add("cut_off_index_first", f"{share}.mp4", to.fast[: len(to.fast) * share // 100], "truncated")
    whole = {"mkv": to.mkv, "webm": to.webm, "avi": to.avi, "asf": to.asf, "ts": to.ts}
    for suffix, data in whole.items():
        for share in (40, 80):
            length = len(data) * share // 100
            to.add(
                "cut_off", f"{share}.{suffix}", data[: length - length % 188 + 100 if suffix == "ts" else length], "truncated"
            )
    to.add("cut_off", "first_frame.mp4", to.fast[: to.fast.index(b"mdat") + 40], "truncated")
    to.add("kept_prefix", "half.mp4", to.fast[: len(to.fast) // 2], "ok", config={"partial": "keep_prefix"})
    to.add("kept_prefix", "half.mkv", to.mkv[: len(to.mkv) // 2], "ok", config={"partial": "keep_prefix"})
    to.add("kept_prefix", "no_index.mp4", to.good[: len(to.good) // 2], "truncated", config={"partial": "keep_prefix"})
    to.add("kept_prefix", "nothing.mp4", to.fast[: to.fast.index(b"mdat") + 40], "truncated", config={"partial": "keep_prefix"})


def _boxes(to: _Folder) -> None:
    to.add("box_size", "moov_4.mp4", patched(to.good, b"moov", -4, 4), "corrupt")
    to.add("box_size", "moov_huge.mp4", patched(to.good, b"moov", -4, 0x7FFFFFFF), "ok", frames=21)
    to.add("box_size", "moov_zero.mp4", patched(to.good, b"moov", -4, 0), "ok", frames=21)
    to.add("box_size", "ftyp_huge.mp4", patched(to.good, b"ftyp", -4, 0x7FFFFFFF), "truncated")
    to.add("box_size", "trak_huge.mp4", patched(to.good, b"trak", -4, 0x7FFFFFFF), "ok")
    to.add("box_size", "stbl_4.mp4", patched(to.good, b"stbl", -4, 4), "unrecognised")
    to.add("box_size", "mdat_64_bits.mp4", box(b"ftyp", b"isom" + bytes(8)) + b"\0\0\0\x01mdat" + b"\x7f" * 8, "truncated")
    deep = b""
    for _ in range(2000):
        deep = box(b"moov", deep)
    to.add("box_depth", "moov_in_moov.mp4", box(b"ftyp", b"isom" + bytes(8)) + deep, "corrupt")
    to.add("box_count", "free.mp4", to.good + box(b"free") * 50_000, "ok", frames=21)


def _tables(to: _Folder) -> None:
    # 2 GiB of times are refused by the limit on memory; chunks are counted by what is there.
    for table, offset, fate in ((b"stsz", 12, "corrupt"), (b"stts", 8, "memory"), (b"stsc", 8, "corrupt"), (b"stco", 8, "ok")):
        to.add("table_count", f"{table.decode()}.mp4", patched(to.good, table, offset, 0x0FFFFFFF), fate)
    to.add("sample_size", "first.mp4", patched(to.good, b"stsz", 16, 0x7FFFFFFF), "frame_count")
    to.add("sample_size", "all.mp4", patched(to.good, b"stsz", 8, 0x7FFFFFFF), "frame_count")
    to.add("sample_offset", "past_the_end.mp4", patched(to.good, b"stco", 12, 0x7FFFFFFF), "frame_count")
    to.add("sample_offset", "into_the_index.mp4", patched(to.good, b"stco", 12, to.good.index(b"moov")), "corrupt")


def _lies(to: _Folder) -> None:
    to.add("lie_about_duration", "mvhd.mp4", patched(to.good, b"mvhd", 20, 0x7FFFFFFF), "ok", frames=21)
    to.add("lie_about_duration", "mdhd.mp4", patched(to.good, b"mdhd", 20, 0x7FFFFFFF), "ok", frames=21)
    to.add("lie_about_duration", "tkhd.mp4", patched(to.good, b"tkhd", 24, 0), "ok", frames=21)
    to.add("lie_about_size", "stsd.mp4", patched(to.good, b"avc1", 28, 0x00100010), "ok", frames=21)
    to.add("lie_about_size", "tkhd.mp4", patched(to.good, b"tkhd", 80, 0x7FFF0000), "ok", frames=21)
    to.add("timescale", "zero.mp4", patched(to.good, b"mdhd", 16, 0), "frame_count")
    to.add("frame_duration", "last_2_days.mp4", _with_last_duration(to.good), "too_long")


def _with_last_duration(data: bytes) -> bytes:
    """Let the last frame last for days."""
    count = int.from_bytes(data[data.index(b"stsz") + 12 :][:4], "big")
    start = data.index(b"moov") - 4
    times = struct.pack(">IIIIII", 0, 2, count - 1, 1024, 1, 0x7FFFFFF0)
    return data[:start] + _rebuilt(data[start:], {b"stts": times}, (b"edts",))


def _codecs(to: _Folder) -> None:
    to.add("unknown_codec", "fourcc.mp4", to.good.replace(b"avc1", b"zzzz"), "unrecognised")
    to.add("unknown_codec", "encrypted.mp4", to.good.replace(b"avc1", b"encv"), "unrecognised")
    to.add("unknown_codec", "other.mp4", to.good.replace(b"avc1", b"vp09"), "corrupt")
    for codec, suffix, pixels in (
        ("qtrle", "mov", "rgb24"),
        ("png", "mov", "rgb24"),
        ("cinepak", "avi", "rgb24"),
        ("zmbv", "avi", "bgr0"),
        ("flashsv", "flv", "bgr24"),
        ("rawvideo", "avi", "yuv420p"),
        ("utvideo", "avi", "yuv420p"),
    ):
        path = write_video(to.place("codec_not_on_the_list", f"{codec}.{suffix}"), shots([8]), codec=codec, pixel_format=pixels)
        to.keep("codec_not_on_the_list", path, "unrecognised")


def _damage(to: _Folder) -> None:
    start = to.fast.index(b"mdat") + 4
    to.add("zeroed_frames", "all.mp4", to.fast[:start] + bytes(len(to.fast) - start), "corrupt")
    to.add("zeroed_frames", "tail.mp4", to.fast[: start + 4000] + bytes(len(to.fast) - start - 4000), "corrupt")
    noisy = bytearray(to.fast)
    for place in range(start + 200, len(noisy), 150):
        noisy[place : place + 40] = to.random.bytes(40)[: len(noisy) - place]
    to.add("noise", "a.mp4", bytes(noisy), "corrupt")
    to.add("noise", "kept.mp4", bytes(noisy), "ok", config={"partial": "keep_prefix"})
    to.add("garbage_after", "a.mp4", to.good + to.random.bytes(5000), "ok", frames=21)
    to.add("garbage_after", "a.webm", to.webm + to.random.bytes(5000), "ok", frames=21)
    to.add("garbage_after", "html.mp4", to.good + b"<script>alert(1)</script>" * 100, "ok", frames=21)
    to.add("garbage_before", "a.mp4", to.random.bytes(512) + to.good, "unrecognised")
    lost = b"".join(to.ts[at : at + 188] for at in range(0, len(to.ts), 188) if at // 188 % 7 != 5)
    to.add("lost_packets", "a.ts", lost, "ok")


# ---- nothing, little, much ----------------------------------------------------------------------------------------------


def _without_video(to: _Folder) -> None:
    for suffix in ("mp4", "mkv", "ts", "avi"):
        to.keep("sound_only", write_audio(to.place("sound_only", f"a.{suffix}")), "no_video")
    to.keep("no_samples", without_frames(to.place("no_samples", "a.mp4")), "no_video")
    to.keep("no_samples", without_frames(to.place("no_samples", "a.mkv")), "corrupt")
    fragmented = {"movflags": "frag_keyframe+empty_moov"}
    data = write_video(to.place("fragments", "whole.mp4"), shots([12, 9]), options=fragmented).read_bytes()
    to.keep("fragments", to.place("fragments", "whole.mp4"), "ok", frames=21)
    start = data.index(b"moof") - 4
    to.add("fragments", "only_the_start.mp4", data[:start], "frame_count")
    to.add("fragments", "without_the_start.mp4", data[start:], "unrecognised")
    to.add("fragments", "cut_off.mp4", data[: start + (len(data) - start) * 8 // 10], "truncated")
    to.keep("cover_picture", with_cover(to.place("cover_picture", "a.mp4")), "attached_picture")
    # Matroska's muxer forgets that it is a cover.
    to.keep("cover_picture", with_cover(to.place("cover_picture", "a.mkv")), "too_short")


def _short_and_long(to: _Folder) -> None:
    for suffix, codec in (("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9")):
        to.keep("one_frame", write_video(to.place("one_frame", f"a.{suffix}"), shots([1]), codec=codec), "too_short")
    to.keep("one_frame", write_video(to.place("one_frame", "two.mp4"), shots([2])), "ok", frames=2)
    to.add("many_frames", "endless.mp4", endless(to.good, 200_000), "too_long")
    day = write_video(to.place("long_time", "day.mkv"), shots([24]), times_ms=[3_600_000 * hour for hour in range(24)])
    to.keep("long_time", day, "too_long")
    gap = write_video(to.place("long_time", "gap.mp4"), shots([3]), times_ms=[0, 40, 36_000_000])
    to.keep("long_time", gap, "too_long")
    hour = write_video(to.place("long_time", "an_hour.mp4"), shots([3]), times_ms=[0, 40, 3_500_000])
    to.keep("long_time", hour, "ok", frames=3)


def _pictures(to: _Folder) -> None:
    png = write_image(to.place("image", "png.mp4")).read_bytes()
    to.keep("image", to.place("image", "png.mp4"), "ok", frames=1)
    for suffix in (".jpg", ".bmp", ".webp", ".tiff", ".gif"):
        done, data = cv2.imencode(suffix, picture(1))
        if done:
            to.add("image", f"a{suffix}.mp4", data.tobytes(), "ok", frames=1)
            to.add("broken_image", f"cut{suffix}", data.tobytes()[: len(data) // 3], "corrupt")
    to.add("broken_image", "cut.png", png[:300], "corrupt")
    for name, width, height, fate in (("wide", 50_000, 64, "corrupt"), ("high", 50_000, 50_000, "too_large")):
        to.add("image_bomb", f"{name}.png", _with_size(png, width, height), fate)
    _, flat = cv2.imencode(".png", np.zeros((4000, 4000, 3), np.uint8))
    to.add("image_bomb", "flat.png", flat.tobytes(), "too_large")


def _with_size(png: bytes, width: int, height: int) -> bytes:
    """Let a PNG claim another size."""
    start = png.index(b"IHDR")
    header = b"IHDR" + struct.pack(">II", width, height) + png[start + 12 : start + 17]
    return png[:start] + header + struct.pack(">I", zlib.crc32(header)) + png[start + 21 :]


# ---- pictures of odd kinds ----------------------------------------------------------------------------------------------


def _geometry(to: _Folder) -> None:
    for name, matrix in {"90": (0, 1, -1, 0), "180": (-1, 0, 0, -1), "270": (0, -1, 1, 0), "mirror": (-1, 0, 0, 1)}.items():
        turned = set_matrix(write_video(to.place("turned", f"{name}.mp4"), shots([8])), *matrix)
        to.keep("turned", turned, "ok", frames=8)
    for height, width in ((241, 321), (63, 95), (2, 2), (1, 1), (2, 4096), (4096, 2)):
        frames = shots([6], height=height, width=width)
        path = write_video(to.place("odd_size", f"{height}x{width}.mkv"), frames, codec="ffv1", pixel_format="yuv444p")
        to.keep("odd_size", path, "ok", frames=6)
    for pixels, codec, suffix in (
        ("yuv420p10le", "libx265", "mp4"),
        ("yuv444p", "libx265", "mp4"),
        ("yuv422p12le", "libx265", "mp4"),
        ("yuva420p", "libvpx-vp9", "webm"),
        ("gray", "libx264", "mp4"),
        ("yuv422p10le", "prores_ks", "mov"),
        ("yuvj420p", "mjpeg", "avi"),
    ):
        path = write_video(to.place("pixels", f"{codec}_{pixels}.{suffix}"), shots([8]), codec=codec, pixel_format=pixels)
        to.keep("pixels", path, "ok", frames=8)
    for name, aspect, fate in (
        ("wide", Fraction(4), "ok"),
        ("thin", Fraction(1, 96), "ok"),
        ("wider", Fraction(255), "ok"),
    ):
        path = write_video(
            to.place("pixel_aspect", f"{name}.mkv"), shots([6]), codec="ffv1", aspect=aspect, pixel_format="yuv444p"
        )
        to.keep("pixel_aspect", path, fate)
    first = write_video(to.place("other_size_later", "first.ts"), shots([8]), times_ms=range(0, 400, 50)).read_bytes()
    small = write_video(
        to.place("other_size_later", "small.ts"), shots([8], height=32, width=48), times_ms=range(1000, 1400, 50)
    ).read_bytes()
    to.add("other_size_later", "a.ts", first + small, "shape_change")
    to.keep("other_size_later", to.place("other_size_later", "small.ts"), "ok", frames=8)
    fields = write_video(
        to.place("interlaced", "a.mpg"), shots([12]), codec="mpeg2video", fps=25, encoder={"flags": "+ildct+ilme"}
    )
    to.keep("interlaced", fields, "ok", frames=12)


def _bombs(to: _Folder) -> None:
    black = [np.zeros((4096, 4096, 3), np.uint8)] * 2
    for suffix, codec in (("mp4", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9")):
        path = write_video(to.place("large_frames", f"a.{suffix}"), black, codec=codec)
        to.keep("large_frames", path, "too_large")
        if suffix == "mp4":
            lying = patched(path.read_bytes(), b"avc1", 28, 0x00600040)
            to.add("large_frames", "said_to_be_small.mp4", lying, "too_large")
            huge = {"max_pixels": 1 << 26, "memory_mb": 40}
            to.add("more_memory_than_allowed", "a.mp4", path.read_bytes(), "memory", config=huge)
            slow = {"max_pixels": 1 << 26, "timeout_s": 0.02, "timeout_per_s": 0.01, "memory_mb": 2048}
            to.add("more_time_than_allowed", "a.mp4", path.read_bytes(), "timeout", config=slow)
    to.add(
        "more_time_than_allowed", "b.mp4", endless(to.good, 2900), "timeout", config={"timeout_s": 0.02, "timeout_per_s": 1e-4}
    )


# ---- times, streams, texts ----------------------------------------------------------------------------------------------


def _times(to: _Folder) -> None:
    to.add("times_start_again", "twice.ts", to.ts * 2, "time_base")
    to.add("times_start_again", "twice.mpg", to.mpg * 2, "time_base")
    to.add("times_start_again", "twice.flv", to.flv + to.flv[13:], "time_base")
    odd = write_video(to.place("variable_rate", "a.mkv"), shots([6]), times_ms=[0, 7, 400, 401, 2000, 2500])
    to.keep("variable_rate", odd, "ok", frames=6)
    late = write_video(to.place("late_start", "a.mp4"), shots([6]), times_ms=[90_000_000 + 40 * n for n in range(6)])
    to.keep("late_start", late, "ok", frames=6)
    slow = {"preset": "veryfast", "bf": "3"}
    ordered = write_video(to.place("reordered", "b_frames.mp4"), shots([24]), encoder=slow)
    to.keep("reordered", ordered, "ok", frames=24)
    to.add("edit_list", "empty.mp4", patched(ordered.read_bytes(), b"elst", 8, 0), "ok")
    to.add("edit_list", "beyond.mp4", patched(ordered.read_bytes(), b"elst", 16, 0x7FFFFFFF), "frame_count")


def _streams(to: _Folder) -> None:
    path = to.place("many_streams", "200.mkv")
    to.keep("many_streams", with_streams(path, "mpeg4", [(16, 16)] * 100, frames=3), "ok", frames=3)
    path = to.place("many_streams", "two.mp4")
    to.keep("many_streams", with_streams(path, "libx264", [(64, 96), (32, 48)]), "ok", frames=8)


def _texts(to: _Folder) -> None:
    ugly = "\x1b[2J\x1b]0;owned\x07\r\n<script>alert(1)</script>\u202e" * 20_000
    for suffix in ("mp4", "mkv"):
        path = to.place("ugly_metadata", f"a.{suffix}")
        with av.open(str(path), "w") as out:
            out.metadata["title"] = ugly
            stream: Any = out.add_stream("mpeg4", rate=16)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            for number in range(6):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(1, number, height=32, width=48), format="rgb24")))
            out.mux(stream.encode())
        to.keep("ugly_metadata", path, "ok", frames=6)


def _with_segment_start(data: bytes, content: bytes) -> bytes:
    """Put elements at the start of the segment of a Matroska file, which then has no size."""
    at = data.index(bytes.fromhex("18538067"))
    return data[: at + 4] + b"\x01" + b"\xff" * 7 + content + data[at + 12 :]


def _matroska(to: _Folder) -> None:
    to.add("empty_elements", "void.mkv", _with_segment_start(to.mkv, element("EC", bytes(3_000_000))), "ok")
    to.add("empty_elements", "many.mkv", _with_segment_start(to.mkv, element("EC", b"") * 20_000), "ok")
    deep = b""
    for _ in range(200):
        deep = element("1043A770", deep)  # chapters in chapters
    to.add("element_depth", "a.mkv", _with_segment_start(to.mkv, deep), "ok")
    lie = bytes.fromhex("1549A966") + b"\x01" + b"\x7f" * 7
    to.add("element_size", "info.mkv", _with_segment_start(to.mkv, lie), "ok")


# ---- what is no file, and names -----------------------------------------------------------------------------------------


def _no_files(to: _Folder) -> None:
    pipe = to.place("not_regular", "pipe.mp4")
    os.mkfifo(pipe)
    to.keep("not_regular", pipe, "not_regular")
    folder = to.place("not_regular", "folder.mp4")
    folder.mkdir()
    to.keep("not_regular", folder, "not_regular")
    device = to.place("not_regular", "device.mp4")
    device.symlink_to("/dev/zero")
    to.keep("not_regular", device, "not_regular")
    to.keep("missing", to.place("missing", "gone.mp4"), "io", size_bytes=1)
    loop = to.place("missing", "loop.mp4")
    loop.symlink_to(loop)
    to.keep("missing", loop, "io", size_bytes=1)
    to.add("swapped", "a.mp4", to.good, "io", size_bytes=len(to.good) - 1)
    sparse = to.place("sparse", "1t.mp4")
    sparse.write_bytes(to.good)
    os.truncate(sparse, 1 << 40)
    to.keep("sparse", sparse, "too_large")
    zeros = to.place("sparse", "900m.mp4")
    zeros.touch()
    os.truncate(zeros, 900 << 20)
    to.keep("sparse", zeros, "unrecognised")


def _names(to: _Folder) -> None:
    names = [
        "-i",
        "a:b",
        "pipe:x",
        "concat:a|b",
        "%03d.mp4",
        "a\nb.mp4",
        "a b'\".mp4",
        "é.mp4",
        "x" * 255,
        "$(id).mp4",
        "..mp4",
    ]
    for name in names:
        to.add("name", name, to.good, "ok", frames=21)
    to.add("name", os.fsdecode(b"\xff\xfe.mp4"), to.good, "ok", frames=21)
