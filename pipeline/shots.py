"""Gather shots while the frames of a source come in: times and light of every frame, and clips of the shots that have ended.

Runs in the decoder's process. Frames are held of the present shot only, and at a pace that slows down as it grows; the pictures
of a clip are sent away as soon as it ends. So memory grows by some tens of bytes a frame and no more, however long the source.

Legend: F Y X frames, rows, columns of pixels; pictures are uint8 RGB.
"""

import itertools
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import measures
from pipeline.crop import Box, find_box
from pipeline.detectors import Detector
from pipeline.media import Matrix, Send
from pipeline.planes import FRAMES, Held, Planes, hold, pictures_of, strip
from pipeline.reel import Transition

AT_FIRST = 16  # frames of a shot that are held at the first pace
STIRS = 3.0  # levels that luma changes by in what may be the first frame of a shot


@dataclass
class Shots:
    """What one pass gathers.

    Attributes:
        detector: finds where shots end.
        send: is given the pictures uint8 [F, Y, X, 3] of clip i under `str(i)`.
        pictures_per_clip: most of them.
        side_px: of their short side.
        max_clip_s: longer shots are divided evenly.
        first_pace: one frame in so many is held at first.
        times_s: of every frame so far, in seconds.
        clips: facts of the clips so far.
    """

    detector: Detector
    send: Send
    pictures_per_clip: int
    side_px: int
    max_clip_s: float
    first_pace: int
    times_s: "array[float]" = field(default_factory=lambda: array("d"))
    clips: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._light, self._change = array("d"), array("d")  # of the frames that are developed
        self._strip = strip(self.detector.size)
        self._held: dict[int, Held] = {}
        self._start, self._pace, self._watched, self._changed = 0, self.first_pace, self.pictures_per_clip, 0.0

    def take(self, time_s: float, planes: Planes, size: tuple[int, int], matrix: Matrix) -> None:
        """Take one frame: its time, its planes, its size (height, width) upright with square pixels, and its display matrix."""
        number = len(self.times_s)
        self.times_s.append(time_s)
        changed = self._strip.add(planes)
        stirred = changed > max(STIRS, 2 * self._changed)
        self._changed = changed
        # Shots are found seconds late. What may be the first frame of one is held, and some after it, so that a short shot is
        # held whole; not more often than that, because strobe lights stir all the time.
        if stirred and number >= self._watched + self.first_pace:
            self._watched = number + self.pictures_per_clip
        if stirred or number % self._pace == 0 or number < self._watched:
            self._held[number] = hold(planes, size, matrix, max(self.side_px, measures.SIDE))
            self._slow_down(number)
        if self._strip.count == FRAMES:
            self._develop()

    def finish(self, end_s: float) -> None:
        """End the last shot when all frames were taken."""
        self._develop()
        for transition in self.detector.finish():
            self._end_shot(transition)
        if self._start < len(self.times_s) or not self.clips:
            self._start = self._start if self._start < len(self.times_s) else 0
            self._add_shot(len(self.times_s), end_s)

    def complete_clips(self) -> list[dict[str, Any]]:
        """Return all clips, with the measures that need the whole source."""
        shots = [clip["shot_start_frame"] for clip in self.clips]
        measured = measures.of_source([clip["measures"] for clip in self.clips], shots)
        return [{**clip, "measures": of_clip} for clip, of_clip in zip(self.clips, measured, strict=True)]

    def _develop(self) -> None:
        if not self._strip.count:
            return
        times = self.times_s[-self._strip.count :]
        developed = self._strip.develop(*self.detector.size)
        self._light.extend(developed.light)
        self._change.extend(developed.change)
        for transition in self.detector.take(times, developed.pictures):
            self._end_shot(transition)

    def _end_shot(self, transition: Transition) -> None:
        """Turn the shot that ends where a transition starts into clips, and start the next where it ends."""
        if transition.start > self._start:
            self._add_shot(transition.start, self.times_s[transition.start])
        held = {number: frame for number, frame in self._held.items() if number >= transition.end}
        self._held = held or dict([max(self._held.items())])  # never none: the last shot may be short
        self._start, self._pace = transition.end, self.first_pace

    def _add_shot(self, end_frame: int, end_s: float) -> None:
        times = [*self.times_s[self._start : end_frame], end_s]
        for first, last in divided(times, self.max_clip_s):
            self._add_clip(self._start + first, self._start + last, times[first], times[last])

    def _add_clip(self, first: int, last: int, start_s: float, end_s: float) -> None:
        # Slow paces can miss a short piece: its neighbour in the same shot stands for it.
        inside = [n for n in self._held if first <= n < last] or [min(self._held, key=lambda n: abs(n - first))]
        chosen, moments = evenly(inside, self.pictures_per_clip), evenly(inside, measures.MOMENTS)
        box = find_box([self._held[number].lines for number in moments], *self._held[inside[0]].size)
        self.send(str(len(self.clips)), pictures_of([self._held[number] for number in chosen], box, self.side_px))
        self.clips.append(
            {
                "start_s": start_s,
                "end_s": end_s,
                "start_frame": first,
                "end_frame": last,
                "shot_start_frame": self._start,
                "frame_times_s": [min(max(self.times_s[number], start_s), self.times_s[last - 1]) for number in chosen],
                "crop": box,
                "measures": measures.of_clip(self._view(first, last, end_s - start_s, moments, box)),
            }
        )

    def _view(self, first: int, last: int, seconds: float, moments: list[int], box: Box) -> measures.View:
        held = [self._held[number] for number in moments]
        height, width = held[0].size
        lit = height * width / (box[2] * box[3])  # bars have no light and do not change: what is inside has all of it
        few = held[:: -(-len(held) // measures.PICTURES)]
        return measures.View(
            pictures=pictures_of(few, box, measures.SIDE, measures.LEAST_SIDE),
            cells=pictures_of(held, box, measures.CELLS, measures.LEAST_CELLS),
            times_s=np.array([self.times_s[number] for number in moments]),
            light=np.array(self._light[first:last]) * lit,
            change=np.array(self._change[first:last]) * lit,
            before=np.array(self._change[max(0, first - 8) : first]) * lit,
            seconds=seconds,
        )

    def _slow_down(self, number: int) -> None:
        """Hold fewer frames of a shot that goes on: its clips are long, and not too many shall be held."""
        if self._pace == self.first_pace and number - self._start >= self.first_pace * AT_FIRST:
            self._pace *= 2
        if len(self._held) > 64 * self.pictures_per_clip:
            self._pace *= 2
            first, *others = self._held
            self._held = {number: self._held[number] for number in (first, *(n for n in others if n % self._pace == 0))}


def divided(times: list[float], max_clip_s: float) -> Iterator[tuple[int, int]]:
    """Divide a shot evenly so that no piece is longer than the maximum.

    Args:
        times: the time of each frame of the shot, and the time at which it ends.
        max_clip_s: the longest piece in seconds.

    Yields:
        First frame and end frame of each piece, counted from the shot's first.
    """
    pieces = max(1, math.ceil((times[-1] - times[0]) / max_clip_s - 1e-9))
    targets = linspace(times[0], times[-1], pieces + 1)[1:-1]
    borders = {0, *(bisect_left(times, target, 0, len(times) - 1) for target in targets), len(times) - 1}
    yield from itertools.pairwise(sorted(borders))


def evenly(numbers: list[int], most: int) -> list[int]:
    """Choose at most `most` of ascending frame numbers, spread as evenly as they allow, the first and the last among them."""
    chosen = set()
    for target in linspace(numbers[0], numbers[-1], min(len(numbers), most)):
        at = bisect_left(numbers, target)
        chosen.add(min(numbers[max(0, at - 1) : at + 1], key=lambda number: abs(number - target)))
    return sorted(chosen)


def linspace(first: float, last: float, count: int) -> list[float]:
    """Return so many numbers from the first to the last, evenly; NumPy's own takes a child of the decoder ten times as long."""
    step = (last - first) / max(1, count - 1)
    return [*(first + number * step for number in range(count - 1)), last] if count > 1 else [first]
