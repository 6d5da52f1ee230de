"""Rules over numbers: their order, their bounds, and what a rejection tells."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import RuleConfig, RunConfig, SelectConfig
from pipeline.records import Clip
from pipeline.select import Rejection, is_free, rejection, rules_of
from pipeline.stages.score import SENTENCES, sentences, title_similarity

MakeClip = Callable[..., Clip]
Configure = Callable[..., RunConfig]


def test_free_rules_are_asked_first_and_otherwise_the_order_is_the_configs(configure: Configure) -> None:
    config = configure()
    values = ["consistency", "motion", "title_card", "aspect"]
    rules = [RuleConfig(value=value, min=0.0) for value in values]
    asked = rules_of(replace(config, select=SelectConfig(rules=rules)))
    assert [rule.value for rule in asked] == ["duration_s", "motion", "aspect", "consistency", "title_card"]


def test_without_scores_only_free_rules_are_asked(make_clip: MakeClip) -> None:
    rules = [RuleConfig(value="consistency", min=2.0, missing="reject"), RuleConfig(value="luma", max=0.9)]
    assert not is_free(rules[0])
    assert rejection(make_clip(), None, rules) is None
    assert rejection(make_clip(), {}, rules) == Rejection(rule="consistency", value=None, threshold=None)


def test_the_first_broken_rule_is_told_with_value_and_threshold(make_clip: MakeClip) -> None:
    rules = [
        RuleConfig(value="luma", min=0.1),
        RuleConfig(value="motion", max=0.05, name="shaky"),
        RuleConfig(value="contrast", min=0.9),
    ]
    assert rejection(make_clip(), {}, rules) == Rejection(rule="shaky", value=0.1, threshold=0.05)


def test_a_rule_without_a_name_is_counted_under_its_value(make_clip: MakeClip) -> None:
    assert rejection(make_clip(), {}, [RuleConfig(value="luma", min=0.6)]) == Rejection(rule="luma", value=0.5, threshold=0.6)


@given(value=st.floats(allow_nan=True), low=st.floats(allow_nan=False), high=st.floats(allow_nan=False))
def test_bounds_are_inclusive_and_a_nan_breaks_them(make_clip: MakeClip, value: float, low: float, high: float) -> None:
    broken = rejection(make_clip(), {"probe": value}, [RuleConfig(value="probe", min=low, max=high)])
    assert (broken is None) == (low <= value <= high)
    if broken:
        assert broken.threshold == (high if value >= low else low)


@pytest.mark.parametrize("bound", ["min", "max"])
def test_a_nan_is_rejected_by_either_bound_alone(make_clip: MakeClip, bound: str) -> None:
    broken = rejection(make_clip(), {"probe": math.nan}, [RuleConfig(**{"value": "probe", bound: 0.5})])
    assert broken is not None
    assert broken.threshold == 0.5


@pytest.mark.parametrize(("missing", "kept"), [("keep", True), ("reject", False)])
def test_a_missing_value_is_kept_or_rejected_as_the_rule_says(make_clip: MakeClip, missing: str, kept: bool) -> None:
    rule = RuleConfig(**{"value": "title_similarity", "min": 0.2, "missing": missing})
    assert (rejection(make_clip(), {}, [rule]) is None) == kept


def test_images_pass_rules_over_duration_and_frame_rate(make_clip: MakeClip) -> None:
    rules = [RuleConfig(value="duration_s", min=1.0), RuleConfig(value="fps", min=5.0)]
    assert rejection(make_clip(fps=0.0, end_s=0.0), None, rules) is None
    assert rejection(make_clip(end_s=0.5), None, rules) == Rejection(rule="duration_s", value=0.5, threshold=1.0)


def test_clips_shorter_than_the_splitters_minimum_are_too_short(make_clip: MakeClip, configure: Configure) -> None:
    rules = rules_of(configure("split.min_clip_s=0.5"))
    assert rejection(make_clip(end_s=0.4999), None, rules) == Rejection(rule="too_short", value=0.4999, threshold=0.5)
    assert rejection(make_clip(end_s=0.5), None, rules) is None


def test_size_and_shape_of_the_picture_can_be_asked(make_clip: MakeClip) -> None:
    clip = make_clip(height_px=100, width_px=50)
    assert rejection(clip, None, [RuleConfig(value="short_side_px", min=51)]) == Rejection(
        rule="short_side_px", value=50, threshold=51
    )
    assert rejection(clip, None, [RuleConfig(value="aspect", min=0.5, max=0.5)]) is None


# ---- titles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "parts"),
    [
        ("A red circle moves left on a sky background.", ["A red circle moves left on a sky background."]),
        ("A red circle. A blue star! Why? So… yes", ["A red circle.", "A blue star!", "Why?", "So…", "yes"]),
        ("Version 2.5 of a.mp4", ["Version 2.5 of a.mp4"]),
        ("Sunset | Drone\nShots", ["Sunset", "Drone", "Shots"]),
        ("猫。犬！", ["猫。", "犬！"]),
        ("... | !!", []),
        ("", []),
    ],
)
def test_a_title_is_divided_into_its_sentences(title: str, parts: list[str]) -> None:
    assert sentences(title) == parts


def test_of_a_title_without_end_only_the_first_sentences_are_read() -> None:
    assert sentences("Go. " * 10_000) == ["Go."] * SENTENCES


def test_the_sentence_that_fits_best_counts_over_all_frames() -> None:
    frames = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert title_similarity(frames, [first]) == pytest.approx(0.8)
    assert title_similarity(frames, [second]) == pytest.approx(0.4)
    assert title_similarity(frames, [second, first]) == pytest.approx(0.8)
