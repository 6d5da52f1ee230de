"""Train a diffusion transformer from packed shards, and sample videos from it.

    from training import TrainJob, sample_video, train

    checkpoint = train(TrainJob(), "run/")
    frames = sample_video(checkpoint, "a red circle moves left", height_px=64, width_px=64, seconds=2)

Names are imported when they are first used, so that `import training` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.attention import Segments, segment_attention
    from training.config import DiTConfig, TrainConfig, TrainJob
    from training.meter import StepReport
    from training.model import DiT
    from training.sampler import VideoSampler, sample_video, write_mp4
    from training.trainer import train

__all__ = [
    "DiT",
    "DiTConfig",
    "Segments",
    "StepReport",
    "TrainConfig",
    "TrainJob",
    "VideoSampler",
    "sample_video",
    "segment_attention",
    "train",
    "write_mp4",
]

_HOME = {
    "DiT": "model",
    "DiTConfig": "config",
    "Segments": "attention",
    "StepReport": "meter",
    "TrainConfig": "config",
    "TrainJob": "config",
    "VideoSampler": "sampler",
    "sample_video": "sampler",
    "segment_attention": "attention",
    "train": "trainer",
    "write_mp4": "sampler",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that holds it."""
    if name not in _HOME:
        raise AttributeError(f"module 'training' has no attribute {name!r}")
    return getattr(import_module(f"training.{_HOME[name]}"), name)
