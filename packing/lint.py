"""Look into every row of a packed corpus for what would spoil training, and name what is wrong.

Checked are bytes (crc32c, sizes, the index against the manifest), structure (offsets, shapes against the segment table, which
tokens were kept, text lengths, a clip id in every payload, each once, rows no longer than promised) and values: NaN and Inf,
and latents that drift: mean and spread of each channel, of a whole shard against 0 and 1, of which a codec's normalisation
makes them, and against the other shards, which another codec or another normalisation would tell apart. Cost: one pass over
all bytes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from packing.errors import ShardError
from packing.manifest import Manifest, ShardEntry, open_manifest
from packing.rows import Row, RowIndex, kept_misfit, read_index, read_row
from packing.store import Store

# Of a channel over a whole shard: real codecs are normalised over other videos than ours, so only what is far out is named.
FAR_MEAN, LEAST_SPREAD, MOST_SPREAD = 3.0, 0.1, 10.0
# A shard against all: how far its mean may lie from that of the others in their spreads, and the ratio of spreads.
FAR_FROM_OTHERS, RATIO_TO_OTHERS = 1.0, 2.5
ENOUGH_CLIPS = 32  # in a shard, or its mean says little of its codec


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong: the rule, the shard, the row and clip if it lies in one, and what was found."""

    rule: str
    shard: str
    row: str = ""
    clip_id: str = ""
    message: str

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.shard, self.row and f"row {self.row}", self.clip_id) if part)
        return f"{self.rule}: {place}: {self.message}"


@dataclass(kw_only=True)
class _Moments:
    """Sums over the tokens of a shard, by latent channel."""

    channels: int
    count: int = 0
    clips: int = 0
    sums: Any = field(default=0.0)
    squares: Any = field(default=0.0)

    def add(self, latents: torch.Tensor, clips: int) -> None:
        values = latents.double().reshape(len(latents), self.channels, -1)  # [n, C, patch]
        self.count += values.shape[0] * values.shape[2]
        self.clips += clips
        self.sums = self.sums + values.sum((0, 2)).numpy()
        self.squares = self.squares + values.square().sum((0, 2)).numpy()

    def mean_and_spread(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean = self.sums / self.count
        return mean, np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))


def lint_corpus(url: str) -> dict[str, Any]:
    """Check all rows of the packed corpus at `url` (a packed folder or a run).

    Returns:
        ok, shards, rows, clips, findings (each with rule, shard, row, clip_id, message), and channels: mean and spread of each
        latent channel over all shards.

    Raises:
        ShardError: there is no packed corpus.
    """
    manifest, base = open_manifest(url)
    store, seen = Store(base), Counter[str]()
    moments = {entry.name: _Moments(channels=manifest.channels) for entry in manifest.shards}
    findings = [found for entry in manifest.shards for found in _shard(store, entry, manifest, seen, moments[entry.name])]
    findings += [
        Finding(rule="twice", shard="", clip_id=clip_id, message=f"is in {count} places")
        for clip_id, count in seen.items()
        if count > 1
    ]
    findings += _drift({name: found for name, found in moments.items() if found.count})
    return {
        "ok": not findings,
        "shards": len(manifest.shards),
        "rows": manifest.rows,
        "clips": manifest.clips,
        "findings": [{**asdict(finding), "text": str(finding)} for finding in findings],
        "channels": _all_channels([found for found in moments.values() if found.count]),
    }


def _shard(store: Store, entry: ShardEntry, manifest: Manifest, seen: Counter[str], moments: _Moments) -> Iterator[Finding]:
    try:
        indexes = read_index(store, entry)
    except ShardError as error:
        yield Finding(rule="index", shard=entry.name, message=str(error))
        return
    if (len(indexes), sum(len(row.grids) for row in indexes)) != (entry.rows, entry.clips):
        yield Finding(rule="counts", shard=entry.name, message="its index holds other counts than the manifest says")
    for index in indexes:
        try:
            row = read_row(store, entry, index)
        except ShardError as error:
            yield Finding(rule="bytes", shard=entry.name, row=index.key, message=str(error))
            continue
        seen.update(str(segment.get("clip_id")) for segment in row.segments)
        wrong = list(_structure(row, index, manifest))
        if not wrong:
            wrong = list(_values(row))
            moments.add(row.tensors["latents"].nan_to_num(0, 0, 0), len(row.segments))
        for rule, clip_id, message in wrong:
            yield Finding(rule=rule, shard=entry.name, row=index.key, clip_id=clip_id, message=message)


