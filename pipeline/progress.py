"""Live progress of a job, as a view over what it has committed: the same for both runners, and true after a crash.

A thread reads the ledger again and again, each time only the parts that are new, and never spends more than a tenth of the time
on it. It draws a table when stderr is a terminal and writes `status.json` into the run for everybody else.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from packing.errors import ClipmillError
from pipeline.ledger import CLIP_STAGES, Fate, Ledger
from pipeline.stages import STAGES


@contextlib.contextmanager
def live_progress(ledger: Ledger, console: Console) -> Iterator[None]:
    """Show how a job goes on while the body runs."""
    stop = threading.Event()
    clock = Clock(ledger)
    table = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
    watcher = threading.Thread(target=_watch, args=(ledger, table, stop, clock), daemon=True)
    with table or contextlib.nullcontext():
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
    ledger.refresh()
    _publish(ledger, clock.read(ledger), None)


class Clock:
    """The time since a job began and what was done by then, so that rates tell of this job and not of the ones before."""

    def __init__(self, ledger: Ledger) -> None:
        self._started = time.monotonic()
        self._before = {stage: counts["done"] for stage, counts in stage_counts(ledger).items()}

    def read(self, ledger: Ledger) -> dict[str, Any]:
        """Tell, for every stage, what is done, kept, rejected, failed and waiting, how fast it goes, and for how long."""
        elapsed_s = time.monotonic() - self._started
        stages = {}
        for stage, counts in stage_counts(ledger).items():
            rate = (counts["done"] - self._before[stage]) / elapsed_s
            left_s = round(counts["waiting"] / rate) if rate else None
            stages[stage] = {**counts, "per_s": round(rate, 2), "left_s": left_s}
        return {"elapsed_s": round(elapsed_s, 1), "stages": stages}


def stage_counts(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Count, for every stage, the sources (split) or clips that it has done, and those that wait for it."""
    counts = {stage: dict.fromkeys(("done", "kept", "rejected", "failed", "waiting"), 0) for stage in STAGES}
    for source in ledger.sources:
        outcome = ledger.outcomes["split"].get(source.key)
        if outcome:
            counts["split"]["done"] += 1
            counts["split"]["failed" if outcome.failure else "kept"] += 1
    counts["split"]["waiting"] = len(ledger.sources) - counts["split"]["done"]
    for _, fate in ledger.fates_alone():  # a copy goes through every stage
        _count(counts, fate)
    return counts


def _count(counts: dict[str, dict[str, int]], fate: Fate) -> None:
    """Count one clip: every stage before the one where it stands has kept it."""
    stands = {"select": "score"}.get(fate.stage, fate.stage)
    for stage in CLIP_STAGES:
        if stage == stands and fate.open:
            counts[stage]["waiting"] += 1
            return
        counts[stage]["done"] += 1
        if stage == stands:
            counts[stage]["rejected" if fate.rejected else "failed"] += 1
            return
        counts[stage]["kept"] += 1


def _watch(ledger: Ledger, live: Live | None, stop: threading.Event, clock: Clock) -> None:
    pause = 0.5
    while not stop.wait(pause):
        before = time.monotonic()
        with contextlib.suppress(ClipmillError):  # the job itself tells what is wrong with the store
            ledger.refresh()
            _publish(ledger, clock.read(ledger), live)
        pause = max(0.5, 10 * (time.monotonic() - before))


def _publish(ledger: Ledger, state: dict[str, Any], live: Live | None) -> None:
    ledger.job.store.replace("status.json", json.dumps(state, indent=1).encode())
    if live:
        live.update(_drawn(state))


def _drawn(state: dict[str, Any]) -> Table:
    columns = ["done", "kept", "rejected", "failed", "waiting", "per_s", "left_s"]
    table = Table("stage", *columns, title=f"{state['elapsed_s']:.0f} s")
    for stage, counts in state["stages"].items():
        table.add_row(stage, *(str(counts[column]) if counts[column] is not None else "" for column in columns))
    return table
