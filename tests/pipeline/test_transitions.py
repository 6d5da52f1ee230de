"""Transitions: cuts to the frame, fades and dissolves with both ends, flashes passed over; on drawn scenes."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from demo.defects import DEFECTS
from demo.scenes import BACKGROUNDS, Scene, Shape, render
from pipeline.detectors import THRESHOLDS, detector
from pipeline.planes import CELLS
from pipeline.reel import CAPACITY, Transition
from pipeline.transitions import Transitions
from tests.media import shots, write_video

Pictures = NDArray[np.uint8]  # [F, Y, X, 3]
FPS, HEIGHT, WIDTH = 24, 72, 96
BLACK, WHITE = 0, 255
AT_ONCE = 16  # frames that a detector is given


def scene(
    ground: str, shape: str = "square", motion: str = "right", *, colour: str = "red", x: float = 0.5, radius: float = 0.22
) -> Scene:
    rgb = {"red": (215, 35, 40), "yellow": (240, 220, 45), "blue": (40, 75, 225)}[colour]
    drawn = Shape(shape=shape, colour=colour, motion=motion, speed="fast", radius=radius, x=x, y=0.5, angle=0.1, rgb=rgb)
    _, first, second = BACKGROUNDS[ground]
    return Scene(shapes=(drawn,), background=ground, seconds=2.0, aspect=4 / 3, texture=7, palette=(first, second))


FIRST, SECOND, THIRD = scene("grass"), scene("sunset", "star", "circle", colour="yellow"), scene("sky", "cross", "spin")


def shot(of: Scene, frames: int, *, fps: int = FPS, defect: str = "") -> Pictures:
    """The first frames of a scene, with a defect of the demo's world."""
    pictures = render(of, [number / fps for number in range(frames)], HEIGHT, WIDTH)
    return DEFECTS[defect](pictures, np.random.default_rng(3)) if defect else pictures


def dissolved(before: Pictures, after: Pictures, frames: int) -> Pictures:
    """Join two shots by a dissolve that both go on moving in."""
    share = (np.arange(1, frames + 1) / (frames + 1))[:, None, None, None]
    mixed = before[-frames:] * (1 - share) + after[:frames] * share
    return np.concatenate([before[:-frames], mixed.round().astype(np.uint8), after[frames:]])


def faded(before: Pictures, after: Pictures, frames: int, colour: int = BLACK) -> Pictures:
    """Join two shots by a fade of as many frames to a colour, and as many from it."""
    share = (np.arange(1, frames + 1) / frames)[:, None, None, None]
    out = before[-frames:] * (1 - share) + colour * share
    into = after[:frames] * share[:, ::1] + colour * (1 - share)
    return np.concatenate([before[:-frames], out.round().astype(np.uint8), into.round().astype(np.uint8), after[frames:]])


def plain(frames: int, colour: int) -> Pictures:
    return np.full((frames, HEIGHT, WIDTH, 3), colour, np.uint8)


def found(*parts: Pictures, times_s: Sequence[float] | None = None, fps: int = FPS, **options: Any) -> list[tuple[int, int]]:
    """The transitions of pictures that follow each other."""
    pictures = tiny(np.concatenate(parts))
    transitions = Transitions(**options)
    given: list[Transition] = []
    for first in range(0, len(pictures), AT_ONCE):
        few = range(first, min(len(pictures), first + AT_ONCE))
        given += transitions.take([number / fps if times_s is None else times_s[number] for number in few], pictures[few])
    return [(transition.start, transition.end) for transition in (*given, *transitions.finish())]


def tiny(pictures: Pictures) -> Pictures:
    """What a detector is given of RGB pictures."""
    return np.stack([cv2.resize(picture[..., ::-1], CELLS[::-1], interpolation=cv2.INTER_AREA) for picture in pictures])


# ---- cuts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [12, 24, 60])
def test_a_hard_cut_is_found_to_the_frame(fps: int) -> None:
    assert found(shot(FIRST, 2 * fps, fps=fps), shot(SECOND, 2 * fps, fps=fps), fps=fps) == [(2 * fps, 2 * fps)]


@pytest.mark.parametrize("motion", ["left", "up", "circle", "bounce", "grow", "shrink", "spin", "still"])
@pytest.mark.parametrize("ground", ["gray", "checkered"])
def test_nothing_is_found_in_a_shot_whatever_moves(ground: str, motion: str) -> None:
    assert found(shot(scene(ground, "star", motion), 96)) == []


