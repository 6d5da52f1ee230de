"""A job that is killed, or whose disk fills up, loses nothing that was committed and ends where an undisturbed one ends."""

import contextlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.ingest import IngestReport
from pipeline.job import open_job
from pipeline.verify import verify

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
Settings = Callable[..., list[str]]
RunJob = Callable[..., IngestReport]
Finished = tuple[Path, IngestReport]


def command(settings: Settings, run: Path) -> list[str]:
    return [sys.executable, "-m", "clipmill", "ingest", str(ROOT / "configs/tiny.yaml"), *settings(run)]


def committed(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.glob("results/*/*/*.parquet") if not path.name.startswith(".")}


def ingest_until(job: list[str], run: Path, pattern: str) -> None:
    """Start a job and kill -9 it when the first file appears that matches."""
    process = subprocess.Popen(job, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not any(run.glob(pattern)) and process.poll() is None:
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.wait() == -9, f"the job ended before {pattern} was there"


def test_a_job_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    settings: Settings, run_job: RunJob, finished: Finished, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    kept: dict[Path, bytes] = {}
    for pattern in (
        "results/split/*/*-*",
        "results/recaption/*/*.parquet",
        "results/encode/*/*-*",
        "results/embed/*/000-00001-*",
    ):
        ingest_until(command(settings, run), run, pattern)
        assert kept.items() <= committed(run).items()
        kept = committed(run)
    report = run_job(run)
    assert report.work["split"].reused > 0
    assert report.manifest == finished[1].manifest
    assert kept.items() <= committed(run).items()
    assert verify(open_job(str(run)))["ok"]


def test_a_job_that_is_killed_while_it_packs_ends_as_an_undisturbed_one(
    run_copy: Path, run_job: RunJob, finished: Finished
) -> None:
    (folder,) = (path.parent for path in run_copy.glob("packed/*/manifest.json"))
    next(folder.glob("*.index.json")).unlink()  # as after a kill between the shard and its index
    for name in ("manifest.json", "../head-00000.json"):
        (folder / name).unlink()
    (folder / ".tmp-1-abc").write_bytes(b"half a shard")
    report = run_job(run_copy)
    assert report.manifest == finished[1].manifest
    assert verify(open_job(str(run_copy)))["ok"]


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a disk of a few hundred kilobytes, where that is permitted; it grows when the body ends."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)


def told_without_traceback(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


def test_a_full_disk_is_one_line_and_what_was_committed_stays(
    settings: Settings, run_job: RunJob, finished: Finished, tmp_path: Path
) -> None:
    run = tmp_path / "disk/run"
    try:
        with small_disk(tmp_path / "disk", "800k"):
            done = subprocess.run(command(settings, run), cwd=ROOT, capture_output=True, text=True)
            kept = committed(run)
        assert "No space left on device" in told_without_traceback(done)
        assert kept
        assert run_job(run).manifest == finished[1].manifest
        assert kept.items() <= committed(run).items()
        assert verify(open_job(str(run)))["ok"]
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], capture_output=True)


def test_a_write_that_is_refused_is_one_line_and_what_was_committed_stays(
    settings: Settings, run_job: RunJob, finished: Finished, tmp_path: Path
) -> None:
    run, sizes = tmp_path / "run", [path.stat().st_size for path in finished[0].glob("results/split/*/*.safetensors")]
    limit = max(sizes) - 1  # of the longest source, which is neither the first nor the last
    done = subprocess.run(
        command(settings, run),
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "File too large" in told_without_traceback(done)
    kept = committed(run)
    assert 0 < len(kept) < len(committed(finished[0]))
    assert run_job(run).manifest == finished[1].manifest
    assert kept.items() <= committed(run).items()
