"""How the codec does on natural video: clips cut, read and encoded as the run's config says, from a folder of real files."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from demo.figures import psnr_db
from packing.codec import load_codec
from pipeline.config import InputConfig, RunConfig
from pipeline.records import Outcome, Source, SplitResult
from pipeline.sources import SourceError, find_sources
from pipeline.stages.encode import ClipToEncode, Encode
from pipeline.stages.split import Split

MOST_FILES = 16
TRAINED_ON = "trained_on.txt"  # beside a codec's weights: the natural videos that they have seen, a name a line
TEST_PATTERNS = ("testsrc", "sine_", "unordered", "with-dash", "no_duration", "transparent")  # parts of files' names


def score_natural(config: RunConfig, folder: str) -> float | None:
    """Return the mean PSNR in dB of decode(encode(x)) over the first clip of each of some files, evenly chosen by name.

    Passed over are files that the codec was trained on and test patterns, both by their names, and files that hold no video;
    None when no file gives a clip.

    Raises:
        InputError: there are no files at `folder`.
    """
    stage = Encode.from_config(config)
    codec = load_codec(config.encode.model, subfolder=config.encode.subfolder)
    found = []
    for item in _items(config, folder):
        try:
            frames = stage.read(item).frames
        except (SourceError, ValueError):
            continue
        found.append(psnr_db(frames, codec.decode(codec.encode(frames))))
    stage.close()
    return round(float(np.mean(found)), 2) if found else None


def trained_on(model: str) -> tuple[str, ...]:
    """Return endings of the paths of the natural videos that a codec was trained on, as the list beside its weights says."""
    listed = Path(model) / TRAINED_ON
    return tuple(f"/{name}" for name in listed.read_text().splitlines()) if listed.is_file() else ()


def is_test_pattern(name: str) -> bool:
    """Tell by a file's name, path or URI whether it is one of the usual test files that show a pattern or nothing."""
    return any(part in PurePosixPath(name).name for part in TEST_PATTERNS)


def _items(config: RunConfig, folder: str) -> Iterator[ClipToEncode]:
    seen = trained_on(config.encode.model)
    found = find_sources(InputConfig(uri=folder))
    sources = [s for s in found if not (s.uri.endswith(seen) or is_test_pattern(s.uri))]
    chosen = [sources[i] for i in np.unique(np.linspace(0, len(sources) - 1, MOST_FILES).astype(int))] if sources else []
    split = Split.from_config(config)
    for source, outcome in zip(chosen, split.process(chosen), strict=True):
        if outcome.value and outcome.value.fps > 0:
            yield _item(source, outcome)
    split.close()


def _item(source: Source, outcome: Outcome[SplitResult]) -> ClipToEncode:
    times_s = outcome.tensors["times_s"].numpy()
    return ClipToEncode(clip=outcome.result.clips[0], source=source, split=outcome.result, times_s=times_s)
