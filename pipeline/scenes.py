"""Print the scenes of files without a run: what `clipmill split` shows, as a table, JSON, csv or pictures.

Invariant: scenes are the clips of the split stage itself, with the same spans and measures as in an ingest; but long shots stay
whole, unless `split.max_clip_s` says otherwise. Files are split one after the other by one decoder, which is warm from the
second on; memory holds one file's results.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from packing.config import load_config
from packing.errors import ConfigError, InputError
from pipeline.config import InputConfig, SplitConfig
from pipeline.records import Clip, Outcome, Source, SplitResult
from pipeline.sources import clean_text, find_sources
from pipeline.stages.split import Split

WHOLE_SHOT_S = 86_400.0  # longer than any source that the split takes
# PySceneDetect's, as `scenedetect list-scenes --skip-cuts` writes them: frames count from 1 and the end frame is the last one.
COLUMNS = (
    *("Scene Number", "Start Frame", "Start Timecode", "Start Time (seconds)"),
    *("End Frame", "End Timecode", "End Time (seconds)"),
    *("Length (frames)", "Length (timecode)", "Length (seconds)"),
)
TABLE_COLUMNS = ("scene", "start", "end", "seconds", "first frame", "frames")


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """What `clipmill split` can be told: how sources are cut, by the keys that an ingest has too."""

    split: SplitConfig = field(default_factory=lambda: SplitConfig(max_clip_s=WHOLE_SHOT_S))


@dataclass(frozen=True, kw_only=True)
class FileScenes:
    """What became of one file; `name` is its own among all of the call, for files that are written about it."""

    uri: str
    name: str
    outcome: Outcome[SplitResult]

    @property
    def scenes(self) -> tuple[Clip, ...]:
        """The scenes in order; none of a file that failed. Between two may lie the frames of a fade or dissolve."""
        return self.outcome.value.clips if self.outcome.value else ()

    @property
    def trouble(self) -> str:
        """The name of the failure and its message, safe to print; empty for a good file."""
        failure = self.outcome.failure
        return f"{failure.error}: {clean_text(failure.message)}" if failure else ""


def read_arguments(arguments: Sequence[str]) -> tuple[list[Source], SplitConfig]:
    """Tell the files of a command line from its overrides (`split.key=value`); list the sources and build the config.

    A file whose name looks like an override is named with its folder: `./take=2.mp4`.

    Raises:
        ConfigError: an override has an unknown key or a bad value.
        InputError: there are no files, or one does not exist.
        ModelError: the detector is a network, and its weights cannot be used.
    """
    overrides = [argument for argument in arguments if re.match(r"[\w.]+=", argument)]
    if foreign := [override for override in overrides if not override.startswith("split.")]:
        raise ConfigError(
            f"split takes overrides of the form split.key=value, not {foreign[0]!r}; a file of this name is ./{foreign[0]}"
        )
    config = load_config(ScenesConfig, None, overrides).split
    if not (uris := [argument for argument in arguments if argument not in overrides]):
        raise InputError("split needs at least one file, folder, glob or URL")
    Split(chunk=1, config=config).identity()  # weights that are none are told before anything starts
    return find_sources(InputConfig(uri=uris)), config


def find_scenes(sources: Sequence[Source], config: SplitConfig) -> Iterator[FileScenes]:
    """Split sources one after the other."""
    stage = Split(chunk=1, config=config)
    try:
        for source, name in zip(sources, unique_names([source.uri for source in sources]), strict=True):
            (outcome,) = stage.process([source])
            yield FileScenes(uri=source.uri, name=name, outcome=outcome)
    finally:
        stage.close()


def unique_names(uris: Sequence[str]) -> list[str]:
    """Name each file after its stem, cut to 50 characters; where names meet, the later ones get a number."""
    names: dict[str, None] = {}
    for uri in uris:
        path = urlsplit(uri).path if "://" in uri else uri
        stem = name = clean_text(PurePosixPath(path).stem)[:50] or "source"
        number = 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names[name] = None
    return list(names)


def to_json(found: FileScenes) -> dict[str, Any]:
    """Return what the JSON line of a file holds.

    Width and height are upright with square pixels; `rotation` is how many degrees a player turns the stored picture clockwise.
    Of a file that failed these and the counts are None.
    """
    split, failure = found.outcome.value, found.outcome.failure
    return {
        "uri": found.uri,
        "source_id": split and split.source_id,
        "frames": split and split.frames,
        "fps": split and split.fps,
        "width": split and split.width_px,
        "height": split and split.height_px,
        "rotation": split and split.rotation,
        "scenes": [_scene_json(scene) for scene in found.scenes],
        "failure": failure and {"error": failure.error, "message": failure.message},
    }


def to_csv(found: FileScenes) -> str:
    """Write scenes as PySceneDetect does: the same columns, frames from 1 on, times of 3 decimals."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows(_csv_row(number, scene) for number, scene in enumerate(found.scenes, 1))
    return text.getvalue()


def to_table(found: FileScenes) -> RenderableType:
    """Draw scenes for people, or say what is wrong with the file."""
    if found.outcome.value is None:
        return Text(f"{clean_text(found.uri)}: {found.trouble}", style="red")
    split = found.outcome.value
    facts = f"{split.frames} frames, {round(split.fps, 3):g} fps, {split.width_px}x{split.height_px}"
    title = Text(f"{clean_text(found.uri)}: {facts}", no_wrap=True, overflow="ignore")
    table = Table(*TABLE_COLUMNS)
    for number, scene in enumerate(found.scenes, 1):
        times = (timecode(scene.start_s), timecode(scene.end_s), f"{scene.duration_s:.3f}")
        table.add_row(str(number), *times, str(scene.start_frame), str(scene.end_frame - scene.start_frame))
    return Group(title, table)


def thumbnails(found: FileScenes) -> Iterator[tuple[str, bytes]]:
    """Give a file name and a JPEG for every scene: the middle one of its sampled frames, without its black bars."""
    for number, scene in enumerate(found.scenes, 1):
        frames = found.outcome.tensors[scene.clip_id]  # [F, Y, X, 3]
        jpeg = io.BytesIO()
        Image.fromarray(frames[len(frames) // 2].numpy()).save(jpeg, "JPEG", quality=90)
        yield f"{found.name}-Scene-{number:03d}.jpg", jpeg.getvalue()


def timecode(seconds: float) -> str:
    """Write a time as HH:MM:SS.mmm."""
    minutes, milliseconds = divmod(round(abs(seconds) * 1000), 60_000)
    sign = "-" if seconds < 0 else ""
    return f"{sign}{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


def _scene_json(scene: Clip) -> dict[str, Any]:
    return {
        "start_s": scene.start_s,
        "end_s": scene.end_s,
        "start_frame": scene.start_frame,
        "end_frame": scene.end_frame,
        "measures": scene.measures,
    }


def _csv_row(number: int, scene: Clip) -> tuple[str, ...]:
    def told(frame: int, seconds: float) -> tuple[str, str, str]:
        return str(frame), timecode(seconds), f"{seconds:.3f}"

    length = told(scene.end_frame - scene.start_frame, scene.duration_s)
    return str(number), *told(scene.start_frame + 1, scene.start_s), *told(scene.end_frame, scene.end_s), *length
