"""The sandbox: a child that hangs, crashes or eats memory is told as a failure, and the next call works."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.sandbox import DecodeError, Limits, Sandbox
from pipeline.scan import ScanOptions
from tests.media import shots, write_video

OPTIONS = ScanOptions(
    threshold=3.0,
    min_shot_frames=5,
    max_clip_s=10.0,
    frames_per_clip=4,
    frame_side_px=32,
    max_pixels=1 << 22,
    threads=1,
)
LIMITS = Limits(wall_s=60.0, memory_bytes=2 << 30)


@pytest.fixture
def own() -> Iterator[Sandbox]:
    """A sandbox that a test may harm."""
    sandbox = Sandbox()
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("short") / "a.mp4", shots([12]))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video that takes a decoder a second or two."""
    path = tmp_path_factory.mktemp("long") / "a.mp4"
    frames = list(shots([12, 12], height=256, width=384)) * 20
    return write_video(path, frames)


def frames_of(sandbox: Sandbox, path: Path, limits: Limits = LIMITS) -> int:
    with open(path, "rb") as file:
        return int(sandbox.call("scan", file, OPTIONS, limits)[0]["frames"])


def error_of(sandbox: Sandbox, path: Path, limits: Limits = LIMITS) -> str:
    with pytest.raises(DecodeError) as caught:
        frames_of(sandbox, path, limits)
    return caught.value.error


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def signalled(sandbox: Sandbox, number: int, *, server: bool = False) -> Iterator[None]:
    """Send a signal to the next decoding child, or to its server, as soon as there is a child."""
    assert sandbox._server is not None
    parent = sandbox._server.pid

    def hit() -> None:
        deadline = time.monotonic() + 30
        while not (found := children(parent)) and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(parent if server else found[0], number)

    thread = threading.Thread(target=hit)
    thread.start()
    yield
    thread.join()


def test_a_scan_that_takes_too_long_is_a_timeout_and_the_next_call_works(own: Sandbox, short: Path, long: Path) -> None:
    assert error_of(own, long, Limits(wall_s=0.001, memory_bytes=2 << 30)) == "timeout"
    assert frames_of(own, short) == 12


def test_a_decoder_that_hangs_is_a_timeout_and_leaves_no_process(own: Sandbox, short: Path, long: Path) -> None:
    assert frames_of(own, short) == 12
    with signalled(own, signal.SIGSTOP):
        assert error_of(own, long, Limits(wall_s=2.0, memory_bytes=2 << 30)) == "timeout"
    assert own._server is not None
    assert children(own._server.pid) == []
    assert frames_of(own, short) == 12


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_decoder_that_dies_of_a_signal_is_a_crash_and_the_next_call_works(
    own: Sandbox, short: Path, long: Path, number: int
) -> None:
    assert frames_of(own, short) == 12
    with signalled(own, number):
        assert error_of(own, long) == "decoder_crash"
    assert frames_of(own, short) == 12


def test_a_decoder_that_needs_too_much_memory_fails_and_the_next_call_works(own: Sandbox, short: Path, long: Path) -> None:
    assert error_of(own, long, Limits(wall_s=60.0, memory_bytes=0)) in ("memory", "decoder_crash")
    assert frames_of(own, short) == 12


@pytest.mark.parametrize("memory_mb", [4, 8])
def test_memory_that_runs_out_while_decoding_is_told_as_memory(own: Sandbox, long: Path, memory_mb: int) -> None:
    assert error_of(own, long, Limits(wall_s=60.0, memory_bytes=memory_mb << 20)) == "memory"


def test_the_server_outlives_its_own_death(own: Sandbox, short: Path) -> None:
    assert frames_of(own, short) == 12
    assert own._server is not None
    own._server.kill()
    own._server.wait()
    with contextlib.suppress(DecodeError):  # the call that finds it dead may fail, but no later one
        frames_of(own, short)
    assert frames_of(own, short) == 12


def test_a_server_that_dies_during_a_call_is_a_crash_and_the_next_call_works(own: Sandbox, short: Path, long: Path) -> None:
    assert frames_of(own, short) == 12
    with signalled(own, signal.SIGKILL, server=True):
        assert error_of(own, long) == "decoder_crash"
    assert frames_of(own, short) == 12


def test_calls_leave_no_descriptors_open(own: Sandbox, short: Path) -> None:
    frames_of(own, short)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        frames_of(own, short)
        error_of(own, Path(__file__))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_sandbox_starts_again_when_it_is_called(own: Sandbox, short: Path) -> None:
    assert frames_of(own, short) == 12
    own.close()
    assert frames_of(own, short) == 12


def test_the_offset_of_the_file_does_not_matter(own: Sandbox, short: Path) -> None:
    with open(short, "rb") as file:
        file.seek(100)
        assert own.call("scan", file, OPTIONS, LIMITS)[0]["frames"] == 12


def test_the_decoder_imports_no_torch(own: Sandbox, short: Path) -> None:
    frames_of(own, short)
    assert own._server is not None
    mapped = Path(f"/proc/{own._server.pid}/maps").read_text()
    assert "libavcodec" in mapped
    assert "libtorch" not in mapped
