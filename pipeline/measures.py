"""Measures: numbers of a clip that need no weights, taken in the same decode pass as the cuts.

A measure is one function of small luma pictures; its docstring gives definition, unit and range. What it gives for every frame
of a clip is reduced to one number. To add one, write the function and decorate it; a rule can use its name at once. The module
imports no torch: it runs in the decoder's process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Luma = NDArray[np.uint8]  # [h, w], the picture scaled down, 0 to 255
Reduce = Callable[[NDArray[np.float64]], np.floating]


@dataclass(frozen=True)
class Measure:
    """A function of a frame (or of a frame and the one before) and how its values over a clip become one number."""

    function: Callable[..., float]
    of_change: bool
    reduce: Reduce


MEASURES: dict[str, Measure] = {}


def measure(*, of_change: bool = False, reduce: Reduce = np.mean) -> Callable[[Any], Any]:
    """Register a function as a measure under its own name.

    Args:
        of_change: the function takes (previous, frame); it is not asked across a cut, and a clip of one frame gets 0.
        reduce: how the values of a clip's frames become its number.
    """

    def register(function: Callable[..., float]) -> Callable[..., float]:
        MEASURES[function.__name__] = Measure(function, of_change, reduce)
        return function

    return register


@measure()
def luma(frame: Luma) -> float:
    """Mean luma of a frame, 0 (black) to 1 (white)."""
    return float(cv2.mean(frame)[0]) / 255


@measure()
def contrast(frame: Luma) -> float:
    """Standard deviation of the luma inside a frame, 0 (flat) to 0.5."""
    return float(cv2.meanStdDev(frame)[1][0, 0]) / 255


@measure(of_change=True)
def motion(previous: Luma, frame: Luma) -> float:
    """Mean absolute change of luma from one frame to the next, 0 (still) to 1."""
    return _mean_change(previous, frame) / 255


@measure(of_change=True)
def still_share(previous: Luma, frame: Luma) -> float:
    """Share of frames that barely differ from the one before (mean change below 1/255), 0 to 1; 1 is a slide."""
    return float(_mean_change(previous, frame) < 1)


def _mean_change(previous: Luma, frame: Luma) -> float:
    return cv2.norm(previous, frame, cv2.NORM_L1) / frame.size


def of_frame(previous: Luma, frame: Luma) -> list[float]:
    """Take all measures of one frame, in the order of `MEASURES`; the first frame of a file is its own predecessor."""
    return [m.function(previous, frame) if m.of_change else m.function(frame) for m in MEASURES.values()]


def of_clip(values: Sequence[Sequence[float]]) -> dict[str, float]:
    """Reduce the values [frames, measures] of one clip's frames to one number a measure."""
    table = np.asarray(values, dtype=np.float64)
    # The first frame's change is across the cut: it belongs to no clip.
    columns = {name: table[1:, i] if m.of_change else table[:, i] for i, (name, m) in enumerate(MEASURES.items())}
    return {name: float(MEASURES[name].reduce(column)) if column.size else 0.0 for name, column in columns.items()}
