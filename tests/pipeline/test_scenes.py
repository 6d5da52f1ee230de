"""`clipmill split`: the scenes of any file, without a run, in four forms."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenedetect import AdaptiveDetector, detect
from scenedetect.output import write_scene_list

import clipmill
from pipeline.config import SplitConfig
from pipeline.scenes import find_scenes, read_arguments, timecode, unique_names
from pipeline.stages.split import Split
from tests.media import HEIGHT, WIDTH, decoded, set_matrix, shots, write_image, write_video
from tests.pipeline.conftest import Scan

KEYS = ["uri", "source_id", "frames", "fps", "width", "height", "rotation", "scenes", "failure"]
Command = Callable[..., tuple[int, str, str]]
# Display matrices (a, b, c, d), whether they mirror left to right, and the turn clockwise that is left then.
MATRICES = [
    ((1, 0, 0, 1), False, 0),
    ((0, 1, -1, 0), False, 90),
    ((-1, 0, 0, -1), False, 180),
    ((0, -1, 1, 0), False, 270),
    ((-1, 0, 0, 1), True, 0),
    ((0, 1, 1, 0), True, 270),
    ((1, 0, 0, -1), True, 180),
    ((0, -1, -1, 0), True, 90),
]


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `clipmill split` in this process: `split(file, "--json")` gives exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipmill", "split", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            clipmill.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds two.mp4 of shots of 20 and 28 frames, at 16 a second, and broken.mp4, the first third of it."""
    path = tmp_path_factory.mktemp("files")
    two = write_video(path / "two.mp4", shots([20, 28]))
    (path / "broken.mp4").write_bytes(two.read_bytes()[: two.stat().st_size // 3])
    return path


def lines(text: str) -> Iterator[dict[str, object]]:
    return (json.loads(line) for line in text.splitlines())


def test_json_is_one_line_a_file_with_these_keys_and_exact_cuts(split: Command, folder: Path) -> None:
    code, out, err = split(folder / "two.mp4", "--json")
    (line,) = lines(out)
    assert (code, err) == (0, "")
    assert list(line) == KEYS
    assert len(str(line["source_id"])) == 32
    told = {name: value for name, value in line.items() if name not in ("source_id", "scenes")}
    facts = {"frames": 48, "fps": 16.0, "width": WIDTH, "height": HEIGHT, "rotation": 0, "failure": None}
    assert told == {"uri": str(folder / "two.mp4"), **facts}
    assert isinstance(line["scenes"], list)
    assert [list(scene) for scene in line["scenes"]] == [["start_s", "end_s", "start_frame", "end_frame", "measures"]] * 2
    assert [tuple(scene.values())[:4] for scene in line["scenes"]] == [(0.0, 1.25, 0, 20), (1.25, 3.0, 20, 48)]
    assert all(0 < scene["measures"]["luma"] < 1 for scene in line["scenes"])


def test_a_broken_file_has_its_named_failure_and_the_others_their_scenes(split: Command, folder: Path) -> None:
    code, out, _ = split(folder, "--json")
    broken, two = lines(out)
    assert code == 1
    assert isinstance(broken["failure"], dict)
    assert list(broken["failure"]) == ["error", "message"]
    assert broken["failure"]["error"] == "truncated"
    assert [broken[name] for name in KEYS[1:8]] == [None] * 6 + [[]]
    assert (two["failure"], two["frames"]) == (None, 48)


def test_a_table_for_people_is_the_default(split: Command, folder: Path) -> None:
    code, out, err = split(folder / "*.mp4")
    assert (code, err) == (1, "")
    assert f"{folder}/broken.mp4: truncated: " in out
    assert f"{folder}/two.mp4: 48 frames, 16 fps, {WIDTH}x{HEIGHT}" in out
    assert "00:00:01.250" in out


def test_csv_is_what_pyscenedetect_writes(split: Command, folder: Path) -> None:
    theirs = io.StringIO()
    scenes = detect(str(folder / "two.mp4"), AdaptiveDetector(min_scene_len=5), backend="pyav")
    write_scene_list(theirs, scenes, include_cut_list=False)
    assert len(scenes) == 2
    assert split(folder / "two.mp4", "--csv", "-") == (0, theirs.getvalue(), "")


def test_csv_in_a_folder_is_a_file_for_every_good_file(split: Command, folder: Path, tmp_path: Path) -> None:
    code, out, _ = split(folder, "--json", "--csv", tmp_path / "csv")
    assert (code, len(out.splitlines())) == (1, 2)
    (written,) = (tmp_path / "csv").iterdir()
    assert written.name == "two-Scenes.csv"
    with open(written, newline="") as file:
        assert [(row["Start Frame"], row["End Frame"]) for row in csv.DictReader(file)] == [("1", "20"), ("21", "48")]


def test_csv_on_stdout_is_of_one_file(split: Command, folder: Path) -> None:
    code, out, err = split(folder, "--csv", "-")
    assert (code, out) == (2, "")
    assert "give --csv a folder" in err
    code, out, err = split(folder / "broken.mp4", "--csv", "-")
    assert (code, out) == (1, "")
    assert "truncated" in err


def test_thumbnails_are_jpegs_of_each_scene(split: Command, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    still = write_image(tmp_path / "other/two.png", scene=4)
    assert split(folder / "two.mp4", still, "--thumbnails", tmp_path / "out")[0] == 0
    (found,) = find_scenes(*read_arguments([str(folder / "two.mp4")]))
    middles = [round(16 * scene.frame_times_s[len(scene.frame_times_s) // 2]) for scene in found.scenes]
    names = ["two-Scene-001.jpg", "two-Scene-002.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["two-2-Scene-001.jpg", *names]
    pictures = decoded(folder / "two.mp4")[1]
    for name, middle in zip(names, middles, strict=True):
        with Image.open(tmp_path / "out" / name) as image:
            assert (image.format, image.size) == ("JPEG", (WIDTH, HEIGHT))
            off = [np.abs(np.asarray(image).astype(int) - picture).mean() for picture in pictures]
        assert abs(int(np.argmin(off)) - middle) <= 1
        assert min(off) < 6


@pytest.mark.parametrize(("matrix", "mirrored", "rotation"), MATRICES)
def test_rotation_turns_the_stored_picture_into_the_shown_one(
    scan: Scan, tmp_path: Path, matrix: tuple[int, int, int, int], mirrored: bool, rotation: int
) -> None:
    path = set_matrix(write_video(tmp_path / "turned.mp4", shots([6])), *matrix)
    facts, arrays = scan(path, frame_side_px=HEIGHT)
    stored = decoded(path)[1][0]
    turned = np.rot90(stored[:, ::-1] if mirrored else stored, -rotation // 90)
    assert facts["rotation"] == rotation
    assert np.abs(arrays["0"][0].astype(int) - turned).mean() < 3


def test_rotation_is_in_the_json_and_sizes_are_upright(split: Command, tmp_path: Path) -> None:
    path = set_matrix(write_video(tmp_path / "turned.mp4", shots([6])), 0, 1, -1, 0)
    (line,) = lines(split(path, "--json")[1])
    assert [line[name] for name in ("width", "height", "rotation")] == [HEIGHT, WIDTH, 90]


def test_a_still_image_is_one_scene_that_is_not_turned(split: Command, tmp_path: Path) -> None:
    (line,) = lines(split(write_image(tmp_path / "still.png"), "--json")[1])
    assert [line[name] for name in ("frames", "rotation", "failure")] == [1, 0, None]


def test_long_shots_stay_whole_unless_a_longest_is_asked_for(split: Command, tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", shots([48]), fps=2)
    whole, divided = (next(lines(split(path, "--json", *more)[1]))["scenes"] for more in ([], ["split.max_clip_s=8"]))
    assert isinstance(whole, list)
    assert isinstance(divided, list)
    assert (len(whole), len(divided)) == (1, 3)


def test_scenes_are_the_clips_of_the_split_stage(folder: Path) -> None:
    sources, config = read_arguments([str(folder / "two.mp4"), "split.max_clip_s=1"])
    (found,) = find_scenes(sources, config)
    stage = Split(chunk=8, config=SplitConfig(max_clip_s=1.0))
    (outcome,) = stage.process(sources)
    stage.close()
    assert found.scenes == outcome.result.clips
    assert len(found.scenes) == 4


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("split.max_clp_s=3", "'max_clip_s'"),
        ("split.max_clip_s=long", "split.max_clip_s"),
        ("split.threshold=-1", "split.threshold must be positive"),
        ("max_clip_s=3", "split.key=value"),
        ("pack.length=3", "split.key=value"),
        ("/nowhere.mp4", "no such input: /nowhere.mp4"),
    ],
)
def test_a_mistake_is_one_line(split: Command, folder: Path, argument: str, told: str) -> None:
    code, out, err = split(folder / "two.mp4", argument)
    (line,) = err.strip().splitlines()
    assert (code, out) == (2, "")
    assert line.startswith("clipmill: ")
    assert told in line


def test_overrides_alone_are_no_files(split: Command) -> None:
    assert split("split.max_clip_s=3") == (2, "", "clipmill: split needs at least one file, folder, glob or URL\n")


def test_a_file_that_looks_like_an_override_is_named_with_its_folder(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "take=2.mp4"
    path.write_bytes((folder / "two.mp4").read_bytes())
    assert [source.uri for source in read_arguments([str(path), "split.max_clip_s=3"])[0]] == [str(path)]


def test_names_of_files_about_files_are_unique() -> None:
    uris = ["/a/clip.mp4", "/b/clip.mkv", "/b/clip-2.mp4", "https://host/x/clip.mp4?key=1", "/c/\x1b[1m.mp4", "/d/" + "é" * 90]
    names = unique_names(uris)
    assert names == ["clip", "clip-2", "clip-2-2", "clip-3", "[1m", "é" * 50]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "00:00:00.000"),
        (59.9996, "00:01:00.000"),
        (3661.0025, "01:01:01.002"),
        (360_000, "100:00:00.000"),
        (-0.5, "-00:00:00.500"),
    ],
)
def test_times_are_told_to_the_millisecond(seconds: float, told: str) -> None:
    assert timecode(seconds) == told
