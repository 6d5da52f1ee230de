"""Read packed rows by index in a planned order: the loader that training uses.

Invariant: the rows of global step k are a pure function of (manifest, seed, epoch, k); ranks share them out, so any number of
ranks sees the same global batches and the state is five small values. Caption choice and caption dropping are keyed by clip.
Cost: one copy, from the page cache into the memory of the batch, and one crc32c of each row in each process; read ahead by
threads, so a trainer does not wait for it.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from packing.errors import ShardError
from packing.manifest import Manifest, ShardEntry, open_manifest
from packing.planner import deal_ranks, deal_rows
from packing.prefetch import BufferPool, read_ahead
from packing.rows import Checked, Row, RowIndex, as_tensor, read_index, read_row
from packing.store import Store
from packing.tokens import clip_generator

LINE = 64  # bytes of a cache line


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one rank in one step, joined end to end: S tokens in s segments, real tokens only.

    latents fp16 [S, D]; cu_seqlens int32 [s+1]; grid int32 [s, 3]; text bf16 [M, E] holds the chosen caption of each segment
    and cu_text int32 [s+1] its borders (an empty span where the caption was dropped). A rank may get no rows: S = s = 0.

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


class ShardLoader(IterableDataset[Batch]):
    """Iterates over the steps of a packed corpus, epoch after epoch, for ever.

    It reads ahead with threads of its own, so in torch it is `DataLoader(loader, batch_size=None)`, without workers. The
    threads live as long as the iterator.

    Args:
        url: a packed folder or a run folder.
        global_batch: rows in one step, over all ranks.
        rank: this process, 0 to world_size - 1.
        world_size: processes that share each step.
        seed: order, caption choice and caption dropping.
        caption_drop: chance that a clip comes without its caption (for classifier-free guidance), 0 to 1.
        ahead: batches that are read ahead, each by a thread; 0 reads when asked.
        recheck: check the crc32c of a row at each reading, instead of once in this process. Rows of a shard whose file has
            changed since, and rows of a remote store, are always checked.

    Raises:
        ShardError: there is no packed corpus at `url`, or an index is not the one that its manifest names. When iterating: a
            row is missing or damaged, or the loader runs in a worker of a DataLoader.
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        url: str,
        *,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        caption_drop: float = 0.0,
        ahead: int = 2,
        recheck: bool = False,
    ) -> None:
        if global_batch < 1 or not 0 <= rank < world_size or not 0 <= caption_drop <= 1 or ahead < 0:
            given = f"global_batch={global_batch}, rank={rank}, world_size={world_size}, caption_drop={caption_drop}"
            raise ValueError(f"out of range among {given}, ahead={ahead}")
        self.manifest, base = open_manifest(url)
        self.global_batch, self.rank, self.world_size = global_batch, rank, world_size
        self.seed, self.caption_drop, self.ahead = seed, caption_drop, ahead
        self.epoch = self.step = 0
        self._store = Store(base)
        self._rows: list[tuple[ShardEntry, RowIndex]] = [
            (entry, row) for entry in self.manifest.shards for row in read_index(self._store, entry)
        ]
        if not self._rows:
            raise ShardError(f"the packed corpus at {base} has no rows")
        self._costs = np.array([row.cost for _, row in self._rows])
        self._dealt: tuple[int, list[NDArray[np.int64]]] | None = None
        self._checked: Checked | None = None if recheck else {}
        self._pool = BufferPool(spares=ahead + 2)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's share of step after step, from the present epoch and step on."""
        if get_worker_info() is not None:
            raise ShardError("a ShardLoader reads ahead by itself: use DataLoader(loader, batch_size=None, num_workers=0)")
        while True:
            with closing(read_ahead(self._shares(), self._batch, self.ahead)) as batches:
                for batch in batches:
                    self.epoch, self.step = after = batch.epoch, batch.step + 1
                    yield batch
                    del batch
                    if (self.epoch, self.step) != after:  # a state was loaded: what was read ahead is no longer next
                        break

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, as JSON of under 1 KB that any number of ranks can resume from."""
        return {
            "manifest": self.manifest.digest,
            "seed": self.seed,
            "global_batch": self.global_batch,
            "epoch": self.epoch,
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ShardError: the state belongs to another corpus, seed or global batch, whose order is another, or is none.
        """
        here = self.state_dict()
        if missing := here.keys() - state.keys():
            raise ShardError(f"cannot resume: the state has no {min(missing)}")
        for name in ("manifest", "seed", "global_batch"):
            if state[name] != here[name]:
                raise ShardError(f"cannot resume: the state has {name}={state[name]}, this loader {here[name]}")
        self.epoch, self.step = int(state["epoch"]), int(state["step"])

    def _steps(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the rows of every step of an epoch; the last epoch asked for is kept."""
        if self._dealt is None or self._dealt[0] != epoch:
            order = clip_generator(self.seed, epoch, self.manifest.digest, "order")
            steps = deal_rows(self._costs, seed=int(order.integers(1 << 63)), global_batch=self.global_batch)
            self._dealt = (epoch, steps)
        return self._dealt[1]

    def _shares(self) -> Iterator["_Share"]:
        """Yield the rows of this rank for step after step, from the present one on."""
        epoch, first = self.epoch, self.step
        while True:
            for step, rows in enumerate(self._steps(epoch)[first:], first):
                yield _Share(epoch=epoch, step=step, rows=deal_ranks(rows, self._costs, self.world_size)[self.rank])
            epoch, first = epoch + 1, 0

    def _batch(self, share: "_Share") -> Batch:
        places = [self._rows[number] for number in share.rows]
        memory = _StepMemory(self._pool, [row for _, row in places], self.manifest)
        rows = [self._read(memory, entry, row) for entry, row in places]
        segments = [segment for row in rows for segment in row.segments]
        chosen = [self._choose(share.epoch, segment) for segment in segments]
        spans = [spans[pick] if pick >= 0 else (0, 0) for spans, pick in zip(_caption_spans(rows), chosen, strict=True)]
        grids = [grid for _, row in places for grid in row.grids]
        return Batch(
            latents=memory.latents(),
            cu_seqlens=_offsets([t * h * w for t, h, w in grids]),
            grid=torch.tensor(grids, dtype=torch.int32).reshape(-1, 3),
            clip_ids=tuple(segment["clip_id"] for segment in segments),
            text=memory.text(spans),
            cu_text=_offsets([end - begin for begin, end in spans]),
            captions=tuple(
                segment["captions"][pick]["text"] if pick >= 0 else "" for segment, pick in zip(segments, chosen, strict=True)
            ),
            epoch=share.epoch,
            step=share.step,
        )

    def _read(self, memory: "_StepMemory", entry: ShardEntry, index: RowIndex) -> Row:
        row = read_row(self._store, entry, index, place=memory.place, checked=self._checked)
        latents, text = row.tensors["latents"], row.tensors["text"]
        found = latents.dtype, *latents.shape, text.dtype, text.shape[-1] if text.numel() else memory.text_width
        named = torch.float16, int(index.lengths.sum()), self.manifest.token_dim, torch.bfloat16, memory.text_width
        if found != named:
            raise ShardError(f"{self._store.path(entry.name)}: row {index.key} holds {found}, where {named} is promised")
        return row

    def _choose(self, epoch: int, segment: Mapping[str, Any]) -> int:
        """Choose one caption of a clip by number; -1 when it is dropped or there is none."""
        if not self.caption_drop and len(segment["captions"]) <= 1:
            return len(segment["captions"]) - 1
        generator = clip_generator(self.seed, epoch, segment["clip_id"], "caption")
        dropped = generator.random() < self.caption_drop
        return -1 if dropped or not segment["captions"] else int(generator.integers(len(segment["captions"])))


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What one rank reads for one step: numbers of rows."""

    epoch: int
    step: int
    rows: NDArray[np.int64]


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


def _caption_spans(rows: Sequence[Row]) -> Iterator[Sequence[tuple[int, int]]]:
    """Yield, segment by segment, where the features of each of its captions lie in the text of all rows."""
    before = 0
    for row in rows:
        spans = [(before + begin, before + end) for begin, end in itertools.pairwise(row.tensors["cu_text"].tolist())]
        yield from (spans[first:last] for first, last in itertools.pairwise(row.tensors["cu_captions"].tolist()))
        before += row.tensors["text"].shape[0]


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(list(itertools.accumulate(lengths, initial=0)), dtype=torch.int32)
