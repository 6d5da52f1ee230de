"""The config tree of a training job; every dimension of the data is read from the manifest and stands nowhere here.

Needs no torch, so that a mistake in a config is said at once.
"""

from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["auto", "fp32", "bf16"]
MIN_HEAD_WIDTH = 8  # four pairs of channels to rotate: at least one for each of t, h, w


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """The size of the transformer; what goes in and comes out is read from the manifest of the shards."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    # What the last layer says of a token, from which the velocity follows. The velocity holds all the noise of a token, so the
    # width must not be less than a token's numbers; a clean token needs what the data holds (arXiv 2511.13720, section 4.2).
    predict: Literal["velocity", "clean"] = "velocity"
    # By what each latent channel is multiplied before noise is added, none for 1 each: a channel that hardly shows in the
    # pictures should be small, so that the model learns it last and at little cost to the others.
    channel_scale: list[float] = field(default_factory=list)
    # Beside rotary positions and cross-attention, which a short training is slow to make use of:
    absolute_positions: bool = False  # add to each token where it stands in its clip, as shares of the clip's extents
    pooled_text: bool = False  # modulate by the mean of the caption's features too
    # Width of convolutions over latent cells before and after the transformer (`training.cells`), 0 for none: after a short
    # training with them, patches agree on one thing in one piece. For models that predict clean tokens.
    cell_width: int = 0
    cell_depth: int = 2  # blocks of two convolutions on either side

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "mlp_ratio"):
            if getattr(self, name) <= 0:
                raise ValueError(f"model.{name} must be positive, not {getattr(self, name)}")
        if self.cell_width < 0 or self.cell_depth < 1:
            given = f"{self.cell_width} and {self.cell_depth}"
            raise ValueError(f"model.cell_width must be 0 or more and model.cell_depth 1 or more, not {given}")
        if self.cell_width and self.predict != "clean":
            raise ValueError("model.cell_width needs model.predict=clean")
        if min(self.channel_scale, default=1.0) <= 0:
            raise ValueError(f"model.channel_scale must be positive numbers, not {self.channel_scale}")
        if self.width % (2 * self.heads):
            raise ValueError(f"model.width {self.width} must be an even multiple of model.heads {self.heads}")
        if self.head_width < MIN_HEAD_WIDTH:
            raise ValueError(f"model.width {self.width} over {self.heads} heads is less than {MIN_HEAD_WIDTH} each")

    @property
    def head_width(self) -> int:
        """Channels of one attention head, h."""
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; the defaults suit a tiny model on a laptop. A step is `global_batch` rows over all ranks."""

    out: str = ""  # folder for checkpoints, metrics.jsonl and config.yaml; by default one below the shards, for this corpus
    steps: int = 200
    global_batch: int = 8
    max_pass_tokens: int = 65_536  # a rank with more tokens in a step adds up the gradients of several passes
    seed: int = 0
    caption_drop: float = 0.1  # share of clips that train without their caption, for guidance
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of the blocks, with adamw for the rest
    lr: float = 1e-3  # of adamw
    muon_lr: float = 0.02
    warmup_steps: int = 20
    cooldown: float = 0.0  # share of the steps, at the end, over which the learning rates fall to 0
    weight_decay: float = 0.0
    grad_clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.9999  # reached gradually, so that a short run has a useful average too
    cost: list[float] = field(default_factory=list)  # of a row, by which ranks are balanced: what `clipmill calibrate` prints
    timestep_shift: float = 1.0  # above 1: more training, and sampling, at high noise
    # The squared error of a velocity at time t counts t to this power: at 0 the little noise that is left near the data weighs
    # most, though a caption says nothing of it; at 2 it is the error of the clean token.
    time_power: float = 0.0
    precision: Precision = "fp32"  # of the matrix products; auto: bf16 where the device is fast at it
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0  # CPU threads of a rank; 0 leaves it to torch
    checkpoint_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "max_pass_tokens", "checkpoint_every", "log_every"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("lr", "muon_lr", "grad_clip", "timestep_shift"):
            _require(getattr(self, name) > 0, name, "positive", getattr(self, name))
        for name in ("warmup_steps", "weight_decay", "time_power", "threads", "seed"):
            _require(getattr(self, name) >= 0, name, "zero or more", getattr(self, name))
        _require(0 <= self.caption_drop <= 1, "caption_drop", "within 0 and 1", self.caption_drop)
        _require(0 <= self.cooldown <= 1, "cooldown", "within 0 and 1", self.cooldown)
        _require(len(self.cost) in (0, 4) and min(self.cost, default=0) >= 0, "cost", "four numbers, zero or more", self.cost)
        _require(0 <= self.ema_decay < 1, "ema_decay", "at least 0 and below 1", self.ema_decay)


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A model and how to train it: what `clipmill train SHARDS CONFIG` reads."""

    model: DiTConfig = field(default_factory=DiTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def _require(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"train.{name} must be {rule}, not {value!r}")
