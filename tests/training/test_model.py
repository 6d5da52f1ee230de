"""The transformer treats packed clips as if each were alone."""

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from packing.tokens import fractional_positions
from training import DiT, DiTConfig
from training.attention import Segments

GRIDS, TEXT_LENGTHS = [(2, 2, 3), (1, 2, 2), (1, 2, 2), (3, 1, 2)], [4, 0, 2, 1]
TOKEN_DIM, TEXT_WIDTH = 6, 10


@dataclass(frozen=True)
class Packed:
    tokens: Tensor
    t: Tensor
    cu_seqlens: Tensor
    grid: Tensor
    text: Tensor
    cu_text: Tensor

    def run(self, model: DiT) -> Tensor:
        out: Tensor = model(self.tokens, self.t, self.cu_seqlens, self.grid, self.text, self.cu_text)
        return out

    def clip(self, number: int) -> "Packed":
        tokens = slice(int(self.cu_seqlens[number]), int(self.cu_seqlens[number + 1]))
        text = slice(int(self.cu_text[number]), int(self.cu_text[number + 1]))
        return pack(self.tokens[tokens], self.t[[number]], [GRIDS[number]], self.text[text], [TEXT_LENGTHS[number]])


def pack(tokens: Tensor, t: Tensor, grids: list[tuple[int, int, int]], text: Tensor, text_lengths: list[int]) -> Packed:
    grid = torch.tensor(grids, dtype=torch.int32).reshape(-1, 3)
    cu_seqlens = torch.tensor([0, *accumulate(grid.prod(1).tolist())], dtype=torch.int32)
    return Packed(tokens, t, cu_seqlens, grid, text, torch.tensor([0, *accumulate(text_lengths)], dtype=torch.int32))


@pytest.fixture
def batch() -> Packed:
    generator = torch.Generator().manual_seed(1)
    tokens, text = torch.randn(26, TOKEN_DIM, generator=generator), torch.randn(7, TEXT_WIDTH, generator=generator)
    return pack(tokens, torch.tensor([0.1, 0.4, 0.6, 0.9]), GRIDS, text, TEXT_LENGTHS)


OPTIONS: list[dict[str, Any]] = [{}, {"predict": "clean", "absolute_positions": True, "pooled_text": True}]


@pytest.fixture(params=OPTIONS, ids=["plain", "all options"])
def model(request: pytest.FixtureRequest) -> DiT:
    """A model that has left its zero initialisation, so that every path has an effect."""
    torch.manual_seed(0)
    dit = DiT(DiTConfig(width=32, depth=2, heads=2, **request.param), token_dim=TOKEN_DIM, text_width=TEXT_WIDTH)
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.1)
    return dit


def test_a_new_model_outputs_zeros(batch: Packed) -> None:
    fresh = DiT(DiTConfig(), token_dim=TOKEN_DIM, text_width=TEXT_WIDTH)
    assert not batch.run(fresh).any()


def test_a_new_model_of_clean_tokens_predicts_zeros_and_so_the_way_from_them(batch: Packed) -> None:
    fresh = DiT(DiTConfig(predict="clean"), token_dim=TOKEN_DIM, text_width=TEXT_WIDTH)
    times = batch.t.repeat_interleave(batch.cu_seqlens.diff())[:, None]
    torch.testing.assert_close(batch.run(fresh), batch.tokens / times)


def test_a_model_of_clean_tokens_tells_the_way_from_what_a_model_of_velocities_would_say(batch: Packed, model: DiT) -> None:
    said = {}
    for predict in ("clean", "velocity"):
        config = replace(model.config, predict=predict)
        same = DiT(config, token_dim=TOKEN_DIM, text_width=TEXT_WIDTH)
        same.load_state_dict(model.state_dict())
        said[predict] = batch.run(same)
    times = batch.t.repeat_interleave(batch.cu_seqlens.diff())[:, None]
    torch.testing.assert_close(batch.tokens - times * said["clean"], said["velocity"], atol=1e-5, rtol=1e-5)


def test_blocks_of_a_new_model_are_the_identity() -> None:
    fresh = DiT(DiTConfig(), token_dim=TOKEN_DIM, text_width=TEXT_WIDTH)
    captured: list[Tensor] = []
    for block in fresh.blocks:
        block.register_forward_hook(lambda _, args, out: captured.extend((args[0], out)))
    pack(torch.randn(4, TOKEN_DIM), torch.tensor([0.5]), [(1, 2, 2)], torch.randn(3, TEXT_WIDTH), [3]).run(fresh)
    assert len(captured) == 8
    assert all(torch.equal(captured[0], x) for x in captured[1:])


