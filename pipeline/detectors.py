"""Detectors by name: our own (`pipeline.transitions`, the default), PySceneDetect's, which find cuts only, and TransNet V2.

Runs in the decoder's process. All see the same small pictures, in the same order, and none decides anything else.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.planes import LUMA
from pipeline.reel import Transition
from pipeline.transitions import Transitions

# By name, the threshold that each is used with unless another is given.
THRESHOLDS = {
    "transitions": 3.0,  # ratio: how much a frame stands out from its neighbours to be a cut
    "adaptive": 3.0,  # ratio, likewise
    "content": 27.0,  # levels of hue, saturation and luma, 0 to 255, that a frame changes by
    "threshold": 12.0,  # levels, 0 to 255, that a picture is black below: shots end in black
    "transnetv2": 0.5,  # chance, by the network, that a transition is at a frame
}


class Detector(Protocol):
    """Finds transitions while frames come in, some time behind them."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the pictures that it takes."""

    def take(self, times_s: Sequence[float], pictures: NDArray[np.uint8]) -> list[Transition]:
        """Take the next few frames, uint8 BGR [n, *size, 3]; return the transitions that are certain now, in order."""

    def finish(self) -> list[Transition]:
        """Return the remaining transitions when all frames were taken."""


def detector(name: str, threshold: float, min_shot_frames: int, weights: str = "", weights_sha256: str = "") -> Detector:
    """Make a detector.

    Args:
        name: one of `THRESHOLDS`.
        threshold: of this detector.
        min_shot_frames: two cuts are never closer.
        weights: safetensors file of the network, for transnetv2.
        weights_sha256: of the bytes of that file.
    """
    match name:
        case "adaptive" | "content" | "threshold":
            return SceneDetect(name, threshold, min_shot_frames)
        case "transnetv2":
            # Here and nowhere else: torch takes seconds and hundreds of megabytes, which no other detector needs.
            from pipeline.transnet import TransNetDetector, network

            return TransNetDetector(network(weights, weights_sha256), threshold, min_shot_frames)
    return Transitions(threshold=threshold, min_shot_frames=min_shot_frames)


class SceneDetect:
    """One of PySceneDetect's detectors: cuts only, whatever lies around them."""

    size: ClassVar[tuple[int, int]] = LUMA

    def __init__(self, name: str, threshold: float, min_shot_frames: int) -> None:
        """Use PySceneDetect's detector of this name; see `detector`."""
        # Here and nowhere else: no other job's decoder loads it, which every child would pay for.
        from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode, ThresholdDetector

        kind = {"adaptive": AdaptiveDetector, "content": ContentDetector, "threshold": ThresholdDetector}[name]
        above = "adaptive_threshold" if name == "adaptive" else "threshold"
        self._found: Any = kind(**{above: threshold, "min_scene_len": min_shot_frames})
        # It counts frames; the rate given here only labels them. Times come from the file.
        self._timecode: Callable[[int], Any] = lambda number: FrameTimecode(number, 25.0)
        self._count = 0

    def take(self, times_s: Sequence[float], pictures: NDArray[np.uint8]) -> list[Transition]:
        """Take the next few frames; see `Detector`."""
        cuts = []
        for picture in pictures:
            cuts += self._found.process_frame(self._timecode(self._count), picture)
            self._count += 1
        return _hard(cuts)

    def finish(self) -> list[Transition]:
        """Return the last cuts; see `Detector`."""
        return _hard(self._found.post_process(self._timecode(max(0, self._count - 1))))


def _hard(cuts: list[Any]) -> list[Transition]:
    return [Transition(start=cut.frame_num, end=cut.frame_num) for cut in cuts if cut.frame_num > 0]
