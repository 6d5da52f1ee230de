"""split: one decode pass over a source finds its clips, their measures and the frames that the models will see."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from pipeline.answers import Arrays
from pipeline.config import RunConfig, SplitConfig
from pipeline.decoder import Decoder
from pipeline.detectors import THRESHOLDS
from pipeline.measures import MEASURES
from pipeline.protocol import Limits
from pipeline.records import Clip, Outcome, Source, SplitResult, failed
from pipeline.scan import ScanOptions
from pipeline.sources import SourceError
from pipeline.stage import PartitionView, Stage


@dataclass(frozen=True, kw_only=True)
class Split(Stage[Source, SplitResult]):
    """One source to many clips, in a process of its own."""

    name: ClassVar[str] = "split"
    version: ClassVar[int] = 9
    reads: ClassVar[tuple[str, ...]] = ()
    value: ClassVar[type[Any]] = SplitResult
    crash: ClassVar[str] = "decoder_crash"
    config: SplitConfig

    @classmethod
    def from_config(cls, config: RunConfig) -> "Split":
        """Make the stage that a run's config describes."""
        return cls(chunk=config.split.chunk, config=config.split)

    def identity(self) -> Mapping[str, object]:
        """Return the options of the scan and the measures it takes; where it runs and what it rejects later do not count.

        Raises:
            ModelError: the detector is a network, and its weights cannot be used.
        """
        options = {name: value for name, value in asdict(self.options).items() if name not in ("weights", "weights_sha256")}
        return {**options, **_hash(self.options), "threads": None, "measures": sorted(MEASURES)}

    def keys(self, view: PartitionView) -> tuple[Sequence[str], set[str]]:
        """Return all sources of the partition."""
        keys = [source.key for source in view.partition.sources]
        return keys, set(keys)

    def inputs(self, view: PartitionView, keys: Sequence[str]) -> Sequence[Source]:
        """Return the sources of these keys."""
        return [source for source in view.partition.sources if source.key in set(keys)]

    def process(self, batch: Sequence[Source]) -> Iterable[Outcome[SplitResult]]:
        """Scan sources one after the other."""
        return [self._scan(source) for source in batch]

    def close(self) -> None:
        """End the decoder."""
        self._decoder.close()

    def _scan(self, source: Source) -> Outcome[SplitResult]:
        if source.size_bytes > self.config.max_bytes:
            return failed(source.key, "too_large", f"{source.size_bytes} bytes are over {self.config.max_bytes}")
        try:
            facts, arrays = self._decoder.run("scan", source, self.options)
        except SourceError as error:
            return failed(source.key, error.error, str(error))
        return self._outcome(source, facts, arrays)

    def _outcome(self, source: Source, facts: Mapping[str, Any], arrays: Arrays) -> Outcome[SplitResult]:
        clips = tuple(self._clip(source, facts, clip) for clip in facts["clips"])
        names = {str(i): clip.clip_id for i, clip in enumerate(clips)}
        return Outcome(
            key=source.key,
            value=SplitResult(**{**facts, "clips": clips, "quirks": tuple(facts["quirks"])}),
            tensors={names.get(name, name): torch.from_numpy(array) for name, array in arrays.items()},
        )

    def _clip(self, source: Source, facts: Mapping[str, Any], clip: Mapping[str, Any]) -> Clip:
        identity = f"{facts['source_id']}\n{clip['start_s']!r}\n{clip['end_s']!r}\n{self._digest}"
        return Clip(
            **{**clip, "frame_times_s": tuple(clip["frame_times_s"]), "crop": tuple(clip["crop"])},
            clip_id=hashlib.sha256(identity.encode()).hexdigest()[:32],
            source_key=source.key,
            source_id=facts["source_id"],
            height_px=facts["height_px"],
            width_px=facts["width_px"],
            fps=facts["fps"],
        )

    @cached_property
    def options(self) -> ScanOptions:
        """What the scan is told.

        Raises:
            ModelError: the detector is a network, and its weights cannot be used.
        """
        c, (weights, digest) = self.config, self._weights
        return ScanOptions(
            detector=c.detector,
            threshold=THRESHOLDS[c.detector] if c.threshold is None else c.threshold,
            min_shot_frames=c.min_shot_frames,
            max_clip_s=c.max_clip_s,
            frames_per_clip=c.frames_per_clip,
            frame_side_px=c.frame_side_px,
            max_pixels=c.max_pixels,
            threads=c.decode_threads,
            min_frames=c.min_frames,
            max_frames=c.max_frames,
            max_duration_s=c.max_duration_s,
            partial=c.partial,
            weights=weights,
            weights_sha256=digest,
        )

    @property
    def _weights(self) -> tuple[str, str]:
        """The file of the detector's weights, and its hash; empty where the detector is no network."""
        if self.config.detector != "transnetv2":
            return "", ""
        from pipeline.transnet import weights_sha256

        path = self.config.weights or ""
        return path, weights_sha256(path)

    @cached_property
    def _digest(self) -> str:
        """The splitter's own fingerprint, as it enters clip ids: what cuts, not what is kept of the frames."""
        options = self.options
        cutting = {"version": self.version, "detector": options.detector, "threshold": options.threshold}
        lengths = {"shot": options.min_shot_frames, "longest": options.max_clip_s}
        return hashlib.sha256(repr({**cutting, **lengths, **_hash(options)}).encode()).hexdigest()

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(decode_limits(self.config))


def _hash(options: ScanOptions) -> Mapping[str, str]:
    """Return the hash of the detector's weights; nothing where it has none, so that what was split without stays found."""
    return {"weights": options.weights_sha256} if options.weights_sha256 else {}


def decode_limits(config: SplitConfig) -> Limits:
    """Return what the decoding of one source may use."""
    return Limits(
        wall_s=config.timeout_s,
        memory_bytes=config.memory_mb << 20,
        per_video_s=config.timeout_per_s,
        longest_s=config.max_duration_s,
        seccomp=config.seccomp,
    )
