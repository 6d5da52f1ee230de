"""How the demo's trainings run: a cosine for the learning rates, and the optimizers' state as plain tensors in checkpoints."""

import math
from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from training.muon import Muon


def cosine(progress: float, warmup: float = 0.01) -> float:
    """Return the share of the learning rate at a progress 0 to 1: a short linear rise, then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def optimizer_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """Return the state of the optimizers as named tensors, for a safetensors file: `STATE.PARAMETER`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{key}.{names[parameter]}": value.detach().clone()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(model: nn.Module, optimizers: Iterable[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Give back a state that `optimizer_tensors` returned; other tensors in the mapping are passed over."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        keys = ("momentum",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                found = {key: tensors.get(f"{key}.{names[parameter]}") for key in keys}
                optimizer.state[parameter].update({key: value.clone() for key, value in found.items() if value is not None})
