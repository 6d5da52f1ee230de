"""Trains the demo's video autoencoder, a Wan class of diffusers with strides 2, 8, 8, on the world and on natural clips.

Run it again with `--resume` after an interruption: the schedule runs from where it stopped to the new end; with `--share` from
an earlier place, which trains on what is finished. Every few minutes it writes a checkpoint and exports the averaged weights
into the work folder, each under its final name in one rename. Memory: about 2 GB.

    python -m demo.learning.train_codec demo/weights/codec --natural VIDEOS --work runs/codec --until 15:40

What makes it fast on a CPU: bfloat16, Muon, and the form of `codec_form.py`. The loss is the mean over clips of the logarithm
of the squared error: the decibels that the model is judged by.

Legend: B batch; F Y X frames, rows, columns of pixels in [-1, 1]; C T H W latent channels and grid.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.figures import psnr_db
from demo.learning.codec_clips import NaturalFile, family, natural_clip, natural_crop, natural_files, sizes, world_clip
from demo.learning.codec_form import CONFIG, as_video, encode, new_codec, reconstruct
from demo.learning.course import cosine
from demo.natural import TRAINED_ON
from demo.scenes import Pictures
from packing.codec import load_codec
from training.checkpoint import optimizer_tensors, restore_optimizers
from training.muon import make_optimizers, set_rate
from training.precision import products

MUON_LR, ADAM_LR = 1e-2, 2e-3
WORLD_SHARE = 0.75  # of the clips trained on
KL_WEIGHT = 0.01  # costs half a percent of the error, and keeps latents near unit variance
EMA_DECAY = 0.998
CHECKPOINT_S, EXPORT_S, JUDGE_S = 180.0, 600.0, 420.0
SEED = 0
UNSEEN_SEED = 10**9  # world clips from here on are only judged
_SOFT_CROP, _SOFT_WHOLE = 1e-2, 6e-4  # squared error, of pixels in [-1, 1], below which a clip hardly counts more
CANDIDATES = 3  # random windows of a world clip, of which the most detailed one is taken: backgrounds are learned soon
RENEWED = 0.5  # world clips drawn anew for a batch
_POOL = 1500  # world clips kept, each seen many times in other crops
_POOL_FRAMES = 33


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What batches are made of until a share of the training is over.

    Attributes:
        until: that share.
        batches: clips in a batch by their number of frames. A model that never saw long clips fails on them: 4 dB after twice
            as many frames, since it tells from the padding before the first one how far it is.
        crop: side of a random square in pixels, or 0 for whole frames.
    """

    until: float
    batches: Mapping[int, int]
    crop: int


STAGES = (
    Stage(until=0.16, batches={9: 8}, crop=32),
    Stage(until=0.55, batches={9: 8, 17: 5, 33: 3}, crop=32),
    Stage(until=1.0, batches={9: 3, 17: 2, 33: 1}, crop=0),
)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training is: the share of the schedule, steps, and seconds of this process's CPU time."""

    share: float = 0.0
    steps: int = 0
    cpu_s: float = 0.0


