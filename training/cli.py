"""The commands `train` and `sample` of the front door; also what `python -m training` runs."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from packing.config import load_config
from packing.errors import ConfigError
from training.config import TrainJob

if TYPE_CHECKING:
    from training.meter import StepReport


@click.command()
@click.argument("shards")
@click.argument("settings", nargs=-1, metavar="[CONFIG] [KEY=VALUE]...")
def train(shards: str, settings: Sequence[str]) -> None:
    """Train a diffusion transformer on SHARDS: a run folder, a packed folder, or a YAML file that mixes several.

    CONFIG is a YAML file; KEY=VALUE overrides one of its keys, as in train.steps=1000 or model.width=384. Run the same
    command again to go on from the newest checkpoint. Prints the folder of the last checkpoint.
    """
    from training.trainer import train as run_training  # torch loads in seconds: `--help` should not wait for it

    config, overrides = _config_and_overrides(settings)
    job = load_config(TrainJob, config, overrides)
    with _progress(job.train.steps) as on_report:
        checkpoint = run_training(job, shards, on_report)
    if _first_rank():
        click.echo(checkpoint)


@click.command()
@click.argument("shards")
@click.argument("settings", nargs=-1, metavar="[CONFIG] [KEY=VALUE]...")
@click.option("--length", type=click.IntRange(min=64), help="Most tokens of a timed row; by default those of SHARDS.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1), help="The fastest counts.")
@click.option("--json", "json_", is_flag=True, help="Print JSON for scripts.")
def calibrate(shards: str, settings: Sequence[str], length: int | None, repeats: int, json_: bool) -> None:
    """Fit the cost model of rows to this device: time passes of the model that CONFIG would train on SHARDS.

    Prints what rows took and what the fit predicts of them; every fourth row is left out of the fit. The last line is a setting
    for `clipmill train`.
    """
    from training.calibrate import calibrate as run_calibration

    config, overrides = _config_and_overrides(settings)
    found = run_calibration(load_config(TrainJob, config, overrides), shards, length=length, repeats=repeats)
    click.echo(found.to_json() if json_ else found.to_text())


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="What to show.")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The mp4 to write.")
@click.option("--size", default="64x64", show_default=True, metavar="WxH", help="Width and height in pixels.")
@click.option("--seconds", default=2.0, show_default=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--steps", default=50, show_default=True, type=click.IntRange(min=1), help="Euler steps.")
@click.option("--guidance", default=3.0, show_default=True, help="1 follows the prompt as trained, more exaggerates.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Chooses the noise.")
def sample(checkpoint: Path, prompt: str, out: Path, size: str, seconds: float, steps: int, guidance: float, seed: int) -> None:
    """Make a video of a prompt with CHECKPOINT, a checkpoint folder or the output folder of `clipmill train`.

    The size is snapped to what the codec and the patch can make. Prints the path of the mp4.
    """
    from training.sampler import VideoSampler, snap_shape, write_mp4

    width_px, height_px = _parse_size(size)
    sampler = VideoSampler(checkpoint)
    manifest = sampler.manifest
    shape = snap_shape(manifest, height_px=height_px, width_px=width_px, seconds=seconds)
    made = f"{shape.width_px}x{shape.height_px}, {shape.frames} frames at {manifest.fps:g} fps"
    if (shape.width_px, shape.height_px, shape.frames) != (width_px, height_px, round(seconds * manifest.fps)):
        click.echo(f"the nearest to {size} for {seconds:g} s that the model can make: {made}", err=True)
    frames = sampler.sample(
        prompt, height_px=height_px, width_px=width_px, seconds=seconds, steps=steps, guidance=guidance, seed=seed
    )
    write_mp4(frames, manifest.fps, out)
    click.echo(out)


def _config_and_overrides(settings: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The first setting is a config file unless it has an equals sign; the others are overrides."""
    if settings and "=" not in settings[0]:
        return settings[0], settings[1:]
    return None, settings


def _parse_size(size: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
    if match is None:
        raise ConfigError(f"--size is WIDTHxHEIGHT in pixels, as in 96x64, not {size!r}")
    return int(match[1]), int(match[2])


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _progress(steps: int) -> Iterator[Callable[["StepReport"], None] | None]:
    """Show a bar under the log where stderr is a terminal, plain log lines elsewhere, nothing on the other ranks."""
    if not _first_rank():
        yield None
        return
    console = Console(stderr=True)
    with _logging_to(console):
        if not sys.stderr.isatty():
            yield None
            return
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("training", total=steps)
            yield lambda report: bar.update(task, completed=report.step)


@contextmanager
def _logging_to(console: Console) -> Iterator[None]:
    """Send the log of this package to stderr for the duration of a command."""
    package = logging.getLogger("training")
    bar = RichHandler(console=console, show_path=False, show_level=False, show_time=False)
    handler: logging.Handler = bar if console.is_terminal else logging.StreamHandler()
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
