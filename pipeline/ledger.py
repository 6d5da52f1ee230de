"""The ledger: the fate of every source and clip, as a view over the plan, the results and the newest manifest.

There is no database to keep in step: what the results say is what happened. Reading it again costs only the parts that are new.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from packing.errors import StoreError
from packing.manifest import Manifest, head_names, open_manifest
from packing.pieces import clip_id_of
from packing.rows import read_index
from packing.store import Store
from pipeline.duplicates import CELLS, TIMES, Bounds, Signatures, find_copies
from pipeline.job import Job
from pipeline.packable import unpackable
from pipeline.records import Clip, Failure, Outcome, Source
from pipeline.results import LatestOutcomes, tensor_file
from pipeline.select import Rejection, rejection, rules_of
from pipeline.sources import read_plan
from pipeline.stages import STAGES

CLIP_STAGES = ("score", "recaption", "encode", "embed")


@dataclass(frozen=True, kw_only=True)
class Fate:
    """How a clip stands: rejected, failed, ready to be packed (`stage` is "pack"), or waiting for `stage`.

    A copy is rejected by the rule "duplicate", over its distance to an earlier clip; `duplicate_of` is the id of that clip.
    """

    stage: str
    rejected: Rejection | None = None
    failed: Failure | None = None
    duplicate_of: str | None = None

    @property
    def ready(self) -> bool:
        """Whether every stage before packing has a good result."""
        return self.stage == "pack" and self.rejected is None and self.failed is None

    @property
    def open(self) -> bool:
        """Whether the clip still waits for a stage before packing."""
        return self.rejected is None and self.failed is None and self.stage != "pack"


class Ledger:
    """The sources and clips of a run with their fates."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.outcomes = {stage: LatestOutcomes(job.results(stage)) for stage in STAGES}
        self.sources: list[Source] = [source for part in read_plan(job.store) for source in part.sources]

    def refresh(self) -> None:
        """Read what has been committed since."""
        for outcomes in self.outcomes.values():
            outcomes.refresh()
        for view in ("clips", "copies"):
            self.__dict__.pop(view, None)

    @cached_property
    def clips(self) -> dict[str, Clip]:
        """All clips by id, in id order; of byte-equal sources the first in the plan owns them."""
        found: dict[str, Clip] = {}
        for source in self.sources:
            for clip in self._clips_of(source):
                found.setdefault(clip.clip_id, clip)
        return dict(sorted(found.items()))

    def fates(self) -> Iterator[tuple[Clip, Fate]]:
        """Go through all clips with their fates, in id order."""
        return ((clip, self.copies.get(clip.clip_id, fate)) for clip, fate in self.fates_alone())

    def fates_alone(self) -> Iterator[tuple[Clip, Fate]]:
        """Go through all clips with the fates that they have apart from all others: here a copy is ready to be packed."""
        rules = rules_of(self.job.config)
        return ((clip, self._fate(clip, rules)) for clip in self.clips.values())

    @cached_property
    def copies(self) -> dict[str, Fate]:
        """The fates, by id, of the clips with the content of an earlier clip.

        Only clips that are otherwise ready count: a clip that is rejected or has failed owns nothing. The order is that of the
        plan, so sources that are planned later never push a packed clip out.

        Raises:
            StoreError: the signatures cannot be read.
        """
        config = self.job.config.select.duplicates
        if not config.max_distance:
            return {}
        place = {source.key: number for number, source in enumerate(self.sources)}
        ready = [clip for clip, fate in self.fates_alone() if fate.ready]
        clips = sorted(ready, key=lambda clip: (place[clip.source_key], clip.start_s, clip.clip_id))
        copies = find_copies(
            self._signatures(clips),
            np.array([clip.duration_s for clip in clips]),
            np.unique([clip.source_id for clip in clips], return_inverse=True)[1],
            Bounds(distance=config.max_distance, seconds=config.max_seconds),
        )
        return {
            clips[number].clip_id: Fate(
                stage="pack",
                rejected=Rejection(rule="duplicate", value=copy.distance, threshold=config.max_distance),
                duplicate_of=clips[copy.of].clip_id,
            )
            for number, copy in copies.items()
        }

    def ready(self) -> list[Clip]:
        """Return the clips that can be packed, in id order."""
        return [clip for clip, fate in self.fates() if fate.ready]

    def duplicates(self) -> list[Source]:
        """Return the sources whose bytes an earlier source of the plan has too."""
        seen: set[str] = set()
        copies = []
        for source in self.sources:
            outcome = self.outcomes["split"].get(source.key)
            if outcome and outcome.value:
                if outcome.value.source_id in seen:
                    copies.append(source)
                seen.add(outcome.value.source_id)
        return copies

    def _signatures(self, clips: list[Clip]) -> Signatures:
        """Read the signatures of scored clips; each part's tensors are read once and whole, as suits a bucket."""
        found = np.zeros((len(clips), TIMES, CELLS, CELLS, 3), dtype=np.uint8)
        parts: dict[str, list[int]] = {}
        for number, clip in enumerate(clips):
            parts.setdefault(self.outcomes["score"].part_of(clip.clip_id), []).append(number)
        for part, numbers in parts.items():
            tensors = self._tensors(part)
            for number in numbers:
                found[number] = tensors[f"{clips[number].clip_id}/signature"]
        return found

    def _tensors(self, part: str) -> dict[str, Any]:
        name = tensor_file(part)
        try:
            tensors: dict[str, Any] = safetensors.numpy.load(self.job.store.read(name))
        except (OSError, SafetensorError) as error:
            raise StoreError(f"{self.job.store.path(name)} is missing or damaged: {error}") from error
        return tensors

    def _clips_of(self, source: Source) -> tuple[Clip, ...]:
        outcome = self.outcomes["split"].get(source.key)
        return outcome.value.clips if outcome and outcome.value else ()

    def _fate(self, clip: Clip, rules: Any) -> Fate:
        if broken := rejection(clip, None, rules):
            return Fate(stage="select", rejected=broken)
        for stage in CLIP_STAGES:
            outcome: Outcome[Any] | None = self.outcomes[stage].get(clip.clip_id)
            if outcome is None:
                return Fate(stage=stage)
            if outcome.failure:
                return Fate(stage=stage, failed=outcome.failure)
            if stage == "score" and (broken := rejection(clip, outcome.result.scores, rules)):
                return Fate(stage="select", rejected=broken)
        encoded = self.outcomes["encode"].get(clip.clip_id)
        assert encoded is not None
        return Fate(stage="pack", rejected=unpackable(encoded.result, self.job.config.pack))


