"""Run decoding of untrusted bytes in a process of its own: a warm server that forks one child a call.

The server (`sandbox_server.py`) loads the decoders once, torch only for a detector that is a network, and keeps one
child forked ahead, so that a call waits for neither a fork nor an exit. A child gets an open file and nothing else, works under
limits on memory and time and a filter of system calls, and answers over a pipe with raw arrays and JSON (nothing is unpickled).
The arrays of a large answer it writes, each as soon as it is there, to a file without a name, which is mapped: neither side
holds them in memory of its own. Without a filter it could shorten that file under its reader, so then all goes over the pipe,
and this process keeps what is large in such a file. A crash, a hang or a bomb ends the child and is told as a failure; the
server and every other call are unharmed. A child never outlives its server, nor a server the process that started it.

    this process ── request, source, pipe, file ──► server ── the same ──► child, one a call
                 ◄── pid, status ──────────────────        ◄── exit ──────
                 ◄── arrays, JSON, lengths (pipe); large arrays (file) ───
"""

import contextlib
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from packing.errors import InputError, StoreError
from pipeline.answers import MESSAGE, TAIL, Answer, Arrays, is_complete, unpacked
from pipeline.protocol import (
    NO_ROOM,
    OUT_OF_MEMORY,
    SHORT_OF_MEMORY,
    TOO_MUCH,
    UNCONFINED,
    Limits,
    Progress,
    most_answered,
)

# For the C library of GNU; others pass over it. A child begins with no memory of its own, and a fault for every page costs more
# than using it: take huge pages where the kernel has them, many at a time, and keep what is freed.
MALLOC = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"hugetlb": 1, "trim_threshold": 32 << 20, "mmap_threshold": 32 << 20, "top_pad": 16 << 20}.items()
)
PIPE = 1 << 20  # bytes that a child can be ahead with its answer
LOOK_S = 0.5  # how often the progress of a child that says nothing is looked at
# What the server inherits of its environment: a decoder has no use for the keys and tokens of the job.
INHERITED = ("PATH", "HOME", "LANG", "LC_", "LD_", "PYTHON", "TMPDIR", "VIRTUAL_ENV", "CONDA")


class DecodeError(Exception):
    """The child did not give a result; `error` is the short name of the reason."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


class Sandbox:
    """A warm server and the calls to it; one call at a time. Close it, or let it end with this process."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._progress: Progress | None = None
        self._block = bytearray(PIPE)

    def call(self, task: str, file: BinaryIO, options: Any, limits: Limits) -> tuple[dict[str, Any], Arrays]:
        """Run a task of the server in a child over an open file.

        Args:
            task: name of the function to run.
            file: an open regular file; the child sees its descriptor and not its name.
            options: the function's options, a dataclass.
            limits: what the child may use.

        Returns:
            What the function returned: facts and arrays.

        Raises:
            DecodeError: the function refused the file, or the child crashed, hung, or ran out of memory.
            InputError: system calls must be filtered and the kernel does not filter them.
            StoreError: there is no room for the answer in the folder for temporary files.
        """
        with _disk_trouble():
            # A file for each call: what a child writes that is late in dying is in no other's answer.
            room = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        with room:
            return self._called(task, file, options, limits, room)

    def _called(
        self, task: str, file: BinaryIO, options: Any, limits: Limits, room: IO[bytes]
    ) -> tuple[dict[str, Any], Arrays]:
        size = os.fstat(file.fileno()).st_size
        longest_s = limits.deadline_s(size, limits.longest_s)
        told = {**vars(limits), "wall_s": longest_s}
        request = json.dumps({"task": task, "options": vars(options), "limits": told}).encode()
        reading, writing = os.pipe()
        try:
            with contextlib.suppress(PermissionError):  # beyond a user's share of pipes; a small one only takes longer
                fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE)
            channel = self._channel()
            assert self._progress is not None
            self._progress.reset()
            socket.send_fds(channel, [request], [file.fileno(), writing, self._progress.descriptor, room.fileno()])
            os.close(writing)
            writing = -1
            pid, child = _started(channel)
            try:
                answer, cut = _read_all(reading, self._block, child, limits, size, self._progress)
            finally:
                os.close(child)
            status = None if is_complete(answer[-TAIL:], len(answer)) else _status(channel, pid)
        except (OSError, ValueError) as error:
            self.close()  # the server itself died: the next call starts another
            raise DecodeError("decoder_crash", f"the decoder's server died: {error}") from error
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)
        return _result(answer, cut, status, room)

    def close(self) -> None:
        """End the server."""
        if self._socket:
            self._socket.close()
        if self._server:
            self._server.kill()
            self._server.wait()
        if self._progress:
            self._progress.close()
        self._server = self._socket = self._progress = None

    def _channel(self) -> socket.socket:
        """Return the channel to a server that lives; a new one if there is none, or it died between two calls."""
        if self._server and self._server.poll() is not None:
            self.close()
        if self._socket is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, "-P", "-m", "pipeline.sandbox_server", str(theirs.fileno())]
            self._server = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=_server_environment()
            )
            theirs.close()
            self._socket, self._progress = ours, Progress.fresh()
        return self._socket


