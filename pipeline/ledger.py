"""The ledger: the fate of every source and clip, as a view over the plan, the results and the newest manifest.

There is no database to keep in step: what the results say is what happened. Reading it again costs only the parts that are new.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from packing.geometry import token_grid
from packing.manifest import Manifest, head_names, open_manifest
from packing.rows import read_index
from packing.store import Store
from pipeline.job import Job
from pipeline.records import Clip, Failure, Outcome, Source
from pipeline.results import LatestOutcomes
from pipeline.select import Rejection, rejection, rules_of
from pipeline.sources import read_plan
from pipeline.stages import STAGES

CLIP_STAGES = ("score", "recaption", "encode", "embed")


@dataclass(frozen=True, kw_only=True)
class Fate:
    """How a clip stands: rejected, failed, ready to be packed (`stage` is "pack"), or waiting for `stage`."""

    stage: str
    rejected: Rejection | None = None
    failed: Failure | None = None

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
        self.__dict__.pop("clips", None)

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
        rules = rules_of(self.job.config)
        return ((clip, self._fate(clip, rules)) for clip in self.clips.values())

    def ready(self) -> list[Clip]:
        """Return the clips that can be packed, in id order."""
        return [clip for clip, fate in self.fates() if fate.ready]

    def tokens(self, clip_id: str) -> int:
        """Return how many tokens an encoded clip has."""
        outcome = self.outcomes["encode"].get(clip_id)
        assert outcome is not None
        _, t, h, w = outcome.result.latent_shape
        return prod(token_grid((t, h, w), self.job.config.pack.patch))

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
        tokens, length = self.tokens(clip.clip_id), self.job.config.pack.length
        if tokens > length:
            return Fate(stage="pack", rejected=Rejection(rule="pack.length", value=tokens, threshold=length))
        return Fate(stage="pack")


def packed_clip_ids(run: Store) -> tuple[Manifest, set[str]] | None:
    """Return the newest manifest of a run and the ids of the clips that its indexes name, or None before the first."""
    if not head_names(run):
        return None
    manifest, base = open_manifest(run.url)
    store = Store(base)
    ids = [clip_id for entry in manifest.shards for row in read_index(store, entry) for clip_id in row.clip_ids]
    return manifest, set(ids)


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