class Trainer:
    """The model, its average, and its optimisers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.model = new_codec(seed)
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimizers = make_optimizers(self.model, muon_lr=MUON_LR, adam_lr=ADAM_LR)
        self.progress = Progress()

    def step(self, video: Tensor, soft: float = _SOFT_WHOLE) -> float:
        """Learn from a batch [B, 3, F, Y, X]; return the loss."""
        with products("auto", "cpu"):
            back, mean, log_variance = reconstruct(self.model, video, noisy=True)
        loss = _log_error(back, video, soft) + KL_WEIGHT * _kl(mean, log_variance)
        loss.backward()  # type: ignore[no-untyped-call]
        set_rate(self.optimizers, cosine(self.progress.share))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        keep = min(EMA_DECAY, (1 + self.progress.steps) / (10 + self.progress.steps))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.average[name].lerp_(parameter, 1 - keep)
        return loss.item()

    def advance(self, share: float) -> None:
        """Say how far the training is, which decides the learning rate."""
        self.progress = replace(self.progress, share=share)

    def averaged(self) -> AutoencoderKLWan:
        """Return a model with the averaged weights."""
        model = AutoencoderKLWan(**CONFIG)
        model.load_state_dict(self.average)
        return model.eval().requires_grad_(False)

    def save(self, file: Path) -> None:
        """Write everything that training needs to go on."""
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        tensors |= {f"average.{name}": p for name, p in self.average.items()}
        tensors |= optimizer_tensors(self.model, self.optimizers)
        p = self.progress
        draft = file.with_suffix(".draft")
        save_file(tensors, draft, {"share": repr(p.share), "steps": str(p.steps), "cpu_s": repr(p.cpu_s)})
        draft.rename(file)

    def load(self, file: Path) -> None:
        """Go on from what `save` wrote."""
        tensors = load_file(file)
        self.model.load_state_dict({name: tensors[f"model.{name}"] for name in self.average})
        self.average = {name: tensors[f"average.{name}"] for name in self.average}
        moments = {name: tensor for name, tensor in tensors.items() if ":" in name}
        restore_optimizers(self.model, self.optimizers, moments)
        with safe_open(file, "pt") as opened:
            facts = opened.metadata()
        self.progress = Progress(share=float(facts["share"]), steps=int(facts["steps"]), cpu_s=float(facts["cpu_s"]))


class Batches:
    """Draws batches: of the world from a pool that is renewed clip by clip, of natural files one family as often as another."""

    def __init__(self, natural: Sequence[NaturalFile], random: np.random.Generator, first: int = 60) -> None:
        self._random = random
        self._sizes = sizes()
        self._families = [
            [file for file in natural if family(file.name) == name] for name in sorted({family(f.name) for f in natural})
        ]
        self._pool: dict[tuple[int, int], list[Pictures]] = {size: [] for size in self._sizes}
        while min(map(len, self._pool.values())) < first / 12:
            self._renew()

    def draw(self, stage: Stage) -> Tensor:
        """Return a batch [B, 3, F, Y, X]."""
        if self._random.random() < RENEWED:
            self._renew()
        size = self._sizes[self._random.integers(len(self._sizes))]
        frames = int(self._random.choice(list(stage.batches)))
        clips = [self._clip(frames, size, stage.crop) for _ in range(stage.batches[frames])]
        return as_video(np.stack(clips))

    def _clip(self, frames: int, size: tuple[int, int], crop: int) -> Pictures:
        random = self._random
        if self._families and random.random() >= WORLD_SHARE:
            files = self._families[random.integers(len(self._families))]
            file = files[random.integers(len(files))]
            return natural_crop(file, random, frames, (crop, crop) if crop else size)
        if crop:
            size = self._sizes[random.integers(len(self._sizes))]
        pool = self._pool[size]
        clip = pool[random.integers(len(pool))]
        start = int(random.integers(len(clip) - frames + 1))
        clip = clip[start : start + frames]
        return max((self._window(clip, crop) for _ in range(CANDIDATES)), key=_detail) if crop else clip

    def _window(self, clip: Pictures, crop: int) -> Pictures:
        top, left = (int(self._random.integers(side - crop + 1)) for side in clip.shape[1:3])
        return clip[:, top : top + crop, left : left + crop]

    def _renew(self) -> None:
        _, clip = world_clip(self._random, _POOL_FRAMES, coded=self._random.random() < 0.3)
        pool = self._pool[clip.shape[1], clip.shape[2]]
        if len(pool) < _POOL // len(self._pool):
            pool.append(clip)
        else:
            pool[self._random.integers(len(pool))] = clip


def _detail(clip: Pictures) -> float:
    """Return how much there is to see in a clip: the deviation of a few of its pixels."""
    return float(clip[::8, ::2, ::2].std(axis=(0, 1, 2)).sum())


def judge(model: AutoencoderKLWan, clips: Sequence[Pictures]) -> list[float]:
    """Return the PSNR in dB of every clip [F, Y, X, 3], encoded and decoded alone in fp32 and rounded to bytes."""
    found = []
    with torch.inference_mode():
        for clip in clips:
            back = reconstruct(model, as_video(clip[None]))[0][0].clamp(-1, 1)
            pictures = ((back + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
            found.append(psnr_db(clip, pictures))
    return found


def unseen_world(count: int) -> list[tuple[str, Pictures]]:
    """Draw clips that no training sees, of 9 to 29 frames, with the names of their backgrounds."""
    seeds = (np.random.Philox(UNSEEN_SEED + number) for number in range(count))
    return [world_clip(np.random.Generator(seed), (29, 9, 13, 21)[number % 4]) for number, seed in enumerate(seeds)]


def export(model: AutoencoderKLWan, clips: Sequence[Pictures], folder: Path) -> None:
    """Write a diffusers folder in fp16 with the measured mean and deviation of the latents; it appears in one rename."""
    mean, std = _statistics(model, clips)
    whole = AutoencoderKLWan(**{**CONFIG, "latents_mean": mean, "latents_std": std})
    whole.load_state_dict(model.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        draft, old = Path(scratch) / "new", Path(scratch) / "old"
        if folder.exists():
            shutil.copytree(folder, draft)  # what else lies in the folder, a log say, stays
        whole.half().save_pretrained(draft)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)


def train(
    trainer: Trainer,
    batches: Batches,
    share: Callable[[int], float],
    after_step: Callable[[float], object],
    stages: Sequence[Stage] = STAGES,
) -> None:
    """Train until `share`, asked with the number of steps done, says 1; `after_step` gets every loss."""
    torch.manual_seed(trainer.seed + trainer.progress.steps)
    started, before = time.process_time(), trainer.progress.cpu_s
    while (now := share(trainer.progress.steps)) < 1:
        stage = next(stage for stage in stages if now < stage.until)
        trainer.advance(now)
        loss = trainer.step(batches.draw(stage), _SOFT_CROP if stage.crop else _SOFT_WHOLE)
        p = trainer.progress
        trainer.progress = replace(p, steps=p.steps + 1, cpu_s=before + time.process_time() - started)
        after_step(loss)
    trainer.advance(1.0)


def _log_error(back: Tensor, video: Tensor, soft: float) -> Tensor:
    """Return the mean over clips of the logarithm of the squared error."""
    squared = (back - video).square().mean(dim=(1, 2, 3, 4))  # [B]
    return (squared + soft).log().mean()


def _kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def _statistics(model: AutoencoderKLWan, clips: Sequence[Pictures]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of every latent channel over clips."""
    with torch.inference_mode():
        values = torch.cat([encode(model, as_video(clip[None]))[0][0].flatten(1) for clip in clips], dim=1)  # [C, n]
    return [round(v, 5) for v in values.mean(1).tolist()], [round(v, 5) for v in values.std(1).tolist()]


