"""Run decoding of untrusted bytes in a process of its own: a warm server that forks one child a call.

The server (`python -m pipeline.sandbox`) loads the decoders once, torch only for a detector that is a network, and keeps one
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
import dataclasses
import errno
import fcntl
import gc
import importlib
import io
import json
import math
import mmap
import os
import pkgutil
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from packing.errors import InputError, StoreError
from pipeline import seccomp

Arrays = Mapping[str, NDArray[Any]]
Answer = bytearray | mmap.mmap
Options = TypeVar("Options")
Seccomp = Literal["auto", "off", "require"]
MESSAGE = 1 << 20
SHORT_OF_MEMORY = "decoding needs more memory than is allowed"
TOO_MUCH = "the decoder answers more than such a file can hold"
OPENCV_NO_MEMORY = -4
# For the C library of GNU; others pass over it. A child begins with no memory of its own, and a fault for every page costs more
# than using it: take huge pages where the kernel has them, and keep what is freed.
MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=33554432:glibc.malloc.mmap_threshold=33554432"
UNCONFINED = "unconfined"
NO_ROOM = "no_room"
OUT_OF_MEMORY = 3  # how a child ends that cannot even tell so
PIPE = 1 << 20  # bytes that a child can be ahead with its answer
TAIL = 16  # bytes at the end of an answer, which say how long its JSON is, and all before them
ALIGNED = 8  # an array begins at a multiple of so many bytes
ANSWERED = 1024  # bytes of an answer for every byte of the file, on top of what a child may hold, are too many
BYTES_PER_S = 20e6  # a file is allowed the time to be read at this speed, on top of everything else
LOOK_S = 0.5  # how often the progress of a child that says nothing is looked at
# What the server inherits of its environment: a decoder has no use for the keys and tokens of the job.
INHERITED = ("PATH", "HOME", "LANG", "LC_", "LD_", "PYTHON", "TMPDIR", "VIRTUAL_ENV", "CONDA")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one call may use: seconds on the wall clock, and memory beyond what the warm server has.

    The deadline moves with the work: `wall_s`, the time to read the file (20 MB/s), and `per_video_s` seconds for every second
    of video decoded so far, of which at most `longest_s` count. So a hang ends soon, and a long film is not cut off; what a
    file claims to be does not matter.
    """

    wall_s: float
    memory_bytes: int
    per_video_s: float = 0.0
    longest_s: float = 0.0
    seccomp: Seccomp = "auto"

    def deadline_s(self, size_bytes: int, decoded_s: float) -> float:
        """Return how many seconds a call may have taken when it has come so far."""
        counted = min(decoded_s, self.longest_s) if math.isfinite(decoded_s) and decoded_s > 0 else 0.0
        return self.wall_s + size_bytes / BYTES_PER_S + self.per_video_s * counted


def most_answered(limits: Limits, size: int) -> int:
    """Return how many bytes the answer over a file of so many bytes may have."""
    return limits.memory_bytes + MESSAGE + ANSWERED * size


@dataclass(frozen=True, kw_only=True)
class Task:
    """A function that runs in a child; `reopens` tells that a library in it opens the file again, and starts threads."""

    function: Callable[..., Any]
    options: type[Any]
    reopens: bool = False


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
        told = {**dataclasses.asdict(limits), "wall_s": longest_s}
        request = json.dumps({"task": task, "options": dataclasses.asdict(options), "limits": told}).encode()
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
            status = None if _is_complete(answer[-TAIL:], len(answer)) else _status(channel, pid)
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
            command = [sys.executable, "-m", "pipeline.sandbox", str(theirs.fileno())]
            self._server = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=_server_environment()
            )
            theirs.close()
            self._socket, self._progress = ours, Progress.fresh()
        return self._socket


