"""Run decoding of untrusted bytes in a process of its own: a warm server that forks one child a call.

The server (`python -m pipeline.sandbox`) loads the decoders once and no torch, so a fork costs milliseconds. A child gets an
open file and nothing else, works under limits on memory and time, and answers over a pipe with JSON and raw arrays (nothing is
unpickled). A crash, a hang or a bomb ends the child and is told as a failure; the server and every other call are unharmed.
"""

import contextlib
import dataclasses
import errno
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
Options = TypeVar("Options")
MESSAGE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one call may use: seconds on the wall clock, and memory beyond what the warm server has."""

    wall_s: float
    memory_bytes: int


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

    def call(self, task: str, file: BinaryIO, options: Any, limits: Limits) -> tuple[dict[str, Any], Arrays]:
        """Run `task` of `TASKS` in a child over an open file.

        Args:
            task: name of the function to run.
            file: an open regular file; the child sees its descriptor and not its name.
            options: the function's options, a dataclass.
            limits: what the child may use.

        Returns:
            What the function returned: facts and arrays.

        Raises:
            DecodeError: the function refused the file, or the child crashed, hung, or ran out of memory.
        """
        request = {"task": task, "options": dataclasses.asdict(options), "limits": dataclasses.asdict(limits)}
        reading, writing = os.pipe()
        try:
            channel = self._channel()
            socket.send_fds(channel, [json.dumps(request).encode()], [file.fileno(), writing])
            os.close(writing)
            writing = -1
            pid = int(channel.recv(64))
            answer, timed_out = _read_all(reading, pid, limits.wall_s)
            status = int(channel.recv(64))
        except (OSError, ValueError) as error:
            self.close()  # the server itself died: the next call starts another
            raise DecodeError("decoder_crash", f"the decoder's server died: {error}") from error
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)
        return _result(answer, timed_out, status, limits)

    def close(self) -> None:
        """End the server."""
        if self._socket:
            self._socket.close()
        if self._server:
            self._server.kill()
            self._server.wait()
        self._server = self._socket = None

    def _channel(self) -> socket.socket:
        if self._server and self._server.poll() is not None:
            self.close()  # it died between two calls
        if self._socket is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            # One thread each: these libraries start threads at import, and a fork must find the server with one.
            quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            paths = os.pathsep.join(path for path in sys.path if path)
            command = [sys.executable, "-m", "pipeline.sandbox", str(theirs.fileno())]
            environment = {**os.environ, **quiet, "PYTHONPATH": paths}
            self._server = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
            theirs.close()
            self._socket = ours
        return self._socket


def _read_all(reading: int, pid: int, wall_s: float) -> tuple[bytearray, bool]:
    """Read a child's answer to its end; kill the child at the deadline."""
    deadline = time.monotonic() + wall_s
    answer = bytearray()
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return answer, True
        block = os.read(reading, 1 << 20)
        if not block:
            return answer, False
        answer += block


def _result(answer: bytearray, timed_out: bool, status: int, limits: Limits) -> tuple[dict[str, Any], Arrays]:
    if timed_out or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU)):
        raise DecodeError("timeout", f"decoding took longer than {limits.wall_s:g} s")
    if os.WIFSIGNALED(status):
        raise DecodeError("decoder_crash", f"the decoder died of signal {os.WTERMSIG(status)}")
    if status != 0 or len(answer) < 4:
        raise DecodeError("decoder_crash", f"the decoder ended with status {status}")
    header, arrays = _unpacked(answer)
    if "failure" in header:
        raise DecodeError(**header["failure"])
    return header["facts"], arrays


def _packed(header: dict[str, Any], arrays: Arrays) -> list[bytes]:
    header["arrays"] = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    text = json.dumps(header).encode()
    return [len(text).to_bytes(4, "little"), text, *(np.ascontiguousarray(array).tobytes() for array in arrays.values())]


def _unpacked(answer: bytearray) -> tuple[dict[str, Any], Arrays]:
    at = 4 + int.from_bytes(answer[:4], "little")
    header = json.loads(answer[4:at])
    arrays = {}
    for name, kind, shape in header["arrays"]:
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(answer, dtype=np.dtype(kind), count=count, offset=at).reshape(shape)
        at += arrays[name].nbytes
    return header, arrays


# ---- the server ----------------------------------------------------------------------------------------------------------


def serve(channel: socket.socket) -> None:
    """Fork a child for every request on `channel`, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the channel
    tasks = _tasks()
    while True:
        message, files, _, _ = socket.recv_fds(channel, MESSAGE, 2)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            channel.close()
            _child(tasks, json.loads(message), *files)
        for descriptor in files:
            os.close(descriptor)
        channel.send(str(pid).encode())
        channel.send(str(os.waitpid(pid, 0)[1]).encode())


def _tasks() -> dict[str, tuple[Callable[..., Any], type[Any]]]:
    import av.logging
    import cv2

    from pipeline import scan, spans

    av.logging.set_level(None)
    cv2.setNumThreads(0)
    with contextlib.suppress(ImportError):
        import decord  # noqa: F401  (loaded here once, so that children find it warm)
    return {"scan": (scan.scan, scan.ScanOptions), "read_span": (spans.read_span, spans.Span)}


def _child(tasks: dict[str, tuple[Callable[..., Any], type[Any]]], request: dict[str, Any], file: int, answer: int) -> None:
    """Do one request and end the process; never returns."""
    code = 1
    try:
        _limit(Limits(**request["limits"]))
        with os.fdopen(answer, "wb") as out, os.fdopen(file, "rb") as source:
            source.seek(0)  # the offset is shared with the parent and with earlier calls
            out.writelines(_answer(*tasks[request["task"]], source, request["options"]))
        code = 0
    except MemoryError:
        code = 3
    finally:
        os._exit(code)


def _answer(function: Callable[..., Any], kind: type[Any], source: BinaryIO, options: dict[str, Any]) -> list[bytes]:
    from pipeline.media import MediaError

    try:
        facts, arrays = function(source, kind(**options))
        return _packed({"facts": facts}, arrays)
    except MediaError as error:
        failure = {"error": error.error, "message": str(error)}
    except MemoryError:
        failure = {"error": "memory", "message": "decoding needs more memory than is allowed"}
    except OSError as error:
        # Threads that find no room for their stacks say EAGAIN.
        short = error.errno in (errno.ENOMEM, errno.EAGAIN)
        failure = {"error": "memory" if short else "io", "message": str(error)}
    except Exception as error:  # foreign decoders raise anything; the parent shall know what
        failure = {"error": "decoder_crash", "message": f"{type(error).__name__}: {error}"}
    return _packed({"failure": failure}, {})


def _limit(limits: Limits) -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_AS, used + limits.memory_bytes)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    # The parent kills at the deadline; should it have died itself, the alarm ends this process a little later.
    signal.alarm(int(limits.wall_s) + 5)


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard),) * 2)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
