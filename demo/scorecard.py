"""The scorecard of a demo: every stage's figure against the truth of the world, as JSON and as a table.

Captions, scores and the codec are measured on the clips that deserved to be kept and were. Goals stand beside the figures; a
figure that misses its goal is shown as it is.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from demo.figures import caption_figures, flagged, psnr_db, score_figures, select_figures, split_figures
from demo.matching import Pair, matched
from demo.samples import Sample, captions_of, chosen_rightly, draw_samples, held_out_combinations, named_rightly
from demo.truth import SceneTruth, Truth, read_truth
from packing.clip import Clip as ClipModel
from packing.clip import load_clip
from packing.codec import VideoCodec, load_codec
from packing.manifest import open_manifest
from packing.planner import straggler_efficiency
from packing.rows import read_index
from packing.store import Store
from pipeline.job import Job, open_job
from pipeline.ledger import Ledger
from pipeline.records import Clip
from pipeline.sources import SourceError, read_plan
from pipeline.stage import PartitionView
from pipeline.stages.encode import ClipToEncode, Encode

MOST_CODED = 16  # clips that are decoded again for a figure
SAMPLE_S, SAMPLE_PX = 9 / 5, 64  # 5 latent frames of 8 x 8
GOALS: Mapping[str, float] = {
    "split.hard_f1": 1.0,
    "split.gradual_f1": 0.9,
    "select.precision": 0.97,
    "select.recall": 0.97,
    "score.title_auc": 0.98,
    "score.by_attribute.colour": 0.99,
    "score.by_attribute.background": 0.99,
    "score.by_attribute.shape": 0.97,
    "recaption.shape": 0.95,
    "recaption.colour": 0.95,
    "recaption.motion": 0.95,
    "recaption.background": 0.95,
    "encode.psnr_world_db": 34.0,
    "encode.psnr_natural_db": 27.0,
    "samples.colour": 0.95,
    "samples.background": 0.95,
    "samples.shape": 0.7,
    "samples.motion": 0.7,
}


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A kept clip at its training size, before and after the codec, uint8 [F, Y, X, 3]."""

    clip: Clip
    scene: SceneTruth
    frames: NDArray[np.uint8]
    again: NDArray[np.uint8]


