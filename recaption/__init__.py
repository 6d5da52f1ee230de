"""Frames and a prompt in, checked captions out.

    captioner = load_captioner("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", revision=None, device="auto",
    dtype="auto", batch=8) captions = captioner.caption(clips, PROMPTS["short.v1"])

`captioner` holds the words and the contract of a backend, `hf` the transformers backend, `prompts` the
versioned defaults, `checks` the cleaning and the flags. The package knows no shards, no stages and no
scheduler, and importing it does not import torch.
"""

from typing import TYPE_CHECKING, Any

from recaption.captioner import Caption, Captioner, CaptionerError, CaptionFailure, ClipFrames, Prompt
from recaption.checks import caption_flags, clean_caption
from recaption.prompts import PROMPTS

if TYPE_CHECKING:
    from recaption.hf import HFCaptioner, load_captioner

__all__ = [
    "PROMPTS",
    "Caption",
    "CaptionFailure",
    "Captioner",
    "CaptionerError",
    "ClipFrames",
    "HFCaptioner",
    "Prompt",
    "caption_flags",
    "clean_caption",
    "load_captioner",
]


def __getattr__(name: str) -> Any:
    """Import the transformers backend at the first use of one of its names."""
    if name in {"HFCaptioner", "load_captioner"}:
        from recaption import hf

        return getattr(hf, name)
    raise AttributeError(f"module 'recaption' has no attribute {name!r}")
