"""How many joins of real shots are found, beside PySceneDetect's detectors in the same run.

    python benchmarks/cuts.py [--montages N] [--seed S] FILE...

A drawn world has its truth and is no footage; footage seldom has a truth. So real shots are joined: stretches of the files in
which neither our detector nor PySceneDetect's finds anything, 8 to 12 of them to a montage of one size and rate, by hard cuts
(two in three), dissolves, wipes, and fades through black or white, of 0.25 to 1.2 s, in which both shots go on moving; all
encoded as H.264. Three shots in ten have a decoy, which is no join: a flash that goes out over four frames, or a title over
an eighth of the picture. A hard cut is found when it is found to the frame, another join when something found touches it,
give or take two frames. What touches no join is too much.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import av
import av.logging
import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scenedetect import AdaptiveDetector, ContentDetector
from scenedetect import detect as detected

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `packing` would be packing.py of this folder

from pipeline.detectors import detector
from pipeline.media import Scaler
from pipeline.planes import CELLS, FRAMES, planes_of, strip
from pipeline.reel import Transition
from tests.media import write_video

Picture = NDArray[np.uint8]  # [Y, X, 3]
Span = tuple[int, int]  # first frame and end frame; a hard cut has no frames
Find = Callable[[Path], list[Span]]

HEIGHT, WIDTH = 180, 320
LONGEST = 400  # frames that are read of a file
CLEAR = 3  # frames left out at the ends of a stretch
SLACK = 2  # frames that a gradual join may be missed by
LEAST_S, MOST_S = 1.6, 5.0  # of a shot in a montage
DECOYS = 0.3  # share of shots that have one
KINDS = {"hard": 70, "dissolve": 18, "black": 9, "white": 3, "wipe": 10}


@dataclass(frozen=True, kw_only=True)
class Join:
    """What lies between two shots of a montage: frames `[start, end)`."""

    kind: str
    start: int
    end: int


def main(paths: Sequence[Path], montages: int, seed: int) -> None:
    """Make montages, look for their joins and print a table."""
    cv2.setNumThreads(1)
    av.logging.set_libav_level(av.logging.PANIC)
    found, extra, joins = {name: Counter[str]() for name in DETECTORS}, Counter[str](), Counter[str]()
    stretches = [(path, span) for path in paths for span in plain_stretches(path)]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(montages):
            dice = random.Random(1000 * seed + number)
            fps = dice.choice((15, 24, 25, 30))
            pictures, truth = montage(stretches, fps, dice)
            quality = {"preset": "veryfast", "crf": str(dice.choice((18, 23, 28, 33)))}
            video = write_video(Path(folder) / "montage.mp4", pictures, fps=fps, encoder=quality)
            joins.update(join.kind for join in truth)
            for name, find in DETECTORS.items():
                hits, too_many = compared(find(video), truth)
                found[name].update(hits)
                extra[name] += too_many
    table = Table("detector", *(f"{kind} ({joins[kind]})" for kind in KINDS), "too many", title=f"{montages} montages")
    for name in DETECTORS:
        table.add_row(name, *(f"{found[name][kind] / max(1, joins[kind]):.3f}" for kind in KINDS), str(extra[name]))
    Console(width=128).print(table)


def plain_stretches(path: Path) -> list[Span]:
    """List stretches of a file that all take for one shot, long enough for a montage."""
    try:
        count = len(pictures_of(path))
        borders = {0, count, *(frame for find in DETECTORS.values() for span in find(path) for frame in span)}
    except Exception as error:  # a file that cannot be read, in whatever way
        print(f"left out: {path}: {error}", file=sys.stderr)
        return []
    spans = ((start + CLEAR, end - CLEAR) for start, end in pairwise(sorted(border for border in borders if border <= count)))
    return [(start, end) for start, end in spans if end - start >= LEAST_S * 15]


@lru_cache(maxsize=64)
def pictures_of(path: Path) -> list[Picture]:
    """Decode the first frames of a file, all at one size."""
    pictures = list[Picture]()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            pictures.append(cv2.resize(frame.to_ndarray(format="rgb24"), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
            if len(pictures) == LONGEST:
                break
    return pictures


def montage(stretches: Sequence[tuple[Path, Span]], fps: int, dice: random.Random) -> tuple[list[Picture], list[Join]]:
    """Join shots that are drawn by lot, no two of one file in a row."""
    usable = [(path, span) for path, span in stretches if span[1] - span[0] >= LEAST_S * fps]
    if len({path for path, _ in usable}) < 2:
        raise SystemExit(f"files with {LEAST_S} s and more without a cut are wanted, two at least")
    pictures, joins, before, clear = list[Picture](), list[Join](), Path(), 0
    for _ in range(dice.randint(8, 12)):
        path, (first, last) = dice.choice([one for one in usable if one[0] != before])
        length = min(last - first, dice.randint(round(LEAST_S * fps), round(MOST_S * fps)))
        start = dice.randint(first, last - length)
        shot = list(pictures_of(path)[start : start + length])
        if dice.random() < DECOYS:
            add_decoy(shot, dice)
        if pictures:
            (kind,) = dice.choices([*KINDS], [*KINDS.values()])
            # Of both shots two thirds are left as they are.
            frames = min(dice.randint(round(0.25 * fps), round(1.2 * fps)), clear // 3, length // 3)
            joins.append(append(pictures, shot, kind, frames))
        else:
            pictures += shot
        before, clear = path, len(pictures) - (joins[-1].end if joins else 0)
    return pictures, joins


def add_decoy(shot: list[Picture], dice: random.Random) -> None:
    """Lay a flash or a title over a shot, in the middle third of it."""
    at = len(shot) // 3
    if dice.random() < 0.5:
        for number, gain in enumerate((3.0, 2.2, 1.5, 1.2), at):
            shot[number] = cv2.convertScaleAbs(shot[number], alpha=gain, beta=40 * (gain - 1))
    else:
        top, left = dice.randrange(HEIGHT // 2, HEIGHT * 3 // 4), dice.randrange(WIDTH // 3)
        for number in range(at, 2 * at):
            shot[number] = shot[number].copy()
            box = shot[number][top : top + HEIGHT // 5, left : left + WIDTH * 3 // 5]
            box[:] = 255 - box // 4
            cv2.putText(box, f"{at} of {len(shot)} frames", (8, HEIGHT // 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1)


def append(pictures: list[Picture], shot: list[Picture], kind: str, frames: int) -> Join:
    """Append a shot to pictures, so many frames of which it shares, or fades in and out in."""
    if kind == "hard":
        at = len(pictures)
        pictures += shot
        return Join(kind=kind, start=at, end=at)
    if kind in ("dissolve", "wipe"):
        start = len(pictures) - frames
        for number in range(frames):
            old, new, share = pictures[start + number], shot[number], (number + 1) / (frames + 1)
            pictures[start + number] = mixed(old, new, share) if kind == "dissolve" else wiped(old, new, share, frames % 4)
        pictures += shot[frames:]
        return Join(kind=kind, start=start, end=start + frames)
    half = max(2, frames // 2)
    colour = np.full_like(shot[0], 0 if kind == "black" else 255)
    start = len(pictures) - half
    for number in range(half):
        share = (number + 1) / half
        pictures[start + number] = mixed(pictures[start + number], colour, share)
        shot[number] = mixed(colour, shot[number], number / half)
    pictures += shot
    return Join(kind=kind, start=start, end=start + 2 * half)


def wiped(one: Picture, other: Picture, share: float, turns: int) -> Picture:
    """Lay a share of a picture over another one, from one side."""
    made = one.copy()
    below, above = np.rot90(made, turns), np.rot90(other, turns)  # views
    width = round(share * below.shape[1])
    below[:, :width] = above[:, :width]
    return made


def mixed(one: Picture, other: Picture, share: float) -> Picture:
    """Mix two pictures, of which the other has a share."""
    picture: Picture = cv2.addWeighted(one, 1 - share, other, share, 0)
    return picture


def compared(found: Sequence[Span], joins: Sequence[Join]) -> tuple[Counter[str], int]:
    """Return how many joins of each kind are found, and how much is found that touches none."""
    hits, used = Counter[str](), set[Span]()
    for join in joins:
        slack = 0 if join.kind == "hard" else SLACK
        touching = [span for span in found if touches(span, join, slack)]
        hits[join.kind] += bool(touching) if join.kind != "hard" else (join.start, join.start) in touching
        used.update(touching)
    return hits, len(set(found) - used)


def touches(span: Span, join: Join, slack: int) -> bool:
    """Tell whether what was found has a frame of a join, or its cut."""
    return span[0] <= join.end + slack and span[1] >= join.start - slack


def ours(path: Path) -> list[Span]:
    """Find transitions as a scan does."""
    find, sampled, scaler, times = detector("transitions", 3.0, 3), strip(CELLS), Scaler(1), list[float]()
    found = list[Transition]()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            sampled.add(planes_of(frame, scaler))
            times.append(float(frame.time or 0.0))
            if sampled.count == FRAMES:
                found += find.take(times[-FRAMES:], sampled.develop(*CELLS).pictures)
    if sampled.count:
        found += find.take(times[-sampled.count :], sampled.develop(*CELLS).pictures)
    return [(transition.start, transition.end) for transition in (*found, *find.finish())]


def theirs(kind: type[AdaptiveDetector | ContentDetector]) -> Find:
    """Find cuts with one of PySceneDetect's detectors as it comes."""

    def find(path: Path) -> list[Span]:
        return [(scene[0].frame_num,) * 2 for scene in detected(str(path), kind())[1:]]

    return find


DETECTORS: dict[str, Find] = {
    "ours": ours,
    "PySceneDetect, adaptive": theirs(AdaptiveDetector),
    "PySceneDetect, content": theirs(ContentDetector),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--montages", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.paths, arguments.montages, arguments.seed)
