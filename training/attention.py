"""Attention inside each segment of a packed sequence, and never across two of them.

Invariant: no value of one segment can reach the output of another, so a clip trains the same whatever shares its row.
Cost: the sum of q_length * k_length over segments, never the square of the packed length, and no mask is built.

Shapes: S query tokens, M key tokens, s segments, N heads, h head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


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

    def prepended(self) -> "Segments":
        """The same table after one more token has been put in front of every segment."""
        return Segments(offsets=tuple(o + i for i, o in enumerate(self.offsets)), device=self.device)


def segment_attention(q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments) -> Tensor:
    """Softmax attention of q [S, N, h] over k, v [M, N, h], segment i of q seeing segment i of k alone: [S, N, h].

    Segment i may have different lengths in q and k (cross-attention); a segment with queries needs a key. Half
    precision on CUDA takes the varlen flash kernel, all else `split` and SDPA per segment. Written without a GPU at
    hand: the tests cover the second path only.
    """
    if q.shape[0] == 0:
        # A rank without tokens must still reach q, k and v in backward, or DDP waits for their gradients for ever.
        return q + (k.sum() + v.sum()) * 0
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        return _varlen_attention(q, k, v, q_segments, k_segments)
    return _split_attention(q, k, v, q_segments, k_segments)


def _varlen_attention(q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # defines CUDA kernels: imported where there is CUDA

    cu_q, cu_k = q_segments.cu_seqlens, k_segments.cu_seqlens
    out = varlen_attn(q, k, v, cu_q, cu_k, max(q_segments.lengths), max(k_segments.lengths))
    assert isinstance(out, Tensor)
    return out


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
