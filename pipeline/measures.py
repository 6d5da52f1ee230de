"""Measures: numbers of a clip that need no weights, taken in the same decode pass as the cuts.

A measure is one function of a view of the clip: a few small pictures of it without its black bars, and how light every frame is
and how much it differs from the one before. Its docstring gives definition, unit and range. To add one, write the function and
decorate it; a rule can use its name at once. The module imports no torch: it runs in the decoder's process.

What is told of every frame is its light and its change; all else is taken when a clip ends, of a few pictures, in milliseconds.

Legend: F pictures, Y X rows and columns of pixels, M moments, y x rows and columns of cells, N frames.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import native

Luma = NDArray[np.uint8]  # [Y, X], 0 (black) to 255 (white)
Pictures = NDArray[np.uint8]  # [F, Y, X, 3]
Series = NDArray[np.float64]  # [N]

SIDE, LEAST_SIDE = 96, 16  # the short side that pictures are measured at, if they have it, and the least that any gets
CELLS, LEAST_CELLS = 24, 4  # the same of pictures whose pixels are cells, for what moves
PICTURES, MOMENTS = 4, 16  # of both, at most, of a clip, spread evenly
STILL = 0.75  # share of still moments from which a shot counts as a still
FLASH_S = 1 / 3  # light that lasts no longer than this between two jumps is a flash


@dataclass(frozen=True, kw_only=True)
class View:
    """What is measured of a clip: a picture's values are those inside its black bars.

    Attributes:
        pictures: uint8 RGB [F, Y, X, 3] in order, spread evenly over the clip; the short side has `LEAST_SIDE` to `SIDE`.
        cells: more and smaller pictures, uint8 RGB [M, y, x, 3], for what moves: noise averages out in a cell.
        times_s: time of each of these, float64 [M].
        light: mean luma of every frame, 0 to 1, float64 [N].
        change: mean absolute change of colour from the frame before to every frame, 0 to 1, float64 [N]; the first lies before
            the clip.
        before: the same of some frames before the clip; empty at the beginning of a source.
        seconds: length of the clip; 0 for a still image.
    """

    pictures: Pictures
    cells: Pictures
    times_s: Series
    light: Series
    change: Series
    before: Series
    seconds: float

    @property
    def _tall(self) -> NDArray[np.uint8]:
        """All pictures as one, [F * Y, X, 3]."""
        return self.pictures.reshape(-1, *self.pictures.shape[2:])

    @cached_property
    def channels(self) -> Sequence[NDArray[np.uint8]]:
        """Red, green and blue of the pictures, each 0 to 255, [F, Y, X]."""
        return [channel.reshape(self.pictures.shape[:3]) for channel in cv2.split(self._tall)]

    @cached_property
    def luma(self) -> NDArray[np.uint8]:
        """Luma of the pictures, 0 to 255, [F, Y, X]."""
        planes: NDArray[np.uint8] = cv2.cvtColor(self._tall, cv2.COLOR_RGB2GRAY)
        return planes.reshape(self.pictures.shape[:3])

    @cached_property
    def levels(self) -> Sequence[Sequence[int]]:
        """Luma that 1 % and 99 % of each picture is at or below, 0 to 255, F times."""
        return [_percentiles(plane, 1, 99) for plane in self.luma]

    @cached_property
    def range(self) -> float:
        """How far apart the 1 % and 99 % of red, green or blue lie, whichever most, 0 to 255; of the pictures, the median."""
        levels = [[_percentiles(plane, 1, 99) for plane in channel] for channel in self.channels]
        return _median([max(high - low for low, high in of_picture) for of_picture in zip(*levels, strict=True)])

    @cached_property
    def moved(self) -> Sequence[int]:
        """Largest change of a cell from a moment to the next that is at least a quarter second later, pair by pair.

        Of its red, green or blue, 0 to 255.
        """
        later = np.searchsorted(self.times_s, self.times_s + 0.249).clip(max=len(self.cells) - 1)
        # Near the end, only the last moment is left to compare with; the pair that is furthest apart stands for all with it.
        pairs = {j: i for i, j in reversed(list(enumerate(later.tolist()))) if j > i}
        return [int(cv2.norm(self.cells[at], self.cells[before], cv2.NORM_INF)) for at, before in pairs.items()]


OfClip = Callable[[View], float]
OfSource = Callable[[Sequence[dict[str, float]], Sequence[int]], list[int]]
MEASURES: dict[str, OfClip | None] = {}  # by name; None for those of a source


def measure(function: OfClip) -> OfClip:
    """Register a function of a clip's view as a measure under its own name."""
    MEASURES[function.__name__] = function
    return function


@measure
def luma(view: View) -> float:
    """Mean luma, 0 (black) to 1 (white); of the pictures, the median."""
    return _median(_means(view.luma)) / 255


@measure
def luma_p01(view: View) -> float:
    """Luma that 1 % of the picture is darker than, 0 to 1; of the pictures, the median."""
    return _median([low for low, _ in view.levels]) / 255


