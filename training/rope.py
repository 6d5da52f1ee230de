"""Rotary positions over time, height and width, so that one model takes every length, size and aspect ratio.

Shapes: S tokens of a packed sequence, N heads, h head width.
"""

import torch
from torch import Tensor

THETA = 10_000.0


def rotary_angles(positions: Tensor, head_width: int) -> Tensor:
    """Angles [S, h/2] for the (t, h, w) positions [S, 3]: a quarter of the pairs turn with time, the rest with space.

    Rotary embedding: RoFormer (arXiv 2104.09864), section 3.2.2. The 2/8, 3/8, 3/8 division of the head between the
    axes: CogVideoX (arXiv 2408.06072), section 2.2.
    """
    axes = positions.to(torch.float32).unbind(1)
    angles = [at[:, None] * _frequencies(n, at.device) for at, n in zip(axes, _pairs(head_width), strict=True)]
    return torch.cat(angles, dim=1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (x[..., i], x[..., i + h/2]) of x [S, N, h] by angles [S, h/2], in fp32."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]  # [S, 1, h/2]
    first, second = x.float().chunk(2, dim=-1)  # [S, N, h/2] each
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.to(x.dtype)


def _pairs(head_width: int) -> tuple[int, int, int]:
    pairs = head_width // 2
    time = pairs // 4
    height = (pairs - time) // 2
    return time, height, pairs - time - height


def _frequencies(pairs: int, device: torch.device) -> Tensor:
    exponents = torch.arange(pairs, dtype=torch.float32, device=device) / pairs
    return THETA**-exponents  # [pairs]
