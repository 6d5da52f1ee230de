"""What a plan is worth, before anything is trained on it: fill, padding saved, balance of ranks, length of an epoch.

Rows and lengths in, figures out; `corpus_report` takes them from the indexes of shards. The baselines are counted over the same
clips. *Pad-to-max* pads every clip to the longest of all. *Bucket batching* sorts clips into buckets half an octave wide
(lengths within a factor of √2) and pads every clip to the longest of its bucket, as batches of one shape must be; it is not
charged for what it leaves free in a batch, nor for cropping clips to a bucket's shape, so it is flattered.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from packing.cost import CostModel, dit_cost
from packing.manifest import open_manifest
from packing.planner import straggler_efficiency
from packing.rows import read_index
from packing.store import Store

GRIDS_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """Figures of a plan. Shares are 0 to 1; by world size: `straggler_efficiency` (mean ÷ max cost of ranks) and `steps`.

    `tokens_by_grid` is by token grid "t×h×w", most tokens first, and empty when no grids were given. `row_bytes` is the
    mean size of a row on disk, 0 when no sizes were given; a step reads so much on each rank.
    """

    rows: int
    clips: int
    tokens: int
    capacity: int
    pad_to_max_tokens: int
    bucket_tokens: int
    straggler_efficiency: Mapping[int, float]
    steps: Mapping[int, int]
    tokens_by_grid: Mapping[str, int]
    row_bytes: float = 0.0

    @property
    def fill(self) -> float:
        """Tokens of clips ÷ tokens that rows could hold."""
        return _share(self.tokens, self.rows * self.capacity)

    @property
    def saved_against_max(self) -> float:
        """Share of the tokens of pad-to-max, padding and all, that full rows do not compute."""
        return 1 - _share(self.rows * self.capacity, self.pad_to_max_tokens)

    @property
    def saved_against_buckets(self) -> float:
        """Share of the tokens of bucket batching, padding and all, that full rows do not compute."""
        return 1 - _share(self.rows * self.capacity, self.bucket_tokens)

    @property
    def step_bytes(self) -> Mapping[int, float]:
        """Bytes that all ranks together read in a step, by world size; one row a rank."""
        return {size: size * self.row_bytes for size in self.steps}

    def to_dict(self) -> dict[str, Any]:
        """Write all figures as plain data for JSON."""
        shares = {name: getattr(self, name) for name in ("fill", "saved_against_max", "saved_against_buckets")}
        return {**asdict(self), **shares, "step_bytes": dict(self.step_bytes)}

    def to_text(self) -> str:
        """Write the figures out for a terminal, 80 columns wide at most."""
        padded = [("pad-to-max", self.pad_to_max_tokens), ("bucket batching", self.bucket_tokens)]
        lines = [
            f"{self.clips:,} clips of {self.tokens:,} tokens in {self.rows:,} rows of {self.capacity:,}",
            "",
            f"{'':17}{'tokens computed':>18}{'fill':>9}{'padding':>10}",
            _computed("packed rows", self.tokens, self.rows * self.capacity),
            *(_computed(name, self.tokens, computed) for name, computed in padded),
            "",
            f"saved: {self.saved_against_max:.1%} of the tokens of pad-to-max, {self.saved_against_buckets:.1%} of buckets",
            "",
            f"{'ranks':>8}{'steps an epoch':>17}{'straggler efficiency':>23}{'read a step' if self.row_bytes else '':>14}",
            *(self._world(size) for size in self.steps),
        ]
        if self.tokens_by_grid:
            lines += ["", f"{'grid':>14}{'tokens':>17}{'share':>9}", *_most_tokens(self.tokens_by_grid, self.tokens)]
        return "\n".join(lines)

    def _world(self, size: int) -> str:
        efficiency = f"{self.straggler_efficiency[size]:.2%}" if self.rows >= size else "fewer rows than ranks"
        read = f"{self.step_bytes[size] / 1e6:>11,.1f} MB" if self.row_bytes else ""
        return f"{size:>8,}{self.steps[size]:>17,}{efficiency:>23}{read}"


def plan_report(
    rows: Sequence[NDArray[np.int64]],
    lengths: ArrayLike,
    world_sizes: Sequence[int] = (8, 64, 256),
    *,
    capacity: int | None = None,
    cost: CostModel | None = None,
    seed: int = 0,
    grids: Sequence[tuple[int, int, int]] | None = None,
    clip_bytes: ArrayLike | None = None,
) -> PlanReport:
    """Report on rows from `plan_rows` over clips of these token counts.

    Args:
        rows: indices into `lengths`, row by row.
        lengths: tokens of each clip.
        world_sizes: numbers of ranks to report on; a step gives each rank one row.
        capacity: tokens that a row may hold; without it, those of the fullest row.
        cost: of a row; `dit_cost()` without it.
        seed: of the order of rows.
        grids: token grid (t, h, w) of each clip, for `tokens_by_grid`.
        clip_bytes: size of each clip on disk, captions and all, for `row_bytes`.

    Raises:
        ValueError: a row holds more than `capacity`.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    planned = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    clips = sizes[planned]
    fullest = max((int(sizes[row].sum()) for row in rows), default=0)
    if capacity is not None and fullest > capacity:
        raise ValueError(f"a row holds {fullest} tokens, more than its capacity of {capacity}")
    costs = (cost or dit_cost()).row_costs(rows, sizes)
    return PlanReport(
        rows=len(rows),
        clips=clips.size,
        tokens=int(clips.sum()),
        capacity=fullest if capacity is None else capacity,
        pad_to_max_tokens=clips.size * int(clips.max(initial=0)),
        bucket_tokens=int(bucket_lengths(clips).sum()),
        straggler_efficiency={size: straggler_efficiency(costs, world_size=size, seed=seed) for size in world_sizes},
        steps={size: -(-len(rows) // size) for size in world_sizes},
        tokens_by_grid={} if grids is None else _tokens_by_grid([grids[clip] for clip in planned], clips),
        row_bytes=0.0 if clip_bytes is None else float(np.asarray(clip_bytes)[planned].sum() / max(1, len(rows))),
    )


def corpus_report(
    url: str, world_sizes: Sequence[int] = (8, 64, 256), *, cost: CostModel | None = None
) -> tuple[PlanReport, list[list[int]]]:
    """Report on the rows of the packed corpus at `url` (a packed folder or a run), from its indexes alone.

    Returns:
        The report, and the tokens of each clip of each row, in the order of the shards.

    Raises:
        ShardError: there is no packed corpus, or an index is not the one that its manifest names.
    """
    manifest, base = open_manifest(url)
    indexes = [row for entry in manifest.shards for row in read_index(Store(base), entry)]
    lengths = [row.lengths.tolist() for row in indexes]
    ends = np.cumsum([len(row) for row in lengths], dtype=np.int64)
    rows = [np.arange(end - len(row), end) for row, end in zip(lengths, ends, strict=True)]
    report = plan_report(
        rows,
        [length for row in lengths for length in row],
        world_sizes,
        capacity=manifest.sequence_length,
        cost=cost,
        grids=[grid for row in indexes for grid in row.grids],
    )
    size = sum(row.size + row.json_size for row in indexes)
    return replace(report, row_bytes=size / max(1, len(indexes))), lengths


def bucket_lengths(lengths: ArrayLike) -> NDArray[np.int64]:
    """Length of each clip when padded to the longest of its bucket; buckets are half an octave wide."""
    sizes = np.asarray(lengths, dtype=np.int64)
    bucket = np.ceil(2 * np.log2(sizes)).astype(np.int64)
    longest = np.zeros(int(bucket.max(initial=0)) + 1, dtype=np.int64)
    np.maximum.at(longest, bucket, sizes)
    padded: NDArray[np.int64] = longest[bucket]
    return padded


def _tokens_by_grid(grids: Sequence[tuple[int, int, int]], lengths: NDArray[np.int64]) -> dict[str, int]:
    tokens = Counter[str]()
    for (t, h, w), length in zip(grids, lengths.tolist(), strict=True):
        tokens[f"{t}x{h}x{w}"] += length  # fewer than t·h·w where tokens are dropped
    return dict(tokens.most_common())


def _most_tokens(tokens_by_grid: Mapping[str, int], tokens: int) -> list[str]:
    shown = list(tokens_by_grid.items())[:GRIDS_SHOWN]
    if rest := tokens - sum(count for _, count in shown):
        shown.append((f"{len(tokens_by_grid) - len(shown):,} more", rest))
    return [f"{grid:>14}{count:>17,}{count / tokens:>9.1%}" for grid, count in shown]


def _computed(name: str, tokens: int, computed: int) -> str:
    share = _share(tokens, computed)
    return f"{name:17}{computed:>18,}{share:>9.2%}{1 - share:>10.2%}"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
