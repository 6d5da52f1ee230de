"""embed: captions to features; of a title that tells of several shots, the sentence that fits the clip."""

from pathlib import Path

import pytest
import torch

from packing.clip import load_clip
from pipeline.stages.embed import ClipToEmbed, Embed
from tests.pipeline.conftest import Configure

SENTENCES = ("A red circle moves left.", "A blue square spins on grass.", "Subscribe now")


@pytest.fixture(scope="module")
def embed(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Embed:
    folder = tmp_path_factory.mktemp("embed")
    return Embed.from_config(configure(f"input.uri={folder}", f"run={folder / 'run'}"))


@pytest.mark.parametrize("shown", SENTENCES)
def test_the_sentence_of_the_title_that_fits_the_clip_becomes_a_caption(embed: Embed, tiny_models: Path, shown: str) -> None:
    clip = load_clip(f"local-dir:{tiny_models / 'clip'}").text_feature(shown)
    item = ClipToEmbed(clip_id="0" * 32, captions=[("short", "A shape.", "m")], title=" | ".join(SENTENCES), embedding=clip)
    (outcome,) = embed.process([item])
    assert [(caption.prompt, caption.text) for caption in outcome.result.captions] == [("short", "A shape."), ("title", shown)]
    assert outcome.tensors["text"].shape[0] == sum(caption.tokens for caption in outcome.result.captions)


@pytest.mark.parametrize("title", ["", " | ", "…"])
def test_a_title_that_says_nothing_is_no_caption(embed: Embed, title: str) -> None:
    item = ClipToEmbed(clip_id="0" * 32, captions=[("short", "A shape.", "m")], title=title, embedding=torch.ones(96))
    (outcome,) = embed.process([item])
    assert [caption.prompt for caption in outcome.result.captions] == ["short"]
