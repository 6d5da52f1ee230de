"""Read rows of `packed-v1` shards by their place: index in, checked tensors out, with no copy but the one into memory.

Invariant: nothing of a row is used before its crc32c has been checked, once for each version of its file. A damaged, swapped or
missing shard is refused by name. Cost: one stretch of the shard a row.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packing.cost import CostModel, dit_cost
from packing.errors import ShardError, StoreError
from packing.manifest import ShardEntry
from packing.store import Span, Store

COST = dit_cost()
USUAL_HEADER = 4096  # bytes; that of a row's six tensors takes about 500
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

Place = Callable[[str, int], NDArray[np.uint8] | None]
Checked = dict[tuple[str, tuple[int, ...]], set[int]]


@dataclass(frozen=True, kw_only=True)
class RowIndex:
    """Where one row lies in its shard and what is in it; offsets and sizes in bytes, `crc32c` over both members' data.

    `grids` are those of whole clips. A row of which tokens were dropped tells in `kept` how many of each clip it holds.
    """

    key: str
    json_offset: int
    json_size: int
    offset: int
    size: int
    crc32c: int
    clip_ids: Sequence[str]
    grids: Sequence[tuple[int, int, int]]
    captions: Sequence[str]
    duration_s: float
    kept: Sequence[int] | None = None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each segment, as many as are in the row."""
        return self.whole_lengths if self.kept is None else np.array(self.kept, dtype=np.int64)

    @property
    def whole_lengths(self) -> NDArray[np.int64]:
        """Tokens of each segment before any were dropped."""
        return np.array([t * h * w for t, h, w in self.grids], dtype=np.int64)

    @property
    def cost(self) -> float:
        """Relative compute of the row (`packing.cost.dit_cost`), in tokens' worth of linear layers."""
        return float(COST.clip_costs(self.lengths).sum()) + COST.row


