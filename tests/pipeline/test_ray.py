"""The Ray runner gives the shards of the local one, byte by byte, however its workers are pooled."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from packing.manifest import open_manifest
from pipeline.ingest import IngestReport
from pipeline.job import open_job
from pipeline.verify import verify

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
POOLS = [f"resources.{stage}.cpus=0.1" for stage in ("split", "score", "recaption", "encode", "embed", "pack")]


@pytest.mark.parametrize(
    "placing", [["ray.shared_workers=1"], ["ray.shared_workers=0", *POOLS]], ids=["one worker for all", "a pool for each stage"]
)
def test_ray_writes_the_shards_of_the_local_runner(
    settings: Callable[..., list[str]], finished: tuple[Path, IngestReport], tmp_path: Path, placing: list[str]
) -> None:
    run = tmp_path / "run"
    overrides = settings(run, "runner=ray", "ray.cpus=2", *placing)
    command = [sys.executable, "-m", "clipmill", "ingest", str(ROOT / "configs/tiny.yaml"), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})
    assert done.returncode == 0, done.stderr
    theirs, ours = open_manifest(str(run)), open_manifest(str(finished[0]))
    assert [shard.sha256 for shard in theirs[0].shards] == [shard.sha256 for shard in ours[0].shards]
    assert theirs[0] == ours[0]
    assert verify(open_job(str(run)))["ok"]
    assert json.loads((run / "fingerprints.json").read_text()) == json.loads((finished[0] / "fingerprints.json").read_text())


def test_a_worker_that_dies_again_and_again_is_one_line_and_not_a_hang() -> None:
    code = """
from functools import partial
from packing.errors import ClipmillError
from pipeline.config import RayConfig, ResourceConfig
from pipeline.ray_runner import RayRunner
from pipeline.runner import Step

resources = ResourceConfig(cpus=0.5)
step = Step(name="split", make=partial(exec, "import os; os._exit(1)"), resources=resources)
try:
    list(RayRunner(RayConfig(cpus=1), resources).run([step], [{}]))
except ClipmillError as error:
    print(error)
"""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert "a Ray worker died 8 times on one row" in done.stdout
