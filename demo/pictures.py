"""Contact sheets of a demo: what became of every source, captions beside frames, reconstructions, samples."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from demo.matching import clips_by_file, got
from demo.samples import Sample
from demo.scenes import short_text
from demo.scorecard import Coded, Study

Picture = NDArray[np.uint8]  # [Y, X, 3]

TILE_PX = 96  # height of a frame on a sheet
PAPER, INK, GOOD, BAD = (250, 250, 248), (30, 30, 30), (40, 140, 70), (190, 60, 50)
_FONT = ImageFont.load_default(size=13)
_LINE_PX = 18
_GAP_PX = 6


def draw_sheets(study: Study, samples: Sequence[Sample], folder: Path) -> list[Path]:
    """Write the sheets of a study as PNG files into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    sheets = {
        "sources": _stacked(_source_strips(study)),
        "captions": _stacked(_caption_strips(study)),
        "reconstructions": _stacked(_coded_strip(coded) for coded in study.coded[:12]),
        "samples": _stacked(_sample_strip(sample) for sample in samples[:24]),
    }
    paths = []
    for name, sheet in sheets.items():
        if sheet is not None:
            paths.append(folder / f"{name}.png")
            Image.fromarray(sheet).save(paths[-1])
    return paths


def _source_strips(study: Study) -> Iterable[Picture]:
    """Draw a strip a file: a frame of each clip in order, with its times and its fate below it."""
    failures = {
        source.uri.rsplit("/", 1)[-1]: outcome.failure.error
        for source in study.ledger.sources
        if (outcome := study.ledger.outcomes["split"].get(source.key)) and outcome.failure
    }
    clips = clips_by_file(study.ledger)
    for file in study.truth.videos:
        parts = [_text(file.file, TILE_PX * 2)]
        for clip, fate in clips.get(file.file, []):
            frames = study.frames_of(clip)
            colour = GOOD if fate.ready else BAD
            label = [f"{clip.start_s:.2f} to {clip.end_s:.2f} s", got(fate)]
            parts.append(_labelled(_framed(_tile(frames[len(frames) // 2]), colour), label, colour))
        if file.file in failures:
            parts.append(_text(f"failed: {failures[file.file]}", TILE_PX * 2, BAD))
        elif file.kind == "copy":
            parts.append(_text(f"the bytes of {file.copy_of}", TILE_PX * 4))
        yield _beside(parts)


def _caption_strips(study: Study) -> Iterable[Picture]:
    for clip, scene in study.kept[:16]:
        captions = study.captions(clip)
        lines = [f"{name}: {captions[name].text}" for name in ("short", "dense") if name in captions]
        frames = [_tile(frame) for frame in study.frames_of(clip)[::2]]
        yield _labelled(_beside(frames), [*lines, f"truth: {scene.dense}"], INK)


def _coded_strip(coded: Coded) -> Picture:
    chosen = np.linspace(0, len(coded.frames) - 1, 6).astype(int)
    rows = [_beside([_tile(frames[i]) for i in chosen]) for frames in (coded.frames, coded.again)]
    return np.concatenate(rows)


def _sample_strip(sample: Sample) -> Picture:
    chosen = np.linspace(0, len(sample.frames) - 1, 8).astype(int)
    lines = [f"asked for: {short_text(*sample.combination)}", f"seen: {sample.caption}"]
    return _labelled(_beside([_tile(sample.frames[i]) for i in chosen]), lines, INK)


def _tile(frame: Picture) -> Picture:
    width = max(1, round(frame.shape[1] * TILE_PX / frame.shape[0]))
    tile: Picture = cv2.resize(frame, (width, TILE_PX), interpolation=cv2.INTER_AREA).astype(np.uint8)
    return tile


def _framed(picture: Picture, colour: tuple[int, int, int]) -> Picture:
    framed: Picture = cv2.copyMakeBorder(picture, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=colour).astype(np.uint8)
    return framed


def _labelled(picture: Picture, lines: Sequence[str], colour: tuple[int, int, int]) -> Picture:
    width = max(picture.shape[1], *(round(_FONT.getlength(line)) + 4 for line in lines))
    return np.concatenate([_widened(picture, width), *(_text(line, width, colour, _LINE_PX) for line in lines)])


def _text(line: str, width: int, colour: tuple[int, int, int] = INK, height: int = TILE_PX) -> Picture:
    image = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(image).text((2, (height - _LINE_PX) // 2), line, fill=colour, font=_FONT)
    return np.asarray(image)


def _beside(parts: Sequence[Picture]) -> Picture:
    height = max(part.shape[0] for part in parts)
    gap = _paper(height, _GAP_PX)
    padded = [np.concatenate([part, _paper(height - part.shape[0], part.shape[1])]) for part in parts]
    return np.concatenate([piece for part in padded for piece in (part, gap)], axis=1)


def _stacked(strips: Iterable[Picture]) -> Picture | None:
    drawn = list(strips)
    if not drawn:
        return None
    width = max(strip.shape[1] for strip in drawn)
    gap = _paper(_GAP_PX, width)
    return np.concatenate([piece for strip in drawn for piece in (_widened(strip, width), gap)])


def _widened(picture: Picture, width: int) -> Picture:
    return np.concatenate([picture, _paper(picture.shape[0], width - picture.shape[1])], axis=1)


def _paper(height: int, width: int) -> Picture:
    return np.full((height, width, 3), PAPER, dtype=np.uint8)
