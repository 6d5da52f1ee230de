"""Muon moves matrices by orthogonal steps, and leaves everything else to AdamW."""

import torch
from torch import nn

from training.muon import Muon, make_optimizers, orthogonalised, set_rate


def test_an_orthogonalised_matrix_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((1, 8, 8), (3, 16, 4), (2, 4, 32)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_matrices_go_to_muon_and_gains_biases_and_embeddings_to_adamw() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    muon, adamw = make_optimizers(model, muon_lr=0.1, adam_lr=0.01, adam_names=["3."])
    assert isinstance(muon, Muon)
    assert [tuple(p.shape) for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert len(adamw.param_groups[0]["params"]) == 6


def test_a_step_has_the_same_length_for_any_scale_of_the_gradient() -> None:
    moved = []
    for scale in (1e-6, 1.0, 1e6):
        torch.manual_seed(0)
        layer = nn.Linear(4, 4, bias=False)
        before, direction = layer.weight.detach().clone(), torch.randn(4, 4)
        (optimizer,) = make_optimizers(layer, muon_lr=0.1, adam_lr=0.01)
        layer.weight.grad = direction * scale
        optimizer.step()
        moved.append((layer.weight.detach() - before).norm())
    torch.testing.assert_close(moved[0], moved[1], rtol=0.1, atol=0)
    torch.testing.assert_close(moved[2], moved[1], rtol=0.1, atol=0)


def test_rates_are_set_as_shares_of_the_first_ones() -> None:
    optimizers = make_optimizers(nn.Linear(4, 4), muon_lr=0.1, adam_lr=0.01)
    set_rate(optimizers, 0.5)
    set_rate(optimizers, 0.25)
    assert [group["lr"] for optimizer in optimizers for group in optimizer.param_groups] == [0.025, 0.0025]
