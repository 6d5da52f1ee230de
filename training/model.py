"""The diffusion transformer: tokens of packed clips in, velocities out, as the last layer says or as clean tokens imply.

- adaLN-Zero: every block begins as the identity and the whole model as zero (DiT, arXiv 2212.09748, section 3.2).
- Full attention inside each clip, rotary positions over (t, h, w), queries and keys normalised per head.
- Text by cross-attention to unpadded caption features; a learned null token stands in front of every caption, so that
  a dropped caption still gives one key to attend to.
- One time t for each clip. Its modulation is computed per segment and spread over the tokens only where it is used.

Shapes: S tokens of a packed sequence, s segments, M text tokens, D model width, N heads, h head width, E text width.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packing.errors import ConfigError
from packing.manifest import Manifest
from packing.tokens import fractional_positions, kept_places, positions
from training.attention import Segments, segment_attention
from training.cells import CellBlocks, CellForm
from training.config import DiTConfig
from training.flow import velocity_from_clean
from training.rope import rotary_angles, rotate

TIME_FREQUENCIES = 128
POSITION_FREQUENCIES = 8  # two to an octave


def dit_for(config: DiTConfig, manifest: Manifest) -> "DiT":
    """Build the model for shards: what goes in and comes out, and how it is laid out, is the manifest's."""
    form = CellForm(channels=manifest.channels, patch=manifest.patch)
    return DiT(config, token_dim=manifest.token_dim, text_width=manifest.text_encoder.width, form=form)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What all blocks of one forward pass share: which tokens and keys belong to which clip, and where tokens stand."""

    tokens: Segments  # over [S]
    keys: Segments  # over [M + s], the null token before each caption counted
    angles: Tensor  # [S, h/2]


class DiT(nn.Module):
    """Predicts the velocity of every token of a packed batch; `token_dim` and `text_width` come from the manifest."""

    def __init__(self, config: DiTConfig, *, token_dim: int, text_width: int, form: CellForm | None = None) -> None:
        """Build the model; `form` tells how tokens are laid out, for one with convolutions over cells."""
        super().__init__()
        self.config = config
        self.cells = None
        if config.cell_width:
            assert form is not None
            self.cells = CellBlocks(form, width=config.cell_width, depth=config.cell_depth, condition=config.width)
            token_dim = self.cells.token_dim
        self.embed_tokens = nn.Linear(token_dim, config.width)
        self.embed_text = TextEmbedding(text_width, config.width)
        self.embed_time = TimeEmbedding(config.width)
        self.embed_position = PositionEmbedding(config.width) if config.absolute_positions else None
        self.embed_caption = CaptionEmbedding(text_width, config.width) if config.pooled_text else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = Head(config.width, token_dim)

    def forward(
        self,
        tokens: Tensor,
        t: Tensor,
        cu_seqlens: Tensor,
        grid: Tensor,
        text: Tensor,
        cu_text: Tensor,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity [S, token_dim] of noised tokens [S, token_dim].

        Args:
            tokens: the tokens of s clips, one clip after the other.
            t: time of each clip [s], 0 data and 1 noise; above 0 for a model that predicts clean tokens.
            cu_seqlens: where the clips begin and end in `tokens`, int [s+1].
            grid: the token grid (t, h, w) of each whole clip, int [s, 3].
            text: caption features [M, text_width], unpadded, one caption a clip; an empty one means no condition.
            cu_text: where the captions begin and end in `text`, int [s+1].
            kept: the number of each token in its own whole clip, int [S]; without it, no token is missing.

        Raises:
            ConfigError: tokens are missing, and the model has convolutions, which need all.
        """
        if self.cells is not None and kept is not None:
            raise ConfigError("model.cell_width is for corpora with all their tokens, and this one was packed with pack.drop")
        places = slice(None) if kept is None else kept_places(kept.cpu(), cu_seqlens.cpu(), grid.cpu())
        where = positions(grid.cpu())[places]  # [S, 3]
        layout = Layout(
            tokens=Segments.of(cu_seqlens, tokens.device),
            keys=Segments.of(cu_text, tokens.device).prepended(),
            angles=rotary_angles(where.to(tokens.device), self.config.head_width),
        )
        keys = self.embed_text(text, layout.keys)  # [M + s, D]
        condition = self.embed_time(t)  # [s, D]
        if self.embed_caption is not None:
            condition = condition + self.embed_caption(text, Segments.of(cu_text, tokens.device))
        condition = F.silu(condition)
        positional = 0.0
        if self.embed_position is not None:
            positional = self.embed_position(fractional_positions(grid.cpu())[places].to(tokens.device))

        transform = partial(self._transformed, positional=positional, condition=condition, keys=keys, layout=layout)
        predicted = transform(tokens) if self.cells is None else self.cells(tokens, condition, grid.cpu(), transform)
        if self.config.predict == "velocity":
            return predicted
        return velocity_from_clean(tokens, predicted, spread(t[:, None], layout.tokens))

    def _transformed(
        self, tokens: Tensor, positional: Tensor | float, condition: Tensor, keys: Tensor, layout: Layout
    ) -> Tensor:
        """Take tokens [S, token_dim] through the blocks and the head, under the condition [s, D] and the keys [M + s, D]."""
        x = self.embed_tokens(tokens) + positional  # [S, D]
        for block in self.blocks:
            x = block(x, condition, keys, layout)
        predicted: Tensor = self.head(x, condition, layout.tokens)  # [S, token_dim]
        return predicted


