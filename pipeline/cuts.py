"""Cuts: how much a frame stands out as the first of a shot, and where a shot goes on although something stands out.

Runs in the decoder's process.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Container
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from pipeline import native
from pipeline.reel import DENSEST_FPS, FLASH_S, ONE_COLOUR, USUAL_S, Reel, likeness, lit

LEAST_CHANGED = 0.27  # of a picture changes at a cut; a title, a subtitle or a small picture that is laid over it is less
CONCENTRATED = 9  # times as much as on average a cell changes, the one that changes most, where somebody takes another pose
ALONE = 2.5  # times as much counts a weak change that stands alone, at most
FROZEN = 0.05  # of the change that ends a freeze is what changes in it, at the most
LIT = 15  # levels that a flash makes a picture lighter by, at the least
AS_FAR, ALIKE = 1.75, 0.45  # times what frames as far apart differ by, at most, and a correlation, at least: of one shot
REPEAT_S = 0.12  # from a frame that is shown again to others that are not


def cut_strength(reel: Reel, number: int, repeats: Container[int]) -> float:
    """Return how much a frame stands out as the first of a shot: its `apart` over what is usual around it; 0 for no cut.

    Weak changes count less: below 15 levels, or below the spread of the two pictures where that is less (dark, washed out).
    Frames that repeat others say nothing of what is usual: of a film at 24 frames a second in a video at 60 they are most.
    """
    at = number - reel.first
    apart = reel.apart[at]
    # Next to what is far greater and no cut it is the flicker of a flash.
    if apart < 1.5 or apart < 0.12 * max(reel.change[at - 1 : at + 2]):
        return 0.0
    # In the last frames of a source little is left that could be like those before: what is a bit like them is a flicker too.
    if reel.times[-1] - reel.times[at] < FLASH_S and apart < 0.3 * reel.change[at]:
        return 0.0
    low = max(1 if reel.first == 0 else 0, min(reel.back(number, USUAL_S) - reel.first, at - 2))
    high = max(reel.ahead(number, USUAL_S) - reel.first, at + 2) + 1
    numbers = [other for other in range(low, min(high, len(reel.apart))) if other != at and other not in repeats]
    if min(reel.spread[max(0, low - 1) : high]) < ONE_COLOUR:
        # Changes to and from one colour say nothing, unless most are: at a low rate a flash has a third of the frames near it.
        telling = [number for number in numbers if min(reel.spread[max(0, number - 1) : number + 1]) >= ONE_COLOUR]
        numbers = telling if 2 * len(telling) >= len(numbers) else numbers
    others = sorted(reel.apart[number] for number in numbers)
    # Not the largest: there may be other cuts nearby.
    usual = others[3 * len(others) // 4] if others else 0.0
    return apart / max(usual, 0.3) * min(1.0, apart / _full(reel, at))


def _full(reel: Reel, at: int) -> float:
    """Return by how many levels pictures change in what counts in full."""
    return min(15.0, max(3.0, *reel.spread[at - 1 : at + 1]))


def strength_alone(reel: Reel, number: int, strength: float) -> float:
    """Return the strength of a frame whose change is weak and stands alone, as between two poses of somebody before one wall.

    It is twice as large as any around it, as large for frames further off, and much of it is at few places: an encoder that
    begins anew changes all of a picture a little.
    """
    at, apart = number - reel.first, reel.apart[number - reel.first]
    low, high = reel.back(number, USUAL_S) - reel.first, reel.ahead(number, USUAL_S) - reel.first
    others = [*reel.apart[low:at], *reel.apart[at + 1 : high + 1]]
    if min(at - low, high - at) < 3 or apart < 2 * max(0.3, *others) or apart < 0.9 * reel.change[at]:
        return strength
    if _changes(reel, at, at + 1).max() < CONCENTRATED * apart:
        return strength
    return max(strength, min(0.75 * strength / min(1.0, apart / _full(reel, at)), ALONE * strength))


def changed_share(reel: Reel, number: int) -> float:
    """Return the share of a picture that changes at a frame, of what changes by a tenth as much as the most of it.

    By how much more than it does usually: before a camera that moves all of a picture changes, and still a title is no cut.
    Black bars take no part, but four fifths of a picture count at the least, so that a title on black is not all of it.
    """
    at = number - reel.first
    change = _changes(reel, at, at + 1)[0]
    change = change - np.minimum(change, _usual_changes(reel, number))
    changes = change > max(1.5, 0.1 * float(np.sort(change)[-len(change) // 20]))
    counts = changes | lit(reel.levels[at - 1], reel.levels[at])
    return int(np.count_nonzero(changes)) / max(0.8 * len(change), int(np.count_nonzero(counts)))


def _usual_changes(reel: Reel, number: int) -> NDArray[np.uint8]:
    """Return by how much each cell changes at most in two thirds of the frames around one."""
    at, low = number - reel.first, max(1, reel.back(number, USUAL_S) - reel.first)
    changes = _changes(reel, low, reel.ahead(number, USUAL_S) - reel.first + 1)
    others = np.concatenate([changes[: at - low], changes[at - low + 1 :]])
    most = 2 * (len(others) - 1) // 3
    return np.partition(others, most, axis=0)[most] if len(others) else np.zeros_like(changes[0])


def _changes(reel: Reel, first: int, end: int) -> NDArray[np.uint8]:
    """Return the largest change of each cell's colours at frames of some places, [N, cells]."""
    before, after = reel.levels[first - 1 : end - 1], reel.levels[first:end]
    changes = np.maximum(before, after) - np.minimum(before, after)
    largest: NDArray[np.uint8] = changes.reshape(end - first, 3, -1).max(axis=1)
    return largest


