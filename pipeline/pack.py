"""Pack what is ready into shards: plan over token counts, write shards wherever the runner likes, commit the manifest last.

Invariant: the shards and the manifest are a pure function of the results that are packed and of the pack config. A corpus that
is packed already is found by its fingerprint and not written again; an older one is never touched.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packing.clip import clip_identity
from packing.geometry import Patch
from packing.manifest import MANIFEST, CodecFacts, Manifest, ShardEntry, TextEncoderFacts, head_names
from packing.models import model_identity
from packing.pieces import Piece, cut
from packing.planner import plan_rows
from packing.report import PlanReport, plan_report
from packing.shards import Caption, PackedClip, drop_tokens, shard_rows, write_shard
from packing.store import Store
from pipeline.job import Job, digest
from pipeline.ledger import Ledger
from pipeline.packable import grid_of, segments_of
from pipeline.records import Clip, EmbeddedCaption, Outcome, Source
from pipeline.results import StageResults, TensorFile, tensor_file
from pipeline.runner import Row, Runner, Step
from pipeline.sources import plan_hash

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """What is to be packed: clips in id order, their segments, the rows as indices into these, and the corpus's fingerprint."""

    fingerprint: str
    clips: Sequence[Clip]
    segments: Sequence[Piece]
    rows: Sequence[NDArray[np.int64]]

    @property
    def folder(self) -> str:
        """Where the corpus lies in the run."""
        return f"packed/{self.fingerprint}"


def plan_pack(ledger: Ledger) -> PackPlan:
    """Plan the rows of all clips of a run that are ready."""
    config, clips = ledger.job.config.pack, ledger.ready()
    segments = [piece for clip in clips for piece in segments_of(clip.clip_id, _result(ledger, "encode", clip), config)]
    rows = plan_rows(
        [segment.tokens for segment in segments],
        capacity=config.length,
        seed=config.seed,
        max_segments=config.max_segments,
        keys=[segment.id for segment in segments],
    )
    results = {stage: ledger.job.fingerprints[stage] for stage in ("split", "score", "recaption", "encode", "embed")}
    fingerprint = digest([VERSION, config.identity(), results, [clip.clip_id for clip in clips]])
    return PackPlan(fingerprint=fingerprint, clips=clips, segments=segments, rows=rows)


def pack(ledger: Ledger, runner: Runner) -> tuple[Manifest | None, int]:
    """Pack all clips of a run that are ready.

    Returns:
        The manifest (None when nothing is ready), and how many shards this call had to write.
    """
    job, plan = ledger.job, plan_pack(ledger)
    if not plan.clips:
        return None, 0
    store = Store(f"{job.store.url}/{plan.folder}")
    if store.exists(MANIFEST):
        _point_at(job.store, plan.fingerprint)
        return Manifest.from_json(store.read(MANIFEST)), 0
    step = Step(name="pack", make=partial(ShardWriter, job, plan.folder), resources=job.config.resources_of("pack"))
    entries = [ShardEntry(**row["entry"]) for row in runner.run([step], list(_shard_rows(ledger, plan)))]
    manifest = _manifest(ledger, plan, sorted(entries, key=lambda entry: entry.name))
    store.put_once(MANIFEST, manifest.to_json().encode())
    _point_at(job.store, plan.fingerprint)
    return manifest, len(entries)


def report_pack(ledger: Ledger) -> tuple[PlanReport, list[list[int]]]:
    """Report on the rows that packing a run would write, without writing any.

    Returns:
        The report, and the tokens of each segment of each row.
    """
    plan, config = plan_pack(ledger), ledger.job.config.pack
    lengths = [segment.tokens for segment in plan.segments]
    clips = {clip.clip_id: clip for clip in plan.clips}
    whole = {clip_id: grid_of(_result(ledger, "encode", clip), config) for clip_id, clip in clips.items()}
    report = plan_report(
        plan.rows,
        lengths,
        capacity=config.length,
        grids=[(segment.last - segment.first, *whole[segment.clip_id][1:]) for segment in plan.segments],
        clip_bytes=[_size_bytes(ledger, clips[segment.clip_id], segment) for segment in plan.segments],
    )
    return report, [[lengths[number] for number in row] for row in plan.rows]


