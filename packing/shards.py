"""Write `packed-v1` shards: tars of rows that stock `webdataset` iterates, each with an index for reading by row.

Invariant: the bytes of a shard are a pure function of its rows (USTAR, mtime 0, fixed owner, sorted members), so the same
results give the same sha256 whoever writes it. A row is two adjacent members, `{key}.json` and `{key}.tokens.safetensors`.
There is no padding on disk. Every clip id stands inside the JSON of its row.
"""

import hashlib
import json
import math
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import google_crc32c
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from packing.errors import ShardError
from packing.geometry import Patch, token_grid
from packing.manifest import MANIFEST, CodecFacts, Manifest, ShardEntry, TextEncoderFacts, open_manifest
from packing.rows import RowIndex
from packing.store import Store
from packing.tokens import kept_tokens, patchify

BLOCK = 512
TOKENS = "tokens.safetensors"


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
    """One clip ready to be packed: its normalised latent [C, T, H, W], its captions, and facts for the row's JSON.

    `kept` are the numbers, in raster order and ascending, of the tokens that are packed, int32 [k]; without it, all are.
    """

    clip_id: str
    latent: Tensor
    captions: Sequence[Caption]
    facts: Mapping[str, Any]
    kept: Tensor | None = None


ClipTuple = tuple[str, Tensor, Mapping[str, str], Sequence[Tensor]]  # id, latent, captions by prompt, their features


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


def drop_tokens(clip: PackedClip, patch: Patch, drop: float, seed: int) -> PackedClip:
    """Drop a share of the tokens of a clip, chosen by seed and clip id, and record it as the fact `drop`; 0 changes nothing.

    Raises:
        ValueError: `drop` is not 0 to below 1.
    """
    if drop == 0:
        return clip
    kept = kept_tokens(math.prod(_grid(clip, patch)), drop, seed, clip.clip_id)
    return replace(clip, kept=kept, facts={**clip.facts, "drop": drop})


def write_shard(store: Store, number: int, rows: Iterable[Sequence[PackedClip]], patch: Patch) -> ShardEntry:
    """Write one shard and its index into `store`; rows are taken one at a time, so memory holds one row.

    Returns:
        The manifest's entry. Written twice from equal rows, the second write changes nothing.
    """
    index: list[RowIndex] = []
    _, digest, size = store.put_stream(lambda sha256: f"shard-{number:06d}-{sha256[:12]}.tar", _tar(rows, patch, index))
    name = f"shard-{number:06d}-{digest[:12]}.tar"
    listing = json.dumps({"shard": name, "rows": [_listed(row) for row in index]}, sort_keys=True).encode()
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
    clips: Iterable[PackedClip | ClipTuple],
    url: str,
    *,
    codec: CodecFacts,
    text_encoder: TextEncoderFacts,
    patch: Patch,
    sequence_length: int,
    fps: float,
    seed: int = 0,
    shard_bytes: int = 1 << 30,
    drop: float = 0.0,
) -> Manifest:
    """Write planned rows of your own clips as a whole packed corpus at `url`, its manifest last.

    Args:
        rows: from `plan_rows`; indices into `clips`. With `drop`, planned over `kept_count` of their tokens.
        clips: in the order of the lengths that were planned. A plain tuple is a clip id, a latent [C, T, H, W], the texts of
            its captions by prompt, and the features [m, E] of these in the same order.
        url: a folder or bucket prefix.
        codec: what made the latents.
        text_encoder: what made the caption features.
        patch: latent cells of one token (t, h, w).
        sequence_length: the capacity that was planned for.
        fps: frame rate that the clips were encoded at.
        seed: the seed that was planned with.
        shard_bytes: about how large a shard becomes.
        drop: share of each clip's tokens that is left out, 0 to below 1, chosen by `seed` and clip id (`drop_tokens`).

    Raises:
        ShardError: another corpus lies at `url` already.
        ValueError: `drop` is out of its range.
    """
    given = (clip if isinstance(clip, PackedClip) else _clip_of(clip) for clip in clips)
    held = [drop_tokens(clip, patch, drop, seed) for clip in given]
    sizes = np.array([_size_bytes(clip, patch) for clip in held], dtype=np.int64)
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


