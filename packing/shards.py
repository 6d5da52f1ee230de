"""Write and read `packed-v1` shards: tars of rows that stock `webdataset` iterates, with an index for reading by row.

Invariant: the bytes of a shard are a pure function of its rows (USTAR, mtime 0, fixed owner, sorted members), so the same
results give the same sha256 whoever writes it. A row is two adjacent members, `{key}.json` and `{key}.tokens.safetensors`.
There is no padding on disk. Every clip id stands inside the JSON of its row.
"""

import hashlib
import json
import math
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from packing.cost import dit_cost
from packing.errors import ShardError, StoreError
from packing.geometry import Patch, token_grid
from packing.manifest import MANIFEST, CodecFacts, Manifest, ShardEntry, TextEncoderFacts, open_manifest
from packing.store import Span, Store
from packing.tokens import patchify

BLOCK = 512
COST = dit_cost()
TOKENS = "tokens.safetensors"
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
class Caption:
    """One caption of a clip with its features [m, E]; `agreement` is its CLIP similarity to the clip, -1 to 1."""

    prompt: str
    text: str
    features: Tensor
    model: str = ""
    agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class PackedClip:
    """One clip ready to be packed: its normalised latent [C, T, H, W], its captions, and facts for the row's JSON."""

    clip_id: str
    latent: Tensor
    captions: Sequence[Caption]
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RowIndex:
    """Where one row lies in its shard and what is in it; offsets and sizes in bytes, `crc32c` over both members' data."""

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

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each segment."""
        return np.array([t * h * w for t, h, w in self.grids], dtype=np.int64)

    @property
    def cost(self) -> float:
        """Relative compute of the row (`packing.cost.dit_cost`), in tokens' worth of linear layers."""
        return float(COST.clip_costs(self.lengths).sum()) + COST.row


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as it lies on disk: tensors by name and the facts of each segment."""

    tensors: Mapping[str, Tensor]
    segments: Sequence[Mapping[str, Any]]


def shard_rows(rows: Sequence[NDArray[np.int64]], sizes: NDArray[np.int64], shard_bytes: int) -> list[list[NDArray[np.int64]]]:
    """Group planned rows, in order, into shards of about `shard_bytes`; `sizes` are bytes of each clip."""
    shards: list[list[NDArray[np.int64]]] = []
    room = 0
    for row in rows:
        size = int(sizes[row].sum())
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(row)
        room -= size
    return shards


def write_shard(store: Store, number: int, rows: Iterable[Sequence[PackedClip]], patch: Patch) -> ShardEntry:
    """Write one shard and its index into `store`; rows are taken one at a time, so memory holds one row.

    Returns:
        The manifest's entry. Written twice from equal rows, the second write changes nothing.
    """
    index: list[RowIndex] = []
    _, digest, size = store.put_stream(lambda sha256: f"shard-{number:06d}-{sha256[:12]}.tar", _tar(rows, patch, index))
    name = f"shard-{number:06d}-{digest[:12]}.tar"
    listing = json.dumps({"shard": name, "rows": [asdict(row) for row in index]}, sort_keys=True).encode()
    index_name = name.removesuffix(".tar") + ".index.json"
    store.put_once(index_name, listing)
    return ShardEntry(
        name=name,
        sha256=digest,
        size_bytes=size,
        index=index_name,
        index_sha256=hashlib.sha256(listing).hexdigest(),
        rows=len(index),
        clips=sum(len(row.grids) for row in index),
        tokens=sum(int(row.lengths.sum()) for row in index),
    )


def write_shards(
    rows: Sequence[NDArray[np.int64]],
    clips: Iterable[PackedClip],
    url: str,
    *,
    codec: CodecFacts,
    text_encoder: TextEncoderFacts,
    patch: Patch,
    sequence_length: int,
    fps: float,
    seed: int = 0,
    shard_bytes: int = 1 << 30,
) -> Manifest:
    """Write planned rows of your own clips as a whole packed corpus at `url`, its manifest last.

    Args:
        rows: from `plan_rows`; indices into `clips`.
        clips: in the order of the lengths that were planned.
        url: a folder or bucket prefix.
        codec: what made the latents.
        text_encoder: what made the caption features.
        patch: latent cells of one token (t, h, w).
        sequence_length: the capacity that was planned for.
        fps: frame rate that the clips were encoded at.
        seed: the seed that was planned with.
        shard_bytes: about how large a shard becomes.

    Raises:
        ShardError: another corpus lies at `url` already.
    """
    held = list(clips)
    sizes = np.array([_size_bytes(clip) for clip in held], dtype=np.int64)
    store = Store(url)
    entries = [
        write_shard(store, number, ([held[i] for i in row] for row in group), patch)
        for number, group in enumerate(shard_rows(rows, sizes, shard_bytes))
    ]
    manifest = Manifest(
        sequence_length=sequence_length,
        patch=patch,
        fps=fps,
        codec=codec,
        text_encoder=text_encoder,
        seed=seed,
        plan_hash=hashlib.sha256(repr([row.tolist() for row in rows]).encode()).hexdigest(),
        fingerprints={},
        shards=tuple(entries),
    )
    if not store.put_once(MANIFEST, manifest.to_json().encode()) and open_manifest(url)[0] != manifest:
        raise ShardError(f"{url} already holds another packed corpus; write to an empty folder")
    return manifest


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


def pack_row(clips: Sequence[PackedClip], patch: Patch) -> dict[str, Tensor]:
    """Join the clips of one row into its tensors, unpadded.

    Returns:
        `latents` fp16 [n, D]; `cu_seqlens` int32 [s+1]; `grid` int32 [s, 3]; `text` bf16 [m, E], all captions of all clips;
        `cu_text` int32 [captions+1]; `cu_captions` int32 [s+1], which captions belong to which segment.
    """
    tokens = [patchify(clip.latent, patch) for clip in clips]
    features = [caption.features for clip in clips for caption in clip.captions]
    grids = [_grid(clip, patch) for clip in clips]
    return {
        "latents": torch.cat(tokens).to(torch.float16).contiguous(),
        "cu_seqlens": _offsets([len(part) for part in tokens]),
        "grid": torch.tensor(grids, dtype=torch.int32),
        "text": torch.cat(features or [torch.zeros(0, 0)]).to(torch.bfloat16).contiguous(),
        "cu_text": _offsets([len(part) for part in features]),
        "cu_captions": _offsets([len(clip.captions) for clip in clips]),
    }


def _tar(rows: Iterable[Sequence[PackedClip]], patch: Patch, index: list[RowIndex]) -> Iterator[bytes]:
    """Yield the bytes of a shard and note in `index` where each row lies."""
    offset = 0
    for clips in rows:
        key = hashlib.sha256("\n".join(clip.clip_id for clip in clips).encode()).hexdigest()[:32]
        tokens = safetensors.torch.save(pack_row(clips, patch))
        facts = json.dumps({"segments": [_facts(clip) for clip in clips]}, sort_keys=True, allow_nan=False).encode()
        first, second = _member(f"{key}.json", facts), _member(f"{key}.{TOKENS}", tokens)
        index.append(
            RowIndex(
                key=key,
                json_offset=offset + BLOCK,
                json_size=len(facts),
                offset=offset + len(first) + BLOCK,
                size=len(tokens),
                crc32c=google_crc32c.extend(google_crc32c.value(facts), tokens),
                clip_ids=[clip.clip_id for clip in clips],
                grids=[_grid(clip, patch) for clip in clips],
                captions=[caption.prompt for clip in clips for caption in clip.captions],
                duration_s=round(sum(float(clip.facts.get("duration_s", 0.0)) for clip in clips), 6),
            )
        )
        offset += len(first) + len(second)
        yield first
        yield second
    # Two empty blocks end a tar; readers of old expect whole records of 20 blocks.
    yield bytes(tarfile.RECORDSIZE - offset % tarfile.RECORDSIZE + (tarfile.RECORDSIZE if _tight(offset) else 0))


def _tight(offset: int) -> bool:
    return tarfile.RECORDSIZE - offset % tarfile.RECORDSIZE < 2 * BLOCK


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    header = info.tobuf(tarfile.USTAR_FORMAT)  # TarInfo's defaults are mtime 0, owner 0, mode 0644
    return header + data + bytes(-len(data) % BLOCK)


def _facts(clip: PackedClip) -> dict[str, Any]:
    captions = [{"prompt": c.prompt, "text": c.text, "model": c.model, "agreement": c.agreement} for c in clip.captions]
    return {**clip.facts, "clip_id": clip.clip_id, "captions": captions}


def _grid(clip: PackedClip, patch: Patch) -> tuple[int, int, int]:
    _, t, h, w = clip.latent.shape
    return token_grid((t, h, w), patch)


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)


def _size_bytes(clip: PackedClip) -> int:
    return 2 * clip.latent.numel() + sum(2 * caption.features.numel() for caption in clip.captions)
