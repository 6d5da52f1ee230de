"""Run one stage over one partition: what every worker does, whoever placed it.

Work is what the stage admits and has no result yet. It goes in fixed chunks of the partition's keys, one part a chunk, so a
killed worker costs one chunk, and a resumed chunk has the batches, and with them the bits, of an undisturbed run. What kills
its worker again and again is isolated and failed (`pipeline.attempts`).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.attempts import Attempt, Attempts
from pipeline.job import Job
from pipeline.records import Outcome, Partition, failed
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
        ok = lost = reused = 0
        attempts: Attempts | None = None  # read only where there is something to do
        for start in range(0, len(keys), self.stage.chunk):
            chunk = keys[start : start + self.stage.chunk]
            todo = [key for key in chunk if key in admitted and self._is_due(mine.get(key))]
            reused += sum(1 for key in chunk if key in admitted) - len(todo)
            if todo:
                attempts = attempts or Attempts.of(self.job.store, self.stage.name, self._fingerprint, partition.id)
                for outcomes in self._committed(view, attempts, [(key, 1 + _attempts(mine.get(key))) for key in todo]):
                    lost += sum(1 for outcome in outcomes if outcome.failure)
                    ok += sum(1 for outcome in outcomes if outcome.value is not None)
        return Work(ok=ok, failed=lost, reused=reused)

    @property
    def _fingerprint(self) -> str:
        return self.job.fingerprints[self.stage.name]

    def _is_due(self, known: Outcome[Any] | None) -> bool:
        return known is None or (self.job.retry and known.failure is not None)

    def _committed(self, view: PartitionView, attempts: Attempts, keys: Sequence[Attempt]) -> Iterator[list[Outcome[Any]]]:
        """Process keys and commit their outcomes: in one part, unless a worker has died of them before."""
        results = self.job.results(self.stage.name)
        guilty = [key for key in keys if attempts.is_guilty(key)]
        for group in attempts.groups([key for key in keys if key not in guilty]):
            self._make_live()
            with attempts.marked(group):
                outcomes = self._outcomes(view, group)
                results.write(view.partition.id, outcomes)
            yield outcomes
        if guilty:
            outcomes = [self._condemned(key, attempts.deaths[key]) for key in guilty]
            results.write(view.partition.id, outcomes)
            yield outcomes

    def _condemned(self, key: Attempt, deaths: int) -> Outcome[Any]:
        outcome: Outcome[Any] = failed(key[0], self.stage.crash, f"its worker died {deaths} times")
        return replace(outcome, attempt=key[1])

    def _make_live(self) -> None:
        if not self._live:
            limit_threads(self.job.config.threads)
            self.stage.setup()
            self._live = True

    def _outcomes(self, view: PartitionView, keys: Sequence[Attempt]) -> list[Outcome[Any]]:
        """Process keys and return their outcomes in the order of the keys, each with the number of its attempt."""
        wanted = dict(keys)
        made = {outcome.key: outcome for outcome in self.stage.process(self.stage.inputs(view, list(wanted)))}
        if made.keys() != wanted.keys():
            raise AssertionError(f"{self.stage.name} lost or invented outcomes: {made.keys() ^ wanted.keys()}")
        return [replace(made[key], attempt=number) for key, number in keys]


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
