"""What a run reports while it trains: one record for every `log_every` steps, over all ranks."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The steps since the last report, in numbers; one line of `metrics.jsonl`."""

    step: int  # optimizer steps done
    epoch: int
    loss: float  # mean over the steps of each step's mean over tokens
    lr: float
    tokens: int  # real tokens, over all ranks
    tokens_per_s: float
    data_wait: float  # share of the time that rank 0 waited for its next batch, 0 to 1

    def __str__(self) -> str:
        speed = f"{self.tokens_per_s:,.0f} tokens/s, data wait {self.data_wait:.1%}"
        return f"step {self.step}: loss {self.loss:.4f}, {speed}, epoch {self.epoch}"

    def append_to(self, path: Path) -> None:
        """Add the record as one line of JSON; steps done again after a crash stand twice, the later counts."""
        with path.open("a") as file:
            file.write(json.dumps(asdict(self)) + "\n")


class Meter:
    """Adds up steps until they are reported; the loss stays on its device until then, so no step waits for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._losses = torch.zeros((), device=device)
        self._reset()

    def _reset(self) -> None:
        self._losses.zero_()
        self._steps = self._tokens = 0
        self._waited_s = 0.0
        self._since = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    def add(self, loss: Tensor, tokens: int) -> None:
        """Count one step: this rank's share of its loss, and its tokens over all ranks."""
        self._losses += loss
        self._tokens += tokens
        self._steps += 1

    def report(self, ranks: Ranks, *, step: int, epoch: int, lr: float) -> StepReport:
        """Close the record of the steps since the last one; all ranks call it together."""
        (losses,) = ranks.sum(self._losses.item())
        elapsed_s = time.perf_counter() - self._since
        report = StepReport(
            step=step,
            epoch=epoch,
            loss=losses / self._steps,
            lr=lr,
            tokens=self._tokens,
            tokens_per_s=self._tokens / elapsed_s,
            data_wait=self._waited_s / elapsed_s,
        )
        self._reset()
        return report
