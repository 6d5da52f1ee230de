"""Prepare the next items of a known plan in background threads, into memory that is used again and again.

Invariant: items come in the order of the plan and an error comes in the place of its item; memory is used again only when
nothing refers to it any more. Cost: `depth` threads, and the memory of at most `depth` + 2 items.
"""

import mmap
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

K = TypeVar("K")
V = TypeVar("V")
Buffer = mmap.mmap | NDArray[np.uint8]
GRAIN = 2 << 20  # bytes of a huge page: large buffers are of whole ones, so that items of like sizes fit each other's


def read_ahead(plan: Iterable[K], prepare: Callable[[K], V], depth: int) -> Generator[V, None, None]:
    """Yield `prepare(item)` for each item of `plan`, while threads prepare the `depth` items that follow.

    `plan` is iterated over in the caller's thread. With a depth of 0 there are no threads. The threads end with the iterator:
    when it is exhausted, closed, forgotten, or has raised.
    """
    if depth == 0:
        yield from map(prepare, plan)
        return
    items = iter(plan)
    pool = ThreadPoolExecutor(depth, thread_name_prefix="read-ahead")
    waiting: deque[Future[V]] = deque()
    try:
        waiting.extend(pool.submit(prepare, item) for item in islice(items, depth))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(prepare, item) for item in islice(items, 1))
            yield done
            del done  # or its memory would not be free while the next item is waited for
    finally:
        pool.shutdown(cancel_futures=True)


class BufferPool:
    """Page-aligned memory that is handed out again once no array or tensor refers to it.

    New memory costs more than what is read into it: the kernel clears it page by page.

    Args:
        spares: the most unused buffers that are kept.
        pinned: page-locked, where there is CUDA.
    """

    def __init__(self, spares: int, *, pinned: bool = False) -> None:
        self._spares: deque[Buffer] = deque(maxlen=spares)
        self._new = _new_pinned if pinned and torch.cuda.is_available() else _new_buffer

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes, uint8 [size], of any content; they are the caller's as long as anything refers to them."""
        spare = self._spare(size)
        buffer = self._new(size) if spare is None else spare
        memory = np.frombuffer(buffer, dtype=np.uint8)
        # Views of the array and tensors made from it hold on to the array itself, so it dies with the last of them.
        weakref.finalize(memory, self._spares.append, buffer).atexit = False
        return memory[:size]

    def _spare(self, size: int) -> Buffer | None:
        for _ in range(len(self._spares)):
            try:
                buffer = self._spares.pop()  # the last one that came back is the one most likely to be in the cache
            except IndexError:  # another thread was faster
                return None
            if size <= len(buffer) <= 2 * size + mmap.PAGESIZE:
                return buffer
            self._spares.appendleft(buffer)
        return None


def _new_pinned(size: int) -> Buffer:
    return torch.empty(max(1, size), dtype=torch.uint8, pin_memory=True).numpy()


def _new_buffer(size: int) -> Buffer:
    if size < GRAIN:  # a huge page would be mostly empty
        return mmap.mmap(-1, max(1, size))
    buffer = mmap.mmap(-1, -(-size // GRAIN) * GRAIN)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer
