"""A caption's features depend on that caption alone, are as long as it is, and come from real weights."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from packing import TextEncoder, load_text_encoder
from packing.errors import ModelError

TEXTS = ["a", "a red circle moves left on a black background", "", "A green square moves right and then stays still for long"]


@pytest.fixture(scope="session")
def t5(tiny_models: Path) -> TextEncoder:
    return load_text_encoder(str(tiny_models / "text"))


@pytest.fixture(scope="session")
def open_clip_text(tiny_models: Path) -> TextEncoder:
    return load_text_encoder(f"local-dir:{tiny_models / 'clip'}", backend="open_clip")


@pytest.fixture(params=["t5", "open_clip_text"])
def encoder(request: pytest.FixtureRequest) -> TextEncoder:
    """Each kind of text encoder in turn."""
    found: TextEncoder = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def variant(tiny_models: Path, tmp_path: Path) -> Path:
    """A copy of the T5 folder, to be damaged."""
    folder = tmp_path / "variant"
    shutil.copytree(tiny_models / "text", folder)
    return folder


def refusal(model: str, **settings: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_text_encoder(model, **settings)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert model.removeprefix("local-dir:") in message
    return message


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = folder / "model.safetensors"
    save_file(edit(load_file(weights)), weights, metadata={"format": "pt"})


def test_features_are_bfloat16_of_the_width_that_the_facts_name(encoder: TextEncoder) -> None:
    for features in encoder.encode(TEXTS):
        assert (features.dtype, features.shape[1], features.device.type) == (torch.bfloat16, encoder.facts.width, "cpu")


def test_a_longer_text_has_more_features(encoder: TextEncoder) -> None:
    lengths = [len(features) for features in encoder.encode(["", "a", "a red circle", "a red circle moves left"])]
    assert lengths == sorted(set(lengths))


def test_an_empty_text_has_a_feature(encoder: TextEncoder) -> None:
    assert len(encoder.encode([""])[0]) >= 1


def test_no_texts_have_no_features(encoder: TextEncoder) -> None:
    assert encoder.encode([]) == []


def test_features_do_not_depend_on_the_other_texts(encoder: TextEncoder) -> None:
    together = encoder.encode(TEXTS)
    alone = [encoder.encode([text])[0] for text in TEXTS]
    assert all(torch.equal(first, second) for first, second in zip(together, alone, strict=True))


def test_other_words_have_other_features(encoder: TextEncoder) -> None:
    red, blue = encoder.encode(["a red circle", "a tan circle"])
    assert not torch.equal(red[-1], blue[-1])


def test_no_text_has_more_features_than_max_tokens(tiny_models: Path) -> None:
    for model, backend in ((tiny_models / "text", "transformers"), (f"local-dir:{tiny_models / 'clip'}", "open_clip")):
        encoder = load_text_encoder(str(model), backend=backend, max_tokens=7)  # type: ignore[arg-type]
        assert [len(features) for features in encoder.encode(["a", "many words " * 50])] == [len(encoder.encode(["a"])[0]), 7]
        assert encoder.facts.max_tokens == 7


def test_t5_features_are_its_last_hidden_states_without_padding(t5: TextEncoder, tiny_models: Path) -> None:
    tokens = transformers.AutoTokenizer.from_pretrained(tiny_models / "text")(TEXTS[1], return_tensors="pt").input_ids
    encoder = transformers.T5EncoderModel.from_pretrained(tiny_models / "text").eval()
    with torch.inference_mode():
        expected = encoder(input_ids=tokens).last_hidden_state[0].bfloat16()
    assert torch.equal(t5.encode([TEXTS[1]])[0], expected)


def test_facts_name_the_model_and_its_bytes(t5: TextEncoder, tiny_models: Path, variant: Path) -> None:
    assert t5.facts.model == str(tiny_models / "text")
    assert load_text_encoder(str(variant)).facts.weights == t5.facts.weights


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "neither a model folder nor a hub id" in refusal(str(tmp_path / "nothing"))


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    assert "not a model folder" in refusal(str(tmp_path))


@pytest.mark.parametrize("name", ["codec", "clip", "captioner"])
def test_another_kind_of_model_is_no_text_encoder(tiny_models: Path, name: str) -> None:
    assert "does not load as a text encoder" in refusal(str(tiny_models / name))


def test_truncated_weights_are_refused(variant: Path) -> None:
    weights = variant / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "does not load as a text encoder" in refusal(str(variant))


def test_weights_that_lack_tensors_are_refused(variant: Path) -> None:
    edit_weights(variant, lambda tensors: {name: t for name, t in tensors.items() if ".block.0." not in name})
    assert "does not load as a text encoder" in refusal(str(variant))


def test_an_all_zero_embedding_table_is_refused(variant: Path) -> None:
    edit_weights(variant, lambda tensors: {name: torch.zeros_like(t) for name, t in tensors.items()})
    assert "all-zero" in refusal(str(variant))


def test_a_folder_without_its_tokenizer_is_refused(variant: Path) -> None:
    for file in variant.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in refusal(str(variant))


@pytest.mark.parametrize("name", ["NoSuchModel:tag", "no-tag-at-all"])
def test_a_name_that_open_clip_does_not_know_is_refused(name: str) -> None:
    assert "open_clip model" in refusal(name, backend="open_clip")


def test_a_plain_folder_is_refused_with_the_way_to_write_it(tiny_models: Path) -> None:
    assert "local-dir:FOLDER" in refusal(str(tiny_models / "clip"), backend="open_clip")


def test_a_folder_that_is_no_open_clip_model_is_refused(tiny_models: Path) -> None:
    refusal(f"local-dir:{tiny_models / 'text'}", backend="open_clip")


def test_a_missing_open_clip_folder_is_refused(tmp_path: Path) -> None:
    refusal(f"local-dir:{tmp_path / 'nothing'}", backend="open_clip")
