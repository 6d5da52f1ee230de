"""Frozen dataclasses to Parquet and back: the columns follow from the type hints, so nothing is typed twice."""

import dataclasses
import io
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from packing.errors import StoreError

Record = TypeVar("Record")
SCALARS = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


@cache
def arrow_type(hint: Any) -> pa.DataType:
    """Return the Arrow type of a type hint: scalars, tuples (lists), str-keyed dicts (maps), dataclasses (structs)."""
    if hint in SCALARS:
        return SCALARS[hint]
    if isinstance(hint, types.UnionType):
        return arrow_type(_without_none(hint))
    if dataclasses.is_dataclass(hint):
        return pa.struct([pa.field(name, arrow_type(of)) for name, of in get_type_hints(hint).items()])
    if get_origin(hint) is tuple:
        return pa.list_(arrow_type(get_args(hint)[0]))
    if get_origin(hint) is dict:
        return pa.map_(pa.string(), arrow_type(get_args(hint)[1]))
    raise TypeError(f"no Arrow type for {hint}")


def arrow_schema(kind: type[Any]) -> pa.Schema:
    """Return the columns of a table of one dataclass's records."""
    return pa.schema([pa.field(name, arrow_type(hint)) for name, hint in get_type_hints(kind).items()])


def to_parquet(records: Iterable[Any], kind: type[Any], notes: Mapping[str, str] | None = None) -> bytes:
    """Write records of one dataclass as Parquet, with notes in its metadata; equal records and notes give equal bytes."""
    table = pa.Table.from_pylist([_plain(record) for record in records], schema=arrow_schema(kind).with_metadata(notes))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def from_parquet(data: bytes, kind: type[Record]) -> list[Record]:
    """Read what `to_parquet` wrote.

    Raises:
        StoreError: the bytes hold records of another shape, as another version of clipmill writes them.
    """
    table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    if table.schema != arrow_schema(kind):
        raise StoreError("a results part has other columns: another version of clipmill wrote it")
    return [_record(kind, row) for row in table.to_pylist()]


def parquet_notes(data: bytes) -> dict[str, str]:
    """Read the notes that `to_parquet` was given."""
    metadata = pq.read_schema(io.BytesIO(data)).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def from_plain(kind: type[Record], value: dict[str, Any]) -> Record:
    """Build a record from the dicts and lists that `dataclasses.asdict` and JSON make of it."""
    record: Record = _record(kind, value)
    return record


def _plain(value: Any) -> Any:
    """Turn records into dicts and dicts into the pairs that Arrow takes for a map."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return [(key, _plain(item)) for key, item in sorted(value.items())]
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _record(kind: Any, value: Any) -> Any:
    if value is None or kind in SCALARS:
        return value
    if isinstance(kind, types.UnionType):
        return _record(_without_none(kind), value)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _record(hint, value[name]) for name, hint in hints.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        return tuple(_record(get_args(kind)[0], item) for item in value)
    pairs = value.items() if isinstance(value, dict) else value
    return {key: _record(get_args(kind)[1], item) for key, item in pairs}


def _without_none(hint: Any) -> Any:
    return next(part for part in get_args(hint) if part is not type(None))
