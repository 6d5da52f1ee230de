"""Attention stays within its segment, and packing changes no result."""

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.attention import Segments, segment_attention

Q_OFFSETS, K_OFFSETS = [0, 5, 10, 12, 19], [0, 3, 6, 7, 15]  # the first two segments form one run of equal lengths


def random_qkv(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, 2, 8, generator=generator) for n in (19, 15, 15))  # type: ignore[return-value]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return segment_attention(q, k, v, Segments.of(Q_OFFSETS), Segments.of(K_OFFSETS))


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The oracle: one softmax over everything, with a block-diagonal mask."""
    mask = Segments.of(Q_OFFSETS).segment_of_token[:, None] == Segments.of(K_OFFSETS).segment_of_token[None]
    heads_first = (x.transpose(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(0, 1)


def test_equals_dense_attention_under_a_block_diagonal_mask() -> None:
    q, k, v = random_qkv()
    torch.testing.assert_close(attend(q, k, v), dense(q, k, v), atol=1e-6, rtol=0)


def test_gradients_equal_those_of_dense_attention() -> None:
    gradients = []
    for attention in (attend, dense):
        qkv = [x.requires_grad_() for x in random_qkv()]
        attention(*qkv).square().sum().backward()
        gradients.append([x.grad for x in qkv])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=0)


def test_changing_one_segment_changes_no_bit_of_another() -> None:
    q, k, v = random_qkv()
    before = attend(q, k, v)
    for x, offsets in ((q, Q_OFFSETS), (k, K_OFFSETS), (v, K_OFFSETS)):
        x[offsets[1] : offsets[2]] += 1.0
    after = attend(q, k, v)
    others = torch.cat([torch.arange(0, 5), torch.arange(10, 19)])
    assert torch.equal(after[others], before[others])
    assert not torch.equal(after[5:10], before[5:10])


def test_batching_equal_neighbours_gives_the_bits_of_attention_alone() -> None:
    q, k, v = random_qkv()
    alone = segment_attention(q[5:10], k[3:6], v[3:6], Segments.of([0, 5]), Segments.of([0, 3]))
    assert torch.equal(attend(q, k, v)[5:10], alone)


def test_short_segments_in_half_precision_attend_as_in_full_precision() -> None:
    q, k, v = (x.bfloat16() for x in random_qkv())
    torch.testing.assert_close(attend(q, k, v).float(), dense(q.float(), k.float(), v.float()), atol=0.02, rtol=0)


@pytest.mark.parametrize("q_lengths", [(5, 5, 2, 7), (600, 5, 2, 7)])
def test_gradients_in_half_precision_are_those_of_dense_attention(q_lengths: tuple[int, ...]) -> None:
    """Short segments are filled up to the longest, long ones are not: neither may change what is learned."""
    q_segments, k_segments = (Segments.of([0, *accumulate(lengths)]) for lengths in (q_lengths, (3, 3, 1, 8)))
    mask = q_segments.segment_of_token[:, None] == k_segments.segment_of_token[None]
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(n, 2, 8, generator=generator).bfloat16().requires_grad_() for n in (sum(q_lengths), 15, 15)]
    exact = [x.detach().float().requires_grad_() for x in qkv]
    segment_attention(*qkv, q_segments, k_segments).float().sin().sum().backward()
    heads_first = [x.transpose(0, 1) for x in exact]
    F.scaled_dot_product_attention(*heads_first, attn_mask=mask).sin().sum().backward()
    for x, y in zip(qkv, exact, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        assert float((x.grad.float() - y.grad).norm() / y.grad.norm()) < 0.02


def test_not_a_number_in_one_segment_stays_there_in_half_precision() -> None:
    q, k, v = (x.bfloat16() for x in random_qkv())
    before = attend(q, k, v)
    k[6:7], v[6:7] = float("nan"), float("inf")  # of the third segment, which the others are longer than
    after = attend(q, k, v)
    assert torch.equal(after[:10], before[:10])
    assert torch.equal(after[12:], before[12:])
    assert after[10:12].isnan().all()


@pytest.mark.parametrize("keys", [0, 4])
def test_no_tokens_give_no_output_but_reach_every_gradient(keys: int) -> None:
    q = torch.zeros(0, 2, 8, requires_grad=True)
    k, v = (torch.ones(keys, 2, 8, requires_grad=True) for _ in range(2))
    out = segment_attention(q, k, v, Segments.of([0]), Segments.of([0]))
    assert out.shape == (0, 2, 8)
    out.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in (k, v))


def test_segments_know_their_lengths_and_the_segment_of_each_token() -> None:
    segments = Segments.of(torch.tensor([0, 2, 2, 5], dtype=torch.int32))
    assert segments.lengths == (2, 0, 3)
    assert segments.segment_of_token.tolist() == [0, 0, 2, 2, 2]
    assert segments.prepended().offsets == (0, 3, 4, 8)
