"""The stage interface: one step of the pipeline, between the results that it reads and the outcomes that it gives.

A stage is retry-safe and order-free, never mutates its input, returns outcomes for bad data and raises only for bugs and for
mistakes of the user. It knows no runner and writes no file.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from pipeline.config import RunConfig
from pipeline.records import Clip, Outcome, Partition, Source, SplitResult
from pipeline.results import LatestOutcomes
from pipeline.select import rejection, rules_of

In = TypeVar("In")
Value = TypeVar("Value")


@dataclass(frozen=True)
class PartitionView:
    """What a stage may read: one partition, and the latest outcomes of the stages before."""

    partition: Partition
    config: RunConfig
    outcomes: Mapping[str, LatestOutcomes]

    @cached_property
    def clips(self) -> dict[str, Clip]:
        """The clips of the partition by id, in id order; copies of a source count once."""
        found: dict[str, Clip] = {}
        for source in self.partition.sources:
            for clip in self._clips_of(source):
                found.setdefault(clip.clip_id, clip)
        return dict(sorted(found.items()))

    def selected(self, *, scored: bool) -> dict[str, Clip]:
        """Return the clips that no rule rejects: by the free rules only, or with `scored` by all, once they have scores."""
        rules = rules_of(self.config)
        keep = {}
        for clip_id, clip in self.clips.items():
            outcome = self.outcomes["score"].get(clip_id) if scored else None
            scores = outcome.value.scores if outcome and outcome.value else None
            if (scores is not None or not scored) and rejection(clip, scores, rules) is None:
                keep[clip_id] = clip
        return keep

    def source_of(self, clip: Clip) -> tuple[Source, SplitResult]:
        """Return the source that a clip was cut from, and what the split found out about it."""
        source = next(source for source in self.partition.sources if source.key == clip.source_key)
        outcome = self.outcomes["split"].get(source.key)
        assert outcome is not None
        return source, outcome.result

    def _clips_of(self, source: Source) -> Sequence[Clip]:
        outcome = self.outcomes["split"].get(source.key)
        return outcome.value.clips if outcome and outcome.value else ()


@dataclass(frozen=True, kw_only=True)
class Stage(ABC, Generic[In, Value]):
    """One step: its fields are its config, `setup` makes it live in the worker, `process` maps inputs to outcomes.

    `version` is raised when the code gives other results for the same input; `reads` names the stages whose results it reads.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    reads: ClassVar[tuple[str, ...]]
    value: ClassVar[type[Any]]
    crash: ClassVar[str] = "worker_crash"  # the failure of what kills its worker again and again
    chunk: int

    @classmethod
    @abstractmethod
    def from_config(cls, config: RunConfig) -> "Stage[In, Value]":
        """Make the stage that a run's config describes."""

    @abstractmethod
    def identity(self) -> Mapping[str, object]:
        """Return what of its config and model changes its results; a part of the stage's fingerprint."""

    @abstractmethod
    def keys(self, view: PartitionView) -> tuple[Sequence[str], set[str]]:
        """Return all keys that the partition can ever have here, in a fixed order, and those that shall be processed now.

        Chunks are cut from the first, so they do not move when more keys are admitted.
        """

    @abstractmethod
    def inputs(self, view: PartitionView, keys: Sequence[str]) -> Sequence[In]:
        """Read what `process` needs for these keys."""

    def setup(self) -> None:
        """Load models and open what stays open; once in a worker, before the first `process`."""

    def close(self) -> None:
        """Let go of what stays open; the stage is not used again."""

    @abstractmethod
    def process(self, batch: Sequence[In]) -> Iterable[Outcome[Value]]:
        """Turn inputs into one outcome each, in any order."""


def torch_device(device: str) -> str:
    """Turn "auto" into the device that this worker was given."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
