"""recaption: a video captioner describes the sampled frames of a clip, once for every prompt."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

from packing.errors import ModelError
from packing.models import model_folder, model_identity, model_label
from pipeline.config import RecaptionConfig, RunConfig
from pipeline.records import CaptionText, Outcome, RecaptionResult, failed
from pipeline.stage import PartitionView, Stage, torch_device
from pipeline.stages.score import sampled_frames
from recaption import Caption, Captioner, CaptionerError, CaptionFailure, ClipFrames


@dataclass(frozen=True, kw_only=True)
class Recaption(Stage[ClipFrames, RecaptionResult]):
    """Several captions a clip, by a model behind the `Captioner` protocol."""

    name: ClassVar[str] = "recaption"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("split",)
    value: ClassVar[type[Any]] = RecaptionResult
    config: RecaptionConfig

    @classmethod
    def from_config(cls, config: RunConfig) -> "Recaption":
        """Make the stage that a run's config describes."""
        return cls(chunk=config.recaption.chunk, config=config.recaption)

    def identity(self) -> Mapping[str, object]:
        """Return the model's weights, the prompts, and what batches a clip is part of."""
        prompts = [asdict(prompt) for prompt in self.config.asked]
        weights = model_identity(self.config.model)
        return {"weights": weights, "prompts": prompts, "batch": self.config.batch, "dtype": self.config.dtype}

    def keys(self, view: PartitionView) -> tuple[Sequence[str], set[str]]:
        """Return all clips; those that every rule keeps are captioned."""
        return list(view.clips), set(view.selected(scored=True))

    def inputs(self, view: PartitionView, keys: Sequence[str]) -> Sequence[ClipFrames]:
        """Read the sampled frames of these clips with their times from the clip's start."""
        clips = view.clips
        return [
            ClipFrames(
                clip_id=key,
                frames=sampled_frames(view, key),
                times_s=tuple(time_s - clips[key].start_s for time_s in clips[key].frame_times_s),
                duration_s=clips[key].duration_s,
            )
            for key in keys
        ]

    def setup(self) -> None:
        """Load the captioner."""
        _ = self._captioner

    def process(self, batch: Sequence[ClipFrames]) -> Iterable[Outcome[RecaptionResult]]:
        """Caption all clips with one prompt after the other."""
        answers = [self._captioner.caption(batch, prompt) for prompt in self.config.asked]
        return [self._outcome(clip.clip_id, of_clip) for clip, of_clip in zip(batch, zip(*answers, strict=True), strict=True)]

    def _outcome(self, clip_id: str, answers: Sequence[Caption | CaptionFailure]) -> Outcome[RecaptionResult]:
        usable = [a for a in answers if isinstance(a, Caption) and a.text]
        if not usable:
            refused = next((a for a in answers if isinstance(a, CaptionFailure)), None)
            return failed(clip_id, refused.error if refused else "empty_caption", refused.message if refused else "no text")
        captions = tuple(
            CaptionText(
                prompt=caption.prompt_id,
                text=caption.text,
                raw_text=caption.raw_text,
                finish=caption.finish,
                mean_logprob=caption.mean_logprob,
                tokens=caption.tokens,
                flags=tuple(caption.flags),
            )
            for caption in usable
        )
        return Outcome(key=clip_id, value=RecaptionResult(model=model_label(self.config.model), captions=captions))

    @cached_property
    def _captioner(self) -> Captioner:
        from recaption import load_captioner  # transformers loads in seconds, and only workers with something to do need it

        c = self.config
        try:
            return load_captioner(
                str(model_folder(c.model)), revision=None, device=torch_device(c.device), dtype=c.dtype, batch=c.batch
            )
        except CaptionerError as error:
            raise ModelError(str(error)) from error
