"""The demo as a newcomer runs it: one command from nothing to sampled videos and a scorecard, on a small world."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from demo.truth import Truth, read_truth

pytestmark = pytest.mark.end_to_end

SMALL = ("world.videos=12", "world.seed=31", "samples=3", "train.steps=8")


def clipmill(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "clipmill", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("demo")
    done = clipmill("demo", made, *SMALL)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def card(folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((folder / "scorecard.json").read_text())
    return figures


@pytest.fixture(scope="module")
def truth(folder: Path) -> Truth:
    return read_truth(folder / "world")


def test_the_demo_leaves_a_run_whose_accounts_and_checksums_hold(folder: Path) -> None:
    report = json.loads(clipmill("verify", folder / "run", "--json").stdout)
    assert report["ok"]
    assert report["clips"] == report["packed"] + report["rejected"] + report["failed"]
    assert report["packed"] > 5


def test_broken_files_fail_by_the_name_that_is_true_of_them(folder: Path, truth: Truth) -> None:
    sources = json.loads(clipmill("status", folder / "run", "--json").stdout)["sources"]
    true = [file.failure for file in truth.videos if file.kind == "broken"]
    assert sources["failed"] == {name: true.count(name) for name in set(true)}
    assert sources["duplicates"] == sum(file.kind == "copy" for file in truth.videos)


def test_every_hard_cut_is_found_and_boxes_lie_within_two_pixels(card: dict[str, Any]) -> None:
    assert card["split"]["hard_f1"] == 1.0
    assert card["select"]["crop_error_px"] <= 2


def test_most_clips_get_the_fate_that_they_deserve(card: dict[str, Any]) -> None:
    assert card["select"]["precision"] > 0.9
    assert card["select"]["recall"] > 0.9


def test_the_scorecard_has_every_figure(card: dict[str, Any]) -> None:
    assert {"hard_f1", "gradual_f1"} <= card["split"].keys()
    assert {"precision", "recall", "by_reason"} <= card["select"].keys()
    assert {"title_auc", "by_attribute"} <= card["score"].keys()
    assert {"shape", "colour", "motion", "background", "failed_checks"} <= card["recaption"].keys()
    assert {"psnr_world_db", "psnr_natural_db"} <= card["encode"].keys()
    assert {"fill", "straggler_efficiency"} <= card["pack"].keys()
    assert {"shape", "colour", "motion", "background", "ceiling"} <= card["samples"].keys()
    assert card["seconds"]["total"] > 0


def test_the_models_know_the_world(card: dict[str, Any]) -> None:
    assert card["score"]["title_auc"] > 0.9
    assert min(card["recaption"][name] for name in ("colour", "background")) > 0.8
    assert card["encode"]["psnr_world_db"] > 25


def test_the_sheets_can_be_looked_at_and_the_samples_played(folder: Path) -> None:
    for name in ("sources", "captions", "reconstructions", "samples"):
        with Image.open(folder / "pictures" / f"{name}.png") as sheet:
            assert min(sheet.size) > 90
    videos = sorted((folder / "samples").glob("*.mp4"))
    assert len(videos) == 3
    with av.open(str(videos[0])) as media:
        assert media.streams.video[0].average_rate == 5
        assert len(list(media.decode(video=0))) == 9


def test_an_unknown_key_is_one_clear_line(tmp_path: Path) -> None:
    done = clipmill("demo", tmp_path, "world.vidoes=3")
    assert done.returncode == 2
    assert "vidoes" in done.stderr
    assert "Traceback" not in done.stderr
