"""Read packed rows by index in a planned order: the loader that training uses.

Invariant: the rows of global step k are a pure function of (manifest, seed, k); ranks and workers share them out, so any number
of them sees the same global batches and the state is five small values. Cost: that of reading (`packing.batches`), done ahead
by threads, so a trainer does not wait for it.
"""

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple
from typing import Any, Required, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from packing.batches import Batch, BatchReader, Corpus, Share
from packing.cost import CostModel
from packing.errors import ShardError
from packing.manifest import Manifest
from packing.planner import deal_ranks, deal_rows
from packing.prefetch import BufferPool, read_ahead
from packing.tokens import clip_generator


class LoaderSettings(TypedDict, total=False):
    """What every loader can be told; `StepLoader` says what each means."""

    global_batch: Required[int]
    rank: int
    world_size: int
    seed: int
    caption_drop: float
    ahead: int
    recheck: bool
    pin_memory: bool
    cost: CostModel | None


class StepLoader(IterableDataset[Batch]):
    """Iterates for ever over numbered steps, whose rows a subclass names, from the step on that it stands at.

    As a torch dataset it is `DataLoader(loader, batch_size=None)`. It reads ahead with threads of its own; worker processes,
    which share out the steps, are of use only to move that work out of the trainer's process. Then what the trainer has taken
    is not known here: checkpoint `state_after(batch)`.

    Args:
        urls: packed folders or run folders, whose rows are read.
        global_batch: rows in one step, over all ranks.
        rank: this process, 0 to world_size - 1.
        world_size: processes that share each step.
        seed: order, caption choice and caption dropping.
        caption_drop: chance that a clip comes without its caption (for classifier-free guidance), 0 to 1.
        ahead: batches that are read ahead, each by a thread; 0 reads when asked.
        recheck: check the crc32c of a row at each reading, instead of once in this process. Rows of a shard whose file has
            changed since, and rows of a remote store, are always checked.
        pin_memory: read into page-locked memory, for copies to a GPU that do not stop the host; without CUDA it does nothing.
            A batch must live until a copy with `non_blocking=True` is done, since its memory is used again.
        cost: of a row, as `clipmill calibrate` fits it on a device, by which ranks are balanced; `dit_cost()` without it. It
            decides the order, so a state goes with it.

    Raises:
        ValueError: a number is out of its range.
    """

    manifest: Manifest

    def __init__(
        self,
        urls: Sequence[str],
        *,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        caption_drop: float = 0.0,
        ahead: int = 2,
        recheck: bool = False,
        pin_memory: bool = False,
        cost: CostModel | None = None,
    ) -> None:
        if global_batch < 1 or not 0 <= rank < world_size or not 0 <= caption_drop <= 1 or ahead < 0:
            given = f"global_batch={global_batch}, rank={rank}, world_size={world_size}, caption_drop={caption_drop}"
            raise ValueError(f"out of range among {given}, ahead={ahead}")
        self.global_batch, self.rank, self.world_size = global_batch, rank, world_size
        self.seed, self.caption_drop, self.ahead = seed, caption_drop, ahead
        self._recheck, self._pin_memory = recheck, pin_memory
        self._corpora = [Corpus(url, cost) for url in urls]
        self._cost = cost
        self._costs = np.concatenate([corpus.costs for corpus in self._corpora])
        self._reader: BatchReader | None = None
        self._next = 0  # the first step that was not taken yet
        self._worker: tuple[int, int] | None = None  # number and count of the worker that took the last step, if one did

    @abstractmethod
    def step_rows(self, number: int) -> NDArray[np.int64]:
        """Return the rows of step `number`, counted from the very first, over all ranks."""

    @abstractmethod
    def epoch_and_step(self, number: int) -> tuple[int, int]:
        """Return the epoch and step that a batch of step `number` is marked with."""

    @abstractmethod
    def step_number(self, epoch: int, step: int) -> int:
        """Return the number of the step that is marked so."""

    def order_identity(self) -> dict[str, Any]:
        """Return what decides the order, by its names in a state: manifest, seed, global batch, and a cost if given."""
        cost = {} if self._cost is None else {"cost": list(astuple(self._cost))}
        return {"manifest": self.manifest.digest, "seed": self.seed, "global_batch": self.global_batch, **cost}

    @property
    def epoch(self) -> int:
        """The epoch of the next step."""
        return self.epoch_and_step(self._next)[0]

    @property
    def step(self) -> int:
        """The next step, counted in its epoch."""
        return self.epoch_and_step(self._next)[1]

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's share of step after step, from the present one on; in a worker of many, every so-manieth step."""
        info = get_worker_info()
        worker = (info.id, info.num_workers) if info else None
        while True:
            first, stride = self._first_step(worker)
            shares = map(self._share, itertools.count(first, stride))
            with closing(read_ahead(shares, self._opened().read, self.ahead)) as batches:
                for batch in batches:
                    self._next = after = self.step_number(batch.epoch, batch.step) + 1
                    self._worker = worker
                    yield batch
                    del batch
                    if self._next != after:  # a state was loaded: what was read ahead is no longer next
                        break

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, as JSON of under 1 KB that any number of ranks can resume from.

        In a worker of a DataLoader it tells where that worker stands, for as many workers to resume from.
        """
        worker = {} if self._worker is None else {"worker": list(self._worker)}
        return {**self.order_identity(), "epoch": self.epoch, "step": self.step, **worker}

    def state_after(self, batch: Batch) -> dict[str, Any]:
        """Return the state of a loader that has just given `batch`, on whichever rank and in whichever worker that was."""
        epoch, step = self.epoch_and_step(self.step_number(batch.epoch, batch.step) + 1)
        return {**self.order_identity(), "epoch": epoch, "step": step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ShardError: the state belongs to another corpus, seed or global batch, whose order is another, or is none.
        """
        identity = self.order_identity()
        if missing := {*identity, "epoch", "step"} - state.keys():
            raise ShardError(f"cannot resume: the state has no {min(missing)}")
        for name, here in {"cost": None, **identity}.items():
            if (there := state.get(name)) != here:
                raise ShardError(f"cannot resume: the state has {name}={there}, this loader {here}")
        self._next = self.step_number(int(state["epoch"]), int(state["step"]))
        self._worker = tuple(state["worker"]) if "worker" in state else None

    def _first_step(self, worker: tuple[int, int] | None) -> tuple[int, int]:
        """Return the step that comes first, and how many lie from one to the next."""
        number, count = worker or (0, 1)
        if self._worker is None:
            return self._next + number, count
        if self._worker != worker:
            raise ShardError(f"a state of worker {self._worker} cannot be resumed here ({worker}): use `state_after(batch)`")
        return self._next + count - 1, count

    def _share(self, number: int) -> Share:
        epoch, step = self.epoch_and_step(number)
        rows = deal_ranks(self.step_rows(number), self._costs, self.world_size)[self.rank]
        return Share(epoch=epoch, step=step, rows=rows)

    def _opened(self) -> BatchReader:
        """Make the reader in the process that reads: memory of its pool must not be shared with forked workers."""
        if self._reader is None:
            pool = BufferPool(spares=self.ahead + 2, pinned=self._pin_memory)
            self._reader = BatchReader(
                self._corpora, seed=self.seed, caption_drop=self.caption_drop, recheck=self._recheck, pool=pool
            )
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        """Leave the reader behind, with its memory, when a worker is spawned."""
        return {**self.__dict__, "_reader": None}


