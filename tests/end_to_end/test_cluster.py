"""A real Ray cluster on loopback: a head and two workers, token auth on, the job handed in with `ray job submit`."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from packing.manifest import Manifest, open_manifest
from pipeline.config import load_run_config
from pipeline.ingest import ingest
from tests.videos import make_videos

pytestmark = [pytest.mark.integration, pytest.mark.end_to_end]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
GPU_ON_ONE_NODE = "{cpus: 0.1, gpus: 0.25}"  # logical: no model uses it, but Ray must place the stage where it is


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "videos"
    make_videos(folder, count=4, seed=3)
    return folder


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Start the nodes and give the environment that reaches them; end them by their process groups."""
    port, dashboard = _free_port(), _free_port()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    head = ["--head", f"--port={port}", "--num-cpus=2", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    workers = [[f"--address=127.0.0.1:{port}", "--num-cpus=1", gpus] for gpus in ("--num-gpus=0", "--num-gpus=1")]
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for options in ([*head, f"--temp-dir={_short_folder()}"], *workers):
            _start_node(options, environment, tmp_path, nodes)
        _wait_for(dashboard)
        yield {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        for node in reversed(nodes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()


def test_a_job_submitted_to_three_nodes_packs_the_bytes_of_a_local_run(
    cluster: dict[str, str], videos: Path, tiny_models: Path, tmp_path: Path
) -> None:
    local = _settings(videos, tiny_models, tmp_path / "local")
    ingest(load_run_config(str(ROOT / "configs/tiny.yaml"), [*local, "runner=local"]))
    submitted = [
        *_settings(videos, tiny_models, tmp_path / "cluster"),
        "runner=ray",
        "ray.address=auto",
        "ray.shared_workers=0",
        *(f"resources.{stage}={GPU_ON_ONE_NODE}" for stage in ("score", "recaption", "encode")),
        *(f"resources.{stage}={{cpus: 0.1}}" for stage in ("split", "embed", "pack")),
    ]
    command = ["ray", "job", "submit", "--", "clipmill", "ingest", str(ROOT / "configs/tiny.yaml"), *submitted]
    job = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=240, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    assert _manifest(tmp_path / "cluster").digest == _manifest(tmp_path / "local").digest


def test_a_job_without_the_token_is_refused(cluster: dict[str, str]) -> None:
    stranger = {**cluster, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = ["ray", "job", "submit", "--", "true"]
    job = subprocess.run(command, env=stranger, capture_output=True, text=True, timeout=60, check=False)
    assert job.returncode != 0


def _settings(videos: Path, models: Path, run: Path) -> list[str]:
    return [
        f"run={run}",
        f"input.uri={videos}",
        "input.partition_size=3",
        f"score.model=local-dir:{models / 'clip'}",
        f"recaption.model={models / 'captioner'}",
        f"encode.model={models / 'codec'}",
        f"embed.model={models / 'text'}",
    ]


def _manifest(run: Path) -> Manifest:
    return open_manifest(str(run))[0]


def _start_node(
    options: list[str], environment: dict[str, str], logs: Path, nodes: "list[subprocess.Popen[bytes]]", tries: int = 3
) -> None:
    """Start a node and wait until it is up; on a busy machine Ray gives up on a slow start, so try again."""
    common = ["--node-ip-address=127.0.0.1", "--disable-usage-stats", "--object-store-memory=100000000", "--block"]
    for attempt in range(tries):
        path = logs / f"node-{len(nodes)}-{attempt}.log"
        with open(path, "wb") as log:
            command = ["ray", "start", *options, *common]
            nodes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
        while nodes[-1].poll() is None:
            if "will now block" in path.read_text():
                return
            time.sleep(0.2)
    raise RuntimeError(f"a node did not start: {path.read_text()}")


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError("the head did not come up")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _short_folder() -> str:
    """Return a new folder with a short path: Ray's sockets lie in it, and a socket's path is at most 107 bytes."""
    import tempfile

    return tempfile.mkdtemp(prefix="ray")
