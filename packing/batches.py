"""Read the rows of a step and join them into a batch: what every loader gives, whatever order it reads in.

Invariant: a batch is a pure function of (rows, seed, epoch); caption choice and caption dropping are keyed by clip. Cost: one
copy, from the page cache into the memory of the batch, and one crc32c of each row in each process.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packing.cost import CostModel
from packing.errors import ShardError
from packing.manifest import Manifest, ShardEntry, open_manifest
from packing.prefetch import BufferPool
from packing.rows import Checked, Row, RowIndex, as_tensor, kept_misfit, read_index, read_row, row_costs
from packing.store import Store
from packing.tokens import clip_generator

LINE = 64  # bytes of a cache line


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one rank in one step, joined end to end: S tokens in s segments, real tokens only.

    latents fp16 [S, D]; cu_seqlens int32 [s+1]; grid int32 [s, 3]; text bf16 [M, E] holds the chosen caption of each segment
    and cu_text int32 [s+1] its borders (an empty span where the caption was dropped). A rank may get no rows: S = s = 0.
    Where tokens were dropped when the corpus was packed, kept int32 [S] is the number of each token in its own clip, in
    raster order of the clip's grid, which stays the whole one; None where all clips are whole.

    The tensors belong to the batch: they are views of memory that nothing else writes, not of a file, and may be changed in
    place. The loader uses that memory again when the last tensor that refers to it is gone; `clone()` a small part that is
    kept, or it keeps the whole batch.
    """

    latents: Tensor
    cu_seqlens: Tensor
    grid: Tensor
    clip_ids: tuple[str, ...]
    text: Tensor
    cu_text: Tensor
    captions: tuple[str, ...]
    epoch: int
    step: int
    kept: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one rank reads for one step: numbers of rows, and the epoch that its captions are drawn for."""

    epoch: int
    step: int
    rows: NDArray[np.int64]


class Corpus:
    """The rows of a packed corpus at `url`, a packed folder or a run folder, and what each costs by `cost` (`dit_cost()`).

    Raises:
        ShardError: there is no packed corpus, it has no rows, or an index is not the one that its manifest names.
    """

    def __init__(self, url: str, cost: CostModel | None = None) -> None:
        self.manifest, base = open_manifest(url)
        self.store = Store(base)
        self.rows: list[tuple[ShardEntry, RowIndex]] = [
            (entry, row) for entry in self.manifest.shards for row in read_index(self.store, entry)
        ]
        if not self.rows:
            raise ShardError(f"the packed corpus at {base} has no rows")
        self.costs = row_costs([row for _, row in self.rows], cost)


class BatchReader:
    """Reads batches of rows of corpora of like latents and text; rows are numbered through, corpus after corpus.

    Args:
        corpora: at least one; all have the token width and the text width of the first.
        seed: caption choice and caption dropping.
        caption_drop: chance that a clip comes without its caption, 0 to 1.
        recheck: check the crc32c of a row at each reading, instead of once in this process.
        pool: gives the memory of batches.
    """

    def __init__(self, corpora: Sequence[Corpus], *, seed: int, caption_drop: float, recheck: bool, pool: BufferPool) -> None:
        self._places = [(corpus.store, entry, row) for corpus in corpora for entry, row in corpus.rows]
        self._manifest = corpora[0].manifest
        self._seed, self._caption_drop = seed, caption_drop
        self._checked: list[Checked] | None = None if recheck else [{} for _ in corpora]
        self._corpus_of = np.repeat(np.arange(len(corpora)), [len(corpus.rows) for corpus in corpora])
        self._pool = pool

    def read(self, share: Share) -> Batch:
        """Read the rows of a share.

        Raises:
            ShardError: a row is missing or damaged.
        """
        places = [self._places[number] for number in share.rows]
        indexes = [row for _, _, row in places]
        memory = _StepMemory(self._pool, indexes, self._manifest)
        rows = [self._row(memory, number) for number in share.rows]
        segments = [segment for row in rows for segment in row.segments]
        chosen = [self._choose(share.epoch, segment) for segment in segments]
        spans = [spans[pick] if pick >= 0 else (0, 0) for spans, pick in zip(_caption_spans(rows), chosen, strict=True)]
        grids = [grid for row in indexes for grid in row.grids]
        return Batch(
            latents=memory.latents(),
            cu_seqlens=_offsets([length for row in indexes for length in row.lengths.tolist()]),
            grid=torch.tensor(grids, dtype=torch.int32).reshape(-1, 3),
            clip_ids=tuple(segment["clip_id"] for segment in segments),
            text=memory.text(spans),
            cu_text=_offsets([end - begin for begin, end in spans]),
            captions=tuple(
                segment["captions"][pick]["text"] if pick >= 0 else "" for segment, pick in zip(segments, chosen, strict=True)
            ),
            epoch=share.epoch,
            step=share.step,
            kept=_kept(rows, indexes),
        )

    def _row(self, memory: "_StepMemory", number: int) -> Row:
        store, entry, index = self._places[number]
        checked = None if self._checked is None else self._checked[self._corpus_of[number]]
        row = read_row(store, entry, index, place=memory.place, checked=checked)
        latents, text = row.tensors["latents"], row.tensors["text"]
        found = latents.dtype, *latents.shape, text.dtype, text.shape[-1] if text.numel() else memory.text_width
        named = torch.float16, int(index.lengths.sum()), self._manifest.token_dim, torch.bfloat16, memory.text_width
        if found != named:
            raise ShardError(f"{store.path(entry.name)}: row {index.key} holds {found}, where {named} is promised")
        if misfit := kept_misfit(row, index):
            raise ShardError(f"{store.path(entry.name)}: row {index.key}: {misfit}")
        return row

    def _choose(self, epoch: int, segment: Mapping[str, Any]) -> int:
        """Choose one caption of a clip by number; -1 when it is dropped or there is none."""
        if not self._caption_drop and len(segment["captions"]) <= 1:
            return len(segment["captions"]) - 1
        generator = clip_generator(self._seed, epoch, segment["clip_id"], "caption")
        dropped = generator.random() < self._caption_drop
        return -1 if dropped or not segment["captions"] else int(generator.integers(len(segment["captions"])))


class _StepMemory:
    """One buffer for the rows of a step: the latents of all rows end to end, then their text; small tensors get their own."""

    def __init__(self, pool: BufferPool, rows: Sequence[RowIndex], manifest: Manifest) -> None:
        self.text_width = manifest.text_encoder.width
        self._token_dim = manifest.token_dim
        self._latent_bytes = 2 * self._token_dim * sum(int(row.lengths.sum()) for row in rows)
        first = -(-self._latent_bytes // LINE) * LINE
        # The index does not say how much text a row holds: at most all that is not latents.
        buffer = pool.take(first + sum(row.size for row in rows) - self._latent_bytes)
        self._free = {"latents": buffer[: self._latent_bytes], "text": buffer[first:]}
        self._whole = dict(self._free)

    def place(self, name: str, size: int) -> NDArray[np.uint8] | None:
        """Give the next `size` bytes for a tensor of this name; None for the small ones."""
        if name not in self._free:
            return None
        taken, self._free[name] = self._free[name][:size], self._free[name][size:]
        return taken

    def latents(self) -> Tensor:
        """All latents, fp16 [S, D]."""
        latents = self._whole["latents"]
        return as_tensor(latents, torch.float16, (latents.size // (2 * self._token_dim), self._token_dim))

    def text(self, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Keep only these spans of the text, ascending and in features, moved together in place: bf16 [M, E]."""
        size, filled = 2 * self.text_width, 0  # bytes of a feature, features
        text = self._whole["text"]
        for begin, end in spans:
            after = filled + end - begin
            if begin != filled:
                text[filled * size : after * size] = text[begin * size : end * size]
            filled = after
        return as_tensor(text[: filled * size], torch.bfloat16, (filled, self.text_width))


def _kept(rows: Sequence[Row], indexes: Sequence[RowIndex]) -> Tensor | None:
    """Join what the rows tell of kept tokens; of a row of whole clips among others that is all of each. None if none tells."""
    if all(index.kept is None for index in indexes):
        return None
    parts = [
        [row.tensors["kept"]]
        if index.kept is not None
        else [torch.arange(n, dtype=torch.int32) for n in index.lengths.tolist()]
        for row, index in zip(rows, indexes, strict=True)
    ]
    return torch.cat([part for row_parts in parts for part in row_parts])


def _caption_spans(rows: Sequence[Row]) -> Iterator[Sequence[tuple[int, int]]]:
    """Yield, segment by segment, where the features of each of its captions lie in the text of all rows."""
    before = 0
    for row in rows:
        spans = [(before + begin, before + end) for begin, end in itertools.pairwise(row.tensors["cu_text"].tolist())]
        yield from (spans[first:last] for first, last in itertools.pairwise(row.tensors["cu_captions"].tolist()))
        before += row.tensors["text"].shape[0]


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(list(itertools.accumulate(lengths, initial=0)), dtype=torch.int32)
