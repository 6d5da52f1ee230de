"""`torchrun -m training SHARDS [CONFIG] [key=value ...]`: the command `train` on every rank."""

import sys

import click

from packing.errors import ClipmillError
from training.cli import train

if __name__ == "__main__":
    try:
        train.main(prog_name="python -m training")
    except ClipmillError as error:
        click.echo(f"clipmill: {error}", err=True)
        sys.exit(2)
