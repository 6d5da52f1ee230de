"""embed: caption texts to unpadded features, and how well each caption agrees with what CLIP sees in the clip.

Apart from encode, so that a new prompt never re-encodes a frame.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from packing.clip import Clip as ClipModel
from packing.clip import clip_identity, load_clip
from packing.models import model_identity
from packing.text import TextEncoder, load_text_encoder
from pipeline.config import EmbedConfig, RunConfig, ScoreConfig
from pipeline.records import EmbeddedCaption, EmbedResult, Outcome
from pipeline.stage import PartitionView, Stage, torch_device
from pipeline.stages.score import sentences, title_of


@dataclass(frozen=True, kw_only=True)
class ClipToEmbed:
    """The captions (prompt, text, model) of a clip, its CLIP embedding [D], and the title of its source ("" without one)."""

    clip_id: str
    captions: Sequence[tuple[str, str, str]]
    title: str
    embedding: Tensor


@dataclass(frozen=True, kw_only=True)
class Embed(Stage[ClipToEmbed, EmbedResult]):
    """Features of every caption of a clip; of its source's title, the sentence that fits it best counts as one more caption."""

    name: ClassVar[str] = "embed"
    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = ("recaption", "score")
    value: ClassVar[type[Any]] = EmbedResult
    config: EmbedConfig
    clip_model: ScoreConfig

    @classmethod
    def from_config(cls, config: RunConfig) -> "Embed":
        """Make the stage that a run's config describes."""
        return cls(chunk=config.embed.chunk, config=config.embed, clip_model=config.score)

    def identity(self) -> Mapping[str, object]:
        """Return the encoder's weights and its length limit."""
        c = self.config
        of = clip_identity if c.backend == "open_clip" else lambda model: model_identity(model, c.subfolder)
        return {"weights": of(c.model), "backend": c.backend, "tokenizer": c.tokenizer, "max_tokens": c.max_tokens}

    def keys(self, view: PartitionView) -> tuple[Sequence[str], set[str]]:
        """Return all clips; those that are kept and have captions are embedded."""
        captioned = view.outcomes["recaption"]
        kept = view.selected(scored=True)
        return list(view.clips), {key for key in kept if (outcome := captioned.get(key)) and outcome.value}

    def inputs(self, view: PartitionView, keys: Sequence[str]) -> Sequence[ClipToEmbed]:
        """Read the captions, titles and embeddings of these clips."""
        return [self._input(view, key) for key in keys]

    def _input(self, view: PartitionView, key: str) -> ClipToEmbed:
        outcome = view.outcomes["recaption"].get(key)
        assert outcome is not None
        captions = [(caption.prompt, caption.text, outcome.result.model) for caption in outcome.result.captions]
        embedding = view.outcomes["score"].tensor(key, "embedding")
        return ClipToEmbed(clip_id=key, captions=captions, title=title_of(view, key), embedding=embedding)

    def setup(self) -> None:
        """Load the encoder and the CLIP model."""
        _ = self._encoder, self._clip

    def process(self, batch: Sequence[ClipToEmbed]) -> Iterable[Outcome[EmbedResult]]:
        """Embed the captions of clips one at a time."""
        return [self._embed(clip) for clip in batch]

    def _embed(self, clip: ClipToEmbed) -> Outcome[EmbedResult]:
        titles = [("title", title, "") for title in self._best_sentence(clip)]
        described = [*clip.captions, *titles]
        features = self._encoder.encode([text for _, text, _ in described])
        captions = tuple(
            EmbeddedCaption(
                prompt=prompt,
                text=text,
                model=model,
                tokens=len(states),
                agreement=float(clip.embedding @ self._clip.text_feature(text)),
            )
            for (prompt, text, model), states in zip(described, features, strict=True)
        )
        result = EmbedResult(width=self._encoder.facts.width, captions=captions)
        return Outcome(key=clip.clip_id, value=result, tensors={"text": torch.cat(features)})

    def _best_sentence(self, clip: ClipToEmbed) -> Sequence[str]:
        """Return the sentence of the title that CLIP finds most like the clip: a title may tell of several shots."""
        said = sentences(clip.title)
        return [max(said, key=lambda text: float(clip.embedding @ self._clip.text_feature(text)))] if said else []

    @cached_property
    def _encoder(self) -> TextEncoder:
        c = self.config
        return load_text_encoder(
            c.model,
            backend=c.backend,
            subfolder=c.subfolder,
            tokenizer=c.tokenizer,
            max_tokens=c.max_tokens,
            device=torch_device(c.device),
        )

    @cached_property
    def _clip(self) -> ClipModel:
        return load_clip(self.clip_model.model, device=torch_device(self.clip_model.device))
