"""Attempts: markers that outlive a worker that is killed, so that what kills workers is found and failed.

Before a worker starts on a group of sources or clips it leaves a marker that names them, in
`attempts/STAGE/FINGERPRINT/PARTITION`; the results part that follows makes it void. A marker without results is a death. What
has died once is tried again as it is: most deaths are a machine's, and equal groups give equal bits. After two deaths its
members go one by one, and who was there at three deaths, alone at one of them, is failed. So one killer costs three deaths,
whatever retries, and its neighbours nothing.

A worker that stops with an exception has not died: it takes its marker back with a second one. Cost: one small file a chunk.
Two jobs at once on one run may take each other's live markers for deaths; it takes three to fail anything.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from packing.errors import ClipmillError
from packing.store import Store

SUSPECT, GUILTY = 2, 3  # deaths after which a key goes alone, and after which it is failed
TAKEN_BACK = ".taken_back"

Attempt = tuple[str, int]  # a key, and the number of the outcome that is to be made for it


@dataclass
class Attempts:
    """The deaths of workers over one partition in one stage, as the markers tell them."""

    store: Store
    folder: str
    deaths: Counter[Attempt] = field(default_factory=Counter)
    alone: Counter[Attempt] = field(default_factory=Counter)
    _names: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, store: Store, stage: str, fingerprint: str, partition: str) -> "Attempts":
        """Read the markers of a partition. Those that results have made void do no harm: nobody asks for their keys."""
        found = cls(store, f"attempts/{stage}/{fingerprint}/{partition}")
        found._names = set(store.list(found.folder))
        for name in sorted(found._names):
            if not name.endswith(TAKEN_BACK) and f"{name}{TAKEN_BACK}" not in found._names:
                keys = [(str(key), int(number)) for key, number in json.loads(store.read(name))]
                found.deaths.update(keys)
                found.alone.update(keys if len(keys) == 1 else ())
        return found

    def is_guilty(self, key: Attempt) -> bool:
        """Tell whether a key has killed as many workers as it may."""
        return self.deaths[key] >= GUILTY and self.alone[key] > 0

    def groups(self, keys: Sequence[Attempt]) -> list[list[Attempt]]:
        """Divide keys into what is tried together: all that are above suspicion, and then each suspect alone."""
        together = [key for key in keys if self.deaths[key] < SUSPECT]
        return [*([together] if together else []), *([key] for key in keys if self.deaths[key] >= SUSPECT)]

    @contextlib.contextmanager
    def marked(self, keys: Sequence[Attempt]) -> Iterator[None]:
        """Leave a marker while the body works on some keys, for whoever comes after a death."""
        name = self._next_name(keys)
        self._names.add(name)
        self.store.put_once(name, json.dumps([list(key) for key in keys]).encode())
        try:
            yield
        except BaseException:
            with contextlib.suppress(ClipmillError):  # of the two errors, the first is the one to tell
                self.store.put_once(f"{name}{TAKEN_BACK}", b"")
            raise

    def _next_name(self, keys: Sequence[Attempt]) -> str:
        digest = hashlib.sha256("\n".join(f"{key} {number}" for key, number in keys).encode()).hexdigest()[:16]
        taken = sum(1 for name in self._names if name.startswith(f"{self.folder}/{digest}-") and not name.endswith(TAKEN_BACK))
        return f"{self.folder}/{digest}-{taken + 1}"
