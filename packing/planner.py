"""Which clips share a row: lengths in, groups of indices out, nothing else (NaViT's packing, arXiv 2307.06304 §2.1).

Invariant: every clip is in exactly one row; no row holds more than its caps. The plan is a pure function of its arguments; with
`keys` it is the same for any order of the same clips.

A pool of clips is drawn in seeded random order and packed. Rows that are all but full and the fullest quarter leave, the clips
of the others are carried into the next pool. That streams, and fills as well as one pass over all clips.

A row begins with the longest clip that is left and is completed by the fewest clips, up to three, that fill it, longer ones
first (minimum bin slack, Fleszar and Hindi 2002, cut off at three). That leaves fewer gaps than best-fit decreasing, which
packs a clip without a look at what the row then lacks. Clips of equal sizes are one class and a row is repeated as long as its
classes last (a histogram as in Krell et al., arXiv 2107.02027 §3), so a pool costs time by its hundreds of distinct lengths,
not by its thousands of clips. Which clip of a class goes where is dealt at the end, in seeded order. Cost: 1 to 2 µs a clip
where lengths are some hundreds, up to 20 µs where all are distinct; 45 bytes a clip, which are the rows, and as many meanwhile.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

POOL = 32_768
FULL = 0.995
SLACK = 0.0005
PARTNERS = 512  # classes that are tried as one of two clips to complete a row, and
LOOKAHEAD = 24  # as one of three
COST_STEPS = 1 << 40

Column = tuple[NDArray[np.int64], int, str]  # a size of each clip, the most of a row, what it counts


class _Alike(NamedTuple):
    """Rows of equal content: how many, the tokens still free in each, the class of each of their clips."""

    rows: int
    space: int
    members: list[int]


@dataclass(frozen=True, kw_only=True)
class _Classes:
    """Distinct sizes of clips, shortest first: `sizes` [classes, caps], tokens before other caps, `most` of a row [caps]."""

    sizes: NDArray[np.int64]
    most: NDArray[np.int64]
    max_segments: int
    of_clip: NDArray[np.integer]


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
    order = _draw([column for column, _, _ in columns], keys, generator)
    classes = _classify(columns, max_segments)
    members, ends = _plan_classes(classes, order, pool)
    return _deal_clips(members, ends, classes.of_clip[order], order, generator)


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


def _classify(columns: Sequence[Column], max_segments: int) -> _Classes:
    """Find the distinct sizes of clips, shortest first, and which of them each clip has."""
    for least, (column, most, what) in zip([1, 0, 0], columns, strict=False):
        misfits = column[(column < least) | (column > most)]
        if misfits.size:
            raise ValueError(f"a clip of {misfits[0]} {what} does not fit a row of {most}")
    table = columns[0][0] if len(columns) == 1 else np.stack([column for column, _, _ in columns], axis=1)
    sizes, of_clip = np.unique(table, axis=0, return_inverse=True)
    return _Classes(
        sizes=sizes.reshape(len(sizes), len(columns)),
        most=np.array([most for _, most, _ in columns], dtype=np.int64),
        max_segments=max_segments,
        of_clip=of_clip.reshape(-1).astype(np.min_scalar_type(len(sizes))),  # 16 bits are sorted by radix
    )


def _plan_classes(classes: _Classes, order: NDArray[np.int64], pool: int) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Plan rows by class alone: the class of each member of all rows, row after row, and where each row ends."""
    members, sizes = [classes.of_clip[:0]], [np.zeros(0, dtype=np.int64)]
    carried = members[0]
    for start in range(0, order.size, pool):
        drawn = classes.of_clip[order[start : start + pool]]
        alike = sorted(_Pool(np.concatenate([carried, drawn]), classes).rows(), key=lambda rows: rows.space)
        content, lengths = _unfold(alike, classes.of_clip.dtype)
        leaving = lengths.size if start + pool >= order.size else _leaving(alike, int(classes.most[0]))
        cut = int(lengths[:leaving].sum())
        members.append(content[:cut])
        sizes.append(lengths[:leaving])
        carried = content[cut:]
    return np.concatenate(members), np.cumsum(np.concatenate(sizes))


