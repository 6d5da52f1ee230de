"""Fit the cost model of rows to a device, by timing forward and backward passes of the model over made-up rows.

FLOPs do not tell how much slower attention is than the linear layers; that differs by device and model, so it is measured
(KnapFormer, arXiv 2508.06001, fits one such factor). Rows of equal tokens are divided into ever more clips, which tells
squares, segments and tokens apart. Cost: some seconds on a GPU, minutes on a CPU at full length.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from packing.cost import CostModel, fit_cost
from packing.manifest import Manifest
from packing.mixture import open_loader
from training.config import Precision, TrainJob
from training.model import DiT, dit_for
from training.precision import products
from training.ranks import joined_ranks

CAPTION_TOKENS = 64  # of each made-up clip
PIECES = (1, 2, 3, 6, 12, 24)  # clips that a timed row is divided into
SIZES = (1.0, 0.75, 0.5, 0.25)  # of a whole row


@dataclass(frozen=True, kw_only=True)
class TimedRow:
    """A row of these clip lengths, what it took, what the fit says it takes, and whether the fit did not see it."""

    lengths: tuple[int, ...]
    seconds: float
    predicted_s: float
    held_out: bool

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_s / self.seconds - 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A cost model in seconds, and the rows that it was fitted to or held against."""

    cost: CostModel
    rows: tuple[TimedRow, ...]
    device: str

    @property
    def held_out_error(self) -> float:
        """Mean size of the relative errors over rows that the fit did not see."""
        errors = [abs(row.error) for row in self.rows if row.held_out]
        return sum(errors) / len(errors)

    def to_json(self) -> str:
        """Write everything as JSON."""
        return json.dumps({**asdict(self), "held_out_error": self.held_out_error}, indent=1)

    def to_text(self) -> str:
        """Write a table for a terminal, and the setting to train with."""
        setting = ",".join(f"{value:.6g}" for value in asdict(self.cost).values())
        lines = [
            f"one row on {self.device}",
            "",
            f"{'tokens':>9}{'clips':>7}{'Σ len²':>16}{'seconds':>11}{'predicted':>11}{'error':>8}",
            *(_line(row) for row in self.rows),
            "",
            f"mean error of the rows left out of the fit (*): {self.held_out_error:.1%}",
            f"in linear layers' worth of a token: squares {self.cost.squares / (self.cost.tokens or 1):.3g}, "
            f"segments {self.cost.segments / (self.cost.tokens or 1):.3g}, row {self.cost.row / (self.cost.tokens or 1):.3g}",
            f"train.cost=[{setting}]",
        ]
        return "\n".join(lines)


def calibrate(job: TrainJob, shards_url: str, *, length: int | None = None, repeats: int = 3) -> Calibration:
    """Time the model of a job on its device, at the widths of the shards, and fit a cost model.

    Args:
        job: the model, the device, the precision and the threads.
        shards_url: a run folder, a packed folder, or a mixture.
        length: the most tokens of a timed row; those of the shards without it.
        repeats: passes of each row, of which the fastest counts.

    Raises:
        ShardError: there are no shards at `shards_url`.
    """
    manifest = open_loader(shards_url, global_batch=1).manifest
    if job.train.threads:
        torch.set_num_threads(job.train.threads)
    with joined_ranks(job.train.device) as ranks:
        model = dit_for(job.model, manifest).to(ranks.device)
        rows = timed_lengths(length or manifest.sequence_length)
        _time_pass(model, rows[0], manifest, job.train.precision)  # kernels are compiled and memory is found only once
        seconds = [min(_time_pass(model, row, manifest, job.train.precision) for _ in range(repeats)) for row in rows]
        name = torch.cuda.get_device_name() if ranks.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return held_against(rows, seconds, name)


def timed_lengths(length: int) -> list[tuple[int, ...]]:
    """Return rows to be timed, as clip lengths: parts of `length`, each divided evenly and unevenly."""
    rows = []
    for size in SIZES:
        tokens = int(length * size)
        for pieces in PIECES:
            short = tokens // (2 * pieces) if size in SIZES[1::2] else tokens // pieces
            rows.append((tokens - short * (pieces - 1), *[short] * (pieces - 1)))
    return rows


def held_against(rows: Sequence[Sequence[int]], seconds: Sequence[float], device: str) -> Calibration:
    """Fit a cost model to three rows of four, and hold it against all."""
    fitted = [number for number in range(len(rows)) if number % 4 != 3]
    cost = fit_cost([rows[number] for number in fitted], [seconds[number] for number in fitted])
    timed = tuple(
        TimedRow(
            lengths=tuple(row),
            seconds=took,
            predicted_s=float(cost.clip_costs(row).sum()) + cost.row,
            held_out=number not in fitted,
        )
        for number, (row, took) in enumerate(zip(rows, seconds, strict=True))
    )
    return Calibration(cost=cost, rows=timed, device=device)


def _time_pass(model: DiT, lengths: Sequence[int], manifest: Manifest, precision: Precision) -> float:
    """Time one forward and backward pass over a row of noise, in seconds."""
    device, clips = next(model.parameters()).device, len(lengths)
    tokens = torch.randn(sum(lengths), manifest.token_dim, device=device)
    text = torch.randn(clips * CAPTION_TOKENS, manifest.text_encoder.width, device=device)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    grid = torch.tensor([[1, 1, length] for length in lengths])
    cu_text = torch.arange(clips + 1) * CAPTION_TOKENS
    begin = _now(device)
    with products(precision, device):
        velocity = model(tokens, torch.full((clips,), 0.5, device=device), cu_seqlens, grid, text, cu_text)
    velocity.float().square().mean().backward()
    end = _now(device)
    model.zero_grad(set_to_none=True)
    return end - begin


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _line(row: TimedRow) -> str:
    figures = f"{sum(row.lengths):>9,}{len(row.lengths):>7}{sum(length**2 for length in row.lengths):>16,}"
    return f"{figures}{row.seconds:>11.4f}{row.predicted_s:>11.4f}{row.error:>8.1%}{' *' if row.held_out else ''}"
