"""What the two ends of the sandbox agree on: what a call may use, how far it has come, and how its failures are called.

Both the job (`sandbox.py`) and the decoder's process (`sandbox_server.py`) import this, and little else comes with it.
"""

import math
import mmap
import os
import struct
from dataclasses import dataclass
from typing import Literal

from pipeline.answers import MESSAGE

Seccomp = Literal["auto", "off", "require"]
SHORT_OF_MEMORY = "decoding needs more memory than is allowed"
TOO_MUCH = "the decoder answers more than such a file can hold"
UNCONFINED = "unconfined"
NO_ROOM = "no_room"
REQUEST = 64 << 10  # bytes that a request has at most
OUT_OF_MEMORY = 3  # how a child ends that cannot even tell so
ANSWERED = 1024  # bytes of an answer for every byte of the file, on top of what a child may hold, are too many
BYTES_PER_S = 20e6  # a file is allowed the time to be read at this speed, on top of everything else


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
