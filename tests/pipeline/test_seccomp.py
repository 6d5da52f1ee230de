"""The filter of system calls: what a decoder never needs is refused, on both architectures, and nothing else."""

import errno
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.seccomp import ARCHITECTURES, REFUSED, filter_program

ROOT = Path(__file__).parents[2]
ALLOWED, PID = 0x7FFF0000, 4711
# read, write, close, mmap, brk or munmap, futex, exit_group, lseek
HARMLESS = {"x86_64": (0, 1, 3, 9, 12, 202, 231, 8), "aarch64": (63, 64, 57, 222, 215, 98, 94, 62)}
NUMBERS = {
    "x86_64": {"open": 2, "openat": 257, "openat2": 437, "clone": 56, "clone3": 435, "tgkill": 234, "prlimit": 302},
    "aarch64": {"openat": 56, "openat2": 437, "clone": 220, "clone3": 435, "tgkill": 131, "prlimit": 261},
}

TRIES = """
import json, os, signal, socket, subprocess, sys, threading
from pipeline import seccomp

reading = sys.argv[1] == "reading"
before = os.open(sys.argv[2], os.O_RDWR)
if not seccomp.confine(may_read_files=reading):
    print(json.dumps(None))
    sys.exit()

def refused(call):
    try:
        call()
    except OSError:
        return True
    return False

thread = threading.Thread(target=len, args=("",))
thread.start()
thread.join()
print(json.dumps({
    "socket": refused(socket.socket),
    "program": refused(lambda: os.execv("/bin/true", ["true"])),
    "process": refused(os.fork),
    "kill": refused(lambda: os.kill(os.getppid(), 0)),
    "write": refused(lambda: os.open(sys.argv[2], os.O_WRONLY)),
    "create": refused(lambda: os.open(sys.argv[2] + ".new", os.O_CREAT | os.O_WRONLY)),
    "remove": refused(lambda: os.unlink(sys.argv[2])),
    "shorten": refused(lambda: os.ftruncate(before, 3)),
    "allocate": refused(lambda: os.posix_fallocate(before, 0, 9)),
    "read": refused(lambda: os.open(sys.argv[2], os.O_RDONLY)),
    "read what is open": refused(lambda: os.read(before, 1)),
}))
"""


def verdict(program: bytes, machine: str, number: int, *arguments: int) -> int:
    """What the kernel would make of a call: run the filter's few instructions."""
    data = struct.pack("<iIQ6Q", number, ARCHITECTURES[machine], 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    lines = list(struct.iter_unpack("HBBI", program))
    at = held = 0
    while True:
        operation, when, otherwise, value = lines[at]
        at += 1
        if operation == 0x20:
            (held,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            holds = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[operation]
            at += when if holds else otherwise


def refusal(error: int) -> int:
    return 0x00050000 | error


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_listed_calls_are_refused_and_harmless_ones_are_not(machine: str) -> None:
    program = filter_program(machine, PID, may_read_files=True)
    column = list(ARCHITECTURES).index(machine)
    for name, numbers in REFUSED.items():
        number = numbers[column]
        assert number is None or verdict(program, machine, number) == refusal(errno.EPERM), name
    assert all(verdict(program, machine, number) == ALLOWED for number in HARMLESS[machine])


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_threads_may_start_and_processes_may_not(machine: str) -> None:
    program, numbers = filter_program(machine, PID, may_read_files=True), NUMBERS[machine]
    assert verdict(program, machine, numbers["clone"], 0x003D0F00) == ALLOWED  # as pthread_create does
    assert verdict(program, machine, numbers["clone"], 0x01200011) == refusal(errno.EPERM)  # as fork does
    assert verdict(program, machine, numbers["clone3"]) == refusal(errno.ENOSYS)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_only_its_own_threads_may_be_signalled_and_limited(machine: str) -> None:
    program, numbers = filter_program(machine, PID, may_read_files=True), NUMBERS[machine]
    assert verdict(program, machine, numbers["tgkill"], PID) == ALLOWED
    assert verdict(program, machine, numbers["tgkill"], PID + 1) == refusal(errno.EPERM)
    assert verdict(program, machine, numbers["prlimit"], 0) == ALLOWED
    assert verdict(program, machine, numbers["prlimit"], 1) == refusal(errno.EPERM)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("flags", [0, 1, 2, 0o100, 0o1000, 0o2000000])
def test_files_are_opened_for_reading_or_not_at_all(machine: str, flags: int) -> None:
    number = NUMBERS[machine]["openat"]
    reading, closed = (filter_program(machine, PID, may_read_files=may) for may in (True, False))
    allowed = ALLOWED if flags in (0, 0o2000000) else refusal(errno.EPERM)
    assert verdict(reading, machine, number, 0, 0, flags) == allowed
    assert verdict(closed, machine, number, 0, 0, flags) == refusal(errno.EPERM)


def test_calls_of_another_architecture_are_refused() -> None:
    program = filter_program("aarch64", PID, may_read_files=True)
    assert verdict(program, "x86_64", 0) == refusal(errno.EPERM)
    assert verdict(filter_program("x86_64", PID, may_read_files=True), "x86_64", 0x40000000) == refusal(errno.EPERM)


@pytest.mark.parametrize("how", ["reading", "closed"])
def test_a_confined_process_can_compute_and_nothing_else(tmp_path: Path, how: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    command = [sys.executable, "-c", TRIES, how, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    refused = json.loads(done.stdout)
    if refused is None:
        pytest.skip("this kernel does not filter system calls")
    assert not refused.pop("read what is open")
    assert refused.pop("read") == (how == "closed")
    assert all(refused.values()), refused
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"content"