def goes_on(reel: Reel, start: int, end: int) -> bool:
    """Tell whether one shot goes on over the frames `[start, end)` between two, or over a cut: over a flash, or after a freeze.

    What lies before and after is of one scene then, and differs no more than other frames that are as far apart, in a shot that
    moves.
    """
    if not reel.first < start <= end < reel.end:
        return False
    return any(_is_one_shot(reel, *span) for span in (_flash(reel, start, end), _freeze(reel, start, end)) if span)


def _is_one_shot(reel: Reel, before: int, after: int) -> bool:
    """Tell whether two frames are of one scene, and differ no more than others do that are as far apart."""
    sides = (2 * before - after, before), (after, 2 * after - before)
    usual = [_difference(reel, *side) for side in sides if side[0] >= reel.first and side[1] < reel.end]
    if not usual or _difference(reel, before, after) > AS_FAR * fmean(usual):
        return False
    return likeness(*(reel.levels[number - reel.first].astype(np.float32) for number in (before, after))) >= ALIKE


def _flash(reel: Reel, start: int, end: int) -> tuple[int, int] | None:
    """Return the last frame before and the first after a light that comes and goes around frames `[start, end)`, or None."""
    first, last = reel.back(start, FLASH_S), reel.ahead(end, FLASH_S)
    light = reel.levels[first - reel.first : last + 1 - reel.first].mean(axis=1).tolist()
    brightest, dark = first + light.index(max(light)), min(light) + max(LIT, 0.2 * (max(light) - min(light)))
    before = next((number for number in range(brightest, first - 1, -1) if light[number - first] <= dark), None)
    after = next((number for number in range(brightest, last + 1) if light[number - first] <= dark), None)
    if before is None or after is None:
        return None
    before, after = min(before, start - 1), max(after, end)
    ends = max(light[before - first], light[after - first])
    return (before, after) if ends <= dark and light[brightest - first] >= ends + LIT else None


def _freeze(reel: Reel, start: int, end: int) -> tuple[int, int] | None:
    """Return the first of the frames before a cut that show the same, and the cut; None if there are no two, or no cut."""
    low, before = reel.back(start, FLASH_S), start - 1
    while before > low and reel.change[before - reel.first] <= max(0.02, FROZEN * reel.change[start - reel.first]):
        before -= 1
    return (before, end) if start == end and before < start - 1 else None


def _difference(reel: Reel, number: int, other: int) -> float:
    """Return how much two frames differ, in levels."""
    a, b = (reel.levels[place - reel.first].astype(np.float32) for place in (number, other))
    return float(np.abs(a - b).mean())


def _repeats(reel: Reel, start: int) -> Container[int]:
    """Tell the frames that show the one before again, or nearly so, between others that do not; by their places in the reel.

    Of those that count for a frame from `start` on.
    """
    change, times, found = reel.change, reel.times, set[int]()
    for at in range(max(0, min(reel.back(start, USUAL_S), start - 2) - reel.first), len(change)):
        first = bisect_left(times, times[at] - REPEAT_S, 0, at)
        end = bisect_right(times, times[at] + REPEAT_S, at)
        least = min(max(change[first:at], default=0.0), max(change[at + 1 : end], default=0.0))
        if change[at] <= max(0.02, 0.1 * least):
            found.add(at)
    return found


def cut_strengths(reel: Reel, start: int, end: int) -> list[float]:
    """Return the `cut_strength` of frames `[start, end)`."""
    if not native.compiled:
        repeats = _repeats(reel, start) if start < end else ()
        return [cut_strength(reel, number, repeats) for number in range(start, end)]
    series, places = (reel.times, reel.change, reel.apart, reel.spread), (start - reel.first, end - reel.first)
    bounds = FLASH_S, USUAL_S, REPEAT_S, ONE_COLOUR, DENSEST_FPS
    strengths: list[float] = native.compiled.strengths(*series, reel.first == 0, *places, *bounds)
    return strengths
