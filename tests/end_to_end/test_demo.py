"""The demo as a newcomer runs it: one command from nothing to a sampled video."""

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest

pytestmark = pytest.mark.end_to_end


def clipmill(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "clipmill", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    done = clipmill("demo", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_demo_leaves_a_run_that_verifies(demo: Path) -> None:
    report = json.loads(clipmill("verify", demo / "run", "--json").stdout)
    assert report["ok"]
    assert report["clips"] == report["packed"] + report["rejected"] + report["failed"]
    assert report["packed"] > 10


def test_the_demo_gives_broken_files_a_named_fate(demo: Path) -> None:
    sources = json.loads(clipmill("status", demo / "run", "--json").stdout)["sources"]
    assert sources["failed"] == {"unrecognised": 2, "truncated": 1}


def test_the_demo_samples_a_video_that_a_player_opens(demo: Path) -> None:
    with av.open(str(demo / "sample.mp4")) as media:
        frames = list(media.decode(video=0))
    assert (frames[0].width, frames[0].height) == (96, 64)
    assert len(frames) == 9


def test_statistics_of_the_demo_add_up(demo: Path) -> None:
    stats = json.loads(clipmill("stats", demo / "run", "--json").stdout)
    assert sum(stats["shapes"].values()) == stats["clips"] == stats["captions"]["short"]
    assert stats["fill"] == pytest.approx(stats["tokens"] / stats["rows"] / stats["sequence_length"], abs=1e-6)
