"""A system-call filter for the decoder's child: what a decoder never needs is refused by the kernel.

Runs in the decoder's process. No socket, no other program, no other process, no name of a file: after `confine` a decoder that
was taken over can compute and answer, and nothing else. The filter is a BPF program made here, applied with `prctl` (Linux
3.17, x86_64 and aarch64); it only adds to the limits, since a decoder may run where the kernel offers none.

Layout of what the kernel shows a filter (`struct seccomp_data`): number, architecture, instruction pointer, six arguments.
"""

import ctypes
import errno
import functools
import os
import platform
import struct
from collections.abc import Iterable

# linux/filter.h, linux/seccomp.h, linux/prctl.h
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER, PARENT_DEATH_SIGNAL = 38, 22, 2, 1
NEW_THREAD = 0x00010000  # CLONE_THREAD
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
ANYONE = 0xFFFFFFFF  # in place of a process's number, which no process has
X32 = 0x40000000  # a second set of numbers for the same calls on x86_64
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: numbers on x86_64 and aarch64, None where it has none (asm/unistd_64.h, asm-generic/unistd.h)
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # network
    "socket": (41, 198),
    "socketpair": (53, 199),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "connect": (42, 203),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    # other programs and processes
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "setns": (308, 268),
    "unshare": (272, 97),
    # names of files
    "creat": (85, None),
    "truncate": (76, 45),
    "ftruncate": (77, 46),  # whoever reads a file that becomes shorter under a mapping dies of it
    "fallocate": (285, 47),
    "ioctl": (16, 29),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    # the kernel itself
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "personality": (135, 92),
    "settimeofday": (164, 170),
    "sethostname": (170, 161),
}
OPEN, OPENAT, OPENAT2 = (2, None), (257, 56), (437, 437)
CLONE, CLONE3, TGKILL, PRLIMIT = (56, 220), (435, 435), (234, 131), (302, 261)


def confine(*, may_read_files: bool) -> bool:
    """Refuse this process, from now on, every call that a decoder never needs; tell whether the kernel agreed.

    Args:
        may_read_files: whether files may still be opened for reading, as decord does with the file that it is given.
    """
    ready = _ready(may_read_files)
    if not ready:
        return False
    ready.set_process(os.getpid())
    return bool(_prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and _prctl(SET_SECCOMP, FILTER, ready.head, 0, 0) == 0)


def warm_up() -> None:
    """Have what `confine` needs at hand before a process forks: to make it costs a child more than to use it."""
    for may_read_files in (False, True):
        _ready(may_read_files)


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent dies."""
    _prctl(PARENT_DEATH_SIGNAL, signal_number, 0, 0, 0)


_prctl = ctypes.CDLL(None).prctl


def filter_program(machine: str, pid: int, *, may_read_files: bool) -> bytes:
    """Assemble the filter for a machine and one process, 8 bytes an instruction."""
    program = _Program(machine, may_read_files)
    program.set_process(pid)
    return program.code.raw


class _Program:
    """A filter in memory, ready to be applied once it is told the number of its process; `head` is what leads to it."""

    def __init__(self, machine: str, may_read_files: bool) -> None:
        template = _template(machine, may_read_files)
        self._number_at = template.index(_unless(JUMP_EQUAL, ANYONE, errno.EPERM)[0]) + 4
        self.code = ctypes.create_string_buffer(template, len(template))
        head = struct.pack("HxxxxxxP", len(template) // 8, ctypes.addressof(self.code))
        self.head = ctypes.create_string_buffer(head, len(head))

    def set_process(self, pid: int) -> None:
        struct.pack_into("I", self.code, self._number_at, pid)


@functools.cache
def _ready(may_read_files: bool) -> _Program | None:
    machine = platform.machine()
    return _Program(machine, may_read_files) if machine in ARCHITECTURES else None


def _template(machine: str, may_read_files: bool) -> bytes:
    """Assemble the filter for no process yet: `ANYONE` stands for its number."""
    column = list(ARCHITECTURES).index(machine)
    found = [numbers[column] for numbers in REFUSED.values()]
    refused = [number for number in found if number is not None]
    opening = [(number, at) for number, at in ((OPEN[column], 1), (OPENAT[column], 2)) if number is not None]
    code = [
        # Another architecture has other numbers: everything of it is refused.
        _load(ARCHITECTURE),
        *_unless(JUMP_EQUAL, ARCHITECTURES[machine], errno.EPERM),
        _load(NUMBER),
        *(_when(JUMP_AT_LEAST, X32, errno.EPERM) if machine == "x86_64" else ()),
        *(line for number in refused for line in _when(JUMP_EQUAL, number, errno.EPERM)),
        # Its flags lie in memory, where a filter cannot look; without it, the C library falls back on clone and openat.
        *_when(JUMP_EQUAL, CLONE3[column], errno.ENOSYS),
        *_when(JUMP_EQUAL, OPENAT2[column], errno.ENOSYS),
        *_only(CLONE[column], 0, _unless(JUMP_ANY_BIT, NEW_THREAD, errno.EPERM)),
        *_only(TGKILL[column], 0, _unless(JUMP_EQUAL, ANYONE, errno.EPERM)),
        *_only(PRLIMIT[column], 0, _unless(JUMP_EQUAL, 0, errno.EPERM)),
    ]
    for number, at in opening:
        flags = _when(JUMP_ANY_BIT, WRITES, errno.EPERM)
        code += _only(number, at, flags) if may_read_files else _when(JUMP_EQUAL, number, errno.EPERM)
    return b"".join([*code, _line(RETURN, 0, 0, ALLOW)])


def _line(operation: int, when: int, otherwise: int, value: int) -> bytes:
    """Assemble one instruction: what it does, lines to skip when it holds and when not, and its operand."""
    return struct.pack("HBBI", operation, when, otherwise, value)


def _load(offset: int) -> bytes:
    return _line(LOAD, 0, 0, offset)


def _when(comparison: int, value: int, error: int) -> list[bytes]:
    return [_line(comparison, 0, 1, value), _line(RETURN, 0, 0, REFUSE | error)]


def _unless(comparison: int, value: int, error: int) -> list[bytes]:
    return [_line(comparison, 1, 0, value), _line(RETURN, 0, 0, REFUSE | error)]


def _only(number: int, argument: int, check: Iterable[bytes]) -> list[bytes]:
    """Check an argument of one call (its low half, which holds flags and process ids), then go on with the number."""
    body = [_load(ARGUMENTS + 8 * argument), *check, _load(NUMBER)]
    return [_line(JUMP_EQUAL, 0, len(body), number), *body]
