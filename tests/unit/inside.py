"""What tests reach of a pool below its surface."""

from __future__ import annotations

from shmpool import Pool
from shmpool.store import Store


def store_of(pool: Pool) -> Store:
    return pool._store  # noqa: SLF001 - for all tests, here alone
