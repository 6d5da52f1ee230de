"""Scenes of the demo's world: moving shapes on backgrounds, with everything that is true of them, and their captions.

A scene is a value; drawing it is a pure function of the scene and the times asked for, and looks the same at any resolution.
Coordinates and sizes are in units of the picture's short side; `across` and `down` tell how far a picture goes in that unit.

Legend: F Y X frames, rows, columns of pixels; pictures are uint8 RGB.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.uint8]  # [F, Y, X, 3]
Picture = NDArray[np.uint8]  # [Y, X, 3]
Rgb = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS: Mapping[str, Rgb] = {
    "red": (215, 35, 40),
    "green": (35, 170, 60),
    "blue": (40, 75, 225),
    "yellow": (240, 220, 45),
    "orange": (245, 135, 25),
    "purple": (140, 50, 185),
    "white": (245, 245, 245),
    "cyan": (45, 205, 220),
}
# What a background is called in a short caption, in a dense one, and its two colours.
BACKGROUNDS: Mapping[str, tuple[str, Rgb, Rgb]] = {
    "gray": ("plain gray", (125, 125, 125), (125, 125, 125)),
    "sand": ("plain sand", (205, 180, 130), (205, 180, 130)),
    "navy": ("plain navy", (30, 40, 90), (30, 40, 90)),
    "sky": ("a gradient of sky", (90, 155, 230), (200, 225, 245)),
    "sunset": ("a gradient of sunset", (95, 50, 110), (235, 140, 90)),
    "grass": ("textured grass", (50, 110, 40), (100, 165, 70)),
    "striped": ("diagonal stripes", (120, 70, 70), (190, 150, 140)),
    "checkered": ("a checkerboard", (70, 90, 95), (150, 165, 165)),
}
# How a caption says a motion; all but those in STRETCHED go at a steady pace, whatever the length of the scene.
MOTIONS: Mapping[str, str] = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "circle": "moves in a circle",
    "grow": "grows",
    "shrink": "shrinks",
    "spin": "spins",
    "bounce": "bounces",
    "still": "stays still",
}
STRETCHED = ("grow", "shrink")
DRIFTS = ("left", "right", "up", "down")
LONGEST_STRETCH_S = 4.0
SLOW, FAST = "slowly", "fast"
_TRAVEL = {SLOW: 0.3, FAST: 0.55}  # short sides a second
# Seconds of a turn. Eight frames of four seconds must tell a spinning cross, alike after a quarter of a turn, from a still one.
_PERIOD_S = {"circle": {SLOW: 2.8, FAST: 1.7}, "bounce": {SLOW: 2.4, FAST: 1.5}, "spin": {SLOW: 6.0, FAST: 3.6}}
_LARGE = 0.215  # radii from here on are called large


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One moving shape: centre and radius in short sides, where it starts, and how it moves."""

    shape: str
    colour: str
    motion: str
    speed: str
    radius: float
    x: float
    y: float
    angle: float
    rgb: Rgb

    @property
    def size(self) -> str:
        """Its size as a caption says it."""
        return "large" if self.radius >= _LARGE else "small"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One continuous shot. The first shape is the largest, the one that a short caption names.

    Attributes:
        aspect: width over height that the scene is laid out for.
        texture: seed of the background's details.
        palette: the background's two colours.
    """

    shapes: tuple[Shape, ...]
    background: str
    seconds: float
    aspect: float
    texture: int
    palette: tuple[Rgb, Rgb]

    @property
    def main(self) -> Shape:
        """The shape that a short caption names."""
        return self.shapes[0]

    @property
    def combination(self) -> tuple[str, str, str, str]:
        """Shape, colour, motion and background: what captions are judged by."""
        return self.main.shape, self.main.colour, self.main.motion, self.background

    @property
    def across(self) -> float:
        """Width in short sides."""
        return max(1.0, self.aspect)

    @property
    def down(self) -> float:
        """Height in short sides."""
        return max(1.0, 1 / self.aspect)


def held_out(combination: tuple[str, str, str, str]) -> bool:
    """Tell whether worlds never show a combination, so that a trained model can be asked for it: one in ten, by hash."""
    return hashlib.sha256(" ".join(combination).encode()).digest()[0] < 26


def stands_out(colour: str, ground: str) -> bool:
    """Tell whether a colour is far from everything between the two of a background; others do not occur on it."""
    first, second = (np.array(c, dtype=float) for c in BACKGROUNDS[ground][1:])
    mixes = first + np.linspace(0, 1, 9)[:, None] * (second - first)
    return float(np.linalg.norm(mixes - np.array(COLOURS[colour]), axis=1).min()) > 85


def draw_scene(
    random: np.random.Generator, *, seconds: float, aspect: float, most_shapes: int = 3, any_combination: bool = False
) -> Scene:
    """Draw a random scene whose shapes stand out from its background.

    Args:
        random: gives every choice.
        seconds: length of the shot; growing and shrinking are for scenes of at most `LONGEST_STRETCH_S`.
        aspect: width over height.
        most_shapes: at most so many shapes; three out of four scenes have one.
        any_combination: also draw combinations that are held out.
    """
    while True:
        scene = _any_scene(random, seconds, aspect, most_shapes)
        if any_combination or not held_out(scene.combination):
            return scene


def short_caption(scene: Scene) -> str:
    """Say what the largest shape does, and where."""
    return short_text(*scene.combination)


def short_text(shape: str, colour: str, motion: str, background: str) -> str:
    """Word a combination as short captions do."""
    return f"{_article(colour)} {colour} {shape} {MOTIONS[motion]} on a {background} background."


def dense_caption(scene: Scene) -> str:
    """Say size and speed too, name every shape, and describe the background."""
    main, *others = scene.shapes
    pace = "" if main.motion == "still" else f" {main.speed}"
    said = [f"A {main.size} {main.colour} {main.shape} {MOTIONS[main.motion]}{pace}."]
    said += [f"A smaller {other.colour} {other.shape} {MOTIONS[other.motion]}." for other in others]
    return " ".join([*said, f"The background is {BACKGROUNDS[scene.background][0]}."])


def _article(word: str) -> str:
    return "An" if word[0] in "aeiou" else "A"


def render(scene: Scene, times_s: Sequence[float], height: int, width: int) -> Pictures:
    """Draw a scene at these times after its start, uint8 [F, Y, X, 3]."""
    ground = background(scene, height, width)
    pictures = np.repeat(ground[None], len(times_s), axis=0)
    for picture, time_s in zip(pictures, times_s, strict=True):
        for shape in reversed(scene.shapes):
            _draw_shape(picture, scene, shape, time_s)
    return pictures


def background(scene: Scene, height: int, width: int) -> Picture:
    """Draw the background alone, uint8 [Y, X, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    unit = min(height, width)
    u, v = (x + 0.5) / unit, (y + 0.5) / unit
    share = _mixture(scene, u, v, height, width)[..., None]
    first, second = (np.array(colour, dtype=np.float32) for colour in scene.palette)
    mixed: Picture = np.clip(first * (1 - share) + second * share, 0, 255).round().astype(np.uint8)
    return mixed


def _mixture(scene: Scene, u: NDArray[np.float32], v: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Return how much of the second colour every pixel has, 0 to 1; u and v are positions in short sides."""
    random = np.random.Generator(np.random.Philox(scene.texture))
    shift = random.uniform(0, 1, size=2)
    sharp = min(height, width)  # edges of patterns are a pixel wide at any resolution
    if scene.background in ("sky", "sunset"):
        return np.asarray(v / scene.down, dtype=np.float32)
    if scene.background == "grass":
        noise = random.uniform(0, 1, size=(24, 24)).astype(np.float32)
        grown = cv2.resize(noise, (max(width, height), max(width, height)), interpolation=cv2.INTER_CUBIC)
        return np.asarray(grown[:height, :width].clip(0, 1), dtype=np.float32)
    if scene.background == "striped":
        waves = np.sin(2 * np.pi * 1.9 * (u + v + shift[0]))
        return np.asarray((0.5 + waves * sharp / 12).clip(0, 1), dtype=np.float32)
    if scene.background == "checkered":
        waves = np.sin(2 * np.pi * 1.9 * (u + shift[0])) * np.sin(2 * np.pi * 1.9 * (v + shift[1]))
        return np.asarray((0.5 + waves * sharp / 12).clip(0, 1), dtype=np.float32)
    return np.zeros_like(u)


def _any_scene(random: np.random.Generator, seconds: float, aspect: float, most_shapes: int) -> Scene:
    ground = str(random.choice(list(BACKGROUNDS)))
    motion = str(random.choice([m for m in MOTIONS if seconds <= LONGEST_STRETCH_S or m not in STRETCHED]))
    others = int(random.choice(3, p=[0.75, 0.18, 0.07]))
    others = min(max(others, motion == "still"), most_shapes - 1)  # something moves in every scene
    colours = [str(c) for c in random.permutation([c for c in COLOURS if stands_out(c, ground)])]
    across, down = max(1.0, aspect), max(1.0, 1 / aspect)
    kinds = [str(kind) for kind in random.permutation(list(SHAPES))]
    main = _any_shape(random, kinds[0], colours[0], motion, float(random.uniform(0.17, 0.26)), across, down)
    rest = [
        _any_shape(random, kind, colour, str(random.choice(DRIFTS)), float(random.uniform(0.08, 0.11)), across, down)
        for kind, colour in zip(kinds[1 : 1 + others], colours[1:], strict=False)
    ]
    _, first, second = BACKGROUNDS[ground]
    tint = random.integers(-8, 9, size=3)
    return Scene(
        shapes=(main, *rest),
        background=ground,
        seconds=seconds,
        aspect=aspect,
        texture=int(random.integers(2**31)),
        palette=(_tinted(first, tint), _tinted(second, tint)),
    )


def _any_shape(
    random: np.random.Generator, kind: str, colour: str, motion: str, radius: float, across: float, down: float
) -> Shape:
    margin = radius + (0.17 if motion == "circle" else 0.03)
    if motion in STRETCHED:
        margin = max(margin, 0.3)
    return Shape(
        shape=kind,
        colour=colour,
        motion=motion,
        speed=SLOW if random.random() < 0.5 else FAST,
        radius=radius,
        x=float(random.uniform(min(margin, across / 2), max(across - margin, across / 2))),
        y=float(random.uniform(min(margin, down / 2), max(down - margin, down / 2))),
        angle=float(random.uniform(-0.3, 0.3)),
        rgb=_tinted(COLOURS[colour], random.integers(-10, 11, size=3)),
    )


def _tinted(colour: Rgb, by: NDArray[np.int64]) -> Rgb:
    red, green, blue = (int(np.clip(c + d, 0, 255)) for c, d in zip(colour, by, strict=True))
    return red, green, blue


def _draw_shape(picture: Picture, scene: Scene, shape: Shape, time_s: float) -> None:
    unit = min(picture.shape[:2])
    x, y, radius, angle = pose(scene, shape, time_s)
    outline = _outline(shape.shape, radius * unit, angle)
    for column in _places(x, scene.across, radius):
        for row in _places(y, scene.down, radius):
            centre = np.array([column, row]) * unit - 0.5
            points = ((outline + centre) * 256).round().astype(np.int32)
            cv2.fillPoly(picture, [points], shape.rgb, cv2.LINE_AA, shift=8)


def pose(scene: Scene, shape: Shape, time_s: float) -> tuple[float, float, float, float]:
    """Return centre, radius and angle of a shape at a time."""
    x, y, radius, angle = shape.x, shape.y, shape.radius, shape.angle
    turn = 2 * math.pi * time_s / _PERIOD_S[shape.motion][shape.speed] if shape.motion in _PERIOD_S else 0.0
    way = _TRAVEL[shape.speed] * time_s
    match shape.motion:
        case "left" | "right":
            x = (x + (way if shape.motion == "right" else -way)) % scene.across
        case "up" | "down":
            y = (y + (way if shape.motion == "down" else -way)) % scene.down
        case "circle":
            x, y = x + 0.16 * math.cos(turn), y + 0.16 * math.sin(turn)
        case "bounce":
            y = (scene.down - radius - 0.02) - (scene.down - 2 * radius - 0.06) * 0.8 * abs(math.sin(turn / 2))
        case "spin":
            angle += turn
        case "grow" | "shrink":
            progress = min(1.0, time_s / scene.seconds)
            small, large = (0.6, 1.35) if shape.speed == FAST else (0.7, 1.2)
            radius *= small + (large - small) * (progress if shape.motion == "grow" else 1 - progress)
    return x, y, radius, angle


def _places(position: float, extent: float, radius: float) -> list[float]:
    """Return where a shape shows along one axis: what leaves on one side comes in on the other."""
    across_edge = [position + extent] if position < radius else [position - extent] if position > extent - radius else []
    return [position, *across_edge]


def _outline(kind: str, radius: float, angle: float) -> NDArray[np.float64]:
    """Return the corners [n, 2] of a shape around the origin. The circle has a notch, so that one sees it spin."""
    if kind == "circle":
        around = np.linspace(0.28, 2 * np.pi - 0.28, 40)
        corners = np.concatenate([radius * np.stack([np.cos(around), np.sin(around)], axis=1), [[0.35 * radius, 0.0]]])
    elif kind == "cross":
        a, b = radius, 0.38 * radius
        quarter = np.array([(b, a), (b, b), (a, b)])
        corners = np.concatenate([quarter @ _turn(-k * math.pi / 2) for k in range(4)])
    else:
        count = {"square": 4, "triangle": 3, "star": 10}[kind]
        around = np.arange(count) * 2 * np.pi / count + (np.pi / 4 if kind == "square" else -np.pi / 2)
        reach = np.where(np.arange(count) % 2, 0.45, 1.0) if kind == "star" else np.ones(count)
        corners = radius * 1.08 * reach[:, None] * np.stack([np.cos(around), np.sin(around)], axis=1)
    turned: NDArray[np.float64] = corners @ _turn(angle)
    return turned


def _turn(angle: float) -> NDArray[np.float64]:
    """Return the matrix that row vectors are multiplied by to turn them."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])
