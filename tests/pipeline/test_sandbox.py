"""The sandbox: a child that hangs, crashes or eats memory is told as a failure, and the next call works."""

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

from packing.errors import StoreError
from pipeline.answers import MESSAGE, Answering
from pipeline.media import IMAGES
from pipeline.protocol import BYTES_PER_S, Limits
from pipeline.sandbox import DecodeError, Sandbox, _result
from pipeline.scan import ScanOptions
from tests.media import picture, shots, write_video

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


def busy(pid: int, path: Path) -> list[int]:
    """The children of a server that have a file open; the one that waits for its request has none."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if any(os.readlink(link) == str(path) for link in Path(f"/proc/{child}/fd").iterdir()):
                found.append(child)
    return found


@contextlib.contextmanager
def signalled(sandbox: Sandbox, path: Path, number: int, *, server: bool = False) -> Iterator[None]:
    """Send a signal to the child that decodes a file, or to its server, as soon as there is such a child."""
    assert sandbox._server is not None
    parent = sandbox._server.pid

    def hit() -> None:
        deadline = time.monotonic() + 30
        while not (found := busy(parent, path)) and time.monotonic() < deadline:
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
    with signalled(own, long, signal.SIGSTOP):
        assert error_of(own, long, Limits(wall_s=2.0, memory_bytes=2 << 30)) == "timeout"
    assert own._server is not None
    assert busy(own._server.pid, long) == []
    assert len(children(own._server.pid)) == 1
    assert frames_of(own, short) == 12


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_decoder_that_dies_of_a_signal_is_a_crash_and_the_next_call_works(
    own: Sandbox, short: Path, long: Path, number: int
) -> None:
    assert frames_of(own, short) == 12
    with signalled(own, long, number):
        assert error_of(own, long) == "decoder_crash"
    assert frames_of(own, short) == 12


def test_a_decoder_that_needs_too_much_memory_fails_and_the_next_call_works(own: Sandbox, short: Path, long: Path) -> None:
    assert error_of(own, long, Limits(wall_s=60.0, memory_bytes=0)) in ("memory", "decoder_crash")
    assert frames_of(own, short) == 12


@pytest.mark.parametrize("memory_mb", [1, 2])
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


def test_a_spare_child_that_has_died_costs_one_call_and_not_the_server(own: Sandbox, short: Path) -> None:
    assert frames_of(own, short) == 12
    assert own._server is not None
    server = own._server.pid
    deadline = time.monotonic() + 10
    while len(spare := Path(f"/proc/{server}/task/{server}/children").read_text().split()) != 1:
        assert time.monotonic() < deadline
    os.kill(int(spare[0]), signal.SIGKILL)
    while ") Z " not in Path(f"/proc/{spare[0]}/stat").read_text():
        assert time.monotonic() < deadline
    with open(short, "rb") as file, pytest.raises(DecodeError, match="signal 9"):
        own.call("scan", file, OPTIONS, LIMITS)
    assert frames_of(own, short) == 12
    assert own._server.pid == server


def test_a_server_that_dies_during_a_call_is_a_crash_and_the_next_call_works(own: Sandbox, short: Path, long: Path) -> None:
    assert frames_of(own, short) == 12
    with signalled(own, long, signal.SIGKILL, server=True):
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


def test_a_package_of_the_same_name_where_the_job_runs_is_not_the_decoder(
    own: Sandbox, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise SystemExit('somebody else')")
    monkeypatch.chdir(tmp_path)
    assert frames_of(own, short) == 12


def test_the_offset_of_the_file_does_not_matter(own: Sandbox, short: Path) -> None:
    with open(short, "rb") as file:
        file.seek(100)
        assert own.call("scan", file, OPTIONS, LIMITS)[0]["frames"] == 12


@pytest.mark.parametrize("library", ["libtorch", "libssl", "_avif"])
def test_the_decoder_loads_nothing_that_it_has_no_use_for(own: Sandbox, short: Path, library: str) -> None:
    frames_of(own, short)
    assert own._server is not None
    mapped = Path(f"/proc/{own._server.pid}/maps").read_text()
    assert "libavcodec" in mapped
    # OpenCV brings a library of this name along, for videos on the net.
    assert library not in mapped.replace("opencv_python_headless.libs/libssl", "")


@pytest.mark.parametrize("form", IMAGES)
def test_a_child_that_may_open_no_file_can_read_every_kind_of_image(own: Sandbox, tmp_path: Path, form: str) -> None:
    path = tmp_path / "a"
    Image.fromarray(picture(1)).save(path, form)
    assert frames_of(own, path) == 1


# ---- the deadline -------------------------------------------------------------------------------------------------------


def test_the_deadline_moves_with_what_is_decoded(own: Sandbox, short: Path, long: Path) -> None:
    assert frames_of(own, short) == 12
    assert error_of(own, long, Limits(wall_s=0.02, memory_bytes=2 << 30)) == "timeout"
    assert frames_of(own, long, Limits(wall_s=0.05, memory_bytes=2 << 30, per_video_s=1000.0, longest_s=60.0)) == 480


@pytest.mark.parametrize(
    ("decoded_s", "counted_s"), [(0.0, 0.0), (3.0, 3.0), (1e9, 100.0), (-5.0, 0.0), (math.nan, 0.0), (math.inf, 0.0)]
)
def test_no_child_can_move_its_deadline_without_end(decoded_s: float, counted_s: float) -> None:
    limits = Limits(wall_s=10.0, memory_bytes=1, per_video_s=2.0, longest_s=100.0)
    assert limits.deadline_s(int(3 * BYTES_PER_S), decoded_s) == 10 + 3 + 2 * counted_s


# ---- the answer ---------------------------------------------------------------------------------------------------------


def answer(arrays: list[list[object]], data: bytes = b"", **header: object) -> bytearray:
    """What a child would send whose header says this."""
    text = json.dumps({"facts": {}, "failure": None, "arrays": arrays, "kept": 0, **header}).encode()
    return bytearray(data + text + b"".join(size.to_bytes(8, "little") for size in (len(text), len(data) + len(text))))


@pytest.fixture
def room(tmp_path: Path) -> Iterator[IO[bytes]]:
    """A file for the arrays of an answer."""
    with open(tmp_path / "room", "wb+", buffering=0) as file:
        yield file


@pytest.mark.parametrize("has_room", [False, True])
@pytest.mark.parametrize("length", [0, 5, MESSAGE - 100, MESSAGE + 1])
def test_facts_and_arrays_come_back_as_they_were(room: IO[bytes], length: int, has_room: bool) -> None:
    small = {"x": np.arange(5, dtype=np.uint8), "y": np.arange(6, dtype=np.float64).reshape(2, 3).T}
    out, sent = io.BytesIO(), {**small, "z": np.arange(length, dtype=np.uint8), "last": np.arange(3)}
    answering = Answering(out, room.fileno() if has_room else None)
    for name, array in sent.items():
        answering.send(name, array)
    answering.end({"a": 1})
    facts, arrays = _result(bytearray(out.getvalue()), None, None, room)
    assert (room.seek(0, os.SEEK_END) > 0) == (has_room and length > MESSAGE)
    assert facts == {"a": 1}
    assert arrays.keys() == sent.keys()
    assert all(np.array_equal(arrays[name], array) for name, array in sent.items())


@pytest.mark.parametrize(
    "nonsense",
    [
        bytearray(),
        bytearray(b"\xff" * 100),
        answer([["x", "|O", [1]]], bytes(8)),
        answer([["x", "|V8", [1]]], bytes(8)),
        answer([["x", "|u1", [9]]], bytes(8)),
        answer([["x", "|u1", [-1]]], bytes(8)),
        answer([["x", "|u1", [1 << 62]]], bytes(8)),
        answer([["x", "no", [1]]], bytes(8)),
        answer([], bytes(8)),
        answer([], facts=7),
        answer([], failure="a word"),
        answer([["x"]]),
        answer([["x", "|u1", [9]]], kept=9),
        answer([["x", "|u1", [7]]], kept=8),
        answer([["x", "|u1", [8]]], bytes(8), kept=8),
        answer([["x", "|u1", [8]]], kept=-8),
        answer([["x", "|u1", [8]]], kept=8.0),
        answer([["x", "|u1", [8]]], kept="8"),
    ],
)
def test_an_answer_that_is_nonsense_is_a_crash(room: IO[bytes], nonsense: bytearray) -> None:
    room.write(bytes(8))
    with pytest.raises(DecodeError) as caught:
        _result(nonsense, None, None, room)
    assert caught.value.error == "decoder_crash"


LARGE = ScanOptions(**{**vars(OPTIONS), "frames_per_clip": 16, "frame_side_px": 256})


def pictures_of(sandbox: Sandbox, path: Path, limits: Limits = LIMITS) -> dict[str, Any]:
    """The pictures of a video's clips at full size: an answer that is too large for memory."""
    with open(path, "rb") as file:
        return dict(sandbox.call("scan", file, LARGE, limits)[1])


