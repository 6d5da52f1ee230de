"""Clips of the drawn world as the split hands them to the models, with everything that is to be learned from them.

Drawn on the fly from a seed, without video files: up to eight frames between the first and the last of a shot or of a piece of
one, chosen as the split chooses them, drawn above the size that is kept and averaged down to it, worn by a codec's kinds of
damage, squashed to the models' square. Cost: about 5 ms a clip on one core.

Legend: F Y X frames (8, fewer of some clips below 1 s), rows, columns of pixels; N clips; S shapes (3, filled up with -1).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo import scenes
from demo.defects import text_overlay, watermark
from demo.scenes import BACKGROUNDS, COLOURS, LONGEST_STRETCH_S, MOTIONS, SHAPES, Picture, Pictures, Scene, draw_scene, render
from packing.geometry import fit_frame
from pipeline.scan import PICTURES_PER_S
from pipeline.shots import AT_FIRST, evenly

FRAMES = 8  # of a clip, at most, as the split samples them
SIDE_PX = 64  # short side that the split keeps, and the models' square
ASPECTS = (16 / 9, 9 / 16, 4 / 3, 3 / 4, 1.0, 21 / 9)
RATES = (12, 15, 24, 25, 30, 50)
MOST_SHAPES = 3
TRAINING_PIXELS = SIDE_PX * SIDE_PX  # of a frame that the demo's codec sees
CODEC_MULTIPLE = (8, 8)

ATTRIBUTES = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "motion": tuple(MOTIONS),
    "speed": (scenes.SLOW, scenes.FAST),
    "size": ("small", "large"),
}
"""What a text can say of a scene's main shape and ground, and the values in the order of their classes."""


@dataclass(frozen=True, kw_only=True)
class Wear:
    """How often clips carry what good clips do not: shares from 0 to 1.

    Attributes:
        overlay: clips with words across every frame.
        mark: clips with a watermark in every frame.
        small: clips drawn as small as the demo's codec sees them.
        damage: how often each kind of damage occurs: blur, JPEG, noise, gamma, a shifted crop.
    """

    overlay: float = 0.0
    mark: float = 0.0
    small: float = 0.0
    damage: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A scene and the moments of it that a clip shows: `times_s` [F] after its start, ascending."""

    scene: Scene
    times_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One clip with its truth.

    Attributes:
        scene: what it shows.
        frames: uint8 [F, Y, X, 3], squashed to the models' square.
        overlay: whether words are written across it.
        mark: whether it has a watermark.
        poses: of every shape in every frame float32 [F, S, 5]: centre x and y and radius along x and y, in shares of the
            picture's width and height, and angle in radians.
    """

    scene: Scene
    frames: Pictures
    overlay: bool
    mark: bool
    poses: NDArray[np.float32]


def classes(scene: Scene) -> dict[str, int]:
    """Return the class of every attribute of a scene."""
    main = scene.main
    said = {"shape": main.shape, "colour": main.colour, "background": scene.background, "motion": main.motion}
    said |= {"speed": main.speed, "size": main.size}
    return {name: ATTRIBUTES[name].index(value) for name, value in said.items()}


def draw_shot(random: np.random.Generator, *, seconds: float | None = None, aspect: float | None = None) -> Shot:
    """Draw a scene and the moments of a clip of it: all of it, what transitions leave of it, or a piece of a longer one.

    Args:
        random: gives every choice.
        seconds: length of the clip; None for 0.8 to 4.
        aspect: width over height; None for one of `ASPECTS`.
    """
    length_s = float(random.uniform(0.8, LONGEST_STRETCH_S)) if seconds is None else seconds
    aspect = float(random.choice(ASPECTS)) if aspect is None else aspect
    is_piece = length_s > 2 and random.random() < 0.25
    before_s, after_s = (float(random.uniform(0, 1)) * (not is_piece and random.random() < 0.35) for _ in range(2))
    scene_s = LONGEST_STRETCH_S + 4 if is_piece else length_s + before_s + after_s
    scene = draw_scene(random, seconds=scene_s, aspect=aspect, any_combination=True)
    start_s = float(random.uniform(0, 16)) if is_piece else before_s
    fps = int(random.choice(RATES))
    numbers = sampled_numbers(random, round(length_s * fps), fps, is_piece=is_piece, is_cut=before_s == 0)
    return Shot(scene=scene, times_s=tuple(start_s + number / fps for number in numbers))


def sampled_numbers(random: np.random.Generator, count: int, fps: int, *, is_piece: bool, is_cut: bool) -> list[int]:
    """Choose frames of a clip of so many as the split does, at any phase of those that it holds.

    Args:
        random: gives the phase.
        count: frames of the clip.
        fps: of the video.
        is_piece: whether the clip lies deep in a long shot, of which fewer frames are held.
        is_cut: whether the shot begins with a hard cut, after which every frame is held for a moment.
    """
    pace = max(1, round(fps / PICTURES_PER_S))
    slower_from = 0 if is_piece else pace * AT_FIRST
    phase = int(random.integers(2 * pace))
    held = {n for n in range(count) if (n + phase) % (pace if n < slower_from else 2 * pace) == 0}
    return evenly(sorted(held | set(range(0 if is_piece else FRAMES if is_cut else 1)[:count])), FRAMES)


