"""Which clips share a row: lengths in, groups of indices out, nothing else (NaViT's packing, arXiv 2307.06304 §2.1).

Invariant: every clip is in exactly one row; no row holds more than its caps. The plan is a pure function of its arguments; with
`keys` it is the same for any order of the same clips.

A pool of clips is drawn in seeded random order and packed (`packing.filling`). Rows that are all but full and the fullest
quarter leave, the clips of the others are carried into the next pool. That streams, and fills as well as one pass over all
clips. Clips of equal sizes are one class; where sizes are too many for that, ranges of lengths are (`packing.ranges`). Which
clip of a class goes where is dealt at the end, in seeded order. Where rows hold very many clips, these are dealt out over as
many rows as they need (`packing.spreading`). Cost: 1 to 2 µs a clip from some ten thousand clips on, up to
20 µs for a few thousand of lengths all distinct, and for those that break a cap on text or cost; see `benchmarks/packing.py`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from packing.filling import Alike, Classes, fill_rows, unfold
from packing.ranges import plan_ranges
from packing.spreading import spread_rows

POOL = 131_072
FULL = 0.995
DISTINCT = 1024  # sizes that are classes of their own: more of them cost 20 µs a clip
MANY = 64  # clips a row on average: enough for rows to come out even
COST_STEPS = 1 << 40

Column = tuple[NDArray[np.int64], int, str]  # a size of each clip, the most of a row, what it counts
Planned = tuple[NDArray[np.int64], NDArray[np.int64]]  # the clips of all rows, row after row; how many each row has


def plan_rows(
    lengths: ArrayLike,
    *,
    capacity: int,
    seed: int = 0,
    max_segments: int = 512,
    pool: int = POOL,
    keys: ArrayLike | None = None,
    text_lengths: ArrayLike | None = None,
    max_text: int | None = None,
    costs: ArrayLike | None = None,
    max_cost: float | None = None,
) -> list[NDArray[np.int64]]:
    """Pack clips of these token counts into rows; each row is an array of indices into `lengths`, each clip once.

    Args:
        lengths: tokens of each clip.
        capacity: the most tokens of a row.
        seed: of the draw into pools, of which of equal clips goes where, and of the order of rows.
        max_segments: the most clips of a row.
        pool: how many clips are drawn at a time; fewer are slower, since a pool costs time by its distinct lengths.
        keys: a distinct id or integer of each clip; the same (key, length) pairs in any order then make the same rows of keys.
            Without them the key of a clip is its index.
        text_lengths: text tokens of each clip, capped by `max_text` a row. Clips are then of many sizes: slower.
        max_text: the most text tokens of a row.
        costs: compute of each clip, capped by `max_cost` a row, in the same unit (see `packing.cost`).
        max_cost: the most compute of a row.

    Raises:
        ValueError: a clip has no tokens or does not fit a row by itself (the planner never cuts a clip), or a cap has no sizes.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    columns = [(np.asarray(lengths, dtype=np.int64), capacity, "tokens")]
    columns += _capped(text_lengths, max_text, "text tokens")
    columns += _cost_steps(costs, max_cost)
    _refuse_misfits(columns)
    order = _draw([column for column, _, _ in columns], keys, generator)
    clips, counts = _plan(columns, order, max_segments, pool)
    ends = np.cumsum(counts)
    shuffled = generator.permutation(ends.size)
    starts = (ends - counts)[shuffled].tolist()
    return [clips[start:end] for start, end in zip(starts, ends[shuffled].tolist(), strict=True)]


def _capped(sizes: ArrayLike | None, cap: int | None, what: str) -> list[Column]:
    if (sizes is None) != (cap is None):
        raise ValueError(f"a cap on {what} needs the {what} of each clip and the most of a row, both")
    return [] if sizes is None or cap is None else [(np.asarray(sizes, dtype=np.int64), cap, what)]


def _cost_steps(costs: ArrayLike | None, max_cost: float | None) -> list[Column]:
    """Round costs up to whole steps of which a row has 2^40, so that their sum is exact and never over the cap."""
    if costs is None or max_cost is None:
        return _capped(costs, None if max_cost is None else 0, "cost")
    steps = np.ceil(np.asarray(costs, dtype=np.float64) / max_cost * COST_STEPS)
    return [(steps.astype(np.int64), COST_STEPS, "cost (of 2^40 a row)")]


