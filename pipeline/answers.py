"""The answer of a decoder's child: written there array by array, taken apart here, where nothing of it is believed.

    arrays, one after the other ── JSON that tells of them ── length of the JSON, length of all before the lengths

With a file for them, the arrays of a large answer are in that file, and the pipe carries the rest.
"""

import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
Answer = bytearray | mmap.mmap
MESSAGE = 1 << 20  # bytes of arrays; an answer of more is large
TAIL = 16  # bytes at the end of an answer: the two lengths
ALIGNED = 8  # an array begins at a multiple of so many bytes


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


def is_complete(tail: bytes | bytearray, length: int) -> bool:
    """Tell whether an answer is whole as its last bytes say, so that nobody need wait for how its child ends."""
    return length > TAIL and int.from_bytes(tail[-8:], "little") == length - TAIL


def unpacked(answer: Answer, room: IO[bytes]) -> tuple[dict[str, Any], Arrays]:
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
