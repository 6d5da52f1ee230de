"""Latents to tokens and back, where each token stands, and the random numbers that belong to a clip.

Legend: C latent channels, T H W latent grid, (pt, ph, pw) patch, t h w token grid, n = t·h·w tokens, D = C·pt·ph·pw.
A token's vector is ordered (C, pt, ph, pw); tokens are in raster order (t, h, w), so a token's frame neighbours are adjacent.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from packing.geometry import Patch, token_grid


def patchify(latent: Tensor, patch: Patch) -> Tensor:
    """Cut a latent [C, T, H, W] into spacetime patches [n, D] in raster order (ViViT's tubelets, arXiv 2103.15691 §3.2)."""
    channels, *cells = latent.shape
    t, h, w = token_grid((cells[0], cells[1], cells[2]), patch)
    pt, ph, pw = patch
    split = latent.reshape(channels, t, pt, h, ph, w, pw)
    return split.permute(1, 3, 5, 0, 2, 4, 6).reshape(t * h * w, channels * pt * ph * pw)


def unpatchify(tokens: Tensor, grid: Sequence[int], patch: Patch, channels: int) -> Tensor:
    """Put the tokens [n, D] of one clip with token grid (t, h, w) back into a latent [C, T, H, W]; inverse of `patchify`."""
    t, h, w = grid
    pt, ph, pw = patch
    split = tokens.reshape(t, h, w, channels, pt, ph, pw)
    return split.permute(3, 0, 4, 1, 5, 2, 6).reshape(channels, t * pt, h * ph, w * pw)


def positions(grid: Tensor) -> Tensor:
    """Return (t, h, w) of every token, int64 [n, 3], for the segments of `grid` [s, 3] one after the other."""
    parts = [torch.cartesian_prod(*(torch.arange(int(side)) for side in sides)).reshape(-1, 3) for sides in grid]
    return torch.cat(parts) if parts else torch.zeros(0, 3, dtype=torch.int64)


def clip_generator(seed: int, epoch: int, clip_id: str, purpose: str) -> np.random.Generator:
    """Return the random numbers of one clip for one purpose in one epoch.

    Counter-based (Philox keyed by a hash of all four), so a draw does not depend on rank, worker, row or order.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{clip_id}/{purpose}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
