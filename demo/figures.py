"""Figures of the stages before training, each measured against what is true of the world.

Pure but for the models that score and the frames that are read again. Shares are 0 to 1; a share of nothing is None.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from demo.matching import KEEP, Pair, clips_by_file
from demo.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, short_text
from demo.truth import FileTruth, SceneTruth, TransitionTruth, Truth
from packing.clip import Clip as ClipModel
from pipeline.ledger import Ledger
from pipeline.records import Clip

ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "shape": SHAPES,
    "colour": list(COLOURS),
    "motion": list(MOTIONS),
    "background": list(BACKGROUNDS),
}
NEAR_FRAMES, NEAR_S = 1, 0.25  # how far a found cut may lie from the true one: hard, gradual

_SHORT = re.compile(r"An? (?P<colour>\w+) (?P<shape>\w+) (?P<motion>[\w ]+) on a (?P<background>\w+) background\.?")
_SAID = {phrase: motion for motion, phrase in MOTIONS.items()}


def split_figures(truth: Truth, ledger: Ledger) -> dict[str, Any]:
    """Return F1 of hard cuts (within a frame) and of gradual transitions (both ends within 0.25 s)."""
    clips = clips_by_file(ledger)
    counts = {"hard": Counter[str](), "gradual": Counter[str]()}
    for file in truth.videos:
        if file.kind == "video":
            _count_borders(file, [clip for clip, _ in clips.get(file.file, [])], counts)
    return {f"{kind}_f1": f1(count["true"], count["found"], count["right"]) for kind, count in counts.items()}


def f1(true: int, found: int, right: int) -> float | None:
    """Return the harmonic mean of precision (right of found) and recall (right of true)."""
    return round(2 * right / (true + found), 4) if true + found else None


def _count_borders(file: FileTruth, clips: Sequence[Clip], counts: Mapping[str, Counter[str]]) -> None:
    found = [(left, right) for left, right in pairwise(clips) if left.shot_start_frame != right.shot_start_frame]
    for transition in file.transitions:
        kind = "hard" if transition.kind == "hard" else "gradual"
        at = next((border for border in found if _is_at(border, transition)), None)
        counts[kind]["true"] += 1
        if at:
            found.remove(at)
            counts[kind].update(["found", "right"])
    for left, right in found:
        counts["hard" if left.end_frame == right.start_frame else "gradual"]["found"] += 1


def _is_at(border: tuple[Clip, Clip], transition: TransitionTruth) -> bool:
    left, right = border
    if transition.kind == "hard":
        frames = abs(left.end_frame - transition.start_frame), abs(right.start_frame - transition.end_frame)
        return max(frames) <= NEAR_FRAMES
    return max(abs(left.end_s - transition.start_s), abs(right.start_s - transition.end_s)) <= NEAR_S


def select_figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return precision and recall of rejections with the right reason, in all and by reason, and how exact crop boxes are."""
    reasons = sorted({pair.deserved for pair in pairs} | {pair.got for pair in pairs if pair.clip})
    right = Counter(pair.got for pair in pairs if pair.got == pair.deserved)
    found = Counter(pair.got for pair in pairs if pair.clip)
    true = Counter(pair.deserved for pair in pairs if pair.scene)
    dropped = [reason for reason in reasons if reason not in (KEEP, "nothing")]
    return {
        "precision": share(sum(right[r] for r in dropped), sum(found[r] for r in dropped)),
        "recall": share(sum(right[r] for r in dropped), sum(true[r] for r in dropped)),
        "by_reason": {
            reason: {
                "precision": share(right[reason], found[reason]),
                "recall": share(right[reason], true[reason]),
                "clips": true[reason],
            }
            for reason in reasons
        },
        "crop_error_px": max((_crop_error(p.scene, p.clip) for p in pairs if p.kept and p.scene and p.clip), default=0),
    }


def share(part: int, whole: int) -> float | None:
    """Return part ÷ whole, rounded to four places."""
    return round(part / whole, 4) if whole else None


def _crop_error(scene: SceneTruth, clip: Clip) -> int:
    """Return by how many pixels the side of the box that is furthest off is off."""
    whole = (0, 0, clip.height_px, clip.width_px)
    true, found = (np.array(crop or whole) for crop in (scene.crop, clip.crop))
    corners = (np.array([*crop[:2], *(crop[:2] + crop[2:])]) for crop in (true, found))
    first, second = corners
    return int(np.abs(first - second).max())


def score_figures(features: Sequence[NDArray[np.float32]], scenes: Sequence[SceneTruth], model: ClipModel) -> dict[str, Any]:
    """Return how well CLIP similarity tells right titles from wrong ones.

    Args:
        features: mean of the frames' unit features of each clip, [D].
        scenes: what each clip shows.
        model: encodes the titles.

    Returns:
        `title_auc` against the titles of other scenes, `by_attribute` against titles with that attribute wrong.
    """
    texts = {scene.short for scene in scenes}
    wrong = {a: [_with_wrong(scene, a) for scene in scenes] for a in ATTRIBUTES}
    texts.update(text for of_scenes in wrong.values() for of_scene in of_scenes for text in of_scene)
    encoded = {text: model.text_feature(text).numpy() for text in sorted(texts)}

    def similarities(titles: Sequence[Sequence[str]]) -> list[float]:
        return [float(f @ encoded[text]) for f, of_clip in zip(features, titles, strict=True) for text in of_clip]

    right = similarities([[scene.short] for scene in scenes])
    others = similarities([[other.short for other in scenes if other.short != scene.short] for scene in scenes])
    by_attribute = {attribute: auc(right, similarities(titles)) for attribute, titles in wrong.items()}
    return {"title_auc": auc(right, others), "by_attribute": by_attribute}


def _with_wrong(scene: SceneTruth, attribute: str) -> list[str]:
    """Word the scene with every other value of one attribute."""
    facts = {name: getattr(scene, name) for name in ATTRIBUTES}
    return [short_text(**{**facts, attribute: v}) for v in ATTRIBUTES[attribute] if v != facts[attribute]]


def auc(right: ArrayLike, wrong: ArrayLike) -> float | None:
    """Return the chance that a right value lies above a wrong one, ties counting half."""
    high, low = np.asarray(right, dtype=np.float64), np.sort(np.asarray(wrong, dtype=np.float64))
    if not high.size or not low.size:
        return None
    below = np.searchsorted(low, high, side="left") + np.searchsorted(low, high, side="right")
    return round(float(below.mean()) / (2 * low.size), 4)


def caption_figures(texts: Sequence[str], scenes: Sequence[SceneTruth]) -> dict[str, float | None]:
    """Return the share of short captions that name each attribute rightly; one that cannot be read names none."""
    named = [attributes_of(text) for text in texts]
    return {
        attribute: share(sum(n.get(attribute) == getattr(s, attribute) for n, s in zip(named, scenes, strict=True)), len(named))
        for attribute in ATTRIBUTES
    }


def attributes_of(caption: str) -> dict[str, str]:
    """Read the attributes out of a short caption; empty when it is not worded as one."""
    said = _SHORT.fullmatch(caption.strip())
    return {**said.groupdict(), "motion": _SAID.get(said["motion"], "")} if said else {}


def flagged(captions: Iterable[Any]) -> int:
    """Count the captions that fail a check."""
    return sum(bool(caption.flags) for caption in captions)


def psnr_db(frames: NDArray[np.uint8], again: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of one clip in dB; 100 when nothing differs."""
    error = np.square(frames.astype(np.float32) - again.astype(np.float32)).mean()
    return float(10 * np.log10(255**2 / error)) if error else 100.0