@measure
def luma_p99(view: View) -> float:
    """Luma that 1 % of the picture is lighter than, 0 to 1: low only if nothing in it is lit; of the pictures, the median."""
    return _median([high for _, high in view.levels]) / 255


@measure
def contrast(view: View) -> float:
    """Standard deviation of luma inside a picture, 0 (flat) to 0.5; of the pictures, the median."""
    return _median([float(cv2.meanStdDev(plane)[1][0, 0]) for plane in view.luma]) / 255


@measure
def colour_range(view: View) -> float:
    """How far apart the 1 % and 99 % of red, green or blue lie, whichever most, 0 (flat) to 1; of the pictures, the median.

    What is washed out has little of it; a green thing on gray of the same luma has much, and no contrast.
    """
    return view.range / 255


@measure
def saturation(view: View) -> float:
    """Mean difference of the largest and smallest of red, green and blue, 0 (gray) to 1; of the pictures, the median."""
    red, green, blue = view.channels
    largest, smallest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return _median(_means(largest - smallest)) / 255


@measure
def sharpness(view: View) -> float:
    """How steep the strongest edges are: step from pixel to pixel over the range around it, 0 to 1; the median of the pictures.

    Both are taken at a fixed size and divided, so neither resolution nor contrast counts. An edge blurred by a Gaussian of
    sigma (in short sides) gets about 0.006 / sigma; a picture without edges of 6/255 and more is not blurred and gets 1.
    """
    return _median([_steepness(channels) for channels in zip(*view.channels, strict=True)])


@measure
def motion(view: View) -> float:
    """Mean absolute change of colour in a second, frame by frame, 0 (still) upwards; 1 is black to white once a second."""
    return float(view.change[1:].sum() / view.seconds) if view.seconds else 0.0


@measure
def still_share(view: View) -> float:
    """Share of moments a quarter second apart (or more) between which nothing moves anywhere, 0 to 1; 0 for a single picture.

    Nothing moves when no cell of a 24th of the short side changes by more than 0.03 in red, green or blue. If it is more, the
    share of frames whose mean change is at most 0.0001: a frozen picture that jumps when its encoder refreshes it. Both bounds
    are lower where the `colour_range` is below 0.2.
    """
    if not view.moved:
        return 0.0
    visible = min(1.0, colour_range(view) / 0.2)
    moments = sum(change <= 255 * 0.03 * visible for change in view.moved) / len(view.moved)
    return float(max(moments, (view.change[1:] <= 0.0001 * visible).mean()))


@measure
def flicker(view: View) -> float:
    """Share of time under a strobe light: between jumps of mean luma (0.06 and more) at most 1/3 s apart, 0 to 1.

    Twice the lesser of the share that is short and light and the share that is short and dark: single flashes and slow changes
    have none.
    """
    jumps = np.flatnonzero(np.abs(np.diff(view.light)) > 0.06) + 1
    if len(jumps) < 2:
        return 0.0
    longest = FLASH_S * len(view.light) / max(view.seconds, 1e-9)  # frames
    runs = [(start, end) for start, end in pairwise(jumps) if end - start <= longest]
    short = [(end - start, view.light[start] > view.light[start - 1]) for start, end in runs]
    lit, dark = (sum(length for length, is_lit in short if is_lit == wanted) for wanted in (True, False))
    return 2.0 * min(lit, dark) / len(view.light)


@measure
def cut_confidence(view: View) -> float:
    """How much the clip's first frame stands out against what was before, 0 to 1; 1 at the beginning of a source.

    (c - m) / (c + m) with the change c of the first frame and m that of the frames around it, and at least 1/255 in the sum.
    """
    if not len(view.before):
        return 1.0
    usual = max(_median(side.tolist()) for side in (view.before, view.change[1:9]) if len(side))
    first = float(view.change[0])
    return max(0.0, (first - usual) / max(first + usual, 1 / 255))


@measure
def overlay_area(view: View) -> float:
    """Share of the picture at strong edges that never change while the rest moves, 0 to 1: signs and frames laid over a shot.

    0 unless more edges come and go than stay: before a camera that stands still, the background never changes.
    """
    if len(view.luma) < 3:
        return 0.0
    lasting, moving = _lasting(view.luma)
    if moving < len(view.luma) * np.count_nonzero(lasting):
        return 0.0
    return cv2.countNonZero(cv2.dilate(lasting, np.ones((5, 5), np.uint8))) / lasting.size


@measure
def text_likeness(view: View) -> float:
    """Share of regions (a twelfth of the short side) where strong steps up and down take turns, as in writing, 0 to 1."""
    return _median([_writing(picture) for picture in view.luma])


def still_run(measured: Sequence[dict[str, float]], shots: Sequence[int]) -> list[int]:
    """How many still shots in a row of its source a clip is part of; 0 if it moves. 3 and more make a slideshow."""
    still = [of_clip["still_share"] >= STILL for of_clip in measured]
    runs: list[int] = []
    for is_still, clips in groupby(zip(still, shots, strict=True), key=lambda clip: clip[0]):
        of_run = [shot for _, shot in clips]
        runs += [len(set(of_run)) if is_still else 0] * len(of_run)
    return runs


