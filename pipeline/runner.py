"""The runner's contract, and the reference runner: every row through every step, in one process, in order.

A row is a small JSON object, one a partition or shard. A step turns a row into a row, 1 to 1; it reads and writes everything
large through the store. Runners differ in where steps run, never in what they compute.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.config import ResourceConfig

Row = dict[str, Any]


class Worker(Protocol):
    """One step at work in one process: takes row after row."""

    def __call__(self, row: Row) -> Row:
        """Do the step for one row."""

    def close(self) -> None:
        """Let go of what the step holds."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step: `make` builds its worker in the process that will run it."""

    name: str
    make: Callable[[], Worker]
    resources: ResourceConfig


class Runner(Protocol):
    """Takes rows through steps, somewhere."""

    def run(self, steps: Sequence[Step], rows: Sequence[Row]) -> Iterator[Row]:
        """Yield every row after its last step, in any order."""


class LocalRunner:
    """Runs every step in this process."""

    def run(self, steps: Sequence[Step], rows: Sequence[Row]) -> Iterator[Row]:
        """Yield every row after its last step, in order."""
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(contextlib.closing(step.make())) for step in steps]
            for row in rows:
                for worker in workers:
                    row = worker(row)
                yield row
