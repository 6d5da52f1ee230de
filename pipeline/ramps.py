"""Ramps: dissolves, and fades from or to one colour, each with its first and last frame.

Runs in the decoder's process.

Legend: N frames, K values of a tiny picture (blue, green, red × cells), levels 0 to 255.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from operator import mul
from statistics import median

import numpy as np
from numpy.typing import NDArray

from pipeline import native
from pipeline.reel import DENSEST_FPS, ONE_COLOUR, REACH_S, Around, Cells, Reel, Transition, likeness, lit

Series = NDArray[np.float64]  # [N]

JUST_S = 0.08  # on both sides of a moment inside a ramp: how much it changes there
LEAST_SHARE = 0.5  # of what changes goes along with a ramp
PLATEAU_S = 0.2  # longer pictures of nearly one colour are no turn of a fade
_NEARBY_S = np.linspace(-REACH_S, REACH_S, 11)


def ramps(reel: Reel, around: Sequence[Around]) -> Iterator[Transition]:
    """Find the ramps that frames are inside of; the same ramp may come again and again, a little different."""
    for (number, low, high), direction in directions(reel, around):
        ramp = _ramp_at(reel, number, low, high, direction)
        if ramp:
            yield ramp


def _ramp_at(reel: Reel, number: int, low: int, high: int, direction: Cells) -> Transition | None:
    """Return the ramp that goes in a direction around a frame, or None."""
    first, end = max(low, reel.back(number, REACH_S)), min(high, reel.ahead(number, REACH_S) + 1)
    inside = slice(first - reel.first, end - reel.first)
    times, cells = reel.times[inside], reel.levels[inside].astype(np.float32)
    size = np.abs(direction)
    usual = _middle(size) + 0.5
    # What changes far more than the rest moves in front of the scene.
    weights = np.where(size < 4 * usual, direction / (direction**2 + usual**2), 0)
    if not weights.any():  # all that changes moves in front of what does not change at all
        return None
    progress = cells @ weights / (direction @ weights)
    ends = _ends(times, progress.tolist(), number - first)
    if ends is None:
        return None
    start, stop = ends
    is_ramp = _is_ramp(np.array(times), cells, start, stop, reel.spread[inside])
    return Transition(start=first + start + 1, end=first + stop) if is_ramp else None


def _middle(values: Cells) -> float:
    """Return about the median; numpy's own takes four times as long."""
    return float(np.sort(values)[len(values) // 2])


def directions(reel: Reel, around: Sequence[Around]) -> Iterator[tuple[Around, Cells]]:
    """Give by how much each value changes from just before a frame to just after it, where that may be part of a ramp."""
    if native.compiled:
        series = reel.times, reel.path, reel.spread, reel.levels
        places = np.array(around, np.int64).reshape(-1, 3) - reel.first
        found = native.compiled.directions(*series, places, JUST_S, REACH_S, DENSEST_FPS)
    else:
        found = _steps(reel, around)
    for i, before, after in found:
        yield around[i], reel.levels[after].astype(np.float32) - reel.levels[before]


def _steps(reel: Reel, around: Sequence[Around]) -> Iterator[tuple[int, int, int]]:
    """Give which frames may be inside of a ramp, and the places just before and just after each."""
    for i, (number, low, high) in enumerate(around):
        before, after = max(low, reel.back(number, JUST_S)), min(high - 1, reel.ahead(number, JUST_S))
        at = before - reel.first, number - reel.first, after - reel.first
        if not before < number < after or reel.times[at[2]] - reel.times[at[0]] > 0.5:
            continue
        changes = reel.path[at[2]] - reel.path[at[0]] >= 0.5
        if changes and _stirs(reel, *at) and _moves_on(reel, number, low, high) and _changes_in_step(reel, *at):
            yield i, at[0], at[2]


def _stirs(reel: Reel, before: int, at: int, after: int) -> bool:
    """Tell whether more changes around a frame than at some other time nearby: what changes all the time is no ramp."""
    times, path = reel.times, reel.path
    least = 0.7 * (path[after] - path[before]) / (times[after] - times[before])
    marks = [min(bisect_left(times, times[at] + nearby_s), len(times) - 1) for nearby_s in _NEARBY_S.tolist()]
    spans = [(first, last) for first, last in itertools.pairwise(marks) if times[last] > times[first]]
    return not spans or any(path[last] - path[first] < least * (times[last] - times[first]) for first, last in spans)


def _moves_on(reel: Reel, number: int, low: int, high: int) -> bool:
    """Tell whether most of the picture becomes another one around a frame: after a ramp it is."""
    before = max(low, reel.back(number, REACH_S / 2)) - reel.first
    after = min(high - 1, reel.ahead(number, REACH_S / 2)) - reel.first
    size = np.abs(reel.levels[after].astype(np.float32) - reel.levels[before])
    least = 0.4 * min(15.0, max(3.0, reel.spread[before], reel.spread[after]))
    return bool(2 * np.count_nonzero(size > np.float32(least)) >= len(size))


def _changes_in_step(reel: Reel, before: int, at: int, after: int) -> bool:
    """Tell whether many values are on a straight way from just before a frame to just after it."""
    a, middle, b = reel.levels[[before, at, after]].astype(np.float32)
    size, times = np.abs(b - a), reel.times
    mean = float(size.sum()) / len(size)
    if mean < 0.5 or np.count_nonzero(size > np.float32(max(0.3, 0.25 * mean))) < 0.4 * len(size):
        return False
    share = np.float32((times[at] - times[before]) / (times[after] - times[before]))
    return bool(np.abs(middle - a - share * (b - a)).mean(dtype=np.float64) < 0.35 * mean)


def _ends(times: Sequence[float], progress: Sequence[float], middle: int) -> tuple[int, int] | None:
    """Return the last frame before and the first frame after a steady rise of `progress` around a frame, or None.

    The rise ends where it is slower than a third of its pace in the middle; the levels on both sides and its pace give when.
    """
    before = min(bisect_left(times, times[middle] - 0.081), middle - 1)
    after = max(bisect_left(times, times[middle] + 0.081) - 1, middle + 1)
    pace = (progress[after] - progress[before]) / (times[after] - times[before])
    if pace <= 0:
        return None
    start = _walk(times, progress, middle, -1, 0.35 * pace)
    stop = _walk(times, progress, middle, 1, 0.35 * pace)
    nearly = 0.25 * (progress[stop] - progress[start])  # beyond that it goes on otherwise: a fade turns round
    if nearly <= 0:
        return None
    sides = slice(bisect_left(times, times[start] - 0.25), start + 1), slice(stop, bisect_right(times, times[stop] + 0.25))
    low, high = (
        median([there for there in progress[side] if abs(there - progress[end]) <= nearly])
        for side, end in zip(sides, (start, stop), strict=True)
    )
    rise = high - low
    core = [number for number in range(start, stop + 1) if low + 0.15 * rise < progress[number] < high - 0.15 * rise]
    if rise <= 0 or not core:
        return None
    core_times, core_progress = [times[number] for number in core], [progress[number] for number in core]
    middle_s, middle_at = sum(core_times) / len(core), sum(core_progress) / len(core)
    away = [time_s - middle_s for time_s in core_times]
    steady = sum(map(mul, away, core_progress)) / sum(map(mul, away, away)) if len(core) > 1 else pace
    if not 0.5 * pace < steady < 2 * pace:
        return None
    start_s, stop_s = middle_s - (middle_at - low) / steady, middle_s + (high - middle_at) / steady
    start, stop = bisect_left(times, start_s + 1e-3) - 1, bisect_left(times, stop_s - 1e-3)
    return (max(0, start), min(len(times) - 1, stop)) if stop - start > 2 else None


def _walk(times: Sequence[float], progress: Sequence[float], at: int, step: int, least: float) -> int:
    """Go on from a frame, forwards or backwards, while `progress` rises at least so much a second.

    To the next frame, or over the next tenth of a second: single frames may be repeated, and a fade may be about to turn round.
    """
    last = len(times) - 1 if step > 0 else 0
    while at != last:
        to = at + step
        while to != last and abs(times[to] - times[at]) < 0.1 - 1e-6:
            to += step
        paces = [(progress[there] - progress[at]) / (times[there] - times[at]) for there in (at + step, to)]
        if max(paces) < least:
            break
        at += step
    return at


def _is_ramp(times: Series, cells: Cells, start: int, stop: int, spread: Sequence[float]) -> bool:
    """Tell whether the frames between two frames are mixes of them.

    Most values go straight from their level at the one frame to that at the other, and keep still before and after. In shots
    that move they do not keep still; there the mix itself tells: two pictures that are not alike cancel out in it.
    """
    a, b = cells[start], cells[stop]
    size = np.abs(b - a)
    spread_a, spread_b = spread[start], spread[stop]
    full = min(15.0, max(3.0, spread_a, spread_b))
    # Black bars take no part.
    inside = lit(a, b)
    if not inside.any() or (usual := _middle(size.reshape(3, -1)[:, inside].ravel())) < full:
        return False
    changes = size > max(1.0, 0.25 * float(size.sum()) / len(size))
    if np.count_nonzero(changes) < 0.65 * max(0.25, np.count_nonzero(inside) / len(inside)) * len(changes):
        return False
    shares = ((times[start : stop + 1] - times[start]) / (times[stop] - times[start]))[:, None].astype(np.float32)
    off = np.abs(cells[start : stop + 1] - a - shares * (b - a))
    straight = changes & (off.sum(axis=0) < len(off) * (0.12 * size + 0.3))
    around = max(0.15, 0.3 * (times[stop] - times[start]))
    goes = straight
    # Next to one colour: there a fade turns round, and there is no structure to compare.
    plain_a, plain_b = spread_a < max(1.0, 0.2 * spread_b), spread_b < max(1.0, 0.2 * spread_a)
    if not plain_a:
        goes = goes & _still(cells[(times >= times[start] - around) & (times <= times[start])], a, size)
    if not plain_b:
        goes = goes & _still(cells[(times >= times[stop]) & (times <= times[stop] + around)], b, size)
    share, moving = (float(np.count_nonzero(which) / np.count_nonzero(changes)) for which in (goes, straight))
    if plain_a or plain_b:
        return share >= LEAST_SHARE
    # A mix is near to both, has no more structure than they have, and leads to another picture. What moves while a camera sets
    # its exposure adds structure; a scene in another light is much like what it was.
    sag, alike = 2 * spread[(start + stop) // 2] / (spread_a + spread_b), likeness(a, b)
    if sag > 1.02 or alike > 0.9 or off[1:-1].mean() > 0.2 * size.mean():
        return False
    if not _differ(a, b, 0.55 * full):  # nor do two cards, of which most is of one colour
        return share >= 0.8 and usual >= 70 and alike < 0.6
    return share >= LEAST_SHARE or (moving >= LEAST_SHARE and sag <= 0.88 and alike <= 0.45)


def _differ(a: Cells, b: Cells, least: float) -> bool:
    """Tell whether two pictures differ by more than light, exposure and what moves before a scene that stays.

    That is so if no gain from 0.6 to 1.6 and offset turns most of one into most of the other, up to `least` levels.
    """
    kept = np.ones(len(a) // 3, np.bool_)
    before, after = a.reshape(3, -1).T, b.reshape(3, -1).T
    for _ in range(3):
        x, y = before[kept], after[kept]
        gain = float(np.clip(((x - x.mean()) * (y - y.mean())).mean() / max(float(x.var()), 1e-3), 0.6, 1.6))
        errors = np.abs(after - gain * before - np.median(y - gain * x)).mean(axis=1)  # of each cell
        most = float(np.quantile(errors, 0.6))
        kept = errors <= most
    return most > max(least, 0.12 * float(np.quantile(np.abs(b - a), 0.6)))


def _still(cells: Cells, level: Cells, size: Cells) -> NDArray[np.bool_]:
    """Tell which values stay at a level, compared with the size of the ramp; none if there is only one frame to tell from."""
    if len(cells) < 2:
        return np.zeros(len(level), np.bool_)
    still: NDArray[np.bool_] = np.abs(cells - level).max(axis=0) < 0.2 * size + 0.5
    return still


def agreed(seen: Sequence[Transition]) -> tuple[int, int]:
    """Return start and end of a ramp as most of the frames inside it tell."""
    return sorted(ramp.start for ramp in seen)[len(seen) // 2], sorted(ramp.end for ramp in seen)[len(seen) // 2]


# ---- fades -------------------------------------------------------------------------------------------------------------


def faded(reel: Reel, span: tuple[int, int]) -> tuple[int, int]:
    """Widen a span that has a picture of next to one colour in it or beside it to all of the fade that this belongs to."""
    spread, times = reel.spread, reel.times
    low, high = max(0, span[0] - 1 - reel.first), min(reel.end - 1, span[1]) - reel.first
    near = max(0, low - 2), min(len(spread), high + 3)
    plain = min(range(*near), key=spread.__getitem__)
    if spread[plain] > max(ONE_COLOUR, 0.2 * max(spread[low : high + 1])):
        return span
    before = _fade_end(times[plain::-1], spread[plain::-1], max(0, plain - low))
    after = _fade_end(times[plain:], spread[plain:], max(0, high - plain))
    return min(span[0], plain - before + 1 + reel.first), max(span[1], plain + after + reel.first)


def _fade_end(times: Sequence[float], spread: Sequence[float], at: int) -> int:
    """Return how many frames after the first, which is of one colour, a fade has brought all of a picture, at least `at`.

    A fade brings structure at a steady pace; where there is none yet, or no more, it has not begun, or is over.
    """
    found, begun = at, spread[at] > 2 * max(ONE_COLOUR, spread[0])
    for number in range(at + 1, len(spread)):
        if abs(times[number] - times[0]) > REACH_S:
            break
        rise = spread[number] - spread[number - 1]
        pace = (spread[number - 1] - spread[0]) / max(1, number - 1)
        if begun and rise < 0.4 * pace:
            break
        waits = spread[0] > ONE_COLOUR and abs(times[number] - times[at]) > PLATEAU_S  # what is not quite plain is a shot
        if not begun and (waits or spread[number] < spread[number - 1] - 0.5):
            break
        begun = begun or spread[number] > 2 * max(ONE_COLOUR, spread[0])
        found = number if begun else found
    return found
