"""What is true of a world: the records of truth.json, written beside the videos and read by whoever scores against them.

Times are seconds of presentation time as the file has them, frames are counted from 0, intervals are half-open. Sizes and boxes
are those of the upright picture. Only the standard library is needed to read them.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

VERSION = 1
FILE_NAME = "truth.json"
FATES = (
    *("keep", "still", "too_dark", "washed_out", "blurred", "text_overlay", "watermark", "flashing", "too_short"),
    *("slideshow", "duplicate", "title_mismatch"),
)
Kind = Literal["video", "image", "copy", "broken"]
JoinKind = Literal["hard", "fade", "dissolve", "flash"]
Box = tuple[int, int, int, int]  # top, left, height, width in pixels


@dataclass(frozen=True, kw_only=True)
class OriginalTruth:
    """The scene that another one repeats: its file, and its place among the scenes there."""

    file: str
    scene: int


@dataclass(frozen=True, kw_only=True)
class SceneTruth:
    """One scene as it lies in a file, without the frames that it shares with a transition.

    Attributes:
        fate: "keep", or why it deserves to be dropped; one of `FATES`.
        crop: top, left, height and width of what lies between black bars; None without bars.
        shape: of the largest shape, like colour and motion; the `others` are smaller.
    """

    start_s: float
    end_s: float
    start_frame: int
    end_frame: int
    fate: str
    duplicate_of: OriginalTruth | None
    crop: Box | None
    short: str
    dense: str
    shape: str
    colour: str
    motion: str
    background: str
    others: tuple[tuple[str, str, str], ...]
    combination_held_out: bool


@dataclass(frozen=True, kw_only=True)
class TransitionTruth:
    """What lies between two scenes; a hard cut starts and ends at the first frame of the later one."""

    kind: JoinKind
    start_s: float
    end_s: float
    start_frame: int
    end_frame: int


@dataclass(frozen=True, kw_only=True)
class FlashTruth:
    """White frames inside a scene, which are no cut."""

    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class FileTruth:
    """One file of the world.

    Attributes:
        copy_of: the file that a copy equals byte by byte. A copy has the facts of its original and no scenes of its own.
        failure: the name that the failure of a broken file deserves. A broken file has no facts.
        width: of the upright picture, like the height.
        fps: the nominal frame rate; frames of a variable rate lie around its grid. 0 for images.
        rotation: degrees that a player turns the stored pictures clockwise.
        title_matches: None without a title.
        transitions: one between each two scenes.
    """

    file: str
    kind: Kind
    copy_of: str | None = None
    failure: str | None = None
    codec: str = ""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    frames: int = 0
    vfr: bool = False
    rotation: int = 0
    title: str | None = None
    title_matches: bool | None = None
    scenes: tuple[SceneTruth, ...] = ()
    transitions: tuple[TransitionTruth, ...] = ()
    flashes: tuple[FlashTruth, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Truth:
    """All that is true of a world: the config it was made with, and its files in the order of their names."""

    config: dict[str, Any]
    videos: tuple[FileTruth, ...]

    def scenes(self) -> Iterator[tuple[FileTruth, int, SceneTruth]]:
        """Give every scene with its file and its place there, in the order of the world."""
        for file in self.videos:
            for number, scene in enumerate(file.scenes):
                yield file, number, scene


def read_truth(folder: Path) -> Truth:
    """Read the truth of the world in a folder.

    Raises:
        FileNotFoundError: there is no world, or it is not finished.
        ValueError: it is of another version of this program.
    """
    data = json.loads((folder / FILE_NAME).read_text())
    if data["version"] != VERSION:
        raise ValueError(f"{folder / FILE_NAME} is of version {data['version']}; this program reads version {VERSION}")
    return Truth(config=data["config"], videos=tuple(_file(entry) for entry in data["videos"]))


def truth_text(truth: Truth) -> str:
    """Return the text of truth.json."""
    return json.dumps({"version": VERSION, **asdict(truth)}, indent=1) + "\n"


def _file(data: dict[str, Any]) -> FileTruth:
    scenes = tuple(_scene(entry) for entry in data["scenes"])
    transitions = tuple(TransitionTruth(**entry) for entry in data["transitions"])
    flashes = tuple(FlashTruth(**entry) for entry in data["flashes"])
    return FileTruth(**{**data, "scenes": scenes, "transitions": transitions, "flashes": flashes})


def _scene(data: dict[str, Any]) -> SceneTruth:
    top_left_height_width = tuple(data["crop"]) if data["crop"] else None
    original = OriginalTruth(**data["duplicate_of"]) if data["duplicate_of"] else None
    others = tuple((shape, colour, motion) for shape, colour, motion in data["others"])
    return SceneTruth(**{**data, "duplicate_of": original, "crop": top_left_height_width, "others": others})
