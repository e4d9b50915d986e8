"""shmpool as a rival among rivals. A module of its own: the others' processes do not import it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Final

from shmpool import ENGINE, Pool
from tools.rivals.rival import SHM, Operations, Place, Rival


def open_pool(place: Place, *, creating: bool, stripe_count: int = 16) -> Operations:
    if creating:
        pool = Pool.create(place.name, capacity=place.capacity, max_value_size=256, stripe_count=stripe_count)
    else:
        pool = Pool.attach(place.name)
    return Operations(pool.intern, pool.lookup, pool.intern_many, lambda values: pool.lookup_many(values).tolist(), pool.close)


def pool_files(place: Place) -> list[Path]:
    """The segment; its semaphores are a page each, the same however many values there are."""
    return [SHM / f"shmpool.{place.name}"]


def pool_version() -> str:
    return f"shmpool {metadata.version('shmpool')}, {ENGINE} engine"


OURS: Final = Rival("shmpool", open_pool, pool_version, files=pool_files, note="as created by default, of the capacity it needs")
