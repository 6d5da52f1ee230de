"""Train a DiT from packed shards: the loop, and one step of it.

Invariant: the weights after step k are a function of (shards, job, k). Stopping and resuming change nothing, another
number of ranks only the rounding of sums: captions, noise and times are keyed by clip, and the loss is a sum over
tokens divided by the tokens of all ranks.
"""

import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from packing.batches import Batch
from packing.config import dump_config
from packing.cost import CostModel
from packing.errors import ConfigError
from packing.loader import StepLoader
from packing.manifest import Manifest
from packing.mixture import is_mixture, open_loader
from packing.store import Store
from packing.tokens import kept_places
from training.checkpoint import (
    Progress,
    checkpoint_folder,
    load_ema,
    load_optimizers,
    load_weights,
    newest_checkpoint,
    read_progress,
    save_checkpoint,
)
from training.config import TrainConfig, TrainJob
from training.flow import LEAST_TIME, channel_factors, loss_sum, noise_batch
from training.meter import Meter, StepReport
from training.model import DiT, dit_for
from training.muon import make_optimizers, set_rate
from training.passes import split_batch
from training.precision import products
from training.ranks import Ranks, joined_ranks

log = logging.getLogger(__name__)
INSIDE = re.compile(r"blocks\.|cells\.(before|after)\.\d+\.(first|second)\.|cells\.(enter|join)\.")  # what Muon moves


def train(job: TrainJob, shards_url: str, on_report: Callable[[StepReport], None] | None = None) -> Path:
    """Train until `job.train.steps`, from the newest checkpoint in `job.train.out` if any, and return the last one.

    Under torchrun all ranks call it together. SIGTERM ends it after the step in progress, with a checkpoint.

    Args:
        job: the model and how to train it.
        shards_url: a run folder, a packed folder, or a YAML file that mixes several (`packing.mixture`).
        on_report: is given the record of every `log_every` steps, on the first rank.

    Raises:
        ShardError: there are no shards at `shards_url`, or the checkpoint belongs to other ones.
        ConfigError: the checkpoint holds a model of another size.
    """
    config = job.train
    with joined_ranks(config.device) as ranks, _sigterm_event() as terminated:
        run = _start(job, shards_url, ranks)
        meter, batches = Meter(ranks.device), iter(run.loader)
        done = run.step >= config.steps
        while not done:
            with meter.waiting():
                batch = next(batches)
            tokens, terminations = ranks.sum(batch.latents.shape[0], terminated.is_set())
            meter.add(_train_step(run, batch, tokens), int(tokens))
            # The sum, not our own event, ends the loop: no rank may wait for one that has left.
            done = run.step >= config.steps or terminations > 0
            if done or run.step % config.log_every == 0:
                report = meter.report(ranks, step=run.step, epoch=batch.epoch, lr=config.lr * _rate(run.step - 1, config))
                if ranks.first:
                    _publish(report, run.out, on_report)
            if done or run.step % config.checkpoint_every == 0:
                _checkpoint(run)
        if run.step < config.steps:
            log.warning("SIGTERM: stopped after step %d of %d; the same command goes on", run.step, config.steps)
        return checkpoint_folder(run.out, run.step)


@dataclass(kw_only=True)
class _Run:
    """All that changes while training, and the step it has reached."""

    job: TrainJob
    ranks: Ranks
    loader: StepLoader
    out: Path
    model: DiT
    parallel: nn.Module  # the model, or the model behind DDP
    optimizers: list[torch.optim.Optimizer]
    ema: dict[str, Tensor]
    factors: Tensor  # [token_dim], of the latents
    step: int = 0


def _start(job: TrainJob, shards_url: str, ranks: Ranks) -> _Run:
    """Build the run, from the newest checkpoint in its output folder if there is one."""
    config = job.train
    if config.threads:
        torch.set_num_threads(config.threads)
    loader = _open_loader(config, shards_url, ranks)
    model = _new_model(job, loader).to(ranks.device)
    optimizers = _new_optimizers(config, model)
    ema = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    manifest = loader.manifest
    run = _Run(
        job=job,
        ranks=ranks,
        loader=loader,
        out=output_folder(config.out, shards_url, manifest),
        model=model,
        parallel=model,
        optimizers=optimizers,
        ema=ema,
        factors=channel_factors(job.model.channel_scale, manifest.channels, manifest.token_dim).to(ranks.device),
    )
    if newest := newest_checkpoint(run.out):
        _resume(run, newest)
    run.parallel = ranks.wrap(model)
    if ranks.first:
        run.out.mkdir(parents=True, exist_ok=True)
        (run.out / "config.yaml").write_text(dump_config(job))
    return run


def output_folder(out: str, shards_url: str, manifest: Manifest) -> Path:
    """Return where a training job writes: the folder it names, or else one of this corpus's own below local shards.

    Raises:
        ConfigError: the shards are remote and no folder is named.
    """
    root = Store(shards_url).local_root
    root = root.parent if root and is_mixture(shards_url) else root
    if not out and root is None:
        raise ConfigError(f"train.out is missing: {shards_url} is remote, so name a local folder as train.out=…")
    return Path(out) if out or root is None else root / "training" / manifest.digest[:12]