def row_costs(rows: Sequence[RowIndex], cost: CostModel | None = None) -> NDArray[np.float64]:
    """Return what each row costs by a model, `dit_cost()` without one."""
    if cost is None:
        return np.array([row.cost for row in rows])
    return np.array([float(cost.clip_costs(row.lengths).sum()) + cost.row for row in rows])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as it lies on disk: tensors by name and the facts of each segment."""

    tensors: Mapping[str, Tensor]
    segments: Sequence[Mapping[str, Any]]


def read_index(store: Store, entry: ShardEntry) -> list[RowIndex]:
    """Read the index of one shard, checked against the manifest.

    Raises:
        ShardError: the index is missing or is not the one that the manifest names.
    """
    if not store.exists(entry.index):
        raise ShardError(f"{store.path(entry.index)} is missing")
    data = store.read(entry.index)
    if hashlib.sha256(data).hexdigest() != entry.index_sha256:
        raise ShardError(f"{store.path(entry.index)} is not the index that the manifest names (sha256 differs)")
    try:
        rows = json.loads(data)["rows"]
        return [RowIndex(**{**row, "grids": [tuple(grid) for grid in row["grids"]]}) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{store.path(entry.index)} is not an index that this version reads: {error}") from error


def read_row(
    store: Store, entry: ShardEntry, row: RowIndex, *, place: Place | None = None, checked: Checked | None = None
) -> Row:
    """Read one row by its place in the shard, checked by its crc32c.

    Args:
        store: where the shards are.
        entry: the shard.
        row: the row.
        place: gives the memory for each tensor by name and size in bytes, in the order of the file, or None for new memory.
            The tensors of the row are views of it.
        checked: rows that need no second check, which this call adds to. A row is checked again when its file has changed
            since, or when the store cannot tell; without `checked`, always.

    Raises:
        ShardError: the shard is missing, short, or damaged at this row.
    """
    start = row.json_offset
    try:
        with store.span(entry.name, start, row.offset + row.size - start) as span:
            known = _known(checked, entry, span)
            done = _read_span(span, row, place or (lambda name, size: None), check=start not in known)
    except _DamageError as error:
        raise ShardError(f"{store.path(entry.name)} is damaged at row {row.key} ({error})") from error
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ShardError(f"{store.path(entry.name)} is missing") from error
        raise
    known.add(start)
    return done


def kept_misfit(row: Row, index: RowIndex) -> str:
    """Tell what is wrong with the kept tokens of a row that holds as many tokens as its index says; "" when nothing is.

    Of each clip there are as many as the index and `cu_seqlens` say, at least one, ascending, all in the clip's grid.
    """
    kept = row.tensors.get("kept")
    if kept is None and index.kept is None:
        return ""
    if kept is None or index.kept is None:
        return f"{'its index' if index.kept is None else 'it'} does not tell which tokens are kept, the other does"
    counts, sizes = index.lengths, index.whole_lengths
    found = kept.dtype, tuple(kept.shape), row.tensors["cu_seqlens"].diff().tolist()
    if found != (torch.int32, (int(counts.sum()),), counts.tolist()) or len(counts) != len(sizes) or counts.min(initial=1) < 1:
        return f"its kept tokens are {found[0]} {list(found[1])} in segments of {found[2]}, its index says {counts.tolist()}"
    numbers = kept.numpy()
    # Numbered through all whole clips, they ascend over the whole row.
    places = numbers + np.repeat(np.cumsum(sizes) - sizes, counts)
    wrong = (numbers < 0) | (numbers >= np.repeat(sizes, counts))
    wrong[1:] |= places[1:] <= places[:-1]
    if not wrong.any():
        return ""
    clip = int(np.searchsorted(np.cumsum(counts), wrong.argmax(), side="right"))
    return f"the kept tokens of clip {index.clip_ids[clip]} do not ascend within its grid"


def _known(checked: Checked | None, entry: ShardEntry, span: Span) -> set[int]:
    """Return where the rows begin that this version of a shard had checked, as a set to add to."""
    return set() if checked is None or span.version is None else checked.setdefault((entry.name, span.version), set())


def _read_span(span: Span, row: RowIndex, place: Place, *, check: bool) -> Row:
    """Read the two members of a row from the stretch of the shard that holds them; raises _DamageError."""
    head, first = _read_head(span, row)
    facts, header = head[: row.json_size], head[row.offset - row.json_offset : first]
    crc = google_crc32c.extend(google_crc32c.value(facts), header)
    tensors: dict[str, Tensor] = {}
    for part in _parts(header.tobytes(), row.size):
        begin, end = first + part.begin, first + part.end
        memory = place(part.name, end - begin)
        if memory is None and end <= head.size:
            memory = head[begin:end]
        else:
            memory = _new_memory(end - begin) if memory is None else memory
            _fill(span, begin, memory, end - begin)
        crc = google_crc32c.extend(crc, memory) if check else crc
        tensors[part.name] = as_tensor(memory, part.dtype, part.shape)
    if check and crc != row.crc32c:
        raise _DamageError("crc32c differs")
    return Row(tensors=tensors, segments=json.loads(facts.tobytes())["segments"])


def _read_head(span: Span, row: RowIndex) -> tuple[NDArray[np.uint8], int]:
    """Read the JSON of a row and the header of its tensors, with some bytes that follow; tell where the header ends."""
    start = row.offset - row.json_offset
    head = np.empty(start + min(row.size, USUAL_HEADER), dtype=np.uint8)
    _fill(span, 0, head, head.size)
    end = start + 8 + int.from_bytes(head[start : start + 8].tobytes(), "little")
    if end > start + row.size:
        raise _DamageError("crc32c differs: its header is longer than its data")
    if end > head.size:
        head = np.empty(end, dtype=np.uint8)
        _fill(span, 0, head, end)
    return head, end


def _fill(span: Span, at: int, into: NDArray[np.uint8], size: int) -> None:
    if into.size != size or span.fill(at, into) != size:
        raise _DamageError("it is cut short, or longer than its index says")


class _Part(NamedTuple):
    """One tensor of a safetensors file: bytes `begin` to `end` after the header."""

    name: str
    dtype: torch.dtype
    shape: Sequence[int]
    begin: int
    end: int


@lru_cache(maxsize=4096)
def _parts(header: bytes, size: int) -> Sequence[_Part]:
    """List the tensors of a safetensors file of `size` bytes in the order of their bytes, which they share out without a gap.

    safetensors' own readers copy what they are given as bytes, hence this one; the format is four lines long
    (https://github.com/huggingface/safetensors#format).
    """
    try:
        listed = {name: facts for name, facts in json.loads(header[8:]).items() if name != "__metadata__"}
        parts = [
            _Part(name=name, dtype=DTYPES[facts["dtype"]], shape=facts["shape"], begin=begin, end=end)
            for name, facts in listed.items()
            for begin, end in [facts["data_offsets"]]
        ]
        parts.sort(key=lambda part: (part.begin, part.end))
        ends = [0, *(part.end for part in parts)]
        fits = all(math.prod(part.shape) * part.dtype.itemsize == part.end - part.begin for part in parts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamageError(f"crc32c differs: its header is not one of safetensors, {error!r}") from error
    if not fits or [part.begin for part in parts] != ends[:-1] or ends[-1] != size - len(header):
        raise _DamageError("crc32c differs: its tensors do not fill it")
    return parts


def _new_memory(size: int) -> NDArray[np.uint8]:
    # From torch, whose memory starts at a cache line: `preadv` into numpy's is half as fast.
    return torch.empty(size, dtype=torch.uint8).numpy()


def as_tensor(memory: NDArray[np.uint8], dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Look at bytes as a tensor, without a copy; the tensor keeps the memory alive."""
    # PyTorch takes no empty buffer.
    return torch.frombuffer(memory, dtype=dtype).view(shape) if memory.size else torch.empty(shape, dtype=dtype)


class _DamageError(Exception):
    """What is wrong with the bytes of a row."""
