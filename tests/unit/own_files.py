"""A part of /dev/shm for one test: `gc` cleans up after everybody, and other tests' pools are none of its business."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from typing import Any, Final

import pytest

from shmpool import Pool, leftovers
from shmpool import segment as segments
from shmpool.lock import semaphore_files
from tests.unit.processes import Forked

SHM: Final = "/dev/shm"
TEMPORARY: Final = "sem.??????"  # what glibc's sem_open calls a semaphore until it is whole
SETTLE_S: Final = 1.0  # for other processes on this host that are just making one


@dataclass(frozen=True)
class OwnFiles:
    """Pools whose names begin with `prefix`, and the semaphores of all pools that were made meanwhile: their ids begin alike."""

    prefix: str
    mark: int
    before: frozenset[str]

    def now(self) -> list[str]:
        """Names of the files that are there, temporary ones included that were not there before."""
        patterns = (f"shmpool.{self.prefix}*", f"sem.shmpool-{self.mark:08x}*")
        own = [name for name in os.listdir(SHM) if any(fnmatchcase(name, pattern) for pattern in patterns)]
        return sorted(own + self._new_temporary())

    def remove(self) -> None:
        """Remove them all, whatever they are."""
        for name in self.now():
            with suppress(FileNotFoundError):
                os.unlink(f"{SHM}/{name}")

    def _new_temporary(self) -> list[str]:
        deadline = time.monotonic() + SETTLE_S
        while True:
            found = [name for name in temporary_files() if name not in self.before]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.01)


@contextmanager
def own_files(prefix: str, hash_key: bytes | None = None) -> Iterator[OwnFiles]:
    """`gc`, here and in forked children, sees only the pools whose names begin with `prefix`, and semaphores of pools made here.

    With a hash key, all these pools have it, and put the same values into the same places.
    """
    mark, randbits, own_names = secrets.randbits(32), secrets.randbits, segments.own_names
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "randbits", lambda bits: mark << 32 | randbits(32) if bits == 64 else randbits(bits))
        if hash_key is not None:
            patch.setattr(secrets, "token_bytes", lambda _: hash_key)
        patch.setattr(segments, "own_names", lambda: [name for name in own_names() if name.startswith(prefix)])
        patch.setattr(leftovers, "semaphore_files", lambda: [each for each in semaphore_files() if each[1] >> 32 == mark])
        yield OwnFiles(prefix, mark, frozenset(temporary_files()))


def abandon(name: str, **options: Any) -> int:
    """Make a pool that holds b"x" and whose only process was killed; its id."""

    def create_and_die(connection: Connection) -> None:
        pool = Pool.create(name, **options)
        pool.intern(b"x")
        connection.send(pool.constants.pool_id)
        os.kill(os.getpid(), signal.SIGKILL)

    with Forked(create_and_die) as child:
        pool_id: int = child.hear()
        child.wait()
    return pool_id


def temporary_files() -> list[str]:
    return [name for name in os.listdir(SHM) if fnmatchcase(name, TEMPORARY)]