def _open_loader(config: TrainConfig, shards_url: str, ranks: Ranks) -> StepLoader:
    tokens, squares, segments, row = config.cost or [0.0] * 4
    return open_loader(
        shards_url,
        global_batch=config.global_batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.seed,
        caption_drop=config.caption_drop,
        cost=CostModel(tokens=tokens, squares=squares, segments=segments, row=row) if config.cost else None,
    )


def _new_model(job: TrainJob, loader: StepLoader) -> DiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.train.seed)
        return dit_for(job.model, loader.manifest)


def _resume(run: _Run, folder: Path) -> None:
    progress = read_progress(folder)
    if progress.job.model != run.job.model:
        raise ConfigError(f"{folder} holds another model ({progress.job.model}): choose another train.out")
    run.loader.load_state_dict(progress.loader)
    load_weights(folder, run.model)
    load_optimizers(folder, run.model, run.optimizers)
    run.ema = {name: weight.to(run.ranks.device) for name, weight in load_ema(folder).items()}
    run.step = progress.step
    log.info("resuming from %s at step %d", folder, run.step)


def _train_step(run: _Run, batch: Batch, step_tokens: float) -> Tensor:
    """Take one optimizer step on this rank's share of the step's rows; returns this rank's share of the loss."""
    config = run.job.train
    set_rate(run.optimizers, _rate(run.step, config))
    run.model.zero_grad(set_to_none=True)
    loss = _accumulate_gradients(run, batch, step_tokens)
    nn.utils.clip_grad_norm_(run.model.parameters(), config.grad_clip)
    for optimizer in run.optimizers:
        optimizer.step()
    run.step += 1
    _update_ema(run.ema, run.model, _ema_decay(run.step, config))
    return loss


def _accumulate_gradients(run: _Run, batch: Batch, step_tokens: float) -> Tensor:
    passes = split_batch(batch, run.job.train.max_pass_tokens)
    loss = torch.zeros((), device=run.ranks.device)
    for part in passes[:-1]:
        with run.ranks.without_sync(run.parallel):
            loss += _backward(run, part, step_tokens)
    return loss + _backward(run, passes[-1], step_tokens)


def _backward(run: _Run, batch: Batch, step_tokens: float) -> Tensor:
    device, config = run.ranks.device, run.job.train
    noised = noise_batch(
        batch.latents.to(device, torch.float32) * run.factors,
        batch.clip_ids,
        batch.grid.prod(dim=1).tolist(),
        seed=config.seed,
        epoch=batch.epoch,
        shift=config.timestep_shift,
        least_time=LEAST_TIME if run.job.model.predict == "clean" else 0.0,
        places=None if batch.kept is None else kept_places(batch.kept, batch.cu_seqlens, batch.grid),
    )
    with products(config.precision, device):
        text = batch.text.to(device, torch.float32)
        velocity = run.parallel(noised.tokens, noised.t, batch.cu_seqlens, batch.grid, text, batch.cu_text, batch.kept)
    weights = noised.t.pow(config.time_power).repeat_interleave(batch.cu_seqlens.diff().to(device))  # [S]
    loss = loss_sum(velocity, noised.target, weights) / step_tokens
    (loss * run.ranks.world_size).backward()  # type: ignore[no-untyped-call]  # DDP divides gradients by world_size
    return loss.detach()


def _new_optimizers(config: TrainConfig, model: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices and kernels inside the blocks and AdamW for the rest."""
    if config.optimizer == "adamw":
        group = {"params": list(model.parameters()), "base_lr": config.lr}
        return [torch.optim.AdamW([group], lr=config.lr, weight_decay=config.weight_decay)]
    outside = [name for name, _ in model.named_parameters() if not INSIDE.match(name)]
    return make_optimizers(
        model, muon_lr=config.muon_lr, adam_lr=config.lr, weight_decay=config.weight_decay, adam_names=outside
    )


def _rate(step: int, config: TrainConfig) -> float:
    """Share of the learning rates at a step: a linear rise, a plateau, and a linear fall over the last `cooldown` of the steps.

    Without a cooldown it stays, as DiT's does (arXiv 2212.09748, section 4); with one it is the trapezoid of arXiv 2405.18392.
    """
    rise = (step + 1) / max(1, config.warmup_steps)
    fall = (config.steps - step) / max(1.0, config.cooldown * config.steps)
    return min(1.0, rise, fall if config.cooldown else 1.0)


def _ema_decay(step: int, config: TrainConfig) -> float:
    """Start with a short average that grows to `ema_decay`: a long one would keep the random weights of the start."""
    return min(config.ema_decay, (1 + step) / (10 + step))


@torch.no_grad()
def _update_ema(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    weights = model.state_dict()
    torch._foreach_lerp_([ema[name] for name in weights], list(weights.values()), 1 - decay)


def _checkpoint(run: _Run) -> None:
    if run.ranks.first:
        progress = Progress(step=run.step, loader=run.loader.state_dict(), job=run.job, manifest=run.loader.manifest)
        save_checkpoint(run.out, progress, run.model, run.ema, run.optimizers)


def _publish(report: StepReport, out: Path, on_report: Callable[[StepReport], None] | None) -> None:
    log.info("%s", report)
    report.append_to(out / "metrics.jsonl")
    if on_report:
        on_report(report)


@contextmanager
def _sigterm_event() -> Iterator[threading.Event]:
    """Turn SIGTERM into an event inside the block; only the main thread may, elsewhere the event never comes."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
