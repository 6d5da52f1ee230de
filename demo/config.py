"""The config of a demo: its world, how many videos are sampled, and where natural videos are."""

from dataclasses import dataclass, field

from demo.drawing import WorldConfig


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What `clipmill demo` reads of its overrides; the others go to the ingest and to the training."""

    world: WorldConfig = field(default_factory=WorldConfig)
    samples: int = 24  # videos made after training
    natural: str = ""  # folder of natural videos that the codec is measured on too; by default ../shared/data/videos, if there

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