def generated_shot(random: np.random.Generator, count: int, fps: float) -> Shot:
    """Draw a scene and its first moments, so many at a steady rate, as generated clips show them."""
    scene = draw_scene(
        random,
        seconds=LONGEST_STRETCH_S,
        aspect=float(random.choice(ASPECTS)),
        any_combination=True,
    )
    return Shot(scene=scene, times_s=tuple(number / fps for number in range(count)))


def draw_example(random: np.random.Generator, wear: Wear, shot: Shot | None = None) -> Example:
    """Draw one clip; a shot that is not given is drawn too."""
    shot = draw_shot(random) if shot is None else shot
    scene = shot.scene
    is_small = random.random() < wear.small
    height, width = training_size(scene.aspect) if is_small else drawn_size(scene.aspect, int(random.integers(96, 145)))
    pictures = render(scene, shot.times_s, height, width)
    fate = random.random()
    overlay, mark = fate < wear.overlay, wear.overlay <= fate < wear.overlay + wear.mark
    if overlay or mark:
        pictures = (text_overlay if overlay else watermark)(pictures, random)
    kept = pictures if is_small else shrunk(pictures)
    frames = squashed(_damaged(kept, random, wear.damage))
    return Example(scene=scene, frames=frames, overlay=overlay, mark=mark, poses=poses(shot))


def drawn_size(aspect: float, short_side: int) -> tuple[int, int]:
    """Return height and width of a picture with this short side."""
    return round(short_side * max(1.0, 1 / aspect)), round(short_side * max(1.0, aspect))


def training_size(aspect: float, most_pixels: int = TRAINING_PIXELS) -> tuple[int, int]:
    """Return height and width at which the demo's codec sees a picture of this aspect."""
    height, width = drawn_size(aspect, 180)
    return fit_frame(height, width, max_pixels=most_pixels, multiple=CODEC_MULTIPLE).size


def shrunk(pictures: Pictures) -> Pictures:
    """Average pictures down to the short side that the split keeps, uint8 [F, Y, X, 3]; sizes are even as there."""
    scale = SIDE_PX / min(pictures.shape[1:3])
    height, width = (round(side * scale / 2) * 2 for side in pictures.shape[1:3])
    return np.stack([cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in pictures])


def squashed(pictures: Pictures) -> Pictures:
    """Resize pictures to the models' square as their preprocessing does, uint8 [F, Y, X, 3]."""
    square = (SIDE_PX, SIDE_PX)
    return np.stack([np.asarray(Image.fromarray(p).resize(square, Image.Resampling.BICUBIC)) for p in pictures])


def poses(shot: Shot) -> NDArray[np.float32]:
    """Return where every shape is in every frame; see `Example.poses`."""
    scene = shot.scene
    result = np.full((len(shot.times_s), MOST_SHAPES, 5), -1, dtype=np.float32)
    for frame, time_s in enumerate(shot.times_s):
        for number, shape in enumerate(scene.shapes):
            x, y, radius, angle = scenes.pose(scene, shape, time_s)
            result[frame, number] = (x / scene.across, y / scene.down, radius / scene.across, radius / scene.down, angle)
    return result


def _damaged(pictures: Pictures, random: np.random.Generator, share: float) -> Pictures:
    """Do to all pictures of a clip what coding, lenses and screens do, each kind with its own chance."""
    happens = random.random(5) < share
    if happens[0]:
        top, left, bottom, right = random.integers(0, 3, size=4)
        pictures = pictures[:, top : pictures.shape[1] - bottom, left : pictures.shape[2] - right]
    if happens[1]:
        sigma = float(random.uniform(0.3, 0.9))
        pictures = np.stack([cv2.GaussianBlur(p, (0, 0), sigma) for p in pictures])
    if happens[2]:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(35, 95))]
        pictures = np.stack([_coded(picture, quality) for picture in pictures])
    if happens[3]:
        noise = random.normal(0, random.uniform(1, 7), size=pictures.shape)
        pictures = np.clip(pictures + noise, 0, 255).astype(np.uint8)
    if happens[4]:
        table = (255 * (np.arange(256) / 255) ** random.uniform(0.8, 1.25)).round().astype(np.uint8)
        pictures = table[pictures]
    return pictures


def _coded(picture: Picture, options: list[int]) -> Picture:
    bgr = picture[..., ::-1]  # the coder weighs channels by their places
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", bgr, options)[1], cv2.IMREAD_COLOR), dtype=np.uint8)[..., ::-1]