OF_SOURCE: dict[str, OfSource] = {"still_run": still_run}
MEASURES.update(dict.fromkeys(OF_SOURCE))


def of_clip(view: View) -> dict[str, float]:
    """Take all measures of a clip but those that depend on its source's other clips."""
    return {name: float(function(view)) for name, function in MEASURES.items() if function}


def of_source(measured: Sequence[dict[str, float]], shots: Sequence[int]) -> list[dict[str, float]]:
    """Complete the measures of a source's clips, in order, with those that depend on the others.

    Args:
        measured: the measures of each clip by itself.
        shots: the number of the shot that each is a piece of.
    """
    added = {name: function(measured, shots) for name, function in OF_SOURCE.items()}
    return [{**alone, **{name: float(added[name][i]) for name in added}} for i, alone in enumerate(measured)]


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))  # of a few numbers; numpy's own takes thirty times as long


def _means(planes: NDArray[np.uint8]) -> Sequence[float]:
    """Return the mean of each plane, [F, Y, X]."""
    return [cv2.sumElems(plane)[0] / plane.size for plane in planes]


def _percentiles(plane: NDArray[np.uint8], *percents: float) -> Sequence[int]:
    """Return levels of a plane [Y, X] that these percents of it are at or below; by its histogram, the cheapest way."""
    counts = [percent / 100 * plane.size for percent in percents]
    if native.compiled:
        levels: tuple[int, ...] = native.compiled.levels(plane, *counts)
        return levels
    below = cv2.calcHist([plane], [0], None, [256], [0, 256]).cumsum()
    return [int(below.searchsorted(count)) for count in counts]


def _steepness(channels: Sequence[Luma]) -> float:
    """Return the steepness of the strongest edges of a picture, 3 × [Y, X], taken in the channel that has the strongest."""
    percent, least = 95, 6  # of the ranges around a pixel; levels
    if native.compiled:
        steepness: float = native.compiled.steepness(*channels, percent / 100 * channels[0].size, least)
        return steepness
    window = np.ones((9, 9), np.uint8)
    smooth = [cv2.GaussianBlur(channel, (3, 3), 0.5) for channel in channels]  # against noise
    reaches = [cv2.subtract(cv2.dilate(channel, window), cv2.erode(channel, window)) for channel in smooth]
    strongest = [_percentiles(reach, percent)[0] for reach in reaches]
    best = int(np.argmax(strongest))
    channel, reach = smooth[best], reaches[best][:-1, :-1]
    across, down = cv2.absdiff(channel[:, 1:], channel[:, :-1])[:-1], cv2.absdiff(channel[1:], channel[:-1])[:, :-1]
    step = cv2.dilate(cv2.subtract(cv2.max(across, down), 1), window)  # without the level that rounding may make
    among = reach >= strongest[best]
    return float(np.median(step[among] / reach[among])) if strongest[best] >= least and among.any() else 1.0


def _lasting(luma: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """Find edges in pictures [F, Y, X]: 1 where the same is in all of them, [Y - 2, X - 2]; and how many come and go."""
    edge, faint = 24, 8  # levels of change over two pixels
    if native.compiled:
        mask = np.empty((luma.shape[1] - 2, luma.shape[2] - 2), np.uint8)
        return mask, native.compiled.lasting(luma.reshape(-1, luma.shape[2]), len(luma), edge, faint, mask)
    across, down = _gradients(luma)
    strength = across * across + down * down  # [F, Y, X], the square
    weakest = strength.min(axis=0)
    lasting = (weakest > edge**2) & (np.ptp(across, axis=0) ** 2 + np.ptp(down, axis=0) ** 2 < edge**2)
    return lasting.astype(np.uint8), int(np.count_nonzero((strength > edge**2) & (weakest < faint**2)))


def _gradients(luma: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the change of luma [F, Y, X] around every inner pixel, across and down; whole numbers, whose squares are exact."""
    tall = luma.reshape(-1, luma.shape[2])  # inner pixels have their neighbours in the same picture
    across, down = (cv2.Sobel(tall, cv2.CV_32F, dx, 1 - dx, ksize=1).reshape(luma.shape) for dx in (1, 0))
    return across[:, 1:-1, 1:-1], down[:, 1:-1, 1:-1]


def _writing(luma: NDArray[np.uint8]) -> float:
    """Return the share of cells of a picture [Y, X] with at least two strong steps up and two down in most of their lines."""
    if native.compiled:
        share: float = native.compiled.writing(luma, 8, 32, 0.12 * 64)
        return share
    left, right = luma[:, :-1], luma[:, 1:]
    steps = (cv2.compare(cv2.subtract(*sides), 32, cv2.CMP_GT) for sides in ((right, left), (left, right)))  # 0 or 255
    up, down = (cv2.boxFilter(step, cv2.CV_32F, (8, 8), normalize=False)[4::8, 4::8] for step in steps)
    return float((np.minimum(up, down) > 0.12 * 64 * 255).mean())
