"""`clipmill demo`: the whole path on a laptop, from a world with known truth to sampled videos and a scorecard."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from demo.config import DemoConfig
    from demo.scorecard import Study

ROOT = Path(__file__).parent.parent
CONFIGS, WEIGHTS = ROOT / "configs", Path(__file__).parent / "weights"
NATURAL = ROOT.parent / "shared" / "data" / "videos"  # beside a checkout, where there is one
OWN = ("world.", "samples=", "natural=")
TRAINING = ("train.", "model.")
FULL = ("world.videos=700", "samples=96")
# Of the clips that the model trains on: a quarter of the pixels, which is what the judges look at, the first 1.6 seconds in
# nine frames, and all of a place's time in one token, so that a short training sees many clips. A square clip is 16 tokens.
SMALL = (
    "encode.max_pixels=4096",
    "encode.fps=5",
    "encode.max_frames=9",
    "split.min_clip_s=1.65",
    "pack.patch=[5,2,2]",
    "pack.length=128",
    "pack.kind=videos",
    "runner=local",
)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("clipmill-demo"))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--full", is_flag=True, help="A larger world and ten minutes of training, 20 minutes in all.")
def demo(folder: Path, overrides: tuple[str, ...], full: bool) -> None:
    """Make a world with known truth, ingest it on Ray, pack, verify, train, sample, and score every stage, all into FOLDER.

    KEY=VALUE sets the world (world.videos=24 world.seed=0 world.difficulty=normal), samples=N, natural=FOLDER of natural videos
    for the codec's figure, train.… and model.… for the training; any other key is one of the ingest's config.
    """
    from demo.config import DemoConfig
    from packing.config import load_config

    own = [text for text in overrides if text.startswith(OWN)]
    config = load_config(DemoConfig, None, [*(FULL if full else ()), *own])
    training = [text for text in overrides if text.startswith(TRAINING)]
    overrides = tuple(text for text in overrides if text not in own and text not in training)
    started = time.monotonic()
    study = _ingested(folder, config, overrides)
    card = _scored(study, config)
    _title("ingest again, for training: small clips, few tokens; only encoding and packing are done anew")
    with study.timed("ingest for training"):
        _ingest(study, [*overrides, *SMALL])
    checkpoints = folder / "checkpoints"
    _title("train")
    recipe = "train_demo_full.yaml" if full else "train_demo.yaml"
    arguments = [str(study.run), str(CONFIGS / recipe), f"train.out={checkpoints}", *training]
    with study.timed("train"):
        if full and len(os.sched_getaffinity(0)) > 1:
            _torchrun(arguments)
        else:
            _clipmill("train", *arguments)
    card["samples"] = _sampled(study, config, checkpoints, folder)
    card["seconds"] = {**study.seconds, "total": round(time.monotonic() - started, 1)}
    (folder / "scorecard.json").write_text(json.dumps(card, indent=1) + "\n")
    _show(card, folder)


def _ingested(folder: Path, config: "DemoConfig", overrides: Sequence[str]) -> "Study":
    """Make the world, take it to packed shards and look at them."""
    from demo.scorecard import Study
    from demo.world import make_world

    study = Study(world=folder / "world", run=folder / "run")
    _title("world")
    click.echo(f"{config.world.videos} videos of seed {config.world.seed}, drawn and encoded into {study.world}", err=True)
    with study.timed("world"):
        make_world(study.world, config.world)
    _title("ingest")
    with study.timed("ingest"):
        _ingest(study, overrides)
    for command in ("status", "stats", "verify"):
        _title(command)
        with study.timed(command):
            _clipmill(command, str(study.run))
    return study


def _ingest(study: "Study", overrides: Sequence[str]) -> None:
    models = [
        f"score.model=local-dir:{WEIGHTS / 'clip'}",
        f"recaption.model={WEIGHTS / 'captioner'}",
        f"encode.model={WEIGHTS / 'codec'}",
        f"embed.model=local-dir:{WEIGHTS / 'clip'}",
    ]
    world = [f"input.uri={study.world / 'videos'}", f"input.text={study.world / 'titles.csv'}", f"run={study.run}"]
    _clipmill("ingest", str(CONFIGS / "demo.yaml"), *world, *models, *overrides)


def _scored(study: "Study", config: "DemoConfig") -> dict[str, Any]:
    """Measure every stage up to packing."""
    from demo.natural import score_natural
    from demo.scorecard import score_world

    _title("score the stages")
    card: dict[str, Any] = {"world": asdict(config.world), **score_world(study)}
    if natural := config.natural or (str(NATURAL) if NATURAL.is_dir() else ""):
        with study.timed("score natural"):
            card["encode"]["psnr_natural_db"] = score_natural(study.job.config, natural)
    return card


def _sampled(study: "Study", config: "DemoConfig", checkpoints: Path, folder: Path) -> dict[str, Any]:
    """Measure samples, draw the contact sheets, and keep some samples as videos."""
    from demo.pictures import draw_sheets
    from demo.scorecard import Study, score_samples
    from training import write_mp4

    _title("sample and score")
    small = Study(world=study.world, run=study.run, seconds=study.seconds)  # as it was ingested for training
    figures, samples = score_samples(small, checkpoints, count=config.samples)
    with study.timed("pictures"):
        draw_sheets(study, samples, folder / "pictures")
        for number, sample in enumerate(samples[:8]):
            path = folder / "samples" / f"{number:02d}_{'_'.join(sample.combination)}.mp4"
            path.parent.mkdir(exist_ok=True)
            write_mp4(sample.frames, small.job.config.encode.fps, path)
    return figures


def _show(card: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    from demo.scorecard import table_of

    Console().print(table_of(card))
    for name, what in [("scorecard.json", "all figures"), ("pictures", "contact sheets"), ("samples", "sampled videos")]:
        click.echo(f"{folder / name}: {what}")
    click.echo(f"\nAll of it is in {folder} ({card['seconds']['total']:.0f} s).", err=True)


def _title(text: str) -> None:
    click.echo(f"\n== {text} ==", err=True)


def _clipmill(*arguments: str) -> None:
    """Run one command as the command line would, showing it, so that a newcomer can copy it."""
    from clipmill import cli

    click.echo(f"$ {shlex.join(['clipmill', *arguments])}", err=True)
    try:
        cli.main(list(arguments), standalone_mode=False)
    except SystemExit as end:  # verify tells with its exit code
        if end.code:
            sys.exit(end.code)


def _torchrun(arguments: Sequence[str]) -> None:
    """Train with two ranks of one thread each: on two cores they do a third more than one rank with two threads."""
    command = ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "training", *arguments, "train.threads=1"]
    click.echo(f"$ OMP_NUM_THREADS=1 {shlex.join(command)}", err=True)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command[1:]],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
    )
    if done.returncode:
        sys.exit(done.returncode)
