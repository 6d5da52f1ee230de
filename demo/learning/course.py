"""A training run of the demo's small models: a budget of CPU seconds, a cosine over it, a checkpoint that a run goes on from.

The checkpoint is one safetensors file with the model, the optimizers and how far the run is; it is replaced by a rename, so one
that is there is whole. Matrices learn by Muon, the rest by AdamW; forward passes are in bfloat16 where the processor computes
in it, and in float32 elsewhere, where bfloat16 takes six times as long.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training.checkpoint import optimizer_tensors, restore_optimizers
from training.muon import make_optimizers, set_rate
from training.precision import products

STATE = "state.safetensors"


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a training run may use, and where it keeps its state.

    Attributes:
        folder: holds the checkpoint.
        cpu_s: CPU seconds of this process, over which the learning rate falls to zero.
        steps: where given, steps to take instead, in whatever time.
        muon_lr: learning rate of matrices.
        adam_lr: learning rate of everything else.
        adam_names: parts of names of matrices that AdamW moves.
        report_s: CPU seconds between two lines of figures, and between two checkpoints.
        average: share of itself that the moving average of the weights keeps at a step; 0 for none.
    """

    folder: Path
    cpu_s: float = math.inf
    steps: int | None = None
    muon_lr: float = 2e-2
    adam_lr: float = 2e-3
    adam_names: Sequence[str] = ()
    report_s: float = 30.0
    average: float = 0.0


def follow(course: Course, model: nn.Module, loss_of: Callable[[], Tensor], report: Callable[[], str] = lambda: "") -> int:
    """Train a model until the budget is spent, and leave its last state in the folder.

    With a moving average, it is what reports see and what the model holds in the end.

    Args:
        course: the budget and the rates.
        model: parameters that need no gradient stay as they are.
        loss_of: draws a batch and returns its loss.
        report: says how good the model is, for the log; its time counts.

    Returns:
        Steps taken, earlier runs of this course included.
    """
    course.folder.mkdir(parents=True, exist_ok=True)
    optimizers = make_optimizers(
        model, muon_lr=course.muon_lr, adam_lr=course.adam_lr, momentum=0.95, weight_decay=0.01, adam_names=course.adam_names
    )
    average = Average(model, course.average)
    used_s, steps = resume(course.folder / STATE, model, optimizers, average)
    began_s, reported_s, losses = time.process_time() - used_s, used_s, []
    model.train()
    while (progress := _progress(course, now_s := time.process_time() - began_s, steps)) < 1:
        set_rate(optimizers, cosine(progress))
        with products("auto", "cpu"):
            loss = loss_of()
        torch.autograd.backward(loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.follow(steps)
        losses.append(float(loss.detach()))
        steps += 1
        if now_s - reported_s > course.report_s:
            reported_s = now_s
            _say(f"{now_s:6.0f} s  step {steps}  loss {sum(losses) / len(losses):.3f}  {_asked(model, report, average)}")
            losses.clear()
            keep(course.folder / STATE, model, optimizers, now_s, steps, average)
    keep(course.folder / STATE, model, optimizers, now_s, steps, average)
    average.swap()
    _say(f"{now_s:6.0f} s  step {steps}  end  {_asked(model, report)}")
    return steps


class Average:
    """A moving average of a model's trained weights: steadier than the last of them while the learning rate is high.

    Args:
        model: whose parameters that need a gradient are averaged.
        share: what the average keeps of itself at a step; 0 averages nothing.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self._share = share
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad and share}
        self.tensors = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def follow(self, steps: int) -> None:
        """Take in the weights after so many steps; the first ones weigh more, since there is little to keep."""
        share = min(self._share, (1 + steps) / (10 + steps))
        for name, weight in self._weights.items():
            self.tensors[name].lerp_(weight, 1 - share)

    @torch.no_grad()
    def swap(self) -> None:
        """Give the model the average, and keep its weights in the place of it; twice is nothing."""
        for name, weight in self._weights.items():
            kept = weight.clone()
            weight.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


def cosine(progress: float, warmup: float = 0.01) -> float:
    """Return the share of the learning rate at a progress 0 to 1: a short linear rise, then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def _progress(course: Course, used_s: float, steps: int) -> float:
    return used_s / course.cpu_s if course.steps is None else steps / course.steps


def keep(
    file: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], used_s: float, steps: int, average: Average
) -> None:
    """Write a checkpoint beside `file` and rename it."""
    tensors = {f"model.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors(model, optimizers).items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
    draft = file.with_suffix(".draft")
    save_file(tensors, draft, metadata={"cpu_s": repr(used_s), "steps": str(steps)})
    draft.rename(file)


def resume(file: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], average: Average) -> tuple[float, int]:
    """Give all that is trained the state of a checkpoint, if there is one; return CPU seconds used and steps taken."""
    if not file.exists():
        return 0.0, 0
    with safe_open(file, "pt") as kept:
        facts = kept.metadata()
        tensors = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118  # no mapping
    load_model(file, model)
    parts = {name.removeprefix("optimizer."): tensor for name, tensor in tensors.items() if name.startswith("optimizer.")}
    restore_optimizers(model, optimizers, parts)
    average.tensors.update({name: tensors[f"average.{name}"] for name in average.tensors})
    return float(facts["cpu_s"]), int(facts["steps"])


def load_model(file: Path, model: nn.Module) -> None:
    """Give a model the weights of a checkpoint."""
    with safe_open(file, "pt") as kept:
        names = [name for name in kept.keys() if name.startswith("model.")]  # noqa: SIM118  # no mapping
        model.load_state_dict({name.removeprefix("model."): kept.get_tensor(name) for name in names})


def spread(model: nn.Module) -> None:
    """Draw matrices with standard deviation 0.7 / √fan-in, and embeddings with 0.5; biases become zero.

    The usual 0.02 is made for wide models: at these widths the input would hardly reach the output.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.7 * module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)


def _asked(model: nn.Module, report: Callable[[], str], average: Average | None = None) -> str:
    model.eval()
    with _averaged(average), torch.inference_mode():
        text = report()
    model.train()
    return text


@contextmanager
def _averaged(average: Average | None) -> Iterator[None]:
    """Let the model hold the average inside."""
    if average:
        average.swap()
    yield
    if average:
        average.swap()


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
