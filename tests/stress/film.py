"""A film of a pool: what its memory held after each store of an operation; and a reader who sees any cut of it.

A writer in plain Python is filmed, store by store, values in halves. A reader then looks up and resolves on the film, which moves
on from one picture to another before any of its reads: so every state of memory that it could have met half way is met.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from shmpool import Pool
from tests.unit.faults import Faults, install
from tests.unit.inside import store_of


class Camera(Faults):
    """Takes a picture of a segment before every store; in a forked child only, and before its pools are attached."""

    def __init__(self) -> None:
        super().__init__(0, bool)
        self._pool: Pool | None = None
        self.pictures: list[bytes] = []
        install(self)

    def film(self, pool: Pool, act: Callable[[], object]) -> list[bytes]:
        """The pictures of what `act` does to a pool, each different from the one before."""
        self._pool, self.pictures = pool, []
        self.arm()
        act()
        self.step()
        self._pool = None
        return self.pictures

    def step(self) -> None:
        if self._pool is not None:
            segment = store_of(self._pool).segment
            picture = os.pread(segment.fd, segment.constants.geometry.total_size, 0)
            if not self.pictures or picture != self.pictures[-1]:
                self.pictures.append(picture)


class Film:
    """Stands for a segment's words and bytes. Before the `cut`-th read it shows one picture, from then on another; what is stored
    (a reader counts its uses) is not kept."""

    def __init__(self, pictures: list[bytes]) -> None:
        self._words = [memoryview(picture).cast("Q") for picture in pictures]
        self._pictures = pictures
        self.reads = 0
        self.show(0, 0, 0)

    def show(self, first: int, then: int, cut: int) -> None:
        self._first, self._then, self._cut = first, then, cut
        self.reads = 0

    def _number(self) -> int:
        self.reads += 1
        return self._first if self.reads < self._cut else self._then

    def __getitem__(self, place: Any) -> Any:
        return self._words[self._number()][place]

    def __setitem__(self, place: Any, value: Any) -> None:
        pass

    def release(self) -> None:
        pass

    @property
    def data(self) -> _Bytes:
        return _Bytes(self)


class _Bytes:
    def __init__(self, film: Film) -> None:
        self._film = film

    def __getitem__(self, place: slice) -> bytes:
        return self._film._pictures[self._film._number()][place]  # noqa: SLF001 - its other half


def watch(pool: Pool, film: Film) -> None:
    """Have a pool's readers see the film."""
    segment = store_of(pool).segment
    segment.words = film  # type: ignore[assignment]
    segment.data = film.data  # type: ignore[assignment]
