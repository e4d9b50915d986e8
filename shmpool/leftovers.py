"""What nobody on this host uses any more, found and removed: pools whose last process was killed, turnstiles without a pool.

Guarantees:
- Nothing is touched that a process is attached to, that is persistent, that is another user's, or that this shmpool cannot read.
- A pool goes under its gate, looked at again there, its turnstiles before its name, as everywhere. So a `gc` that is killed
  leaves what the next one removes, and whoever attaches meanwhile gets the pool as it was, or finds none.
- The turnstiles of a pool that is being created, or is about to be removed by another, are safe: they exist only while their
  pool's name does, and are listed before the names are.
- It waits for nobody: whoever is at a pool's gate is using the pool.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shmpool import lifetime
from shmpool import segment as segments
from shmpool.errors import PoolError, PoolNotFoundError
from shmpool.lock import semaphore_files


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that `gc` found: `memory_size` bytes of real memory at `path`; `note` says why, and what to do where it is `kept`:
    not removed, and would not be without `dry_run` either."""

    path: str
    kind: Literal["pool", "semaphore"]
    memory_size: int
    removed: bool
    note: str
    kept: bool = False


def gc(*, dry_run: bool = False) -> list[Leftover]:
    """Remove this user's pools that nobody is attached to (but persistent ones) and semaphores that have no pool any more.

    What is named as a pool and cannot be read is reported and kept, and so are semaphores that might then be its. With
    `dry_run` nothing is removed. A pool's entry stands for its semaphores too. Safe beside all other operations.
    """
    semaphores = semaphore_files()
    found: list[Leftover] = []
    known: set[int] = set()
    unreadable = ""
    for name in segments.own_names():
        try:
            segment = segments.attach(name)
        except PoolNotFoundError:
            continue  # it went meanwhile
        except PoolError as error:
            unreadable = segments.path_of(name)
            found.append(Leftover(unreadable, "pool", _memory_size(unreadable), removed=False, note=str(error), kept=True))
            continue
        try:
            known.add(segment.constants.pool_id)
            size = segment.memory_size
            if lifetime.remove_abandoned(segment, dry_run=dry_run):
                note = "nobody is attached: its last process was killed"
                found.append(Leftover(segment.path, "pool", size, removed=not dry_run, note=note))
        finally:
            segment.close()
    orphans = [path for path, pool_id in semaphores if pool_id not in known]
    return found + list(_remove_semaphores(orphans, unreadable, dry_run=dry_run))


def _remove_semaphores(paths: list[str], unreadable: str, *, dry_run: bool) -> Iterator[Leftover]:
    for path in paths:
        size = _memory_size(path)
        try:
            if not unreadable and not dry_run:
                os.unlink(path)
        except FileNotFoundError:
            continue  # with its pool, which went meanwhile
        if unreadable:
            note = f"its pool is gone, or is {unreadable}, which cannot be read. It was left as it is. Remove that file first."
        else:
            note = "its pool is gone"
        yield Leftover(path, "semaphore", size, removed=not (unreadable or dry_run), note=note, kept=bool(unreadable))


def _memory_size(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        return 0
