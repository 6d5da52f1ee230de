"""The Ray runner: the same steps on Ray Data actor pools. The only module of the pipeline that imports Ray.

Ray carries row descriptors only; frames and latents go through the store. One actor pool a step with fractional resources from
the config, or a few workers that each run all steps, since a small job is mostly actor start-up. Retries are bounded: a step
returns outcomes for bad data and fails what kills its worker three times, so an actor that dies eight times on a row is a fault
that must be seen.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import ray.data
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.util.annotations import RayDeprecationWarning
from ray.util.metrics import Counter

from packing.errors import ClipmillError
from pipeline.config import RayConfig, ResourceConfig
from pipeline.runner import Row, Step, Worker

log = logging.getLogger(__name__)
RETRIES = {"max_restarts": -1, "max_task_retries": 7}
DEATHS = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)


class RayRunner:
    """Runs steps on a Ray cluster: the one whose address is given, or one started on this machine for the job."""

    def __init__(self, config: RayConfig, shared: ResourceConfig) -> None:
        self._config, self._shared = config, shared
        _connect(config)
        # Ray tells of its plans and ends at INFO, and of actors' arguments at ERROR; the job has its own progress.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = 0
        context.execution_no_progress_timeout_s = 24 * 3600  # a partition may take hours; decoding has its own deadline
        context.raise_original_map_exception = True

    def run(self, steps: Sequence[Step], rows: Sequence[Row]) -> Iterator[Row]:
        """Yield every row after its last step, in the order in which they finish.

        Raises:
            ClipmillError: a worker met a mistake of the user, such as a full disk.
        """
        if not rows:
            return
        items = [{"row": json.dumps(row)} for row in rows]
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        for group, resources in self._pools(steps, len(rows)):
            _tell_of_waiting(group, resources)
            dataset = _mapped(dataset, group, resources, len(rows))
        try:
            for item in dataset.iter_rows():
                row = json.loads(item["row"])
                if "error" in row:
                    raise ClipmillError(row["error"])
                yield row
        except DEATHS as error:
            raise ClipmillError(
                f"a Ray worker died {1 + RETRIES['max_task_retries']} times on one row ({str(error).splitlines()[0]}); "
                "what was committed stays, run it again to go on"
            ) from error

    def _pools(self, steps: Sequence[Step], rows: int) -> list[tuple[list[Step], ResourceConfig]]:
        count = self._config.shared_workers
        if not count:
            return [([step], step.resources) for step in steps]
        shared = self._shared
        return [(list(steps), ResourceConfig(cpus=shared.cpus, gpus=shared.gpus, min_workers=count, max_workers=count))]


def _tell_of_waiting(steps: Sequence[Step], resources: ResourceConfig) -> None:
    """Say why a pool will not start yet, when the cluster has too little for one of its workers."""
    present = ray.cluster_resources()
    for kind, wanted in (("CPU", resources.cpus), ("GPU", resources.gpus)):
        if wanted > present.get(kind, 0):
            names = ", ".join(step.name for step in steps)
            log.warning(
                "%s: a worker wants %g %s, the cluster has %g; waiting for a node", names, wanted, kind, present.get(kind, 0)
            )


def _mapped(dataset: Any, steps: list[Step], resources: ResourceConfig, rows: int) -> Any:
    """Add an actor pool that takes each row through `steps`."""
    pool = ray.data.ActorPoolStrategy(
        min_size=min(resources.min_workers, rows),
        max_size=min(resources.max_workers, rows),
        max_tasks_in_flight_per_actor=2,
    )
    with warnings.catch_warnings():
        # Bounded retries have no other way in than remote arguments, which Ray deprecates without a replacement.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map(
            _Worker,
            fn_constructor_args=(steps,),
            compute=pool,
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            **RETRIES,
        )


class _Worker:
    """What an actor runs: the workers of its steps, one after the other, over each row that it is given."""

    def __init__(self, steps: Sequence[Step]) -> None:
        # Workers are made at the first row: Ray restarts an actor that dies in its constructor for ever, in a call only twice.
        self._steps, self._workers = steps, list[tuple[str, Worker]]()
        self._done = Counter("clipmill_outcomes", "Outcomes of stages by kind", tag_keys=("stage", "kind"))

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        row = json.loads(item["row"])
        self._workers = self._workers or [(step.name, step.make()) for step in self._steps]
        for name, worker in self._workers:
            if "error" not in row:
                row = self._guarded(name, worker, row)
        return {"row": json.dumps(row)}

    def _guarded(self, name: str, worker: Worker, row: Row) -> Row:
        try:
            row = worker(row)
        except ClipmillError as error:
            return {**row, "error": f"{name}: {error}"}
        for kind, count in row.get("work", {}).get(name, {}).items():
            if count:
                self._done.inc(count, tags={"stage": name, "kind": kind})
        return row


def _connect(config: RayConfig) -> None:
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = config.address or os.environ.get("RAY_ADDRESS", "")
    try:
        with _silent_core():
            if address:
                ray.init(address=address, **quiet)
            else:  # "local", or Ray would look for the last cluster of this machine, and wait for it if it is dead
                ray.init("local", num_cpus=config.cpus, num_gpus=config.gpus, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClipmillError(f"cannot reach Ray at {address or 'this machine'}: {str(error).strip().splitlines()[0]}") from error


@contextlib.contextmanager
def _silent_core() -> Iterator[None]:
    """Keep Ray's C++ core, which announces its log level on stderr before it obeys it, off the terminal."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
