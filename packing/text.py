"""Captions to unpadded features, through a transformers encoder or the text tower of an open_clip model.

Invariant: a caption's features do not depend on the captions that it is encoded with (one at a time, no padding).
Legend: m tokens of a caption, E feature width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from packing.errors import ModelError
from packing.manifest import TextEncoderFacts
from packing.models import first_line, model_folder, model_identity, pinned

Backend = Literal["transformers", "open_clip"]
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")


class TextEncoder(Protocol):
    """Turns captions into unpadded features."""

    facts: TextEncoderFacts

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the features [m, E] of each text, bfloat16, on the CPU; m is at least 1 and at most `max_tokens`."""


def load_text_encoder(
    model: str,
    *,
    backend: Backend = "transformers",
    subfolder: str = "",
    tokenizer: str = "",
    max_tokens: int = 256,
    device: str = "cpu",
) -> TextEncoder:
    """Load a text encoder from a folder or a hub id.

    Args:
        model: a folder or hub id; for open_clip the name that `open_clip` takes (`local-dir:FOLDER`, `hf-hub:ID`, `NAME:TAG`).
        backend: which library loads it.
        subfolder: where the encoder lies inside the model (transformers).
        tokenizer: where the tokenizer lies inside the model, when not beside the encoder (transformers).
        max_tokens: captions are cut at this many tokens.
        device: torch device.

    Raises:
        ModelError: it cannot be loaded as a text encoder.
    """
    if backend == "open_clip":
        return OpenClipTextEncoder(model, max_tokens, device)
    return TransformersTextEncoder(model, subfolder, tokenizer, max_tokens, device)


class TransformersTextEncoder:
    """The last hidden states of a transformers text encoder (T5, UMT5, CLIP text …)."""

    def __init__(self, model: str, subfolder: str, tokenizer: str, max_tokens: int, device: str) -> None:
        folder = model_folder(model, subfolder)
        words = model_folder(model, tokenizer) if tokenizer else folder
        self._tokenizer, self._encoder = _load_transformers(model, folder, words)
        self._encoder = self._encoder.to(device).eval().requires_grad_(False)
        self.facts = TextEncoderFacts(
            model=pinned(model),
            subfolder=subfolder,
            tokenizer=tokenizer,
            weights=model_identity(model, subfolder),
            backend="transformers",
            width=int(self._encoder.config.hidden_size),
            max_tokens=max_tokens,
        )

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the features [m, E] of each text, bfloat16, on the CPU."""
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Tensor:
        tokens = self._tokenizer(text, truncation=True, max_length=self.facts.max_tokens, return_tensors="pt")
        hidden: Tensor = self._encoder(input_ids=tokens.input_ids.to(self._encoder.device)).last_hidden_state
        return hidden[0].to(torch.bfloat16).cpu()  # [m, E]


class OpenClipTextEncoder:
    """The states before the projection of an open_clip text tower, up to and including the end-of-text token."""

    def __init__(self, model: str, max_tokens: int, device: str) -> None:
        from packing.clip import load_clip, pinned_clip  # open_clip is imported in one module only

        self._clip = load_clip(model, device=device)
        self.facts = TextEncoderFacts(
            model=pinned_clip(model),
            subfolder="",
            tokenizer="",
            weights=self._clip.weights,
            backend="open_clip",
            width=self._clip.text_width,
            max_tokens=max_tokens,
        )

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the features [m, E] of each text, bfloat16, on the CPU."""
        return [self._clip.text_states(text)[: self.facts.max_tokens].to(torch.bfloat16) for text in texts]


def _load_transformers(model: str, folder: Path, tokenizer: Path) -> tuple[Any, Any]:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        # T5-like checkpoints name the whole model; only their encoder is wanted.
        name = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel", "mt5": "MT5EncoderModel"}.get(config.model_type)
        loader = getattr(transformers, name) if name else transformers.AutoModel
        encoder, loading = loader.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
        words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    except Exception as error:  # transformers and safetensors raise many kinds for one thing: these files are no such model
        raise ModelError(f"{model} does not load as a text encoder: {first_line(error)}") from error
    missing = sorted(name for name in loading["missing_keys"] if "pooler" not in name)  # hidden states pass no pooler
    if missing:  # transformers only warns, and fills them with noise
        raise ModelError(f"{model} does not load as a text encoder: its weights lack {missing[0]}")
    if not hasattr(encoder.config, "hidden_size"):
        raise ModelError(f"{model} does not load as a text encoder: {type(encoder).__name__} is more than one")
    # Without its files transformers builds an empty tokenizer that turns every word into <unk>.
    if not any(file for kind in VOCABULARIES for file in tokenizer.glob(kind)):
        raise ModelError(f"{model} has no tokenizer in {tokenizer}")
    # Some UMT5 checkpoints load with zeroed embeddings and then encode every caption alike.
    if not encoder.get_input_embeddings().weight.abs().sum() > 0:
        raise ModelError(f"{model} loaded with an all-zero embedding table")
    return words, encoder
