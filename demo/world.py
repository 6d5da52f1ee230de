"""A world with known truth: videos of drawn scenes as the internet has them, good and bad, and what is true of each.

Files are drawn and encoded one after the other, a core for some seconds; memory holds a few pictures. Equal configs give equal
bytes on one machine. The truth is written last: where it is, the world is whole.
"""

import csv
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np

from demo.drawing import Broken, Image, Video, World, WorldConfig, draw_world
from demo.footage import Shot, pictures
from demo.scenes import dense_caption, draw_scene, held_out, render, short_caption
from demo.truth import (
    FILE_NAME,
    FileTruth,
    FlashTruth,
    OriginalTruth,
    SceneTruth,
    TransitionTruth,
    Truth,
    read_truth,
    truth_text,
)
from demo.writing import Format, write_image, write_sound, write_video
from packing.errors import InputError

__all__ = ["WorldConfig", "draw_world", "make_world", "truth_of"]


def make_world(folder: Path, config: WorldConfig) -> Path:
    """Write a world into a folder: `videos/`, `titles.csv` and, last, `truth.json`; return the folder.

    Does nothing when this world is there already, and starts again where one was not finished.

    Raises:
        InputError: another world is there, or videos that are of none.
    """
    truth_path, unfinished, videos = folder / FILE_NAME, folder / f"{FILE_NAME}.part", folder / "videos"
    if truth_path.exists():
        there = read_truth(folder).config
        if there != asdict(config):
            raise InputError(f"{folder} holds another world, {there}; choose another folder or remove it")
        return folder
    if videos.exists() and not unfinished.exists():
        raise InputError(f"{videos} is of no world; choose another folder")
    world = draw_world(config)
    truth = truth_of(world)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(truth_text(truth))  # says that the videos are ours to remove, should this stop midway
    shutil.rmtree(videos, ignore_errors=True)
    videos.mkdir()
    _write_files(videos, world)
    _write_titles(folder / "titles.csv", truth)
    unfinished.replace(truth_path)
    return folder


def truth_of(world: World) -> Truth:
    """Say what is true of every file of a world, in the order of their names."""
    videos = {video.file: _video_truth(video, world.videos) for video in world.videos}
    copies = [_copy_truth(file, videos[original]) for file, original in world.copies.items()]
    images = [_image_truth(image) for image in world.images]
    broken = [FileTruth(file=broken.file, kind="broken", failure=broken.failure) for broken in world.broken]
    files = sorted([*videos.values(), *copies, *images, *broken], key=lambda file: file.file)
    return Truth(config=asdict(world.config), videos=tuple(files))


def _write_files(folder: Path, world: World) -> None:
    for video in world.videos:
        write_video(folder / video.file, pictures(video.footage), video.ticks, video.form)
    for copy, original in world.copies.items():
        shutil.copyfile(folder / original, folder / copy)
    for image in world.images:
        write_image(folder / image.file, render(image.scene, [0.0], image.height, image.width)[0])
    for number, broken in enumerate(world.broken):
        _write_broken(folder / broken.file, broken, number)


def _video_truth(video: Video, videos: Sequence[Video]) -> FileTruth:
    footage, form = video.footage, video.form
    times = footage.times_s
    scenes = [
        _scene_truth(shot, times[first], times[end], (first, end), videos)
        for shot, (first, end) in zip(footage.shots, footage.spans, strict=True)
    ]
    transitions = [
        TransitionTruth(kind=join.kind, start_s=times[start], end_s=times[end], start_frame=start, end_frame=end)
        for join, ((_, start), (end, _)) in zip(footage.joins, pairwise(footage.spans), strict=True)
    ]
    white = [
        (start + first, start + end)
        for shot, (start, _) in zip(footage.shots, footage.spans, strict=True)
        for first, end in shot.flashes
    ]
    return FileTruth(
        file=video.file,
        kind="video",
        codec=form.codec,
        width=footage.width,
        height=footage.height,
        fps=float(form.fps),
        frames=len(video.ticks),
        vfr=form.variable,
        rotation=form.rotation,
        title=video.title,
        title_matches=video.title_matches,
        scenes=tuple(scenes),
        transitions=tuple(transitions),
        flashes=tuple(FlashTruth(start_s=times[first], end_s=times[end]) for first, end in white),
    )


def _scene_truth(shot: Shot, start_s: float, end_s: float, frames: tuple[int, int], videos: Sequence[Video]) -> SceneTruth:
    scene, original = shot.scene, shot.original
    return SceneTruth(
        start_s=start_s,
        end_s=end_s,
        start_frame=frames[0],
        end_frame=frames[1],
        fate=shot.fate,
        duplicate_of=OriginalTruth(file=videos[original[0]].file, scene=original[1]) if original else None,
        crop=shot.box,
        short=short_caption(scene),
        dense=dense_caption(scene),
        shape=scene.main.shape,
        colour=scene.main.colour,
        motion=scene.main.motion,
        background=scene.background,
        others=tuple((other.shape, other.colour, other.motion) for other in scene.shapes[1:]),
        combination_held_out=held_out(scene.combination),
    )


def _copy_truth(file: str, original: FileTruth) -> FileTruth:
    facts = {**vars(original), "scenes": (), "transitions": (), "flashes": ()}
    return FileTruth(**{**facts, "file": file, "kind": "copy", "copy_of": original.file})


def _image_truth(image: Image) -> FileTruth:
    shot = Shot(scene=image.scene, frames=1)
    scene = _scene_truth(shot, 0.0, 0.0, (0, 1), ())
    return FileTruth(
        file=image.file, kind="image", codec="image", width=image.width, height=image.height, frames=1, scenes=(scene,)
    )


def _write_titles(path: Path, truth: Truth) -> None:
    rows = [(file.file, file.title) for file in truth.videos if file.title is not None]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "title"), *rows])


def _write_broken(path: Path, broken: Broken, seed: int) -> None:
    """Write a file that fails as its name says."""
    match broken.file.rpartition("_")[0]:
        case "empty":
            path.write_bytes(b"")
        case "page":
            path.write_text("<!doctype html><html><title>404 Not Found</title></html>")
        case "sound":
            write_sound(path)
        case "cut_off":  # the index is at the end, and lost
            _write_part(path, seed, streamable=False)
        case "ends_early":  # the index is at the start; frames are missing
            _write_part(path, seed, streamable=True)


def _write_part(path: Path, seed: int, *, streamable: bool) -> None:
    """Write the first part of a good video."""
    form = Format(codec="h264", suffix="mp4", fps=Fraction(25), streamable=streamable)
    scene = draw_scene(np.random.Generator(np.random.Philox(seed)), seconds=2.0, aspect=4 / 3)
    write_video(path, render(scene, [n / 25 for n in range(50)], 120, 160), range(50), form)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
