"""Find the input files of a job and freeze them in a plan; open them again for the stages.

A plan part (`plan/000.json`) lists sources with size and etag, sorted by URI and grouped into partitions. It is written once;
sources that appear later go into a new part. Listing reads no file's content: it is hashed when the split stage reads it.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, BinaryIO

import fsspec
import pyarrow.parquet as pq

from packing.errors import ClipmillError, InputError, StoreError
from packing.store import Store
from pipeline.config import InputConfig
from pipeline.records import Partition, Source
from pipeline.tables import from_plain

csv.field_size_limit(1 << 30)  # titles are cut later; one long title must not refuse the table
TABLES = (".csv", ".jsonl", ".parquet")
TEXT_LIMIT = 10_000  # characters of one text field


class SourceError(Exception):
    """A source cannot be opened; `error` is the short name of the reason."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


def find_sources(config: InputConfig) -> list[Source]:
    """List the sources of a config, sorted by URI, each URI once.

    Raises:
        InputError: an input does not exist, lists nothing, or a table has no column that names sources.
    """
    texts = _Texts(config.text)
    found: dict[str, Source] = {}
    for uri in config.uris:
        for root, path, text in _expanded(uri):
            source = _source(path, {**text, **texts.of(path, root)})
            found.setdefault(source.uri, source)
    if not found:
        raise InputError(f"no source in {', '.join(config.uris)}: the folder is empty")
    return [found[uri] for uri in sorted(found)]


def extend_plan(store: Store, sources: Sequence[Source], partition_size: int) -> list[Partition]:
    """Write the sources that no part of the plan has yet as a new part; return the partitions of the whole plan."""
    partitions = read_plan(store)
    known = {source.key for partition in partitions for source in partition.sources}
    new = [source for source in sources if source.key not in known]
    if not new:
        return partitions
    number = len(_plan_parts(store))
    added = [
        Partition(id=f"{number:03d}-{index:05d}", sources=tuple(new[start : start + partition_size]))
        for index, start in enumerate(range(0, len(new), partition_size))
    ]
    body = [asdict(partition) for partition in added]
    whole = {"hash": _body_hash(body), "partitions": body}
    store.put_once(f"plan/{number:03d}.json", json.dumps(whole, indent=1, sort_keys=True).encode())
    return read_plan(store)


def read_plan(store: Store) -> list[Partition]:
    """Read the partitions of all parts of a run's plan, in order.

    Raises:
        StoreError: a part of the plan is damaged.
    """
    return [from_plain(Partition, partition) for name in _plan_parts(store) for partition in _plan_part(store, name)[1]]


def plan_hash(store: Store) -> str:
    """Hash the whole plan of a run, as its parts hash themselves."""
    return hashlib.sha256("".join(_plan_part(store, name)[0] for name in _plan_parts(store)).encode()).hexdigest()


def clean_text(text: str) -> str:
    """Make an untrusted text safe to print and to store: no control characters, NFC, single spaces, of bounded length."""
    spaced = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    plain = "".join(c for c in spaced if unicodedata.category(c) not in ("Cf", "Cs", "Co"))
    return unicodedata.normalize("NFC", " ".join(plain.split()))[:TEXT_LIMIT]


class SourceFiles:
    """Opens sources as plain files of this machine; a remote one is copied to a temporary file, and the last is kept."""

    def __init__(self) -> None:
        self._held: tuple[str, BinaryIO] | None = None

    def open(self, source: Source) -> BinaryIO:
        """Return an open regular file with the source's bytes; it stays open until another source is asked for.

        Raises:
            SourceError: it cannot be read, is no regular file, or is not the file that was planned.
        """
        if self._held is None or self._held[0] != source.key:
            self.close()
            self._held = (source.key, _opened(source))
        return self._held[1]

    def close(self) -> None:
        """Close the held file."""
        if self._held:
            self._held[1].close()
        self._held = None


def _opened(source: Source) -> BinaryIO:
    try:
        fs, path = _place(source.uri)
        file = _local(path) if _is_local(fs) else _copied(fs, path)
    except (OSError, ValueError) as error:
        raise SourceError("io", f"cannot read it: {error}") from error
    size = os.fstat(file.fileno()).st_size
    if size != source.size_bytes:
        file.close()
        raise SourceError("io", f"{size} bytes, where the plan lists {source.size_bytes}")
    return file


def _local(path: str) -> BinaryIO:
    # Non-blocking, so that opening a FIFO returns at once instead of waiting for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise SourceError("not_regular", "not a regular file")
    return os.fdopen(handle, "rb")


def _copied(fs: Any, path: str) -> BinaryIO:
    copy = tempfile.TemporaryFile()  # noqa: SIM115  (its caller closes it)
    with fs.open(path, "rb") as remote:
        shutil.copyfileobj(remote, copy, 1 << 22)
    copy.flush()
    copy.seek(0)
    return copy


