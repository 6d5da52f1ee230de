"""Footage: scenes joined to one video, as records, and its pictures, drawn one after the other.

A cut is where a shot of the footage begins; in a dissolve both shots go on moving. Memory holds a few pictures of at most two
shots. Legend: F Y X frames, rows, columns of pixels; pictures are uint8 RGB.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from demo.defects import DEFECTS, FLASH_PERIOD_FRAMES
from demo.scenes import Picture, Pictures, Scene, render
from demo.truth import Box, JoinKind

CHUNK_FRAMES = 4 * FLASH_PERIOD_FRAMES  # drawn at a time; whole periods, so that a strobe keeps its beat from chunk to chunk
MIDDLE_GRAY = 120
BAR_NOISE = 10  # brightest pixel of a noisy bar


@dataclass(frozen=True, kw_only=True)
class Join:
    """How two shots follow each other, and for how many frames; a hard cut has none."""

    kind: JoinKind
    frames: int = 0

    @property
    def before(self) -> int:
        """Frames of it in which the earlier shot still shows; in a dissolve both do."""
        return {"hard": 0, "dissolve": self.frames, "fade": self.frames // 2, "flash": (self.frames + 1) // 2}[self.kind]

    @property
    def after(self) -> int:
        """Frames of it in which the later shot already shows."""
        return self.frames if self.kind == "dissolve" else self.frames - self.before


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A scene in its place in a video: what becomes of it there.

    Attributes:
        frames: how many it has to itself, without those of the joins.
        fate: a defect, or any other fate of `demo.truth.FATES`, which leaves the pictures as they are.
        seed: of the defect and of the bars' noise.
        box: where it lies in the upright picture; black bars around it. None when it fills the picture.
        noisy_bars: the bars are not quite black.
        flashes: white frames [first, end), counted from its first own frame.
        original: number of the video and place of the shot that it repeats.
    """

    scene: Scene
    frames: int
    fate: str = "keep"
    seed: int = 0
    box: Box | None = None
    noisy_bars: bool = False
    flashes: tuple[tuple[int, int], ...] = ()
    original: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Footage:
    """Shots, what joins each two, and how the whole is shown.

    Attributes:
        height: of the upright picture, like the width.
        times_s: presentation time of every frame, and the time at which the last one ends.
        contrast: share of the contrast that is left.
    """

    shots: tuple[Shot, ...]
    joins: tuple[Join, ...]
    height: int
    width: int
    times_s: tuple[float, ...]
    contrast: float = 1.0

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First frame and end frame of every shot, without those of the joins."""
        return spans(self.shots, self.joins)


def spans(shots: Sequence[Shot], joins: Sequence[Join]) -> list[tuple[int, int]]:
    """Lay shots and joins one after the other; return first and end frame of each shot."""
    starts = itertools.accumulate((shot.frames + join.frames for shot, join in zip(shots, joins, strict=False)), initial=0)
    return [(start, start + shot.frames) for start, shot in zip(starts, shots, strict=True)]


def pictures(footage: Footage) -> Iterator[Picture]:
    """Draw the frames of a video, upright, uint8 [Y, X, 3]."""
    reels = [_reel(footage, number) for number in range(len(footage.shots))]
    for number, shot in enumerate(footage.shots):
        yield from itertools.islice(reels[number], shot.frames)
        if number < len(footage.joins):
            yield from _joined(footage.joins[number], reels[number], reels[number + 1])


def _reel(footage: Footage, number: int) -> Iterator[Picture]:
    """Draw the frames in which one shot shows, those of the joins on both sides among them."""
    shot, (first, end) = footage.shots[number], footage.spans[number]
    lead = footage.joins[number - 1].after if number else 0
    tail = footage.joins[number].before if number < len(footage.joins) else 0
    times = np.array(footage.times_s[first - lead : end + tail])
    lit = {lead + n for flash in shot.flashes for n in range(*flash)}
    noise = np.random.Generator(np.random.Philox(shot.seed + 1))
    for start in range(0, len(times), CHUNK_FRAMES):
        drawn = _drawn(footage, shot, (times[start : start + CHUNK_FRAMES] - times[0]).tolist())
        for offset, picture in enumerate(drawn, start):
            yield np.full_like(picture, 255) if offset in lit else _barred(footage, shot, picture, noise)


def _drawn(footage: Footage, shot: Shot, times_s: list[float]) -> Pictures:
    """Draw a shot without bars at these times after its start, a chunk of it."""
    _, _, height, width = shot.box or (0, 0, footage.height, footage.width)
    drawn = render(shot.scene, times_s, height, width)
    if footage.contrast < 1:
        drawn = (drawn * np.float32(footage.contrast) + MIDDLE_GRAY * (1 - footage.contrast)).round().astype(np.uint8)
    if shot.fate in DEFECTS:
        drawn = DEFECTS[shot.fate](drawn, np.random.Generator(np.random.Philox(shot.seed)))
    return drawn


def _barred(footage: Footage, shot: Shot, picture: Picture, noise: np.random.Generator) -> Picture:
    if shot.box is None:
        return picture
    top, left, height, width = shot.box
    whole = np.zeros((footage.height, footage.width, 3), np.uint8)
    if shot.noisy_bars:
        whole[:] = noise.integers(0, BAR_NOISE + 1, (footage.height, footage.width, 1))
    whole[top : top + height, left : left + width] = picture
    return whole


def _joined(join: Join, before: Iterator[Picture], after: Iterator[Picture]) -> Iterator[Picture]:
    """Draw the frames of a join from what is left of the shot before it and the first frames of the one after it."""
    rising = [n / max(1, join.after) for n in range(join.after)]
    falling = [1 - (n + 1) / join.before for n in range(join.before)]
    match join.kind:
        case "dissolve":
            for number in range(join.frames):
                yield _mixed(next(before), next(after), (number + 1) / (join.frames + 1))
        case "fade":
            yield from (_mixed(0, next(before), share) for share in falling)
            yield from (_mixed(0, next(after), share) for share in rising)
        case "flash":
            yield from (_mixed(255, next(before), share) for share in falling)
            yield from (_mixed(255, next(after), 0.5 if n == join.after - 1 else 0) for n in range(join.after))


def _mixed(first: Picture | int, second: Picture, share: float) -> Picture:
    mixed: Picture = np.round(first * (1 - share) + second * np.float32(share)).astype(np.uint8)
    return mixed