def _server_environment() -> dict[str, str]:
    # One thread each: these libraries start threads at import, and a fork must find the server with one. Where functions of
    # libraries lie is looked up once, in the server, not by every child that calls one first.
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    quiet = {**threads, "PYTHONWARNINGS": "ignore", "GLIBC_TUNABLES": MALLOC, "LD_BIND_NOW": "1"}
    inherited = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
    return {**inherited, **quiet, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


def _started(channel: socket.socket) -> tuple[int, int]:
    """Wait for the child that the server gives a call to; return its number and a descriptor of it."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 64, 1)
        if descriptors:
            return int(message), descriptors[0]
        if not message:
            raise ConnectionError("it has closed its channel")


def _status(channel: socket.socket, pid: int) -> int:
    """Wait for the end of a child; ends of earlier ones, which were not waited for, go by."""
    while message := channel.recv(64):
        ended, status = (int(number) for number in message.split())
        if ended == pid:
            return status
    raise ConnectionError("it has closed its channel")


def _read_all(
    reading: int, block: bytearray, child: int, limits: Limits, size: int, progress: Progress
) -> tuple[Answer, DecodeError | None]:
    """Read a child's answer to its end and kill the child, also at its deadline and when it answers too much.

    Raises:
        StoreError: there is no room for the answer.
    """
    try:
        with _disk_trouble(), tempfile.SpooledTemporaryFile(MESSAGE) as spool:
            cut = _moved(reading, block, spool, child, limits, size, progress)
            return _spooled(spool), cut
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, signal.SIGKILL)


@contextlib.contextmanager
def _disk_trouble() -> Iterator[None]:
    """Tell what goes wrong with a temporary file as the machine's trouble: it is not the fault of the source."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot keep what is decoded in {tempfile.gettempdir()}: {error.strerror}") from error


def _moved(
    reading: int, block: bytearray, spool: IO[bytes], child: int, limits: Limits, size: int, progress: Progress
) -> DecodeError | None:
    """Move an answer to where it is kept, block by block; tell why it was cut short, if it was."""
    started, moved, tail, count = time.monotonic(), 0, b"", 1
    while count:
        elapsed_s = time.monotonic() - started
        allowed_s = limits.deadline_s(size, progress.read())
        ready, _, _ = select.select([reading], [], [], min(LOOK_S, max(0.0, allowed_s - elapsed_s)))
        if ready:
            count = os.readv(reading, [block])
            moved += count
            tail = (tail + block[max(0, count - TAIL) : count])[-TAIL:]
            spool.write(memoryview(block)[:count])
        if moved > most_answered(limits, size):
            return DecodeError("memory", TOO_MUCH)
        if elapsed_s >= allowed_s and count:
            return DecodeError("timeout", f"decoding took longer than {allowed_s:.3g} s")
    if not is_complete(tail, moved):
        select.select([child], [], [], 1.0)  # it is dying: how, it tells only when it may finish
    return None


def _spooled(spool: IO[bytes]) -> Answer:
    """Return what was kept; what is large stays in its file without a name, mapped."""
    if spool.tell() > MESSAGE:
        spool.flush()
        return mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_COPY)
    spool.seek(0)
    return bytearray(spool.read())


def _result(answer: Answer, cut: DecodeError | None, status: int | None, room: IO[bytes]) -> tuple[dict[str, Any], Arrays]:
    if cut:
        raise cut
    if status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU):
        raise DecodeError("timeout", "decoding used up all the time that it may have")
    if status is not None and os.WIFSIGNALED(status):
        raise DecodeError("decoder_crash", f"the decoder died of signal {os.WTERMSIG(status)}")
    if status is not None and os.waitstatus_to_exitcode(status) == OUT_OF_MEMORY:
        raise DecodeError("memory", SHORT_OF_MEMORY)
    if status is not None:
        raise DecodeError("decoder_crash", f"the decoder ended with status {status}")
    try:
        header, arrays = unpacked(answer, room)
        facts, failure = dict(header["facts"]), header["failure"]
        failed = failure and failure != UNCONFINED and DecodeError(str(failure["error"]), str(failure["message"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DecodeError("decoder_crash", f"the decoder answers nonsense: {error}") from error
    if failure == UNCONFINED:
        raise InputError("split.seccomp is `require`, and this kernel does not filter system calls; `auto` goes on without")
    if failed and failed.error == NO_ROOM:
        raise StoreError(f"cannot keep what is decoded in {tempfile.gettempdir()}: {failed}")
    if failed:
        raise failed
    return facts, arrays
