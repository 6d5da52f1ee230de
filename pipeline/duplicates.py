"""Find clips with the content of an earlier clip: a small signature of each, one distance, and who owns the content.

A copy in another size, codec, frame rate or quality keeps its colours and how they move on a coarse grid; another scene with
the same description does not. No model is asked. Invariant: the answer is a pure function of the clips in their order; how they
are blocked changes nothing. Cost: 0.8 kB a clip, and products of small matrices over the clips of like duration.

Legend: n m clips, F frames, T K times and cells of a signature, A axes that candidates are found by.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

TIMES, CELLS = 8, 5
FLOOR = 0.02  # of full scale: what encoding again, and a crop that is off by two pixels, change in a picture without motion
_WANTED = np.linspace(0.15, 0.85, TIMES)  # of a clip; a cut that was found some frames off shows another scene at an end
_SPREAD, _MOST_GAIN = 38.0, 5.0  # standard deviation of a signature's numbers, and what contrast is multiplied by at most
_PLAIN = 2.0  # levels that the cells of a frame of one colour spread at most
_AXES = 32
_BLOCK, _WINDOW = 512, 128  # clips that are decided at once, and of those, clips that candidates are sought for at once
_SAMPLE = 4096  # clips that the axes are found from
_SLACK = 1e-5  # of squared distances; float32 is more exact than that

Signatures = NDArray[np.uint8]  # [n, T, K, K, 3]
Numbers = NDArray[np.int64]
Values = NDArray[np.float64]
Pairs = tuple[Numbers, Numbers]  # the later clip of each, and the earlier one


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A clip with the content of an earlier one: where that stands in the order, and their distance."""

    of: int
    distance: float


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a copy may differ by at most: a distance below 1, and seconds of duration."""

    distance: float
    seconds: float


def signature(frames: NDArray[np.uint8], times: Values) -> NDArray[np.uint8]:
    """Return the mean colours of a coarse grid of cells at evenly spread times, uint8 [T, K, K, 3].

    Between two frames colours are interpolated: another frame rate shows the same motion at other times. Frames of one colour
    are passed over where there are others: a white flash would be most of what moves, and alike in any two clips that have one.
    All are brought to one mean and one spread: a copy may be brighter, or of less contrast.

    Args:
        frames: uint8 [F, Y, X, 3].
        times: when each frame is shown [F], ascending, from 0 at the clip's start to 1 at its end.
    """
    cells = np.stack([cv2.resize(frame.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_AREA) for frame in frames])
    telling = cells.std(axis=(1, 2)).max(axis=1) > _PLAIN
    chosen = telling if np.count_nonzero(telling) > 1 else np.ones_like(telling)
    sampled = [np.interp(_WANTED, times[chosen], values) for values in cells[chosen].reshape(np.count_nonzero(chosen), -1).T]
    return _levelled(np.stack(sampled, axis=1)).reshape(TIMES, CELLS, CELLS, 3)


def find_copies(signatures: Signatures, durations_s: Values, sources: Numbers, bounds: Bounds) -> Mapping[int, Copy]:
    """Find the clips that are copies: the first clip with a content owns it, and the others are compared with owners only.

    The distance of two clips is how much they differ over how much both move and `FLOOR`, all root mean squares. It is 0 for
    equal clips and about 1 for two motions in front of one background.

    Args:
        signatures: of all clips in order of precedence, uint8 [n, T, K, K, 3].
        durations_s: [n], 0 for still images; an image and a video are no copies of each other.
        sources: a number for the source of each clip [n]. Clips of one source are no copies of each other: the pieces of a
            long shot of a fixed camera look alike.
        bounds: what a copy may differ by.

    Returns:
        The copies by their place in the order.
    """
    if not len(signatures):
        return {}
    clips = _Clips(signatures, durations_s, sources, _motions(signatures), _places(signatures))
    copies: dict[int, Copy] = {}
    owners = np.zeros(0, dtype=np.int64)
    for start in range(0, len(signatures), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(signatures)))
        copies |= _decided(*_near(clips, block, np.concatenate([owners, block]), bounds))
        owners = np.concatenate([owners, [clip for clip in block if clip not in copies]]).astype(np.int64)
    return copies


def _levelled(colours: Values) -> NDArray[np.uint8]:
    """Bring colours, 0 to 255, to a mean of 128 and a spread of `_SPREAD`; what hardly differs is not made to."""
    gain = _SPREAD / max(float(colours.std()), _SPREAD / _MOST_GAIN)
    levelled: NDArray[np.float64] = (128 + gain * (colours - colours.mean())).round().clip(0, 255)
    return levelled.astype(np.uint8)


@dataclass(frozen=True)
class _Clips:
    """What is known of all clips."""

    signatures: Signatures
    durations_s: Values
    sources: Numbers
    motions: Values  # how much each moves [n]
    places: NDArray[np.float32]  # where each lies on the axes [n, A]


def _decided(pairs: Pairs, distances: Values) -> dict[int, Copy]:
    """Return the copies among near clips: whoever is near an earlier clip that is no copy itself, is one of the first such."""
    found: dict[int, Copy] = {}
    for number in np.lexsort((pairs[1], pairs[0])).tolist():
        clip, of = int(pairs[0][number]), int(pairs[1][number])
        if clip not in found and of not in found:
            found[clip] = Copy(of=of, distance=float(distances[number]))
    return found


def _near(clips: _Clips, block: Numbers, known: Numbers, bounds: Bounds) -> tuple[Pairs, Values]:
    """Return the pairs of a clip of the block and an earlier one of those known that are near, and their distances."""
    later, earlier = (np.concatenate(side) for side in zip(*_candidates(clips, block, known, bounds), strict=True))
    distances = _distances(clips, (later, earlier))
    near = distances <= bounds.distance
    return (later[near], earlier[near]), distances[near]


def _candidates(clips: _Clips, block: Numbers, known: Numbers, bounds: Bounds) -> Iterator[Pairs]:
    """Yield the pairs of another source and a like duration that do not lie too far apart on the axes already.

    With r how much two clips differ and s how much the first moves, the other moves s + r at most. So a distance of at most d
    means r <= d (FLOOR + 2 s + r): r <= d (FLOOR + 2 s) / (1 - d).
    """
    block, known = (side[np.argsort(clips.durations_s[side], kind="stable")] for side in (block, known))
    left, right = _factors(clips.places[block]), _factors(clips.places[known], right=True)
    reach = bounds.distance * (FLOOR + 2 * clips.motions[block]) / (1 - bounds.distance)
    shortest, longest = clips.durations_s[block] - bounds.seconds, clips.durations_s[block] + bounds.seconds
    for start in range(0, len(block), _WINDOW):
        some = slice(start, start + _WINDOW)
        first = np.searchsorted(clips.durations_s[known], shortest[some][0], side="left")
        end = np.searchsorted(clips.durations_s[known], longest[some][-1], side="right")
        squared = left[some] @ right[first:end].T
        rows, columns = np.nonzero(squared <= (reach[some] ** 2 + _SLACK).astype(np.float32)[:, None])
        later, earlier = block[some][rows], known[first:end][columns]
        fits = (earlier < later) & (clips.sources[earlier] != clips.sources[later])
        fits &= np.abs(clips.durations_s[later] - clips.durations_s[earlier]) <= bounds.seconds
        fits &= (clips.durations_s[later] == 0) == (clips.durations_s[earlier] == 0)
        yield later[fits], earlier[fits]


def _distances(clips: _Clips, pairs: Pairs) -> Values:
    parts = []
    for start in range(0, len(pairs[0]), _SAMPLE):
        first, second = (side[start : start + _SAMPLE] for side in pairs)
        differing = _rms(_scaled(clips.signatures[first]) - _scaled(clips.signatures[second]))
        parts.append(differing / (FLOOR + clips.motions[first] + clips.motions[second]))
    return np.concatenate([np.zeros(0), *parts])


def _motions(signatures: Signatures) -> Values:
    """Return how much each clip moves: the root mean square of what differs from its mean picture [n]."""
    parts = (_scaled(signatures[start : start + _SAMPLE]) for start in range(0, len(signatures), _SAMPLE))
    return np.concatenate([np.zeros(0), *(_rms(part - part.mean(axis=1, keepdims=True)) for part in parts)])


def _places(signatures: Signatures) -> NDArray[np.float32]:
    """Return where clips lie on the axes along which they differ most [n, A], in root mean squares.

    Whatever the axes, as long as they are at right angles: two clips lie no further apart there than they differ in all.
    """
    flat = signatures.reshape(len(signatures), -1)
    some = _scaled(flat[:: 1 + len(flat) // _SAMPLE])
    centre = some.mean(axis=0)
    _, axes = np.linalg.eigh((some - centre).T @ (some - centre))  # in order of ascending variance
    axes = axes[:, -_AXES:] / np.sqrt(flat.shape[1])
    parts = [(_scaled(flat[start : start + _SAMPLE]) - centre) @ axes for start in range(0, len(flat), _SAMPLE)]
    places: NDArray[np.float32] = np.concatenate(parts).astype(np.float32)
    return places


def _factors(places: NDArray[np.float32], *, right: bool = False) -> NDArray[np.float32]:
    """Return the left or right factors [n, A + 2] of squared distances: |a - b|^2 = (a, |a|^2, 1) (-2 b, 1, |b|^2)."""
    squares = (places**2).sum(axis=1, keepdims=True)
    ones = np.ones_like(squares)
    return np.concatenate([-2 * places, ones, squares] if right else [places, squares, ones], axis=1)


def _scaled(signatures: NDArray[np.uint8]) -> NDArray[np.float32]:
    return signatures.astype(np.float32) / np.float32(255)


def _rms(values: NDArray[np.float32]) -> Values:
    """Return the root mean square of each clip's numbers [n]."""
    squares: Values = (values**2).reshape(len(values), -1).mean(axis=1, dtype=np.float64)
    return np.sqrt(squares)
