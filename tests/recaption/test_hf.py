"""The transformers backend on the untrained LLaVA-OneVision checkpoint, in float32 on the CPU."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from recaption import Caption, CaptionerError, CaptionFailure, ClipFrames, HFCaptioner, Prompt, load_captioner
from recaption.hf import answer_end, video_metadata

from .conftest import MakeClip

PROMPT = Prompt(id="test.v1", text="Describe the video.", max_new_tokens=12)


def load(folder: Path, **changes: object) -> HFCaptioner:
    """Load a captioner as the tests want it, or with one argument changed."""
    usual: dict[str, object] = {"revision": None, "device": "cpu", "dtype": "float32", "batch": 4}
    captioner = load_captioner(str(folder), **(usual | changes))  # type: ignore[arg-type]
    assert isinstance(captioner, HFCaptioner)
    return captioner


def texts(outcomes: list[Caption | CaptionFailure]) -> list[str]:
    """The raw texts of outcomes that all must be captions."""
    assert all(isinstance(outcome, Caption) for outcome in outcomes), outcomes
    return [outcome.raw_text for outcome in outcomes if isinstance(outcome, Caption)]


@pytest.fixture(scope="module")
def captioner(tiny_models: Path) -> HFCaptioner:
    return load(tiny_models / "captioner")


@pytest.fixture
def checkpoint(tiny_models: Path, tmp_path: Path) -> Path:
    """A copy of the captioner that a test may change."""
    return Path(shutil.copytree(tiny_models / "captioner", tmp_path / "captioner"))


def test_a_clip_gets_a_caption_in_words(captioner: HFCaptioner, make_clip: MakeClip) -> None:
    [caption] = captioner.caption([make_clip(0)], PROMPT)
    assert isinstance(caption, Caption)
    assert (caption.clip_id, caption.prompt_id, caption.tokens) == ("clip0", "test.v1", 12)
    assert caption.text
    assert (caption.finish, "truncated" in caption.flags) == ("length", True)


def test_no_clips_give_no_captions(captioner: HFCaptioner) -> None:
    assert captioner.caption([], PROMPT) == []


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_the_model_sees_every_frame_given_and_no_other(captioner: HFCaptioner, make_clip: MakeClip, frames: int) -> None:
    inputs = captioner._inputs([make_clip(0, frames), make_clip(1, frames)], "Describe.")
    assert inputs["pixel_values_videos"].shape == (2, frames, 3, 64, 64)


def test_a_clip_three_pixels_high_is_not_taken_for_channels_first(captioner: HFCaptioner) -> None:
    frames = np.zeros((2, 3, 32, 3), np.uint8)
    frames[..., 0] = 255
    clip = ClipFrames(clip_id="red", frames=frames, times_s=(0.0, 0.5), duration_s=1.0)
    seen = captioner._inputs([clip], "Describe.")["pixel_values_videos"]
    red, green, blue = seen[0, 0].mean((1, 2)).tolist()
    assert max(green, blue) < 0 < red


@given(st.lists(st.floats(0, 3600), min_size=1, max_size=12).map(sorted), st.floats(0, 60))
def test_the_times_told_are_the_times_given(times_s: list[float], rest_s: float) -> None:
    frames = np.zeros((len(times_s), 2, 2, 3), np.uint8)
    clip = ClipFrames(clip_id="a", frames=frames, times_s=tuple(times_s), duration_s=times_s[-1] + rest_s)
    told = video_metadata(clip)
    assert [index / told["fps"] for index in told["frames_indices"]] == pytest.approx(times_s, abs=0.00051)
    assert told["duration"] == clip.duration_s
    assert told["frames_indices"][-1] < told["total_num_frames"]


def test_another_family_writes_the_times_into_its_prompt(captioner: HFCaptioner, checkpoint: Path) -> None:
    names = {"vision_bos_token": "<|im_start|>", "vision_eos_token": "<|im_end|>"}
    placeholders = {"image_token": "<image>", "video_token": "<video>"}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, extra_special_tokens=names | placeholders)
    template = (checkpoint / "chat_template.jinja").read_text()
    template = template.replace("'<' + part['type'] + '>", "'<|im_start|><' + part['type'] + '><|im_end|>")
    videos = Qwen3VLVideoProcessor(size={"shortest_edge": 1024, "longest_edge": 131072})
    processor = Qwen3VLProcessor(Qwen2VLImageProcessor(), tokenizer, videos, chat_template=template)
    qwen = HFCaptioner("qwen", processor, captioner._model, 1)
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    clip = ClipFrames(clip_id="a", frames=frames, times_s=(0.2, 1.0, 5.5, 7.1), duration_s=9.0)
    told = tokenizer.decode(qwen._inputs([clip], "Describe.")["input_ids"][0])
    assert re.findall(r"<([\d.]+) seconds>", told) == ["0.6", "6.3"]  # Qwen3-VL merges frames in pairs


def test_alone_and_in_a_batch_a_clip_gets_the_same_text(captioner: HFCaptioner, make_clip: MakeClip) -> None:
    clips = [make_clip(seed) for seed in range(4)]
    alone = [text for clip in clips for text in texts(captioner.caption([clip], PROMPT))]
    assert texts(captioner.caption(clips, PROMPT)) == alone
    assert len(set(alone)) > 1


def test_mixed_frame_counts_keep_the_order_of_the_clips(captioner: HFCaptioner, make_clip: MakeClip) -> None:
    clips = [make_clip(seed, frames) for seed, frames in enumerate([4, 2, 4, 3, 2, 4])]
    outcomes = captioner.caption(clips, PROMPT)
    assert [outcome.clip_id for outcome in outcomes] == [clip.clip_id for clip in clips]
    assert texts(outcomes) == [text for clip in clips for text in texts(captioner.caption([clip], PROMPT))]


def test_a_bad_clip_costs_the_others_nothing(captioner: HFCaptioner, make_clip: MakeClip) -> None:
    good = [make_clip(0), make_clip(1)]
    halves = (good[0].frames / 255.0).astype(np.float32)
    floats = dataclasses.replace(make_clip(2), frames=halves)  # type: ignore[arg-type]
    nothing = dataclasses.replace(make_clip(3), frames=good[0].frames[:0], times_s=())
    first, *failures, last = captioner.caption([good[0], floats, nothing, good[1]], PROMPT)
    assert texts([first, last]) == texts(captioner.caption(good, PROMPT))
    assert [getattr(failure, "error", None) for failure in failures] == ["bad_frames", "bad_frames"]


def test_a_clip_that_overruns_the_context_is_a_failure(captioner: HFCaptioner, make_clip: MakeClip) -> None:
    failure, caption = captioner.caption([make_clip(0, frames=130), make_clip(1)], PROMPT)
    assert isinstance(caption, Caption)
    assert isinstance(failure, CaptionFailure)
    assert failure.error == "ContextOverflowError"


@pytest.mark.filterwarnings("error")
def test_read_only_and_reversed_frames_are_taken(captioner: HFCaptioner, make_clip: MakeClip) -> None:
    clip = make_clip(0)
    reversed_view = clip.frames[::-1].copy()[::-1]
    reversed_view.flags.writeable = False
    view = dataclasses.replace(clip, frames=reversed_view)
    assert texts(captioner.caption([view], PROMPT)) == texts(captioner.caption([clip], PROMPT))


def test_the_log_probability_matches_a_rescoring(captioner: HFCaptioner, make_clip: MakeClip) -> None:
    inputs = captioner._inputs([make_clip(5)], PROMPT.text)
    answers, logprobs = captioner._generate(inputs, PROMPT)
    start = inputs["input_ids"].shape[1]
    whole = {
        "input_ids": torch.cat([inputs["input_ids"], answers], dim=1),
        "pixel_values_videos": inputs["pixel_values_videos"],
    }
    with torch.inference_mode():
        logits = captioner._model(**whole).logits[:, start - 1 : -1]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(-1, answers[..., None])[..., 0])


def test_an_end_token_at_the_limit_is_a_stop() -> None:
    assert answer_end([7, 8, 2], frozenset({2})) == (3, True)


def test_tokens_after_the_end_are_not_counted() -> None:
    assert answer_end([7, 2, 0, 0], frozenset({0, 2})) == (2, True)


def test_an_answer_without_an_end_token_is_cut() -> None:
    assert answer_end([7, 8, 9], frozenset({2})) == (3, False)


def test_any_of_several_end_tokens_stops_a_row(checkpoint: Path, make_clip: MakeClip) -> None:
    clips = [make_clip(0), make_clip(1)]
    plain = load(checkpoint)
    third = plain._generate(plain._inputs(clips[:1], PROMPT.text), PROMPT)[0][0, 2].item()
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, third]}))
    stopped, other = load(checkpoint).caption(clips, PROMPT)
    [whole, other_whole] = texts(plain.caption(clips, PROMPT))
    assert isinstance(stopped, Caption)
    assert (stopped.finish, stopped.tokens, "truncated" in stopped.flags) == ("stop", 3, False)
    assert whole.startswith(stopped.raw_text)
    assert texts([other]) == [other_whole]


def test_released_settings_are_ignored(captioner: HFCaptioner, checkpoint: Path, make_clip: MakeClip) -> None:
    released = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1}
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **released}))
    clips = [make_clip(0), make_clip(1)]
    assert texts(load(checkpoint).caption(clips, PROMPT)) == texts(captioner.caption(clips, PROMPT))


def test_a_repetition_penalty_changes_the_answer(captioner: HFCaptioner, make_clip: MakeClip) -> None:
    clips = [make_clip(seed) for seed in range(3)]
    strict = dataclasses.replace(PROMPT, repetition_penalty=1.5)
    assert texts(captioner.caption(clips, strict)) != texts(captioner.caption(clips, PROMPT))


@pytest.mark.parametrize("token", ["<video>", "<|im_end|>"])
def test_a_control_token_in_a_prompt_is_refused(captioner: HFCaptioner, token: str) -> None:
    with pytest.raises(CaptionerError, match="is a control token"):
        captioner.caption([], dataclasses.replace(PROMPT, text=f"Describe {token} it."))


def test_bfloat16_captions_too(tiny_models: Path, make_clip: MakeClip) -> None:
    [caption] = load(tiny_models / "captioner", dtype="bfloat16").caption([make_clip(0)], PROMPT)
    assert isinstance(caption, Caption)
    assert caption.mean_logprob < 0


@pytest.mark.parametrize("name", ["text", "clip", "."])
def test_a_folder_that_holds_no_captioner_is_refused(tiny_models: Path, name: str) -> None:
    with pytest.raises(CaptionerError, match=r"cannot load it .*name a hub id or a folder"):
        load(tiny_models / name)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="no such folder"):
        load(tmp_path / "nowhere")


def test_weights_that_miss_a_tensor_are_refused(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights[next(name for name in weights if "lm_head" in name)]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CaptionerError, match=r"lm_head\.weight is missing"):
        load(checkpoint)


def test_a_processor_that_drops_video_is_refused(captioner: HFCaptioner, checkpoint: Path) -> None:
    names = dict.fromkeys(["boi_token", "eoi_token", "image_token"], "<image>")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, extra_special_tokens=names)
    template = (checkpoint / "chat_template.jinja").read_text()
    blind = Gemma3Processor(Gemma3ImageProcessor(), tokenizer, chat_template=template)
    with pytest.raises(CaptionerError, match="unsupported_modality"):
        HFCaptioner("blind", blind, captioner._model, 1)


@pytest.mark.parametrize("change", [{"device": "tpu9"}, {"dtype": "int8"}, {"batch": 0}])
def test_a_loading_argument_out_of_range_is_refused(tiny_models: Path, change: dict[str, object]) -> None:
    with pytest.raises(CaptionerError, match=next(iter(change))):
        load(tiny_models / "captioner", **change)
