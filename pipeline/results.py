"""Stage results: append-only parts of outcomes, one Parquet file a chunk, with a safetensors file beside it for tensors.

Invariant: a part is written whole or not at all. Its tensors are written first and its Parquet file, which commits it, last.
A part's name is a hash of its keys, so doing a chunk twice writes one part. Nothing is overwritten: a later attempt is a part
of its own.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from packing.errors import StoreError
from packing.store import Store
from pipeline.records import Failure, Outcome
from pipeline.tables import from_parquet, parquet_notes, to_parquet

TENSORS = "tensors_sha256"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@cache
def _row_type(value_type: Any) -> type[Any]:
    """Return the dataclass of one row of a part: an outcome with a typed value."""
    fields = [("key", str), ("attempt", int), ("failure", Failure | None), ("value", value_type | None)]
    return dataclasses.make_dataclass("Row", fields, frozen=True, kw_only=True)


@dataclass(frozen=True)
class StageResults:
    """The results of one stage at one fingerprint in one run."""

    store: Store
    stage: str
    fingerprint: str
    value_type: Any

    @property
    def folder(self) -> str:
        """Where the parts lie in the run."""
        return f"results/{self.stage}/{self.fingerprint}"

    def parts(self, partition: str = "") -> list[str]:
        """Name the committed parts, of one partition or of all."""
        start = f"{self.folder}/{partition}-" if partition else self.folder
        return [name for name in self.store.list(self.folder) if name.startswith(start) and name.endswith(".parquet")]

    def write(self, partition: str, outcomes: Sequence[Outcome[Any]]) -> str:
        """Commit one part; tell its name."""
        keys = "\n".join(f"{outcome.key} {outcome.attempt}" for outcome in outcomes)
        name = f"{self.folder}/{partition}-{hashlib.sha256(keys.encode()).hexdigest()[:16]}"
        tensors = {f"{o.key}/{label}": tensor for o in outcomes for label, tensor in o.tensors.items()}
        notes = {TENSORS: self._put_tensors(f"{name}.safetensors", tensors)} if tensors else {}
        kind = _row_type(self.value_type)
        rows = [kind(key=o.key, attempt=o.attempt, failure=o.failure, value=o.value) for o in outcomes]
        self.store.put_once(f"{name}.parquet", to_parquet(rows, kind, notes))
        return f"{name}.parquet"

    def damage(self, part: str) -> str | None:
        """Tell what is wrong with the tensors of a part, if anything is."""
        expected = parquet_notes(self.store.read(part)).get(TENSORS)
        name = tensor_file(part)
        if expected is None:
            return None
        if not self.store.exists(name):
            return f"{name} is missing"
        return None if self.store.sha256(name) == expected else f"{name} is damaged (sha256 differs)"

    def _put_tensors(self, name: str, tensors: dict[str, Tensor]) -> str:
        """Write tensors unless another worker has; return the sha256 of what is there."""
        written, digest, _ = self.store.put_stream(lambda _: name, safetensors_blocks(tensors))
        return digest if written else self.store.sha256(name)

    def read(self, parts: Iterable[str]) -> Iterator[tuple[str, Outcome[Any]]]:
        """Read the outcomes of parts, each with the name of its part; their tensors stay on disk.

        Raises:
            StoreError: a part is damaged, or another version of clipmill wrote it.
        """
        for part in parts:
            try:
                rows = from_parquet(self.store.read(part), _row_type(self.value_type))
            except (OSError, ValueError) as error:
                raise StoreError(f"{self.store.path(part)} is damaged: {error}") from error
            for row in rows:
                yield part, Outcome(key=row.key, attempt=row.attempt, failure=row.failure, value=row.value)


class LatestOutcomes:
    """The latest outcome of every key of a stage, read part by part; reading on costs only the parts that are new."""

    def __init__(self, results: StageResults, partition: str = "") -> None:
        self.results = results
        self._partition = partition
        self._seen: set[str] = set()
        self._latest: dict[str, tuple[str, Outcome[Any]]] = {}
        self._files: dict[str, TensorFile] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the parts that have been committed since."""
        new = [part for part in self.results.parts(self._partition) if part not in self._seen]
        for part, outcome in self.results.read(new):
            known = self._latest.get(outcome.key)
            # Two first attempts can meet when two jobs race: the part that sorts first wins, for every reader.
            if known is None or (outcome.attempt, known[0]) > (known[1].attempt, part):
                self._latest[outcome.key] = (part, outcome)
        self._seen.update(new)

    def __len__(self) -> int:
        return len(self._latest)

    def get(self, key: str) -> Outcome[Any] | None:
        """Return the latest outcome of a key, if there is one."""
        found = self._latest.get(key)
        return found[1] if found else None

    def part_of(self, key: str) -> str:
        """Name the part that holds the latest outcome of a key."""
        return self._latest[key][0]

    def values(self) -> Iterator[Outcome[Any]]:
        """Go through the latest outcomes."""
        return (outcome for _, outcome in self._latest.values())

    def tensor(self, key: str, label: str) -> Tensor:
        """Read one tensor of a key."""
        name = tensor_file(self.part_of(key))
        file = self._files.setdefault(name, TensorFile(self.results.store, name))
        return file.read(f"{key}/{label}")


def safetensors_blocks(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """Give the bytes of a safetensors file, a tensor at a time; the library's own `save` holds all of them twice.

    They are the bytes that `save` gives: the widest types first, which keeps each aligned, and then by name.
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header, at = {}, 0
    for name in ordered:
        tensor, end = tensors[name], at + tensors[name].nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in ordered:
        yield tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()


def tensor_file(part: str) -> str:
    """Name the tensors of a part."""
    return part.removesuffix(".parquet") + ".safetensors"


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file in a store, read tensor by tensor with ranged reads; only the header is held."""

    store: Store
    name: str

    @cached_property
    def _header(self) -> tuple[int, Mapping[str, Any]]:
        size = int.from_bytes(self.store.read_range(self.name, 0, 8), "little")
        return 8 + size, json.loads(self.store.read_range(self.name, 8, size))

    def read(self, label: str) -> Tensor:
        """Read one tensor."""
        start, entries = self._header
        entry = entries[label]
        first, last = entry["data_offsets"]
        data = bytearray(self.store.read_range(self.name, start + first, last - first))
        flat = torch.frombuffer(data, dtype=DTYPES[entry["dtype"]]) if data else torch.empty(0, dtype=DTYPES[entry["dtype"]])
        return flat.reshape(entry["shape"])
