"""The demo's video autoencoder, a Wan class of diffusers with strides 2, 8, 8, in the form that it is trained in.

Encoder and decoder run once over whole clips. Invariant: the numbers are those that the class's own `encode` and `decode` give,
which go chunk by chunk through a cache. It starts nearly linear, which is worth hours of training from the class's own start.

Legend: B batch; F Y X frames, rows, columns of pixels in [-1, 1]; C T H W latent channels and grid.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from demo.scenes import Pictures

CONFIG: Mapping[str, Any] = {
    "base_dim": 48,
    "decoder_base_dim": 48,
    "z_dim": 16,
    "dim_mult": [1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [True],
    "is_residual": False,
    "patch_size": 4,
    "in_channels": 48,
    "out_channels": 48,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 2,
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}
"""The autoencoder; the statistics of its latents are measured when it is exported."""


def new_codec(seed: int) -> AutoencoderKLWan:
    """Build the autoencoder so that it starts nearly linear: what is not on the straight way from end to end is small."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = AutoencoderKLWan(**CONFIG)
        with torch.no_grad():
            _start_linear(model)
    return model


def reconstruct(model: AutoencoderKLWan, video: Tensor, *, noisy: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Encode and decode whole clips at once, with the numbers that the class's own chunks of frames give.

    Args:
        model: an `AutoencoderKLWan` of one temporal downsampling.
        video: [B, 3, F, Y, X] in [-1, 1].
        noisy: decode a sample of the posterior and not its mean.

    Returns:
        The video, and mean and log-variance [B, C, T, H, W] of the posterior.
    """
    mean, log_variance = encode(model, video)
    latent = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance) if noisy else mean
    return decode(model, latent), mean, log_variance


def encode(model: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance [B, C, T, H, W] of clips [B, 3, F, Y, X]."""
    encoder = model.encoder
    x = encoder.conv_in(F.pixel_unshuffle(video.transpose(1, 2), 4).transpose(1, 2)[:, _wan_order()])
    for block in encoder.down_blocks:
        x = _down(block, x) if hasattr(block, "time_conv") else _resnet(block, x)
    x = encoder.conv_out(_activated(encoder.norm_out, _middle(encoder.mid_block, x)))
    mean, log_variance = model.quant_conv(x).float().chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decode(model: AutoencoderKLWan, latent: Tensor) -> Tensor:
    """Return clips [B, 3, F, Y, X] of latents [B, C, T, H, W], before they are clamped to [-1, 1]."""
    decoder = model.decoder
    x = _middle(decoder.mid_block, decoder.conv_in(model.post_quant_conv(latent)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x)
        for resample in block.upsamplers or ():
            x = _up(resample, x)
    x = decoder.conv_out(_activated(decoder.norm_out, x)).float()
    return F.pixel_shuffle(x[:, np.argsort(_wan_order()).tolist()].transpose(1, 2), 4).transpose(1, 2)


def as_video(clips: Pictures) -> Tensor:
    """Return uint8 clips [B, F, Y, X, 3] as [B, 3, F, Y, X] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


class _ScaledUnit(torch.autograd.Function):
    """The class's RMS norm and SiLU in one, with fewer passes over memory, which are half of the time in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min_(1e-12)
        inverse = length.reciprocal_().mul_(math.sqrt(x.shape[1])).to(x.dtype)
        unit = x * inverse
        scaled = unit * gain.to(x.dtype)
        ctx.save_for_backward(unit, inverse, gain, scaled)
        return F.silu(scaled)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        unit, inverse, gain, scaled = ctx.saved_tensors
        of_scaled = torch.ops.aten.silu_backward(gradient, scaled)
        of_gain = (of_scaled * unit).sum(dim=(0, 2, 3, 4), dtype=torch.float32).view_as(gain)
        of_unit = of_scaled * gain.to(unit.dtype)
        along = (of_unit * unit).mean(dim=1, keepdim=True)
        return torch.addcmul(of_unit, unit, along, value=-1).mul_(inverse), of_gain


def _wan_order() -> list[int]:
    """Return which channel of `pixel_unshuffle` stands where the class has it: it goes through columns before rows."""
    return [c * 16 + row * 4 + column for c in range(3) for column in range(4) for row in range(4)]


def _activated(norm: Any, x: Tensor) -> Tensor:
    scaled: Tensor = _ScaledUnit.apply(x, norm.gamma)
    return scaled


def _resnet(block: Any, x: Tensor) -> Tensor:
    inner = block.conv1(_activated(block.norm1, x))
    result: Tensor = block.conv_shortcut(x) + block.conv2(_activated(block.norm2, inner))
    return result


def _middle(block: Any, x: Tensor) -> Tensor:
    first, second = block.resnets
    return _resnet(second, block.attentions[0](_resnet(first, x)))


def _down(resample: nn.Module, x: Tensor) -> Tensor:
    """Halve space, then time: the first frame stays alone."""
    x = _framewise(resample.resample, x)
    return torch.cat([x[:, :, :1], resample.time_conv(x)], dim=2) if x.shape[2] > 1 else x  # type: ignore[operator]


def _up(resample: nn.Module, x: Tensor) -> Tensor:
    """Double time, but for the first frame, then space. The class's second frame does not see the first here."""
    if x.shape[2] > 1:
        b, c, t, h, w = x.shape
        pairs = resample.time_conv(x[:, :, 1:]).view(b, 2, c, t - 1, h, w)  # type: ignore[operator]
        x = torch.cat([x[:, :, :1], pairs.permute(0, 2, 3, 1, 4, 5).reshape(b, c, 2 * t - 2, h, w)], dim=2)
    return _framewise(resample.resample, x)


def _framewise(module: Any, x: Tensor) -> Tensor:
    b, c, t, h, w = x.shape
    y: Tensor = module(x.transpose(1, 2).reshape(b * t, c, h, w))
    return y.view(b, t, *y.shape[1:]).transpose(1, 2)


def _start_linear(model: AutoencoderKLWan) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Conv3d):
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        if name.endswith("conv2"):
            module.weight.mul_(0.2)
        elif name.endswith("proj"):
            module.weight.mul_(0.1)
        elif name.endswith("conv_shortcut"):
            nn.init.orthogonal_(module.weight.flatten(1))
        elif not name.endswith(("conv1", "to_qkv")):
            module.weight.mul_(0.2)
            _add_straight_way(name, module)
    z = model.config.z_dim
    model.quant_conv.weight[z:] = 0.0
    model.quant_conv.bias[z:] = -6.0  # of the log-variance: hardly any noise at first


def _add_straight_way(name: str, conv: nn.Conv2d | nn.Conv3d) -> None:
    """Add an orthogonal matrix on the taps of a kernel that look at the pixels it stands for."""
    weight = conv.weight
    if name.endswith("time_conv") and conv.stride[0] == 2:
        taps = weight[:, :, 1:, 0, 0]  # the two frames that become one
    elif name.endswith("time_conv"):
        half = len(weight) // 2  # both frames that one becomes begin as that one
        weight[:, :, -1, 0, 0] += _orthogonal(half, weight.shape[1]).repeat(2, 1)
        return
    elif weight.ndim == 4 and conv.stride[0] == 2:
        taps = weight[:, :, :2, :2]
    elif weight.ndim == 4:
        taps = weight[:, :, 1:2, 1:2]
    else:
        middle = weight.shape[-1] // 2
        taps = weight[:, :, -1:, middle, middle]
    taps += _orthogonal(len(weight), taps[0].numel()).view_as(taps)


def _orthogonal(rows: int, columns: int) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns))
