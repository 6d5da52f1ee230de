"""Verify a run: every source and clip has one fate, the packed set is what the shards hold, and every byte is as recorded."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from packing.errors import ShardError, StoreError
from packing.manifest import Manifest, ShardEntry, open_manifest
from packing.rows import read_index, read_row
from packing.store import Store
from pipeline.job import Job
from pipeline.ledger import Fate, Ledger, packed_clip_ids
from pipeline.records import Clip


def verify(job: Job) -> dict[str, Any]:
    """Check every invariant and checksum of a run.

    Returns:
        ok, sources (planned), clips (cut), packed, rejected and failed (clips), failed_sources, and violations, each one line
        that names its culprit. For a whole run, clips = packed + rejected + failed.
    """
    try:
        ledger = Ledger(job)
        fates = list(ledger.fates())
    except StoreError as error:  # nothing can be counted over results that cannot be read
        counts = dict.fromkeys(("sources", "clips", "packed", "rejected", "failed", "failed_sources"), 0)
        return {"ok": False, **counts, "violations": [str(error)]}
    ready = {clip.clip_id for clip, fate in fates if fate.ready}
    violations = [*_sources(ledger), *_waiting(fates), *_damaged_parts(ledger)]
    packed: set[str] = set()
    try:
        if found := packed_clip_ids(ledger.job.store):
            manifest, packed = found
            violations += [*_corpus(ledger, manifest), *_same_clips(ready, packed), *_copies(fates, packed)]
        elif ready:
            violations.append(f"{len(ready)} clips are ready and there is no manifest: run ingest again")
    except ShardError as error:
        violations.append(str(error))
    split = [ledger.outcomes["split"].get(source.key) for source in ledger.sources]
    return {
        "ok": not violations,
        "sources": len(ledger.sources),
        "clips": len(fates),
        "packed": len(packed & ready),
        "rejected": sum(1 for _, fate in fates if fate.rejected),
        "failed": sum(1 for _, fate in fates if fate.failed),
        "failed_sources": sum(1 for outcome in split if outcome and outcome.failure),
        "violations": violations,
    }


def _sources(ledger: Ledger) -> Iterator[str]:
    for source in ledger.sources:
        if ledger.outcomes["split"].get(source.key) is None:
            yield f"source {source.uri} has no fate"


def _waiting(fates: list[tuple[Clip, Fate]]) -> Iterator[str]:
    for clip, fate in fates:
        if fate.open:
            yield f"clip {clip.clip_id} has no fate: it waits for {fate.stage}"


def _damaged_parts(ledger: Ledger) -> Iterator[str]:
    for outcomes in ledger.outcomes.values():
        yield from (damage for part in outcomes.results.parts() if (damage := outcomes.results.damage(part)))


def _same_clips(ready: set[str], packed: set[str]) -> Iterator[str]:
    yield from (f"clip {clip_id} is ready and in no shard of the newest manifest" for clip_id in sorted(ready - packed))
    yield from (f"clip {clip_id} is packed and should not be" for clip_id in sorted(packed - ready))


def _copies(fates: list[tuple[Clip, Fate]], packed: set[str]) -> Iterator[str]:
    """Check that no content is lost: whoever is rejected as a copy, the clip that it copies is packed."""
    for clip, fate in fates:
        if fate.duplicate_of is not None and fate.duplicate_of not in packed:
            yield f"clip {clip.clip_id} is rejected as a copy of {fate.duplicate_of}, which is in no shard"


def _corpus(ledger: Ledger, manifest: Manifest) -> Iterator[str]:
    _, base = open_manifest(ledger.job.store.url)
    store = Store(base)
    seen: Counter[str] = Counter()
    for entry in manifest.shards:
        try:
            yield from _shard(store, entry, seen, manifest.sequence_length)
        except ShardError as error:
            yield str(error)
    yield from (f"clip {clip_id} is packed {count} times" for clip_id, count in sorted(seen.items()) if count > 1)


def _shard(store: Store, entry: ShardEntry, seen: Counter[str], length: int) -> Iterator[str]:
    """Check one shard: its hash, and its rows one by one against its index."""
    if not store.exists(entry.name):
        yield f"shard {entry.name} is missing"
        return
    if store.sha256(entry.name) != entry.sha256:
        yield f"shard {entry.name} is damaged: its sha256 is not the manifest's"
        return
    rows = read_index(store, entry)
    for index in rows:
        row = read_row(store, entry, index)
        ids, tokens = [segment["clip_id"] for segment in row.segments], len(row.tensors["latents"])
        seen.update(ids)
        if ids != list(index.clip_ids):
            yield f"row {index.key} of {entry.name} holds other clips than its index says"
        if row.tensors["cu_seqlens"][-1] != tokens or tokens > length or tokens != index.lengths.sum():
            yield f"row {index.key} of {entry.name} holds other tokens than its segment table says"
    if len(rows) != entry.rows or sum(len(index.clip_ids) for index in rows) != entry.clips:
        yield f"shard {entry.name} holds other counts than the manifest says"
