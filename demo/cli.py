"""`clipmill demo`: the whole path on a laptop, from generated videos to a sampled one."""

import shlex
import sys
import time
from pathlib import Path

import click

CONFIG = Path(__file__).parent.parent / "configs" / "tiny.yaml"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("clipmill-demo"))
@click.argument("overrides", nargs=-1)
def demo(folder: Path, overrides: tuple[str, ...]) -> None:
    """Generate videos, ingest them on Ray, pack, verify, train a little, and sample a video, all into FOLDER.

    The models are tiny and UNTRAINED: every stage, file and number is real, captions and samples are noise.
    """
    from demo.tiny_models import make_tiny_models
    from demo.videos import make_videos

    started = time.monotonic()
    click.echo("Tiny UNTRAINED models of the real classes: captions, scores and samples are noise, the path is real.", err=True)
    _title("videos and models")
    titles = make_videos(folder / "videos")
    models = make_tiny_models(folder / "models")
    run = str(folder / "run")
    paths = [
        f"score.model=local-dir:{models.clip}",
        f"recaption.model={models.captioner}",
        f"encode.model={models.codec}",
        f"embed.model={models.text}",
    ]
    _title("ingest")
    _clipmill("ingest", str(CONFIG), f"input.uri={folder / 'videos'}", f"input.text={titles}", f"run={run}", *paths, *overrides)
    for command in ("status", "stats", "verify"):
        _title(command)
        _clipmill(command, run)
    _title("train")
    _clipmill("train", run, "train.steps=20", f"train.out={folder / 'checkpoints'}")
    _title("sample")
    prompt = "A red circle moves right on a grey background"
    out = str(folder / "sample.mp4")
    _clipmill("sample", str(folder / "checkpoints"), "--prompt", prompt, "--size", "96x64", "--seconds", "1", "-o", out)
    click.echo(f"\nAll of it is in {folder} ({time.monotonic() - started:.0f} s).", err=True)


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
