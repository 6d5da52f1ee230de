"""Attention inside each segment of a packed sequence, and never across two of them.

Invariant: no value of one segment can reach the output of another, so a clip trains the same whatever shares its row.
Cost: the sum of q_length * k_length over segments, never the square of the packed length, and no mask is built; but for
short segments on the CPU, which are filled up to the longest, since there the number of calls is the cost.

Shapes: S query tokens, M key tokens, s segments, L tokens of the longest segment, N heads, h head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 512  # tokens of a segment that may be filled up
MOST_FILLED = 4  # times the work that the segments themselves are


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Where each segment of a packed sequence begins and ends: `offsets` [s+1] is non-decreasing and starts at 0.

    The offsets are held as Python integers and moved to the device once. Reading a length back from the GPU in every
    layer would wait for the device each time.
    """

    offsets: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, cu_seqlens: Tensor | Sequence[int], device: torch.device | str = "cpu") -> "Segments":
        """Build the table from cumulative lengths [s+1], for tensors that live on `device`."""
        offsets = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else cu_seqlens
        return cls(offsets=tuple(int(offset) for offset in offsets), device=torch.device(device))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in each segment, s of them."""
        return tuple(end - start for start, end in pairwise(self.offsets))

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """The offsets as int32 [s+1] on the device, as the varlen kernel wants them."""
        return torch.tensor(self.offsets, dtype=torch.int32, device=self.device)

    @cached_property
    def segment_of_token(self) -> Tensor:
        """The segment number of every token, int64 [S]."""
        lengths = torch.tensor(self.lengths, dtype=torch.int64, device=self.device)
        segments = torch.arange(len(self.lengths), device=self.device)
        return segments.repeat_interleave(lengths, output_size=self.offsets[-1])

    @cached_property
    def filled(self) -> Tensor:
        """The token numbers of every segment, int64 [s, L]; a shorter one ends in copies of the number after the last token."""
        starts, lengths = (torch.tensor(values, device=self.device) for values in (self.offsets[:-1], self.lengths))
        steps = torch.arange(max(self.lengths), device=self.device)
        return torch.where(steps < lengths[:, None], starts[:, None] + steps, self.offsets[-1])

    def prepended(self) -> "Segments":
        """The same table after one more token has been put in front of every segment."""
        return Segments(offsets=tuple(o + i for i, o in enumerate(self.offsets)), device=self.device)


def segment_attention(q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments) -> Tensor:
    """Softmax attention of q [S, N, h] over k, v [M, N, h], segment i of q seeing segment i of k alone: [S, N, h].

    Segment i may have different lengths in q and k (cross-attention); a segment with queries needs a key. Half
    precision on CUDA takes the varlen flash kernel, the CPU one product over segments that are filled up if they are short.
    All else is `split` and SDPA per segment in fp32: the backward pass of torch's bf16 kernel for the CPU takes three to ten
    times as long. Written without a GPU at hand: the tests do not cover the varlen kernel.
    """
    if q.shape[0] == 0:
        # A rank without tokens must still reach q, k and v in backward, or DDP waits for their gradients for ever.
        return q + (k.sum() + v.sum()) * 0
    half = q.dtype in (torch.bfloat16, torch.float16)
    if half and q.is_cuda:
        return _varlen_attention(q, k, v, q_segments, k_segments)
    if q.device.type == "cpu" and _worth_filling(q_segments.lengths, k_segments.lengths):
        return _filled_attention(q, k, v, q_segments, k_segments)
    with torch.autocast(q.device.type, enabled=False):  # it would bring the three back to half precision
        return _split_attention(q.float(), k.float(), v.float(), q_segments, k_segments).to(v.dtype)


def _varlen_attention(q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # defines CUDA kernels: imported where there is CUDA

    cu_q, cu_k = q_segments.cu_seqlens, k_segments.cu_seqlens
    out = varlen_attn(q, k, v, cu_q, cu_k, max(q_segments.lengths), max(k_segments.lengths))
    assert isinstance(out, Tensor)
    return out


def _worth_filling(q_lengths: Sequence[int], k_lengths: Sequence[int]) -> bool:
    longest = max(q_lengths), max(k_lengths)
    work = sum(q_length * k_length for q_length, k_length in zip(q_lengths, k_lengths, strict=True))
    return max(longest) <= SHORT and len(q_lengths) * longest[0] * longest[1] <= MOST_FILLED * work


def _filled_attention(q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments) -> Tensor:
    there = q_segments.filled < q_segments.offsets[-1]  # [s, L of q]
    missing = k_segments.filled == k_segments.offsets[-1]  # [s, L of k]
    q, k, v = _filled(q, q_segments), _filled(k, k_segments), _filled(v, k_segments)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT  # [s, N, L of q, L of k]
    weights = scores.masked_fill(missing[:, None, None], torch.finfo(scores.dtype).min).softmax(dim=-1)
    y: Tensor = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(0, 1)  # [s * L of q, N, h]
    return y.index_select(0, there.flatten().nonzero().squeeze(1))  # [S, N, h]


def _filled(x: Tensor, segments: Segments) -> Tensor:
    """Lay out x [S, N, h] by segments, with zeros behind the shorter ones: [s, N, L, h]."""
    with_zeros = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
    laid_out = with_zeros.index_select(0, segments.filled.flatten())  # [s * L, N, h]
    return torch.unflatten(laid_out, 0, tuple(segments.filled.shape)).transpose(1, 2)


def _split_attention(q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments) -> Tensor:
    runs = _equal_runs(q_segments.lengths, k_segments.lengths)
    q_sizes = [count * q_length for count, q_length, _ in runs]
    k_sizes = [count * k_length for count, _, k_length in runs]
    # `split`, not slices: the gradient of each slice would allocate a buffer as long as the whole sequence.
    parts = zip(torch.split(q, q_sizes), torch.split(k, k_sizes), torch.split(v, k_sizes), runs, strict=True)
    return torch.cat([_run_attention(q, k, v, count) for q, k, v, (count, _, _) in parts])  # [S, N, h]


def _equal_runs(q_lengths: Sequence[int], k_lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Merge neighbours of equal lengths into (count, q_length, k_length), so that one call serves them all."""
    pairs = groupby(zip(q_lengths, k_lengths, strict=True))
    return [(len(list(same)), q_length, k_length) for (q_length, k_length), same in pairs]


def _run_attention(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    q, k, v = (torch.unflatten(x, 0, (count, -1)).transpose(1, 2) for x in (q, k, v))  # [count, N, length, h]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
