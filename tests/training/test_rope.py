"""Rotary positions keep lengths and depend on distances only."""

import torch

from packing import kept_places, positions
from training.rope import rotary_angles, rotate


def test_rotation_keeps_the_length_of_every_head() -> None:
    x = torch.randn(12, 2, 16)
    angles = rotary_angles(positions(torch.tensor([[2, 2, 3]])), 16)
    torch.testing.assert_close(rotate(x, angles).norm(dim=-1), x.norm(dim=-1))


def test_a_score_depends_on_the_distance_of_two_tokens_and_not_on_where_they_stand() -> None:
    q, k = torch.randn(1, 1, 16), torch.randn(1, 1, 16)

    def score(at: tuple[int, int, int], to: tuple[int, int, int]) -> torch.Tensor:
        turned = [rotate(x, rotary_angles(torch.tensor([p]), 16)) for x, p in ((q, at), (k, to))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score((0, 1, 2), (3, 0, 4)), score((5, 6, 7), (8, 5, 9)), atol=1e-4, rtol=1e-4)


def test_a_kept_token_turns_by_the_angles_that_it_has_in_its_whole_clip() -> None:
    grid, kept = torch.tensor([[2, 2, 3], [1, 2, 2]]), torch.tensor([1, 6, 11, 0, 3], dtype=torch.int32)
    angles = rotary_angles(positions(grid)[kept_places(kept, torch.tensor([0, 3, 5]), grid)], 16)
    whole = [rotary_angles(positions(sides[None]), 16) for sides in grid]
    assert torch.equal(angles, torch.cat([whole[0][[1, 6, 11]], whole[1][[0, 3]]]))


def test_every_axis_turns_some_pairs() -> None:
    for axis in range(3):
        position = torch.zeros(1, 3)
        position[0, axis] = 1
        assert rotary_angles(position, 8).any()
