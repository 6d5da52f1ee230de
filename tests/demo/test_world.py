"""The world: equal configs give equal bytes, every kind of trouble occurs, and the truth is what the files decode to."""

import csv
import hashlib
import os
from collections import Counter
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from demo.drawing import ASPECTS, BROKEN, Video, World, WorldConfig, draw_world
from demo.footage import pictures
from demo.scenes import held_out
from demo.truth import FATES, FileTruth, Truth, read_truth
from demo.world import make_world, truth_of
from packing.errors import InputError
from pipeline.media import display_matrix, upright

Pictures = NDArray[np.uint8]  # [F, Y, X, 3]
DARK, LIT = 40, 30  # no decoded bar is lighter, no border of a scene darker on the average
SEEDS = range(8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished world of twelve videos."""
    return make_world(tmp_path_factory.mktemp("world"), WorldConfig(videos=12, seed=3))


@pytest.fixture(scope="module")
def decoded(folder: Path) -> dict[str, tuple[list[float], Pictures]]:
    """Times and upright RGB pictures of every frame of every video."""
    return {file.file: shown(folder / "videos" / file.file) for file in of_kind(read_truth(folder), "video")}


def shown(path: Path) -> tuple[list[float], Pictures]:
    with av.open(str(path)) as media:
        frames = list(media.decode(video=0))
    times = [float(frame.pts * frame.time_base) for frame in frames]
    return times, np.stack([upright(frame.to_ndarray(format="rgb24"), display_matrix(frame)) for frame in frames])


def of_kind(truth: Truth, kind: str) -> list[FileTruth]:
    return [file for file in truth.videos if file.kind == kind]


def nearest_aspect(ratio: float) -> Fraction:
    return min(ASPECTS, key=lambda aspect: abs(float(aspect) - ratio))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def truth_for(videos: int = 24, seed: int = 0, **options: str) -> Truth:
    return truth_of(draw_world(WorldConfig(videos=videos, seed=seed, **options)))  # type: ignore[arg-type]


def difference(first: Pictures, second: Pictures) -> float:
    return float(np.abs(first.astype(float) - second).mean())


def test_equal_configs_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (digests(make_world(tmp_path / name, WorldConfig(videos=6, seed=5))) for name in "ab")
    assert first == second
    assert {"truth.json", "titles.csv"} < first.keys()


def test_writing_a_world_leaves_the_process_scheduled_as_it_was(folder: Path) -> None:
    assert any(file.codec == "av1" for file in of_kind(read_truth(folder), "video"))  # whose encoder takes a real-time one
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_another_seed_is_another_world() -> None:
    assert truth_for(seed=1).videos != truth_for(seed=2).videos


def test_the_truth_is_read_as_it_was_written(folder: Path) -> None:
    assert read_truth(folder) == truth_for(12, 3)


def test_a_finished_world_is_left_as_it_is(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    make_world(folder, WorldConfig(videos=12, seed=3))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_world_in_the_folder_is_an_error(folder: Path) -> None:
    with pytest.raises(InputError, match="holds another world"):
        make_world(folder, WorldConfig(videos=12, seed=4))


def test_videos_of_no_world_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "mine.mp4").write_bytes(b"mine")
    with pytest.raises(InputError, match="of no world"):
        make_world(tmp_path, WorldConfig(videos=6))
    assert (tmp_path / "videos" / "mine.mp4").read_bytes() == b"mine"


def test_a_world_that_was_stopped_midway_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "truth.json.part").write_text("{")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "half.mp4").write_bytes(b"half")
    make_world(tmp_path, WorldConfig(videos=6))
    files = {path.name for path in (tmp_path / "videos").iterdir()}
    assert files == {file.file for file in read_truth(tmp_path).videos}
    assert not (tmp_path / "truth.json.part").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"videos": 5}, "world.videos must be 6 to"),
        ({"seed": -1}, "world.seed"),
        ({"difficulty": "brutal"}, "world.difficulty"),
    ],
)
def test_a_wrong_config_is_one_clear_line(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        WorldConfig(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("difficulty", ["normal", "hard"])
@pytest.mark.parametrize("seed", SEEDS)
def test_everything_occurs_in_24_videos(seed: int, difficulty: str) -> None:
    truth = truth_for(seed=seed, difficulty=difficulty)
    videos = of_kind(truth, "video")
    assert {scene.fate for _, _, scene in truth.scenes()} == set(FATES)
    assert {transition.kind for video in videos for transition in video.transitions} == {"hard", "fade", "dissolve", "flash"}
    assert {video.codec for video in videos} == {"h264", "hevc", "vp9", "av1", "mpeg4"}
    assert {nearest_aspect(video.width / video.height) for video in videos} == set(ASPECTS)
    assert {video.rotation for video in videos} == {0, 90, 180, 270}
    assert {video.vfr for video in videos} == {True, False}
    assert {video.title_matches for video in videos} == {True, False, None}
    assert {len(video.scenes) for video in videos} == {1, 2, 3, 4, 5}
    assert {file.kind for file in truth.videos} == {"video", "image", "copy", "broken"}
    assert {file.failure for file in of_kind(truth, "broken")} == {failure for _, failure in BROKEN}
    assert any(scene.crop for _, _, scene in truth.scenes())
    assert any(video.flashes for video in videos)
    assert any(video.scenes[0].start_s > 0 for video in videos)


@pytest.mark.parametrize("videos", [24, 96])
def test_about_half_of_the_scenes_are_kept_and_defects_are_even(videos: int) -> None:
    fates = Counter(scene.fate for _, _, scene in truth_for(videos).scenes())
    assert 0.45 < fates["keep"] / fates.total() < 0.56
    spoilt = [fates[fate] for fate in ("still", "too_dark", "washed_out", "blurred", "text_overlay", "watermark", "too_short")]
    assert max(spoilt) - min(spoilt) <= 1


def test_a_small_world_has_good_and_bad() -> None:
    for seed in SEEDS:
        fates = {scene.fate for _, _, scene in truth_for(6, seed).scenes()}
        assert "keep" in fates
        assert len(fates) > 3


def test_an_easy_world_has_one_shape_a_scene_and_hard_cuts() -> None:
    truth = truth_for(difficulty="easy")
    assert not any(scene.others for _, _, scene in truth.scenes())
    assert {transition.kind for file in truth.videos for transition in file.transitions} == {"hard"}
    assert sum(scene.fate == "keep" for _, _, scene in truth.scenes()) > 0.6 * len(list(truth.scenes()))


@pytest.mark.parametrize("seed", SEEDS)
def test_scenes_last_as_long_as_their_fates_say(seed: int) -> None:
    for file, number, scene in truth_for(seed=seed).scenes():
        if file.kind == "image":
            continue
        seconds = scene.end_s - scene.start_s
        if scene.fate == "too_short":
            assert 0.3 <= seconds <= 0.65
            assert {t.kind for t in file.transitions[max(0, number - 1) : number + 1]} <= {"hard"}
        else:
            assert 1.0 <= seconds <= 20.1
        if scene.fate == "slideshow":
            assert seconds <= 2.1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_duplicate_repeats_a_kept_scene_of_an_earlier_file(seed: int) -> None:
    world = draw_world(WorldConfig(seed=seed))
    by_name = {video.file: video for video in world.videos}
    truth = {file.file: file for file in truth_of(world).videos}
    copies = [(f, n, s) for f, n, s in truth_of(world).scenes() if s.fate == "duplicate"]
    assert copies
    for file, number, scene in copies:
        assert scene.duplicate_of is not None
        original = truth[scene.duplicate_of.file]
        first = original.scenes[scene.duplicate_of.scene]
        assert original.file < file.file
        assert (first.fate, original.title_matches is not False) == ("keep", True)
        assert shot(by_name[original.file], scene.duplicate_of.scene) == shot(by_name[file.file], number)
        assert abs((first.end_s - first.start_s) - (scene.end_s - scene.start_s)) < 0.2
        assert (original.codec, min(original.width, original.height)) != (file.codec, min(file.width, file.height))


def shot(video: Video, number: int) -> object:
    return video.footage.shots[number].scene


@pytest.mark.parametrize("seed", SEEDS)
def test_scenes_side_by_side_have_other_backgrounds(seed: int) -> None:
    for file in of_kind(truth_for(seed=seed), "video"):
        grounds = [scene.background for scene in file.scenes]
        assert all(a != b for a, b in pairwise(grounds))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_scene_shows_a_held_out_combination(seed: int) -> None:
    for _, _, scene in truth_for(seed=seed).scenes():
        assert not scene.combination_held_out
        assert not held_out((scene.shape, scene.colour, scene.motion, scene.background))


@pytest.mark.parametrize("seed", SEEDS)
def test_titles_say_what_scenes_show_and_mismatched_ones_nothing_of_it(seed: int) -> None:
    for file in of_kind(truth_for(seed=seed), "video"):
        if file.title_matches:
            assert file.title == " ".join(s.short for s in file.scenes if s.short in (file.title or ""))
            assert all(scene.short in file.title for scene in file.scenes if scene.fate == "keep")
        if file.title_matches is False:
            words = (file.title or "").lower().replace(".", "").split()
            assert not {w for scene in file.scenes for w in (scene.shape, scene.colour, scene.background)} & set(words)
            assert {scene.fate for scene in file.scenes} == {"title_mismatch"}


def test_titles_are_in_the_table(folder: Path) -> None:
    with open(folder / "titles.csv", newline="") as file:
        rows = {row["file"]: row["title"] for row in csv.DictReader(file)}
    assert rows == {file.file: file.title for file in read_truth(folder).videos if file.title}


def test_a_copy_equals_its_original_and_comes_after_it(folder: Path) -> None:
    for copy in of_kind(read_truth(folder), "copy"):
        assert copy.copy_of is not None
        assert copy.copy_of < copy.file
        assert (folder / "videos" / copy.file).read_bytes() == (folder / "videos" / copy.copy_of).read_bytes()


def test_frames_and_their_times_are_as_the_truth_says(folder: Path, decoded: dict[str, tuple[list[float], Pictures]]) -> None:
    world = draw_world(WorldConfig(videos=12, seed=3))
    for file, video in zip(of_kind(read_truth(folder), "video"), world.videos, strict=True):
        times, shown = decoded[file.file]
        assert times == pytest.approx(video.footage.times_s[:-1], abs=1e-6), file.file
        assert shown.shape[:3] == (file.frames, file.height, file.width)
        assert [times[scene.start_frame] for scene in file.scenes] == pytest.approx([s.start_s for s in file.scenes], abs=1e-6)


def test_a_cut_lies_where_the_picture_changes(folder: Path, decoded: dict[str, tuple[list[float], Pictures]]) -> None:
    for file in of_kind(read_truth(folder), "video"):
        shown = decoded[file.file][1]
        for cut in (t for t in file.transitions if t.kind == "hard"):
            assert cut.start_frame == cut.end_frame
            around = [difference(shown[n - 1], shown[n]) for n in (cut.start_frame - 1, cut.start_frame)]
            assert around[1] > 8, (file.file, cut)
            assert around[1] > 2 * around[0] or file.scenes[0].fate == "flashing" or around[0] > 30, (file.file, cut)


def test_fades_pass_through_black_and_flashes_through_white(
    folder: Path, decoded: dict[str, tuple[list[float], Pictures]]
) -> None:
    for file in of_kind(read_truth(folder), "video"):
        for transition in file.transitions:
            shown = decoded[file.file][1][transition.start_frame : transition.end_frame].astype(float)
            if transition.kind == "fade":
                assert shown.mean(axis=(1, 2, 3)).min() < 10
            if transition.kind == "flash":
                assert shown.mean(axis=(1, 2, 3)).max() > 245


def test_decoy_flashes_are_white_inside_a_scene(folder: Path, decoded: dict[str, tuple[list[float], Pictures]]) -> None:
    for file in of_kind(read_truth(folder), "video"):
        times, shown = decoded[file.file]
        for flash in file.flashes:
            lit = [n for n, time in enumerate(times) if flash.start_s <= time < flash.end_s]
            assert 1 <= len(lit) <= 3
            assert shown[lit].mean() > 245
            assert any(s.start_frame < lit[0] and lit[-1] < s.end_frame - 1 and s.fate == "keep" for s in file.scenes)


def test_a_crop_box_parts_the_bars_from_the_scene(folder: Path, decoded: dict[str, tuple[list[float], Pictures]]) -> None:
    boxes = [(file, scene) for file, _, scene in read_truth(folder).scenes() if scene.crop]
    assert boxes
    for file, scene in boxes:
        assert scene.crop is not None
        top, left, height, width = scene.crop
        shown = decoded[file.file][1][scene.start_frame : scene.end_frame].mean(axis=0).max(axis=-1)
        inside = np.zeros(shown.shape, bool)
        inside[top : top + height, left : left + width] = True
        assert shown[~inside].max() < DARK
        content = shown[top : top + height, left : left + width]
        assert min(content[[0, -1]].mean(), content[:, [0, -1]].mean()) > LIT
        assert (top + left) * 2 == (file.height - height) + (file.width - width)  # as much on both sides


def test_frozen_scenes_do_not_move_and_kept_ones_do() -> None:
    world = draw_world(WorldConfig(videos=24, seed=0))
    for video in world.videos:
        for shot in video.footage.shots:
            moving = any(shape.motion != "still" for shape in shot.scene.shapes)
            assert moving == (shot.fate not in ("still", "slideshow"))


def test_drawing_in_chunks_keeps_the_beat_of_a_strobe() -> None:
    video, number = first_with(draw_world(WorldConfig(videos=24, seed=0)), "flashing")
    alone = replace(video.footage, shots=(video.footage.shots[number],), joins=())
    lit = np.array([picture.mean() for picture in pictures(alone)])
    assert len(lit) > 24
    up = lit > (lit.min() + lit.max()) / 2
    assert np.array_equal(up[6:], up[:-6])


def first_with(world: World, fate: str) -> tuple[Video, int]:
    return next((v, n) for v in world.videos for n, shot in enumerate(v.footage.shots) if shot.fate == fate)


def test_the_truth_names_its_config() -> None:
    config = WorldConfig(videos=30, seed=9, difficulty="hard")
    assert truth_of(draw_world(config)).config == asdict(config)