@pytest.mark.parametrize("seccomp", ["auto", "off"])
def test_a_large_answer_comes_back_as_it_was_and_can_be_written_to(own: Sandbox, long: Path, seccomp: Any) -> None:
    arrays = pictures_of(own, long, Limits(wall_s=60.0, memory_bytes=2 << 30, seccomp=seccomp))
    assert arrays["0"].nbytes > MESSAGE
    with open(long, "rb") as file:
        small = own.call("scan", file, OPTIONS, LIMITS)[1]
    assert (arrays["times_s"] == small["times_s"]).all()
    for name, pictures in arrays.items():
        pictures[...] = 0
        assert not pictures.any(), name


def test_a_full_disk_is_the_job_s_trouble_and_the_next_call_works(
    monkeypatch: pytest.MonkeyPatch, own: Sandbox, short: Path, long: Path
) -> None:
    def full(**_: object) -> IO[bytes]:
        return open("/dev/full", "wb+")

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "TemporaryFile", full)
        with pytest.raises(StoreError, match="No space left on device"):
            pictures_of(own, long)
        assert frames_of(own, short) == 12  # a small answer needs no file
    assert pictures_of(own, long)


def test_a_folder_for_temporary_files_that_is_gone_is_the_job_s_trouble(
    monkeypatch: pytest.MonkeyPatch, own: Sandbox, long: Path, tmp_path: Path
) -> None:
    pictures_of(own, long)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StoreError, match="gone: No such file"):
        pictures_of(own, long)


