"""The refs that a process remembers privately, each in a cell that counts its uses.

Bounded, so that "one copy of each name per host" stays true but for this many, and emptied whole when full: a working set
that fits never notices, and one that does not would defeat any order of eviction that a dict can keep for free. A ref is
valid as long as the pool (or until a reset, which empties the cache), so no entry can outlive its truth.
"""

import itertools
from operator import length_hint
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shmpool.layout import TopicRef

_FULL: Final = 1 << 62  # what a cell counts down from


class Cache:
    """`next(cells[value])` is the ref of a value and counts the use: a cell is `itertools.repeat(ref, 2**62)`, and next() of it
    counts down.

    That is one C call, which no thread can split, so a hit is counted at the price of a plain dict function. A list
    [ref, uses] cost 1.4 times as much, and its two steps can lose a count between threads.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.cells: dict[bytes, itertools.repeat[TopicRef]] = {}
        self.values: dict[TopicRef, bytes] = {}
        # Every ref, each followed by its cell, in order of their making; and what each cell held when uses were last
        # collected. (Pairs would be as many more objects for the garbage collector to visit.)
        self._all: list[Any] = []
        self._lefts = np.zeros(0, np.int64)

    def add(self, value: bytes, ref: TopicRef) -> int:
        """Remember a ref and count one use of it. Returns how many are remembered; the caller keeps that within `size`."""
        cell = itertools.repeat(ref, _FULL)
        # In this order an interrupt in between leaves no cell in use that is not collected.
        self._all.extend((ref, cell))
        self.cells[value] = cell
        next(cell)
        return len(self._all) // 2

    def add_value(self, ref: TopicRef, value: bytes) -> None:
        """Remember what a ref resolved to."""
        if len(self.values) >= self.size:
            self.values.clear()
        self.values[ref] = value

    def pending(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]:
        """Uses since the last `settle`: refs and their uses, shapes (n,), and what to settle with. About 50 ns a cell."""
        cells, settled = self._all, self._lefts  # a signal handler's `clear` gives the cache others
        lefts = np.fromiter(map(length_hint, cells[1::2]), np.int64)
        before = np.full(len(lefts), _FULL)
        before[: len(settled)] = settled
        used = np.flatnonzero(before != lefts)
        refs = np.array([cells[place] for place in (2 * used).tolist()], np.uint64)
        return refs, (before - lefts)[used].astype(np.uint64), lefts

    def settle(self, lefts: NDArray[np.int64]) -> None:
        """Those uses were counted. Nothing may have been cleared since `pending`."""
        self._lefts = lefts

    def close_cells(self) -> None:
        """Hand out no cell any more, so that what `pending` then tells is the last of them."""
        self.cells.clear()
        self.values.clear()

    def clear(self) -> int:
        """Forget everything; returns the uses that were never counted."""
        self.close_cells()
        dropped = int(self.pending()[1].sum())
        self._all, self._lefts = [], np.zeros(0, np.int64)
        return dropped