@dataclass
class Study:
    """A finished run beside the truth of its world; what several figures and pictures need is computed once."""

    world: Path
    run: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def truth(self) -> Truth:
        """What is true of the world."""
        return read_truth(self.world)

    @cached_property
    def job(self) -> Job:
        """The run's config and fingerprints."""
        return open_job(str(self.run))

    @cached_property
    def ledger(self) -> Ledger:
        """The run's clips and their fates."""
        return Ledger(self.job)

    @cached_property
    def pairs(self) -> list[Pair]:
        """Clips beside scenes."""
        return matched(self.truth, self.ledger)

    @cached_property
    def kept(self) -> list[tuple[Clip, SceneTruth]]:
        """The clips of video that deserved to be kept and were, with what they show."""
        return [(p.clip, p.scene) for p in self.pairs if p.kept and p.clip and p.scene and p.clip.fps > 0]

    @cached_property
    def clip_model(self) -> ClipModel:
        """The run's CLIP model."""
        return load_clip(self.job.config.score.model)

    @cached_property
    def codec(self) -> VideoCodec:
        """The run's autoencoder."""
        encode = self.job.config.encode
        return load_codec(encode.model, subfolder=encode.subfolder)

    @cached_property
    def coded(self) -> list[Coded]:
        """Some of the kept clips, evenly chosen, before and after the codec."""
        chosen = (
            [self.kept[i] for i in np.unique(np.linspace(0, len(self.kept) - 1, MOST_CODED).astype(int))] if self.kept else []
        )
        frames = read_again(self.job, self.ledger, [clip for clip, _ in chosen])
        latents = self.ledger.outcomes["encode"]
        return [
            Coded(clip=c, scene=s, frames=frames[c.clip_id], again=self.codec.decode(latents.tensor(c.clip_id, "latent")))
            for c, s in chosen
            if c.clip_id in frames
        ]

    def frames_of(self, clip: Clip) -> NDArray[np.uint8]:
        """Return the sampled frames uint8 [F, Y, X, 3] of a clip."""
        frames: NDArray[np.uint8] = self.ledger.outcomes["split"].tensor(clip.source_key, clip.clip_id).numpy()
        return frames

    def captions(self, clip: Clip) -> Mapping[str, Any]:
        """Return the captions of a clip by prompt."""
        outcome = self.ledger.outcomes["recaption"].get(clip.clip_id)
        return {caption.prompt: caption for caption in outcome.value.captions} if outcome and outcome.value else {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time inside to `seconds`."""
        start = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 1)


def read_again(job: Job, ledger: Ledger, clips: Sequence[Clip]) -> dict[str, NDArray[np.uint8]]:
    """Read clips at their training size as the encode stage does; what cannot be read is left out."""
    stage = Encode.from_config(job.config)
    wanted = {clip.clip_id for clip in clips}
    found: dict[str, NDArray[np.uint8]] = {}
    for partition in read_plan(job.store):
        view = PartitionView(partition=partition, config=job.config, outcomes=ledger.outcomes)
        for item in stage.inputs(view, [key for key in view.clips if key in wanted]):
            found.update(_frames(stage, item))
    stage.close()
    return found


def _frames(stage: Encode, item: ClipToEncode) -> dict[str, NDArray[np.uint8]]:
    try:
        return {item.clip.clip_id: stage.read(item).frames}
    except (SourceError, ValueError):
        return {}


def score_world(study: Study) -> dict[str, Any]:
    """Measure all stages up to packing."""
    with study.timed("score split, select"):
        card = {"split": split_figures(study.truth, study.ledger), "select": select_figures(study.pairs)}
    scenes = [scene for _, scene in study.kept]
    with study.timed("score score, recaption"):
        means = [study.clip_model.frame_features(study.frames_of(clip)).mean(dim=0).numpy() for clip, _ in study.kept]
        card["score"] = score_figures(means, scenes, study.clip_model)
        card["recaption"] = _caption_card(study, scenes)
    with study.timed("score encode"):
        card["encode"] = {"psnr_world_db": _mean([psnr_db(c.frames, c.again) for c in study.coded]), "psnr_natural_db": None}
    return {**card, "pack": pack_figures(str(study.run))}


def _caption_card(study: Study, scenes: Sequence[SceneTruth]) -> dict[str, Any]:
    captions = [study.captions(clip) for clip, _ in study.kept]
    shorts = [of["short"].text if "short" in of else "" for of in captions]
    dense = [of["dense"].text if "dense" in of else "" for of in captions]
    return {
        **caption_figures(shorts, scenes),
        "failed_checks": flagged(caption for of in captions for caption in of.values()),
        "dense_exact": _mean([text == scene.dense for text, scene in zip(dense, scenes, strict=True)], places=4),
    }


def pack_figures(run: str) -> dict[str, Any]:
    """Return fill and straggler efficiency (8 ranks) of a run's packed rows; None when there are fewer rows than ranks."""
    manifest, base = open_manifest(run)
    store = Store(base)
    costs = np.array([row.cost for entry in manifest.shards for row in read_index(store, entry)])
    efficiency = straggler_efficiency(costs, world_size=8) if len(costs) >= 8 else None
    return {"fill": round(manifest.fill, 4), "straggler_efficiency": efficiency, "rows": manifest.rows, "clips": manifest.clips}


def score_samples(study: Study, checkpoint: Path, *, count: int) -> tuple[dict[str, Any], list[Sample]]:
    """Sample held-out combinations and let the judges say what they see; their ceilings stand beside.

    Args:
        study: the run as it was last ingested, for training: its clips are what the ceilings are of.
        checkpoint: the trained model.
        count: samples.
    """
    combinations = held_out_combinations(count, seed=0)
    config = study.job.config
    with study.timed("sample"):
        samples = draw_samples(checkpoint, combinations, seconds=SAMPLE_S, side_px=SAMPLE_PX)
    with study.timed("judge"):
        captions = captions_of([sample.frames for sample in samples], config, config.encode.fps)
        truths = [(c.scene.shape, c.scene.colour, c.scene.motion, c.scene.background) for c in study.coded]
        ceilings = {
            name: {
                **named_rightly(captions_of(videos, config, config.encode.fps), truths),
                "clip": chosen_rightly(videos, truths, study.clip_model),
            }
            for name, videos in [("real", [c.frames for c in study.coded]), ("reconstruction", [c.again for c in study.coded])]
        }
        figures = {
            **named_rightly(captions, combinations),
            "clip": chosen_rightly([sample.frames for sample in samples], combinations, study.clip_model),
            "ceiling": ceilings,
            "count": len(samples),
        }
    said = [Sample(combination=s.combination, frames=s.frames, caption=c) for s, c in zip(samples, captions, strict=True)]
    return figures, said


def figures_with_goals(card: Mapping[str, Any]) -> list[tuple[str, Any, float | None]]:
    """List all figures of a scorecard by dotted name with their goals."""
    flat = dict(_flat(card))
    return [(name, value, GOALS.get(name)) for name, value in flat.items() if not name.startswith(("seconds.", "world."))]


def table_of(card: Mapping[str, Any]) -> Table:
    """Lay a scorecard out for a terminal."""
    table = Table("figure", "value", "goal", "", title="scorecard")
    for name, value, goal in figures_with_goals(card):
        if ".ceiling." in name or ".by_reason." in name or name.startswith("samples.clip"):
            continue
        mark = "" if goal is None or value is None else "[green]met[/]" if value >= goal else "[red]missed[/]"
        table.add_row(name, "not measured" if value is None else f"{value:g}", "" if goal is None else f"{goal:g}", mark)
    return table


def _flat(card: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in card.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _mean(values: Sequence[float], places: int = 2) -> float | None:
    return round(float(np.mean(values)), places) if values else None