def _structure(row: Row, index: RowIndex, manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    """Yield (rule, clip id, message) for what does not fit together in a row."""
    tensors = row.tensors
    if missing := {"latents", "cu_seqlens", "grid", "text", "cu_text", "cu_captions"} - tensors.keys():
        yield "tensors", "", f"has no {', '.join(sorted(missing))}"
        return
    ids = [segment.get("clip_id") for segment in row.segments]
    if ids != list(index.clip_ids) or not all(ids):
        yield "clip_id", "", f"its payload names {ids}, its index {list(index.clip_ids)}"
    tokens, grids = tensors["latents"].shape, tensors["grid"].prod(1).tolist()
    lengths = grids if index.kept is None else index.lengths.tolist()
    offsets = tensors["cu_seqlens"].tolist()
    if tuple(tokens) != (offsets[-1], manifest.token_dim) or lengths != np.diff(offsets).tolist():
        yield "shapes", "", f"latents {tuple(tokens)} against segments of {lengths} tokens of {manifest.token_dim} numbers"
    if index.whole_lengths.tolist() != grids or len(ids) != len(grids):
        yield "shapes", "", f"its clips have {grids} tokens, its index says {index.whole_lengths.tolist()}"
    if misfit := kept_misfit(row, index):
        yield "kept", "", misfit
    if tokens[0] > manifest.sequence_length:
        yield "length", "", f"holds {tokens[0]} tokens, more than {manifest.sequence_length}"
    yield from _text(row, manifest)


def _text(row: Row, manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    text, offsets, captions = (row.tensors[name] for name in ("text", "cu_text", "cu_captions"))
    lengths = np.diff(offsets.tolist())
    if int(offsets[-1]) != text.shape[0] or int(captions[-1]) != len(lengths):
        yield (
            "text",
            "",
            f"{text.shape[0]} features and {len(lengths)} captions against {int(offsets[-1])} and {int(captions[-1])}",
        )
        return
    if text.shape[0] and text.shape[1] != manifest.text_encoder.width:
        yield "text", "", f"features of {text.shape[1]} numbers, where the manifest says {manifest.text_encoder.width}"
    most = manifest.text_encoder.max_tokens
    for segment, (first, last) in zip(row.segments, pairwise(captions.tolist()), strict=True):
        clip_id, told = str(segment.get("clip_id")), segment.get("captions", [])
        if len(told) != last - first:
            yield "text", clip_id, f"has {last - first} captions with features and {len(told)} with words"
        for caption, length in zip(told, lengths[first:last].tolist(), strict=False):
            if length > most or (length == 0 and caption.get("text")):
                yield "text", clip_id, f"caption {caption.get('prompt')!r} has {length} features, at most {most}"


def _values(row: Row) -> Iterator[tuple[str, str, str]]:
    for name, offsets in (("latents", row.tensors["cu_seqlens"]), ("text", row.tensors["cu_text"])):
        bad = ~row.tensors[name].isfinite().all(dim=1)
        for number in np.unique(np.searchsorted(offsets.numpy(), bad.nonzero().flatten().numpy(), side="right") - 1).tolist():
            at = number if name == "latents" else int(np.searchsorted(row.tensors["cu_captions"].numpy(), number, "right")) - 1
            yield "not_finite", str(row.segments[at]["clip_id"]), f"its {name} hold NaN or Inf"


def _drift(shards: dict[str, _Moments]) -> Iterator[Finding]:
    """Yield the channels of shards that are far from mean 0 and spread 1, or from what the other shards have."""
    enough = {name: found for name, found in shards.items() if found.clips >= ENOUGH_CLIPS}
    for name, found in enough.items():
        mean, spread = found.mean_and_spread()
        far = (abs(mean) > FAR_MEAN) | (spread < LEAST_SPREAD) | (spread > MOST_SPREAD)
        yield from _named("drift", name, far, mean, spread, "where a normalised latent has about 0 and 1")
        if others := [other for label, other in enough.items() if label != name]:
            others_mean, others_spread = _joined(others).mean_and_spread()
            scale = np.maximum(others_spread, 1e-6)
            ratio = spread / scale
            far = (
                (abs(mean - others_mean) > FAR_FROM_OTHERS * scale) | (ratio > RATIO_TO_OTHERS) | (ratio < 1 / RATIO_TO_OTHERS)
            )
            yield from _named("drift", name, far, mean, spread, "unlike the other shards")


def _named(
    rule: str, shard: str, far: NDArray[np.bool_], mean: NDArray[np.float64], spread: NDArray[np.float64], why: str
) -> Iterator[Finding]:
    for channel in np.flatnonzero(far).tolist():
        found = f"latent channel {channel} has mean {mean[channel]:.2f} and spread {spread[channel]:.2f}, {why}"
        yield Finding(rule=rule, shard=shard, message=found)


def _joined(shards: Sequence[_Moments]) -> _Moments:
    return _Moments(
        channels=shards[0].channels,
        count=sum(found.count for found in shards),
        clips=sum(found.clips for found in shards),
        sums=sum(found.sums for found in shards),
        squares=sum(found.squares for found in shards),
    )


def _all_channels(shards: Sequence[_Moments]) -> list[dict[str, float]]:
    if not shards:
        return []
    mean, spread = _joined(shards).mean_and_spread()
    return [{"mean": round(float(m), 4), "spread": round(float(s), 4)} for m, s in zip(mean, spread, strict=True)]
