"""A name, once visible, holds its whole first bytes for ever."""

import hashlib
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import packing
from packing.errors import StoreError
from packing.store import Store

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

WRITE_UNDER_A_LIMIT = """
import resource, sys
from packing.errors import StoreError
from packing.store import Store

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # from here on the disk is full after 4 KiB of any file
store = Store(sys.argv[1])
try:
    getattr(store, sys.argv[2])("a/big.bin", bytes(1 << 16))
except StoreError as error:
    print(error)
"""

DIE_WHILE_WRITING = """
import os, signal, sys
from packing.store import Store

def blocks():
    yield bytes(1 << 20)
    os.kill(os.getpid(), signal.SIGKILL)

Store(sys.argv[1]).put_stream(lambda sha256: "a/clip.bin", blocks())
"""

RACE = """
import sys
from packing.store import Store

store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(sum(store.put_once(f"a/{i}", f"{sys.argv[2]} {i}".encode() * 1000) for i in range(20)))
"""


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store, once on the disk and once on another fsspec file system."""
    return Store(str(tmp_path) if request.param == "disk" else f"memory://store-{uuid.uuid4().hex}/run")


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_put_once_writes_a_new_name(store: Store) -> None:
    assert store.put_once("a/b.bin", b"first")
    assert store.read("a/b.bin") == b"first"


def test_put_once_refuses_to_replace_and_keeps_the_first_bytes(store: Store) -> None:
    store.put_once("a/b.bin", b"first")
    assert not store.put_once("a/b.bin", b"second")
    assert store.read("a/b.bin") == b"first"


def test_put_stream_names_a_file_by_the_hash_of_its_bytes(store: Store) -> None:
    digest = hashlib.sha256(b"hello world").hexdigest()
    assert store.put_stream(lambda sha256: f"a/{sha256}.bin", [b"hello ", b"world"]) == (True, digest, 11)
    assert store.read(f"a/{digest}.bin") == b"hello world"


def test_put_stream_of_bytes_that_are_there_changes_nothing(store: Store) -> None:
    _, digest, _ = store.put_stream(lambda sha256: sha256, [b"same"])
    assert store.put_stream(lambda sha256: sha256, [b"sa", b"me"]) == (False, digest, 4)


def test_replace_overwrites(store: Store) -> None:
    store.replace("status.json", b"old, and longer")
    store.replace("status.json", b"new")
    assert store.read("status.json") == b"new"


def test_list_names_all_files_below_a_folder_in_order(store: Store) -> None:
    for name in ["a/c/3", "a/2", "a/10", "b/1"]:
        store.put_once(name, b"x")
    assert store.list("a") == ["a/10", "a/2", "a/c/3"]


def test_list_of_a_missing_folder_is_empty(store: Store) -> None:
    assert store.list("nowhere") == []


def test_list_hides_temporary_files_of_writers(store: Store) -> None:
    store.put_once("a/.tmp-1-abc", b"half")
    store.put_once("a/whole", b"whole")
    assert store.list("a") == ["a/whole"]


def test_exists_tells_whether_a_name_is_there(store: Store) -> None:
    store.put_once("a/b", b"x")
    assert store.exists("a/b")
    assert not store.exists("a/c")


@pytest.mark.parametrize(("offset", "size", "expected"), [(0, 2, b"01"), (3, 4, b"3456"), (8, 10, b"89"), (10, 3, b"")])
def test_read_range_gives_the_bytes_from_an_offset_on(store: Store, offset: int, size: int, expected: bytes) -> None:
    store.put_once("digits", b"0123456789")
    assert store.read_range("digits", offset, size) == expected


def test_chunks_together_are_the_file(store: Store) -> None:
    store.put_once("digits", b"0123456789")
    assert list(store.chunks("digits", 4)) == [b"0123", b"4567", b"89"]


@pytest.mark.parametrize(
    "reading",
    [lambda s: s.read("gone.bin"), lambda s: s.read_range("gone.bin", 0, 4), lambda s: list(s.chunks("gone.bin"))],
    ids=["read", "read_range", "chunks"],
)
def test_reading_a_missing_file_is_a_store_error_that_names_it(store: Store, reading: Callable[[Store], object]) -> None:
    with pytest.raises(StoreError, match=r"^cannot read .*gone\.bin.*$"):
        reading(store)


def test_a_put_leaves_no_temporary_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put_once("a", b"x")
    store.put_once("a", b"y")
    store.replace("b", b"z")
    assert {path.name for path in files_in(tmp_path)} == {"a", "b"}


def test_racing_threads_leave_one_winner_and_its_bytes(tmp_path: Path) -> None:
    store, count, rounds = Store(str(tmp_path)), 6, 20
    gate, wins = threading.Barrier(count), [[False] * count for _ in range(rounds)]

    def race(me: int) -> None:
        for turn in range(rounds):
            gate.wait()
            wins[turn][me] = store.put_once(f"a/{turn}", f"{me} ".encode() * 5000)

    threads = [threading.Thread(target=race, args=(me,)) for me in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sum(turn) for turn in wins] == [1] * rounds
    assert [store.read(f"a/{turn}") for turn in range(rounds)] == [f"{won.index(True)} ".encode() * 5000 for won in wins]


def test_racing_processes_write_each_name_once(tmp_path: Path) -> None:
    root = Path(packing.__file__).parents[1]
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": root}
    racers = [subprocess.Popen([*command, str(me)], **pipes) for me in range(3)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    wins = [int(said) for said, _ in _started_together(racers)]
    assert sum(wins) == 20
    assert len(files_in(tmp_path)) == 20
    assert all(len(set(Store(str(tmp_path)).read(f"a/{i}").split(str(i).encode()))) <= 3 for i in range(20))


def _started_together(racers: list["subprocess.Popen[str]"]) -> Iterator[tuple[str, str]]:
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        yield racer.communicate(timeout=60)


def test_a_full_disk_leaves_no_file_and_is_one_line(tmp_path: Path, run_python: RunPython) -> None:
    done = run_python(WRITE_UNDER_A_LIMIT, str(tmp_path), "put_once")
    assert files_in(tmp_path) == []
    assert done.stdout.startswith("cannot write ")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_a_full_disk_during_replace_keeps_the_old_bytes(tmp_path: Path, run_python: RunPython) -> None:
    Store(str(tmp_path)).replace("a/big.bin", b"old")
    done = run_python(WRITE_UNDER_A_LIMIT, str(tmp_path), "replace")
    assert done.stdout.startswith("cannot write ")
    assert [path.read_bytes() for path in files_in(tmp_path)] == [b"old"]


def test_a_killed_writer_leaves_nothing_visible_and_does_not_block_the_next(tmp_path: Path, run_python: RunPython) -> None:
    store = Store(str(tmp_path))
    assert run_python(DIE_WHILE_WRITING, str(tmp_path)).returncode == -9
    assert store.list("") == []
    assert store.put_once("a/clip.bin", b"whole")
    assert store.read("a/clip.bin") == b"whole"


def failing_blocks(error: Exception) -> Iterator[bytes]:
    yield bytes(1 << 16)
    raise error


def test_a_read_error_midway_leaves_no_file_and_is_a_store_error(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(StoreError, match=r"^cannot write .*Input/output error$"):
        store.put_stream(lambda sha256: "a/clip.bin", failing_blocks(OSError(5, "Input/output error")))
    assert files_in(tmp_path) == []


def test_a_bug_midway_leaves_no_file_and_propagates(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        store.put_stream(lambda sha256: "a/clip.bin", failing_blocks(ZeroDivisionError()))
    assert store.list("") == []


def test_a_file_where_a_folder_is_wanted_is_a_store_error(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put_once("a", b"x")
    with pytest.raises(StoreError, match=r"^cannot write .*/a/b: .*$"):
        store.put_once("a/b", b"y")


def test_an_unknown_protocol_is_a_store_error() -> None:
    with pytest.raises(StoreError, match=r"^cannot open nowhere://x: .*$"):
        Store("nowhere://x").list("")


def test_only_a_store_on_the_disk_has_a_local_root(tmp_path: Path) -> None:
    assert Store(f"file://{tmp_path}").local_root == tmp_path
    assert Store("memory://somewhere").local_root is None
