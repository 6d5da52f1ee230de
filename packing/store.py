"""The one door to a run's files: every read and every write goes through a `Store`, on a local disk or any fsspec URL.

Invariant: a name, once visible, holds its whole bytes for ever. `put_once` writes a temporary file, fsyncs it, links it under
its name (a link refuses to replace) and fsyncs the folder; an object store gets a conditional put. The first writer wins, so
work done twice is harmless. Only `replace` overwrites, and only views that can be made again (status, resolved config) use it.
Cost: two fsyncs a file.
"""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from packing.errors import StoreError


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of an opened file.

    `fill(at, into)` reads from byte `at` of the stretch on into all of the uint8 array `into` and returns how many bytes came:
    fewer only where the file ends. `version` changes when somebody writes or replaces the file; None when that cannot be told.
    """

    fill: Callable[[int, NDArray[np.uint8]], int]
    version: tuple[int, ...] | None


@dataclass(frozen=True)
class Store:
    """A folder or bucket prefix, addressed by names relative to it with forward slashes."""

    url: str

    @cached_property
    def _place(self) -> tuple[Any, str]:
        try:
            fs, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise StoreError(f"cannot open {self.url}: {error}") from error
        return fs, root.rstrip("/")

    @cached_property
    def local_root(self) -> Path | None:
        """The folder on this machine's disk, or None when the store is remote."""
        fs, root = self._place
        return Path(root) if "file" in _protocols(fs) else None

    def path(self, name: str) -> str:
        """Return the path of `name` as the file system of this store spells it."""
        return f"{self._place[1]}/{name}"

    def exists(self, name: str) -> bool:
        """Tell whether `name` is there, whole."""
        with _refusals("look for", self.path(name)):
            self._place[0].invalidate_cache()
            return bool(self._place[0].exists(self.path(name)))

    def read(self, name: str) -> bytes:
        """Read all bytes of `name`."""
        with _refusals("read", self.path(name)):
            return bytes(self._place[0].cat_file(self.path(name)))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Read `size` bytes of `name` from byte `offset` on."""
        with _refusals("read", self.path(name)):
            return bytes(self._place[0].cat_file(self.path(name), start=offset, end=offset + size))

    @contextlib.contextmanager
    def span(self, name: str, offset: int, size: int) -> Iterator[Span]:
        """Open `size` bytes of `name` from byte `offset` on, to be read piece by piece straight into memory of the caller.

        A local file is read with `preadv`, without a copy in between; a remote one is fetched in one ranged read.
        """
        with _refusals("read", self.path(name)):
            if self.local_root is None:
                data = self._place[0].cat_file(self.path(name), start=offset, end=offset + size)
                yield Span(fill=partial(_fill_from, np.frombuffer(data, dtype=np.uint8)), version=None)
                return
            handle = os.open(self.path(name), os.O_RDONLY)
            try:
                facts = os.fstat(handle)
                version = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
                yield Span(fill=partial(_fill_local, handle, offset), version=version)
            finally:
                os.close(handle)

    def chunks(self, name: str, size: int = 1 << 22) -> Iterator[bytes]:
        """Read `name` piece by piece, `size` bytes at a time."""
        with _refusals("read", self.path(name)), self._place[0].open(self.path(name), "rb") as file:
            while block := file.read(size):
                yield block

    def sha256(self, name: str) -> str:
        """Hash all bytes of `name`, in hex."""
        digest = hashlib.sha256()
        for block in self.chunks(name):
            digest.update(block)
        return digest.hexdigest()

    def list(self, folder: str) -> list[str]:
        """Name all files under `folder`, sorted; temporary files of writers are not among them."""
        fs, root = self._place
        with _refusals("list", self.path(folder)):
            fs.invalidate_cache()
            found = fs.find(self.path(folder)) if fs.isdir(self.path(folder)) else []
        names = (path[len(root) + 1 :] for path in found)
        return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith("."))

    def put_once(self, name: str, data: bytes) -> bool:
        """Write `name` unless it is there already; tell whether this call wrote it."""
        with _refusals("write", self.path(name)):
            return self._put(lambda _: name, [data])[0]

    def put_stream(self, name_of: Callable[[str], str], blocks: Iterable[bytes]) -> tuple[bool, str, int]:
        """Write `blocks` under the name that `name_of(sha256 hex)` gives, unless it is there already.

        Returns:
            Whether this call wrote the file, its sha256 in hex, and its size in bytes.
        """
        with _refusals("write", self.url):
            return self._put(name_of, blocks)

    def replace(self, name: str, data: bytes) -> None:
        """Write a view that can be made again, over an older one; readers see either the old or the new bytes."""
        with _refusals("write", self.path(name)):
            if self.local_root is None:
                self._place[0].pipe_file(self.path(name), data)
                return
            target = self.local_root / name
            temporary, _, _ = _written(target.parent, [data])
            os.replace(temporary, target)

    def _put(self, name_of: Callable[[str], str], blocks: Iterable[bytes]) -> tuple[bool, str, int]:
        return self._put_local(name_of, blocks) if self.local_root else self._put_remote(name_of, blocks)

    def _put_local(self, name_of: Callable[[str], str], blocks: Iterable[bytes]) -> tuple[bool, str, int]:
        assert self.local_root is not None
        # The name may depend on the bytes, its folder may not: the temporary file must lie on the same disk as its link.
        folder = (self.local_root / name_of("0" * 64)).parent
        temporary, digest, size = _written(folder, blocks)
        try:
            return _link(temporary, self.local_root / name_of(digest)), digest, size
        finally:
            temporary.unlink(missing_ok=True)

    def _put_remote(self, name_of: Callable[[str], str], blocks: Iterable[bytes]) -> tuple[bool, str, int]:
        data = b"".join(blocks)
        digest = hashlib.sha256(data).hexdigest()
        try:
            self._place[0].pipe_file(self.path(name_of(digest)), data, mode="create")
        except FileExistsError:
            return False, digest, len(data)
        return True, digest, len(data)


def _fill_from(data: NDArray[np.uint8], at: int, into: NDArray[np.uint8]) -> int:
    piece = data[at : at + into.size]
    into[: piece.size] = piece
    return piece.size


def _fill_local(handle: int, offset: int, at: int, into: NDArray[np.uint8]) -> int:
    done = 0
    # One call reads at most 2 GiB, and a network disk may give less than was asked for.
    while done < into.size and (count := os.preadv(handle, [into[done:].data], offset + at + done)):
        done += count
    return done


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _written(folder: Path, blocks: Iterable[bytes]) -> tuple[Path, str, int]:
    """Write a temporary file in `folder`, fsynced; a failure leaves nothing of it."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".tmp-{os.getpid()}-{secrets.token_hex(6)}"
    digest, size = hashlib.sha256(), 0
    try:
        with open(temporary, "xb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
                size += len(block)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary, digest.hexdigest(), size


def _link(temporary: Path, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        # Some network disks have no hard links: a rename is atomic too, and what it could replace has the same bytes.
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS) or target.exists():
            raise
        os.rename(temporary, target)
    _sync_folder(target.parent)
    return True


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _refusals(verb: str, place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {verb} {place}: {error.strerror or error}") from error
