"""What tests reach of a pool below its surface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shmpool import ENGINE, Pool, engine
from shmpool.store import Store

ENGINES = ("compiled", "python") if ENGINE == "compiled" else ("python",)


def store_of(pool: Pool) -> Store:
    return pool._store  # noqa: SLF001 - for all tests, here alone


@contextmanager
def engine_chosen(kind: str) -> Iterator[None]:
    """Pools attached here meanwhile are searched with that engine, for as long as they live."""
    before = engine.ENGINE
    engine.ENGINE = kind
    try:
        yield
    finally:
        engine.ENGINE = before
