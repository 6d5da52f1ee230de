"""The codec's figure on natural video is of what it has not seen: its training files and test patterns are passed over."""

from pathlib import Path

import numpy as np
import pytest

from demo.natural import TRAINED_ON, is_test_pattern, score_natural
from pipeline.config import RunConfig, load_run_config
from tests.videos import write_video

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name",
    ["testsrc2.mp4", "torchcodec/sine_stereo.mpg", "s3://bucket/moviepy/transparent.webm", "/videos/-video-with-dash-.mp4"],
)
def test_test_patterns_are_known_by_the_names_of_files(name: str) -> None:
    assert is_test_pattern(name)


@pytest.mark.parametrize("name", ["street.mp4", "dashcam.mp4", "testsrc/street.mp4", "s3://transparent/street.webm"])
def test_other_files_are_natural_whatever_their_folder_is_called(name: str) -> None:
    assert not is_test_pattern(name)


def written(path: Path) -> None:
    grid = np.add.outer(np.arange(96), np.arange(128)).astype(np.uint8)
    pictures = (np.repeat(np.roll(grid, shift, axis=1)[..., None], 3, axis=2) for shift in range(48))
    write_video(path, pictures, codec="libx264", fps=24)


def config(folder: Path, model: Path) -> RunConfig:
    run = [f"input.uri={folder}", f"run={folder}/run", f"encode.model={model}"]
    return load_run_config(str(ROOT / "configs" / "demo.yaml"), run)


def test_only_unseen_natural_files_are_scored(tmp_path: Path) -> None:
    model, videos = tmp_path / "codec", tmp_path / "videos"
    model.mkdir()
    videos.mkdir()
    for file in (ROOT / "demo" / "weights" / "codec").iterdir():
        (model / file.name).symlink_to(file)
    (model / TRAINED_ON).unlink()
    (model / TRAINED_ON).write_text("videos/seen.mp4\n")
    for name in ("testsrc2.mp4", "seen.mp4"):
        written(videos / name)
    assert score_natural(config(videos, model), str(videos)) is None
    written(videos / "street.mp4")
    assert score_natural(config(videos, model), str(videos)) is not None
