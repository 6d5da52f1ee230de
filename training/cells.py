"""Convolutions over latent cells around the transformer: it need not learn what a patch looks like at every offset anew.

Going in, every cell sees its neighbours before patches are cut; coming out, the transformer's answer for a patch becomes cells
again, joins what went in, and is drawn across the borders of patches. An hourglass, as HDiT (arXiv 2401.11605), with one level
of convolutions in place of local attention. Time is folded into a cell: a cell holds the C · pt numbers of one place.

Invariant: no value of one clip can reach another, as in attention; slices of equal size are convolved together.
Cost: two convolutions a block, W² · 9 products a cell each.

Legend: S tokens, s segments, b slices (the tokens of one clip with the same t), h w their token grid, K = C · pt numbers of a
cell, W width of the convolutions, Y X cells of a slice (h · ph by w · pw), D numbers of a token, E width of the condition.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packing.geometry import Patch


class Slices(NamedTuple):
    """Slices of equal size of a packed batch: which tokens they are made of [b, h, w], and whose they are [b]."""

    tokens: Tensor
    owners: Tensor

    def to(self, device: torch.device) -> "Slices":
        """Move the table to a device."""
        return Slices(tokens=self.tokens.to(device), owners=self.owners.to(device))


@dataclass(frozen=True, kw_only=True)
class CellForm:
    """How a token of D numbers, ordered (C, pt, ph, pw), is laid out as cells."""

    channels: int
    patch: Patch

    @property
    def width(self) -> int:
        """Numbers of a cell, K."""
        return self.channels * self.patch[0]

    def cells(self, tokens: Tensor, slices: Slices) -> Tensor:
        """Lay out the tokens [S, K · ph · pw] of slices as cells [b, K, Y, X]."""
        _, ph, pw = self.patch
        b, h, w = slices.tokens.shape
        split = tokens.index_select(0, slices.tokens.flatten()).view(b, h, w, tokens.shape[1] // (ph * pw), ph, pw)
        return split.permute(0, 3, 1, 4, 2, 5).reshape(b, split.shape[3], h * ph, w * pw)

    def patches(self, cells: Tensor) -> Tensor:
        """Cut cells [b, K, Y, X] into tokens [b · h · w, K · ph · pw], slice by slice."""
        _, ph, pw = self.patch
        b, width, rows, columns = cells.shape
        split = cells.view(b, width, rows // ph, ph, columns // pw, pw)
        return split.permute(0, 2, 4, 1, 3, 5).reshape(b * (rows // ph) * (columns // pw), width * ph * pw)


def slices_of(grid: Tensor) -> list[Slices]:
    """Sort the slices of clips with token grids (t, h, w) [s, 3], one clip after the other, by their size (h, w)."""
    found, first = [], 0
    for owner, (t, h, w) in enumerate(grid.tolist()):
        found += [(h, w, first + number * h * w, owner) for number in range(t)]
        first += t * h * w
    found.sort()
    groups = [list(same) for _, same in groupby(found, key=lambda one: one[:2])]
    # A rank without tokens must still reach every weight in backward, or DDP waits for their gradients for ever.
    return [_slices(group) for group in groups] or [Slices(tokens=torch.zeros(0, 1, 1).long(), owners=torch.zeros(0).long())]


def _slices(group: list[tuple[int, int, int, int]]) -> Slices:
    h, w = group[0][:2]
    starts, owners = (torch.tensor([one[i] for one in group]) for i in (2, 3))
    return Slices(tokens=(starts[:, None] + torch.arange(h * w)).view(-1, h, w), owners=owners)


class CellBlocks(nn.Module):
    """The convolutions before and after the transformer, which sees tokens of `token_dim` numbers between them.

    Args:
        form: how tokens are laid out.
        width: W.
        depth: blocks on either side.
        condition: width E of the condition.
    """

    def __init__(self, form: CellForm, *, width: int, depth: int, condition: int) -> None:
        super().__init__()
        self.form = form
        self.token_dim = width * form.patch[1] * form.patch[2]
        self.enter = nn.Conv2d(form.width, width, 3, padding=1)
        self.before = nn.ModuleList(CellBlock(width, condition) for _ in range(depth))
        self.join = nn.Conv2d(2 * width, width, 1)
        self.after = nn.ModuleList(CellBlock(width, condition) for _ in range(depth))
        self.leave = nn.Conv2d(width, form.width, 3, padding=1)
        self.keep = nn.Linear(condition, form.width)
        for parameter in (*self.leave.parameters(), *self.keep.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, condition: Tensor, grid: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
        """Return clean tokens [S, D] of noised ones [S, D].

        A share of each noised number is kept that time and caption decide, since a linear filter is most of denoising when
        there is little noise (as the skip of EDM, arXiv 2206.00364, section 5).

        Args:
            tokens: the tokens of s whole clips, one clip after the other.
            condition: time and caption of each clip [s, E].
            grid: token grid (t, h, w) of each clip, int [s, 3], on the CPU.
            transform: the transformer, tokens [S, token_dim] to tokens [S, token_dim].
        """
        slices = [of.to(tokens.device) for of in slices_of(grid)]
        noised = [self.form.cells(tokens, of) for of in slices]  # of each [b, K, Y, X]
        conditions = [condition.index_select(0, of.owners) for of in slices]  # of each [b, E]
        features = [through(self.before, self.enter(cells), own) for cells, own in zip(noised, conditions, strict=True)]
        answer = transform(self._in_order([self.form.patches(cells) for cells in features], slices))
        clean = []
        for of, cells, own, seen in zip(slices, noised, conditions, features, strict=True):
            joined = self.join(torch.cat([seen, self.form.cells(answer, of)], dim=1))
            drawn = self.leave(F.silu(normalised(through(self.after, joined, own))))
            clean.append(self.form.patches(drawn + self.keep(own)[:, :, None, None] * cells))
        return self._in_order(clean, slices)

    def _in_order(self, parts: list[Tensor], slices: list[Slices]) -> Tensor:
        """Bring tokens that lie slice by slice back into the order of the batch."""
        places = torch.cat([of.tokens.flatten() for of in slices])
        return torch.cat(parts).index_select(0, places.argsort())


class CellBlock(nn.Module):
    """Two convolutions, modulated by the condition, added to what came in."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(condition, 3 * width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, cells: Tensor, condition: Tensor) -> Tensor:
        """Return cells [b, W, Y, X] after one block under the condition [b, E] of each slice."""
        shift, scale, gate = self.modulation(condition)[:, :, None, None].chunk(3, dim=1)  # [b, W, 1, 1] each
        x = self.first(F.silu(normalised(cells) * (1 + scale) + shift))
        out: Tensor = cells + 0.5 * (1 + gate) * self.second(F.silu(x))
        return out


def through(blocks: nn.ModuleList, cells: Tensor, condition: Tensor) -> Tensor:
    """Take cells [b, W, Y, X] through blocks, one after the other, under the condition [b, E] of each slice."""
    for block in blocks:
        cells = block(cells, condition)
    return cells


def normalised(cells: Tensor) -> Tensor:
    """Bring each slice of cells [b, W, Y, X] to mean 0 and variance 1."""
    return F.group_norm(cells, 1)
