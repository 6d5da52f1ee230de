"""Figures have the values that one can work out by hand."""

import numpy as np
import pytest

from demo.figures import ATTRIBUTES, attributes_of, auc, caption_figures, f1, psnr_db, select_figures
from demo.matching import Pair
from demo.samples import held_out_combinations
from demo.scenes import held_out, short_text
from demo.truth import FileTruth, SceneTruth
from pipeline.records import Clip


def truth(fate: str, **facts: object) -> SceneTruth:
    attributes = {"shape": "star", "colour": "red", "motion": "left", "background": "sky", **facts}
    span = {"start_s": 0.0, "end_s": 1.0, "start_frame": 0, "end_frame": 25}
    rest = {"duplicate_of": None, "crop": None, "short": "", "dense": "", "others": (), "combination_held_out": False}
    return SceneTruth(fate=fate, **{**span, **rest, **attributes})  # type: ignore[arg-type]


def pair(deserved: str, got: str) -> Pair:
    return Pair(file=FileTruth(file="a.mp4", kind="video"), scene=truth(deserved), clip=clip(), got=got)


def clip() -> Clip:
    span = {"start_s": 0.0, "end_s": 1.0, "start_frame": 0, "end_frame": 25, "shot_start_frame": 0}
    names = {"clip_id": "0" * 32, "source_key": "1" * 32, "source_id": "2" * 32}
    return Clip(**span, **names, height_px=96, width_px=128, fps=25.0, frame_times_s=(0.0,), measures={}, crop=(0, 0, 96, 128))  # type: ignore[arg-type]


def test_every_short_caption_is_read_back_into_its_attributes() -> None:
    for motion in ATTRIBUTES["motion"]:
        combination = {"shape": "cross", "colour": "orange", "motion": motion, "background": "checkered"}
        assert attributes_of(short_text(**combination)) == combination


@pytest.mark.parametrize("caption", ["", "A dog barks.", "A red star moves left on a sky background. A red star moves left."])
def test_a_caption_worded_otherwise_names_nothing(caption: str) -> None:
    assert attributes_of(caption) == {}


def test_captions_are_counted_by_attribute() -> None:
    texts = ["A red star moves left on a sky background.", "A red cross moves left on a sky background.", "Nothing."]
    figures = caption_figures(texts, [truth("keep")] * 3)
    assert figures == {"shape": 0.3333, "colour": 0.6667, "motion": 0.6667, "background": 0.6667}


def test_auc_counts_ties_half() -> None:
    assert auc([1.0, 1.0], [0.0, 0.5]) == 1.0
    assert auc([1.0], [1.0]) == 0.5
    assert auc([0.2, 0.8], [0.5]) == 0.5
    assert auc([], [1.0]) is None


def test_f1_is_one_only_without_misses_and_false_alarms() -> None:
    assert f1(true=4, found=4, right=4) == 1.0
    assert f1(true=4, found=6, right=4) == 0.8
    assert f1(true=0, found=0, right=0) is None


def test_precision_and_recall_are_told_by_reason() -> None:
    pairs = [pair("keep", "keep"), pair("blurred", "blurred"), pair("blurred", "keep"), pair("keep", "still")]
    figures = select_figures(pairs)
    assert (figures["precision"], figures["recall"]) == (0.5, 0.5)
    assert figures["by_reason"]["blurred"] == {"precision": 1.0, "recall": 0.5, "clips": 2}
    assert figures["by_reason"]["still"] == {"precision": 0.0, "recall": None, "clips": 0}


def test_psnr_of_a_constant_error_is_known() -> None:
    black = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    assert psnr_db(black, black + 5) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr_db(black, black) == 100.0


def test_samples_are_asked_for_what_no_world_shows() -> None:
    combinations = held_out_combinations(50, seed=0)
    assert len(set(combinations)) == 50
    assert all(map(held_out, combinations))
    assert combinations == held_out_combinations(50, seed=0)
