"""The main job: sources to packed shards. Run it again and it does only what is still to do."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

from rich.console import Console

from packing.manifest import Manifest
from pipeline.config import RunConfig
from pipeline.job import Job, make_job, save_job
from pipeline.ledger import Ledger
from pipeline.pack import pack
from pipeline.progress import live_progress
from pipeline.records import Partition
from pipeline.runner import LocalRunner, Row, Runner, Step
from pipeline.sources import extend_plan, find_sources
from pipeline.stages import STAGES
from pipeline.tables import from_plain
from pipeline.work import StageWorker, Work


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What one call of `ingest` did: outcomes made and reused by stage, shards written, and the corpus that stands."""

    work: Mapping[str, Work]
    shards_written: int
    manifest: Manifest | None


def ingest(config: RunConfig, *, retry: bool = False, console: Console | None = None) -> IngestReport:
    """Take all sources of a config through all stages and pack what comes out.

    Args:
        config: the run.
        retry: give failed sources and clips another attempt.
        console: where to show progress; by default stderr.

    Raises:
        ClipmillError: a mistake of the user, or a disk that refuses to write; what was committed stays.
    """
    job = make_job(config, retry=retry)
    partitions = extend_plan(job.store, find_sources(job.config.input), job.config.input.partition_size)
    save_job(job)
    runner = make_runner(job.config)
    ledger = Ledger(job)
    with live_progress(ledger, console or Console(stderr=True)):
        work = run_stages(job, partitions, runner)
    ledger.refresh()
    manifest, written = pack(ledger, runner)
    return IngestReport(work=work, shards_written=written, manifest=manifest)


def run_stages(job: Job, partitions: list[Partition], runner: Runner) -> dict[str, Work]:
    """Take every partition through every stage; return what was done, by stage."""
    steps = [
        Step(name=stage, make=partial(StageStep, job, stage), resources=job.config.resources_of(stage)) for stage in STAGES
    ]
    rows: list[Row] = [{"partition": asdict(partition), "work": {}} for partition in partitions]
    totals: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
    for row in runner.run(steps, rows):
        for stage, work in row["work"].items():
            totals[stage].update(work)
    return {stage: Work(**count) for stage, count in totals.items()}


def make_runner(config: RunConfig) -> Runner:
    """Make the runner that a config names; Ray is imported only when it is used."""
    if config.runner == "local":
        return LocalRunner()
    from pipeline.ray_runner import RayRunner

    return RayRunner(config.ray, config.resources_of("shared"))


class StageStep:
    """A stage as a step of a runner: its rows are partitions."""

    def __init__(self, job: Job, stage: str) -> None:
        self._name = stage
        self._worker = StageWorker(job, stage)

    def __call__(self, row: Row) -> Row:
        """Run the stage over the partition of a row and add what was done to it."""
        work = self._worker(from_plain(Partition, row["partition"]))
        return {**row, "work": {**row["work"], self._name: asdict(work)}}

    def close(self) -> None:
        """Let go of what the stage holds."""
        self._worker.stage.close()
