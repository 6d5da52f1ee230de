"""The heap of a fork server: what is free in it is used up, so that children begin on new memory."""

import json
import os
import platform
import subprocess
import sys
from typing import Any

import pytest

from pipeline import heap
from pipeline.sandbox import MALLOC

of_gnu = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")

# Frees every second of many blocks, uses the heap up or does not, and tells which blocks are given out again.
PROGRAM = """
import ctypes, json, sys
from pipeline import heap

library = ctypes.CDLL(None)
library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_size_t
library.free.argtypes, library.free.restype = [ctypes.c_size_t], None
BLOCK = int(sys.argv[2])
blocks = [library.malloc(BLOCK) for _ in range(600)]
for block in blocks[::2]:
    library.free(block)
if sys.argv[1] == "use":
    heap.use_up()
got = [library.malloc(3 * heap.OWN // 2) for _ in range(3)] + [library.malloc(BLOCK) for _ in range(20)]
print(json.dumps({"freed": blocks[::2], "got": got, "huge": heap.HUGE, "page": heap.PAGE + heap.HEADER}))
"""


def told(what: str, size: int) -> dict[str, Any]:
    # Not the folder of the caller: threads of this test run would have heaps of their own.
    environment = {**os.environ, "GLIBC_TUNABLES": MALLOC, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what, str(size)], env=environment, capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@of_gnu
@pytest.mark.parametrize("size", [100, 3_000, 100_000])
def test_nothing_that_was_freed_before_is_given_out_again(size: int) -> None:
    before, after = told("leave", size), told("use", size)
    assert set(before["freed"]) & set(before["got"])
    assert not set(after["freed"]) & set(after["got"])


@of_gnu
def test_large_blocks_begin_where_a_huge_page_does() -> None:
    answer = told("use", 100_000)
    first, huge, page = (answer[name] for name in ("got", "huge", "page"))
    assert -first[0] % huge <= page


def test_with_another_library_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    heap.use_up()
