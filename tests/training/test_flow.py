"""Noise and time belong to a clip, and the sampler walks the path that training draws."""

import pytest
import torch
from torch import Tensor

from packing.errors import ConfigError
from packing.tokens import patchify
from training.flow import (
    Noised,
    channel_factors,
    euler_sample,
    guide,
    loss_sum,
    noise_batch,
    shift_time,
    velocity_from_clean,
)

IDS, LENGTHS = ("a" * 32, "b" * 32, "c" * 32), (4, 2, 3)


def noised(ids: tuple[str, ...] = IDS, lengths: tuple[int, ...] = LENGTHS, epoch: int = 0) -> Noised:
    return noise_batch(torch.zeros(sum(lengths), 5), ids, lengths, seed=3, epoch=epoch)


def test_noise_and_time_of_a_clip_do_not_depend_on_what_shares_its_batch() -> None:
    together, alone = noised(), noised(IDS[1:2], LENGTHS[1:2])
    assert torch.equal(together.tokens[4:6], alone.tokens)
    assert torch.equal(together.t[1:2], alone.t)


def test_noise_and_time_change_with_the_epoch() -> None:
    assert not torch.equal(noised().target, noised(epoch=1).target)
    assert not torch.equal(noised().t, noised(epoch=1).t)


def test_noised_tokens_lie_on_the_line_from_data_to_noise() -> None:
    clean = torch.randn(9, 5)
    batch = noise_batch(clean, IDS, LENGTHS, seed=3, epoch=0)
    t = batch.t.repeat_interleave(torch.tensor(LENGTHS))[:, None]
    torch.testing.assert_close(batch.tokens - t * batch.target, clean)


def test_a_kept_token_gets_the_noise_and_time_of_its_whole_clip() -> None:
    clean, places = torch.randn(9, 5), torch.tensor([1, 3, 5, 6, 8])
    whole = noise_batch(clean, IDS, LENGTHS, seed=3, epoch=0)
    kept = noise_batch(clean[places], IDS, LENGTHS, seed=3, epoch=0, places=places)
    assert torch.equal(kept.tokens, whole.tokens[places])
    assert torch.equal(kept.target, whole.target[places])
    assert torch.equal(kept.t, whole.t)


def test_no_clips_give_an_empty_batch() -> None:
    empty = noised((), ())
    assert (empty.tokens.shape, empty.t.shape) == ((0, 5), (0,))


def test_times_are_logit_normal() -> None:
    ids = tuple(f"{number:032x}" for number in range(2000))
    logits = torch.logit(noised(ids, (1,) * 2000).t)
    assert abs(float(logits.mean())) < 0.1
    assert abs(float(logits.std()) - 1) < 0.1


def test_the_shift_moves_times_towards_noise_and_keeps_both_ends() -> None:
    assert shift_time(0.5, 3.0) == 0.75
    assert (shift_time(0.0, 3.0), shift_time(1.0, 3.0)) == (0.0, 1.0)
    assert shift_time(0.3, 1.0) == pytest.approx(0.3)


def test_no_time_is_earlier_than_the_least_and_later_ones_stay() -> None:
    clean, ids = torch.zeros(2000, 5), tuple(f"{number:032x}" for number in range(2000))
    free = noise_batch(clean, ids, (1,) * 2000, seed=3, epoch=0)
    bounded = noise_batch(clean, ids, (1,) * 2000, seed=3, epoch=0, least_time=0.3)
    assert torch.equal(bounded.t, free.t.clamp(min=0.3))
    assert float(free.t.min()) < 0.3
    assert torch.equal(bounded.tokens, bounded.t[:, None] * bounded.target)


def test_the_velocity_from_a_perfect_clean_prediction_is_the_target() -> None:
    clean = torch.randn(9, 5)
    batch = noise_batch(clean, IDS, LENGTHS, seed=3, epoch=0)
    t = batch.t.repeat_interleave(torch.tensor(LENGTHS))[:, None]
    torch.testing.assert_close(velocity_from_clean(batch.tokens, clean, t), batch.target, atol=1e-4, rtol=1e-5)


def test_the_last_euler_step_ends_on_the_clean_prediction_itself() -> None:
    clean, noise = torch.randn(6, 5), torch.randn(6, 5)
    reached = euler_sample(lambda x, t: velocity_from_clean(x, clean, torch.full((6, 1), t)), noise, steps=30)
    torch.testing.assert_close(reached, clean, atol=1e-5, rtol=1e-5)


def test_every_number_of_a_token_is_scaled_as_its_channel() -> None:
    latent = torch.randn(3, 2, 4, 4)
    scaled = patchify(latent, (2, 2, 2)) * channel_factors([1.0, 0.5, 0.1], 3, 24)
    assert torch.equal(scaled, patchify(latent * torch.tensor([1.0, 0.5, 0.1])[:, None, None, None], (2, 2, 2)))
    assert torch.equal(channel_factors([], 3, 24), torch.ones(24))


def test_a_scale_for_other_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.channel_scale has 2 numbers"):
        channel_factors([1.0, 0.5], 3, 24)


def test_losses_of_parts_add_up_to_the_loss_of_the_whole() -> None:
    velocity, target = torch.randn(9, 5), torch.randn(9, 5)
    parts = loss_sum(velocity[:4], target[:4]) + loss_sum(velocity[4:], target[4:])
    torch.testing.assert_close(parts, loss_sum(velocity, target))
    torch.testing.assert_close(parts / 9, torch.nn.functional.mse_loss(velocity, target))


def test_the_error_of_a_token_counts_as_its_weight_says() -> None:
    velocity, target = torch.randn(9, 5), torch.randn(9, 5)
    twice = loss_sum(velocity, target) + loss_sum(velocity[:3], target[:3])
    torch.testing.assert_close(loss_sum(velocity, target, torch.tensor([2.0] * 3 + [1.0] * 6)), twice)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_reaches_the_data_when_the_velocity_is_exact(shift: float) -> None:
    clean, eps = torch.randn(6, 5), torch.randn(6, 5)
    reached = euler_sample(lambda x, t: eps - clean, eps, steps=7, shift=shift)
    torch.testing.assert_close(reached, clean, atol=1e-5, rtol=1e-5)


def test_euler_asks_for_the_velocity_from_noise_to_data() -> None:
    asked: list[float] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return torch.zeros_like(x)

    euler_sample(velocity, torch.zeros(1, 1), steps=4)
    assert asked == [1.0, 0.75, 0.5, 0.25]


def test_guidance_scales_the_difference_that_the_caption_makes() -> None:
    conditional, unconditional = torch.tensor([2.0]), torch.tensor([1.0])
    assert guide(conditional, unconditional, 3.0).item() == 4.0
    assert guide(conditional, unconditional, 0.0).item() == 1.0
