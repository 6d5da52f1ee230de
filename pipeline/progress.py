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
from pipeline.ledger import Ledger
from pipeline.stages import STAGES


@contextlib.contextmanager
def live_progress(ledger: Ledger, console: Console) -> Iterator[None]:
    """Show how a job goes on while the body runs."""
    stop = threading.Event()
    started = time.monotonic()
    table = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
    watcher = threading.Thread(target=_watch, args=(ledger, table, stop, started), daemon=True)
    with table or contextlib.nullcontext():
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            _publish(ledger, progress(ledger, time.monotonic() - started), None)


def progress(ledger: Ledger, elapsed_s: float) -> dict[str, Any]:
    """Count, for every stage, what is done, kept, rejected and failed, what is left, and how fast it goes."""
    counts = {stage: {"done": 0, "kept": 0, "rejected": 0, "failed": 0} for stage in STAGES}
    for source in ledger.sources:
        outcome = ledger.outcomes["split"].get(source.key)
        if outcome:
            counts["split"]["done"] += 1
            counts["split"]["failed" if outcome.failure else "kept"] += 1
    waiting = dict.fromkeys(STAGES, 0) | {"split": len(ledger.sources) - counts["split"]["done"]}
    for _, fate in ledger.fates():
        _count(counts, waiting, fate.stage, bool(fate.rejected), bool(fate.failed))
    return {"elapsed_s": round(elapsed_s, 1), "stages": {s: _paced(counts[s], waiting[s], elapsed_s) for s in STAGES}}


def _count(counts: dict[str, dict[str, int]], waiting: dict[str, int], stage: str, rejected: bool, failed: bool) -> None:
    """Count one clip: it has passed every stage before the one where it stands."""
    order = list(STAGES)[1:]
    stands = {"select": "score", "pack": ""}.get(stage, stage)
    for name in order:
        if name == stands and (rejected or failed):
            counts[name]["done"] += 1
            counts[name]["rejected" if rejected else "failed"] += 1
        if name == stands:
            waiting[name] += not (rejected or failed)
            return
        counts[name]["done"] += 1
        counts[name]["kept"] += 1


def _paced(counts: dict[str, int], waiting: int, elapsed_s: float) -> dict[str, Any]:
    rate = counts["done"] / elapsed_s if elapsed_s > 0 else 0.0
    return {**counts, "waiting": waiting, "per_s": round(rate, 2), "left_s": round(waiting / rate) if rate else None}


def _watch(ledger: Ledger, live: Live | None, stop: threading.Event, started: float) -> None:
    pause = 0.5
    while not stop.wait(pause):
        before = time.monotonic()
        with contextlib.suppress(ClipmillError):  # the job itself tells what is wrong with the store
            ledger.refresh()
            _publish(ledger, progress(ledger, before - started), live)
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