def packed_clip_ids(run: Store) -> tuple[Manifest, set[str]] | None:
    """Return the newest manifest of a run and the ids of the clips that its indexes name, or None before the first."""
    if not head_names(run):
        return None
    manifest, base = open_manifest(run.url)
    store = Store(base)
    segments = [segment for entry in manifest.shards for row in read_index(store, entry) for segment in row.clip_ids]
    return manifest, {clip_id_of(segment) for segment in segments}


def funnel(ledger: Ledger) -> dict[str, Any]:
    """Summarise a run: what became of its sources and clips, by stage and by reason."""
    fates = list(ledger.fates())
    found = packed_clip_ids(ledger.job.store)
    ready = {clip.clip_id for clip, fate in fates if fate.ready}
    packed = ready & found[1] if found else set()
    split = [ledger.outcomes["split"].get(source.key) for source in ledger.sources]
    return {
        "sources": {
            "planned": len(split),
            "split": sum(1 for outcome in split if outcome and outcome.value),
            "failed": dict(Counter(outcome.failure.error for outcome in split if outcome and outcome.failure)),
            "duplicates": len(ledger.duplicates()),
            "waiting": sum(1 for outcome in split if outcome is None),
        },
        "clips": {
            "cut": len(fates),
            "packed": len(packed),
            "rejected": dict(Counter(fate.rejected.rule for _, fate in fates if fate.rejected)),
            "failed": dict(Counter(f"{fate.stage}: {fate.failed.error}" for _, fate in fates if fate.failed)),
            "waiting": dict(
                Counter(fate.stage for clip, fate in fates if fate.open or (fate.ready and clip.clip_id not in packed))
            ),
        },
        "seconds": round(sum(clip.duration_s for clip, _ in fates), 3),
        "seconds_packed": round(sum(clip.duration_s for clip, _ in fates if clip.clip_id in packed), 3),
    }
