"""Pools to be looked at, at rest or with all their locks held, or damaged on purpose; and all that a look could leave behind."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from shmpool import Pool
from shmpool import segment as segments
from shmpool.layout import GATE_BYTE, GROW_BYTE, HEADER, PROCESS_BYTES, STRIPE_BYTES
from shmpool.lock import others_hold
from shmpool.view import open_view
from tests.unit.inside import store_of

VALUES = [b"/topic/%d" % number for number in range(300)]
SMALL: dict[str, Any] = {"capacity": 1000, "stripe_count": 4, "process_count": 8, "max_value_size": 100}


@contextmanager
def sample_pool(name: str) -> Iterator[Pool]:
    """A persistent pool of 300 topics, attached."""
    with Pool.create(name, persistent=True, **SMALL) as made:
        made.intern_many(VALUES)
        made.intern(VALUES[7])
        made.flush()
        yield made


@contextmanager
def at_rest(pool: Pool) -> Iterator[str]:
    """The name of a pool that is closed here, with nobody attached; removed afterwards whatever became of it."""
    pool.close()
    yield pool.name
    for semaphore in Path("/dev/shm").glob(f"sem.shmpool-{pool.constants.pool_id:016x}-*"):
        semaphore.unlink(missing_ok=True)
    Path(segments.path_of(pool.name)).unlink(missing_ok=True)


def footprint(name: str) -> list[object]:
    """All that a look could leave behind: bytes, times, memory, its extents, locks, semaphores' bytes."""
    path = Path(segments.path_of(name))
    state = path.stat()
    with path.open("rb") as file:
        own = Path("/dev/shm").glob(f"sem.shmpool-{pool_id_of(name):016x}-*")
        semaphores = sorted((each.name, each.read_bytes()) for each in own)
        times = (state.st_atime_ns, state.st_mtime_ns, state.st_ctime_ns)
        return [
            hashlib.sha256(os.pread(file.fileno(), state.st_size, 0)).hexdigest(),
            state.st_blocks,
            times[1:],
            extents(file.fileno(), state.st_size),
            locks_on(name),
            semaphores,
        ]


def pool_id_of(name: str) -> int:
    with open_view(name) as (header, _):
        return header.constants.pool_id if header.constants else 0


def extents(fd: int, size: int) -> list[tuple[int, int]]:
    found, end = [], 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, end))
    return found


def locks_on(name: str) -> list[int]:
    """The bytes of a pool's file that somebody has locked. (/proc/locks misses some while others come and go.)"""
    with open(segments.path_of(name), "rb") as file:
        stripes = range(STRIPE_BYTES, STRIPE_BYTES + SMALL["stripe_count"])
        rows = range(PROCESS_BYTES, PROCESS_BYTES + SMALL["process_count"])
        return [byte for byte in (GATE_BYTE, GROW_BYTE, *stripes, *rows) if others_hold(file.fileno(), byte)]


def damage(name: str, offset: int, data: bytes) -> None:
    with open(segments.path_of(name), "r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(name: str, offset: int) -> None:
    with open(segments.path_of(name), "rb") as file:
        byte = os.pread(file.fileno(), 1, offset)[0]
    damage(name, offset, bytes((byte ^ 0x10,)))


def field(name: str) -> int:
    assert HEADER.fields is not None
    return int(HEADER.fields[name][1])


def hold_every_lock(name: str) -> Callable[[Connection], None]:
    def body(connection: Connection) -> None:
        pool = Pool.attach(name)
        store = store_of(pool)

        def inside(place: int) -> None:
            if place < len(locks):
                locks[place].run(inside, place + 1)
                return
            connection.send("inside")
            signal.pause()

        locks = store.attachment.locks_in_order()
        inside(0)

    return body
