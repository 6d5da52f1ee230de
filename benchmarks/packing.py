"""How full rows get, how fast, and how well ranks are balanced: our planner and the usual policies over the same clips.

    python benchmarks/packing.py --clips 100000 --repeats 5

Fill is the tokens of clips ÷ the tokens that are computed on: rows × L for the policies that pack, the padded tokens for those
that pad (for these, "rows" are batches of at most L padded tokens). Speed is in clips a second of processor time of this one
process, the best of all repeats. The policies other than ours are plain Python here, written from their sources, and every
plan is checked: each clip once, no row over L.
"""

import argparse
import itertools
import os
import platform
import sys
import time
import tracemalloc
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `packing` would be this script: its folder comes first

from packing.cost import CostModel, dit_cost
from packing.planner import deal_rows, plan_rows, straggler_efficiency
from packing.report import bucket_lengths, plan_report

CAPACITIES = (36_864, 65_536, 131_072)
WORLD_SIZES = (8, 64, 256)
ASPECTS = (16 / 9, 9 / 16, 4 / 3, 3 / 4, 1.0, 21 / 9)
TIERS = (256, 1560)  # tokens of a frame at 256 × 256 and 480 × 832 pixels, one token each 16 × 16

Lengths = NDArray[np.int64]
Rows = Sequence[Sequence[int] | Lengths]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one policy made of the clips."""

    policy: str
    fill: float
    clips_per_s: float
    rows: int


def mixed_corpus(n: int, seed: int) -> Lengths:
    """Token counts of n clips: 30 % images, two tiers, six aspects ±2 % (normal), log-normal durations to 81 frames of 16 fps.

    Made after a corpus of which only figures are known: 100,000 clips of mean 10,296, median 5,040, 90th percentile 32,760 and
    maximum 33,579 tokens, 619 distinct. This one has 10,276, 5,040, 32,760, 33,579 and 505 (seed 0).
    """
    generator = np.random.default_rng(seed)
    area = np.where(generator.random(n) < 0.5, *TIERS)
    aspect = np.array(ASPECTS)[generator.integers(0, len(ASPECTS), n)] * (1 + 0.02 * generator.standard_normal(n))
    height, width = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    duration_s = 4.4 * np.exp(0.75 * generator.standard_normal(n))
    latent_frames = 1 + np.floor(np.clip(duration_s * 16 - 1, 0, 80) / 4)
    latent_frames[generator.random(n) < 0.3] = 1
    tokens: Lengths = (latent_frames * height * width).astype(np.int64)
    return tokens


def length_corpora(n: int, seed: int) -> dict[str, Lengths]:
    """Token counts of n clips of other kinds than the mixed corpus, of at most 36,864 tokens each."""
    generator = np.random.default_rng(seed)
    most = CAPACITIES[0]
    halves = np.where(generator.random(n) < 0.5, generator.normal(1_500, 300, n), generator.normal(24_000, 3_000, n))
    drawn = {
        "mixed, as above": mixed_corpus(n, seed),
        "mixed, each length ±1 %": mixed_corpus(n, seed) * (1 + 0.01 * generator.standard_normal(n)),
        "uniform": generator.uniform(1, most, n),
        "log-normal, median 3,000": 3_000 * np.exp(generator.standard_normal(n)),
        "log-normal, median 250": 250 * np.exp(0.8 * generator.standard_normal(n)),
        "exponential, mean 6,000": generator.exponential(6_000, n),
        "two humps, 1,500 and 24,000": halves,
        "all 5,000": np.full(n, 5_000),
        "powers of two, 64 to 16,384": 2.0 ** generator.integers(6, 15, n),
        "one of 36,864, others 256": np.where(np.arange(n) == n // 2, most, 256),
    }
    return {name: np.clip(lengths, 1, most).astype(np.int64) for name, lengths in drawn.items()}


def next_fit(lengths: Lengths, capacity: int) -> Rows:
    """Close a row when the next clip does not fit (lucidrains' `group_images_by_max_seq_len`)."""
    rows: list[list[int]] = []
    space = -1
    for clip, size in enumerate(lengths.tolist()):
        if size > space:
            rows.append([])
            space = capacity
        rows[-1].append(clip)
        space -= size
    return rows


def first_fit_8(lengths: Lengths, capacity: int) -> Rows:
    """Put each clip into the first of 8 open rows that has room; else close the fullest (grain's default)."""
    rows: list[list[int]] = []
    opened: list[list[int]] = []  # [space, row]
    for clip, size in enumerate(lengths.tolist()):
        slot = next((slot for slot in opened if slot[0] >= size), None)
        if slot is None:
            if len(opened) == 8:
                opened.remove(min(opened))
            slot = [capacity, len(rows)]
            rows.append([])
            opened.append(slot)
        rows[slot[1]].append(clip)
        slot[0] -= size
    return rows


def first_fit_decreasing_512(lengths: Lengths, capacity: int) -> Rows:
    """Pack each 512 clips by themselves, longest first, each into the first row with room (LoongForge, NeMo DFM)."""
    rows: list[list[int]] = []
    sizes = lengths.tolist()
    for start in range(0, len(sizes), 512):
        opened: list[list[int]] = []  # [space, row]
        for clip in sorted(range(start, min(start + 512, len(sizes))), key=lambda clip: -sizes[clip]):
            slot = next((slot for slot in opened if slot[0] >= sizes[clip]), None)
            if slot is None:
                slot = [capacity, len(rows)]
                rows.append([])
                opened.append(slot)
            rows[slot[1]].append(clip)
            slot[0] -= sizes[clip]
    return rows


def best_fit_decreasing(lengths: Lengths, capacity: int) -> Rows:
    """Pack all clips longest first, each into the fullest row with room (arXiv 2404.10830, TRL's `bfd`), offline."""
    rows: list[list[int]] = []
    opened: list[tuple[int, int]] = []  # (space, row)
    sizes = lengths.tolist()
    for clip in np.argsort(-lengths, kind="stable").tolist():
        at = bisect_left(opened, (sizes[clip], -1))
        space, row = opened.pop(at) if at < len(opened) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(clip)
        if space > sizes[clip]:
            insort(opened, (space - sizes[clip], row))
    return rows


def ours(lengths: Lengths, capacity: int) -> Rows:
    """`packing.plan_rows` as it comes."""
    return plan_rows(lengths, capacity=capacity)


POLICIES: dict[str, Callable[[Lengths, int], Rows]] = {
    "next-fit": next_fit,
    "first-fit, 8 open rows": first_fit_8,
    "first-fit decreasing, buffer 512": first_fit_decreasing_512,
    "best-fit decreasing, offline": best_fit_decreasing,
    "plan_rows (ours)": ours,
}


def pack(policy: str, lengths: Lengths, capacity: int, repeats: int) -> Result:
    """Run a policy, check its rows and time it."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        rows = POLICIES[policy](lengths, capacity)
        best = min(best, time.process_time() - start)
    clips = np.concatenate([np.asarray(row) for row in rows])
    ends = np.cumsum([0, *(len(row) for row in rows[:-1])])
    assert np.array_equal(np.sort(clips), np.arange(lengths.size))
    assert np.add.reduceat(lengths[clips], ends).max() <= capacity
    fill = float(lengths.sum() / (len(rows) * capacity))
    return Result(policy=policy, fill=fill, clips_per_s=lengths.size / best, rows=len(rows))


def pad(policy: str, padded: Callable[[Lengths], Lengths], lengths: Lengths, capacity: int, repeats: int) -> Result:
    """Count and time batches of clips that are padded to one length each."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        shapes, counts = np.unique(padded(lengths), return_counts=True)
        batches = int((-(-counts // (capacity // shapes))).sum())
        best = min(best, time.process_time() - start)
    fill = float(lengths.sum() / (shapes * counts).sum())
    return Result(policy=policy, fill=fill, clips_per_s=lengths.size / best, rows=batches)


def fill_table(lengths: Lengths, capacity: int, repeats: int) -> None:
    """Print what every policy makes of the clips."""
    results = [
        pad("pad-to-max", lambda sizes: np.full_like(sizes, sizes.max()), lengths, capacity, repeats),
        pad("bucket batching, half octaves", bucket_lengths, lengths, capacity, repeats),
        *(pack(policy, lengths, capacity, repeats) for policy in POLICIES),
    ]
    bound = -(-int(lengths.sum()) // capacity)
    print(f"\n## L = {capacity:,}: no plan has fewer than {bound:,} rows, a fill of {lengths.sum() / (bound * capacity):.2%}\n")
    table(
        ["policy", "fill", "clips/s", "rows"],
        ([r.policy, f"{r.fill:.2%}", f"{r.clips_per_s:,.0f}", f"{r.rows:,}"] for r in results),
    )


def corpora_table(n: int, seed: int, repeats: int) -> None:
    """Print what `plan_rows` makes of corpora of other kinds, beside a bound: no plan fills more, most none can fill as much.

    Bytes a clip are those of the rows, and the most that was allocated at any time while planning.
    """
    lines = []
    for (name, lengths), capacity in itertools.product(length_corpora(n, seed).items(), CAPACITIES):
        found = pack("plan_rows (ours)", lengths, capacity, repeats)
        held, most = memory(lengths, capacity)
        figures = [f"{np.unique(lengths).size:,}", f"{capacity:,}", f"{found.fill:.2%}", f"{row_bound(lengths, capacity):.2%}"]
        lines.append([name, *figures, f"{found.clips_per_s:,.0f}", f"{held:.0f}", f"{most:.0f}"])
    print("\n## plan_rows over corpora of other kinds\n")
    table(["lengths", "distinct", "L", "fill", "bound", "clips/s", "bytes a clip", "at most"], lines)


def row_bound(lengths: Lengths, capacity: int, max_segments: int = 512) -> float:
    """Return a fill that no plan exceeds: each clip over half a row needs its own, and no row has over `max_segments`."""
    least = max(-(-int(lengths.sum()) // capacity), int((lengths > capacity / 2).sum()), -(-lengths.size // max_segments))
    return float(lengths.sum() / (least * capacity))


def memory(lengths: Lengths, capacity: int) -> tuple[float, float]:
    """Return the bytes a clip that the rows take, and the most that planning them took, by Python's own account."""
    tracemalloc.start()
    rows = plan_rows(lengths, capacity=capacity)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows
    return held / lengths.size, most / lengths.size


def straggler_table(lengths: Lengths, capacity: int, cost: CostModel) -> None:
    """Print the balance of ranks by window, and how often two rows of one step meet again in the next epoch."""
    costs = cost.row_costs(plan_rows(lengths, capacity=capacity), lengths)
    windows = (1, 32, 64, 128, None)
    print(f"\n## Straggler efficiency at L = {capacity:,}, {costs.size:,} rows, Σ len² × {cost.squares:.3g}\n")
    lines = []
    for size in WORLD_SIZES:
        found = [(straggler_efficiency(costs, world_size=size, window_steps=w), meet_again(costs, size, w)) for w in windows]
        lines.append([str(size), *(f"{efficiency:.2%} ({again:.1%})" for efficiency, again in found)])
    table(["ranks", "random", "window 32", "window 64", "window 128", "default (ours)"], lines)


def meet_again(costs: NDArray[np.float64], global_batch: int, window_steps: int | None) -> float:
    """Share of the pairs of rows of a step that share a step in the next epoch too."""
    step_of = np.empty((2, costs.size), dtype=np.int64)
    for seed in (0, 1):
        for number, step in enumerate(deal_rows(costs, seed=seed, global_batch=global_batch, window_steps=window_steps)):
            step_of[seed, step] = number
    together = np.unique(step_of, axis=1, return_counts=True)[1]
    once = np.bincount(step_of[0])
    return float((together * (together - 1)).sum() / (once * (once - 1)).sum())


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table, first column to the left, the others to the right."""
    body = [list(line) for line in lines]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for line in (head, rule, *body):
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Print all tables, and the report of one plan."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clips", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--repeats", type=int, default=5)
    asked = options.parse_args()
    lengths = mixed_corpus(asked.clips, asked.seed)
    middle, ninth = np.percentile(lengths, [50, 90])
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {processor()}, {os.cpu_count()} cores,", end=" ")
    print(f"load {os.getloadavg()[0]:.1f}; best of {asked.repeats}\n")
    print(f"{lengths.size:,} clips, seed {asked.seed}: mean {lengths.mean():,.0f} tokens, median {middle:,.0f},", end=" ")
    print(f"90th percentile {ninth:,.0f}, longest {lengths.max():,}, {np.unique(lengths).size} distinct lengths")
    for capacity in CAPACITIES:
        fill_table(lengths, capacity, asked.repeats)
    corpora_table(asked.clips, asked.seed, asked.repeats)
    print("\nIn brackets: pairs of rows of a step that share a step in the next epoch too.")
    for capacity, attention in itertools.product(CAPACITIES[:2], (0.5, 1.0)):
        straggler_table(lengths, capacity, dit_cost(attention=attention))
    print("\n## plan_report at L = 36,864\n\n```")
    print(plan_report(plan_rows(lengths, capacity=36_864), lengths, capacity=36_864).to_text())
    print("```")


def processor() -> str:
    """Name the processor as Linux does, or as Python can."""
    try:
        with open("/proc/cpuinfo") as facts:
            return next(line.split(":", 1)[1].strip() for line in facts if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


if __name__ == "__main__":
    main()