class Progress:
    """How many seconds of video a child has decoded: one number in memory that it shares with the process that waits for it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)

    @classmethod
    def fresh(cls) -> "Progress":
        """Make one that can be sent to other processes."""
        descriptor = os.memfd_create("progress")
        os.ftruncate(descriptor, mmap.PAGESIZE)
        return cls(descriptor)

    def reset(self) -> None:
        """Begin at zero."""
        self.tell(0.0)

    def tell(self, decoded_s: float) -> None:
        """Say how far decoding has come."""
        struct.pack_into("d", self._memory, 0, decoded_s)

    def read(self) -> float:
        """Read how far decoding has come; the writer is not to be trusted."""
        (decoded_s,) = struct.unpack_from("d", self._memory, 0)
        return float(decoded_s)

    def close(self) -> None:
        """Let the memory go."""
        self._memory.close()
        os.close(self.descriptor)


def _server_environment() -> dict[str, str]:
    # One thread each: these libraries start threads at import, and a fork must find the server with one.
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "GLIBC_TUNABLES": MALLOC}
    inherited = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
    return {**inherited, **quiet, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


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
    if not _is_complete(tail, moved):
        select.select([child], [], [], 1.0)  # it is dying: how, it tells only when it may finish
    return None


def _spooled(spool: IO[bytes]) -> Answer:
    """Return what was kept; what is large stays in its file without a name, mapped."""
    if spool.tell() > MESSAGE:
        spool.flush()
        return mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_COPY)
    spool.seek(0)
    return bytearray(spool.read())


def _is_complete(tail: bytes | bytearray, length: int) -> bool:
    """Tell whether an answer is whole as its last bytes say, so that nobody need wait for how its child ends."""
    return length > TAIL and int.from_bytes(tail[-8:], "little") == length - TAIL


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
        header, arrays = _unpacked(answer, room)
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


def _unpacked(answer: Answer, room: IO[bytes]) -> tuple[dict[str, Any], Arrays]:
    """Take an answer apart; a child that was taken over may write anything, so nothing of it is believed.

    Raises:
        ValueError: it is not what `Answering` writes.
    """
    end = len(answer) - TAIL
    start = end - int.from_bytes(answer[end : end + 8], "little")
    header = json.loads(answer[max(0, start) : max(0, end)])
    kept = header["kept"]
    if not isinstance(kept, int) or not 0 <= kept <= os.fstat(room.fileno()).st_size or (kept and start):
        raise ValueError(f"{kept!r} bytes of arrays are said to be in a file")
    body, size = (mmap.mmap(room.fileno(), kept, access=mmap.ACCESS_COPY), kept) if kept else (answer, start)
    arrays, at = {}, 0
    for name, kind, shape in header["arrays"]:
        dtype = np.dtype(str(kind))
        if dtype.kind not in "uif" or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError(f"array {name!r} is of {kind!r} and {shape!r}")
        at += -at % ALIGNED
        arrays[str(name)] = np.frombuffer(body, dtype=dtype, count=math.prod(shape), offset=at).reshape(shape)
        at += arrays[str(name)].nbytes
    if at != size:
        raise ValueError(f"{size} bytes of arrays, of which {at} are accounted for")
    return header, arrays


# ---- the server ----------------------------------------------------------------------------------------------------------


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
        message, files, _, _ = socket.recv_fds(self._channel, MESSAGE, 4)
        if not message:
            return False
        request = json.loads(message)
        if (key := _key(request)) not in self._tasks:
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
        self._spare = self._forked(preparation)
        return True

    def _forked(self, preparation: "Preparation") -> tuple[int, socket.socket]:
        """Fork a child that waits for its request; return its number and the socket to send it through."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server, pid = os.getpid(), os.fork()
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
        task.function(file, task.options(**options), lambda *_: None)
    seccomp.warm_up()
    gc.collect()
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
        message, descriptors, _, _ = socket.recv_fds(inlet, MESSAGE, 4)
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


class NoRoomError(Exception):
    """There is no room for an answer."""


class Answering:
    """Writes an answer: arrays, JSON that tells of them, its length and that of all in the pipe.

    With a file for them, the arrays of an answer of more than `MESSAGE` bytes are all in there, as they come.
    """

    def __init__(self, out: BinaryIO, room: int | None = None) -> None:
        self._out, self._room = out, room
        self._listed, self._size, self._kept = list[list[Any]](), 0, 0
        self._waiting = list[bytes]()  # for an answer to be small or large

    def send(self, name: str, array: NDArray[Any]) -> None:
        """Write one array.

        Raises:
            NoRoomError: the file cannot take it.
        """
        gap, data = bytes(-self._size % ALIGNED), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._listed.append([name, array.dtype.str, list(array.shape)])
        self._size += len(gap) + array.nbytes
        if self._room is None:
            self._out.writelines([gap, data])
        elif self._size <= MESSAGE:
            self._waiting += [gap, bytes(data)]
        else:
            self._keep(self._room, [*self._waiting, gap, data])
            self._waiting.clear()

    def end(self, facts: Mapping[str, Any], failure: object = None) -> None:
        """Write the rest; of a failure, no arrays that are not on their way."""
        if failure and self._room is not None:
            self._listed, self._waiting, self._kept = [], [], 0
        text = json.dumps({"facts": facts, "failure": failure, "arrays": self._listed, "kept": self._kept}).encode()
        sent = self._size if self._room is None else sum(map(len, self._waiting))
        lengths = len(text), sent + len(text)
        self._out.writelines([*self._waiting, text, *(length.to_bytes(8, "little") for length in lengths)])

    def _keep(self, room: int, parts: Sequence[bytes | memoryview]) -> None:
        try:
            for part in parts:
                left = memoryview(part)
                while left:
                    count = os.write(room, left)
                    self._kept, left = self._kept + count, left[count:]
        except OSError as error:
            raise NoRoomError(os.strerror(error.errno or 0)) from error


def _answer(task: Task, source: BinaryIO, options: dict[str, Any], answering: Answering) -> None:
    from pipeline.media import MediaError

    facts, failure = {}, None
    try:
        facts = task.function(source, task.options(**options), answering.send)
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
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
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
