"""The processes of one training job: alone, or as many as torchrun started.

Numbers that all ranks must agree on (token counts, "stop now") are summed over gloo on the CPU, so that asking never
waits for a GPU. Gradients go through DDP.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from packing.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the others: `rank` of `world_size`, computing on `device`."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the checkpoints and the log."""
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """Add each number up over all ranks; every rank gets the same sums."""
        sums = torch.tensor(numbers, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(sums)
        return [float(x) for x in sums]

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model whose backward averages gradients over ranks; the model itself when there is one rank."""
        return model if self.world_size == 1 else DistributedDataParallel(model)

    def without_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Keep the gradients of a wrapped model on this rank, for all passes of a step but the last."""
        if isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return contextlib.nullcontext()


@contextlib.contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the job that torchrun describes in the environment, or stands alone; leaves it at the end.

    Raises:
        ConfigError: `device` is `cuda` and there is none.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    ranks = Ranks(rank=rank, world_size=world_size, device=_device(device))
    if world_size == 1:
        yield ranks
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if ranks.device.type == "cuda" else "gloo")
    try:
        yield ranks
        dist.barrier()  # leave together: gloo may abort a rank whose peer closes its connection first
    finally:
        dist.destroy_process_group()


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("train.device is cuda, but torch sees no GPU: use cpu or auto")
    if name == "cpu" or not available:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device
