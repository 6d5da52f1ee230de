"""Shard statistics: what a trainer wants to know of a packed corpus before training, read from its indexes alone."""

from collections import Counter
from typing import Any

import numpy as np

from packing.manifest import open_manifest
from packing.planner import straggler_efficiency
from packing.rows import read_index
from packing.store import Store

WORLD_SIZES = (8, 64)


def corpus_statistics(url: str) -> dict[str, Any]:
    """Summarise the packed corpus at `url` (a packed folder or a run).

    Returns:
        rows, clips, tokens, sequence_length, fill (0 to 1), straggler_efficiency by world size (0 when there are fewer rows
        than ranks), shards, bytes, shapes (clips by token grid "t×h×w"), duration_s, captions (by prompt).

    Raises:
        ShardError: there is no packed corpus, or an index is not the one that the manifest names.
    """
    manifest, base = open_manifest(url)
    store = Store(base)
    rows = [row for entry in manifest.shards for row in read_index(store, entry)]
    costs = np.array([row.cost for row in rows])
    shapes = Counter("x".join(map(str, grid)) for row in rows for grid in row.grids)
    captions = Counter(prompt for row in rows for prompt in row.captions)
    return {
        "rows": manifest.rows,
        "clips": manifest.clips,
        "tokens": manifest.tokens,
        "sequence_length": manifest.sequence_length,
        "fill": round(manifest.fill, 6),
        "straggler_efficiency": {str(size): round(straggler_efficiency(costs, world_size=size), 6) for size in WORLD_SIZES},
        "shards": len(manifest.shards),
        "bytes": sum(shard.size_bytes for shard in manifest.shards),
        "shapes": dict(shapes.most_common()),
        "duration_s": round(sum(row.duration_s for row in rows), 3),
        "captions": dict(captions.most_common()),
    }