def _wall_share(until: datetime, first: float) -> Callable[[int], float]:
    """Return a schedule by the clock: from `first` now to 1 at `until`."""
    start, length = time.monotonic(), (until - datetime.now()).total_seconds()
    return lambda _: first + (1 - first) * min(1.0, (time.monotonic() - start) / length)


def _next(hour_and_minute: str) -> datetime:
    """Return when the clock shows a time next."""
    now = datetime.now()
    then = datetime.combine(now.date(), datetime.strptime(hour_and_minute, "%H:%M").time())
    return then if then > now else then + timedelta(days=1)


class _Keeper:
    """What is done beside training: judging, checkpoints, exports, a line in the log now and then."""

    def __init__(self, trainer: Trainer, held: Sequence[NaturalFile], work: Path) -> None:
        self._trainer, self._work = trainer, work
        self._world = [clip for _, clip in unseen_world(24)]
        self._natural = [natural_clip(file, 17) for file in held]
        self._due = {
            "judge": time.monotonic() + 60,
            "save": time.monotonic() + CHECKPOINT_S,
            "export": time.monotonic() + EXPORT_S,
        }
        self._losses: list[float] = []

    def after_step(self, loss: float) -> None:
        """Keep the loss, and do what is due."""
        self._losses.append(loss)
        if self._is_due("judge", JUDGE_S):
            self._judge()
        if self._is_due("save", CHECKPOINT_S):
            self._trainer.save(self._work / "checkpoint.safetensors")
        if self._is_due("export", EXPORT_S):
            self.export(self._work / "codec")

    def export(self, folder: Path) -> None:
        """Write the averaged weights as the diffusers folder that they end as."""
        export(self._trainer.averaged(), [*self._world, *self._natural], folder)

    def _is_due(self, what: str, every_s: float) -> bool:
        due = time.monotonic() >= self._due[what]
        if due:
            self._due[what] = time.monotonic() + every_s
        return due

    def _judge(self) -> None:
        model, p = self._trainer.averaged(), self._trainer.progress
        world, natural = judge(model, self._world), judge(model, self._natural)
        line = {"time": f"{datetime.now():%H:%M:%S}", "share": round(p.share, 4), "steps": p.steps, "cpu_s": round(p.cpu_s)}
        line |= {"loss": round(float(np.mean(self._losses)), 4), "world_db": round(float(np.mean(world)), 2)}
        if natural:
            line |= {"natural_db": round(float(np.mean(natural)), 2), "natural_median_db": round(float(np.median(natural)), 2)}
        self._losses.clear()
        with open(self._work / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        click.echo(json.dumps(line), err=True)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--natural", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of natural videos.")
