"""Draw a world: which scenes become which videos, as records, without a pixel.

Every property is dealt in shuffled rounds, so that its counts grow evenly with the number of videos. Equal configs give equal
worlds.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Generic, Literal, TypeVar, get_args

import numpy as np

from demo.footage import Footage, Join, Shot, spans
from demo.scenes import LONGEST_STRETCH_S, Scene, draw_scene, held_out, short_caption
from demo.truth import Box, JoinKind
from demo.writing import Format

T = TypeVar("T")
Difficulty = Literal["easy", "normal", "hard"]
Role = Literal["plain", "duplicate", "slideshow", "title_mismatch", "barred", "barred_scene"]
FEWEST, MOST = 6, 10_000  # videos

ROLES: dict[Difficulty, tuple[Role, ...]] = {
    "easy": (*("plain",) * 9, "duplicate", "title_mismatch", "barred"),
    "normal": (*("plain",) * 6, *("duplicate",) * 2, "slideshow", "title_mismatch", "barred", "barred_scene"),
    "hard": (*("plain",) * 6, *("duplicate",) * 2, "slideshow", "title_mismatch", "barred", "barred_scene"),
}
SCENES: dict[Role, tuple[int, ...]] = {
    "plain": (1, 2, 3, 3, 4, 5),
    "duplicate": (2, 3, 4),
    "slideshow": (3, 4, 5),
    "title_mismatch": (2, 3),
    "barred": (1, 2, 3),
    "barred_scene": (2, 3, 4),
}
DEFECTIVE = ("still", "too_dark", "washed_out", "blurred", "text_overlay", "watermark", "flashing", "too_short")
# Next to the other fates a fade or a flash would not be one: it would begin in the dark, or end in white.
MAY_BLEND = ("keep", "title_mismatch", "blurred", "text_overlay", "watermark")
SAYS_NOTHING = ("too_dark", "washed_out", "blurred", "too_short")  # a title does not speak of these
JOINS: tuple[JoinKind, ...] = ("hard", "dissolve", "fade", "flash", "dissolve", "fade")
ASPECTS = (Fraction(16, 9), Fraction(9, 16), Fraction(4, 3), Fraction(3, 4), Fraction(1), Fraction(21, 9))
SHORT_SIDES = (96, 120, 144, 160, 180, 192, 240, 144, 160, 180, 120, 360)
RATES = tuple(Fraction(rate) for rate in (12, 15, 24, 25, Fraction(30000, 1001), 30, 24, 25, 30, 50))
CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4", "h264")
SUFFIXES = {
    "h264": ("mp4", "mkv", "mov"),
    "hevc": ("mp4", "mkv"),
    "vp9": ("webm", "mkv"),
    "av1": ("mp4", "mkv", "webm"),
    "mpeg4": ("avi", "mp4"),
}
ROTATIONS = (0, 90, 0, 180, 0, 270)  # of videos that can have one
JITTER = 0.3  # of a frame, at most: how far frames of a variable rate lie off the grid
LATE_START_S = 1.5
BAR_SHARES = 0.08, 0.2  # of a picture's height or width, on each of both sides
BROKEN = (
    ("empty", "unrecognised"),
    ("page", "unrecognised"),
    ("cut_off", "truncated"),
    ("ends_early", "truncated"),
    ("sound", "no_video"),
)
VIDEOS_PER_SET = 48  # of broken files; a copy and an image come twice as often


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """How much of a world, which one, and how hard it is on a pipeline."""

    videos: int = 24  # besides these, a world has copies, images and broken files
    seed: int = 0
    difficulty: Difficulty = "normal"

    def __post_init__(self) -> None:
        """Check ranges."""
        if not FEWEST <= self.videos <= MOST:
            raise ValueError(f"world.videos must be {FEWEST} to {MOST}, not {self.videos}")
        if self.seed < 0:
            raise ValueError(f"world.seed must not be negative, not {self.seed}")
        if self.difficulty not in get_args(Difficulty):
            raise ValueError(f"world.difficulty must be one of {', '.join(get_args(Difficulty))}, not {self.difficulty!r}")


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video of the world: its footage, how that is stored, and what its title says of it.

    Attributes:
        ticks: presentation time of every frame in units of the format's time base.
        title_matches: None without a title.
    """

    file: str
    role: Role
    footage: Footage
    form: Format
    ticks: tuple[int, ...]
    title: str | None
    title_matches: bool | None