class Block(nn.Module):
    """Attention within the clip, attention to its caption, MLP; time gates the first and the last (adaLN-Zero)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.modulation = zeroed(nn.Linear(config.width, 6 * config.width))
        self.self_attention = Attention(config)
        self.cross_norm = nn.LayerNorm(config.width)
        self.cross_attention = Attention(config)
        self.mlp = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, config.width))
        zeroed(self.cross_attention.out)  # as the two gates are: the block begins as the identity

    def forward(self, x: Tensor, condition: Tensor, keys: Tensor, layout: Layout) -> Tensor:
        """Return x [S, D] after one block, given the time condition [s, D] and the text keys [M + s, D]."""
        tokens = layout.tokens
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition).chunk(6, dim=-1)  # [s, D]
        y = modulate(x, shift, scale, tokens)  # [S, D]
        x = x + spread(gate, tokens) * self.self_attention(y, y, tokens, tokens, layout.angles)
        x = x + self.cross_attention(self.cross_norm(x), keys, tokens, layout.keys)
        out: Tensor = x + spread(mlp_gate, tokens) * self.mlp(modulate(x, mlp_shift, mlp_scale, tokens))
        return out


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys (QK-norm, arXiv 2302.05442, section 2)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.query_norm = nn.RMSNorm(config.head_width)
        self.key_norm = nn.RMSNorm(config.head_width)
        self.out = nn.Linear(config.width, config.width)

    def forward(
        self, x: Tensor, source: Tensor, x_segments: Segments, source_segments: Segments, angles: Tensor | None = None
    ) -> Tensor:
        """Return [S, D]: x [S, D] looks at source [M, D]; with `angles` [S, h/2] both turn to their positions."""
        q = self.query(x).unflatten(-1, (self.heads, -1))  # [S, N, h]
        k, v = self.key_value(source).unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=1)  # [M, N, h] each
        # Norms and angles in fp32 also under autocast, where projections come in bf16; the kernels want one dtype again.
        q, k = self.query_norm(q.float()), self.key_norm(k.float())
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        y = segment_attention(q.to(v.dtype), k.to(v.dtype), v, x_segments, source_segments)
        out: Tensor = self.out(y.flatten(1))
        return out


class TextEmbedding(nn.Module):
    """Caption features to keys, with one learned null token in front of every caption."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(text_width)  # text encoders differ by orders of magnitude in scale
        self.project = nn.Linear(text_width, width)
        self.null = nn.Parameter(torch.randn(1, width) * 0.02)

    def forward(self, text: Tensor, keys: Segments) -> Tensor:
        """Return the keys [M + s, D] of caption features [M, E], laid out as `keys` says."""
        table = torch.cat([self.null, self.project(self.norm(text)).to(self.null.dtype)])  # [1 + M, D]
        # Key number k of caption i is row k - i of the table, but for the first key of each caption, which is row 0.
        rows = torch.arange(keys.offsets[-1], device=text.device) - keys.segment_of_token  # [M + s]
        rows[list(keys.offsets[:-1])] = 0
        return torch.index_select(table, 0, rows)


