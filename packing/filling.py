"""Fill rows with clips that are known by their class alone: how many there are of each size.

A row begins with the longest clip that is left and is completed by the fewest clips, up to three, that fill it, longer ones
first (minimum bin slack, Fleszar and Hindi 2002, cut off at three). That leaves fewer gaps than best-fit decreasing, which
packs a clip without a look at what the row then lacks. Clips of equal sizes are one class and a row is repeated as long as its
classes last (a histogram as in Krell et al., arXiv 2107.02027 §3), so a pool costs time by its hundreds of classes, not by
its thousands of clips.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SLACK = 0.0005
PARTNERS = 512  # classes that are tried as one of two clips to complete a row, and
LOOKAHEAD = 24  # as one of three


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Classes of clips, shortest first: `sizes` [classes, caps], tokens before other caps, and `most` of a row [caps]."""

    sizes: NDArray[np.int64]
    most: NDArray[np.int64]
    max_segments: int


class Alike(NamedTuple):
    """Rows of equal content: how many, the tokens still free in each, the class of each of their clips."""

    rows: int
    space: int
    members: list[int]


def fill_rows(clips: NDArray[np.integer], classes: Classes) -> list[Alike]:
    """Pack clips, given by the number of their class; the fullest rows come first."""
    return sorted(_Pool(clips, classes).rows(), key=lambda alike: alike.space)


def unfold(alike: Sequence[Alike], dtype: np.dtype[Any]) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Write rows out one by one: the class of each member, and the number of members of each row."""
    members = [member for rows in alike for member in rows.members * rows.rows]
    sizes = np.repeat([len(rows.members) for rows in alike], [rows.rows for rows in alike])
    return np.array(members, dtype=dtype), sizes.astype(np.int64)


class _Pool:
    """Clips to be packed, counted by class; `fit[r]` is the longest class left of at most r tokens, or -1."""

    def __init__(self, clips: NDArray[np.integer], classes: Classes) -> None:
        self.present, self.left = np.unique(clips, return_counts=True)
        self.table, self.most = classes.sizes[self.present], classes.most.tolist()
        self.sizes: list[list[int]] = self.table.tolist()
        self.tokens = np.append(self.table[:, 0], 0)  # the class that is none, -1, has no tokens
        self.max_segments = classes.max_segments
        self.slack = int(self.most[0] * SLACK)
        bounds = np.concatenate([[0], self.table[:, 0], [self.most[0] + 1]])
        self.fit = np.repeat(np.arange(-1, len(self.sizes)), np.diff(bounds))
        # The neighbours of each class among those left; one more entry, [-1] too, takes what is written beyond both ends.
        self.shorter = list(range(-1, len(self.sizes)))
        self.longer = list(range(1, len(self.sizes) + 2))

    def rows(self) -> Iterator[Alike]:
        """Pack all clips."""
        while self.fit[-1] >= 0:
            yield self._row()

    def _row(self) -> Alike:
        """Fill one row, and as many more with the same content as there are clips for."""
        row: list[int] = []
        room = self.most
        while take := self._next(room, self.max_segments - len(row)):
            row += take
            room = self._less(room, take)
            for number, times in Counter(take).items():
                self._remove(number, times)
        used = Counter(row)
        again = min(int(self.left[number]) // times for number, times in used.items())
        if again:
            for number, times in used.items():
                self._remove(number, again * times)
        return Alike(1 + again, room[0], self.present[row].tolist())

    def _less(self, room: list[int], take: list[int]) -> list[int]:
        return [free - sum(self.sizes[number][cap] for number in take) for cap, free in enumerate(room)]

    def _remove(self, number: int, times: int) -> None:
        self.left[number] -= times
        if not self.left[number]:
            shorter, longer = self.shorter[number], self.longer[number]
            self.fit[self.sizes[number][0] : self.sizes[longer][0] if longer < len(self.sizes) else None] = shorter
            self.longer[shorter], self.shorter[longer] = longer, shorter

    def _next(self, room: list[int], segments: int) -> list[int]:
        """Choose the classes of the clips that a row with this room takes next; none when it takes no more."""
        longest = self._longest(room) if segments else -1
        if longest < 0:
            return []
        space, tokens = room[0], self.sizes[longest][0]
        if space - tokens <= self.slack or space == self.most[0]:
            return [longest]
        if space > 4 * tokens:  # far from full, no need to look ahead
            return [longest] * max(1, min(space // tokens - 3, segments, *self._copies(longest, room)))
        take = self._completion(space, longest)
        return take if len(take) <= segments and self._allows(take, room) else [longest]

    def _longest(self, room: list[int]) -> int:
        """Return the longest class left that fits under all caps, or -1."""
        longest = int(self.fit[room[0]])
        if len(room) > 1 and longest >= 0 and min(self._less(room, [longest])) < 0:
            fitting = np.flatnonzero((self.left > 0) & (self.table <= room).all(axis=1))
            return int(fitting[-1]) if fitting.size else -1
        return longest

    def _completion(self, space: int, longest: int) -> list[int]:
        """Find two clips that leave no more than the slack of `space` free, else of up to three those that leave the least."""
        some = _thinned(np.flatnonzero(self.left[: longest + 1]), PARTNERS)
        free, pair = self._best(space - self.tokens[some])
        two = [int(some[pair[0]]), *pair[1:]]
        if free <= self.slack:
            return two
        few = _thinned(some, LOOKAHEAD)
        least, triple = self._best(np.subtract.outer(space - self.tokens[few], self.tokens[some]).ravel())
        first, second = divmod(triple[0], some.size)
        return [int(few[first]), int(some[second]), *triple[1:]] if least < free else two

    def _best(self, spaces: NDArray[np.int64]) -> tuple[int, list[int]]:
        """Find the space that one more clip fills best; return what stays free, and [place of the space, class if any]."""
        last = self.fit[spaces]  # of a space below 0 it is nonsense, and not asked for
        free = np.where(spaces < 0, self.most[0], spaces - self.tokens[last])
        filled = np.flatnonzero(free <= self.slack)
        best = int(filled[-1] if filled.size else free.argmin())
        return int(free[best]), [best] if last[best] < 0 else [best, int(last[best])]

    def _copies(self, number: int, room: list[int]) -> list[int]:
        """Say how many clips of a class are left, and how many fit under each cap."""
        return [int(self.left[number]), *(free // need for free, need in zip(room, self.sizes[number], strict=True) if need)]

    def _allows(self, take: list[int], room: list[int]) -> bool:
        """Tell whether there are clips enough of these classes, and room for them under all caps."""
        return all(take.count(number) <= self.left[number] for number in take) and min(self._less(room, take)) >= 0


def _thinned(classes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Keep no more than so many classes, evenly, the longest among them."""
    step = max(1, -(-classes.size // most))
    return classes[::-step][::-1]
