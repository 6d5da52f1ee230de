"""Checkpoints: plain folders of safetensors and JSON, whole or absent, from which training goes on exactly.

    step-000020/
        model.safetensors       weights, fp32
        ema.safetensors         their running average: what `sample` loads
        optimizer.safetensors   moments (and step counts) of every weight, named `<moment>:<weight>`
        state.json              step, loader state, resolved config, manifest of the shards

A checkpoint is written to a hidden folder beside it, synced, and renamed: a folder that has the name of a checkpoint is
complete. Nothing is pickled. Cost: 16 bytes a parameter on disk for each checkpoint; old ones stay.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from packing.errors import ModelError
from packing.manifest import Manifest
from training.config import DiTConfig, TrainConfig, TrainJob
from training.model import DiT, dit_for
from training.muon import Muon

FORMAT = "clipmill-checkpoint-v1"
NAME = re.compile(r"step-\d{6,}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands, and all that sampling needs to know of it when the shards are gone."""

    step: int  # optimizer steps done
    loader: Mapping[str, Any]  # `ShardLoader.state_dict()`: the next batch to train on
    job: TrainJob
    manifest: Manifest

    def to_json(self) -> str:
        """Write the record as the text of `state.json`."""
        facts = {"step": self.step, "loader": dict(self.loader), "config": asdict(self.job)}
        return json.dumps({"format": FORMAT, **facts, "manifest": json.loads(self.manifest.to_json())}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Progress":
        """Read the text of `state.json`."""
        facts = json.loads(text)
        config = facts["config"]
        return cls(
            step=facts["step"],
            loader=facts["loader"],
            job=TrainJob(model=DiTConfig(**config["model"]), train=TrainConfig(**config["train"])),
            manifest=Manifest.from_json(json.dumps(facts["manifest"])),
        )


def save_checkpoint(
    out: Path, progress: Progress, model: nn.Module, ema: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]
) -> Path:
    """Write the checkpoint of this step into `out` and returns its folder; one that is there already is left alone."""
    folder = checkpoint_folder(out, progress.step)
    if folder.exists():
        return folder
    partial = out / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a crash left of an attempt at this very step
    partial.mkdir(parents=True)
    (partial / "state.json").write_text(progress.to_json())
    _save(model.state_dict(), partial / "model.safetensors")
    _save(ema, partial / "ema.safetensors")
    _save(optimizer_tensors(model, optimizers), partial / "optimizer.safetensors")
    for path in (*partial.iterdir(), partial):
        _sync(path)
    partial.rename(folder)
    _sync(out)
    return folder


def checkpoint_folder(out: Path, step: int) -> Path:
    """Name the folder of the checkpoint that a run writes to `out` after `step` steps."""
    return out / f"step-{step:06d}"


def newest_checkpoint(out: Path) -> Path | None:
    """Find the checkpoint of the highest step in a training output folder, or None; unfinished ones do not count."""
    found = [path for path in out.glob("step-*") if NAME.fullmatch(path.name) and (path / "state.json").is_file()]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def find_checkpoint(path: Path) -> Path:
    """Take a checkpoint folder as it is and a training output folder as its newest checkpoint.

    Raises:
        ModelError: it is neither.
    """
    folder = path if (path / "state.json").is_file() else newest_checkpoint(path)
    if folder is None:
        raise ModelError(f"no checkpoint at {path}: give a folder step-NNNNNN or the output folder of `clipmill train`")
    return folder


def read_progress(folder: Path) -> Progress:
    """Read `state.json` of a checkpoint.

    Raises:
        ModelError: it is not one of ours.
    """
    text = (folder / "state.json").read_text()
    try:
        return Progress.from_json(text)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'state.json'} is not a {FORMAT} state: {error!r}") from error


def load_weights(folder: Path, model: nn.Module, name: str = "model") -> None:
    """Fill the model with the weights of a checkpoint: `model` as trained last, `ema` their average."""
    try:
        model.load_state_dict(_load(folder / f"{name}.safetensors"))
    except RuntimeError as error:
        raise ModelError(f"the weights in {folder} do not fit the model: {error}") from error


def load_ema(folder: Path) -> dict[str, Tensor]:
    """Read the running average of the weights."""
    return _load(folder / "ema.safetensors")


def load_optimizers(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Put the moments of a checkpoint back; learning rate and decay stay as the optimizers have them.

    Raises:
        ModelError: the checkpoint was trained by other optimizers.
    """
    try:
        restore_optimizers(model, optimizers, _load(folder / "optimizer.safetensors"))
    except ValueError as error:
        raise ModelError(f"{folder} was trained with another train.optimizer: choose another train.out") from error


def optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the state of the optimizers of a model as tensors named `<moment>:<weight>`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{moment}:{names[parameter]}": tensor
        for optimizer in optimizers
        for parameter, moments in optimizer.state.items()
        for moment, tensor in moments.items()
    }


def restore_optimizers(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Give optimizers the state that `optimizer_tensors` returned; learning rate and decay stay as they have them.

    Raises:
        ValueError: the state is that of other optimizers.
    """
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        moment, name = key.split(":", maxsplit=1)
        state.setdefault(name, {})[moment] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
        if any(("momentum" in state[name]) != isinstance(optimizer, Muon) for name in ordered if name in state):
            raise ValueError("this state is of other optimizers")
        numbered = {i: state[name] for i, name in enumerate(ordered) if name in state}
        optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})


def load_dit(folder: Path, progress: Progress) -> DiT:
    """Build the averaged model of a checkpoint, ready to sample from on the CPU."""
    model = dit_for(progress.job.model, progress.manifest)
    load_weights(folder, model, "ema")
    return model.eval()


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    shutil.copymode(path.with_name("state.json"), path)  # safetensors writes for the owner alone; others sample too


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    return tensors


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