@pytest.mark.parametrize("fps", [12, 30])
def test_cuts_around_shots_of_a_third_of_a_second_are_found(fps: int) -> None:
    brief = round(fps / 3)
    parts = [shot(of, brief, fps=fps) for of in (SECOND, THIRD, scene("striped"))]
    starts = [fps, fps + brief, fps + 2 * brief, fps + 3 * brief]
    assert found(shot(FIRST, fps, fps=fps), *parts, shot(scene("navy"), fps, fps=fps), fps=fps) == [(at, at) for at in starts]


@pytest.mark.parametrize("defect", ["too_dark", "washed_out", "blurred"])
def test_spoiled_shots_have_cuts_around_them_and_none_inside(defect: str) -> None:
    parts = [shot(FIRST, 48), shot(SECOND, 48, defect=defect), shot(THIRD, 48)]
    assert found(*parts) == [(48, 48), (96, 96)]


@pytest.mark.parametrize("defect", ["too_dark", "washed_out", "blurred"])
def test_a_cut_between_two_spoiled_shots_is_a_cut(defect: str) -> None:
    assert found(shot(FIRST, 48, defect=defect), shot(SECOND, 48, defect=defect)) == [(48, 48)]


def test_a_cut_between_scenes_on_one_background_is_a_cut() -> None:
    first, second = scene("gray", x=0.4, radius=0.3), scene("gray", "circle", colour="blue", x=0.9, radius=0.3)
    assert found(shot(first, 48), shot(second, 48)) == [(48, 48)]