def _shard_rows(ledger: Ledger, plan: PackPlan) -> Iterator[Row]:
    """Yield one row a shard: which segments share which row of it, and in which parts the results of their clips lie."""
    clips = {clip.clip_id: clip for clip in plan.clips}
    sizes = np.array([_size_bytes(ledger, clips[segment.clip_id], segment) for segment in plan.segments], dtype=np.int64)
    parts = {stage: outcomes.part_of for stage, outcomes in ledger.outcomes.items()}
    sources = {source.key: source for source in ledger.sources}
    for number, group in enumerate(shard_rows(plan.rows, sizes, ledger.job.config.pack.shard_mb << 20)):
        members = [[plan.segments[index] for index in row] for row in group]
        wanted = [clips[clip_id] for clip_id in dict.fromkeys(segment.clip_id for row in members for segment in row)]
        yield {
            "shard": number,
            "rows": [[asdict(segment) for segment in row] for row in members],
            "clips": {
                clip.clip_id: {
                    "uri": _uri(sources, clip),
                    "split": parts["split"](clip.source_key),
                    **{stage: parts[stage](clip.clip_id) for stage in ("score", "encode", "embed")},
                }
                for clip in wanted
            },
        }


def _uri(sources: dict[str, Source], clip: Clip) -> str:
    return sources[clip.source_key].uri


def _size_bytes(ledger: Ledger, clip: Clip, segment: Piece) -> int:
    encoded, embedded = _result(ledger, "encode", clip), _result(ledger, "embed", clip)
    features = sum(caption.tokens for caption in embedded.captions) * embedded.width
    numbers = encoded.latent_shape[0] * math.prod(ledger.job.config.pack.patch)  # of one token
    return int(2 * (segment.tokens * numbers + features))


def _point_at(run: Store, fingerprint: str) -> None:
    """Make a corpus the newest of its run: append a numbered record, unless the last one says so already."""
    heads = head_names(run)
    if not heads or json.loads(run.read(heads[-1]))["fingerprint"] != fingerprint:
        run.put_once(f"packed/head-{len(heads):05d}.json", json.dumps({"fingerprint": fingerprint}).encode())


def _manifest(ledger: Ledger, plan: PackPlan, entries: Sequence[ShardEntry]) -> Manifest:
    job = ledger.job
    config = job.config
    codec, text_encoder = _facts(ledger, plan.clips[0])
    return Manifest(
        sequence_length=config.pack.length,
        patch=config.pack.patch,
        fps=config.encode.fps,
        codec=codec,
        text_encoder=text_encoder,
        seed=config.pack.seed,
        plan_hash=plan_hash(job.store),
        fingerprints={**job.fingerprints, "pack": plan.fingerprint},
        shards=tuple(entries),
    )


def _facts(ledger: Ledger, clip: Clip) -> tuple[CodecFacts, TextEncoderFacts]:
    """Tell what made the latents and the caption features, from the config and from what it gave for one clip."""
    encode, embed = ledger.job.config.encode, ledger.job.config.embed
    latent, text = _result(ledger, "encode", clip), _result(ledger, "embed", clip)
    codec = CodecFacts(
        model=encode.model,
        subfolder=encode.subfolder,
        weights=model_identity(encode.model, encode.subfolder),
        channels=latent.latent_shape[0],
        stride=latent.stride,
    )
    is_clip = embed.backend == "open_clip"
    return codec, TextEncoderFacts(
        model=embed.model,
        subfolder=embed.subfolder,
        tokenizer=embed.tokenizer,
        weights=clip_identity(embed.model) if is_clip else model_identity(embed.model, embed.subfolder),
        backend=embed.backend,
        width=text.width,
        max_tokens=embed.max_tokens,
    )


