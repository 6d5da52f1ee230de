"""Transitions: where one shot ends and the next begins, from the stream of a source's frames, a few seconds behind it.

Runs in the decoder's process. Every frame becomes a tiny picture of block means (`CELLS`); all is decided on these, over
windows in seconds of presentation time, whatever the frame rate. Five rules:

- A **cut** lies between two sides no frames of which are alike, it stands out from what changes around it, and most of the
  picture changes by more than usual. A flash, or a strobe light, has frames alike on both sides, and is no cut; nor is a title
  laid over a shot.
- A **ramp** (dissolve; fade from or to one colour) mixes two pictures: most cells go from one level to another in step, at a
  steady pace, and keep still before and after; or, where shots move, two pictures that are not alike cancel out in their mix.
  What pans, moves or grows changes cell after cell; what gets lighter or darker keeps its structure.
- A **wipe** lays one shot over the other from one side: each cell changes at once, when a straight border reaches it, and both
  sides of that stand still meanwhile.
- Cuts and ramps with next to nothing between them, or with nothing but frames of one colour, are one transition.
- A shot that moves **goes on** over a flash, or after a freeze, if what lies before and after differs no more than frames of it
  do that are as far apart.

Memory holds the tiny pictures of a few seconds, however long the source. Cost: some hundredths of a millisecond a frame.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.cuts import ALONE, LEAST_CHANGED, changed_share, cut_strengths, goes_on, strength_alone
from pipeline.planes import CELLS
from pipeline.ramps import JUST_S, PLATEAU_S, agreed, faded, ramps
from pipeline.reel import (
    CAPACITY,
    DENSEST_FPS,
    FLASH_S,
    MOST_AT_ONCE,
    ONE_COLOUR,
    ONE_COLOUR_S,
    REACH_S,
    USUAL_S,
    Around,
    Reel,
    Transition,
)
from pipeline.wipes import wipes

WIPES_S = 0.4  # from one moment at which wipes are looked for to the next
MOST_BACK = 0.5  # of the change at one end of a flash that may be left between what lies before and after it


@dataclass(kw_only=True)
class Transitions:
    """Finds the transitions of a source while its frames come in.

    Attributes:
        threshold: how much a frame must stand out from its neighbours to be a cut, a ratio.
        min_shot_frames: shots are never shorter; what is, is part of a transition.
    """

    threshold: float = 3.0
    min_shot_frames: int = 3
    reel: Reel = field(default_factory=Reel)
    next_part: int = 1  # the first frame of which is not yet known how far apart what lies before and after it is
    next_cut: int = 1  # the first frame of which is not yet known whether it is a cut
    next_ramp: int = 1  # the first frame of which is not yet known whether a ramp is around it
    next_wipe_s: float = -math.inf  # when a wipe is looked for next
    cuts: dict[int, float] = field(default_factory=dict)  # and how strong each is
    ramps: list[list[Transition]] = field(default_factory=list)  # and wipes, each as it was seen from some frames
    given: int = 0  # end of the last transition that was given away

    size: ClassVar[tuple[int, int]] = CELLS

    def take(self, times_s: Sequence[float], pictures: NDArray[np.uint8]) -> list[Transition]:
        """Take the next few frames; return the transitions that are certain now, in order.

        Args:
            times_s: their presentation times.
            pictures: uint8 BGR [n, *size, 3].
        """
        self.reel.add(times_s, pictures)
        self._decide(final=False)
        return list(self._certain(final=False))

    def finish(self) -> list[Transition]:
        """Return the remaining transitions when all frames were taken."""
        self._decide(final=True)
        return list(self._certain(final=True))

    def _decide(self, *, final: bool) -> None:
        reel = self.reel
        seen = reel.end if final else self._seen_up_to(reel.end, self.next_part, FLASH_S)
        reel.part(self.next_part, seen)
        self.next_part = seen
        seen = self.next_part if final else self._seen_up_to(self.next_part, self.next_cut, USUAL_S)
        for number, strength in enumerate(cut_strengths(reel, self.next_cut, seen), self.next_cut):
            if ALONE * strength >= self.threshold and self._stands_out(number, strength) >= self.threshold:
                # A flash that goes out over some frames has some that do not stick out from the others.
                reel.part(number, number + 1, all_frames=True)
                strength = self._stands_out(number, *cut_strengths(reel, number, number + 1))
                if strength >= self.threshold and changed_share(reel, number) >= LEAST_CHANGED:
                    self.cuts[number] = strength
        self.next_cut = seen
        around = list(self._around(final=final))
        for ramp in ramps(reel, around):
            self._keep(ramp)
        for wipe in wipes(reel, list(self._now_and_then(around))):
            self._keep(wipe, wipe)  # once is no chance, as it is with ramps

    def _stands_out(self, number: int, strength: float) -> float:
        """Return how much a frame stands out as the first of a shot, also if its change is weak."""
        weak = strength < self.threshold <= ALONE * strength
        return strength_alone(self.reel, number, strength) if weak else strength

    def _around(self, *, final: bool) -> Iterator[Around]:
        """Give the next frames that may be inside of a ramp, each with what belongs to the same shot or ramp."""
        reel = self.reel
        sharp = [cut for cut, strength in self.cuts.items() if strength >= 2 * self.threshold]
        low, end = max(self.given, reel.first), reel.end - 1
        for high in [*sharp, reel.end]:
            last = min(high, end if final else self._seen_up_to(self.next_cut, self.next_ramp, REACH_S), end)
            while self.next_ramp < last:
                yield self.next_ramp, low, high
                self.next_ramp = reel.ahead(self.next_ramp, JUST_S)
            low = max(low, high)

    def _now_and_then(self, around: Sequence[Around]) -> Iterator[Around]:
        """Choose frames at which wipes are looked for, which are seen from far off."""
        for one in around:
            time_s = self.reel.times[one[0] - self.reel.first]
            if time_s >= self.next_wipe_s:
                self.next_wipe_s = time_s + WIPES_S
                yield one

    def _seen(self, last: int, number: int, seconds: float) -> bool:
        """Tell whether enough frames came after a frame, up to `last`, to judge it."""
        late = self.reel.times[last - self.reel.first] - self.reel.times[number - self.reel.first] >= seconds
        return last - number >= 2 and bool(late or last - number >= DENSEST_FPS * seconds)

    def _seen_up_to(self, end: int, start: int, seconds: float) -> int:
        """Return up to which frame, from `start` on, enough frames came before `end` to judge all."""
        return start + bisect_left(range(start, end), True, key=lambda number: not self._seen(end - 1, number, seconds))

    def _keep(self, ramp: Transition, *more: Transition) -> None:
        """Put a ramp or wipe, as it was seen once or more often, to the last one if it is the same, seen from another frame."""
        if self.ramps:
            start, end = agreed(self.ramps[-1])
            if 2 * (min(end, ramp.end) - max(start, ramp.start)) > min(end - start, ramp.end - ramp.start):
                self.ramps[-1] += [ramp, *more]
                return
        self.ramps.append([ramp, *more])

    def _certain(self, *, final: bool) -> Iterator[Transition]:
        """Give away transitions that nothing which is still to be found can touch."""
        if not self.cuts and not self.ramps:
            return
        known = self.reel.end if final else self.reel.back(self.next_ramp, REACH_S)
        self.ramps = [seen for seen in self.ramps if len(seen) > 1 or seen[0].end >= known]
        self.cuts = self._clear_cuts()
        for found in self._merged():
            if not (final or self._closed(found, known) or self._grows_old(found)):
                return
            if goes_on(self.reel, found.start, found.end):
                self._forget_up_to(found.end)
            else:
                yield from self._give(found, final=final)

    def _merged(self) -> list[Transition]:
        """Join what is known of cuts and ramps to transitions with shots between them."""
        # What is seen from one frame only is chance.
        ramps = [faded(self.reel, agreed(seen)) for seen in self.ramps if len(seen) > 1]
        spans = sorted([*((cut, cut) for cut in self.cuts), *ramps])
        merged: list[tuple[int, int]] = []
        for start, end in spans:
            if merged and self._no_shot(merged[-1], (start, end)):
                merged[-1] = merged[-1][0], max(merged[-1][1], end)
            else:
                merged.append((start, end))
        return [Transition(start=start, end=end) for start, end in merged]

    def _clear_cuts(self) -> dict[int, float]:
        """Return the cuts but those that are one end of a flash at the edge of a shot, right beside the cut itself.

        What lies before and after such a flash moves too much to be alike, and is far more alike than it is to the flash. With
        a clear cut on either side, or frames of one colour in it, a flash is a transition: all its cuts are kept.
        """
        runs = list[list[int]]()
        for cut in sorted(self.cuts):
            if runs and cut - runs[-1][-1] <= self.min_shot_frames:
                runs[-1].append(cut)
            else:
                runs.append([cut])
        kept = [self._clear_of(run) or run for run in runs]
        return {cut: self.cuts[cut] for cut in itertools.chain(*kept)}

    def _clear_of(self, run: Sequence[int]) -> list[int]:
        """Return the one clear cut among cuts close together, where the others are ends of a flash beside it; else none."""
        reel, places = self.reel, [cut - self.reel.first for cut in run]
        clear = [cut for cut, at in zip(run, places, strict=True) if reel.apart[at] >= MOST_BACK * reel.change[at]]
        plain = any(min(reel.spread[at - 1 : at + 1]) < ONE_COLOUR for at in places)
        return clear if len(clear) == 1 and not plain else []

    def _no_shot(self, before: tuple[int, int], after: tuple[int, int]) -> bool:
        """Tell whether what lies between two spans is no shot. Where a fade turns round it is not quite of one colour."""
        spread, times, first, last = self.reel.spread, self.reel.times, self.reel.first, self.reel.end - 1
        outside = min(spread[max(0, before[0] - 1 - first)], spread[min(after[1], last) - first])
        fades = before[0] < before[1] or after[0] < after[1]
        turns = times[min(after[0], last) - first] - times[before[1] - first] <= PLATEAU_S
        most = max(ONE_COLOUR, (0.3 if turns else 0.1) * outside) if fades else ONE_COLOUR
        short = after[0] - before[1] < self.min_shot_frames
        return short or self._one_colour(before[1], after[0], most) or self._flashes(before[1], after[0])

    def _flashes(self, start: int, end: int) -> bool:
        """Tell whether frames `[start, end)` between two cuts are a flash of one colour, with what glimmers through it."""
        first, last = start - self.reel.first, min(end, self.reel.end - 1) - self.reel.first
        spread = self.reel.spread
        inside, outside = spread[first : end - self.reel.first], max(spread[max(0, first - 1)], spread[last])
        brief = self.reel.times[last] - self.reel.times[first] < FLASH_S
        return brief and min(inside) < ONE_COLOUR and max(inside) < 0.7 * outside

    def _one_colour(self, start: int, end: int, most: float = ONE_COLOUR) -> bool:
        """Tell whether frames `[start, end)` are of one colour, up to a spread, and few."""
        first, last = start - self.reel.first, min(end, self.reel.end - 1) - self.reel.first
        if self.reel.times[last] - self.reel.times[first] > ONE_COLOUR_S:
            return False
        return all(spread < most for spread in self.reel.spread[first : end - self.reel.first])

    def _closed(self, found: Transition, known: int) -> bool:
        """Tell whether a transition cannot grow any more, when all before frame `known` is known."""
        end, before = found.end, self.reel.spread[max(0, found.start - 1 - self.reel.first)]
        return known - end >= self.min_shot_frames and not self._one_colour(end, known, max(ONE_COLOUR, 0.3 * before))

    def _grows_old(self, found: Transition) -> bool:
        """Tell whether the reel is soon to forget where a transition starts, which goes on and on where cut follows cut."""
        return self.reel.end - found.start > CAPACITY - CAPACITY // 5 - MOST_AT_ONCE

    def _give(self, found: Transition, *, final: bool) -> Iterator[Transition]:
        start, end, reel = found.start, found.end, self.reel
        fades = any(seen[0].start < end and start < seen[0].end for seen in self.ramps if len(seen) > 1)
        if self.given == reel.first == 0 and (start < self.min_shot_frames or (fades and self._one_colour(0, start))):
            start = 0
        if final and (reel.end - end < self.min_shot_frames or (fades and self._one_colour(end, reel.end))):
            end = reel.end
        self._forget_up_to(found.end)
        self.given = end
        yield Transition(start=start, end=end)

    def _forget_up_to(self, end: int) -> None:
        """Forget the cuts, ramps and wipes of a transition that ends there."""
        self.cuts = {cut: strength for cut, strength in self.cuts.items() if cut > end}
        self.ramps = [seen for seen in self.ramps if agreed(seen)[0] > end]
