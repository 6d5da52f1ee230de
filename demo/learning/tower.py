"""The picture tower that the demo's CLIP model and its captioner start from: a small SigLIP tower that knows frames.

Told shape, colour and place directly, frame by frame and patch by patch, it learns in minutes what contrastive or caption loss
alone does not find: at this size they stay on a plateau where a shape is a guess. What is learned must be readable where the
captioner reads, in the hidden states before the last norm.

Legend: B frames, P patches (8 x 8), E width of the tower, S shapes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from demo.learning.course import Course, follow, load_model, spread
from demo.learning.examples import ATTRIBUTES, SIDE_PX, Frames, Reservoir, Wear, examples, stacked

PATCHES = 8  # along each side
WIDTH = 96
CONFIG: Mapping[str, Any] = {
    "image_size": SIDE_PX,
    "patch_size": SIDE_PX // PATCHES,
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "hidden_act": "gelu",  # as open_clip's tower has it
    "layer_norm_eps": 1e-5,
    "vision_use_head": False,
}
SEEN = ("shape", "colour", "background")  # what a single frame shows of the attributes
SYMMETRY = {"circle": 1, "square": 4, "triangle": 3, "star": 5, "cross": 4}  # a turn by 1/n changes nothing
WEAR = Wear(overlay=0.12, mark=0.12, small=0.15, damage=0.25)
TEST_SEED = 1_000_003


class Tower(nn.Module):
    """A SigLIP tower with the heads that teach it."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = SiglipVisionModel(SiglipVisionConfig(**CONFIG, attn_implementation="eager"))
        width, counts = WIDTH, {name: len(ATTRIBUTES[name]) for name in SEEN}
        self.frame_heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in counts.items()})
        self.frame_heads.update({"pose": nn.Linear(width, 8), "flags": nn.Linear(width, 2)})
        patch_sizes = {"shape": counts["shape"] + 1, "colour": counts["colour"] + 1, "main": 1, "pose": 6}
        self.patch_heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in patch_sizes.items()})
        spread(self)

    def forward(self, pictures: NDArray[np.uint8]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Answer for pictures uint8 [B, 64, 64, 3]: logits and numbers of each frame [B, n], and of each patch [B, P, n]."""
        states = hidden_states(self.vision, normalised(pictures))
        mean = states.mean(dim=1)
        of_frames = {name: head(mean).float() for name, head in self.frame_heads.items()}
        return of_frames, {name: head(states).float() for name, head in self.patch_heads.items()}


def normalised(pictures: NDArray[np.uint8]) -> Tensor:
    """Turn pictures uint8 [B, Y, X, 3] into pixels float32 [B, 3, Y, X] as both models' preprocessing does."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    return (pixels - mean) / std


def hidden_states(vision: Any, pixels: Tensor, *, ahead: int = 0) -> Tensor:
    """Return the states [B, P, E] that a captioner reads, the last before the norm, or those so many layers ahead of them."""
    states: Tensor = vision(pixels, output_hidden_states=True).hidden_states[-1 - ahead]
    return states


def loss_of(tower: Tower, frames: Frames) -> Tensor:
    """Return how badly a tower knows frames: attributes, defects, places and turns."""
    of_frames, of_patches = tower(frames.pictures)
    labels = torch.from_numpy(frames.labels)
    weights = {"shape": 1.0, "colour": 0.5, "background": 0.5}
    loss = torch.zeros(())
    for name, weight in weights.items():
        loss = loss + weight * functional.cross_entropy(of_frames[name], labels[:, list(ATTRIBUTES).index(name)])
    flags = torch.from_numpy(frames.flags).float()
    loss = loss + functional.binary_cross_entropy_with_logits(of_frames["flags"], flags)
    loss = loss + functional.mse_loss(of_frames["pose"], torch.from_numpy(_frame_poses(frames)))
    return loss + _patch_loss(of_patches, frames)


def _patch_loss(answers: dict[str, Tensor], frames: Frames) -> Tensor:
    owner, offsets = _owners(frames)
    rows = np.arange(len(owner))[:, None]
    kinds = np.where(owner[..., None] >= 0, frames.kinds[rows, owner], -1) + 1  # [B, P, 2]: 0 is the ground
    targets, covered = torch.from_numpy(kinds), torch.from_numpy(owner >= 0)
    loss = torch.zeros(())
    for number, (name, weight) in enumerate((("shape", 1.0), ("colour", 0.3))):
        told = functional.cross_entropy(answers[name].flatten(0, 1), targets[..., number].flatten(), reduction="none")
        balance = torch.where(covered.flatten(), 1.0, 0.1)  # most patches are ground, which is easy
        loss = loss + weight * (told * balance).sum() / balance.sum()
    is_main = torch.from_numpy(owner == 0)
    loss = loss + functional.binary_cross_entropy_with_logits(answers["main"][..., 0], is_main.float())
    poses = torch.from_numpy(_patch_poses(frames, offsets))
    return loss + 0.5 * functional.mse_loss(answers["pose"][is_main], poses[is_main])


def _owners(frames: Frames) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return which shape covers each patch [B, P], -1 for the ground, and how far its centre is off [B, P, S, 2] in shares."""
    middle = (np.arange(PATCHES, dtype=np.float32) + 0.5) / PATCHES
    places = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)  # [P, 2]: x, y
    centres, radii = frames.poses[:, None, :, :2], frames.poses[:, None, :, 2:4]  # [B, 1, S, 2]
    offsets = (centres - places[None, :, None] + 0.5) % 1 - 0.5  # what leaves on one side comes in on the other
    reach = np.maximum(0.8 * radii, 0.5 / PATCHES)
    inside = (np.square(offsets / reach).sum(axis=-1) <= 1) & (frames.kinds[:, None, :, 0] >= 0)  # [B, P, S]
    return np.where(inside.any(axis=-1), inside.argmax(axis=-1), -1), offsets.astype(np.float32)


def _turns(frames: Frames) -> NDArray[np.float32]:
    """Return sine and cosine [B, 2] of the main shape's angle, alike for angles that look alike."""
    folds = np.array([SYMMETRY[scene.main.shape] for scene in frames.scenes])
    angle = frames.poses[:, 0, 4] * folds
    return np.stack([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def _frame_poses(frames: Frames) -> NDArray[np.float32]:
    around = 2 * np.pi * frames.poses[:, 0, :2]
    return np.concatenate(
        [np.sin(around), np.cos(around), 4 * frames.poses[:, 0, 2:4], _turns(frames)], axis=1, dtype=np.float32
    )


def _patch_poses(frames: Frames, offsets: NDArray[np.float32]) -> NDArray[np.float32]:
    whole = np.concatenate([4 * frames.poses[:, 0, 2:4], _turns(frames)], axis=1, dtype=np.float32)
    return np.concatenate([4 * offsets[:, :, 0], np.repeat(whole[:, None], offsets.shape[1], axis=1)], axis=2, dtype=np.float32)


def accuracy(tower: Tower, frames: Frames) -> dict[str, float]:
    """Return the share of frames whose shape, colour, background and defects a tower names rightly."""
    of_frames, _ = tower(frames.pictures)
    said = {name: of_frames[name].argmax(dim=1).numpy() for name in SEEN}
    right = {name: float((said[name] == frames.labels[:, list(ATTRIBUTES).index(name)]).mean()) for name in SEEN}
    flagged = (of_frames["flags"] > 0).numpy() == frames.flags
    return {**right, "overlay": float(flagged[:, 0].mean()), "mark": float(flagged[:, 1].mean())}


def trained_vision(folder: Path) -> SiglipVisionModel:
    """Load the tower that a run of this module left in a folder, without its heads."""
    tower = Tower()
    load_model(folder / "state.safetensors", tower)
    return tower.vision.eval()


def train(folder: Path, *, cpu_s: float, seed: int = 0, stock: int = 3000) -> Tower:
    """Train a tower for so many CPU seconds; the state is left in `folder`."""
    torch.manual_seed(seed)
    tower = Tower()
    reservoir = Reservoir(np.random.Generator(np.random.Philox(seed)), WEAR, size=stock, fresh=6)
    test = stacked(list(examples(TEST_SEED, 400, WEAR)), np.arange(400) % 8 / 8)

    def report() -> str:
        return " ".join(f"{name} {value:.3f}" for name, value in accuracy(tower, test).items())

    course = Course(folder=folder, cpu_s=cpu_s, muon_lr=2e-2)
    follow(course, tower, lambda: loss_of(tower, reservoir.batch(128)), report)
    return tower


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--cpu-s", default=600.0, show_default=True, help="CPU seconds to train for.")
@click.option("--seed", default=0, show_default=True, help="Seed of weights and clips.")
def main(folder: Path, cpu_s: float, seed: int) -> None:
    """Train the picture tower, and leave it in FOLDER."""
    torch.set_num_threads(1)
    train(folder, cpu_s=cpu_s, seed=seed)


if __name__ == "__main__":
    main()