def _result(ledger: Ledger, stage: str, clip: Clip) -> Any:
    outcome = ledger.outcomes[stage].get(clip.clip_id)
    assert outcome is not None
    return outcome.result


class ShardWriter:
    """Writes one shard a row of its step, from the recorded results of the clips that the row names."""

    def __init__(self, job: Job, folder: str) -> None:
        self.job = job
        self._shards = Store(f"{job.store.url}/{folder}")

    def __call__(self, row: Row) -> Row:
        """Write a shard and return its entry in the manifest."""
        gather = _Gather(self.job, row["clips"])
        patch = self.job.config.pack.patch
        rows = ([self._segment(gather, Piece(**segment)) for segment in members] for members in row["rows"])
        return {"entry": asdict(write_shard(self._shards, row["shard"], rows, patch))}

    def _segment(self, gather: "_Gather", piece: Piece) -> PackedClip:
        config = self.job.config.pack
        return drop_tokens(gather.piece(piece, config.patch), config.patch, config.drop, config.seed)

    def close(self) -> None:
        """Hold nothing."""


class _Gather:
    """Reads what is packed of a clip out of the parts that hold its results; a part is read once a shard."""

    def __init__(self, job: Job, clips: dict[str, dict[str, str]]) -> None:
        self._job, self._clips = job, clips
        self._parts: dict[str, dict[str, Outcome[Any]]] = {}
        self._files: dict[str, TensorFile] = {}

    def piece(self, piece: Piece, patch: Patch) -> PackedClip:
        """Return a clip, or the piece of it that is packed as a segment of its own."""
        encoded = self._outcomes("encode", piece.clip_id)[piece.clip_id].result
        return cut(self._clip(piece.clip_id), piece, patch, encoded.stride[0])

    def _clip(self, clip_id: str) -> PackedClip:
        split = self._outcomes("split", clip_id)
        clip = next(c for outcome in split.values() if outcome.value for c in outcome.value.clips if c.clip_id == clip_id)
        scores, encoded, embedded = (self._outcomes(stage, clip_id)[clip_id].result for stage in ("score", "encode", "embed"))
        features = self._tensor("embed", clip_id, "text").split([caption.tokens for caption in embedded.captions])
        return PackedClip(
            clip_id=clip_id,
            latent=self._tensor("encode", clip_id, "latent"),
            captions=[_caption(c, f) for c, f in zip(embedded.captions, features, strict=True)],
            facts={
                "source_id": clip.source_id,
                "uri": self._clips[clip_id]["uri"],
                "start_s": clip.start_s,
                "end_s": clip.end_s,
                "duration_s": clip.duration_s,
                "fps": encoded.fps,
                "frames": encoded.frames,
                "source_size": [clip.height_px, clip.width_px],
                "crop": list(clip.crop),
                "resized": list(encoded.resized),
                "size": list(encoded.size),
                "measures": clip.measures,
                "scores": scores.scores,
            },
        )

    def _outcomes(self, stage: str, clip_id: str) -> dict[str, Outcome[Any]]:
        part = self._clips[clip_id][stage]
        if part not in self._parts:
            results: StageResults = self._job.results(stage)
            self._parts[part] = {outcome.key: outcome for _, outcome in results.read([part])}
        return self._parts[part]

    def _tensor(self, stage: str, clip_id: str, label: str) -> Any:
        name = tensor_file(self._clips[clip_id][stage])
        file = self._files.setdefault(name, TensorFile(self._job.store, name))
        return file.read(f"{clip_id}/{label}")


def _caption(caption: EmbeddedCaption, features: Any) -> Caption:
    return Caption(
        prompt=caption.prompt, text=caption.text, model=caption.model, agreement=caption.agreement, features=features
    )
