"""What a row costs to train on: a·tokens + b·Σ len² + c·segments + d. The one cost model of planner, loader and report.

Rows of equal tokens do not cost the same, since attention grows with the square of each clip's length: ranks that get rows of
equal tokens wait for each other. The unit is the work of all linear layers on one token, so costs are near token counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Cost of a row: `tokens`·tokens + `squares`·Σ len² + `segments`·segments + `row`, in any unit of time or work."""

    tokens: float
    squares: float
    segments: float = 0.0
    row: float = 0.0

    def clip_costs(self, lengths: ArrayLike) -> NDArray[np.float64]:
        """Cost of each clip [n] of so many tokens, without the share that a row costs however little it holds."""
        tokens = np.asarray(lengths, dtype=np.float64)
        return self.tokens * tokens + self.squares * tokens**2 + self.segments

    def row_costs(self, rows: Sequence[NDArray[np.int64]], lengths: ArrayLike) -> NDArray[np.float64]:
        """Cost of each row [rows] of clips, given as indices into `lengths`."""
        if not rows:
            return np.zeros(0)
        starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
        costs: NDArray[np.float64] = np.add.reduceat(self.clip_costs(lengths)[np.concatenate(rows)], starts)
        return costs + self.row


def dit_cost(*, width: int = 1152, mlp_ratio: float = 4.0, attention: float = 0.5) -> CostModel:
    """Cost model from the FLOPs of a DiT block with cross-attention, as `training.model.Block` has it.

    Multiply-adds count as two FLOPs; the backward pass doubles every term and changes no ratio; depth cancels. With D the
    width and r the ratio of the MLP, one block takes forward

    - on each token (12 + 4r)·D²: self-attention's q, k, v and output 8, cross-attention's q and output 4, the MLP 4r;
    - on each clip 4·D·len²: QKᵀ and attention times V, at 2·D·len² each;
    - on each clip 12·D²: adaLN's six modulations.

    Divided by the first: tokens 1, squares `attention`·4 / ((12 + 4r)·D), segments 12 / (12 + 4r). The caption is left
    out: m text tokens add m / ((3 + r)·D) to the cost of a token, 1 % at 100 of them.

    Args:
        width: of the model (1152 is DiT-XL, arXiv 2212.09748, table 1).
        mlp_ratio: hidden width of the MLP ÷ width.
        attention: time of one FLOP of attention ÷ time of one FLOP of a linear layer. KnapFormer (arXiv 2508.06001) fits
            0.385 and uses 0.49 on an H100; measure it on your device rather than trust it.
    """
    linear = 12 + 4 * mlp_ratio
    return CostModel(tokens=1.0, squares=attention * 4 / (linear * width), segments=12 / linear)


def fit_cost(rows: Sequence[Sequence[int]], seconds: ArrayLike) -> CostModel:
    """Fit the four coefficients to measured times of rows, so that relative errors are least; none comes out negative.

    Args:
        rows: tokens of each clip of each measured row; they should differ in tokens, in Σ len² and in segments.
        seconds: what each row took.

    Raises:
        ValueError: there are fewer rows than coefficients, or a time that is not positive.
    """
    times = np.asarray(seconds, dtype=np.float64)
    terms = np.array([[sum(row), sum(length**2 for length in row), len(row), 1] for row in rows], dtype=np.float64)
    if len(terms) < terms.shape[-1] or not (times > 0).all():
        raise ValueError(f"a fit takes at least 4 rows with positive times, not {len(terms)} with {times.tolist()}")
    scale = np.abs(terms).max(axis=0)
    found = _least_squares_above_zero(terms / scale / times[:, None], np.ones(len(times))) / scale
    return CostModel(tokens=float(found[0]), squares=float(found[1]), segments=float(found[2]), row=float(found[3]))


def _least_squares_above_zero(terms: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve for coefficients of zero or more: of all subsets of the few terms, that with positive ones and the least error."""
    best, least = np.zeros(terms.shape[1]), float("inf")
    for used in product([False, True], repeat=terms.shape[1]):
        found = np.zeros(terms.shape[1])
        found[list(used)] = np.linalg.lstsq(terms[:, used], target)[0]
        error = float(((terms @ found - target) ** 2).sum())
        if (found >= 0).all() and error < least:
            best, least = found, error
    return best