def pack_row(clips: Sequence[PackedClip], patch: Patch) -> dict[str, Tensor]:
    """Join the clips of one row into its tensors, unpadded.

    Returns:
        `latents` fp16 [n, D]; `cu_seqlens` int32 [s+1]; `grid` int32 [s, 3]; `text` bf16 [m, E], all captions of all clips;
        `cu_text` int32 [captions+1]; `cu_captions` int32 [s+1], which captions belong to which segment. A row with a clip
        of which tokens were dropped has `kept` int32 [n] too, the number of each token in its own clip; `cu_seqlens` counts
        kept tokens, while `grid` stays that of whole clips.
    """
    tokens = [_tokens(clip, patch) for clip in clips]
    features = [caption.features for clip in clips for caption in clip.captions]
    grids = [_grid(clip, patch) for clip in clips]
    return {
        "latents": torch.cat(tokens).to(torch.float16).contiguous(),
        "cu_seqlens": _offsets([len(part) for part in tokens]),
        "grid": torch.tensor(grids, dtype=torch.int32),
        "text": torch.cat(features or [torch.zeros(0, 0)]).to(torch.bfloat16).contiguous(),
        "cu_text": _offsets([len(part) for part in features]),
        "cu_captions": _offsets([len(clip.captions) for clip in clips]),
        **({"kept": torch.cat([_kept(clip, patch) for clip in clips])} if _drops(clips) else {}),
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
                kept=[len(_kept(clip, patch)) for clip in clips] if _drops(clips) else None,
            )
        )
        offset += len(first) + len(second)
        yield first
        yield second
    # Two empty blocks end a tar; readers of old expect whole records of 20 blocks.
    yield bytes(tarfile.RECORDSIZE - offset % tarfile.RECORDSIZE + (tarfile.RECORDSIZE if _tight(offset) else 0))


def _listed(row: RowIndex) -> dict[str, Any]:
    """Return what an index says of a row; of whole clips nothing of `kept`, so that old corpora keep their bytes."""
    return {name: value for name, value in asdict(row).items() if value is not None}


def _tight(offset: int) -> bool:
    return tarfile.RECORDSIZE - offset % tarfile.RECORDSIZE < 2 * BLOCK


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    header = info.tobuf(tarfile.USTAR_FORMAT)  # TarInfo's defaults are mtime 0, owner 0, mode 0644
    return header + data + bytes(-len(data) % BLOCK)


def _clip_of(given: ClipTuple) -> PackedClip:
    clip_id, latent, texts, features = given
    captions = [
        Caption(prompt=prompt, text=text, features=f) for (prompt, text), f in zip(texts.items(), features, strict=True)
    ]
    return PackedClip(clip_id=clip_id, latent=latent, captions=captions, facts={})


def _facts(clip: PackedClip) -> dict[str, Any]:
    captions = [{"prompt": c.prompt, "text": c.text, "model": c.model, "agreement": c.agreement} for c in clip.captions]
    return {**clip.facts, "clip_id": clip.clip_id, "captions": captions}


def _grid(clip: PackedClip, patch: Patch) -> tuple[int, int, int]:
    _, t, h, w = clip.latent.shape
    return token_grid((t, h, w), patch)


def _tokens(clip: PackedClip, patch: Patch) -> Tensor:
    """The tokens of a clip that are packed, [k, D]."""
    tokens = patchify(clip.latent, patch)
    return tokens if clip.kept is None else tokens.index_select(0, clip.kept)


def _kept(clip: PackedClip, patch: Patch) -> Tensor:
    whole = math.prod(_grid(clip, patch))
    return torch.arange(whole, dtype=torch.int32) if clip.kept is None else clip.kept.to(torch.int32)


def _drops(clips: Sequence[PackedClip]) -> bool:
    return any(clip.kept is not None for clip in clips)


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)


def _size_bytes(clip: PackedClip, patch: Patch) -> int:
    numbers = clip.latent.numel() if clip.kept is None else len(clip.kept) * clip.latent.shape[0] * math.prod(patch)
    return 2 * numbers + sum(2 * caption.features.numel() for caption in clip.captions)
