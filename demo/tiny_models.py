"""Builds untrained checkpoints of the real model classes, so that loaders and stages run without a download.

The weights are random and the outputs mean nothing: these files prove that loading, batching and shapes work,
and they are the starting point of the demo's training. Same seed, same bytes. Each checkpoint appears under
its final name in one rename, so a folder that is there is whole. Cost: a few seconds and about 5 MB for all
four.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import open_clip
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
    T5Config,
    T5EncoderModel,
)

MARKER = "UNTRAINED"
"""The file that marks a folder as ours to rebuild; it holds the name and the seed of the checkpoint."""

CORPUS = """
A red circle moves left on a black background. A green square moves right on a gray background.
A blue triangle moves up over the sky. A yellow star moves down over grass.
An orange diamond spins in front of stripes.
A purple circle grows on a checkerboard. A white square shrinks on black. A cyan star stays still.
The video shows a person walking along a street while the camera follows slowly from behind.
A wide shot of a city at night; cars drive past, lights flicker, and the camera pans to the right.
A close-up of hands cutting vegetables on a wooden board, then the pieces fall into a pan.
Describe the main subject, its colour, how it moves and the background of this video in one sentence.
"""
"""Caption-like text that the small tokenizers learn their merges from."""

CLIP_CONFIG: Mapping[str, Any] = {
    "embed_dim": 96,
    "vision_cfg": {
        "image_size": 64,
        "patch_size": 8,
        "width": 96,
        "layers": 3,
        "head_width": 32,
        "pool_type": "avg",
    },
    "text_cfg": {
        "context_length": 32,
        "width": 96,
        "heads": 3,
        "layers": 2,
        "hf_tokenizer_name": ".",  # any name: open_clip then reads the tokenizer of the model's own folder
        "pool_type": "eos",
    },
}
"""The open_clip model, but for the three token numbers that its tokenizer decides."""

VISION_CONFIG: Mapping[str, Any] = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "vision_use_head": False,
}
"""The captioner's SigLIP tower."""

CODEC_CONFIG: Mapping[str, Any] = {
    "base_dim": 16,
    "decoder_base_dim": 16,
    "z_dim": 16,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}
"""The video autoencoder: 8 x 8 in space, 4 in time, 16 channels, the class's residual form."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<' + part['type'] + '>\n' }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML; the end token stands inside the generation block, or a model trained on it never learns to stop."""


@dataclass(frozen=True, kw_only=True)
class TinyModels:
    """Where the four checkpoints lie.

    Attributes:
        clip: open_clip folder, for `local-dir:` names.
        captioner: transformers image-text-to-text folder (LLaVA-OneVision).
        codec: diffusers folder (`AutoencoderKLWan`).
        text: transformers folder of a T5 encoder.
    """

    clip: Path
    captioner: Path
    codec: Path
    text: Path


def make_tiny_models(folder: Path, seed: int = 0) -> TinyModels:
    """Write the checkpoints that are not there yet, and say where all of them are.

    A checkpoint of another seed, or one with its weights missing, is built again.

    Raises:
        FileExistsError: a sub-folder with the name of a checkpoint holds something that this function did not
            write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    builders = {
        "clip": _build_clip,
        "captioner": _build_captioner,
        "codec": _build_codec,
        "text": _build_text,
    }
    return TinyModels(**{name: _ensure(folder / name, build, seed) for name, build in builders.items()})


def _ensure(target: Path, build: Callable[[Path], None], seed: int) -> Path:
    """Build `target` in a folder beside it and rename, unless it is there already."""
    marker = f"{target.name}, seed {seed}: random weights, never trained; for tests and as a start.\n"
    if _is_complete(target, marker):
        return target
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        draft = Path(scratch) / target.name
        draft.mkdir()
        with _seeded(seed):
            build(draft)
        (draft / MARKER).write_text(marker)
        _put(draft, target, marker)
    return target


def _is_complete(target: Path, marker: str) -> bool:
    """Whether `target` is a checkpoint of ours with this marker and its weights."""
    note = target / MARKER
    return note.is_file() and note.read_text() == marker and any(target.glob("*.safetensors"))


def _put(draft: Path, target: Path, marker: str) -> None:
    """Rename `draft` to `target`; a finished twin that another process put there first is as good."""
    if target.exists() and not _is_complete(target, marker):
        if any(target.iterdir()) and not (target / MARKER).is_file():
            raise FileExistsError(f"{target} holds files that are not a tiny model; name another folder")
        shutil.rmtree(target)
    try:
        draft.rename(target)
    except OSError:
        if not _is_complete(target, marker):
            raise


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generator inside the block, and give the caller's state back after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA as well
        yield


def train_tokenizer(special_tokens: Sequence[str], vocab_size: int, texts: Iterable[str] = (CORPUS,)) -> Tokenizer:
    """Learn a byte-level BPE of at most so many tokens: any text round-trips, special tokens have the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _wrap_ends(tokenizer: Tokenizer, template: str) -> None:
    """Make the tokenizer write the special tokens that stand around `$A` in `template`."""
    names = [word for word in template.split() if word != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )


def _build_clip(folder: Path) -> None:
    """Write an open_clip folder: config, tokenizer, weights."""
    tokenizer = clip_tokenizer(vocab_size=393)
    config = clip_config(CLIP_CONFIG, tokenizer)
    save_clip(folder, open_clip.CLIP(**config), config, tokenizer)


def clip_tokenizer(vocab_size: int, texts: Iterable[str] = (CORPUS,)) -> PreTrainedTokenizerFast:
    """Learn the tokenizer of an open_clip model: `<bos>` before every text, `<eos>` after it."""
    tokenizer = train_tokenizer(["<pad>", "<bos>", "<eos>"], vocab_size, texts)
    _wrap_ends(tokenizer, "<bos> $A <eos>")
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def clip_config(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Complete the settings of an open_clip model by the token numbers of its tokenizer."""
    numbers = {"vocab_size": len(tokenizer), "pad_id": tokenizer.pad_token_id, "eos_id": tokenizer.eos_token_id}
    return {**config, "text_cfg": {**config["text_cfg"], **numbers}}


def save_clip(folder: Path, model: nn.Module, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """Write an open_clip folder, for `local-dir:` names: half precision, pictures squashed to the model's square."""
    tokenizer.save_pretrained(folder)
    written = {"model_cfg": config, "preprocess_cfg": {"interpolation": "bicubic", "resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(written, indent=2))
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def _build_captioner(folder: Path) -> None:
    """Write a LLaVA-OneVision folder: processor with chat template, weights, generation settings."""
    processor = captioner_processor(vocab_size=403)
    tokenizer = processor.tokenizer
    model = LlavaOnevisionForConditionalGeneration(captioner_config(tokenizer))
    _spread_weights(model)
    _favour_readable_tokens(model.lm_head, tokenizer)
    save_captioner(folder, model, processor)


def save_captioner(folder: Path, model: LlavaOnevisionForConditionalGeneration, processor: LlavaOnevisionProcessor) -> None:
    """Write a transformers folder in half precision; the model becomes that too."""
    tokenizer = processor.tokenizer
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ends)
    processor.save_pretrained(folder)
    model.half().save_pretrained(folder)


def captioner_processor(vocab_size: int, texts: Iterable[str] = (CORPUS,)) -> LlavaOnevisionProcessor:
    """Join the tokenizer, the 64-pixel image and video processors and the chat template."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(control, vocab_size, texts),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )
    size = {"height": 64, "width": 64}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[64, 64]]),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def captioner_config(tokenizer: PreTrainedTokenizerFast, vision: Mapping[str, Any] = VISION_CONFIG) -> LlavaOnevisionConfig:
    """A SigLIP tower of 8 x 8 patches and a three-layer Qwen2: a frame becomes 4 x 4 pooled tokens."""
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[64, 64]],
    )


def _spread_weights(model: nn.Module) -> None:
    """Draw matrices with variance 1 / fan-in and token embeddings with variance 1.

    The default of 0.02 is made for wide models: at these widths the input hardly reaches the output, and
    every clip would get the same text.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)


def _favour_readable_tokens(head: nn.Linear, tokenizer: PreTrainedTokenizerFast) -> None:
    """Zero the output rows of control tokens, blanks and half characters, so that greedy text can be read.

    A logit of zero loses against the best of some two hundred random ones, so an untrained answer neither
    stops at its first token nor consists of undecodable bytes. Training moves these rows like any other.
    """
    special = set(tokenizer.all_special_ids)
    with torch.no_grad():
        for token_id in range(len(tokenizer)):
            text = tokenizer.decode([token_id]).strip()
            if token_id in special or not (text.isascii() and text.isprintable() and text):
                head.weight[token_id] = 0.0


def _build_codec(folder: Path) -> None:
    """Write a diffusers folder of the Wan video autoencoder."""
    AutoencoderKLWan(**CODEC_CONFIG).half().save_pretrained(folder)


def _build_text(folder: Path) -> None:
    """Write a T5 encoder and its tokenizer, which ends every text with `</s>` as T5 does."""
    tokenizer = train_tokenizer(["<pad>", "</s>"], vocab_size=384)
    _wrap_ends(tokenizer, "$A </s>")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    config = T5Config(
        vocab_size=len(fast),
        d_model=48,
        d_kv=12,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
    )
    fast.save_pretrained(folder)
    T5EncoderModel(config).save_pretrained(folder)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Other seeds give other weights.")
def main(folder: Path, seed: int) -> None:
    """Write four untrained checkpoints into FOLDER, and print where they are."""
    made = make_tiny_models(folder, seed)
    for path in (made.clip, made.captioner, made.codec, made.text):
        click.echo(path)


if __name__ == "__main__":
    main()
