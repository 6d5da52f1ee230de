"""Which clips share a row: lengths in, groups of indices out, nothing else (NaViT's packing, arXiv 2307.06304 §2.1).

Invariant: every clip is in exactly one row; no row holds more tokens or segments than its caps. The plan is a pure function of
(lengths, capacity, seed, caps). Cost: a few bytes a clip, O(n log pool) time.

A pool of clips, drawn in seeded random order, is packed best-fit decreasing; rows that are all but full and the fullest quarter
leave, the clips of the others are carried into the next pool. That streams, and fills as well as one offline pass over all.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

POOL = 4096
FULL = 0.995


@dataclass
class _Row:
    space: int
    clips: list[int] = field(default_factory=list)


def plan_rows(
    lengths: Sequence[int] | NDArray[np.integer],
    *,
    capacity: int,
    seed: int = 0,
    max_segments: int = 512,
    pool: int = POOL,
) -> list[NDArray[np.int64]]:
    """Pack clips of these token counts into rows; each row is an array of indices into `lengths`.

    Raises:
        ValueError: a clip has no tokens or more than `capacity`; the planner never cuts a clip.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    misfits = sizes[(sizes < 1) | (sizes > capacity)]
    if misfits.size:
        raise ValueError(f"a clip of {misfits[0]} tokens does not fit a row of {capacity}")
    order = np.random.Generator(np.random.Philox(seed)).permutation(sizes.size)
    rows: list[list[int]] = []
    waiting: list[int] = []
    for start in range(0, sizes.size, pool):
        waiting.extend(order[start : start + pool].tolist())
        packed = _best_fit_decreasing(waiting, sizes, capacity, max_segments)
        leaving = len(packed) if start + pool >= sizes.size else _leaving(packed, capacity)
        rows.extend(row.clips for row in packed[:leaving])
        waiting = [clip for row in packed[leaving:] for clip in row.clips]
    return [np.array(row, dtype=np.int64) for row in rows]


def _best_fit_decreasing(clips: Sequence[int], sizes: NDArray[np.int64], capacity: int, max_segments: int) -> list[_Row]:
    """Pack `clips` longest first, each into the fullest row that still has room; return the rows fullest first."""
    rows: list[_Row] = []
    open_rows: list[tuple[int, int]] = []  # (space, row number), sorted: the best fit is one bisection away
    for clip in sorted(clips, key=lambda c: -int(sizes[c])):  # stable: equal lengths stay in seeded order
        size = int(sizes[clip])
        at = bisect_left(open_rows, (size, -1))
        if at == len(open_rows):
            rows.append(_Row(space=capacity))
            number = len(rows) - 1
        else:
            number = open_rows.pop(at)[1]
        row = rows[number]
        row.clips.append(clip)
        row.space -= size
        if row.space and len(row.clips) < max_segments:
            insort(open_rows, (row.space, number))
    return sorted(rows, key=lambda row: row.space)


def _leaving(rows: Sequence[_Row], capacity: int) -> int:
    full = sum(1 for row in rows if row.space <= capacity * (1 - FULL))
    return max(full, len(rows) // 4, 1)


def deal_rows(costs: NDArray[np.float64], *, seed: int, global_batch: int) -> list[NDArray[np.int64]]:
    """Order rows into steps of `global_batch` rows of like cost, so that ranks finish a step together.

    Rows are permuted by `seed`, sorted by cost inside windows of 32 steps, and the steps of a window are shuffled again. One
    step of the last window holds what is left over. Each row occurs once.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    order = generator.permutation(costs.size)
    steps: list[NDArray[np.int64]] = []
    window = 32 * global_batch
    for start in range(0, costs.size, window):
        rows = order[start : start + window]
        rows = rows[np.argsort(costs[rows], kind="stable")]
        groups = [rows[i : i + global_batch] for i in range(0, rows.size, global_batch)]
        steps.extend(groups[i] for i in generator.permutation(len(groups)))
    return steps


def deal_ranks(rows: NDArray[np.int64], costs: NDArray[np.float64], world_size: int) -> list[NDArray[np.int64]]:
    """Deal the rows of a step to ranks in a snake, dearest first; the step is the same for every world size."""
    ordered = rows[np.argsort(-costs[rows], kind="stable")]
    lap = np.concatenate([np.arange(world_size), np.arange(world_size)[::-1]])
    seat = np.resize(lap, ordered.size)
    return [ordered[seat == rank] for rank in range(world_size)]


def straggler_efficiency(costs: NDArray[np.float64], *, world_size: int, seed: int = 0) -> float:
    """Mean ÷ max cost over ranks, averaged over the steps of one epoch with one row a rank; 1.0 is perfect balance.

    Only steps that give every rank a row count; a corpus of fewer rows than ranks gives 0.0.
    """
    steps = [s for s in deal_rows(costs, seed=seed, global_batch=world_size) if s.size == world_size]
    if not steps:
        return 0.0
    return float(sum(costs[s].mean() for s in steps) / sum(costs[s].max() for s in steps))