def _draw(columns: Sequence[NDArray[np.int64]], keys: ArrayLike | None, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw all clips in seeded random order: of their keys, so that the order they came in does not matter."""
    drawn = generator.permutation(columns[0].size)
    return drawn if keys is None else np.lexsort([*columns, np.asarray(keys)])[drawn]


def _refuse_misfits(columns: Sequence[Column]) -> None:
    for least, (column, most, what) in zip([1, 0, 0], columns, strict=False):
        misfits = column[(column < least) | (column > most)]
        if misfits.size:
            raise ValueError(f"a clip of {misfits[0]} {what} does not fit a row of {most}")


def _plan(columns: Sequence[Column], order: NDArray[np.int64], max_segments: int, pool: int) -> Planned:
    """Plan rows of all clips by their very sizes; where these are too many, or too small, most clips in other ways."""
    lengths, capacity, _ = columns[0]
    classes, drawn = _classify(columns, order, max_segments)
    if order.size * capacity > MANY * lengths.sum():
        planned = spread_rows(lengths, order, capacity=capacity, max_segments=max_segments)
    elif len(classes.sizes) > DISTINCT:
        planned = plan_ranges(lengths, order, capacity=capacity, max_segments=max_segments, pool=pool)
    else:
        return _plan_exactly(classes, drawn, order, pool)
    clips, counts = _within(planned, columns[1:])
    # What is left, and what is in rows that another cap than that on tokens forbids.
    left = np.ones(lengths.size, dtype=bool)
    left[clips] = False
    rest = order[left[order]]
    more, more_counts = _plan_exactly(*_classify(columns, rest, max_segments), rest, pool)
    return np.concatenate([clips, more]), np.concatenate([counts, more_counts])


def _plan_exactly(classes: Classes, drawn: NDArray[np.integer], order: NDArray[np.int64], pool: int) -> Planned:
    """Plan rows of the clips `order`, of which `drawn` tells the classes; each distinct size is a class."""
    members, counts = _plan_classes(classes, drawn, pool)
    clips = np.empty_like(order)  # each planned place gets a clip of its class, in the order drawn
    clips[np.argsort(members, kind="stable")] = order[np.argsort(drawn, kind="stable")]
    return clips, counts


def _classify(columns: Sequence[Column], order: NDArray[np.int64], max_segments: int) -> tuple[Classes, NDArray[np.integer]]:
    """Find the distinct sizes of the clips `order`, shortest first, and which of them each clip has."""
    numbers = np.zeros(order.size, dtype=np.int64)
    for column, _, _ in columns:  # numbering pairs (class so far, size) is faster than sorting the rows of a table
        sizes, of_size = np.unique(column[order], return_inverse=True)
        numbers = np.unique(numbers * sizes.size + of_size, return_inverse=True)[1]
    first = np.unique(numbers, return_index=True)[1]
    classes = Classes(
        sizes=np.stack([column[order][first] for column, _, _ in columns], axis=1),
        most=np.array([most for _, most, _ in columns], dtype=np.int64),
        max_segments=max_segments,
    )
    return classes, numbers.astype(np.min_scalar_type(first.size))  # 16 bits are sorted by radix


def _plan_classes(classes: Classes, drawn: NDArray[np.integer], pool: int) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Plan rows by class alone: the class of each member of all rows, row after row, and how many members a row has.

    `drawn` is the class of each clip, in the order drawn.
    """
    members, sizes = [drawn[:0]], [np.zeros(0, dtype=np.int64)]
    carried = members[0]
    for start in range(0, drawn.size, pool):
        alike = fill_rows(np.concatenate([carried, drawn[start : start + pool]]), classes)
        content, lengths = unfold(alike, drawn.dtype)
        leaving = lengths.size if start + pool >= drawn.size else _leaving(alike, int(classes.most[0]))
        cut = int(lengths[:leaving].sum())
        members.append(content[:cut])
        sizes.append(lengths[:leaving])
        carried = content[cut:]
    return np.concatenate(members), np.concatenate(sizes)


def _leaving(alike: Sequence[Alike], capacity: int) -> int:
    full = sum(rows.rows for rows in alike if rows.space <= capacity * (1 - FULL))
    return max(full, sum(rows.rows for rows in alike) // 4, 1)


def _within(planned: Planned, caps: Sequence[Column]) -> Planned:
    """Keep the rows that hold no more than `caps` allow, but for as many of the slackest as do not, for these to mix with."""
    clips, counts = planned
    starts = np.cumsum(counts) - counts
    use = np.zeros(counts.size)
    for column, most, _ in caps:
        use = np.maximum(use, np.add.reduceat(column[clips], starts) / most)
    broken = int((use > 1).sum())
    kept = np.zeros(counts.size, dtype=bool)
    kept[np.argsort(use, kind="stable")[broken : counts.size - broken]] = True
    return clips[np.repeat(kept, counts)], counts[kept]


def deal_rows(
    costs: NDArray[np.float64], *, seed: int, global_batch: int, window_steps: int | None = None
) -> list[NDArray[np.int64]]:
    """Order rows into steps of `global_batch` rows of like cost, so that ranks finish a step together.

    Rows are permuted by `seed`, sorted by cost inside windows, and the steps of a window are shuffled again. One step of the
    last window holds what is left over. Each row occurs once.

    Args:
        costs: of each row, in any unit.
        seed: of the order.
        global_batch: rows of a step.
        window_steps: steps of a window. A longer one balances ranks better, and rows meet the same others in a step more often
            from epoch to epoch. Without it an eighth of the epoch, at least 64 and at most 128.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    order = generator.permutation(costs.size)
    steps: list[NDArray[np.int64]] = []
    window = global_batch * (window_steps or min(max(costs.size // global_batch // 8, 64), 128))
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


def straggler_efficiency(
    costs: NDArray[np.float64], *, world_size: int, seed: int = 0, window_steps: int | None = None
) -> float:
    """Mean ÷ max cost over ranks, averaged over the steps of one epoch with one row a rank; 1.0 is perfect balance.

    Only steps that give every rank a row count; a corpus of fewer rows than ranks gives 0.0.
    """
    dealt = deal_rows(costs, seed=seed, global_batch=world_size, window_steps=window_steps)
    steps = [step for step in dealt if step.size == world_size]
    if not steps:
        return 0.0
    return float(sum(costs[s].mean() for s in steps) / sum(costs[s].max() for s in steps))
