"""Videos that a trained checkpoint makes of descriptions it has never seen, and what judges see in them.

The judges are the captioner, which names every attribute, and CLIP, which chooses the best of an attribute's values; motion is
for the captioner alone, since CLIP sees single frames. How well they judge real clips is the ceiling of what they can say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.figures import ATTRIBUTES, attributes_of, share
from demo.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, held_out, short_text, stands_out
from packing.clip import Clip as ClipModel
from pipeline.config import RunConfig
from recaption import Caption, ClipFrames, load_captioner
from training import VideoSampler

Combination = tuple[str, str, str, str]
Frames = NDArray[np.uint8]  # [F, Y, X, 3]
FRAMES_JUDGED = 8
EULER_STEPS = 25
GUIDANCE = 2.0  # 3 gives the small model's shapes coloured edges


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A video made of a combination of attributes, and the caption that the judge gives it."""

    combination: Combination
    frames: Frames
    caption: str = ""


def held_out_combinations(count: int, seed: int) -> list[Combination]:
    """Draw combinations of shape, colour, motion and background that no world shows."""
    every = product(SHAPES, COLOURS, MOTIONS, BACKGROUNDS)
    wanted = [combination for combination in every if held_out(combination) and stands_out(combination[1], combination[3])]
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(wanted))
    return [wanted[i] for i in order[:count]]


def draw_samples(checkpoint: Path, combinations: Sequence[Combination], *, seconds: float, side_px: int) -> list[Sample]:
    """Make one square video of each combination's short caption."""
    sampler = VideoSampler(checkpoint)

    def sampled(combination: Combination, seed: int) -> Frames:
        prompt = short_text(*combination)
        return sampler.sample(
            prompt, height_px=side_px, width_px=side_px, seconds=seconds, steps=EULER_STEPS, guidance=GUIDANCE, seed=seed
        )

    return [Sample(combination=c, frames=sampled(c, number)) for number, c in enumerate(combinations)]


def captions_of(videos: Sequence[Frames], config: RunConfig, fps: float) -> list[str]:
    """Ask the run's captioner for a short caption of each video, from frames spread as split spreads them; "" if it fails."""
    r = config.recaption
    captioner = load_captioner(r.model, revision=None, device="cpu", dtype=r.dtype, batch=r.batch)
    prompt = next(prompt for prompt in r.asked if prompt.id == "short")
    answers = captioner.caption([_clip_frames(number, video, fps) for number, video in enumerate(videos)], prompt)
    return [answer.text if isinstance(answer, Caption) else "" for answer in answers]


def _clip_frames(number: int, video: Frames, fps: float) -> ClipFrames:
    chosen = np.unique(np.linspace(0, len(video) - 1, FRAMES_JUDGED).round().astype(int))
    times_s = tuple(float(i / fps) for i in chosen)
    return ClipFrames(clip_id=str(number), frames=video[chosen], times_s=times_s, duration_s=len(video) / fps)


def named_rightly(captions: Sequence[str], combinations: Sequence[Combination]) -> dict[str, float | None]:
    """Return the share of captions that name each attribute of what should be seen."""
    return _shares([attributes_of(caption) for caption in captions], combinations)


def chosen_rightly(videos: Sequence[Frames], combinations: Sequence[Combination], model: ClipModel) -> dict[str, float | None]:
    """Return the share of videos for which CLIP chooses the right value of each attribute that a frame can show."""
    chosen = [_choices(video, combination, model) for video, combination in zip(videos, combinations, strict=True)]
    return {name: value for name, value in _shares(chosen, combinations).items() if name != "motion"}


def _choices(video: Frames, combination: Combination, model: ClipModel) -> dict[str, str]:
    """Choose the value of each attribute whose caption, all else being right, is most like the frames."""
    facts = dict(zip(ATTRIBUTES, combination, strict=True))
    feature = model.frame_features(video[:: max(1, len(video) // FRAMES_JUDGED)]).mean(dim=0)
    return {
        name: max(ATTRIBUTES[name], key=lambda value: float(feature @ model.text_feature(short_text(**{**facts, name: value}))))
        for name in ("shape", "colour", "background")
    }


def _shares(found: Sequence[Mapping[str, str]], combinations: Sequence[Combination]) -> dict[str, float | None]:
    right = {
        name: sum(f.get(name) == combination[i] for f, combination in zip(found, combinations, strict=True))
        for i, name in enumerate(ATTRIBUTES)
    }
    return {name: share(count, len(combinations)) for name, count in right.items()}
