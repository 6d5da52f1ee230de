"""Read packed rows by index in a planned order: the loader that training uses.

Invariant: the rows of global step k are a pure function of (manifest, seed, epoch, k); ranks share them out, so any number of
ranks sees the same global batches and the state is five small values. Caption choice and caption dropping are keyed by clip.
Cost: one ranged read a row, checked by crc32c.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packing.errors import ShardError
from packing.manifest import ShardEntry, open_manifest
from packing.planner import deal_ranks, deal_rows
from packing.shards import Row, RowIndex, read_index, read_row
from packing.store import Store
from packing.tokens import clip_generator


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one rank in one step, joined end to end: S tokens in s segments, real tokens only.

    latents fp16 [S, D]; cu_seqlens int32 [s+1]; grid int32 [s, 3]; text bf16 [M, E] holds the chosen caption of each segment
    and cu_text int32 [s+1] its borders (an empty span where the caption was dropped). A rank may get no rows: S = s = 0.
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


class ShardLoader:
    """Iterates over the steps of a packed corpus, epoch after epoch, for ever.

    Args:
        url: a packed folder or a run folder.
        global_batch: rows in one step, over all ranks.
        rank: this process, 0 to world_size - 1.
        world_size: processes that share each step.
        seed: order, caption choice and caption dropping.
        caption_drop: chance that a clip comes without its caption (for classifier-free guidance), 0 to 1.

    Raises:
        ShardError: there is no packed corpus at `url`, or an index is not the one that its manifest names.
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
    ) -> None:
        if global_batch < 1 or not 0 <= rank < world_size or not 0 <= caption_drop <= 1:
            given = f"global_batch={global_batch}, rank={rank}, world_size={world_size}, caption_drop={caption_drop}"
            raise ValueError(f"out of range among {given}")
        self.manifest, base = open_manifest(url)
        self.global_batch, self.rank, self.world_size = global_batch, rank, world_size
        self.seed, self.caption_drop = seed, caption_drop
        self.epoch = self.step = 0
        self._store = Store(base)
        self._rows: list[tuple[ShardEntry, RowIndex]] = [
            (entry, row) for entry in self.manifest.shards for row in read_index(self._store, entry)
        ]
        if not self._rows:
            raise ShardError(f"the packed corpus at {base} has no rows")
        self._costs = np.array([row.cost for _, row in self._rows])
        self._dealt: tuple[int, list[NDArray[np.int64]]] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's share of step after step, from the present epoch and step on."""
        while True:
            steps = self._steps(self.epoch)
            if self.step >= len(steps):
                self.epoch, self.step = self.epoch + 1, 0
                continue
            batch = self._batch(deal_ranks(steps[self.step], self._costs, self.world_size)[self.rank])
            self.step += 1
            yield batch

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

    def _batch(self, numbers: NDArray[np.int64]) -> Batch:
        rows = [read_row(self._store, *self._rows[number]) for number in numbers]
        segments = [segment for row in rows for segment in row.segments]
        chosen = [self._choose(segment) for segment in segments]
        text = list(itertools.chain.from_iterable(_captions(row) for row in rows))
        no_text = torch.zeros(0, self.manifest.text_encoder.width, dtype=torch.bfloat16)
        picked = [captions[pick] if pick >= 0 else no_text for captions, pick in zip(text, chosen, strict=True)]
        empty = torch.zeros(0, self.manifest.token_dim, dtype=torch.float16)
        grid = torch.cat([torch.zeros(0, 3, dtype=torch.int32), *(row.tensors["grid"] for row in rows)])
        return Batch(
            latents=torch.cat([empty, *(row.tensors["latents"] for row in rows)]),
            cu_seqlens=_offsets(grid.prod(dim=1).tolist()),
            grid=grid,
            clip_ids=tuple(segment["clip_id"] for segment in segments),
            text=torch.cat([no_text, *picked]),
            cu_text=_offsets([len(part) for part in picked]),
            captions=tuple(
                segment["captions"][pick]["text"] if pick >= 0 else "" for segment, pick in zip(segments, chosen, strict=True)
            ),
            epoch=self.epoch,
            step=self.step,
        )

    def _choose(self, segment: Mapping[str, Any]) -> int:
        """Choose one caption of a clip by number; -1 when it is dropped or there is none."""
        generator = clip_generator(self.seed, self.epoch, segment["clip_id"], "caption")
        dropped = generator.random() < self.caption_drop
        return -1 if dropped or not segment["captions"] else int(generator.integers(len(segment["captions"])))


def _captions(row: Row) -> Iterator[Sequence[Tensor]]:
    """Yield, segment by segment, the features [m, E] of each of its captions."""
    parts = torch.tensor_split(row.tensors["text"], row.tensors["cu_text"][1:-1].long())
    bounds = row.tensors["cu_captions"].tolist()
    for first, last in itertools.pairwise(bounds):
        yield parts[first:last]


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(list(itertools.accumulate(lengths, initial=0)), dtype=torch.int32)
