"""Fuzzing: good files with random damage have a named fate, in time, and the decoder's server survives them all.

`CLIPMILL_FUZZ=100000 pytest tests/pipeline/test_fuzz.py` makes that many; each mutation is named by its number, which makes it
again (`CLIPMILL_FUZZ_FROM`).
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.protocol import Limits
from pipeline.sandbox import DecodeError, Sandbox
from pipeline.scan import ScanOptions
from tests.media import shots, write_image, write_video
from tests.pipeline.test_sandbox import OPTIONS

COUNT = int(os.environ.get("CLIPMILL_FUZZ", "1000"))
FIRST = int(os.environ.get("CLIPMILL_FUZZ_FROM", "0"))
LIMITS = Limits(wall_s=30.0, memory_bytes=512 << 20)
SCAN = ScanOptions(**{**vars(OPTIONS), "max_pixels": 1 << 20, "max_frames": 200, "max_duration_s": 3600.0})
NAMED = {
    *("unrecognised", "truncated", "no_video", "attached_picture", "too_short", "too_large", "too_long", "time_base"),
    *("frame_count", "shape_change", "corrupt", "timeout", "memory"),
}
GOOD = [
    ("mp4", "libx264", {}),
    ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    ("mp4", "libx265", {"movflags": "faststart"}),
    ("mov", "mpeg4", {}),
    ("mkv", "libx264", {}),
    ("webm", "libvpx-vp9", {}),
    ("mkv", "libsvtav1", {}),
    ("mkv", "ffv1", {}),
    ("avi", "mpeg4", {}),
    ("avi", "mjpeg", {}),
    ("ts", "libx264", {}),
    ("mpg", "mpeg2video", {}),
    ("flv", "flv", {}),
    ("asf", "wmv2", {}),
    ("webm", "libvpx", {}),
]


def _flip(random: np.random.Generator, data: bytearray) -> None:
    for place in random.integers(0, len(data), int(random.integers(1, 24))):
        data[place] ^= 1 << int(random.integers(0, 8))


def _noise(random: np.random.Generator, data: bytearray) -> None:
    start = int(random.integers(0, len(data)))
    block = random.bytes(int(random.integers(1, 64)))
    data[start : start + len(block)] = block


def _cut(random: np.random.Generator, data: bytearray) -> None:
    del data[int(random.integers(16, len(data))) :]


def _leave_out(random: np.random.Generator, data: bytearray) -> None:
    start = int(random.integers(0, len(data)))
    del data[start : start + int(random.integers(1, 400))]


def _repeat(random: np.random.Generator, data: bytearray) -> None:
    start = int(random.integers(0, len(data)))
    data[start:start] = data[start : start + int(random.integers(1, 400))]


def _number(random: np.random.Generator, data: bytearray) -> None:
    start = int(random.integers(0, len(data) - 8))
    value = int(random.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
    data[start : start + 4] = value.to_bytes(4, "big" if random.integers(2) else "little")


def _in_headers(random: np.random.Generator, data: bytearray) -> None:
    for place in random.integers(0, min(len(data), 600), 4):
        data[place] = int(random.integers(0, 256))


DAMAGE: list[Callable[[np.random.Generator, bytearray], None]] = [
    _flip,
    _noise,
    _cut,
    _leave_out,
    _repeat,
    _number,
    _in_headers,
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small good files of many containers and codecs."""
    folder, found = tmp_path_factory.mktemp("good"), []
    for number, (suffix, codec, options) in enumerate(GOOD):
        pixels = {"mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        frames = shots([5, 4], height=64, width=64)
        path = folder / f"{number}.{suffix}"
        found.append(write_video(path, frames, codec=codec, fps=25, pixel_format=pixels, options=options).read_bytes())
    return [*found, write_image(folder / "a.png").read_bytes()]


def mutation(good: list[bytes], number: int) -> bytes:
    """Make mutation `number` of the good files."""
    random = np.random.default_rng(number)
    data = bytearray(good[number % len(good)])
    for kind in random.integers(0, len(DAMAGE), int(random.integers(1, 3))):
        DAMAGE[kind](random, data)
        if len(data) < 16:
            break
    return bytes(data)


def fate(sandbox: Sandbox, path: Path) -> tuple[str, str]:
    try:
        with open(path, "rb") as file:
            sandbox.call("scan", file, SCAN, LIMITS)
    except DecodeError as error:
        return error.error, str(error)
    return "ok", ""


def fuzzed(good: list[bytes], folder: Path, numbers: range) -> list[str]:
    """Scan mutations; tell of those that have no named fate, take too long, or end the server."""
    sandbox, escapes = Sandbox(), []
    path = folder / f"{numbers.start}.bin"
    for number in numbers:
        path.write_bytes(mutation(good, number))
        started, server = time.monotonic(), sandbox._server
        error, message = fate(sandbox, path)
        took_s = time.monotonic() - started
        crashed = error == "decoder_crash" and "died of signal" in message  # what isolation is for
        if not (error == "ok" or error in NAMED or crashed) or took_s > LIMITS.wall_s + 2:
            escapes.append(f"{number}: {error} in {took_s:.1f} s: {message}")
        if server and (sandbox._server is not server or server.poll() is not None):
            escapes.append(f"{number}: the server died")
    sandbox.close()
    return escapes


@pytest.mark.integration
def test_no_mutation_escapes(good: list[bytes], tmp_path: Path) -> None:
    parts = [range(start, FIRST + COUNT, 2) for start in (FIRST, FIRST + 1)]
    with ThreadPoolExecutor(2) as pool:
        found: list[Any] = list(pool.map(lambda numbers: fuzzed(good, tmp_path, numbers), parts))
    assert [escape for part in found for escape in part] == []


def test_a_mutation_is_made_again_by_its_number(good: list[bytes]) -> None:
    assert mutation(good, 7) == mutation(good, 7) != mutation(good, 7 + len(GOOD) + 1)