class ShardLoader(StepLoader):
    """Iterates over the steps of a packed corpus, epoch after epoch, for ever; each row comes once an epoch.

    Args:
        url: a packed folder or a run folder.
        settings: those of `StepLoader`, of which only `global_batch` has no default.

    Raises:
        ShardError: there is no packed corpus at `url`, or an index is not the one that its manifest names. When iterating: a
            row is missing or damaged.
        ValueError: a number is out of its range.
    """

    def __init__(self, url: str, **settings: Unpack[LoaderSettings]) -> None:
        super().__init__([url], **settings)
        self.manifest = self._corpora[0].manifest
        self._steps_an_epoch = -(-len(self._costs) // self.global_batch)
        self._dealt: tuple[int, list[NDArray[np.int64]]] | None = None

    def step_rows(self, number: int) -> NDArray[np.int64]:
        """Return the rows of a step; the last step of an epoch may have fewer."""
        epoch, step = self.epoch_and_step(number)
        if self._dealt is None or self._dealt[0] != epoch:  # the last epoch asked for is kept
            self._dealt = epoch, deal_epoch(self._corpora[0], self.seed, epoch, self.global_batch)
        return self._dealt[1][step]

    def epoch_and_step(self, number: int) -> tuple[int, int]:
        """Return the epoch of a step, and its place in it."""
        return divmod(number, self._steps_an_epoch)

    def step_number(self, epoch: int, step: int) -> int:
        """Return the number of a step of an epoch."""
        return epoch * self._steps_an_epoch + step


def deal_epoch(corpus: Corpus, seed: int, epoch: int, global_batch: int) -> list[NDArray[np.int64]]:
    """Order the rows of a corpus into the steps of one epoch."""
    order = clip_generator(seed, epoch, corpus.manifest.digest, "order")
    return deal_rows(corpus.costs, seed=int(order.integers(1 << 63)), global_batch=global_batch)
