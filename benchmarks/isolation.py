"""What a process of its own costs a source: calls of the sandbox beside the same functions in this process.

    python benchmarks/isolation.py [CALLS]

Two sources: a text that is refused at its first bytes, so that a call is nothing but isolation, and a video of twelve small
frames. For each: the call as configured, with the system-call filter off, and without a sandbox. Milliseconds of wall clock
(the median and the least of CALLS) and of processor time, over all processes concerned; on a machine that is busy otherwise,
only the least and the processor's mean something.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `packing` would be packing.py of this folder

from pipeline import scan
from pipeline.config import SplitConfig
from pipeline.media import MediaError, plain_video
from pipeline.protocol import Limits
from pipeline.sandbox import DecodeError, Sandbox
from pipeline.stages.split import Split


def main(calls: int = 200) -> None:
    """Measure and print a table."""
    options = Split(chunk=1, config=SplitConfig()).options
    sandbox = Sandbox()
    table = Table("source", "how", "median ms", "least ms", "processor ms", "isolation costs, least ms")
    with plain_video() as video, tempfile.TemporaryFile() as text:
        text.write(b"no video at all")
        for name, file in (("refused", text), ("12 frames", video)):
            bare = measured(lambda file=file: in_process(file, options), calls, None)
            for how in ("auto", "off"):
                limits = Limits(wall_s=60, memory_bytes=2 << 30, seccomp=how)
                times = measured(lambda f=file, limits=limits: isolated(sandbox, f, options, limits), calls, sandbox)
                table.add_row(name, f"sandbox, seccomp {how}", *(f"{ms:.2f}" for ms in times), f"{times[1] - bare[1]:.2f}")
            table.add_row(name, "this process", *(f"{ms:.2f}" for ms in bare), "")
    sandbox.close()
    Console(width=128).print(table)


def in_process(file: Any, options: Any) -> None:
    """Scan without a sandbox."""
    file.seek(0)
    with contextlib.suppress(MediaError):
        scan.scan(file, options, lambda *_: None)


def isolated(sandbox: Sandbox, file: Any, options: Any, limits: Limits) -> None:
    """Scan in a sandbox."""
    with contextlib.suppress(DecodeError):
        sandbox.call("scan", file, options, limits)


def measured(call: Callable[[], None], calls: int, sandbox: Sandbox | None) -> tuple[float, float, float]:
    """Return the median and the least wall time and the mean processor time of a call, in milliseconds."""
    call()
    before, times = processor_s(sandbox), []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times), min(times), 1000 * (processor_s(sandbox) - before) / calls


def processor_s(sandbox: Sandbox | None) -> float:
    """Return the processor time of this process, the sandbox's server and all its children that have ended."""
    spent = time.process_time()
    if sandbox and sandbox._server:
        fields = Path(f"/proc/{sandbox._server.pid}/stat").read_text().rsplit(")", 1)[1].split()
        spent += sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return spent


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