def before_a_wall(places: Sequence[float], seed: int = 0) -> Pictures:
    """Somebody hardly lighter than the wall, but for the face, at these places of the picture's width; and grain."""
    still = shot(scene("gray", motion="still"), 1)[0].astype(np.float64)
    pictures = np.repeat(still[None], len(places), axis=0) + np.random.default_rng(seed).normal(
        0, 4, (len(places), *still.shape)
    )
    for picture, place in zip(pictures, places, strict=True):
        left = round(place * WIDTH)
        picture[6:, left : left + WIDTH // 3] += 8
        picture[12:20, left + 6 : left + 14] += 70
    return np.clip(pictures, 0, 255).astype(np.uint8)


def test_a_cut_between_two_poses_before_one_wall_is_a_cut() -> None:
    assert found(before_a_wall([0.25] * 40 + [0.45] * 40)) == [(40, 40)]


@pytest.mark.parametrize("frames", [4, 8, 16])
def test_what_moves_from_one_pose_to_the_other_is_not_cut(frames: int) -> None:
    assert found(before_a_wall([*[0.25] * 40, *np.linspace(0.25, 0.45, frames), *[0.45] * 40])) == []


@pytest.mark.parametrize("frames", [2, 40])
def test_a_picture_that_is_coded_anew_is_not_cut(frames: int) -> None:
    pictures = before_a_wall([0.25] * frames + [0.25] * frames).astype(np.int16)
    pictures[frames:] += np.random.default_rng(1).integers(-9, 10, (HEIGHT // 6, WIDTH // 6, 3)).repeat(6, 0).repeat(6, 1)
    assert found(np.clip(pictures, 0, 255).astype(np.uint8)) == []


def test_a_pose_for_a_moment_is_no_shot() -> None:
    assert found(before_a_wall([*[0.25] * 40, *[0.45] * 4, *[0.25] * 40])) == []


@pytest.mark.parametrize("of", [FIRST, SECOND, THIRD], ids=["grass", "sunset", "sky"])
@pytest.mark.parametrize(
    "place", [np.s_[54:66, 6:90], np.s_[6:34, 60:90], np.s_[24:48, 18:78]], ids=["below", "corner", "middle"]
)
def test_what_is_laid_over_a_shot_and_taken_away_is_no_cut(of: Scene, place: tuple[slice, slice]) -> None:
    pictures = shot(of, 96)
    pictures[30:66, *place] = 255 - pictures[30:66, *place] // 4
    assert found(pictures) == []


def test_what_shakes_all_the_time_is_not_cut() -> None:
    random = np.random.default_rng(0)
    still = shot(scene("checkered", motion="still"), 96)
    shaken = np.stack([np.roll(picture, random.integers(-6, 7, 2), axis=(0, 1)) for picture in still])
    assert found(shaken) == []


def test_frames_shown_twice_change_nothing() -> None:
    pictures = np.concatenate([shot(FIRST, 48), shot(SECOND, 48)])
    assert found(np.repeat(pictures, 3, axis=0), fps=3 * FPS) == [(3 * 48, 3 * 48)]


@pytest.mark.parametrize("times", [2, 3, 5])
def test_what_moves_fast_among_frames_that_are_nearly_shown_again_is_not_cut(times: int) -> None:
    """As a film at 24 frames a second is in a video at 60, when that is encoded again."""
    jumps = np.random.default_rng(1).integers(2, 4, 24).cumsum()
    wide = np.random.default_rng(2).integers(0, 256, (4, 90, 3)).astype(np.uint8).repeat(18, axis=0).repeat(16, axis=1)
    moving = np.stack([wide[:, at : at + WIDTH] for at in jumps]).repeat(times, axis=0)
    noise = np.random.default_rng(3).normal(0, 6, moving.shape)
    still = shot(scene("gray", motion="still"), 48)
    pictures = np.concatenate([still, (moving + noise).clip(0, 255).astype(np.uint8)])
    assert found(pictures, fps=12 * times) == [(48, 48)]


# ---- flashes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("fps", [12, 30])
def test_white_frames_inside_a_shot_are_no_cut(frames: int, fps: int) -> None:
    pictures = shot(FIRST, 3 * fps, fps=fps)
    pictures[fps + 3 : fps + 3 + frames] = WHITE
    assert found(pictures, fps=fps) == []


def test_a_flash_whose_two_frames_differ_a_little_is_no_cut() -> None:
    calm = shot(scene("gray", motion="still"), 80)
    assert found(calm[:40], plain(1, WHITE), plain(1, WHITE - 3), calm[40:]) == []


@pytest.mark.parametrize("fps", [12, 24, 50])
def test_a_strobe_light_is_no_cut_and_hides_none(fps: int) -> None:
    lit = shot(SECOND, 3 * fps, fps=fps, defect="flashing")
    parts = [shot(FIRST, 2 * fps, fps=fps), lit, shot(THIRD, 2 * fps, fps=fps)]
    assert found(*parts, fps=fps) == [(2 * fps, 2 * fps), (5 * fps, 5 * fps)]


@pytest.mark.parametrize("frames", [1, 3])
def test_a_flash_between_two_scenes_is_one_transition_without_its_frames(frames: int) -> None:
    assert found(shot(FIRST, 48), plain(frames, WHITE), shot(SECOND, 48)) == [(48, 48 + frames)]


@pytest.mark.parametrize("first", range(2, 8))
@pytest.mark.parametrize("motion", ["circle", "left"])
def test_a_strobe_light_right_beside_a_cut_does_not_blur_it(first: int, motion: str) -> None:
    lit = shot(scene("sky", motion=motion), 72, defect="flashing")
    for part in (lit[first:], lit[:-first]):
        assert found(shot(FIRST, 48), part, shot(SECOND, 48)) == [(48, 48), (120 - first, 120 - first)]


@pytest.mark.parametrize("ground", ["gray", "sunset"])
@pytest.mark.parametrize("fps", [12, 24])
def test_a_flash_that_comes_and_goes_over_two_frames_is_one_transition(fps: int, ground: str) -> None:
    before, after = (shot(scene(name, shape), 2 * fps, fps=fps) for name, shape in ((ground, "circle"), ("striped", "cross")))
    lit = [(0.4 * pictures + 0.6 * WHITE).round().astype(np.uint8) for pictures in (before[-1:], after[:1])]
    parts = before[:-1], lit[0], plain(1, WHITE), lit[1], after[1:]
    assert found(*parts, fps=fps) == [(2 * fps - 1, 2 * fps + 2)]


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("fps", [9, 11])
def test_a_flash_that_has_most_frames_near_it_at_a_low_rate_is_one_transition(fps: int, frames: int) -> None:
    before, after = shot(FIRST, 2 * fps, fps=fps), shot(SECOND, 2 * fps, fps=fps)
    half = [(pictures // 2 + 128).astype(np.uint8) for pictures in (before[-1:], after[:1])]
    parts = before[:-1], half[0], plain(frames, WHITE), half[1], after[1:]
    assert found(*parts, fps=fps) == [(2 * fps - 1, 2 * fps + 1 + frames)]


@pytest.mark.parametrize("last", [2, 3, 4])
@pytest.mark.parametrize(("lit", "fps"), [(3, 15), (4, 12)])
def test_a_source_that_ends_under_a_strobe_light_has_no_cut_in_its_last_frames(lit: int, fps: int, last: int) -> None:
    pictures = shot(scene("gray", "star"), 57 + last, fps=fps)
    for first in range(57 - 7 * lit, 57, 2 * lit):
        pictures[first : first + lit] = (pictures[first : first + lit] // 3 + 170).astype(np.uint8)
    pictures[57:] = np.roll(pictures[57:], 12, axis=2)  # it moves on while it is lit
    assert found(pictures, fps=fps) == []


@pytest.mark.parametrize("held", [4, 5])
def test_cuts_that_follow_each_other_for_ever_end_before_they_are_forgotten(held: int) -> None:
    """No shot lies between any two of them, so they are one transition, which outgrows what is remembered."""
    drawn = np.random.default_rng(0).integers(0, 256, (1, *CELLS, 3), dtype=np.uint8)
    pictures = np.concatenate([drawn, np.full_like(drawn, WHITE)]).repeat(held, axis=0)
    detect, given = Transitions(min_shot_frames=10), []
    for first in range(0, 3 * CAPACITY, len(pictures)):
        given += detect.take([(first + number) / 5 for number in range(len(pictures))], pictures)
    given += detect.finish()
    assert len(given) > 1
    assert all(before.end <= after.start for before, after in pairwise(given))


@pytest.mark.parametrize("pace", [3, 4, 6])
def test_a_short_strobe_at_a_high_rate_is_no_cut(pace: int) -> None:
    pictures = shot(FIRST, 100, fps=50)
    pictures[40:62:pace] = WHITE
    assert found(pictures, fps=50) == []


@pytest.mark.parametrize("fps", [12, 24, 50])
@pytest.mark.parametrize("of", [FIRST, SECOND, THIRD], ids=["grass", "sunset", "sky"])
def test_a_flash_that_goes_out_over_some_frames_is_no_cut(of: Scene, fps: int) -> None:
    pictures = shot(of, 72, fps=fps).astype(np.float64)
    for number, gain in enumerate((3.0, 2.2, 1.5, 1.2), 30):
        pictures[number] = pictures[number] * gain + 40 * (gain - 1)
    assert found(pictures.clip(0, 255).astype(np.uint8), fps=fps) == []


# ---- titles over shots in which much moves ------------------------------------------------------------------------------


def restless(seed: int, frames: int, rows: int, pace: int) -> Pictures:
    """A dark room, above which so many rows of something pass by."""
    rng = np.random.default_rng(seed)
    room = cv2.resize(rng.uniform(10, 70, (4, 6, 3)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    passing = cv2.resize(rng.uniform(0, 160, (3, 60, 3)).astype(np.float32), (720, rows), interpolation=cv2.INTER_LINEAR)
    pictures = np.stack([room] * frames)
    for number, picture in enumerate(pictures):
        picture[:rows] = passing[:, pace * number :][:, :WIDTH]
    return pictures.astype(np.uint8)


@pytest.mark.parametrize("rows", [18, 24])
@pytest.mark.parametrize("seed", range(4))
def test_a_title_over_a_shot_in_which_much_moves_is_no_cut(seed: int, rows: int) -> None:
    pictures = restless(seed, 90, rows, 6)
    pictures[30:60, 48:63, 20:78] = 230
    assert found(pictures) == []


@pytest.mark.parametrize("rows", [18, 24])
@pytest.mark.parametrize("seed", range(4))
def test_a_cut_between_shots_in_which_much_moves_is_found(seed: int, rows: int) -> None:
    assert found(restless(seed, 45, rows, 6), 255 - restless(seed + 10, 45, rows, 6)) == [(45, 45)]


def swept(seed: int, frames: int, pace: int) -> Pictures:
    """A camera that sweeps over a soft ground."""
    coarse = np.random.default_rng(seed).uniform(10, 120, (2, 14, 3)).astype(np.float32)
    ground = cv2.resize(coarse, (720, HEIGHT), interpolation=cv2.INTER_LINEAR)
    return np.stack([ground[:, pace * number :][:, :WIDTH] for number in range(frames)]).astype(np.uint8)


@pytest.mark.parametrize("pace", [3, 4])
@pytest.mark.parametrize("seed", [0, 3, 5, 6, 16])
def test_a_flash_over_a_shot_in_which_all_moves_is_no_cut(seed: int, pace: int) -> None:
    pictures = swept(seed, 90, pace).astype(np.float64)
    for number, gain in enumerate((3.0, 2.2, 1.5, 1.2), 40):
        pictures[number] = pictures[number] * gain + 40 * (gain - 1)
    assert found(pictures.clip(0, 255).astype(np.uint8)) == []


@pytest.mark.parametrize("frozen", [4, 5])
@pytest.mark.parametrize("seed", range(8))
def test_a_shot_that_freezes_and_catches_up_goes_on(seed: int, frozen: int) -> None:
    pictures = swept(seed, 90, 5)
    pictures[40 : 40 + frozen] = pictures[40]
    assert not any(span == (40 + frozen, 40 + frozen) for span in found(pictures))


@pytest.mark.parametrize("frozen", [5, 6])
@pytest.mark.parametrize("seed", range(8))
def test_a_cut_after_a_freeze_is_found(seed: int, frozen: int) -> None:
    pictures = np.concatenate([swept(seed, 40 + frozen, 2), 255 - swept(seed + 20, 48, 2)])
    pictures[40 : 40 + frozen] = pictures[40]
    assert (40 + frozen, 40 + frozen) in found(pictures)


@pytest.mark.parametrize("seed", [0, 2, 3, 4, 5])
def test_a_short_fade_through_white_is_no_flash(seed: int) -> None:
    ((start, end),) = found(faded(swept(seed, 45, 1), 255 - swept(seed + 20, 45, 1), 3, WHITE))
    assert start <= 45 <= end


def test_a_cut_at_the_end_of_a_strobe_light_is_found() -> None:
    strobe = (shot(FIRST, 48) // 2).astype(np.float64)
    strobe[np.arange(48) % 6 >= 3] += 90
    assert found(strobe.clip(0, 255).astype(np.uint8), shot(SECOND, 48)) == [(48, 48)]


# ---- wipes -------------------------------------------------------------------------------------------------------------


def wiped(frames: int, right: float, down: float, first: Scene = FIRST, second: Scene = SECOND) -> Pictures:
    """48 frames of a shot, so many of a wipe towards one side, and 48 of the next shot; both go on meanwhile."""
    old, new = shot(first, 48 + frames), shot(second, frames + 48)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    order = right * columns / WIDTH + down * rows / HEIGHT
    order = (order - order.min()) / (order.max() - order.min())
    shares = np.arange(1, frames + 1) / (frames + 1)
    middle = np.where((order < shares[:, None, None])[..., None], new[:frames], old[48:])
    return np.concatenate([old[:48], middle, new[frames:]])


@pytest.mark.parametrize("frames", [8, 14, 24])
@pytest.mark.parametrize(("right", "down"), [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1)])
def test_a_wipe_is_found_with_both_ends(frames: int, right: float, down: float) -> None:
    ((start, end),) = found(wiped(frames, right, down))
    assert abs(start - 48) <= 2
    assert abs(end - 48 - frames) <= 2


def turned(frames: int, first: Scene = FIRST, second: Scene = SECOND) -> Pictures:
    """A camera that turns from one scene to another beside it."""
    wide = np.concatenate([shot(first, 1)[0], shot(second, 1)[0]], axis=1)
    places = np.concatenate([np.zeros(48), np.linspace(0, WIDTH, frames + 2)[1:-1], np.full(48, WIDTH)]).round().astype(int)
    return np.stack([wide[:, left : left + WIDTH] for left in places])


@pytest.mark.parametrize("frames", [16, 24, 40])
def test_a_camera_that_turns_is_no_wipe(frames: int) -> None:
    assert found(turned(frames)) == []


@pytest.mark.parametrize("frames", [8, 16])
def test_what_passes_before_the_camera_is_no_wipe(frames: int) -> None:
    pictures = shot(FIRST, 96)
    for number in range(2 * frames):
        left, right = (round(WIDTH * (number / frames - late)) for late in (1, 0))
        pictures[40 + number, :, max(0, left) : max(0, right)] = 90
    assert found(pictures) == []


# ---- fades and dissolves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [12, 24, 60])
@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.5])
def test_a_dissolve_has_the_frames_in_which_both_shots_show(fps: int, seconds: float) -> None:
    frames = round(fps * seconds)
    joined = dissolved(shot(FIRST, 2 * fps + frames, fps=fps), shot(SECOND, 2 * fps + frames, fps=fps), frames)
    ((start, end),) = found(joined, fps=fps)
    assert (start / fps, end / fps) == pytest.approx((2, 2 + seconds), abs=0.2)


@pytest.mark.parametrize(("first", "second"), [("gray", "striped"), ("sunset", "navy"), ("sunset", "checkered")])
def test_a_dissolve_between_broad_bars_is_found(first: str, second: str) -> None:
    mixed = dissolved(shot(scene(first), 48), shot(scene(second, "star"), 48), 16)
    mixed[:, :, :19] = mixed[:, :, -19:] = BLACK
    ((start, end),) = found(mixed)
    assert abs(start - 32) <= 1
    assert abs(end - 48) <= 1


def test_a_picture_of_which_most_hardly_changes_while_the_rest_does_ends_nothing() -> None:
    share = np.clip((np.arange(96) - 32) / 30, 0, 1)[:, None, None, None]
    before, after = np.full((HEIGHT, WIDTH, 3), 100.0), np.full((HEIGHT, WIDTH, 3), 107.0)
    edge = WIDTH * 7 // 16
    before[:, :edge], after[:, :edge] = 40, 220
    before[: HEIGHT // 2, :edge], after[: HEIGHT // 2, :edge] = 200, 30
    assert len(found((before * (1 - share) + after * share).round().astype(np.uint8))) <= 1


@pytest.mark.parametrize("colour", [BLACK, WHITE])
@pytest.mark.parametrize("held", [0, 12])
def test_a_fade_through_one_colour_is_one_transition_with_all_of_it(colour: int, held: int) -> None:
    before, after = shot(FIRST, 60), shot(SECOND, 60)
    joined = faded(before, after, 12, colour)
    ((start, end),) = found(joined[:60], plain(held, colour), joined[60:])
    assert (start, end) == pytest.approx((48, 72 + held), abs=2)


def test_a_fade_from_black_and_to_black_bounds_the_only_shot() -> None:
    share = np.concatenate([np.linspace(0, 1, 12), np.ones(60), np.linspace(1, 0, 12)])[:, None, None, None]
    pictures = (shot(SECOND, 84) * share).round().astype(np.uint8)
    (opening, ending) = found(plain(8, BLACK), pictures, plain(8, BLACK))
    assert opening == pytest.approx((0, 20), abs=2)
    assert ending == pytest.approx((80, 100), abs=2)


def test_a_shot_that_gets_lighter_behind_what_moves_is_one_shot() -> None:
    gain = np.concatenate([np.ones(36), np.linspace(1, 0.7, 24), np.full(36, 0.7)])[:, None, None, None]
    assert found((shot(FIRST, 96) * gain).round().astype(np.uint8)) == []


def test_a_camera_that_pans_is_no_dissolve() -> None:
    rng = np.random.default_rng(5)
    wide = np.kron(rng.integers(0, 256, (6, 40, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    offsets = np.clip(np.arange(96) - 30, 0, 36) * 10
    assert found(np.stack([wide[:, at : at + WIDTH] for at in offsets])) == []


def panned(seed: int, frames: int) -> Pictures:
    """What a camera sees that pans all the time, by a column every other frame."""
    wide = np.random.default_rng(seed).integers(0, 256, (4, 60, 3)).astype(np.uint8).repeat(18, axis=0).repeat(16, axis=1)
    return np.stack([wide[:, number // 2 : number // 2 + WIDTH] for number in range(frames)])


def carded(colour: int, mark: tuple[int, int, int], frames: int) -> Pictures:
    """A card of one colour with a small mark."""
    card = plain(frames, colour)
    card[:, 28:44, 20:36] = mark
    return card


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_a_dissolve_between_shots_of_a_camera_that_moves_is_found(seed: int) -> None:
    ((start, end),) = found(dissolved(panned(seed, 72), panned(seed + 1, 72), 18))
    assert (start, end) == pytest.approx((54, 72), abs=4)


@pytest.mark.parametrize(("first", "second"), [(235, 40), (60, 250)])
def test_a_dissolve_between_two_cards_is_found(first: int, second: int) -> None:
    cards = carded(first, (200, 30, 60), 60), carded(second, (90, 140, 30), 60)[:, :, ::-1]
    ((start, end),) = found(dissolved(*cards, 16))
    assert (start, end) == pytest.approx((44, 60), abs=1)


@pytest.mark.parametrize("of", [FIRST, SECOND, THIRD], ids=["grass", "sunset", "sky"])
def test_a_dissolve_to_an_empty_scene_ends_before_something_comes_into_it(of: Scene) -> None:
    empty = (np.linspace(60, 72, WIDTH)[:, None] + np.zeros((84, HEIGHT, 1, 3))).astype(np.uint8)
    for number in range(36, 84):
        empty[number, 20:56, : min(48, 2 * (number - 36))] = 230
    ((start, end),) = found(dissolved(shot(of, 64), empty, 16))
    assert (start, end) == pytest.approx((48, 64), abs=1)


@pytest.mark.parametrize("frames", [12, 20])
def test_a_short_shot_of_little_contrast_before_a_dissolve_is_a_shot(frames: int) -> None:
    bars = (np.arange(WIDTH) // 12 % 2 * 250)[:, None] + np.zeros((60, HEIGHT, 1, 3))
    pale = np.linspace(90, 150, WIDTH)[:, None] + np.zeros((frames + 12, HEIGHT, 1, 3))
    other = shot(SECOND, 60)
    other[:, :20], other[:, -20:] = BLACK, WHITE
    first, second = found(bars.astype(np.uint8), dissolved(pale.astype(np.uint8), other, 12))
    assert first == (60, 60)
    assert second == pytest.approx((60 + frames, 72 + frames), abs=2)


@pytest.mark.parametrize(
    ("of", "gain"),
    [
        (FIRST, (1.3, 1.0, 0.75)),
        (SECOND, (1.2, 1.0, 0.8)),
        (THIRD, (1.2, 1.0, 0.8)),
        (scene("checkered"), (1.2, 1.0, 0.8)),
        (SECOND, (1.6, 1.6, 1.6)),
    ],
)
def test_light_that_changes_its_colour_or_gets_too_bright_is_no_dissolve(of: Scene, gain: tuple[float, ...]) -> None:
    share = np.clip((np.arange(96) - 36) / 16, 0, 1)[:, None, None, None]
    pictures = shot(of, 96) * (1 + (np.array(gain) - 1) * share)
    assert found(pictures.clip(0, 255).astype(np.uint8)) == []


def test_a_hard_cut_right_after_a_dissolve_is_another_transition() -> None:
    joined = dissolved(shot(FIRST, 60), shot(SECOND, 12 + 12), 12)
    first, second = found(joined, shot(THIRD, 48))
    assert first == pytest.approx((48, 60), abs=2)
    assert second == (72, 72)


# ---- time and memory ---------------------------------------------------------------------------------------------------


def test_windows_are_seconds_of_presentation_time_at_a_variable_rate() -> None:
    joined = np.concatenate([dissolved(shot(FIRST, 60), shot(SECOND, 60), 12), shot(THIRD, 48)])
    random = np.random.default_rng(1)
    kept = np.flatnonzero((random.random(len(joined)) > 0.25) | np.isin(np.arange(len(joined)), (0, 107, 108)))
    times_s = [100 + number / FPS for number in kept]
    (start, end), cut = found(joined[kept], times_s=times_s)
    assert (times_s[start] - 100, times_s[end] - 100) == pytest.approx((2, 2.5), abs=0.15)
    assert cut == (np.flatnonzero(kept == 108)[0],) * 2


def test_memory_stays_flat_and_cuts_stay_exact_in_a_long_source() -> None:
    transitions, given = Transitions(), []
    parts = [tiny(shot(of, 50)) for of in (FIRST, SECOND, THIRD)]
    for number in range(0, 6000, 10):
        pictures = parts[number // 50 % 3][number % 50 : number % 50 + 10]
        given += transitions.take([(number + i) / FPS for i in range(10)], pictures)
        assert len(transitions.reel.times) <= len(transitions.reel.levels) == CAPACITY
        assert len(transitions.cuts) + len(transitions.ramps) < 8
    given += transitions.finish()
    assert given == [Transition(start=at, end=at) for at in range(50, 6000, 50)]


def test_a_very_high_frame_rate_has_bounded_windows() -> None:
    pictures = np.concatenate([shot(FIRST, 400, fps=1000), shot(SECOND, 400, fps=1000)])
    assert found(np.repeat(pictures, 3, axis=0), fps=3000) == [(1200, 1200)]


def test_transitions_are_given_in_order_within_seconds() -> None:
    transitions = Transitions()
    pictures = tiny(np.concatenate([shot(FIRST, 60), shot(SECOND, 120)]))
    when = [number for number, picture in enumerate(pictures) if transitions.take([number / FPS], picture[None])]
    assert len(when) == 1
    assert when[0] / FPS < 60 / FPS + 5


# ---- detectors and the scan ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["transitions", "adaptive", "content"])
def test_every_detector_of_cuts_finds_a_plain_cut_behind_one_interface(name: str) -> None:
    used = detector(name, THRESHOLDS[name], 3)
    pictures = np.stack([cv2.resize(picture[..., ::-1], used.size[::-1]) for picture in shots([20, 20])])
    given = [each for number, picture in enumerate(pictures) for each in used.take([number / 16], picture[None])]
    assert [*given, *used.finish()] == [Transition(start=20, end=20)]


def test_the_threshold_detector_finds_a_cut_in_the_black_between_two_shots() -> None:
    used = detector("threshold", THRESHOLDS["threshold"], 3)
    pictures = np.concatenate([shot(FIRST, 20), plain(10, BLACK), shot(SECOND, 20)])
    given = [each for number, picture in enumerate(pictures) for each in used.take([number / FPS], picture[None])]
    (cut,) = [*given, *used.finish()]
    assert 20 <= cut.start == cut.end <= 30


@pytest.mark.parametrize("by", ["dissolve", "wipe"])
def test_clips_leave_out_the_frames_of_what_joins_them(scan: Any, tmp_path: Path, by: str) -> None:
    joined = dissolved(shot(FIRST, 60), shot(SECOND, 60), 12) if by == "dissolve" else wiped(12, 1, 0)
    facts, _ = scan(write_video(tmp_path / "a.mp4", joined, fps=FPS))
    before, after = facts["clips"]
    assert (before["end_frame"], after["start_frame"]) == pytest.approx((48, 60), abs=2)
    assert (before["end_s"], after["start_s"]) == pytest.approx((2, 2.5), abs=0.1)
    assert (before["start_frame"], after["end_frame"], facts["frames"]) == (0, 108, 108)
    assert all(before["end_s"] > time_s for time_s in before["frame_times_s"])
    assert all(after["start_s"] <= time_s for time_s in after["frame_times_s"])


def test_a_scan_cuts_with_the_detector_that_it_is_told(scan: Any, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", dissolved(shot(FIRST, 60), shot(SECOND, 60), 12), fps=FPS)
    ours, theirs = scan(path)[0]["clips"], scan(path, detector="content", threshold=27.0)[0]["clips"]
    assert len(ours) == 2
    assert all(left["end_frame"] == right["start_frame"] for left, right in pairwise(theirs))


def test_a_source_that_is_all_transition_is_one_clip(scan: Any, tmp_path: Path) -> None:
    share = np.concatenate([np.linspace(0, 1, 9), np.linspace(1, 0, 9)])[:, None, None, None]
    path = write_video(tmp_path / "a.mp4", (shot(SECOND, 18) * share).round().astype(np.uint8), fps=FPS)
    assert scan(path)[0]["clips"]


# ---- whatever comes ----------------------------------------------------------------------------------------------------


def anything(rng: np.random.Generator) -> tuple[list[float], Pictures]:
    """Times at any rate, and tiny pictures of a few scenes, noise, and some of a flash, a freeze, one colour and a title."""
    count, fps = int(rng.choice([1, 2, 3, 5, 9, 17, 40, 90, 200, 400])), int(rng.choice([5, 8, 15, 24, 30, 60, 120]))
    scenes = rng.uniform(0, 255, (rng.integers(1, 6), *CELLS, 3))
    made = scenes[np.sort(rng.integers(0, len(scenes), count))]
    made = made + rng.normal(0, rng.choice([0, 0.5, 3]), made.shape)
    pace = rng.choice([0, 0, 0.2, 1])
    made = np.stack([np.roll(picture, int(pace * number), axis=1) for number, picture in enumerate(made)])
    for _ in range(rng.integers(0, 5)):
        some = slice(at := int(rng.integers(0, count)), at + int(rng.integers(1, 9)))
        kind = rng.integers(0, 4)
        if kind == 0:
            made[some] = made[some] * rng.uniform(1, 3) + rng.uniform(0, 80)
        elif kind == 1:
            made[some] = made[at]
        elif kind == 2:
            made[some] = rng.choice([0, 255])
        else:
            made[some, 2:6, 3:9] = rng.uniform(0, 255)
    times = np.cumsum(rng.uniform(0.2, 1.8, count) / fps) if rng.random() < 0.4 else np.arange(count) / fps
    return times.tolist(), made.clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("seed", [*range(60), 1915, 2996, 3049, 5317])
def test_whatever_comes_transitions_are_in_order(seed: int) -> None:
    times_s, pictures = anything(rng := np.random.default_rng(seed))
    detect, some = Transitions(min_shot_frames=int(rng.integers(1, 9))), int(rng.choice([1, 7, 64, 128]))
    given: list[Transition] = []
    for first in range(0, len(pictures), some):
        given += detect.take(times_s[first : first + some], pictures[first : first + some])
    borders = [0, *(frame for found in [*given, *detect.finish()] for frame in (found.start, found.end)), len(pictures)]
    assert borders == sorted(borders)
