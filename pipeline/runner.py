"""The runner's contract, and the reference runner: every row through every step, in one process, in order.

A row is a small JSON object, one a partition or shard. A step turns a row into a row, 1 to 1; it reads and writes everything
large through the store. Runners differ in where steps run, never in what they compute.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.config import ResourceConfig

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step: `make` builds its worker in the process that will run it; the worker then takes row after row."""

    name: str
    make: Callable[[], Callable[[Row], Row]]
    resources: ResourceConfig


class Runner(Protocol):
    """Takes rows through steps, somewhere."""

    def run(self, steps: Sequence[Step], rows: Sequence[Row]) -> Iterator[Row]:
        """Yield every row after its last step, in any order."""

    def facts(self) -> Mapping[str, object]:
        """Tell what this runner is, for people."""


class LocalRunner:
    """Runs every step in this process."""

    def run(self, steps: Sequence[Step], rows: Sequence[Row]) -> Iterator[Row]:
        """Yield every row after its last step, in order."""
        workers = [step.make() for step in steps]
        for row in rows:
            for worker in workers:
                row = worker(row)
            yield row

    def facts(self) -> Mapping[str, object]:
        """Tell what this runner is, for people."""
        return {"runner": "local"}
