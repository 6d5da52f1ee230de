"""Mix several packed corpora by weight, and change the weights as training goes on.

Corpora may come of one run or of many: images and videos, low and high resolution, rows of several lengths (`pack.kind`,
`pack.min_pixels`, `pack.min_tokens` pack a part of a run). Images first, then both, is a curriculum of one phase:

    sources:
      - {shards: runs/a/packed/4f…, weight: 1}     # images
      - {shards: runs/b, weight: 3}                # videos
    curriculum:
      - {steps: 10000, weights: [1, 0]}            # before the weights above hold

Invariant: how many rows of each corpus come before step k is a closed formula of the weights, exact to half a row, so the state
is small and world-size free. Each corpus goes through epochs of its own; in each of them each of its rows comes once.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate
from typing import Unpack

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING

from packing.config import load_config
from packing.errors import ConfigError
from packing.loader import LoaderSettings, ShardLoader, StepLoader, deal_epoch
from packing.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Source:
    """A packed corpus of a mixture, and its weight among the others: its share of rows."""

    shards: str = MISSING
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The weights of all sources during so many steps."""

    steps: int = MISSING
    weights: list[float] = MISSING


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Corpora with weights, and the phases of a curriculum that come first; what a YAML file of a mixture holds."""

    sources: list[Source] = MISSING
    curriculum: list[Phase] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.sources:
            raise ValueError("a mixture has at least one source")
        for weights in self.weights:
            if len(weights) != len(self.sources) or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
                raise ValueError(f"weights {weights} are not one for each of {len(self.sources)} sources, zero or more")
        if any(phase.steps < 1 for phase in self.curriculum):
            raise ValueError("a phase of a curriculum has at least one step")

    @property
    def weights(self) -> list[list[float]]:
        """The weights of each phase, and at last those that hold for ever."""
        phases = [*(phase.weights for phase in self.curriculum), [source.weight for source in self.sources]]
        return [[float(weight) for weight in weights] for weights in phases]


class MixedLoader(StepLoader):
    """Iterates for ever over steps that mix rows of several corpora.

    A mixture has no epochs of its own: every step is marked as an epoch, so that a clip that comes again draws another caption,
    noise and time. Rows of one step come from the same place in the order of cost of each corpus, not of the same cost: ranks
    that get one row each wait for each other more than with one corpus; with several rows each that evens out.

    Args:
        mixture: the corpora, their weights, and the phases that come before these hold.
        settings: those of `StepLoader`, of which only `global_batch` has no default.

    Raises:
        ConfigError: the corpora differ in patch, codec or text encoder.
        ShardError: as `ShardLoader`.
    """

    def __init__(self, mixture: Mixture, **settings: Unpack[LoaderSettings]) -> None:
        super().__init__([source.shards for source in mixture.sources], **settings)
        self._mixture = mixture
        self.manifest = _common_manifest(mixture, [corpus.manifest for corpus in self._corpora])
        self._first_rows = [0, *accumulate(len(corpus.rows) for corpus in self._corpora)]
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def step_rows(self, number: int) -> NDArray[np.int64]:
        """Return the rows of a step, `global_batch` of them."""
        spans = zip(self._rows_before(number), self._rows_before(number + 1), strict=True)
        return np.concatenate([self._rows_of(corpus, first, last) for corpus, (first, last) in enumerate(spans)])

    def epoch_and_step(self, number: int) -> tuple[int, int]:
        """Return the number itself as the epoch, of one step."""
        return number, 0

    def step_number(self, epoch: int, step: int) -> int:
        """Return the number of the step that is marked so."""
        return epoch + step

    def _rows_before(self, number: int) -> list[int]:
        """Return how many rows of each corpus come before step `number`."""
        rows = [0] * len(self._corpora)
        for phase, weights in zip([*self._mixture.curriculum, None], self._mixture.weights, strict=True):
            steps = number if phase is None else min(number, phase.steps)
            rows = [sum(pair) for pair in zip(rows, shared_out(steps * self.global_batch, weights), strict=True)]
            number -= steps
        return rows

    def _rows_of(self, corpus: int, first: int, last: int) -> NDArray[np.int64]:
        """Return the rows at the places `[first, last)` of the endless order of a corpus."""
        size = len(self._corpora[corpus].rows)
        rows = [self._order(corpus, place // size)[place % size] for place in range(first, last)]
        return np.array(rows, dtype=np.int64) + self._first_rows[corpus]

    def _order(self, corpus: int, epoch: int) -> NDArray[np.int64]:
        if corpus not in self._orders or self._orders[corpus][0] != epoch:
            steps = deal_epoch(self._corpora[corpus], self.seed, epoch, self.global_batch)
            self._orders[corpus] = epoch, np.concatenate(steps)
        return self._orders[corpus][1]


def shared_out(rows: int, weights: Sequence[float]) -> list[int]:
    """Share out so many rows by weight, all of them, each corpus to within a row of its due; more rows never give one fewer."""
    parts = [Fraction(weight) for weight in weights]
    ends = [rows * part // sum(parts) for part in accumulate(parts)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def open_loader(url: str, **settings: Unpack[LoaderSettings]) -> StepLoader:
    """Open a packed folder, a run folder, or a YAML file that describes a mixture; settings are those of `StepLoader`.

    Raises:
        ConfigError: the file is not a mixture, or its corpora do not go together.
        ShardError: there is no packed corpus.
    """
    return MixedLoader(load_config(Mixture, url), **settings) if is_mixture(url) else ShardLoader(url, **settings)


def is_mixture(url: str) -> bool:
    """Tell whether a URL names a file that describes a mixture, and not a folder of shards."""
    return url.endswith((".yaml", ".yml"))


def _common_manifest(mixture: Mixture, manifests: Sequence[Manifest]) -> Manifest:
    """Return what all manifests say of tokens and text, without shards; its digest stands for the corpora and the weights."""
    first = manifests[0]
    for source, other in zip(mixture.sources, manifests, strict=True):
        for name, one, another in [
            ("patch", first.patch, other.patch),
            ("codec", first.codec, other.codec),
            ("text encoder", first.text_encoder, other.text_encoder),
        ]:
            if one != another:
                raise ConfigError(f"{source.shards} has another {name} than {mixture.sources[0].shards}: {another}, not {one}")
    steps = [phase.steps for phase in mixture.curriculum]
    order = json.dumps([[manifest.digest for manifest in manifests], mixture.weights, steps])
    return replace(
        first,
        sequence_length=max(manifest.sequence_length for manifest in manifests),
        plan_hash=hashlib.sha256(order.encode()).hexdigest(),
        fingerprints={},
        shards=(),
    )
