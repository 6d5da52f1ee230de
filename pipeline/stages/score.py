"""score: what a CLIP model sees in the sampled frames of a clip, and what copies of it are known by. It only measures."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packing.clip import Clip as ClipModel
from packing.clip import clip_identity, load_clip
from pipeline import duplicates
from pipeline.config import RunConfig, ScoreConfig
from pipeline.records import Clip, Outcome, ScoreResult
from pipeline.stage import PartitionView, Stage, torch_device

SENTENCES = 32  # of a title that are read: it is untrusted, and each costs a text encoding
# After a full stop that a space follows, and at what divides titles; a full stop within a number ends nothing.
_SENTENCE_ENDS = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|[|\n]")


@dataclass(frozen=True, kw_only=True)
class ClipToScore:
    """Sampled frames uint8 [F, Y, X, 3] of a clip, and its source's title ("" when there is none).

    `times` [F] tell when each frame is shown, 0 at the clip's start and 1 at its end.
    """

    clip_id: str
    frames: NDArray[np.uint8]
    times: NDArray[np.float64]
    title: str


@dataclass(frozen=True, kw_only=True)
class Score(Stage[ClipToScore, ScoreResult]):
    """CLIP features of a clip (similarity to the title, zero-shot probes, consistency, an embedding), and its signature."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 3
    reads: ClassVar[tuple[str, ...]] = ("split",)
    value: ClassVar[type[Any]] = ScoreResult
    config: ScoreConfig

    @classmethod
    def from_config(cls, config: RunConfig) -> "Score":
        """Make the stage that a run's config describes."""
        return cls(chunk=config.score.chunk, config=config.score)

    def identity(self) -> Mapping[str, object]:
        """Return the model's weights and the probes."""
        probes = {name: asdict(probe) for name, probe in sorted(self.config.probes.items())}
        return {"weights": clip_identity(self.config.model), "probes": probes}

    def keys(self, view: PartitionView) -> tuple[Sequence[str], set[str]]:
        """Return all clips; those that the free rules keep are scored."""
        return list(view.clips), set(view.selected(scored=False))

    def inputs(self, view: PartitionView, keys: Sequence[str]) -> Sequence[ClipToScore]:
        """Read the sampled frames of these clips, and their sources' titles."""
        clips = view.clips
        return [
            ClipToScore(clip_id=key, frames=sampled_frames(view, key), times=frame_times(clips[key]), title=title_of(view, key))
            for key in keys
            if key in clips
        ]

    def setup(self) -> None:
        """Load the model and encode the probes' texts."""
        _ = self._probe_features

    def process(self, batch: Sequence[ClipToScore]) -> Iterable[Outcome[ScoreResult]]:
        """Score clips one at a time, so that a clip's numbers do not depend on its neighbours."""
        said = sorted({sentence for clip in batch for sentence in sentences(clip.title)})
        texts = {sentence: self._model.text_feature(sentence) for sentence in said}
        return [self._score(clip, [texts[sentence] for sentence in sentences(clip.title)]) for clip in batch]

    def _score(self, clip: ClipToScore, title: Sequence[Tensor]) -> Outcome[ScoreResult]:
        features = self._model.frame_features(clip.frames)  # [F, D]
        scores = {"consistency": consistency(features), **self._probe_scores(features)}
        if title:
            scores["title_similarity"] = title_similarity(features, title)
        tensors = {
            "embedding": torch.nn.functional.normalize(features.mean(dim=0), dim=0),
            "signature": torch.from_numpy(duplicates.signature(clip.frames, clip.times)),
        }
        return Outcome(key=clip.clip_id, value=ScoreResult(scores=scores), tensors=tensors)

    def _probe_scores(self, features: Tensor) -> dict[str, float]:
        return {
            name: probe_score(features, positive, negative, self._model.logit_scale)
            for name, (positive, negative) in self._probe_features.items()
        }

    @cached_property
    def _model(self) -> ClipModel:
        return load_clip(self.config.model, device=torch_device(self.config.device))

    @cached_property
    def _probe_features(self) -> dict[str, tuple[Tensor, Tensor]]:
        def features(texts: Sequence[str]) -> Tensor:
            return torch.stack([self._model.text_feature(text) for text in texts])

        return {name: (features(p.positive), features(p.negative)) for name, p in sorted(self.config.probes.items())}


def consistency(features: Tensor) -> float:
    """Mean cosine of neighbouring frames' features [F, D], -1 to 1; 1 for a single frame."""
    return float((features[1:] * features[:-1]).sum(dim=1).mean()) if len(features) > 1 else 1.0


def title_similarity(features: Tensor, title: Sequence[Tensor]) -> float:
    """Mean cosine of the frames' features [F, D] with the sentence [D] of a title that fits best, -1 to 1.

    The title of a video with several scenes tells of each in turn, and a clip shows one of them.
    """
    return max(float((features @ sentence).mean()) for sentence in title)


def sentences(title: str) -> list[str]:
    """Divide a title into its sentences, at most `SENTENCES`; what holds no letter and no digit is none."""
    parts = (part.strip() for part in _SENTENCE_ENDS.split(title))
    return [part for part in parts if any(map(str.isalnum, part))][:SENTENCES]


def probe_score(features: Tensor, positive: Tensor, negative: Tensor, logit_scale: float) -> float:
    """Chance, by CLIP's softmax, that the frames [F, D] fit any positive text [P, D] rather than any negative one [N, D]."""
    logits = logit_scale * features @ torch.cat([positive, negative]).T  # [F, P + N]
    return float(logits.softmax(dim=1)[:, : len(positive)].sum(dim=1).mean())


def sampled_frames(view: PartitionView, clip_id: str) -> NDArray[np.uint8]:
    """Read the sampled frames uint8 [F, Y, X, 3] of a clip."""
    frames: NDArray[np.uint8] = view.outcomes["split"].tensor(view.clips[clip_id].source_key, clip_id).numpy()
    return frames


def frame_times(clip: Clip) -> NDArray[np.float64]:
    """Return when the sampled frames of a clip are shown [F], 0 at its start and 1 at its end; 0 for a still image."""
    return (np.array(clip.frame_times_s) - clip.start_s) / (clip.duration_s or 1.0)


def title_of(view: PartitionView, clip_id: str) -> str:
    """Return the title of a clip's source: its text field `title`, or else its first, or "" when it has none."""
    text = view.source_of(view.clips[clip_id])[0].text
    return text.get("title") or next(iter(text.values()), "")
