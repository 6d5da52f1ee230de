"""Measures have the values that their docstrings promise."""

import numpy as np
import pytest

from pipeline import measures
from pipeline.measures import MEASURES, Luma


def flat(value: int) -> Luma:
    return np.full((8, 16), value, dtype=np.uint8)


def half() -> Luma:
    frame = flat(0)
    frame[:, 8:] = 255
    return frame


@pytest.mark.parametrize(("frame", "luma", "contrast"), [(flat(0), 0, 0), (flat(255), 1, 0), (half(), 0.5, 0.5)])
def test_luma_and_contrast_span_their_range(frame: Luma, luma: float, contrast: float) -> None:
    assert measures.luma(frame) == pytest.approx(luma)
    assert measures.contrast(frame) == pytest.approx(contrast)


def test_motion_is_the_mean_absolute_change_in_both_directions() -> None:
    assert measures.motion(flat(100), flat(100)) == 0
    assert measures.motion(flat(100), flat(151)) == pytest.approx(51 / 255)
    assert measures.motion(flat(151), flat(100)) == pytest.approx(51 / 255)
    assert measures.motion(flat(0), flat(255)) == 1
    assert measures.motion(half(), half()[:, ::-1]) == 1


def test_the_change_across_the_cut_belongs_to_no_clip() -> None:
    before, first, second = flat(0), flat(200), flat(251)
    values = [measures.of_frame(before, first), measures.of_frame(first, second)]
    assert measures.of_clip(values)["motion"] == pytest.approx(51 / 255)


def test_a_clip_of_one_frame_has_no_motion() -> None:
    assert measures.of_clip([measures.of_frame(flat(0), flat(200))])["motion"] == 0


def test_a_clip_has_every_measure_as_the_mean_over_its_frames() -> None:
    of_clip = measures.of_clip([measures.of_frame(flat(0), flat(0)), measures.of_frame(flat(0), flat(255))])
    assert of_clip.keys() == MEASURES.keys()
    assert of_clip["luma"] == pytest.approx(0.5)
