"""Compiled loops: to the bit what NumPy and OpenCV give, and one clear error for what would lead out of a buffer."""

import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import measures, native
from pipeline.crop import Box, Lines
from pipeline.cuts import cut_strengths
from pipeline.media import UPRIGHT
from pipeline.planes import CELLS, FRAMES, CompiledStrip, Developed, Held, Planes, Strip, halved, hold, strip
from pipeline.ramps import directions
from pipeline.reel import Around, Reel
from pipeline.scan import ScanOptions, scan
from pipeline.wipes import stepping
from tests.media import shots, write_video

compiled = pytest.mark.skipif(native.compiled is None, reason="the loops are not compiled")
OPTIONS = ScanOptions(
    threshold=3.0, min_shot_frames=3, max_clip_s=10.0, frames_per_clip=8, frame_side_px=64, max_pixels=1 << 24, threads=1
)


def both_ways(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> tuple[Any, Any]:
    with_loops = work()
    with monkeypatch.context() as patch:
        patch.setattr(native, "compiled", None)
        return with_loops, work()


def told_every_way(monkeypatch: pytest.MonkeyPatch, portable: Any, work: Callable[[], Any]) -> Any:
    """Return what is told with wide registers; without them, and without compiled loops, it is the same."""
    told, told_too = both_ways(monkeypatch, work)
    with monkeypatch.context() as patch:
        patch.setattr(native, "compiled", portable)
        assert work() == told_too == told
    return told


def random_planes(rng: np.random.Generator, depth: int, full: bool) -> Planes:
    height, width = int(rng.integers(2, 500)), int(rng.integers(2, 1000))
    few = max(1, height // 2), max(1, width // 2)
    kind = np.dtype(np.uint8 if depth == 8 else "<u2")
    luma, blue, red = (rng.integers(0, 1 << depth, size).astype(kind) for size in ((height, width), few, few))
    return Planes(luma, blue, red, depth, full, 1, 1)


def test_a_machine_that_can_compile_them_has_them() -> None:
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if native.compiled is None and shutil.which("cc") and headers.exists():
        pytest.fail("pipeline/_native.c was not compiled when the project was installed: run `make install`")


@compiled
@pytest.mark.parametrize("depth", [8, 10, 12])
@pytest.mark.parametrize("full", [False, True])
def test_a_strip_shows_the_same(depth: int, full: bool, monkeypatch: pytest.MonkeyPatch, portable: Any) -> None:
    rng = np.random.default_rng(depth)
    for _ in range(20):
        frames = [random_planes(rng, depth, full) for _ in range(5)]
        ours, theirs = (developed(made, frames) for made in (CompiledStrip(), Strip()))
        with monkeypatch.context() as patch:
            patch.setattr(native, "compiled", portable)
            without_wide_registers = developed(CompiledStrip(), frames)
        for of_ours, of_portable, of_theirs in zip(ours, without_wide_registers, theirs, strict=True):
            assert of_ours[0] == of_portable[0] == of_theirs[0]
            for name in ("pictures", "light", "change"):
                shown = getattr(of_ours[1], name)
                assert np.array_equal(shown, getattr(of_portable[1], name))
                assert np.array_equal(shown, getattr(of_theirs[1], name))


def developed(made: Strip | CompiledStrip, frames: list[Planes]) -> list[tuple[list[float], Developed]]:
    """Develop some frames, and then one more: the frame before is remembered."""
    return [([made.add(frame) for frame in some], made.develop(*CELLS)) for some in (frames[:-1], frames[-1:])]


@compiled
@pytest.mark.parametrize("wide", [False, True])
def test_colours_of_all_samples_are_the_same(wide: bool, monkeypatch: pytest.MonkeyPatch, portable: Any) -> None:
    if not wide:
        monkeypatch.setattr(native, "compiled", portable)
    for blue in range(0, 256, 3):
        luma = np.tile(np.arange(256, dtype=np.uint8), (72, 1))
        few = np.tile(np.arange(0, 256, dtype=np.uint8), (36, 1))
        frames = [Planes(luma, np.full_like(few, blue), few, 8, full, 1, 1) for full in (False, True)]
        for frame in frames:
            ours, theirs = (developed(made, [frame, frame])[0][1] for made in (CompiledStrip(), Strip()))
            assert np.array_equal(ours.pictures, theirs.pictures)
        # The change to a frame of one colour says as much of every single pixel.
        plain = Planes(np.full_like(luma, 16), np.full_like(few, 128), np.full_like(few, 128), 8, False, 1, 1)
        ours, theirs = (developed(made, [plain, frames[0], plain])[0][1] for made in (CompiledStrip(), Strip()))
        assert np.array_equal(ours.change, theirs.change)


def test_a_strip_of_other_pictures_is_not_compiled() -> None:
    assert isinstance(strip((72, 128)), Strip)


@compiled
@pytest.mark.parametrize("depth", [8, 10])
def test_lines_and_halves_of_a_held_frame_are_the_same(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(depth)
    for number in range(60):
        planes = random_planes(rng, depth, number % 2 == 0)
        if number % 3 == 0:  # else its edges are light, and it has no lines
            planes.luma[: planes.luma.shape[0] // 3] >>= 5
            planes.luma[:, : planes.luma.shape[1] // 4] >>= 5
        held, held_too = both_ways(monkeypatch, lambda planes=planes: hold(planes, planes.luma.shape, UPRIGHT, 24))
        assert all(map(np.array_equal, held.planes, held_too.planes))
        assert same_lines(held.lines, held_too.lines)


def same_lines(lines: Lines, others: Lines) -> bool:
    same = np.array_equal(lines.rows, others.rows) and np.array_equal(lines.columns, others.columns)
    return same and lines.open == others.open


def some_frames(rng: np.random.Generator) -> tuple[list[float], NDArray[np.uint8]]:
    """Make times at any rate, and tiny pictures with cuts, flashes, noise, repeats and frames of one colour."""
    count = int(rng.integers(3, 400))
    steps = rng.choice([0.002, 0.02, 0.04, 0.1, 0.5, 2.0], count, p=[0.1, 0.2, 0.4, 0.2, 0.08, 0.02])
    scenes = rng.integers(0, 256, (4, *CELLS, 3)).astype(np.float64)
    scenes[0] = 128.0
    chosen = rng.choice(4, count, p=[0.1, 0.3, 0.3, 0.3])
    stays = rng.random(count) < rng.choice([0.3, 0.8, 0.97])
    for number in range(1, count):
        chosen[number] = chosen[number - 1] if stays[number] else chosen[number]
    noise = rng.normal(0, rng.choice([0.0, 2.0, 20.0]), (count, *CELLS, 3)) * (rng.random(count) < 0.7)[:, None, None, None]
    pictures = np.clip(scenes[chosen] + noise, 0, 255).astype(np.uint8)
    return steps.cumsum().tolist(), pictures


@compiled
def test_cuts_are_the_same(monkeypatch: pytest.MonkeyPatch, portable: Any) -> None:
    rng = np.random.default_rng(0)
    strong = 0
    for _ in range(60):
        times_s, pictures = some_frames(rng)

        def told(times_s: list[float] = times_s, pictures: NDArray[np.uint8] = pictures) -> tuple[Any, ...]:
            reel = Reel()
            for start in range(0, len(pictures), 50):
                reel.add(times_s[start : start + 50], pictures[start : start + 50])
            reel.part(1, reel.end)
            return reel.change, reel.spread, reel.apart, reel.path, cut_strengths(reel, 1, reel.end)

        ours = told_every_way(monkeypatch, portable, told)
        strong += sum(strength >= 3.0 for strength in ours[-1])
    assert strong > 200


def mixed(rng: np.random.Generator, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay dissolves of any length over tiny pictures."""
    made = pictures.astype(np.float64)
    for _ in range(len(pictures) // 40):
        length = int(rng.integers(3, 40))
        start = int(rng.integers(0, max(1, len(pictures) - length)))
        a, b = rng.integers(0, 256, (2, 1, *CELLS, 3))
        shares = np.linspace(0, 1, len(made[start : start + length]))[:, None, None, None]
        made[start : start + length] = (
            a + shares * (b - a) + rng.normal(0, rng.choice([0, 3]), made[start : start + length].shape)
        )
    return np.clip(made, 0, 255).astype(np.uint8)


@compiled
def test_directions_are_the_same(monkeypatch: pytest.MonkeyPatch, portable: Any) -> None:
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(60):
        times_s, pictures = some_frames(rng)
        reel = Reel()
        reel.add(times_s, mixed(rng, pictures))
        # Also those whose shot begins behind them, or ends before.
        borders = np.sort(rng.integers(0, reel.end + 1, 20))
        numbers = rng.integers(1, reel.end, 200).tolist()
        lows = [int(borders[rng.integers(0, 10)]) for _ in numbers]
        around = [(n, low, max(n + 1, int(borders[rng.integers(10, 20)]))) for n, low in zip(numbers, lows, strict=True)]

        def told(reel: Reel = reel, around: list[Around] = around) -> list[Any]:
            return [(one, direction.tolist()) for one, direction in directions(reel, around)]

        ours = told_every_way(monkeypatch, portable, told)
        found += len(ours)
    assert found > 200


@compiled
def test_windows_in_which_values_step_are_the_same(monkeypatch: pytest.MonkeyPatch, portable: Any) -> None:
    rng = np.random.default_rng(2)
    found = 0
    for number in range(60):
        times_s, pictures = some_frames(rng)
        if number % 2:  # wipes, at any pace
            times_s = np.cumsum(rng.uniform(0.01, 0.06, len(pictures))).tolist()
            old, new = rng.integers(0, 256, (2, *CELLS, 3))
            grain, middle = rng.normal(0, rng.choice([0, 1, 4]), pictures.shape), int(rng.integers(0, len(pictures)))
            reached = np.arange(CELLS[1])[None, :] * rng.uniform(0, 2) + middle < np.arange(len(pictures))[:, None]
            pictures = np.clip(np.where(reached[:, None, :, None], new, old) + grain, 0, 255).astype(np.uint8)
        reel = Reel()
        reel.add(times_s, pictures)
        around = [(n, int(rng.integers(0, n + 1)), int(rng.integers(n + 1, reel.end + 1))) for n in range(0, reel.end, 3)]
        around += [(n, 0, reel.end) for n in range(0, reel.end, 5)]

        def told(reel: Reel = reel, around: list[Around] = around) -> list[Any]:
            return list(stepping(reel, around))

        ours = told_every_way(monkeypatch, portable, told)
        found += len(ours)
    assert found > 200


@compiled
def test_a_part_of_a_plane_is_halved_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = np.random.default_rng(0).integers(0, 256, (90, 77)).astype(np.uint8)
    for times in (1, 2, 5):
        small, small_too = both_ways(monkeypatch, lambda times=times: halved(plane[3:, 5:], times))
        assert small.shape == (87 >> times, 72 >> times)
        assert np.array_equal(small, small_too)


def compiled_with(option: str, path: Path) -> Any:
    include = f"-I{sysconfig.get_paths()['include']}"
    sources = map(str, Path(native.__file__).parent.glob("_*.c"))
    subprocess.run(["cc", "-O1", option, "-fPIC", "-shared", include, *sources, "-o", str(path)], check=True)
    loader = ExtensionFileLoader("pipeline._native", str(path))
    spec = spec_from_file_location("pipeline._native", path, loader=loader)
    assert spec
    return module_from_spec(spec)


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The loops as a processor without wide registers has them."""
    return compiled_with("-DPORTABLE", tmp_path_factory.mktemp("portable") / "_native.so")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The loops as a processor without registers of 512 bits has them."""
    return compiled_with("-DNARROW", tmp_path_factory.mktemp("narrow") / "_native.so")


def some_held(rng: np.random.Generator, number: int) -> tuple[Held, Box, int]:
    """Make a frame as it is held, a box in it and the side that a picture of it shall have."""
    planes = random_planes(rng, 8, number % 2 == 0)._replace(space=(1, 6, 9)[number % 3])
    if number % 4 == 0:  # chroma is as large as luma
        planes = planes._replace(blue=planes.luma[::-1], red=planes.luma[:, ::-1])
    height, width = planes.luma.shape
    held = hold(planes, (height, width * 4 if number % 5 == 0 else width), UPRIGHT, 400)
    box = 0, 0, *held.size
    if number % 3 == 0 and height > 8:
        box = 2, held.size[1] // 5, height - 5, held.size[1] // 2
    return held, box, int(rng.integers(1, 300))


@compiled
def test_pictures_are_the_same(monkeypatch: pytest.MonkeyPatch, portable: Any, narrow: Any) -> None:
    rng = np.random.default_rng(0)
    for number in range(150):
        held, box, side = some_held(rng, number)
        picture, picture_too = both_ways(monkeypatch, lambda held=held, box=box, side=side: held.picture(box, side))
        assert np.array_equal(picture, picture_too)
        with monkeypatch.context() as patch:
            for loops in (portable, narrow):
                patch.setattr(native, "compiled", loops)
                assert np.array_equal(held.picture(box, side), picture)


@compiled
def test_pictures_of_frames_of_different_sizes_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    frames = [(*(rng.integers(0, 256, size, np.uint8) for size in sizes), MATRIX) for sizes in 3 * [SIZES, SIZES[::-1]]]
    together, alone = (np.zeros((len(frames), 50, 70, 3), np.uint8) for _ in range(2))
    native.compiled.draw(frames, together)
    for number, frame in enumerate(frames):
        native.compiled.draw([frame], alone[number : number + 1])
    assert np.array_equal(together, alone)
    assert np.any(together[0] != together[1])


@compiled
def test_measures_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        pictures = some_pictures(rng, number)
        measured, measured_too = both_ways(monkeypatch, lambda pictures=pictures: measures.of_clip(view(pictures)))
        assert measured == measured_too


def some_pictures(rng: np.random.Generator, number: int) -> NDArray[np.uint8]:
    """Make noise, blurred noise, strong edges, and edges that stay, of odd and even sizes."""
    count, height, width = int(rng.integers(1, 5)), int(rng.integers(16, 110)), int(rng.integers(16, 300))
    noise = rng.integers(0, 256, (count, height, width, 3)).astype(np.uint8)
    blur = (1, 3, 9)[number % 3]
    pictures = np.stack([cv2.GaussianBlur(picture, (blur, blur), 0) for picture in noise])
    if number % 4 == 0:
        pictures = np.clip(pictures.astype(int) * 3 - 256, 0, 255).astype(np.uint8)
    if number % 5 == 0:
        pictures[:, height // 2 :] = pictures[:1, height // 2 :]
    if number % 11 == 0:
        pictures[:] = number
    return pictures


def view(pictures: NDArray[np.uint8]) -> measures.View:
    moments = np.arange(len(pictures)) / 3
    series = np.linspace(0, 1, 30)
    return measures.View(
        pictures=pictures, cells=pictures, times_s=moments, light=series, change=series, before=series[:3], seconds=1.0
    )


@compiled
def test_a_scan_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "video.mp4", shots([40, 25, 90], height=180, width=320), fps=24)

    def scanned() -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        arrays = dict[str, NDArray[Any]]()
        with path.open("rb") as file:
            return scan(file, OPTIONS, lambda name, array: arrays.update({name: array.copy()})), arrays

    (facts, arrays), (facts_too, arrays_too) = both_ways(monkeypatch, scanned)
    assert facts == facts_too
    assert len(facts["clips"]) == 3
    assert arrays.keys() == arrays_too.keys()
    assert all(np.array_equal(array, arrays_too[name]) for name, array in arrays.items())


PLANE = np.zeros((72, 128), np.uint8)
FEW = np.zeros((36, 64), np.uint8)
PLACES = np.zeros(400, np.int32)
STATE = np.zeros(16128, np.uint8)
TINY = np.zeros((12, 16, 3), np.uint8)
MATRIX = np.ones((3, 4), np.float32)
FRAME = PLANE, FEW, FEW, MATRIX
SIZES = (288, 352), (144, 176), (99, 401)  # of planes
LEVELS = np.zeros((4, 576), np.uint8)
AROUND = np.array([[1, 0, 3]])
SERIES = np.arange(4.0)


@compiled
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("add", (PLANE, FEW, FEW, PLACES[1:], 0, True, STATE, TINY)),
        ("add", (PLANE, FEW, FEW, PLACES, 0, True, STATE[::2], TINY)),
        ("add", (PLANE, FEW, FEW, PLACES, 0, True, STATE[1:], TINY)),
        ("add", (PLANE, FEW, FEW, PLACES, 0, True, STATE, TINY[1:])),
        ("add", (PLANE, FEW, FEW, PLACES - 1, 0, True, STATE, TINY)),
        ("add", (PLANE, FEW, FEW, PLACES + 72, 0, True, STATE, TINY)),
        ("add", (PLANE, FEW, FEW[0], PLACES, 0, True, STATE, TINY)),
        ("add", (PLANE, FEW, FEW.astype(np.uint32), PLACES, 0, True, STATE, TINY)),
        ("add", (PLANE[:0], FEW, FEW, PLACES, 0, True, STATE, TINY)),
        ("lines", (PLANE, 24, 0, True, np.zeros((71, 16), np.uint8), np.zeros((128, 16), np.uint8))),
        ("lines", (PLANE, 24, 0, True, np.zeros((72, 16), np.uint8), np.zeros((127, 16), np.uint8))),
        ("halve", (PLANE, 0, FEW)),
        ("halve", (PLANE, 7, FEW)),
        ("halve", (PLANE, 1, FEW[1:])),
        ("halve", (PLANE[:, ::2], 1, FEW)),
        ("halve", (PLANE.astype(np.uint16), 1, FEW)),
        *(
            ("draw", ([FRAME, frame], np.stack([TINY, TINY])))
            for frame in [
                (PLANE, FEW, FEW[:0], MATRIX),
                (PLANE, FEW, FEW[:, ::2], MATRIX),
                (PLANE.astype(np.uint16), FEW, FEW, MATRIX),
                (PLANE, FEW, FEW, MATRIX[1:]),
                (PLANE, FEW, FEW, MATRIX * 31),
                (PLANE, FEW, FEW, MATRIX * np.nan),
            ]
        ),
        ("draw", ([FRAME], TINY[None, ..., :2].copy())),
        ("draw", ([FRAME], TINY)),
        ("draw", ([FRAME], TINY[None, :0])),
        ("draw", ([FRAME], np.zeros((1, 1, 1 << 15, 3), np.uint8))),
        ("draw", ([FRAME, FRAME], TINY[None])),
        ("draw", ([FRAME], np.stack([TINY, TINY]))),
        ("compare", (TINY, LEVELS[:2], 2)),
        ("compare", (TINY, LEVELS, -1)),
        ("compare", (TINY, LEVELS, 1 << 62)),
        ("part", (SERIES, SERIES[1:], SERIES, LEVELS, 1, 3, False, 0.45, 120)),
        ("part", (SERIES, SERIES, SERIES[1:], LEVELS, 1, 3, False, 0.45, 120)),
        ("part", (SERIES, SERIES, SERIES, LEVELS[1:], 1, 3, False, 0.45, 120)),
        ("part", (SERIES, SERIES, SERIES, LEVELS, 0, 3, False, 0.45, 120)),
        ("part", (SERIES, SERIES, SERIES, LEVELS, 1, 5, False, 0.45, 120)),
        ("strengths", (SERIES, SERIES, SERIES, SERIES[1:], True, 1, 3, 0.45, 0.6, 0.12, 0.8, 120)),
        ("strengths", (SERIES, SERIES, SERIES, SERIES, True, 0, 3, 0.45, 0.6, 0.12, 0.8, 120)),
        ("strengths", (SERIES, SERIES, SERIES, SERIES, True, 1, 5, 0.45, 0.6, 0.12, 0.8, 120)),
        ("directions", (SERIES, SERIES[1:], SERIES, LEVELS, AROUND, 0.08, 1.25, 120)),
        ("directions", (SERIES, SERIES, SERIES, LEVELS[1:], AROUND, 0.08, 1.25, 120)),
        *(
            ("directions", (SERIES, SERIES, SERIES, LEVELS, np.array([around]), 0.08, 1.25, 120))
            for around in [(1, 0, 5), (1, -1, 3), (-1, 0, 3), (4, 0, 3)]
        ),
        ("stepping", (SERIES, LEVELS[1:], AROUND, 1.25, 0.25, 120)),
        *(
            ("stepping", (SERIES, LEVELS, np.array([around]), 1.25, 0.25, 120))
            for around in [(1, 0, 5), (1, -1, 3), (-1, 0, 3), (4, 0, 3)]
        ),
        ("levels", (PLANE.astype(np.uint16), 1.0)),
        ("steepness", (PLANE, PLANE, FEW, 100.0, 6)),
        ("steepness", (PLANE, PLANE, PLANE[:, ::2], 100.0, 6)),
        ("steepness", (PLANE[:1], PLANE[:1], PLANE[:1], 100.0, 6)),
        ("steepness", (PLANE, PLANE, PLANE, 100.0, 0)),
        ("lasting", (PLANE, 5, 24, 8, PLANE)),
        ("lasting", (PLANE, 1, 24, 8, FEW)),
        ("lasting", (PLANE[:2], 1, 24, 8, PLANE)),
        ("writing", (PLANE[:7], 8, 32, 7.68)),
        ("writing", (PLANE, 0, 32, 7.68)),
    ],
)
def test_what_leads_out_of_a_buffer_is_refused(name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r".{10}"):
        getattr(native.compiled, name)(*arguments)


@compiled
def test_a_full_strip_holds_as_many_frames_as_another() -> None:
    made = CompiledStrip()
    for _ in range(FRAMES):
        made.add(Planes(PLANE, FEW, FEW, 8, True, 1, 1))
    assert made.count == FRAMES
    assert len(made.develop(*CELLS).light) == FRAMES
    assert made.count == 0