class TimeEmbedding(nn.Module):
    """Sinusoids of the time and two linear layers (DiT, arXiv 2212.09748, section 3.2; t in 0..1 counts as 0..1000)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Return the embedding [s, D] of times [s]."""
        exponents = torch.arange(TIME_FREQUENCIES, dtype=torch.float32, device=t.device) / TIME_FREQUENCIES
        angles = 1000 * t.float()[:, None] * torch.exp(-math.log(10_000) * exponents)  # [s, TIME_FREQUENCIES]
        embedding: Tensor = self.project(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedding


class PositionEmbedding(nn.Module):
    """Sinusoids of fractional positions, each axis with its own, and a linear layer (NaViT, arXiv 2307.06304, section 2.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(3 * 2 * POSITION_FREQUENCIES, width)

    def forward(self, shares: Tensor) -> Tensor:
        """Return the embedding [S, D] of positions [S, 3] as shares of a clip's extents."""
        octaves = torch.arange(POSITION_FREQUENCIES, device=shares.device) / 2  # from half a turn over the whole extent
        angles = (shares[:, :, None] * math.pi * 2**octaves).flatten(1)  # [S, 3 · POSITION_FREQUENCIES]
        embedding: Tensor = self.project(torch.cat([angles.sin(), angles.cos()], dim=1))
        return embedding


class CaptionEmbedding(nn.Module):
    """The mean of a caption's features and a linear layer, for the modulation (as in SD3, arXiv 2403.03206, section 4)."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(text_width)
        self.project = nn.Linear(text_width, width)

    def forward(self, text: Tensor, captions: Segments) -> Tensor:
        """Return the embedding [s, D] of caption features [M, E]; that of a caption without tokens is the bias alone."""
        lengths = torch.tensor(captions.lengths, device=text.device)
        sums = torch.zeros(len(lengths), text.shape[1], device=text.device)
        sums = sums.index_add(0, captions.segment_of_token, self.norm(text.float()))
        embedding: Tensor = self.project(sums / lengths.clamp(min=1)[:, None])
        return embedding


class Head(nn.Module):
    """The last modulated norm and the projection back to tokens, zero at first."""

    def __init__(self, width: int, token_dim: int) -> None:
        super().__init__()
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.out = zeroed(nn.Linear(width, token_dim))

    def forward(self, x: Tensor, condition: Tensor, tokens: Segments) -> Tensor:
        """Return the prediction [S, token_dim] of x [S, D]."""
        shift, scale = self.modulation(condition).chunk(2, dim=-1)  # [s, D] each
        predicted: Tensor = self.out(modulate(x, shift, scale, tokens))
        return predicted


def modulate(x: Tensor, shift: Tensor, scale: Tensor, tokens: Segments) -> Tensor:
    """Layer-normalise x [S, D], then scales and shifts every token by the values [s, D] of its segment."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + spread(scale, tokens)) + spread(shift, tokens)


def spread(values: Tensor, tokens: Segments) -> Tensor:
    """Give every token the value of its segment: [s, D] to [S, D]."""
    # index_select, since the gradient of `values[owner]` adds in parallel, in an order that differs from run to run.
    return values.index_select(0, tokens.segment_of_token)


def zeroed(linear: nn.Linear) -> nn.Linear:
    """Set weight and bias to zero, so that what follows starts without effect."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
