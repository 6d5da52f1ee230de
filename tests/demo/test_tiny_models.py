"""The untrained checkpoints load through the public loaders and are the same bytes for the same seed."""

import hashlib
import os
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, T5EncoderModel

from demo.tiny_models import MARKER, make_tiny_models


def digests(folder: Path) -> dict[str, str]:
    """sha256 of each file below a folder, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_one_seed_gives_the_same_bytes_twice(tiny_models: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    make_tiny_models(tmp_path)
    sys.stdout.write(f"built in {time.perf_counter() - start:.2f} s\n")
    assert digests(tmp_path) == digests(tiny_models)


def test_another_seed_gives_other_weights(tiny_models: Path, tmp_path: Path) -> None:
    make_tiny_models(tmp_path, seed=1)
    ours, theirs = digests(tmp_path), digests(tiny_models)
    weights = [name for name in ours if name.endswith(".safetensors")]
    assert len(weights) == 4
    assert all(ours[name] != theirs[name] for name in weights)


def test_all_four_are_small_and_say_that_they_are_untrained(tiny_models: Path) -> None:
    assert sum(path.stat().st_size for path in tiny_models.rglob("*") if path.is_file()) < 8e6
    for name in ("clip", "captioner", "codec", "text"):
        assert "never trained" in (tiny_models / name / MARKER).read_text()


def test_the_random_state_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    make_tiny_models(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_complete_is_not_built_again(tmp_path: Path) -> None:
    made = make_tiny_models(tmp_path)
    inodes = [os.stat(path).st_ino for path in (made.clip, made.captioner, made.codec, made.text)]
    assert make_tiny_models(tmp_path) == made
    assert [os.stat(path).st_ino for path in (made.clip, made.captioner, made.codec, made.text)] == inodes


def test_a_half_copied_checkpoint_is_built_again(tiny_models: Path, tmp_path: Path) -> None:
    made = make_tiny_models(tmp_path)
    (made.captioner / "model.safetensors").unlink()
    make_tiny_models(tmp_path)
    assert digests(tmp_path) == digests(tiny_models)


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    trained = tmp_path / "clip" / "open_clip_model.safetensors"
    trained.parent.mkdir()
    trained.write_bytes(b"trained")
    with pytest.raises(FileExistsError, match="not a tiny model"):
        make_tiny_models(tmp_path)
    assert trained.read_bytes() == b"trained"


def test_clip_loads_through_open_clip(tiny_models: Path) -> None:
    name = f"local-dir:{tiny_models / 'clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(["a red circle", "a green square moves right"])
    image = preprocess(Image.fromarray(np.full((48, 96, 3), 200, np.uint8)))
    with torch.inference_mode():
        pooled, pictured = model.encode_text(tokens), model.encode_image(image[None])
    assert tokens.shape == (2, 32)
    assert (pooled.shape, pictured.shape, pooled.dtype) == ((2, 96), (1, 96), torch.float32)
    assert not torch.equal(pooled[0], pooled[1])


def test_captioner_loads_and_its_template_marks_the_answer(tiny_models: Path) -> None:
    folder = tiny_models / "captioner"
    processor = AutoProcessor.from_pretrained(folder)
    AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "What moves?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A red circle."}]},
    ]
    told = processor.tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    answer = [token for token, mine in zip(told["input_ids"], told["assistant_masks"], strict=True) if mine]
    assert processor.tokenizer.decode(answer) == "A red circle.<|im_end|>"


def test_codec_halves_time_twice_and_space_three_times(tiny_models: Path) -> None:
    codec = AutoencoderKLWan.from_pretrained(tiny_models / "codec", torch_dtype=torch.float32)
    with torch.inference_mode():
        latent = codec.encode(torch.zeros(1, 3, 9, 64, 64)).latent_dist.mode()
        assert codec.decode(latent).sample.shape == (1, 3, 9, 64, 64)
    assert latent.shape == (1, 16, 3, 8, 8)
    assert len(codec.config.latents_mean) == len(codec.config.latents_std) == 16


def test_text_encoder_loads_with_its_tokenizer(tiny_models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "text")
    encoder = T5EncoderModel.from_pretrained(tiny_models / "text")
    batch = tokenizer(["a red circle", "ein großer blauer Stern"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = encoder(**batch).last_hidden_state
    assert states.shape == (*batch["input_ids"].shape, 48)
    assert tokenizer.decode(batch["input_ids"][1], skip_special_tokens=True) == "ein großer blauer Stern"