@click.option("--until", required=True, metavar="HH:MM", help="When training ends; the learning rate falls to 0 until then.")
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Folder for checkpoint, log and exports on the way."
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the work folder.")
@click.option("--share", type=float, help="With --resume: go on as if this share, 0 to 1, of the training were over.")
def main(folder: Path, natural: Path | None, until: str, work: Path, resume: bool, share: float | None) -> None:
    """Train the video autoencoder and write it into FOLDER."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(SEED)
    if resume:
        trainer.load(work / "checkpoint.safetensors")
        trainer.advance(trainer.progress.share if share is None else share)
    train_files, held = natural_files(natural) if natural else ([], [])
    click.echo(f"natural videos to train on: {', '.join(file.name for file in train_files)}", err=True)
    click.echo(f"held out: {', '.join(file.name for file in held)}", err=True)
    random = np.random.Generator(np.random.Philox([SEED, trainer.progress.steps]))
    keeper = _Keeper(trainer, held, work)
    batches = Batches(train_files, random)
    train(trainer, batches, _wall_share(_next(until), trainer.progress.share), keeper.after_step)
    trainer.save(work / "checkpoint.safetensors")
    keeper.export(folder)
    (folder / TRAINED_ON).write_text("".join(f"{file.name}\n" for file in train_files))
    (folder / "training.md").write_text(_report(folder, trainer.progress, [file.name for file in train_files], held, work))


def _report(folder: Path, progress: Progress, trained_on: Sequence[str], held: Sequence[NaturalFile], work: Path) -> str:
    """Judge an exported model as the encode stage runs it, and tell how it came about."""
    codec = load_codec(str(folder))

    def db(clip: Pictures) -> float:
        return psnr_db(clip, codec.decode(codec.encode(clip)))

    world = [(ground, db(clip)) for ground, clip in unseen_world(64)]
    natural = [(file.name, db(natural_clip(file, 29))) for file in held]
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    by_ground = {ground: [value for name, value in world if name == ground] for ground in sorted({name for name, _ in world})}
    return "\n".join(
        [
            "# How this autoencoder was trained",
            "",
            f"`python -m demo.learning.train_codec`: {progress.steps} steps, {progress.cpu_s:.0f} CPU seconds of one thread,",
            f"strides {codec.stride}, {codec.channels} channels. PSNR of decode(encode(x)), clip by clip:",
            "",
            "| clips | mean dB | median dB |",
            "|---|---|---|",
            _row(f"world, {len(world)} of unseen seeds", [value for _, value in world]),
            *(_row(f"… {ground}, {len(values)}", values) for ground, values in by_ground.items()),
            *([_row(f"natural, {len(natural)} held-out files", [value for _, value in natural])] if natural else []),
            *(_row(f"… {name}", [value]) for name, value in natural),
            "",
            "On the way (the averaged weights; 24 world clips, and up to 17 frames of the held-out files):",
            "",
            "| share | steps | CPU s | loss | world dB | natural dB |",
            "|---|---|---|---|---|---|",
            *(
                f"| {line['share']} | {line['steps']} | {line['cpu_s']} | {line['loss']} | {line['world_db']} "
                f"| {line.get('natural_db', '')} |"
                for line in lines
            ),
            "",
            f"Trained on the world and on {len(trained_on)} files: {', '.join(trained_on)}.",
            "",
        ]
    )


def _row(name: str, values: Sequence[float]) -> str:
    return f"| {name} | {np.mean(values):.2f} | {np.median(values):.2f} |"


if __name__ == "__main__":
    main()
