"""The transformers backend: any model with a video chat template, from a hub id or a local folder.

The only module of the package that imports torch. It works through the generic classes (`AutoProcessor`,
`AutoModelForImageTextToText`), so a new family needs no code here; the traps of those classes are closed
once, in `_inputs`, `_generate` and `load_captioner`. Decoding is greedy. Answers depend on the clips, their
order, `batch`, dtype and device, and on nothing else; a clip alone and a clip in a batch give the same text
in float32, not always in bfloat16.

`generate` keeps the float32 logits of every step, `max_new_tokens x batch x vocabulary x 4` bytes: 0.8 GB for
320 tokens, 4 clips and a vocabulary of 152,000.

Shapes: B clips of a batch, S answer tokens of the longest answer, P prompt tokens, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from recaption.captioner import (
    Caption,
    Captioner,
    CaptionerError,
    CaptionFailure,
    ClipFrames,
    Prompt,
    frame_problem,
    isolate,
    plan_batches,
)
from recaption.checks import caption_flags, clean_caption

CLOCK_FPS: Final = 1000
"""Rate of the clock in which models are told the time of a frame: a frame's index is its millisecond."""

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The accepted names of a dtype, besides `auto`."""

_FATAL: Final = (CaptionerError, ImportError, torch.AcceleratorError)
"""Not the fault of a clip. After an accelerator error every call on the device fails: restart the worker."""

_NO_VIDEO: Final = "its processor does not turn a video block of a chat into pixels; choose a video model"
_MEND: Final = "name a hub id or a folder with config, processor, chat template and safetensors weights"


class ContextOverflowError(ValueError):
    """The prompt, the frames of a clip and the longest answer need more positions than the model has."""


class HFCaptioner:
    """A loaded processor and model behind the `Captioner` protocol; make one with `load_captioner`.

    Attributes:
        model_id: the model as it was asked for, with `@revision` where one was given.
    """

    def __init__(self, model_id: str, processor: ProcessorMixin, model: PreTrainedModel, batch: int) -> None:
        """Take over a processor and a placed model; `batch` is the most clips of one `generate` call.

        Raises:
            CaptionerError: the processor drops video, so that the model would caption nothing.
        """
        self.model_id = model_id
        self._processor: Any = processor
        self._model: Any = model.eval()
        self._batch = batch
        self._stop_ids = _stop_ids(model, processor)
        # Released settings may sample, penalise or force tokens, and would fill in whatever we leave unset.
        ends = {"eos_token_id": sorted(self._stop_ids), "pad_token_id": self._pad_id()}
        self._model.generation_config = GenerationConfig(**ends)
        self._probe()

    def caption(self, clips: Sequence[ClipFrames], prompt: Prompt) -> list[Caption | CaptionFailure]:
        """Caption every clip, in order; see `Captioner.caption`.

        Raises:
            CaptionerError: the prompt holds one of the model's control tokens.
        """
        self._refuse_control_tokens(prompt)
        outcomes: dict[int, Caption | CaptionFailure] = {}
        fit: dict[int, int] = {}  # index -> frames
        for index, clip in enumerate(clips):
            if problem := frame_problem(clip):
                outcomes[index] = _failure(clip, prompt, "bad_frames", problem)
            else:
                fit[index] = len(clip.frames)
        for group in plan_batches(fit, self._batch):
            captions = self._survive([clips[index] for index in group], prompt)
            outcomes.update(zip(group, captions, strict=True))
        return [outcomes[index] for index in range(len(clips))]

    def _survive(self, clips: Sequence[ClipFrames], prompt: Prompt) -> list[Caption | CaptionFailure]:
        """Caption one batch; clips that raise become failures and cost the others nothing but time."""
        results = isolate(lambda some: self._caption_batch(some, prompt), clips, fatal=_FATAL)
        return [
            _failure(clip, prompt, type(got).__name__, str(got)) if isinstance(got, Exception) else got
            for clip, got in zip(clips, results, strict=True)
        ]

    def _caption_batch(self, clips: Sequence[ClipFrames], prompt: Prompt) -> list[Caption | CaptionFailure]:
        """Caption clips of one frame count in one `generate` call."""
        inputs = self._inputs(clips, prompt.text)
        self._check_length(inputs, prompt)
        answers, logprobs = self._generate(inputs, prompt)
        return [
            self._read(clip, prompt, answer, logprob)
            for clip, answer, logprob in zip(clips, answers.tolist(), logprobs.tolist(), strict=True)
        ]

    def _inputs(self, clips: Sequence[ClipFrames], text: str) -> BatchFeature:
        """Build the inputs through the model's own chat template, and prove that pixels are among them."""
        inputs: BatchFeature = self._processor.apply_chat_template(
            [_conversation(clip, text) for clip in clips],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            return_tensors="pt",
            processor_kwargs={
                "padding": True,
                "padding_side": "left",  # with padding on the right the answer would continue the pad tokens
                "do_sample_frames": False,  # several families drop frames unless told not to
                "video_metadata": [video_metadata(clip) for clip in clips],
                "input_data_format": "channels_last",  # guessed from the shape otherwise
            },
        )
        seen = any(name.startswith("pixel_values") for name in inputs)
        if not seen or len(inputs["input_ids"]) != len(clips):
            raise CaptionerError(f"{self.model_id}: unsupported_modality: {_NO_VIDEO}")
        return self._place(inputs)

    def _place(self, inputs: BatchFeature) -> BatchFeature:
        """Move inputs to the model's device; only pixels take its dtype, since times would lose precision."""
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor):
                dtype = self._model.dtype if name.startswith("pixel_values") else value.dtype
                inputs[name] = value.to(self._model.device, dtype)
        return inputs

    def _check_length(self, inputs: BatchFeature, prompt: Prompt) -> None:
        """Raise ContextOverflowError where prompt, frames and answer do not fit: nobody else checks."""
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        needed = int(inputs["attention_mask"].sum(-1).max()) + prompt.max_new_tokens
        if limit is not None and needed > limit:
            raise ContextOverflowError(f"{needed} tokens, {limit} positions; show fewer frames")

    @torch.inference_mode()
    def _generate(self, inputs: BatchFeature, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode greedily; return answer tokens `[B, S]` and their log-probabilities `[B, S]` on the CPU.

        The scores come from the raw logits: a repetition penalty changes the choice, not its score.
        """
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=prompt.repetition_penalty,
            max_new_tokens=prompt.max_new_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
        output = self._model.generate(**inputs, generation_config=settings)
        answers = output.sequences[:, inputs["input_ids"].shape[1] :]  # [B, P + S] -> [B, S]
        steps = [
            logits.log_softmax(-1).gather(-1, chosen[:, None])  # [B, V] -> [B, 1]
            for logits, chosen in zip(output.logits, answers.unbind(1), strict=True)
        ]
        return answers.cpu(), torch.cat(steps, dim=1).cpu()

    def _read(self, clip: ClipFrames, prompt: Prompt, answer: list[int], logprobs: list[float]) -> Caption | CaptionFailure:
        """Turn one row of tokens into a caption."""
        length, stopped = answer_end(answer, self._stop_ids)
        mean_logprob = sum(logprobs[:length]) / length
        if not math.isfinite(mean_logprob):
            return _failure(clip, prompt, "not_finite", "the logits overflowed; use dtype=float32")
        written = answer[: length - 1] if stopped else answer
        raw_text = self._processor.tokenizer.decode(written)  # special tokens too: a leak must be seen
        text = clean_caption(raw_text)
        return Caption(
            clip_id=clip.clip_id,
            prompt_id=prompt.id,
            text=text,
            raw_text=raw_text,
            finish="stop" if stopped else "length",
            mean_logprob=mean_logprob,
            tokens=length,
            flags=caption_flags(text, truncated=not stopped),
        )

    def _refuse_control_tokens(self, prompt: Prompt) -> None:
        """Raise CaptionerError for a prompt that would write chat markup or video placeholders of its own."""
        tokenizer = self._processor.tokenizer
        control = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        found = sorted(token for token in control if token.strip() and token in prompt.text)
        if found:
            culprit = f"{found[0]} is a control token of {self.model_id}"
            raise CaptionerError(f"prompt {prompt.id}: {culprit}; remove it from the text")

    def _pad_id(self) -> int:
        """The token that fills up finished rows: any will do, since reading stops at the end token."""
        pad_id = self._processor.tokenizer.pad_token_id
        return min(self._stop_ids, default=0) if pad_id is None else int(pad_id)

    def _probe(self) -> None:
        """Show the processor four blank frames, so that a model that cannot take them fails at once."""
        frames = np.zeros((4, 64, 64, 3), np.uint8)
        blank = ClipFrames(clip_id="probe", frames=frames, times_s=(0.0, 0.5, 1.0, 1.5), duration_s=2.0)
        try:
            self._inputs([blank], "Describe the video.")
        except CaptionerError:
            raise
        except Exception as error:  # processors raise anything
            reason = f"{_NO_VIDEO}: {_line(error)}"
            raise CaptionerError(f"{self.model_id}: unsupported_modality: {reason}") from error


def load_captioner(model: str, *, revision: str | None, device: str, dtype: str, batch: int) -> Captioner:
    """Load a captioner from a hub id or a folder, on one device, and check that it takes video.

    Code that comes with a checkpoint is never run and only safetensors weights are read.

    Args:
        model: hub id, or path of a folder written by `save_pretrained`.
        revision: branch, tag or commit on the hub; None for the default one, and for folders.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        dtype: `auto` (bfloat16 on CUDA, float32 on the CPU) or a name of `DTYPES`.
        batch: the most clips of one `generate` call.

    Raises:
        CaptionerError: no such model, not a video model, incomplete weights, or an argument out of range.
    """
    if batch < 1:
        raise CaptionerError(f"batch is {batch}, must be at least 1")
    if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
        raise CaptionerError(f"{model}: no such folder; {_MEND}")
    place = _device(device)
    number_type = _dtype(dtype, place)
    source = {"pretrained_model_name_or_path": model, "trust_remote_code": False}
    if revision is not None:
        source["revision"] = revision
    try:
        processor = AutoProcessor.from_pretrained(**source)
        network, report = AutoModelForImageTextToText.from_pretrained(
            **source, dtype=number_type, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # loaders raise anything
        raise CaptionerError(f"{model}: transformers cannot load it ({_line(error)}); {_MEND}") from error
    if missing := sorted(report["missing_keys"]):  # transformers fills them with random numbers and goes on
        raise CaptionerError(f"{model}: weights are incomplete, {missing[0]} is missing; {_MEND}")
    model_id = model if revision is None else f"{model}@{revision}"
    return HFCaptioner(model_id, processor, network.to(place), batch)


def video_metadata(clip: ClipFrames) -> dict[str, Any]:
    """Tell a processor when each frame is shown, on a clock of milliseconds.

    Processors compute a frame's time as index / fps. Real frame numbers with a nominal rate would bend the
    times of videos with a variable rate, and the numbers 0..T-1 would compress them; milliseconds reproduce
    any time to 0.5 ms.
    """
    indices = [round(time_s * CLOCK_FPS) for time_s in clip.times_s]
    height_px, width_px = clip.frames.shape[1:3]
    return {
        "fps": float(CLOCK_FPS),
        "frames_indices": indices,
        "total_num_frames": max(round(clip.duration_s * CLOCK_FPS), indices[-1] + 1),
        "duration": clip.duration_s,
        "height": height_px,
        "width": width_px,
    }


def answer_end(answer: Sequence[int], stop_ids: frozenset[int]) -> tuple[int, bool]:
    """Return the number of tokens up to and with the first stop token, and whether there is one.

    A stop token at the very limit is a stop; what follows it is padding and belongs to no mean.
    """
    for position, token in enumerate(answer):
        if token in stop_ids:
            return position + 1, True
    return len(answer), False


def _stop_ids(model: PreTrainedModel, processor: Any) -> frozenset[int]:
    """The tokens that end an answer: those of the released settings (one, many, none) and the tokenizer's."""
    released = getattr(model.generation_config, "eos_token_id", None)
    listed = released if isinstance(released, list) else [released]
    return frozenset(token for token in [*listed, processor.tokenizer.eos_token_id] if token is not None)


def _conversation(clip: ClipFrames, text: str) -> list[dict[str, Any]]:
    """One user turn: the clip, then the question."""
    frames = np.array(clip.frames)  # a copy: torch takes neither read-only arrays nor negative strides
    return [{"role": "user", "content": [{"type": "video", "video": frames}, {"type": "text", "text": text}]}]


def _failure(clip: ClipFrames, prompt: Prompt, error: str, message: str) -> CaptionFailure:
    """A failure of this clip under this prompt, its message on one line."""
    line = " ".join(message.split())
    return CaptionFailure(clip_id=clip.clip_id, prompt_id=prompt.id, error=error, message=line)


def _line(error: Exception) -> str:
    """The first line of an error, with its type."""
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first}"


def _device(name: str) -> torch.device:
    """Resolve a device name, and refuse one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CaptionerError(f"device is {name}, but torch finds no CUDA; use device=auto or device=cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise CaptionerError(f"device is {name!r}, must be auto, cpu, cuda or cuda:N") from error


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve a dtype name for a device."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise CaptionerError(f"dtype is {name!r}, must be one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]
