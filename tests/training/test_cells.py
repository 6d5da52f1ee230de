"""Convolutions over cells stay within a slice of a clip, and lay tokens out and back without a loss."""

from typing import Any

import pytest
import torch
from torch import Tensor

from packing.errors import ConfigError
from packing.tokens import patchify
from training.cells import CellForm, slices_of
from training.config import DiTConfig
from training.model import DiT

FORM = CellForm(channels=3, patch=(2, 2, 1))
TOKEN_DIM, TEXT_WIDTH = 3 * 2 * 2 * 1, 10
GRID = torch.tensor([[1, 2, 3], [2, 3, 2], [1, 2, 3], [3, 1, 1]])  # two of equal size, two of several slices
LENGTHS = GRID.prod(dim=1)


@pytest.fixture
def model() -> DiT:
    """A model that has left its zero initialisation, so that every path has an effect."""
    torch.manual_seed(0)
    config = DiTConfig(width=32, depth=1, heads=2, predict="clean", cell_width=8, cell_depth=1, pooled_text=True)
    dit = DiT(config, token_dim=TOKEN_DIM, text_width=TEXT_WIDTH, form=FORM)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return dit


def run(model: DiT, tokens: Tensor, grid: Tensor = GRID, **options: Any) -> Tensor:
    generator, s = torch.Generator().manual_seed(1), len(grid)
    text, t = torch.randn(2 * s, TEXT_WIDTH, generator=generator), torch.linspace(0.2, 0.9, s)
    offsets = torch.cat([torch.zeros(1).long(), grid.prod(dim=1).cumsum(0)])
    out: Tensor = model(tokens, t, offsets, grid, text, torch.arange(s + 1) * 2, **options)
    return out


def tokens_of(count: int) -> Tensor:
    return torch.randn(count, TOKEN_DIM, generator=torch.Generator().manual_seed(2))


def test_every_token_lies_in_one_slice_of_the_size_of_its_clip() -> None:
    slices = slices_of(GRID)
    assert [tuple(of.tokens.shape) for of in slices] == [(3, 1, 1), (2, 2, 3), (2, 3, 2)]
    assert sorted(torch.cat([of.tokens.flatten() for of in slices]).tolist()) == list(range(int(LENGTHS.sum())))
    assert [of.owners.tolist() for of in slices] == [[3, 3, 3], [0, 2], [1, 1]]


def test_cells_are_the_latent_with_its_frames_side_by_side() -> None:
    latent = torch.randn(3, 2, 4, 3)  # one patch in time, 2 x 3 patches of 2 x 1 cells
    (of,) = slices_of(torch.tensor([[1, 2, 3]]))
    cells = FORM.cells(patchify(latent, FORM.patch), of)
    assert torch.equal(cells[0], latent.flatten(0, 1))
    assert torch.equal(FORM.patches(cells), patchify(latent, FORM.patch))


def test_a_new_model_predicts_clean_tokens_of_zero() -> None:
    fresh = DiT(DiTConfig(predict="clean", cell_width=8), token_dim=TOKEN_DIM, text_width=TEXT_WIDTH, form=FORM)
    tokens = tokens_of(int(LENGTHS.sum()))
    times = torch.linspace(0.2, 0.9, len(GRID)).repeat_interleave(LENGTHS)[:, None]
    torch.testing.assert_close(run(fresh, tokens), tokens / times)


def test_changing_one_clip_changes_no_bit_of_another(model: DiT) -> None:
    tokens = tokens_of(int(LENGTHS.sum()))
    before = run(model, tokens)
    tokens[:6] += 1.0  # the first clip, which is convolved together with the third
    after = run(model, tokens)
    assert torch.equal(after[6:], before[6:])
    assert not torch.isclose(after[:6], before[:6]).all(dim=1).any()


def test_a_cell_sees_across_the_border_of_its_patch(model: DiT) -> None:
    """Without the transformer between, a change of one patch still reaches the patch beside it."""
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    tokens = tokens_of(6)
    grid = torch.tensor([[1, 2, 3]])
    before = run(model, tokens, grid)
    tokens[0] += 1.0
    assert not torch.isclose(run(model, tokens, grid)[1], before[1]).all()


def test_a_rank_without_tokens_reaches_every_weight(model: DiT) -> None:
    out = run(model, torch.zeros(0, TOKEN_DIM), torch.zeros(0, 3).long())
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and not p.grad.any() for p in model.cells.parameters())  # type: ignore[union-attr]


def test_dropped_tokens_are_refused_in_one_line(model: DiT) -> None:
    with pytest.raises(ConfigError, match=r"pack\.drop"):
        run(model, tokens_of(int(LENGTHS.sum())), kept=torch.arange(int(LENGTHS.sum())))


def test_cells_are_for_models_of_clean_tokens() -> None:
    with pytest.raises(ValueError, match="clean"):
        DiTConfig(cell_width=8)
