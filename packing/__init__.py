"""Packed variable-aspect video latents: the contract between a corpus and a trainer. Usable alone; knows no Ray.

Plan rows over token counts, write shards, look at them, load them, and turn latents and captions into what a DiT eats:

    rows = packing.plan_rows(lengths, capacity=36_864, seed=0)
    packing.write_shards(rows, clips, url, codec=..., text_encoder=..., patch=(1, 2, 2), sequence_length=36_864, fps=16)
    for batch in packing.ShardLoader(url, global_batch=8): ...

Names are imported on first use, so `import packing` is quick and needs no model library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packing.batches import Batch
    from packing.clip import load_clip
    from packing.codec import VideoCodec, load_codec
    from packing.cost import CostModel, dit_cost, fit_cost
    from packing.geometry import fit_frame, latent_shape, legal_frames, token_grid
    from packing.lint import lint_corpus
    from packing.loader import ShardLoader
    from packing.manifest import CodecFacts, Manifest, TextEncoderFacts, open_manifest
    from packing.mixture import MixedLoader, Mixture, Phase, Source, open_loader
    from packing.picture import plan_picture
    from packing.pieces import divide_clip
    from packing.planner import plan_rows, straggler_efficiency
    from packing.report import PlanReport, corpus_report, plan_report
    from packing.rows import read_index, read_row
    from packing.shards import Caption, PackedClip, drop_tokens, write_shard, write_shards
    from packing.statistics import corpus_statistics
    from packing.store import Store
    from packing.text import TextEncoder, load_text_encoder
    from packing.tokens import (
        clip_generator,
        fractional_positions,
        kept_count,
        kept_places,
        kept_tokens,
        patchify,
        positions,
        unpatchify,
    )

_HOME = {
    "batches": ["Batch"],
    "clip": ["load_clip"],
    "codec": ["VideoCodec", "load_codec"],
    "cost": ["CostModel", "dit_cost", "fit_cost"],
    "geometry": ["fit_frame", "latent_shape", "legal_frames", "token_grid"],
    "lint": ["lint_corpus"],
    "loader": ["ShardLoader"],
    "manifest": ["CodecFacts", "Manifest", "TextEncoderFacts", "open_manifest"],
    "mixture": ["MixedLoader", "Mixture", "Phase", "Source", "open_loader"],
    "picture": ["plan_picture"],
    "pieces": ["divide_clip"],
    "planner": ["plan_rows", "straggler_efficiency"],
    "report": ["PlanReport", "corpus_report", "plan_report"],
    "rows": ["read_index", "read_row"],
    "shards": ["Caption", "PackedClip", "drop_tokens", "write_shard", "write_shards"],
    "statistics": ["corpus_statistics"],
    "store": ["Store"],
    "text": ["TextEncoder", "load_text_encoder"],
    "tokens": [
        "clip_generator",
        "fractional_positions",
        "kept_count",
        "kept_places",
        "kept_tokens",
        "patchify",
        "positions",
        "unpatchify",
    ],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Batch",
    "Caption",
    "CodecFacts",
    "CostModel",
    "Manifest",
    "MixedLoader",
    "Mixture",
    "PackedClip",
    "Phase",
    "PlanReport",
    "ShardLoader",
    "Source",
    "Store",
    "TextEncoder",
    "TextEncoderFacts",
    "VideoCodec",
    "clip_generator",
    "corpus_report",
    "corpus_statistics",
    "dit_cost",
    "divide_clip",
    "drop_tokens",
    "fit_cost",
    "fit_frame",
    "fractional_positions",
    "kept_count",
    "kept_places",
    "kept_tokens",
    "latent_shape",
    "legal_frames",
    "lint_corpus",
    "load_clip",
    "load_codec",
    "load_text_encoder",
    "open_loader",
    "open_manifest",
    "patchify",
    "plan_picture",
    "plan_report",
    "plan_rows",
    "positions",
    "read_index",
    "read_row",
    "straggler_efficiency",
    "token_grid",
    "unpatchify",
    "write_shard",
    "write_shards",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'packing' has no attribute {name!r}")
    return getattr(import_module(f"packing.{_MODULE_OF[name]}"), name)
