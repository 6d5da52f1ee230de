"""The decoder's process: a warm server that forks one child a call, and what a child does.

    python -m pipeline.sandbox_server DESCRIPTOR

Started by `pipeline.sandbox`, which tells what goes over the socket. One child is forked ahead, limited, filtered and
rehearsed, so that a call waits for nothing but its own work.
"""

import contextlib
import ctypes
import dataclasses
import errno
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline import heap, seccomp
from pipeline.answers import Answering, NoRoomError
from pipeline.protocol import (
    NO_ROOM,
    OUT_OF_MEMORY,
    REQUEST,
    SHORT_OF_MEMORY,
    TOO_MUCH,
    UNCONFINED,
    Limits,
    Progress,
    Seccomp,
    most_answered,
)

OPENCV_NO_MEMORY = -4
_fork = ctypes.PyDLL(None).fork  # without what Python renews in a child, for threads and generators of chance: there are none


@dataclass(frozen=True, kw_only=True)
class Task:
    """A function that runs in a child; `reopens` tells that a library in it opens the file again, and starts threads."""

    function: Callable[..., Any]
    options: type[Any]
    reopens: bool = False

    def run(self, file: BinaryIO, options: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
        """Run it over a file with options as JSON has them, which knows no tuples; return its facts."""
        named = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        facts: dict[str, Any] = self.function(file, self.options(**named), send)
        return facts


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a child must know before its request to be ready for it: the task, and how it is confined.

    The key tells the state of the server: a child that is forked before something is loaded does not have it.
    """

    key: str
    task: Task
    memory_bytes: int
    seccomp: Seccomp
    one_process: bool
    example: bytes = dataclasses.field(compare=False)  # a request of this kind

    @classmethod
    def of(cls, message: bytes, request: dict[str, Any], task: Task) -> "Preparation":
        """Tell it of a request."""
        limits, one_process = request["limits"], not task.reopens and request["options"]["threads"] == 1
        return cls(
            key=_key(request),
            task=task,
            memory_bytes=limits["memory_bytes"],
            seccomp=limits["seccomp"],
            one_process=one_process,
            example=message,
        )


class Server:
    """Gives every request on a channel to a child of its own, until the other end closes."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._tasks: dict[str, Task] = {}
        self._spare: tuple[int, socket.socket] | None = None
        self._prepared: Preparation | None = None  # what the spare child is ready for
        self._running: dict[int, int] = {}  # process numbers by descriptor

    def serve(self) -> None:
        """Work until the channel is closed, by death or by will; nobody waits then for what still runs."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the channel
        while True:
            ready, _, _ = select.select([self._channel.fileno(), *self._running], [], [])
            for child in set(ready) & set(self._running):
                pid = self._running.pop(child)
                with contextlib.suppress(ConnectionError):
                    self._channel.send(f"{pid} {_ended(pid)}".encode())
                os.close(child)
            if self._channel.fileno() in ready:
                try:
                    open_still = self._take()
                except ConnectionError:
                    open_still = False
                if not open_still:
                    break
        for pid in [*self._running.values(), *(self._spare or ())[:1]]:
            _ended(pid)

    def _take(self) -> bool:
        """Give one request to the spare child, and fork another; tell whether the channel is still open."""
        message, files, _, _ = socket.recv_fds(self._channel, REQUEST, 4)
        if not message:
            return False
        request = json.loads(message)
        key = _key(request)
        first = key not in self._tasks
        if first:
            self._tasks[key] = _loaded(request["task"], request["options"])
        preparation = Preparation.of(message, request, self._tasks[key])
        if preparation != self._prepared:
            if self._spare:
                _ended(self._spare[0])
            self._spare, self._prepared = None, preparation
        pid, inlet = self._spare or self._forked(preparation)
        child = os.pidfd_open(pid)
        self._running[child] = pid
        with inlet, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: how, its status tells
            socket.send_fds(inlet, [message], files)
        socket.send_fds(self._channel, [str(pid).encode()], [child])
        for descriptor in files:
            os.close(descriptor)
        if first:  # again, now that what the first request needed is free
            heap.use_up()
        self._spare = self._forked(preparation)
        return True

    def _forked(self, preparation: "Preparation") -> tuple[int, socket.socket]:
        """Fork a child that waits for its request; return its number and the socket to send it through."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server, pid = os.getpid(), _fork()
        if pid == 0:
            self._channel.close()
            ours.close()
            _child(preparation, server, theirs)
        theirs.close()
        return pid, ours


def _ended(pid: int) -> int:
    """End a child and what it may have started; return its status. Until then its number cannot be another's."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _key(request: dict[str, Any]) -> str:
    """Name what a child must find warm: the task, with its detector and its weights, since a child can open no files."""
    options = request["options"]
    return f"{request['task']} {options.get('detector', '')} {options.get('weights_sha256', '')}"


def _loaded(name: str, options: dict[str, Any]) -> Task:
    """Import what a task needs, and warm it up."""
    import av.logging
    import cv2

    for module in pkgutil.walk_packages(av.__path__, "av."):  # one that is needed late, for a stream of subtitles, say
        if module.name not in ("av.__main__", "av.datasets"):  # the latter is for downloads
            importlib.import_module(module.name)
    av.logging.set_level(None)
    cv2.setNumThreads(0)
    if name == "scan":
        import numpy.ma  # noqa: F401  (medians load it late, and a child cannot open the files of modules)

        from pipeline import media, scan

        media.load_image_readers()  # likewise
        task = Task(function=scan.scan, options=scan.ScanOptions)
    else:
        from pipeline import spans

        with contextlib.suppress(ImportError):
            import decord  # noqa: F401  (loaded here once, so that children find it warm)
        task = Task(function=spans.read_span, options=spans.Span, reopens=True)
    _warm_up(task, options)
    return task


def _warm_up(task: Task, options: dict[str, Any]) -> None:
    """Run the task once over frames of our own: a child finds loaded and set up what libraries load and set up late.

    A child may not open the files of modules, and would spend on them, again and again, more than on a short video.
    """
    from pipeline import media

    with media.plain_video() as file, contextlib.suppress(Exception):  # what is wrong with the task, its child will tell
        with media.opened(file, "avi", 1) as (container, stream):
            pictures = [media.Scaler(1).rgb(frame, 8, 8) for _, frame in media.decoded(container, stream)]
        assert pictures
        file.seek(0)
        task.run(file, options, lambda *_: None)
    seccomp.warm_up()
    gc.collect()
    heap.use_up()
    gc.freeze()  # a child's collector that walks over all that is loaded here would copy it page by page


def _child(preparation: Preparation, server: int, inlet: socket.socket) -> None:
    """Get ready, do one request and end the process; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        seccomp.die_with_parent(signal.SIGKILL)
        if os.getppid() != server:
            return  # it died before that was arranged
        _silence()
        _limit(preparation.memory_bytes, one_process=preparation.one_process)
        confined = preparation.seccomp != "off" and seccomp.confine(may_read_files=preparation.task.reopens)
        _rehearse(preparation)
        message, descriptors, _, _ = socket.recv_fds(inlet, REQUEST, 4)
        inlet.close()
        if message:
            _do_request(json.loads(message), descriptors, preparation, confined=confined)
        code = 0
    except MemoryError:
        code = OUT_OF_MEMORY
    finally:
        os._exit(code)


def _rehearse(preparation: Preparation) -> None:
    """Refuse a request of our own: of all that is touched on the way a child gets its own copy, while nobody waits."""
    request, nothing = json.loads(preparation.example), io.BufferedReader(io.BytesIO(b"nothing"))
    Limits(**request["limits"])
    _answer(preparation.task, nothing, request["options"], Answering(io.BytesIO()))


def _do_request(request: dict[str, Any], descriptors: list[int], preparation: Preparation, *, confined: bool) -> None:
    file, answer, progress, room = descriptors
    limits = Limits(**request["limits"])
    _tell_progress_through(progress)
    _limit_time(limits.wall_s)
    _lower(resource.RLIMIT_FSIZE, most_answered(limits, os.fstat(file).st_size) if confined else 0)
    if not confined:
        os.close(room)
    with os.fdopen(answer, "wb") as out, os.fdopen(file, "rb") as source:
        answering = Answering(out, room if confined else None)
        if limits.seccomp == "require" and not confined:
            answering.end({}, UNCONFINED)
        else:
            source.seek(0)  # the offset is shared with the parent and with earlier calls
            _answer(preparation.task, source, request["options"], answering)


def _tell_progress_through(descriptor: int) -> None:
    from pipeline import media

    media.tell_progress_to(Progress(descriptor).tell)


def _silence() -> None:
    """Keep what decoders print, which is a file's to choose, off the terminal."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _answer(task: Task, source: BinaryIO, options: dict[str, Any], answering: Answering) -> None:
    from pipeline.media import MediaError

    facts, failure = {}, None
    try:
        facts = task.run(source, options, answering.send)
    except MediaError as error:
        failure = {"error": error.error, "message": str(error)}
    except MemoryError:
        failure = {"error": "memory", "message": SHORT_OF_MEMORY}
    except NoRoomError as error:
        too_much = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EFBIG
        failure = {"error": "memory", "message": TOO_MUCH} if too_much else {"error": NO_ROOM, "message": str(error)}
    except OSError as error:
        # Threads that find no room for their stacks say EAGAIN.
        short = error.errno in (errno.ENOMEM, errno.EAGAIN)
        failure = {"error": "memory" if short else "io", "message": str(error)}
    except Exception as error:  # foreign decoders raise anything; the parent shall know what
        short = getattr(error, "code", None) == OPENCV_NO_MEMORY
        told = SHORT_OF_MEMORY if short else f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        failure = {"error": "memory" if short else "decoder_crash", "message": told}
    answering.end(facts, failure)


def _limit(memory_bytes: int, *, one_process: bool) -> None:
    told = os.open("/proc/self/statm", os.O_RDONLY)  # by no file object of Python's, of which a child would copy much
    used = int(os.read(told, 64).split()[0]) * resource.getpagesize()
    os.close(told)
    _lower(resource.RLIMIT_AS, used + memory_bytes)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, 64)
    if one_process:
        _lower(resource.RLIMIT_NPROC, 0)


def _limit_time(wall_s: float) -> None:
    # The parent kills at the deadline; should it hang itself, these end the process a little later.
    _lower(resource.RLIMIT_CPU, 5 + (os.cpu_count() or 1) * int(wall_s))
    signal.alarm(5 + int(wall_s))


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard),) * 2)


if __name__ == "__main__":
    Server(socket.socket(fileno=int(sys.argv[1]))).serve()
