"""Latents to tokens and back, where each token stands, which are kept, and the random numbers that belong to a clip.

Legend: C latent channels, T H W latent grid, (pt, ph, pw) patch, t h w token grid, n = t·h·w tokens, D = C·pt·ph·pw.
A token's vector is ordered (C, pt, ph, pw); tokens are in raster order (t, h, w), so a token's frame neighbours are adjacent.
"""

import hashlib
from bisect import bisect_right
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


def fractional_positions(grid: Tensor) -> Tensor:
    """Return where every token stands as shares of its own clip's extents, float32 [n, 3], 0 to below 1 along t, h and w.

    NaViT's factorised embeddings take these one axis at a time, so that one embedding serves every resolution and aspect ratio
    (arXiv 2307.06304 §2.1). Tokens of a row that drops some are those at `kept_places`.
    """
    extents = grid.to(torch.int64).repeat_interleave(grid.to(torch.int64).prod(dim=1), dim=0)  # [n, 3]
    return positions(grid).float() / extents


def kept_count(tokens: int, drop: float) -> int:
    """Return how many of the tokens of a clip are kept when a share of them is dropped: at least one.

    Raises:
        ValueError: `drop` is not 0 to below 1.
    """
    if not 0 <= drop < 1:
        raise ValueError(f"the share of tokens to drop is 0 to below 1, not {drop}")
    return max(1, tokens - round(tokens * drop))


def most_tokens(kept: int, drop: float) -> int:
    """Return the most tokens that a clip may have for at most `kept` of them to be kept."""
    beyond = int((kept + 1) / (1 - drop)) + 2
    return bisect_right(range(beyond), kept, key=lambda tokens: kept_count(tokens, drop)) - 1


def kept_tokens(tokens: int, drop: float, seed: int, clip_id: str) -> Tensor:
    """Choose the tokens of a clip that are kept, by seed and clip: their numbers in raster order, ascending, int32 [k].

    Every token is as likely as another to be dropped: NaViT (arXiv 2307.06304), sections 2.1 and 3.3, with one rate for all.
    """
    # A sort of uniform numbers, since numpy promises of these, and not of `choice`, that they stay the same.
    order = np.argsort(clip_generator(seed, 0, clip_id, "drop").random(tokens), kind="stable")
    return torch.from_numpy(np.sort(order[: kept_count(tokens, drop)]).astype(np.int32))


def kept_places(kept: Tensor, cu_seqlens: Tensor, grid: Tensor) -> Tensor:
    """Return the number of each kept token among all tokens of its and the other whole clips, as `positions(grid)` lists them.

    Args:
        kept: numbers of the tokens in their own clips, int [S].
        cu_seqlens: where the kept tokens of each clip begin and end, int [s+1].
        grid: token grid (t, h, w) of each whole clip, int [s, 3].

    Returns:
        int64 [S].
    """
    sizes = grid.prod(dim=1)  # [s], int64
    starts = sizes.cumsum(0) - sizes
    return kept + starts.repeat_interleave(cu_seqlens.diff())


def clip_generator(seed: int, epoch: int, clip_id: str, purpose: str) -> np.random.Generator:
    """Return the random numbers of one clip for one purpose in one epoch.

    Counter-based (Philox keyed by a hash of all four), so a draw does not depend on rank, worker, row or order.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{clip_id}/{purpose}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
