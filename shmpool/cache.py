"""The refs that a process remembers privately, each in a cell that counts its uses.

Bounded, so that "one copy of each name per host" stays true but for this many, and emptied whole when full: a working set that
fits never notices, and one that does not would defeat any order of eviction that a dict can keep for free. A ref is valid as long as
the pool (or until a reset, which empties the cache), so no entry can outlive its truth.
"""

import itertools
from collections.abc import Callable
from operator import length_hint
from typing import Final

from shmpool.errors import PoolFullError

_FULL: Final = 1 << 62  # what a cell counts down from


class Mark:
    """A cell, the column of the ledger that its uses belong to, and what the cell held when they were last collected."""

    __slots__ = ("cell", "column", "left")

    def __init__(self, cell: "itertools.repeat[int]", column: int) -> None:
        self.cell = cell
        self.column = column
        self.left = _FULL


class Cache:
    """`cells[value]` is `itertools.repeat(ref, ...)`: next() of it returns the ref and counts down.

    That is one C call, which no thread can split, so a hit is counted at the price of a plain dict function. A list
    [ref, uses] cost 1.4 times as much, and its two steps can lose a count between threads.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.cells: dict[bytes, itertools.repeat[int]] = {}
        self.values: dict[int, bytes] = {}
        self._marks: list[Mark] = []

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, value: bytes, ref: int, column: int) -> "itertools.repeat[int]":
        """Remember a ref; the caller makes room first (`is_full`, `clear`)."""
        cell = itertools.repeat(ref, _FULL)
        self._marks.append(Mark(cell, column))  # first: an interrupt in between must not leave a cell that nobody reads
        self.cells[value] = cell
        return cell

    def add_value(self, ref: int, value: bytes) -> None:
        """Remember what a ref resolved to."""
        if len(self.values) >= self.size:
            self.values.clear()
        self.values[ref] = value

    def is_full(self) -> bool:
        return len(self._marks) >= self.size

    def collect(self, count: Callable[[int, int], None]) -> int:
        """Call `count(column, uses)` for each cell used since the last time; returns the sum. About 0.1 us a cell.

        What `count` refuses with PoolFullError stays in its cell for the next time.
        """
        total = 0
        for mark in self._marks:
            left = length_hint(mark.cell)
            uses = mark.left - left
            if uses:
                try:
                    count(mark.column, uses)
                except PoolFullError:
                    continue
                mark.left = left
                total += uses
        return total

    def clear(self) -> int:
        """Forget everything; returns the uses that were never collected."""
        self.cells.clear()
        self.values.clear()
        marks, self._marks = self._marks, []
        return sum(mark.left - length_hint(mark.cell) for mark in marks)
