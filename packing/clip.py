"""open_clip models: frames and texts to features. The one module that imports open_clip.

Invariant: features of a text do not depend on other texts (one at a time). Legend: F frames, D joint width, m text tokens,
E width of the text tower.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from packing.errors import ModelError
from packing.models import first_line, model_folder, model_identity

LOCAL = "local-dir:"


class Clip:
    """A frozen CLIP model with its own preprocessing and tokenizer."""

    def __init__(self, model: Any, transform: Any, tokenizer: Any, weights: str, device: str) -> None:
        self._model, self._transform, self._tokenizer = model, transform, tokenizer
        self._device = device
        self.weights = weights

    @property
    def text_width(self) -> int:
        """Width E of the text tower's states."""
        return int(self._text.token_embedding.weight.shape[1])

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax; learned with the model."""
        return float(self._model.logit_scale.exp())

    @torch.inference_mode()
    def frame_features(self, frames: NDArray[np.uint8]) -> Tensor:
        """Encode frames uint8 [F, Y, X, 3] into unit features float32 [F, D] on the CPU."""
        from PIL import Image

        pixels = torch.stack([self._transform(Image.fromarray(frame)) for frame in frames])
        features = self._model.encode_image(pixels.to(self._device))
        return functional.normalize(features.float(), dim=-1).cpu()

    @torch.inference_mode()
    def text_feature(self, text: str) -> Tensor:
        """Encode one text into a unit feature float32 [D] on the CPU; texts longer than the context are cut."""
        feature = self._model.encode_text(self._tokenizer([text]).to(self._device))[0]
        return functional.normalize(feature.float(), dim=-1).cpu()

    @torch.inference_mode()
    def text_states(self, text: str) -> Tensor:
        """Return the states float32 [m, E] of the text tower before its projection, up to and including end-of-text."""
        tokens = self._tokenizer([text]).to(self._device)  # [1, context]
        tower = self._text
        length = tokens.shape[1]
        states = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        mask = tower.attn_mask[:length, :length] if tower.attn_mask is not None else None
        states = tower.ln_final(tower.transformer(states, attn_mask=mask))  # [1, context, E]
        valid: Tensor = states[0, : self._end(tokens[0]) + 1]
        return valid.float().cpu()

    @property
    def _text(self) -> Any:
        return getattr(self._model, "text", self._model)  # CustomTextCLIP keeps its text tower in `.text`

    def _end(self, tokens: Tensor) -> int:
        """Position of the end-of-text token, found as the tower pools: by its id, or as the largest id (OpenAI's CLIP)."""
        tower = self._text  # open_clip.CLIP holds its text tower's settings as `text_…`, CustomTextCLIP in the tower itself
        pool = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", "argmax")
        if pool == "eos":
            end: int = tower.text_eos_id if hasattr(tower, "text_eos_id") else tower.eos_id
            return int(tokens.eq(end).int().argmax())
        return int(tokens.argmax()) if pool == "argmax" else len(tokens) - 1  # others (SigLIP) read the whole context


def pinned_clip(model: str) -> str:
    """Write an open_clip model string so that it means the same from every folder.

    Raises:
        ModelError: `local-dir:` names no folder.
    """
    folder = model.removeprefix(LOCAL)
    return LOCAL + str(model_folder(folder)) if model.startswith(LOCAL) else model


def clip_identity(model: str) -> str:
    """Name the weights behind a model string: a hash of a local folder, else the string itself."""
    return model_identity(model.removeprefix(LOCAL)) if model.startswith(LOCAL) else model


@cache
def load_clip(model: str, *, device: str = "cpu") -> Clip:
    """Load an open_clip model, once a process.

    Args:
        model: `local-dir:FOLDER`, `hf-hub:ID`, or `NAME:TAG` (a registry name and its pretrained tag).
        device: torch device.

    Raises:
        ModelError: open_clip has no such model, or the folder is not one.
    """
    import open_clip

    model = pinned_clip(model)
    name, tag = (model, None) if model.startswith((LOCAL, "hf-hub:")) else _name_and_tag(model)
    try:
        net, _, transform = open_clip.create_model_and_transforms(name, pretrained=tag, device=device)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip raises many kinds for one thing: this string does not give a model
        raise ModelError(f"{model} does not load as an open_clip model: {first_line(error)}") from error
    net.eval().requires_grad_(False)
    if not hasattr(getattr(net, "text", net), "token_embedding"):
        raise ModelError(f"{model}: its text tower is not a CLIP transformer; choose a CLIP model of open_clip")
    return Clip(net, transform, tokenizer, clip_identity(model), device)


def _name_and_tag(model: str) -> tuple[str, str]:
    name, _, tag = model.partition(":")
    if not tag or Path(model).exists():
        raise ModelError(f"{model!r} is not an open_clip model: write NAME:TAG, hf-hub:ID or local-dir:FOLDER")
    return name, tag
