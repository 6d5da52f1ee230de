"""The front door: assembles the commands of the packages, each imported only when it is called."""

import os
import sys
from importlib import import_module

import click

# The model libraries' own bars and advice would run into our output; what a user has set stays.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
COMMANDS = {
    "demo": "demo.cli:demo",
    "split": "pipeline.cli:split",
    "ingest": "pipeline.cli:ingest",
    "plan": "pipeline.cli:plan",
    "status": "pipeline.cli:status",
    "stats": "pipeline.cli:stats",
    "verify": "pipeline.cli:verify",
    "pack": "pipeline.cli:pack",
    "retry": "pipeline.cli:retry",
    "lint": "pipeline.cli:lint",
    "calibrate": "training.cli:calibrate",
    "train": "training.cli:train",
    "sample": "training.cli:sample",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order of a corpus's life."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=LazyGroup)
@click.version_option(package_name="clipmill")
def cli() -> None:
    """Raw videos in, packed latent shards out, a diffusion transformer trained straight from them."""


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    from packing.errors import ClipmillError

    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    try:
        cli()
    except ClipmillError as error:
        click.echo(f"clipmill: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