@dataclass(frozen=True, kw_only=True)
class Image:
    """A still picture of a scene at its start."""

    file: str
    scene: Scene
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A file that cannot be used, and the name of the failure that it deserves."""

    file: str
    failure: str


@dataclass(frozen=True, kw_only=True)
class World:
    """All that a world consists of; `copies` names for each copy the file that it equals."""

    config: WorldConfig
    videos: tuple[Video, ...]
    copies: dict[str, str]
    images: tuple[Image, ...]
    broken: tuple[Broken, ...]


class Deck(Generic[T]):
    """Deals values in shuffled rounds: in every round each comes up as often as it is in `values`."""

    def __init__(self, random: np.random.Generator, values: Sequence[T]) -> None:
        self._random, self._values = random, values
        self._left: list[T] = []

    def deal(self, fits: Callable[[T], bool] = lambda value: True) -> T:
        """Take the next value that fits; those that do not, stay next in turn."""
        for _ in range(2):
            for number, value in enumerate(self._left):
                if fits(value):
                    return self._left.pop(number)
            self._left += [self._values[i] for i in self._random.permutation(len(self._values))]
        raise AssertionError("no value fits")


def draw_world(config: WorldConfig) -> World:
    """Draw all records of a world, without a pixel."""
    return _Drawing(config).world()


class _Drawing:
    """The state of drawing a world: its generator, its decks, and the videos so far, whose scenes later ones may repeat."""

    def __init__(self, config: WorldConfig) -> None:
        self.config, self.hard, self.easy = config, config.difficulty == "hard", config.difficulty == "easy"
        self.random = np.random.Generator(np.random.Philox(config.seed))
        self.videos: list[Video] = []
        self.repeated: set[tuple[int, int]] = set()
        self.roles = self.deck(ROLES[config.difficulty])
        self.counts = {role: self.deck(counts) for role, counts in SCENES.items()}
        self.fates, self.first_places = self.deck(DEFECTIVE), self.deck((0, 1, 1))
        self.joins, self.flashes = self.deck(JOINS), self.deck((*(0,) * 9, 1, 2, 3))
        self.aspects, self.sides, self.rates = self.deck(ASPECTS), self.deck(SHORT_SIDES), self.deck(RATES)
        self.codecs = self.deck(CODECS)
        self.suffixes = {codec: self.deck(suffixes) for codec, suffixes in SUFFIXES.items()}
        self.rotations, self.reordered = self.deck(ROTATIONS), self.deck((True, False))
        self.variable, self.late = self.deck((True, False, False)), self.deck((True, *(False,) * 7))
        self.long, self.letterboxed = self.deck((True, *(False,) * 11)), self.deck((True, False))
        self.titled = self.deck((True, True, False))

    def deck(self, values: Sequence[T]) -> Deck[T]:
        return Deck(self.random, values)

    def world(self) -> World:
        while len(self.videos) < self.config.videos:
            self.videos.append(self.video())
        sets = max(1, round(self.config.videos / VIDEOS_PER_SET))
        plain = [video.file for video in self.videos if video.role == "plain"]
        copied = sorted(self.random.permutation(len(plain))[: 2 * sets])
        return World(
            config=self.config,
            videos=tuple(self.videos),
            copies={plain[n].replace(".", "_again."): plain[n] for n in copied},  # sorts after its original
            images=tuple(self.image(number) for number in range(2 * sets)),
            broken=tuple(Broken(file=f"{name}_{n:04d}.mp4", failure=failure) for n in range(sets) for name, failure in BROKEN),
        )

    def image(self, number: int) -> Image:
        """Draw the next still picture; its scene says that it stays still."""
        height, width = _size(self.aspects.deal(), self.sides.deal())
        file = f"image_{number:04d}.{('png', 'jpg')[number % 2]}"
        return Image(file=file, scene=self.scene(1.0, width / height, frozen=True), height=height, width=width)

    def video(self) -> Video:
        """Draw the next video: fates first, then how it is stored and cut, and at last the scenes to fill it."""
        originals = self.originals()
        role = self.roles.deal(lambda role: role != "duplicate" or bool(originals))
        original = originals[int(self.random.integers(len(originals)))] if role == "duplicate" else None
        form, (height, width) = self.form(original)
        fates = self.scene_fates(role)
        boxes = self.boxes(role, fates, height, width)
        joins = [self.join(form.fps, before, after) for before, after in pairwise(zip(fates, boxes, strict=True))]
        shots: list[Shot] = []
        for number, (fate, box) in enumerate(zip(fates, boxes, strict=True)):
            shared = (joins[number - 1].after if number else 0) + (joins[number].before if number < len(joins) else 0)
            if fate == "duplicate" and original:
                shots.append(self.repeat(original, form.fps))
                continue
            avoided = {shots[-1].scene.background} if shots else set()
            if original:
                avoided.add(self.shot_at(original).scene.background)
            aspect = width / height if box is None else box[3] / box[2]
            shots.append(self.shot(fate, form.fps, shared, box, aspect, avoided, min(height, width)))
        return self.filmed(role, form, (height, width), shots, joins)

    def form(self, original: tuple[int, int] | None) -> tuple[Format, tuple[int, int]]:
        """Draw how a video is stored, and its height and width; one that repeats a scene has its aspect and nothing else."""
        if original is None:
            size, taken = _size(self.aspects.deal(), self.sides.deal()), None
        else:
            of, taken = self.videos[original[0]].footage, self.videos[original[0]].form
            aspect = min(ASPECTS, key=lambda aspect: abs(float(aspect) - of.width / of.height))
            size = _size(aspect, self.sides.deal(lambda side: side != min(of.height, of.width)))
        codec = self.codecs.deal(lambda codec: taken is None or codec != taken.codec)
        small = min(size) <= 160
        fps = self.rates.deal(lambda fps: (fps <= 30 or small) and (taken is None or fps != taken.fps))
        suffix = self.suffixes[codec].deal()
        turns = suffix in ("mp4", "mov") and codec in ("h264", "hevc", "av1")
        form = Format(
            codec=codec,
            suffix=suffix,
            fps=fps,
            variable=suffix in ("mkv", "mp4") and self.variable.deal(),
            rotation=self.rotations.deal() if turns else 0,
            b_frames=suffix != "avi" and self.reordered.deal(),
            rough=self.hard or original is not None,
        )
        return form, size

    def scene_fates(self, role: Role) -> list[str]:
        """Draw what the scenes of a video deserve; no two spoiled ones are neighbours, except in a slideshow."""
        count = self.counts[role].deal()
        if role in ("slideshow", "title_mismatch"):
            return [role] * count
        fates = ["keep"] * count
        if role == "duplicate":
            fates[int(self.random.integers(count))] = "duplicate"
        elif role != "barred" and count > 1:
            for place in range(self.first_places.deal(), count, count if self.easy else 2):
                fates[place] = self.fates.deal()
        return fates

    def boxes(self, role: Role, fates: list[str], height: int, width: int) -> list[Box | None]:
        """Draw where the scenes of a video lie between black bars."""
        if role not in ("barred", "barred_scene"):
            return [None] * len(fates)
        letterboxed, share = self.letterboxed.deal(), float(self.random.uniform(*BAR_SHARES))
        bar = 2 * round(share * (height if letterboxed else width) / 2)
        box = (bar, 0, height - 2 * bar, width) if letterboxed else (0, bar, height, width - 2 * bar)
        one = fates.index("keep")
        return [box if role == "barred" or number == one else None for number in range(len(fates))]

    def join(self, fps: Fraction, before: tuple[str, Box | None], after: tuple[str, Box | None]) -> Join:
        """Draw how two scenes of these fates and boxes follow each other."""
        blends = before[0] in MAY_BLEND and after[0] in MAY_BLEND
        if self.easy or not blends:
            return Join(kind="hard")
        barred = before[1] is not None or after[1] is not None
        kind = self.joins.deal(lambda kind: kind != "flash" or not barred)  # white bars would be no bars
        if kind == "hard":
            return Join(kind=kind)
        if kind == "flash":
            return Join(kind=kind, frames=int(self.random.integers(3, 5)))
        seconds = self.random.uniform(0.3, 0.5) if self.hard else self.random.uniform(0.4, 1.0)
        return Join(kind=kind, frames=round(float(fps) * seconds))

    def shot(
        self, fate: str, fps: Fraction, shared: int, box: Box | None, aspect: float, avoided: set[str], short_side: int
    ) -> Shot:
        """Draw a scene of a fate, with `shared` frames in joins, on none of these backgrounds."""
        frames = round(self.seconds(fate, heavy=fps > 30 or short_side > 240) * fps)
        scene = self.scene(
            float((frames + shared) / fps),
            aspect,
            frozen=fate in ("still", "slideshow"),
            avoided=avoided,
            most_shapes=1 if self.easy or fate == "title_mismatch" else 3,
        )
        return Shot(
            scene=scene,
            frames=frames,
            fate=fate,
            seed=int(self.random.integers(2**31)),
            box=box,
            noisy_bars=self.hard and box is not None,
            flashes=self.white_frames(frames) if fate == "keep" and box is None and frames >= 2 * fps else (),
        )

    def seconds(self, fate: str, heavy: bool) -> float:
        low, high = {"too_short": (0.38, 0.6), "slideshow": (1.05, 2.0)}.get(fate, (1.2, 4.0))
        if fate == "keep" and not heavy and self.long.deal():
            low, high = 6.0, 20.0
        return float(self.random.uniform(low, high))

    def white_frames(self, frames: int) -> tuple[tuple[int, int], ...]:
        """Draw white frames well inside a scene, or none."""
        count = 0 if self.easy else self.flashes.deal()
        first = int(frames * self.random.uniform(0.35, 0.6))
        return ((first, first + count),) if count else ()

    def scene(
        self, seconds: float, aspect: float, *, frozen: bool, avoided: Collection[str] = (), most_shapes: int = 3
    ) -> Scene:
        """Draw a scene on none of these backgrounds, in which something moves, or nothing when it is to be frozen."""
        while True:
            scene = draw_scene(self.random, seconds=seconds, aspect=aspect, most_shapes=most_shapes)
            if frozen:
                scene = replace(scene, shapes=tuple(replace(shape, motion="still") for shape in scene.shapes))
            moves = any(shape.motion != "still" for shape in scene.shapes)
            if scene.background not in avoided and moves != frozen and not held_out(scene.combination):
                return scene

    def shot_at(self, place: tuple[int, int]) -> Shot:
        return self.videos[place[0]].footage.shots[place[1]]

    def originals(self) -> list[tuple[int, int]]:
        """List video and place of the scenes that a later video may repeat whole: good ones between hard cuts."""
        return [
            (number, place)
            for number, video in enumerate(self.videos)
            for place, shot in enumerate(video.footage.shots)
            if shot.fate == "keep"
            and shot.box is None
            and not shot.flashes
            and (number, place) not in self.repeated
            and all(join.kind == "hard" for join in video.footage.joins[max(0, place - 1) : place + 1])
        ]

    def repeat(self, original: tuple[int, int], fps: Fraction) -> Shot:
        """Give a scene of an earlier video once more."""
        scene = self.shot_at(original).scene
        self.repeated.add(original)
        return Shot(scene=scene, frames=round(scene.seconds * fps), fate="duplicate", original=original)

    def filmed(self, role: Role, form: Format, size: tuple[int, int], shots: list[Shot], joins: list[Join]) -> Video:
        """Put shots together: give every frame its time, and the video its title."""
        count = spans(shots, joins)[-1][1]
        ticks = self.ticks(form, count + 1)
        title, matches = self.title(role, shots)
        footage = Footage(
            shots=tuple(shots),
            joins=tuple(joins),
            height=size[0],
            width=size[1],
            times_s=tuple(float(tick * form.time_base) for tick in ticks),
            contrast=float(self.random.uniform(0.6, 0.85)) if self.hard else 1.0,
        )
        file = f"video_{len(self.videos):04d}.{form.suffix}"
        return Video(file=file, role=role, footage=footage, form=form, ticks=ticks[:-1], title=title, title_matches=matches)

    def ticks(self, form: Format, count: int) -> tuple[int, ...]:
        """Draw presentation times of frames in units of the time base: on the grid of the rate, or a little off it."""
        start = LATE_START_S if form.suffix in ("mkv", "webm") and self.late.deal() else 0.0
        off = self.random.uniform(-JITTER, JITTER, count) if form.variable else np.zeros(count)
        off[0], off[-1] = 0.0, off[-2]  # the last frame lasts as long as the rate says
        unit = float(form.fps * form.time_base)  # frames a tick
        return tuple(int(tick) for tick in np.floor((np.arange(count) + off) / unit + start / float(form.time_base) + 0.5))

    def title(self, role: Role, shots: list[Shot]) -> tuple[str | None, bool | None]:
        """Say what a video's scenes show, or, for one in three videos, nothing."""
        scenes = [shot.scene for shot in shots if shot.fate not in SAYS_NOTHING]
        if role == "title_mismatch":
            return " ".join(short_caption(self.unlike(scenes)) for _ in scenes), False
        if not scenes or not self.titled.deal():
            return None, None
        return " ".join(short_caption(scene) for scene in scenes), True

    def unlike(self, scenes: list[Scene]) -> Scene:
        """Draw a scene whose caption names no shape, colour or background of these scenes, not even in "moves in a circle"."""
        seen = {word for scene in scenes for word in (scene.main.shape, scene.main.colour, scene.background)}
        while True:
            scene = self.scene(LONGEST_STRETCH_S, 1.0, frozen=False)
            if not seen & set(short_caption(scene).split()):
                return scene


def _size(aspect: Fraction, short_side: int) -> tuple[int, int]:
    """Return even height and width of an aspect with this short side."""
    long_side = 2 * round(short_side * max(aspect, 1 / aspect) / 2)
    return (short_side, long_side) if aspect >= 1 else (long_side, short_side)
