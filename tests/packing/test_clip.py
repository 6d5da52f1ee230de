"""CLIP features of frames and texts, and the states under them, agree with open_clip's own."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer

from packing import load_clip
from packing.clip import Clip, clip_identity, pinned_clip
from packing.errors import ModelError

TEXTS = ["", "a red circle", "A yellow star; the #2 camera pans to the right, slowly!", "many words " * 50]


@pytest.fixture(scope="session")
def clip(tiny_models: Path) -> Clip:
    return load_clip(f"local-dir:{tiny_models / 'clip'}")


@pytest.fixture(scope="session")
def reference(tiny_models: Path) -> tuple[open_clip.CLIP, HFTokenizer]:
    """The same model as open_clip itself loads it."""
    name = f"local-dir:{tiny_models / 'clip'}"
    model, *_ = open_clip.create_model_and_transforms(name)
    return model.eval(), open_clip.get_tokenizer(name)


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 48, 80, 3), dtype=np.uint8)


def test_frame_features_are_unit_vectors(clip: Clip) -> None:
    features = clip.frame_features(frames(3))
    assert (features.dtype, features.shape) == (torch.float32, (3, 96))
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))


def test_other_frames_have_other_features(clip: Clip) -> None:
    first, second = clip.frame_features(frames(2))
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_feature_is_that_of_open_clip(clip: Clip, reference: tuple[open_clip.CLIP, HFTokenizer], text: str) -> None:
    model, tokenizer = reference
    with torch.inference_mode():
        expected = model.encode_text(tokenizer([text]), normalize=True)[0]
    torch.testing.assert_close(clip.text_feature(text), expected)


@pytest.mark.parametrize("text", TEXTS)
def test_the_last_text_state_projects_to_the_text_feature(
    clip: Clip, reference: tuple[open_clip.CLIP, HFTokenizer], text: str
) -> None:
    projected = clip.text_states(text)[-1] @ reference[0].text_projection.detach()
    torch.testing.assert_close(torch.nn.functional.normalize(projected, dim=-1), clip.text_feature(text))


@pytest.mark.parametrize("text", TEXTS)
def test_text_states_reach_to_the_end_of_the_text(clip: Clip, reference: tuple[open_clip.CLIP, HFTokenizer], text: str) -> None:
    tokenizer = reference[1].tokenizer
    tokens = tokenizer(text, truncation=True, max_length=32).input_ids
    assert tokens[-1] == tokenizer.eos_token_id
    assert clip.text_states(text).shape == (len(tokens), clip.text_width)


def test_an_argmax_tower_ends_at_its_largest_token_whatever_stands_before() -> None:
    # OpenAI's towers pool at the largest id; their id 2 is a "#" in the text, and no end.
    tower = open_clip.CLIP(
        16,
        {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        {"context_length": 8, "vocab_size": 12, "width": 32, "heads": 2, "layers": 1},
    ).eval()
    tokens = torch.tensor([[10, 2, 3, 4, 11, 0, 0, 0]])
    clip = Clip(tower, None, lambda texts: tokens, "", "cpu")
    projected = clip.text_states("#")[-1] @ tower.text_projection.detach()
    torch.testing.assert_close(torch.nn.functional.normalize(projected, dim=-1), clip.text_feature("#"))


def test_a_model_is_loaded_once_a_process(clip: Clip, tiny_models: Path) -> None:
    assert load_clip(f"local-dir:{tiny_models / 'clip'}") is clip


def test_the_logit_scale_is_that_of_the_model(clip: Clip, reference: tuple[open_clip.CLIP, HFTokenizer]) -> None:
    assert clip.logit_scale == pytest.approx(float(reference[0].logit_scale.detach().exp()))


def test_a_pinned_folder_is_absolute(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_models)
    assert pinned_clip("local-dir:clip/../clip") == f"local-dir:{tiny_models / 'clip'}"


def test_a_registry_name_stays_as_it_is() -> None:
    assert pinned_clip("ViT-B-32:openai") == clip_identity("ViT-B-32:openai") == "ViT-B-32:openai"


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"^NoSuchModel:tag does not load as an open_clip model: .*$"):
        load_clip("NoSuchModel:tag")
