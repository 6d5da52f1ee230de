"""Muon, an optimiser for small models and short trainings: matrices move by orthogonalised momentum, the rest by AdamW.

Invariant: a step moves every matrix by about its learning rate in every direction, whatever the size of its gradient.
Keller Jordan et al., "Muon", 2024; the coefficients are theirs. Cost: a few products with the smaller side of every matrix
a step, on a GPU batched over matrices of equal shape.

    optimizers = make_optimizers(model, muon_lr=1e-2, adam_lr=2e-3)
    for step in range(steps):
        loss.backward()
        set_rate(optimizers, share_of_the_rate(step))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Nesterov momentum whose update is the nearest orthogonal matrix; a kernel of any rank is a matrix [out, everything else].

    Args:
        parameters: all of rank 2 or more.
        lr: length of a step in every direction of a matrix [m, n], times √max(1, m / n).
        momentum: share of the old momentum that is kept.
        weight_decay: share of the weight that is taken away in a step, times lr.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "base_lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure, so no loss to return
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for same_shape in _by_shape(group["params"]):
                self._step_together(same_shape, group)

    def _step_together(self, parameters: Sequence[nn.Parameter], group: Mapping[str, Any]) -> None:
        updates = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            momentum = state.setdefault("momentum", torch.zeros_like(parameter))
            momentum.lerp_(parameter.grad, 1 - group["momentum"])
            updates.append(torch.lerp(parameter.grad, momentum, group["momentum"]).flatten(1))
        directions = orthogonalised(torch.stack(updates))
        rows, columns = directions.shape[1:]
        for parameter, direction in zip(parameters, directions, strict=True):
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction.view_as(parameter), alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonalised(matrices: Tensor) -> Tensor:
    """Move the singular values of matrices [B, m, n] to about 1 (0.7 to 1.2), by five quintic Newton-Schulz steps."""
    if matrices.is_cuda:
        return _orthogonalised(matrices)
    return torch.stack([_orthogonalised(matrix) for matrix in matrices])  # batched products take twice as long on the CPU


def _orthogonalised(matrix: Tensor) -> Tensor:
    """Orthogonalise [..., m, n]. The steps are polynomials in the Gram matrix: taken on it alone, and multiplied in at last."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    gram = x @ x.mT  # [..., k, k], k = min(m, n)
    square = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] + 1e-14  # of the Frobenius norm
    gram = gram / square
    eye = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    a, b, c = _QUINTIC
    total = step = a * eye + b * gram + c * gram @ gram
    for _ in range(4):
        gram = step @ gram @ step
        step = a * eye + b * gram + c * gram @ gram
        total = step @ total
    x = (total * square.rsqrt()) @ x
    result: Tensor = x.mT if tall else x
    return result


def make_optimizers(
    model: nn.Module,
    *,
    muon_lr: float,
    adam_lr: float,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    adam_names: Sequence[str] = (),
) -> list[Optimizer]:
    """Return Muon for the matrices and kernels of a model that are trained, and AdamW for the rest.

    Args:
        model: parameters that need no gradient are left out.
        muon_lr: learning rate of the matrices.
        adam_lr: learning rate of biases, gains, embeddings and of what `adam_names` names.
        momentum: of Muon.
        betas: of AdamW.
        weight_decay: of both, times the learning rate.
        adam_names: parameters whose name contains one of these stay with AdamW.
    """
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.squeeze().ndim >= 2 and id(parameter) not in embeddings
        (matrices if is_matrix and not any(part in name for part in adam_names) else rest).append(parameter)
    optimizers: list[Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=muon_lr, momentum=momentum, weight_decay=weight_decay))
    if rest:
        groups = [{"params": rest, "base_lr": adam_lr}]
        optimizers.append(AdamW(groups, lr=adam_lr, betas=betas, weight_decay=weight_decay))
    return optimizers


def set_rate(optimizers: Iterable[Optimizer], share: float) -> None:
    """Set every learning rate to a share of the one that it was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * share


def _by_shape(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            shapes.setdefault(tuple(parameter.shape), []).append(parameter)
    return list(shapes.values())