def _plan_parts(store: Store) -> list[str]:
    return [name for name in store.list("plan") if name.endswith(".json")]


def _plan_part(store: Store, name: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the hash and the partitions of one part of a plan, checked against each other."""
    try:
        part = json.loads(store.read(name))
        if part["hash"] != _body_hash(part["partitions"]):
            raise ValueError("its hash is not that of its partitions")
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{store.path(name)} is damaged: {error}") from error
    return part["hash"], part["partitions"]


def _body_hash(partitions: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(partitions, sort_keys=True).encode()).hexdigest()


def _place(url: str) -> tuple[Any, str]:
    """Return the file system and path of a URL; in a local path `::` is part of a name and not a chain of URLs."""
    if "://" in url.removeprefix("file://"):
        place: tuple[Any, str] = fsspec.core.url_to_fs(url)
        return place
    fs = fsspec.filesystem("file")
    return fs, fs._strip_protocol(url)


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _expanded(uri: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (root, path, texts) for every file that one input names; root is the folder that relative names start at."""
    with _missing(uri):
        fs, path = _place(uri)
        if any(mark in path for mark in "*?[") and not fs.exists(path):
            found = [name for name in fs.glob(path) if not fs.isdir(name)]
            if not found:
                raise InputError(f"no file matches {uri}")
            root = re.split(r"/[^/]*[*?[]", path, maxsplit=1)[0]
            yield from ((root, fs.unstrip_protocol(name), {}) for name in found)
        elif fs.isdir(path):
            yield from ((path, fs.unstrip_protocol(name), {}) for name in fs.find(path) if not _hidden(name, path))
        elif fs.exists(path) and path.lower().endswith(TABLES):
            yield from _table_sources(uri, path.rsplit("/", 1)[0])
        elif fs.exists(path):
            yield path.rsplit("/", 1)[0], fs.unstrip_protocol(path), {}
        else:
            raise InputError(f"no such input: {uri}")


def _table_sources(uri: str, root: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    for row in _read_table(uri):
        if "uri" not in row:
            raise InputError(f"{uri} has no column `uri`; its columns are {', '.join(row)}")
        target = row.pop("uri")
        absolute = target if "://" in target or target.startswith("/") else f"{root}/{target}"
        fs, path = _place(absolute)
        yield root, fs.unstrip_protocol(path), row


def _source(url: str, text: dict[str, str]) -> Source:
    fs, path = _place(url)
    uri = path if _is_local(fs) else url
    try:
        info = fs.info(path)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        info = {}  # a listed file that is not there is a source with a fate, not the end of the job
    size = int(info.get("size") or 0)
    etag = str(info.get("ETag") or info.get("etag") or info.get("mtime") or "")
    key = hashlib.sha256(f"{uri}\n{size}\n{etag}".encode(errors="surrogatepass")).hexdigest()[:32]
    texts = {name: clean for name, value in sorted(text.items()) if (clean := clean_text(value))}
    return Source(key=key, uri=uri, size_bytes=size, etag=etag, text=texts)


class _Texts:
    """Texts for sources from a table, looked up by URI or by path below the input's root."""

    def __init__(self, uri: str | None) -> None:
        self._of: dict[str, dict[str, str]] = {}
        for row in _read_table(uri) if uri else ():
            names = [column for column in ("uri", "file") if column in row]
            if not names:
                raise InputError(f"input.text {uri} has neither a column `uri` nor `file`; it has {', '.join(row)}")
            self._of[row[names[0]]] = {column: value for column, value in row.items() if column not in ("uri", "file")}

    def of(self, url: str, root: str) -> dict[str, str]:
        path = _place(url)[1]
        for name in (url, path, path.removeprefix(f"{root}/")):
            if name in self._of:
                return self._of[name]
        return {}


def _read_table(uri: str) -> Iterable[dict[str, str]]:
    """Read the rows of a csv, jsonl or parquet table as texts by column."""
    if not uri.lower().endswith(TABLES):
        raise InputError(f"{uri} is not a table: csv, jsonl and parquet are")
    with _missing(uri):
        data = fsspec.core.url_to_fs(uri)[0].cat_file(fsspec.core.url_to_fs(uri)[1])
    try:
        if uri.lower().endswith(".parquet"):
            rows = pq.read_table(io.BytesIO(data)).to_pylist()
        elif uri.lower().endswith(".jsonl"):
            rows = [json.loads(line) for line in data.decode("utf-8", errors="replace").splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is not an object")
        else:
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig", errors="replace"))))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{uri} is not a readable table: {error}") from error
    return [{str(k): str(v) for k, v in row.items() if k is not None and v is not None} for row in rows]


@contextlib.contextmanager
def _missing(uri: str) -> Iterator[None]:
    try:
        yield
    except ClipmillError:
        raise
    except Exception as error:  # every file system raises its own kinds (no credentials, no bucket …)
        raise InputError(f"cannot read {uri}: {error}") from error


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith(".") for part in path.removeprefix(root).split("/"))
