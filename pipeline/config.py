"""The config of a run: one frozen dataclass a stage, each with its ranges; one YAML file says all.

Every field has its unit in its name or in its comment. What a field changes is told by the stages' fingerprints, not here.
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from omegaconf import MISSING

from packing.config import load_config
from pipeline.measures import MEASURES
from recaption import PROMPTS, Prompt

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["float32", "bfloat16", "float16"]
# Facts of every clip, and scores that every CLIP model gives, beside the measures and the config's own probes.
CLIP_FACTS = ("duration_s", "short_side_px", "aspect", "fps")
CLIP_SCORES = ("title_similarity", "consistency")
LATER_PACK_OPTIONS = ("too_long", "kind", "min_tokens", "min_pixels", "max_pixels", "drop")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _check_positive(section: str, config: object, *names: str) -> None:
    for name in names:
        _check(getattr(config, name) > 0, f"{section}.{name} must be positive, not {getattr(config, name)}")


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """What goes in: files, folders, globs or tables on any fsspec URL, and texts for them."""

    uri: Any = MISSING  # one, or a list; a csv, jsonl or parquet table with a `uri` column lists more
    text: str | None = None  # a table whose `uri` or `file` column names sources and whose other columns are their texts
    partition_size: int = 16  # sources

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(self.partition_size > 0, f"input.partition_size must be positive, not {self.partition_size}")

    @property
    def uris(self) -> list[str]:
        """All inputs as a list."""
        return [str(uri) for uri in self.uri] if isinstance(self.uri, list | tuple) else [str(self.uri)]


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How sources become clips."""

    # transitions bounds fades and dissolves and passes over flashes; the next three are PySceneDetect's, and find cuts only;
    # transnetv2 is a network, which finds both, and takes some tens of milliseconds a frame.
    detector: Literal["transitions", "adaptive", "content", "threshold", "transnetv2"] = "transitions"
    threshold: float | None = None  # of the detector: ratio, levels or chance, see pipeline/detectors.py; null: its usual one
    weights: str | None = None  # of transnetv2: a safetensors file with the names of the authors' PyTorch port
    min_shot_frames: int = 3  # two cuts are never closer
    min_clip_s: float = 0.5  # shorter clips are rejected; changing this decodes nothing again
    max_clip_s: float = 10.0  # longer shots are divided evenly
    frames_per_clip: int = 8  # sampled for the models
    frame_side_px: int = 224  # their short side
    max_bytes: int = 1 << 38  # of one source; larger ones fail unread
    max_pixels: int = 4096 * 4096  # of one frame; larger sources fail
    min_frames: int = 1  # shorter videos fail; a still image is no video and has its one
    max_frames: int = 1 << 22  # longer videos fail (19 hours at 60 fps)
    max_duration_s: float = 43_200.0  # longer videos fail
    partial: Literal["reject", "keep_prefix"] = "reject"  # what to do with a file that is broken or cut off after good frames
    timeout_s: float = 120.0  # for one source, beside the time to read it at 20 MB/s, and
    timeout_per_s: float = 20.0  # seconds more for every second of video that has been decoded
    memory_mb: int = 4096  # for one source, beyond the warm decoder
    seccomp: Literal["auto", "off", "require"] = "auto"  # whether the kernel filters the decoder's system calls
    decode_threads: int = 1
    chunk: int = 8  # sources a part

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(self.threshold is None or self.threshold > 0, f"split.threshold must be positive, not {self.threshold}")
        if self.detector == "transnetv2":
            _check(bool(self.weights), "split.detector=transnetv2 needs its weights, as split.weights=FILE.safetensors")
            _check(self.threshold is None or self.threshold < 1, f"split.threshold is a chance below 1, not {self.threshold}")
        if self.weights:  # workers run in other folders
            object.__setattr__(self, "weights", os.path.abspath(os.path.expanduser(self.weights)))
        _check_positive("split", self, "min_shot_frames", "frames_per_clip", "max_pixels", "timeout_s", "timeout_per_s")
        _check_positive("split", self, "max_bytes", "min_frames", "max_frames", "max_duration_s", "memory_mb")
        _check_positive("split", self, "decode_threads", "chunk")
        _check(0 <= self.min_clip_s < self.max_clip_s, "split.min_clip_s must be below split.max_clip_s")
        _check(self.frame_side_px >= 16, f"split.frame_side_px must be at least 16, not {self.frame_side_px}")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """A zero-shot probe: its score is the chance, by CLIP, that a frame fits `positive` rather than `negative` texts."""

    positive: list[str] = MISSING
    negative: list[str] = MISSING

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(bool(self.positive and self.negative), "a probe needs at least one positive and one negative text")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Which CLIP model scores clips, and the probes it is asked."""

    model: str = MISSING  # NAME:TAG of open_clip, hf-hub:ID, or local-dir:FOLDER
    probes: dict[str, ProbeConfig] = field(default_factory=dict)
    device: Device = "auto"
    chunk: int = 64  # clips a part

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_positive("score", self, "chunk")


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """One rule: reject a clip whose `value` lies below `min` or above `max`."""

    value: str = MISSING  # a measure, a score, a probe or a fact of the clip
    min: float | None = None
    max: float | None = None
    name: str = ""  # how rejections are counted; by default the value's name
    missing: Literal["keep", "reject"] = "keep"  # what to do with a clip that has no such value (no title, say)

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(self.min is not None or self.max is not None, f"select rule {self.value!r} needs a min or a max")


@dataclass(frozen=True, kw_only=True)
class DuplicatesConfig:
    """When a clip is rejected as a copy of an earlier clip of another source; the earlier one is packed."""

    max_distance: float = 0.38  # nearly all copies lie below 0.25, two motions on one background around 1; 0 keeps all
    max_seconds: float = 0.25  # by how much durations may differ

    def __post_init__(self) -> None:
        """Check ranges."""
        distance = self.max_distance
        _check(0 <= distance < 1, f"select.duplicates.max_distance must be at least 0 and below 1, not {distance}")
        _check(self.max_seconds >= 0, f"select.duplicates.max_seconds is not negative, not {self.max_seconds}")


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """The rules that decide, over numbers that are already there; changing them recomputes nothing."""

    rules: list[RuleConfig] = field(default_factory=list)
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """What the captioner is asked, and how long it may answer."""

    text: str = MISSING
    max_new_tokens: int = 64
    repetition_penalty: float = 1.0  # above 1 (1.05, say) breaks loops of greedy decoding

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(self.max_new_tokens > 0, f"max_new_tokens must be positive, not {self.max_new_tokens}")


@dataclass(frozen=True, kw_only=True)
class RecaptionConfig:
    """Which captioner describes clips, and its prompts by id."""

    model: str = MISSING  # a transformers image-text-to-text model: FOLDER, or ORG/NAME[@REVISION]
    prompts: dict[str, PromptConfig] = field(default_factory=dict)  # by id; none means the shipped short.v1 and dense.v1
    batch: int = 8  # clips in one call of the model
    device: Device = "auto"
    dtype: DType = "float32"
    chunk: int = 32  # clips a part

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_positive("recaption", self, "batch", "chunk")

    @property
    def asked(self) -> list[Prompt]:
        """The prompts of this run. A config's own replace the shipped ones, where a default dict would be added to."""
        if not self.prompts:
            return list(PROMPTS.values())
        return [Prompt(id=name, **asdict(prompt)) for name, prompt in self.prompts.items()]


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Which video autoencoder encodes clips, and at what size."""

    model: str = MISSING  # a diffusers autoencoder: FOLDER, or ORG/NAME[@REVISION]
    subfolder: str = ""  # where it lies in the model
    max_pixels: int = 256 * 256  # of one frame; never upscaled
    fps: float = 16.0  # frames are chosen at this rate, or at a half, a quarter … of it for slower sources
    max_frames: int = 81
    device: Device = "auto"
    dtype: DType = "float32"
    chunk: int = 16  # clips a part

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(0 < self.fps <= 1000, f"encode.fps must be positive and at most 1000, not {self.fps}")
        _check_positive("encode", self, "max_frames", "max_pixels", "chunk")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Which text encoder turns captions into features."""

    model: str = MISSING  # FOLDER or ORG/NAME[@REVISION]; for open_clip as score.model
    backend: Literal["transformers", "open_clip"] = "transformers"
    subfolder: str = ""  # where the encoder lies in the model
    tokenizer: str = ""  # where its tokenizer lies in the model, when not beside it
    max_tokens: int = 256
    device: Device = "auto"
    chunk: int = 64  # clips a part

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_positive("embed", self, "max_tokens", "chunk")


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How latents become rows and shards."""

    length: int = 36_864  # tokens in a row
    patch: tuple[int, int, int] = (1, 2, 2)  # latent frames, rows, columns to one token
    seed: int = 0
    max_segments: int = 512  # clips in a row
    shard_mb: int = 1024
    too_long: Literal["reject", "divide"] = "reject"  # what becomes of a clip longer than a row; see packing/pieces.py
    # Which of the clips that are ready are packed; others are rejected. For mixtures, curricula and tiers of lengths.
    kind: Literal["all", "images", "videos"] = "all"  # an image has one latent frame
    min_tokens: int = 1
    min_pixels: int = 1  # of one frame, as it was encoded
    max_pixels: int | None = None
    drop: float = 0.0  # share of each clip's tokens that rows leave out (NaViT); `length` is of those that are kept

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(0 <= self.drop < 1, f"pack.drop is 0 to below 1, not {self.drop}")
        _check_positive("pack", self, "length", "max_segments", "shard_mb", "min_tokens", "min_pixels")
        _check(self.max_pixels is None or self.max_pixels >= self.min_pixels, "pack.max_pixels is below pack.min_pixels")
        _check(len(self.patch) == 3 and all(side > 0 for side in self.patch), "pack.patch is three positive numbers")
        object.__setattr__(self, "patch", tuple(self.patch))  # a list, as it comes out of YAML

    def identity(self) -> dict[str, Any]:
        """Return what decides the shards; later options count only where they are used, so that old corpora stay found."""
        later = {field.name: field.default for field in fields(self) if field.name in LATER_PACK_OPTIONS}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


@dataclass(frozen=True, kw_only=True)
class ResourceConfig:
    """What one worker of a stage takes of the cluster, and how many workers there are."""

    cpus: float = 1.0
    gpus: float = 0.0
    min_workers: int = 1
    max_workers: int = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(self.cpus >= 0 and self.gpus >= 0, "resources are not negative")
        _check(0 < self.min_workers <= self.max_workers, "resources: 0 < min_workers <= max_workers")


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """How the Ray runner places work."""

    address: str = ""  # of a running cluster ("auto" finds it); empty starts Ray on this machine for the job
    cpus: int | None = None  # logical, when Ray is started here
    gpus: int | None = None  # logical, when Ray is started here
    shared_workers: int = 0  # if positive: that many workers, each for all stages; a small job is mostly worker start-up

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(self.shared_workers >= 0, f"ray.shared_workers is not negative, not {self.shared_workers}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything about one run."""

    run: str = MISSING  # folder or URL of the run
    runner: Literal["local", "ray"] = "local"
    threads: int = 1  # of torch and its libraries in every worker; part of what makes results equal bit by bit
    input: InputConfig = field(default_factory=InputConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    recaption: RecaptionConfig = field(default_factory=RecaptionConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    resources: dict[str, ResourceConfig] = field(default_factory=dict)  # by stage; "shared" for shared workers

    def __post_init__(self) -> None:
        """Check what concerns several stages."""
        _check(self.threads > 0, f"threads must be positive, not {self.threads}")
        known = [*MEASURES, *CLIP_FACTS, *CLIP_SCORES, *self.score.probes]
        for rule in self.select.rules:
            _check(rule.value in known, f"select rule over unknown value {rule.value!r}{_nearest(rule.value, known)}")
        stages = ["split", "score", "recaption", "encode", "embed", "pack", "shared"]
        for name in self.resources:
            _check(name in stages, f"resources for unknown stage {name!r}{_nearest(name, stages)}")

    def resources_of(self, stage: str) -> ResourceConfig:
        """Return what one worker of a stage takes."""
        return self.resources.get(stage, ResourceConfig())


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def load_run_config(path: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Load and check the config of a run.

    Raises:
        ConfigError: with the key and the nearest valid one.
    """
    return load_config(RunConfig, path, overrides)
