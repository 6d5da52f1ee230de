"""Plan rows where nearly every clip has a length of its own: classes are ranges of lengths, and rows are levelled afterwards.

Rows are planned as if each clip had the mean length of its range. Which clip of a range goes where is then free, so clips are
dealt so that what rows hold beyond their plan evens out: wherever rows want clips of one range, the row that holds the most
gets the shortest. What a row holds is counted in true tokens; a row that is over its capacity all the same is taken apart and
its clips are planned again.
"""

import numpy as np
from numpy.typing import NDArray

from packing.filling import Classes, fill_rows, unfold

BY_COUNT, BY_LENGTH = 256, 384  # ranges hold at most this share of all clips, and span at most this share of a row
MARGIN = 0.0003  # of a row, left free by the plan for what levelling does not even out
FULL = 0.995
PLACES = 8  # of a row, the longest clips first, at which clips are exchanged
SWEEPS = 2
FEW = 1024  # clips that are better planned by their very lengths

Planned = tuple[NDArray[np.int64], NDArray[np.int64]]  # the clips of all rows, row after row; how many each row has


def plan_ranges(
    lengths: NDArray[np.int64], order: NDArray[np.int64], *, capacity: int, max_segments: int, pool: int
) -> Planned:
    """Plan full rows of the clips `order`, which are drawn `pool` at a time; some clips, about `FEW`, stay without a row.

    Args:
        lengths: tokens of each clip, none above `capacity`.
        order: clips in the order drawn.
        capacity: the most tokens of a row.
        max_segments: the most clips of a row.
        pool: how many clips are drawn at a time.
    """
    ranges = length_ranges(lengths, capacity)
    rows: list[Planned] = [(order[:0], order[:0])]
    rest, begin = order[:0], 0
    while begin < order.size or rest.size > FEW:
        drawn, begin = np.concatenate([rest, order[begin : begin + pool]]), begin + pool
        clips, counts, tokens = _fill_level(lengths[drawn], ranges[drawn], capacity, max_segments)
        done = _done(tokens, counts, capacity, drawn.size // 8 if begin < order.size else FEW)
        rows.append((drawn[clips[np.repeat(done, counts)]], counts[done]))
        rest = drawn[clips[np.repeat(~done, counts)]]
        if begin >= order.size and not done.any():
            break
    return np.concatenate([clips for clips, _ in rows]), np.concatenate([counts for _, counts in rows])


def length_ranges(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Return the number of the range that each length is in; equal lengths are in one range, longer ones in no lower."""
    sizes, of_size, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    shorter = np.cumsum(counts) - counts
    steps = shorter * BY_COUNT // lengths.size + sizes * BY_LENGTH // capacity
    number: NDArray[np.int64] = np.cumsum(np.diff(steps, prepend=steps[:1]) > 0)
    return number[of_size]


def _fill_level(
    lengths: NDArray[np.int64], ranges: NDArray[np.int64], capacity: int, max_segments: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pack all clips into rows by their ranges; return the clips of all rows, how many each row has, and its true tokens."""
    most = int(capacity * (1 - MARGIN))
    number = np.bincount(ranges)
    means = -(-np.bincount(ranges, weights=lengths).astype(np.int64) // np.maximum(number, 1))
    classes = Classes(sizes=np.minimum(means, most)[:, None], most=np.array([most]), max_segments=max_segments)
    alike = fill_rows(ranges, classes)
    members, counts = unfold(alike, np.dtype(np.int16))
    clips = np.empty(lengths.size, dtype=np.int64)
    clips[np.argsort(members, kind="stable")] = np.argsort(ranges, kind="stable")
    return clips, counts, _level(clips, counts, lengths, ranges)


def _level(
    clips: NDArray[np.int64], counts: NDArray[np.int64], lengths: NDArray[np.int64], ranges: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Exchange clips of one range between rows, in place, so that rows come out even; return the tokens of each row."""
    starts = np.cumsum(counts) - counts
    tokens = np.add.reduceat(lengths[clips], starts)
    for place in [*range(min(PLACES, int(counts.max())))][::-1] * SWEEPS:
        rows = np.flatnonzero(counts > place)
        at = starts[rows] + place
        mine = clips[at]
        of_range = ranges[mine] << 40
        others = tokens[rows] - lengths[mine]
        fullest = np.argsort(of_range - others, kind="stable")
        shortest = np.argsort(of_range + lengths[mine], kind="stable")
        clips[at[fullest]] = mine[shortest]
        tokens[rows[fullest]] = others[fullest] + lengths[mine[shortest]]
    return tokens


def _done(tokens: NDArray[np.int64], counts: NDArray[np.int64], capacity: int, keep: int) -> NDArray[np.bool_]:
    """Tell which rows are done: all that hold no more than they may, but for the emptiest of them, of up to `keep` clips."""
    done = tokens <= capacity
    wanting = np.flatnonzero(done & (tokens < FULL * capacity))
    wanting = wanting[np.argsort(tokens[wanting], kind="stable")]
    done[wanting[np.cumsum(counts[wanting]) <= keep]] = False
    return done