def title(scene: Scene, random: np.random.Generator) -> tuple[str, dict[str, int]]:
    """Word what a scene shows as a person might.

    Returns:
        The text, and the classes of the attributes that it says.
    """
    said = classes(scene)
    main, ground = scene.main, scene.background
    thing, does = f"{main.colour} {main.shape}", MOTIONS[main.motion]
    wording = int(random.integers(10))
    if wording >= 6:
        return scenes.short_caption(scene), _only(said, "shape colour background motion")
    if wording == 5:
        unsaid = ("speed",) if main.motion == "still" else ()
        return scenes.dense_caption(scene), {name: value for name, value in said.items() if name not in unsaid}
    text, names = (
        (f"{thing} {does}, {ground} background", "shape colour background motion"),
        (f"A video of {_article(main.colour).lower()} {thing} on a {ground} background", "shape colour background"),
        (f"{_article(main.colour)} {thing} {does}", "shape colour motion"),
        (f"On a {ground} background {_article(main.colour).lower()} {thing} {does}.", "shape colour background motion"),
        (f"{thing} on {ground}", "shape colour background"),
    )[wording]
    return text, _only(said, names)


def with_wrong(scene: Scene, attribute: str, random: np.random.Generator) -> Scene:
    """Return the scene with another value of one attribute: shape, colour, background or motion; for its texts only."""
    held = {"shape": scene.main.shape, "colour": scene.main.colour, "motion": scene.main.motion}
    held["background"] = scene.background
    value = str(random.choice([other for other in ATTRIBUTES[attribute] if other != held[attribute]]))
    if attribute == "background":
        return replace(scene, background=value)
    main = replace(scene.main, **{attribute: value})  # type: ignore[arg-type]  # one of its three words
    return replace(scene, shapes=(main, *scene.shapes[1:]))


def wholly_wrong(scene: Scene, random: np.random.Generator) -> Scene:
    """Return a scene about something else: another shape, colour and background; for its texts only."""
    for attribute in ("shape", "colour", "background"):
        scene = with_wrong(scene, attribute, random)
    return scene


def _only(said: dict[str, int], names: str) -> dict[str, int]:
    return {name: said[name] for name in names.split()}


def _article(word: str) -> str:
    return "An" if word[0] in "aeiou" else "A"


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Single frames [N, Y, X, 3] drawn from many clips, each with its clip's truth; the arrays run in parallel.

    Attributes:
        pictures: uint8 [N, Y, X, 3].
        scenes: what each shows.
        labels: classes [N, 6] in the order of `ATTRIBUTES`.
        kinds: shape and colour of all shapes [N, S, 2], -1 for shapes that are not there.
        poses: float32 [N, S, 5].
        flags: whether words are written across it, and whether it has a watermark, bool [N, 2].
    """

    pictures: Pictures
    scenes: Sequence[Scene]
    labels: NDArray[np.int64]
    kinds: NDArray[np.int64]
    poses: NDArray[np.float32]
    flags: NDArray[np.bool_]


class Reservoir:
    """A stock of drawn clips that is renewed a little with every batch, so that drawing is a small part of training.

    Args:
        random: gives every choice.
        wear: how the clips are worn.
        size: clips in stock, 100 KB each.
        fresh: clips drawn anew for every batch.
    """

    def __init__(self, random: np.random.Generator, wear: Wear, *, size: int, fresh: int) -> None:
        self._random, self._wear, self._fresh, self._oldest = random, wear, fresh, 0
        self._stock = [draw_example(random, wear) for _ in range(size)]

    def batch(self, size: int) -> Frames:
        """Take single frames of clips chosen at random."""
        for _ in range(self._fresh):
            self._stock[self._oldest] = draw_example(self._random, self._wear)
            self._oldest = (self._oldest + 1) % len(self._stock)
        chosen = [self._stock[n] for n in self._random.integers(len(self._stock), size=size)]
        return stacked(chosen, self._random.random(size))


def stacked(examples: Sequence[Example], shares: NDArray[np.float64]) -> Frames:
    """Take one frame of each clip: that at a share of its frames, 0 up to 1."""
    pairs = [(example, int(share * len(example.frames))) for example, share in zip(examples, shares, strict=True)]
    return Frames(
        pictures=np.stack([example.frames[n] for example, n in pairs]),
        scenes=[example.scene for example, _ in pairs],
        labels=np.array([list(classes(example.scene).values()) for example, _ in pairs]),
        kinds=np.array([_kinds(example.scene) for example, _ in pairs]),
        poses=np.stack([example.poses[n] for example, n in pairs]),
        flags=np.array([(example.overlay, example.mark) for example, _ in pairs]),
    )


def _kinds(scene: Scene) -> list[tuple[int, int]]:
    there = [(ATTRIBUTES["shape"].index(s.shape), ATTRIBUTES["colour"].index(s.colour)) for s in scene.shapes]
    return there + [(-1, -1)] * (MOST_SHAPES - len(there))


def examples(seed: int, count: int, wear: Wear) -> Iterator[Example]:
    """Draw clips of a seed one after the other."""
    random = np.random.Generator(np.random.Philox(seed))
    for _ in range(count):
        yield draw_example(random, wear)