class _Pool:
    """Clips to be packed, counted by class; `fit[r]` is the longest class left of at most r tokens, or -1."""

    def __init__(self, clips: NDArray[np.integer], classes: _Classes) -> None:
        self.present, self.left = np.unique(clips, return_counts=True)
        self.table, self.most = classes.sizes[self.present], classes.most.tolist()
        self.sizes: list[list[int]] = self.table.tolist()
        self.tokens = np.append(self.table[:, 0], 0)  # the class that is none, -1, has no tokens
        self.max_segments = classes.max_segments
        self.slack = int(self.most[0] * SLACK)
        bounds = np.concatenate([[0], self.table[:, 0], [self.most[0] + 1]])
        self.fit = np.repeat(np.arange(-1, len(self.sizes)), np.diff(bounds))
        # The neighbours of each class among those left; one more entry, [-1] too, takes what is written beyond both ends.
        self.shorter = list(range(-1, len(self.sizes)))
        self.longer = list(range(1, len(self.sizes) + 2))

    def rows(self) -> Iterator[_Alike]:
        """Pack all clips."""
        while self.fit[-1] >= 0:
            yield self._row()

    def _row(self) -> _Alike:
        """Fill one row, and as many more with the same content as there are clips for."""
        row: list[int] = []
        room = self.most
        while take := self._next(room, self.max_segments - len(row)):
            row += take
            room = self._less(room, take)
            for number, times in Counter(take).items():
                self._remove(number, times)
        used = Counter(row)
        again = min(int(self.left[number]) // times for number, times in used.items())
        if again:
            for number, times in used.items():
                self._remove(number, again * times)
        return _Alike(1 + again, room[0], self.present[row].tolist())

    def _less(self, room: list[int], take: list[int]) -> list[int]:
        return [free - sum(self.sizes[number][cap] for number in take) for cap, free in enumerate(room)]

    def _remove(self, number: int, times: int) -> None:
        self.left[number] -= times
        if not self.left[number]:
            shorter, longer = self.shorter[number], self.longer[number]
            self.fit[self.sizes[number][0] : self.sizes[longer][0] if longer < len(self.sizes) else None] = shorter
            self.longer[shorter], self.shorter[longer] = longer, shorter

    def _next(self, room: list[int], segments: int) -> list[int]:
        """Choose the classes of the clips that a row with this room takes next; none when it takes no more."""
        longest = self._longest(room) if segments else -1
        if longest < 0:
            return []
        space, tokens = room[0], self.sizes[longest][0]
        if space - tokens <= self.slack or space == self.most[0]:
            return [longest]
        if space > 4 * tokens:  # far from full, no need to look ahead
            return [longest] * max(1, min(space // tokens - 3, segments, *self._copies(longest, room)))
        take = self._completion(space, longest)
        return take if len(take) <= segments and self._allows(take, room) else [longest]

    def _longest(self, room: list[int]) -> int:
        """Return the longest class left that fits under all caps, or -1."""
        longest = int(self.fit[room[0]])
        if len(room) > 1 and longest >= 0 and min(self._less(room, [longest])) < 0:
            fitting = np.flatnonzero((self.left > 0) & (self.table <= room).all(axis=1))
            return int(fitting[-1]) if fitting.size else -1
        return longest

    def _completion(self, space: int, longest: int) -> list[int]:
        """Find two clips that leave no more than the slack of `space` free, else of up to three those that leave the least."""
        some = _thinned(np.flatnonzero(self.left[: longest + 1]), PARTNERS)
        free, pair = self._best(space - self.tokens[some])
        two = [int(some[pair[0]]), *pair[1:]]
        if free <= self.slack:
            return two
        few = _thinned(some, LOOKAHEAD)
        least, triple = self._best(np.subtract.outer(space - self.tokens[few], self.tokens[some]).ravel())
        first, second = divmod(triple[0], some.size)
        return [int(few[first]), int(some[second]), *triple[1:]] if least < free else two

    def _best(self, spaces: NDArray[np.int64]) -> tuple[int, list[int]]:
        """Find the space that one more clip fills best; return what stays free, and [place of the space, class if any]."""
        last = self.fit[spaces]  # of a space below 0 it is nonsense, and not asked for
        free = np.where(spaces < 0, self.most[0], spaces - self.tokens[last])
        filled = np.flatnonzero(free <= self.slack)
        best = int(filled[-1] if filled.size else free.argmin())
        return int(free[best]), [best] if last[best] < 0 else [best, int(last[best])]

    def _copies(self, number: int, room: list[int]) -> list[int]:
        """Say how many clips of a class are left, and how many fit under each cap."""
        return [int(self.left[number]), *(free // need for free, need in zip(room, self.sizes[number], strict=True) if need)]

    def _allows(self, take: list[int], room: list[int]) -> bool:
        """Tell whether there are clips enough of these classes, and room for them under all caps."""
        return all(take.count(number) <= self.left[number] for number in take) and min(self._less(room, take)) >= 0


def _thinned(classes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Keep no more than so many classes, evenly, the longest among them."""
    step = max(1, -(-classes.size // most))
    return classes[::-step][::-1]


def _unfold(alike: Sequence[_Alike], dtype: np.dtype[Any]) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Write rows out one by one: the class of each member, and the number of members of each row."""
    members = [member for rows in alike for member in rows.members * rows.rows]
    sizes = np.repeat([len(rows.members) for rows in alike], [rows.rows for rows in alike])
    return np.array(members, dtype=dtype), sizes.astype(np.int64)


def _leaving(alike: Sequence[_Alike], capacity: int) -> int:
    full = sum(rows.rows for rows in alike if rows.space <= capacity * (1 - FULL))
    return max(full, sum(rows.rows for rows in alike) // 4, 1)


def _deal_clips(
    members: NDArray[np.integer],
    ends: NDArray[np.int64],
    drawn: NDArray[np.integer],
    order: NDArray[np.int64],
    generator: np.random.Generator,
) -> list[NDArray[np.int64]]:
    """Give each planned place a clip of its class, in the order drawn, and shuffle the rows.

    Args:
        members: the class of each place of all rows, row after row.
        ends: where each row ends in `members`.
        drawn: the class of each clip in the order drawn.
        order: the clips in the order drawn.
        generator: draws the order of rows.
    """
    clips = np.empty_like(order)
    clips[np.argsort(members, kind="stable")] = order[np.argsort(drawn, kind="stable")]
    starts = np.concatenate([[0], ends[:-1]]) if ends.size else ends
    shuffled = generator.permutation(ends.size)
    return [clips[start:end] for start, end in zip(starts[shuffled].tolist(), ends[shuffled].tolist(), strict=True)]


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
