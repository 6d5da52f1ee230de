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
    from packing.clip import load_clip
    from packing.codec import VideoCodec, load_codec
    from packing.cost import CostModel, dit_cost
    from packing.geometry import fit_frame, latent_shape, legal_frames, token_grid
    from packing.loader import Batch, ShardLoader
    from packing.manifest import CodecFacts, Manifest, TextEncoderFacts, open_manifest
    from packing.planner import plan_rows, straggler_efficiency
    from packing.report import PlanReport, plan_report
    from packing.rows import read_index, read_row
    from packing.shards import Caption, PackedClip, write_shard, write_shards
    from packing.statistics import corpus_statistics
    from packing.store import Store
    from packing.text import TextEncoder, load_text_encoder
    from packing.tokens import clip_generator, patchify, positions, unpatchify

_HOME = {
    "clip": ["load_clip"],
    "codec": ["VideoCodec", "load_codec"],
    "cost": ["CostModel", "dit_cost"],
    "geometry": ["fit_frame", "latent_shape", "legal_frames", "token_grid"],
    "loader": ["Batch", "ShardLoader"],
    "manifest": ["CodecFacts", "Manifest", "TextEncoderFacts", "open_manifest"],
    "planner": ["plan_rows", "straggler_efficiency"],
    "report": ["PlanReport", "plan_report"],
    "rows": ["read_index", "read_row"],
    "shards": ["Caption", "PackedClip", "write_shard", "write_shards"],
    "statistics": ["corpus_statistics"],
    "store": ["Store"],
    "text": ["TextEncoder", "load_text_encoder"],
    "tokens": ["clip_generator", "patchify", "positions", "unpatchify"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Batch",
    "Caption",
    "CodecFacts",
    "CostModel",
    "Manifest",
    "PackedClip",
    "PlanReport",
    "ShardLoader",
    "Store",
    "TextEncoder",
    "TextEncoderFacts",
    "VideoCodec",
    "clip_generator",
    "corpus_statistics",
    "dit_cost",
    "fit_frame",
    "latent_shape",
    "legal_frames",
    "load_clip",
    "load_codec",
    "load_text_encoder",
    "open_manifest",
    "patchify",
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