def run_kept(model: DiT, batch: Packed, kept: list[list[int]]) -> Tensor:
    """What the model says of these tokens of each clip, the others dropped."""
    places = torch.cat([torch.tensor(numbers) + start for numbers, start in zip(kept, batch.cu_seqlens, strict=False)])
    cu_seqlens = torch.tensor([0, *accumulate(map(len, kept))], dtype=torch.int32)
    numbers = torch.tensor([number for numbers in kept for number in numbers], dtype=torch.int32)
    out: Tensor = model(batch.tokens[places], batch.t, cu_seqlens, batch.grid, batch.text, batch.cu_text, numbers)
    return out


def test_keeping_all_tokens_is_as_dropping_none(batch: Packed, model: DiT) -> None:
    kept = [list(range(length)) for length in batch.cu_seqlens.diff().tolist()]
    assert torch.equal(run_kept(model, batch, kept), batch.run(model))


def test_kept_tokens_turn_by_the_angles_of_their_whole_clip(batch: Packed, model: DiT) -> None:
    angles: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: angles.append(args[3].angles))
    batch.run(model)
    run_kept(model, batch, [[0, 5, 7, 11], [3], [0, 1], [2, 4, 5]])
    assert torch.equal(angles[1], angles[0][[0, 5, 7, 11, 15, 16, 17, 22, 24, 25]])


def test_absolute_positions_are_shares_of_the_whole_clip(batch: Packed) -> None:
    """Twice as many tokens along every axis: those that stand at the same shares are given the same."""
    embed = DiT(DiTConfig(absolute_positions=True), token_dim=TOKEN_DIM, text_width=TEXT_WIDTH).embed_position
    small, large = (embed(fractional_positions(torch.tensor([grid]))) for grid in ((1, 2, 2), (2, 4, 4)))
    assert torch.equal(small, large[[0, 2, 8, 10]])
    assert not torch.allclose(small[0], small[1], atol=1e-3)


def test_the_pooled_caption_is_the_mean_of_its_features_and_nothing_for_none(batch: Packed) -> None:
    embed = DiT(DiTConfig(pooled_text=True), token_dim=TOKEN_DIM, text_width=TEXT_WIDTH).embed_caption
    text = torch.randn(3, TEXT_WIDTH)
    pooled = embed(torch.cat([text, text[:1]]), Segments.of([0, 3, 3, 4]))
    each = embed(text, Segments.of([0, 1, 2, 3]))
    torch.testing.assert_close(pooled, torch.stack([each.mean(0), embed.project.bias, each[0]]))


def test_clips_of_which_tokens_are_dropped_come_out_packed_as_alone(batch: Packed, model: DiT) -> None:
    kept = [[0, 5, 7, 11], [3], [0, 1], [2, 4, 5]]
    together = run_kept(model, batch, kept)
    for number, (first, last) in enumerate([(0, 4), (4, 5), (5, 7), (7, 10)]):
        alone = run_kept(model, batch.clip(number), [kept[number]])
        torch.testing.assert_close(together[first:last], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("number", range(4))
def test_each_clip_comes_out_packed_as_it_does_alone(batch: Packed, model: DiT, number: int) -> None:
    start, end = batch.cu_seqlens[number : number + 2].tolist()
    alone = batch.clip(number).run(model)
    torch.testing.assert_close(batch.run(model)[start:end], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("changed", ["tokens", "t", "text"])
def test_changing_one_clip_changes_no_bit_of_another(batch: Packed, model: DiT, changed: str) -> None:
    other = getattr(batch, changed).clone()
    span = {"tokens": slice(0, 12), "t": slice(0, 1), "text": slice(0, 4)}[changed]
    other[span] += 0.5
    before, after = batch.run(model), replace(batch, **{changed: other}).run(model)
    assert torch.equal(after[12:], before[12:])
    assert not torch.equal(after[:12], before[:12])


def test_exchanging_two_clips_exchanges_their_outputs(batch: Packed, model: DiT) -> None:
    clips = [batch.clip(number) for number in (3, 1, 2, 0)]
    exchanged = pack(
        torch.cat([clip.tokens for clip in clips]),
        torch.cat([clip.t for clip in clips]),
        [GRIDS[number] for number in (3, 1, 2, 0)],
        torch.cat([clip.text for clip in clips]),
        [TEXT_LENGTHS[number] for number in (3, 1, 2, 0)],
    )
    torch.testing.assert_close(exchanged.run(model)[:6], batch.run(model)[20:], atol=1e-6, rtol=1e-5)


def test_no_clips_give_no_output_and_a_gradient_for_every_weight(model: DiT) -> None:
    empty = pack(torch.zeros(0, TOKEN_DIM), torch.zeros(0), [], torch.zeros(0, TEXT_WIDTH), [])
    empty.run(model).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_every_weight_gets_a_gradient(batch: Packed, model: DiT) -> None:
    batch.run(model).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 100, "heads": 8}, "model.width 100"),
        ({"width": 16, "heads": 4}, "less than 8"),
        ({"depth": 0}, "model.depth must be positive"),
        ({"channel_scale": [1.0, 0.0]}, r"model\.channel_scale must be positive"),
    ],
)
def test_sizes_that_make_no_model_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiTConfig(**settings)