def test_a_user_who_may_have_small_pipes_only_gets_the_same_answer(
    monkeypatch: pytest.MonkeyPatch, own: Sandbox, long: Path
) -> None:
    wanted = pictures_of(own, long)

    def refused(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(fcntl, "fcntl", refused)
    found = pictures_of(own, long)
    assert all((found[name] == pictures).all() for name, pictures in wanted.items())


# ---- what a child and its server inherit and leave ----------------------------------------------------------------------


def test_the_server_does_not_inherit_the_keys_of_the_job(monkeypatch: pytest.MonkeyPatch, own: Sandbox, short: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    frames_of(own, short)
    assert own._server is not None
    assert b"a secret" not in Path(f"/proc/{own._server.pid}/environ").read_bytes()


def test_server_and_child_end_with_the_process_that_started_them(long: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.pipeline.test_sandbox import *\n"
        "own = Sandbox(); frames_of(own, Path(sys.argv[1])); print(own._server.pid, flush=True)\n"
        "while True: frames_of(own, Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", code, str(long)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = int(process.stdout.readline())
    deadline = time.monotonic() + 30
    while not (working := busy(server, long)) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    process.stdout.close()
    while any(Path(f"/proc/{pid}").exists() for pid in (server, *working)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{pid}").exists() for pid in (server, *working))


@pytest.mark.parametrize("seccomp", ["auto", "off", "require"])
def test_decoding_on_several_threads_works_with_and_without_a_filter(own: Sandbox, short: Path, seccomp: Any) -> None:
    with open(short, "rb") as file:
        options = ScanOptions(**{**vars(OPTIONS), "threads": 2})
        limits = Limits(wall_s=60.0, memory_bytes=2 << 30, seccomp=seccomp)
        assert own.call("scan", file, options, limits)[0]["frames"] == 12
