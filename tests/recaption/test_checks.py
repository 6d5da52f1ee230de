"""Cleaning and flags of captions, over strings alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recaption import caption_flags, clean_caption
from recaption.checks import is_loop, repeated_share, tail_repeats

GOOD = (
    "A red circle drifts to the left across a black background. Halfway through, the camera pans slowly up "
    "while the circle keeps its size, its edge lit from above. The scene is calm and plainly drawn."
)
noisy_text = st.text(st.one_of(st.characters(), st.sampled_from("<|>/s \n\t:,")), max_size=80)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("The video shows a red ball rolling.", "A red ball rolling."),
        ("This short video clip depicts a dog.", "A dog."),
        ("In this video, a man walks.", "A man walks."),
        ("Sure! Here is a detailed description of the video: a lamp.", "A lamp."),
        ("ASSISTANT: The image is of a cat.", "Of a cat."),
        ("A video game shows on a screen.", "A video game shows on a screen."),
    ],
)
def test_an_opening_about_the_video_is_cut(raw: str, clean: str) -> None:
    assert clean_caption(raw) == clean


def test_control_tokens_are_removed() -> None:
    assert clean_caption("A ball<|im_end|><|endoftext|> rolls.</s><image>") == "A ball rolls."


def test_controls_surrogates_and_undecodable_bytes_are_removed() -> None:
    assert clean_caption("A\x00 re\ufffdd\ud800 ba\u202ell.") == "A red ball."


def test_all_blanks_become_single_spaces() -> None:
    assert clean_caption("  A ball.\n\n\tIt\u00a0rolls. ") == "A ball. It rolls."


def test_joiners_that_scripts_and_emoji_need_are_kept() -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert clean_caption(family) == family


@given(noisy_text)
def test_cleaning_a_clean_caption_changes_nothing(raw: str) -> None:
    once = clean_caption(raw)
    assert clean_caption(once) == once


@given(noisy_text)
def test_a_clean_caption_can_be_stored_as_utf8_on_one_line(raw: str) -> None:
    clean = clean_caption(raw)
    clean.encode()
    assert clean == clean.strip()
    assert len(clean.splitlines()) <= 1


def test_a_good_caption_has_no_flags() -> None:
    assert caption_flags(GOOD, truncated=False) == ()


@pytest.mark.parametrize("text", ["", "...", "!!!!!!!!!!!!!!!!"])
def test_a_text_without_a_letter_is_empty(text: str) -> None:
    assert caption_flags(text, truncated=False) == ("empty",)


def test_an_answer_cut_by_the_limit_is_truncated() -> None:
    assert caption_flags(GOOD, truncated=True) == ("truncated",)


def test_a_long_loop_is_flagged() -> None:
    looped = GOOD + " The circle moves to the left and the camera follows it." * 8
    assert caption_flags(looped, truncated=False) == ("loop",)


@given(st.integers(min_value=0, max_value=60))
def test_a_loop_is_flagged_wherever_the_limit_cuts_it(cut: int) -> None:
    looped = GOOD + " The ball bounces off the wall and rolls back over the floor." * 8
    assert is_loop(looped[: len(looped) - cut])


def test_one_phrase_three_times_at_the_end_is_a_loop() -> None:
    assert is_loop("A dog runs on sand and then and then and then")


@pytest.mark.parametrize("text", ["A long, long, long road.", "Round and round and round it goes."])
def test_a_repetition_for_style_is_no_loop(text: str) -> None:
    assert not is_loop(text)


def test_a_loop_in_a_script_without_spaces_is_flagged() -> None:
    assert is_loop("红色的球向左移动。" * 5)


def test_short_texts_have_no_repeated_share() -> None:
    assert repeated_share(["a", "b"] * 11) == 0.0
    assert repeated_share(["a", "b"] * 12) == 1.0


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=40), st.lists(st.sampled_from("abc")))
def test_any_phrase_three_times_is_a_repeating_tail(phrase: list[str], before: list[str]) -> None:
    assert tail_repeats([*before, *phrase * 3])


@pytest.mark.parametrize("text", ["I'm sorry, but no.", "I can\u2019t see a video.", "As an AI, I do not"])
def test_a_refusal_is_flagged(text: str) -> None:
    assert caption_flags(text, truncated=False) == ("refusal",)


@pytest.mark.parametrize("text", ["In the next frame it jumps.", "Frame 3 holds it.", "A cat in the image."])
def test_talk_of_frames_is_flagged(text: str) -> None:
    assert caption_flags(text, truncated=False) == ("frame_talk",)


def test_a_picture_frame_is_not_frame_talk() -> None:
    assert caption_flags("A gilded frame hangs on the wall.", truncated=False) == ()
