"""Rectified flow: straight paths from data (t = 0) to noise (t = 1), and the walk back along them.

Noise and time of a clip are a pure function of (seed, epoch, clip id): the same in any row, batch, rank or world size.

Shapes: S tokens of a packed sequence, s segments, D token width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from packing.errors import ConfigError
from packing.tokens import clip_generator

LEAST_TIME = 0.05  # of training on clean tokens: the clamp of arXiv 2511.13720, section 4.3

Velocity = Callable[[Tensor, float], Tensor]  # (tokens [S, D], t) -> velocity [S, D]


@dataclass(frozen=True, kw_only=True)
class Noised:
    """A training example: clips on their way to noise, and the direction that the model has to predict."""

    tokens: Tensor  # [S, D]
    target: Tensor  # [S, D]
    t: Tensor  # [s]


def noise_batch(
    clean: Tensor,
    clip_ids: Sequence[str],
    lengths: Sequence[int],
    *,
    seed: int,
    epoch: int,
    shift: float = 1.0,
    least_time: float = 0.0,
    places: Tensor | None = None,
) -> Noised:
    """Move each clip of clean [S, D] to its own time: x_t = (1 - t) x_0 + t eps, with target v = eps - x_0.

    Rectified flow, arXiv 2209.03003, section 2.1, with the time direction of SD3 (arXiv 2403.03206, section 2).

    Args:
        clean: tokens [S, D] of the clips, one clip after the other.
        clip_ids: whose they are.
        lengths: tokens of each whole clip.
        seed: of noise and times.
        epoch: noise and times are others in each.
        shift: of times towards noise.
        least_time: earlier times become this one (`LEAST_TIME` for a model that predicts clean tokens).
        places: which tokens of the whole clips are there, int64 [S] (`packing.tokens.kept_places`); all without it. A token
            gets the noise that it has in its whole clip.
    """
    times = [max(least_time, clip_time(seed, epoch, clip_id, shift)) for clip_id in clip_ids]
    t = torch.tensor(times, dtype=torch.float32)  # [s]
    noise = [clip_noise(seed, epoch, clip_id, n, clean.shape[1]) for clip_id, n in zip(clip_ids, lengths, strict=True)]
    eps = torch.cat([torch.zeros(0, clean.shape[1]), *noise])
    at = t.repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    if places is not None:
        eps, at = eps[places], at[places]
    eps, at = eps.to(clean.device), at.to(clean.device)[:, None]  # [S, D], [S, 1]
    return Noised(tokens=(1 - at) * clean + at * eps, target=eps - clean, t=t.to(clean.device))


def clip_time(seed: int, epoch: int, clip_id: str, shift: float) -> float:
    """Draw the time of one clip: logit-normal, then shifted (SD3, arXiv 2403.03206, sections 3.1 and 5.3.2)."""
    normal = clip_generator(seed, epoch, clip_id, "time").standard_normal()
    return shift_time(float(1 / (1 + np.exp(-normal))), shift)


def clip_noise(seed: int, epoch: int, clip_id: str, tokens: int, width: int) -> Tensor:
    """Draw the Gaussian noise [tokens, width] of one clip."""
    generator = clip_generator(seed, epoch, clip_id, "noise")
    return torch.from_numpy(generator.standard_normal((tokens, width), dtype=np.float32))


def shift_time(t: float, shift: float) -> float:
    """Move t in 0..1 towards noise for shift > 1: a t / (1 + (a - 1) t) (SD3, arXiv 2403.03206, section 5.3.2)."""
    return shift * t / (1 + (shift - 1) * t)


def channel_factors(scale: Sequence[float], channels: int, token_dim: int) -> Tensor:
    """Return by what every number of a token (C, pt, ph, pw) is multiplied, [D], given one factor for each of C channels.

    Raises:
        ConfigError: there is not one factor a channel.
    """
    if len(scale) not in (0, channels):
        raise ConfigError(f"model.channel_scale has {len(scale)} numbers, the latents of these shards have {channels} channels")
    return torch.tensor(scale or [1.0] * channels).repeat_interleave(token_dim // channels)


def velocity_from_clean(noised: Tensor, clean: Tensor, t: Tensor) -> Tensor:
    """Return the velocity [S, D] that leads from clean tokens to the noised ones at times t [S, 1] above 0: (x_t - x_0) / t.

    A loss on it weighs the error of the clean token by 1 / t², which trains better than the error itself (x-prediction under
    v-loss: arXiv 2511.13720, sections 3.2 and 4.2). An Euler step from t to 0 ends on the clean tokens, whatever t is.
    """
    return (noised.float() - clean.float()) / t


def loss_sum(velocity: Tensor, target: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Sum over tokens the mean squared error of velocity against target, both [S, D]; fp32 scalar.

    A sum, since only the caller knows how many tokens the step has over all ranks: divided by that count, the loss
    does not depend on how the clips were dealt.

    Args:
        velocity: as predicted.
        target: as it should be.
        weights: by what the error of each token counts, [S] or the same for all.
    """
    return ((velocity.float() - target.float()).square().mean(dim=1) * weights).sum()


@torch.no_grad()
def euler_sample(velocity: Velocity, noise: Tensor, *, steps: int, shift: float = 1.0) -> Tensor:
    """Walk from noise [S, D] at t = 1 to data at t = 0 in `steps` Euler steps: tokens [S, D]."""
    times = [shift_time(1 - i / steps, shift) for i in range(steps + 1)]
    x = noise
    for t, next_t in pairwise(times):
        x = x + (next_t - t) * velocity(x, t)
    return x


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on velocities [S, D]: 1.0 is the conditional itself (arXiv 2207.12598, section 3.2)."""
    return unconditional + guidance * (conditional - unconditional)
