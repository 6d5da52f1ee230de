"""What kills its worker is failed after three deaths, and costs nobody else anything, on both runners."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packing.store import Store
from pipeline.attempts import Attempts
from pipeline.job import open_job
from pipeline.records import Outcome
from pipeline.results import LatestOutcomes
from tests.media import shots, write_video

ROOT = Path(__file__).parents[2]
Settings = Callable[..., list[str]]

# A job whose stage, here and in every worker, is one that kills its process when it meets a poisonous file or clip of one.
DEADLY = """
import json, os, signal, sys
from dataclasses import asdict
from functools import partial

from pipeline.config import load_run_config
from pipeline.ingest import StageStep, make_runner
from pipeline.job import make_job, save_job
from pipeline.runner import Step
from pipeline.sources import extend_plan, find_sources
from pipeline.stages import STAGES

name, path, *overrides = sys.argv[1:]
job = make_job(load_run_config(path, overrides))
partitions = extend_plan(job.store, find_sources(job.config.input), job.config.input.partition_size)
save_job(job)
poisonous = [source.key for partition in partitions for source in partition.sources if "poison" in source.uri]


class Deadly(STAGES[name]):
    def inputs(self, view, keys):
        for key in keys:
            source = key if name == "split" else view.clips[key].source_key
            if source in poisonous:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().inputs(view, keys)


def make(job, stage):
    step = StageStep(job, stage)
    if stage == name:
        step._worker.stage = Deadly.from_config(job.config)
    return step


stages = list(STAGES)[: list(STAGES).index(name) + 1]
steps = [Step(name=stage, make=partial(make, job, stage), resources=job.config.resources_of(stage)) for stage in stages]
rows = [{"partition": asdict(partition), "work": {}} for partition in partitions]
print(json.dumps([row["work"] for row in make_runner(job.config).run(steps, rows)]))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good videos and a poisonous one, whose bytes are good too."""
    folder = tmp_path_factory.mktemp("mixed")
    for number, name in enumerate(["a", "b_poison", "c", "d"]):
        write_video(folder / f"{name}.mp4", shots([8 + number], first_scene=1 + number))
    return folder


def deadly(settings: Settings, run: Path, corpus: Path, stage: str, *more: str) -> subprocess.CompletedProcess[str]:
    overrides = settings(run, f"input.uri={corpus}", "input.text=null", "split.chunk=3", *more)
    command = [sys.executable, "-c", DEADLY, stage, str(ROOT / "configs/tiny.yaml"), *overrides]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def outcomes_of(run: Path, stage: str) -> dict[str, Outcome[Any]]:
    job = open_job(str(run))
    return {outcome.key: outcome for outcome in LatestOutcomes(job.results(stage)).values()}


def fates(run: Path, stage: str) -> list[str]:
    """The failures of a stage, and "ok" for the rest, sorted."""
    return sorted(outcome.failure.error if outcome.failure else "ok" for outcome in outcomes_of(run, stage).values())


def check_split(run: Path) -> None:
    assert fates(run, "split") == ["decoder_crash", "ok", "ok", "ok"]
    deaths = [outcome.failure.message for outcome in outcomes_of(run, "split").values() if outcome.failure]
    assert deaths == ["its worker died 3 times"]
    plan = json.loads((run / "plan/000.json").read_text())["partitions"][0]["sources"]
    poisonous = {source["key"] for source in plan if "poison" in source["uri"]}
    assert {key for key, outcome in outcomes_of(run, "split").items() if outcome.failure} == poisonous
    assert any(run.glob("attempts/split/*/*/*-1"))


@pytest.mark.integration
def test_a_file_that_kills_its_worker_is_failed_and_the_others_are_not_on_the_local_runner(
    settings: Settings, corpus: Path, tmp_path: Path
) -> None:
    # Two deaths of the chunk, one of the file alone.
    codes = [deadly(settings, tmp_path / "run", corpus, "split").returncode for _ in range(4)]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    check_split(tmp_path / "run")


@pytest.mark.integration
def test_a_file_that_kills_its_worker_is_failed_and_the_others_are_not_on_ray(
    settings: Settings, corpus: Path, tmp_path: Path
) -> None:
    done = deadly(settings, tmp_path / "run", corpus, "split", "runner=ray", "ray.cpus=2", "ray.shared_workers=1")
    assert done.returncode == 0, done.stderr
    check_split(tmp_path / "run")


@pytest.mark.integration
def test_a_clip_that_kills_a_model_stage_is_failed_and_the_others_are_not(settings: Settings, tmp_path: Path) -> None:
    for name in ("a", "b_poison", "c"):
        write_video(tmp_path / f"in/{name}.mp4", shots([9], first_scene=ord(name[0])))
    keyed = ["score.probes={}", "select.rules=[]", "score.chunk=8"]
    codes = [deadly(settings, tmp_path / "run", tmp_path / "in", "score", *keyed).returncode for _ in range(4)]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert fates(tmp_path / "run", "score") == ["ok", "ok", "worker_crash"]


# ---- the markers --------------------------------------------------------------------------------------------------------

A, B, C = ("a", 1), ("b", 1), ("c", 1)


def die(store: Store, *groups: list[tuple[str, int]]) -> Attempts:
    """Leave the markers of workers that died in each of these groups, one after the other."""
    for keys in groups:
        attempts = read(store)
        name = attempts._next_name(keys)
        store.put_once(name, json.dumps(keys).encode())
    return read(store)


def read(store: Store) -> Attempts:
    return Attempts.of(store, "split", "f", "000-00000")


def test_without_deaths_all_go_together(tmp_path: Path) -> None:
    assert read(Store(str(tmp_path))).groups([A, B, C]) == [[A, B, C]]


def test_a_group_that_died_once_is_tried_again_as_it_is(tmp_path: Path) -> None:
    assert die(Store(str(tmp_path)), [A, B]).groups([A, B, C]) == [[A, B, C]]


def test_a_group_that_died_twice_goes_one_by_one(tmp_path: Path) -> None:
    assert die(Store(str(tmp_path)), [A, B], [A, B]).groups([A, B, C]) == [[C], [A], [B]]


def test_only_who_died_alone_is_guilty(tmp_path: Path) -> None:
    attempts = die(Store(str(tmp_path)), [A, B], [A, B], [B])
    assert [attempts.is_guilty(key) for key in (A, B, C)] == [False, True, False]


def test_three_deaths_in_company_are_no_proof(tmp_path: Path) -> None:
    attempts = die(Store(str(tmp_path)), [A, B], [A, B], [A, B, C])
    assert not any(attempts.is_guilty(key) for key in (A, B, C))


def test_a_new_attempt_begins_without_deaths(tmp_path: Path) -> None:
    attempts = die(Store(str(tmp_path)), [A], [A], [A])
    assert attempts.is_guilty(A)
    assert not attempts.is_guilty(("a", 2))
    assert attempts.groups([("a", 2)]) == [[("a", 2)]]


def test_an_exception_is_no_death(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for _ in range(3):
        with pytest.raises(RuntimeError), read(store).marked([A, B]):
            raise RuntimeError
    assert read(store).groups([A, B]) == [[A, B]]


def test_a_chunk_that_goes_well_leaves_one_small_file(tmp_path: Path) -> None:
    with read(Store(str(tmp_path))).marked([A, B]):
        pass
    (marker,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert marker.stat().st_size < 100
