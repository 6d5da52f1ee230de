"""Run one stage over one partition: what every worker does, whoever placed it.

Work is what the stage admits and has no result yet. It goes in fixed chunks of the partition's keys, one part a chunk, so a
killed worker costs one chunk, and a resumed chunk has the batches, and with them the bits, of an undisturbed run.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.job import Job
from pipeline.records import Outcome, Partition
from pipeline.results import LatestOutcomes
from pipeline.stage import PartitionView, Stage
from pipeline.stages import STAGES


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a worker did in one partition: outcomes made now, by kind, and outcomes that were there already."""

    ok: int = 0
    failed: int = 0
    reused: int = 0


class StageWorker:
    """One stage of one job, live in this process; its model is loaded when there is first something to do."""

    def __init__(self, job: Job, stage: str) -> None:
        self.job = job
        self.stage: Stage[Any, Any] = STAGES[stage].from_config(job.config)
        self._live = False

    def __call__(self, partition: Partition) -> Work:
        """Process what is to do of a partition and commit it chunk by chunk."""
        view = partition_view(self.job, partition)
        mine = LatestOutcomes(self.job.results(self.stage.name), partition.id)
        keys, admitted = self.stage.keys(view)
        ok = failed = reused = 0
        for start in range(0, len(keys), self.stage.chunk):
            chunk = keys[start : start + self.stage.chunk]
            todo = [key for key in chunk if key in admitted and self._is_due(mine.get(key))]
            reused += sum(1 for key in chunk if key in admitted) - len(todo)
            if todo:
                outcomes = self._outcomes(view, mine, todo)
                self.job.results(self.stage.name).write(partition.id, outcomes)
                failed += sum(1 for outcome in outcomes if outcome.failure)
                ok += sum(1 for outcome in outcomes if outcome.value is not None)
        return Work(ok=ok, failed=failed, reused=reused)

    def _is_due(self, known: Outcome[Any] | None) -> bool:
        return known is None or (self.job.retry and known.failure is not None)

    def _outcomes(self, view: PartitionView, mine: LatestOutcomes, keys: Sequence[str]) -> list[Outcome[Any]]:
        """Process keys and return their outcomes in the order of the keys, each with the number of its attempt."""
        if not self._live:
            limit_threads(self.job.config.threads)
            self.stage.setup()
            self._live = True
        made = {outcome.key: outcome for outcome in self.stage.process(self.stage.inputs(view, keys))}
        if made.keys() != set(keys):
            raise AssertionError(f"{self.stage.name} lost or invented outcomes: {made.keys() ^ set(keys)}")
        return [replace(made[key], attempt=1 + _attempts(mine.get(key))) for key in keys]


def partition_view(job: Job, partition: Partition) -> PartitionView:
    """Open what stages may read of a partition; the outcomes of a stage are read when they are first asked for."""
    return PartitionView(partition, job.config, _LazyOutcomes(job, partition.id))


class _LazyOutcomes(Mapping[str, LatestOutcomes]):
    def __init__(self, job: Job, partition: str) -> None:
        self._job, self._partition = job, partition
        self._open: dict[str, LatestOutcomes] = {}

    def __getitem__(self, stage: str) -> LatestOutcomes:
        if stage not in self._open:
            self._open[stage] = LatestOutcomes(self._job.results(stage), self._partition)
        return self._open[stage]

    def __iter__(self) -> Iterator[str]:
        return iter(STAGES)

    def __len__(self) -> int:
        return len(STAGES)


def limit_threads(threads: int) -> None:
    """Give torch and its libraries this many threads: their number changes bits, so it must not be the runner's."""
    import cv2
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def _attempts(known: Outcome[Any] | None) -> int:
    return known.attempt if known else 0
