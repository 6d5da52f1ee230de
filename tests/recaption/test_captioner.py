"""The contract's shared parts: clips that are refused, the plan of batches, bad clips that are isolated."""

import dataclasses
import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recaption import PROMPTS, Prompt
from recaption.captioner import frame_problem, isolate, plan_batches

from .conftest import MakeClip

counts = st.lists(st.integers(1, 5), max_size=40).map(lambda frames: dict(enumerate(frames)))
batches = st.integers(1, 7)


def test_a_valid_clip_has_no_problem(make_clip: MakeClip) -> None:
    assert frame_problem(make_clip(0)) is None


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint16])
def test_frames_other_than_uint8_are_refused(make_clip: MakeClip, dtype: type) -> None:
    clip = make_clip(0)
    assert "must be uint8" in str(frame_problem(dataclasses.replace(clip, frames=clip.frames.astype(dtype))))


@pytest.mark.parametrize("shape", [(48, 64, 3), (4, 48, 64), (4, 48, 64, 4), (4, 3, 48, 64)])
def test_frames_of_another_shape_are_refused(make_clip: MakeClip, shape: tuple[int, ...]) -> None:
    clip = dataclasses.replace(make_clip(0), frames=np.zeros(shape, np.uint8))
    assert "must be [T, H, W, 3]" in str(frame_problem(clip))


@pytest.mark.parametrize("shape", [(0, 48, 64, 3), (4, 0, 64, 3)])
def test_a_clip_without_pixels_is_refused(make_clip: MakeClip, shape: tuple[int, ...]) -> None:
    clip = dataclasses.replace(make_clip(0), frames=np.zeros(shape, np.uint8))
    assert "no pixels" in str(frame_problem(clip))


@pytest.mark.parametrize("times_s", [(0.0, 0.5, 0.25, 0.75), (-0.1, 0.0, 0.1, 0.2), (0.0, 0.1, 0.2, 9.0)])
def test_times_that_leave_the_clip_are_refused(make_clip: MakeClip, times_s: tuple[float, ...]) -> None:
    assert "times must" in str(frame_problem(dataclasses.replace(make_clip(0), times_s=times_s)))


@pytest.mark.parametrize("moment", [math.nan, math.inf])
def test_times_that_are_no_number_are_refused(make_clip: MakeClip, moment: float) -> None:
    assert "times must" in str(frame_problem(dataclasses.replace(make_clip(0), duration_s=moment)))


def test_a_missing_time_is_refused(make_clip: MakeClip) -> None:
    clip = dataclasses.replace(make_clip(0), times_s=(0.0, 0.25, 0.5))
    assert frame_problem(clip) == "4 frames but 3 times"


@given(counts, batches)
def test_every_clip_is_in_one_batch(frame_counts: dict[int, int], batch: int) -> None:
    planned = [index for group in plan_batches(frame_counts, batch) for index in group]
    assert sorted(planned) == sorted(frame_counts)


@given(counts, batches)
def test_a_batch_has_one_frame_count_and_keeps_the_limit(frame_counts: dict[int, int], batch: int) -> None:
    for group in plan_batches(frame_counts, batch):
        assert 1 <= len(group) <= batch
        assert len({frame_counts[index] for index in group}) == 1
        assert group == sorted(group)


def test_batches_stand_in_the_order_of_their_first_clip() -> None:
    assert plan_batches({0: 8, 1: 4, 2: 8, 3: 8, 4: 4}, batch=2) == [[0, 2], [3], [1, 4]]


def _double(items: Sequence[int]) -> list[int]:
    """Double non-negative numbers; one negative number spoils the whole call."""
    if min(items) == -99:
        raise KeyError("fatal")
    if min(items) < 0:
        raise ValueError(f"{min(items)} is negative")
    return [2 * item for item in items]


@given(st.lists(st.integers(-3, 9), max_size=20))
def test_bad_items_are_replaced_and_the_others_keep_their_places(items: list[int]) -> None:
    results = isolate(_double, items, fatal=())
    assert len(results) == len(items)
    for item, result in zip(items, results, strict=True):
        assert isinstance(result, ValueError) if item < 0 else result == 2 * item


def test_a_fatal_error_is_not_isolated() -> None:
    with pytest.raises(KeyError):
        isolate(_double, [1, -99, 2], fatal=(KeyError,))


@pytest.mark.parametrize(
    "change",
    [{"id": " "}, {"text": ""}, {"max_new_tokens": 0}, {"repetition_penalty": 0.0}],
)
def test_a_prompt_out_of_range_is_refused(change: dict[str, object]) -> None:
    fields: dict[str, object] = {"id": "a.v1", "text": "Describe.", "max_new_tokens": 8} | change
    with pytest.raises(ValueError, match="prompt"):
        Prompt(**fields)  # type: ignore[arg-type]


def test_the_shipped_prompts_are_named_by_their_ids() -> None:
    assert [prompt.id for prompt in PROMPTS.values()] == list(PROMPTS) == ["short.v1", "dense.v1"]


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, recaption; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
