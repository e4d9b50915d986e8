"""What nobody on this host uses any more, found and removed: pools whose last process was killed, turnstiles without a pool, and
holds of killed processes in pools that others use.

Guarantees:
- Nothing is touched that a process is attached to, that is persistent, that is another user's, or that this shmpool cannot read.
- A pool goes under its gate, looked at again there, its turnstiles before its name, as everywhere. So a `gc` that is killed
  leaves what the next one removes, and whoever attaches meanwhile gets the pool as it was, or finds none.
- The turnstiles of a pool that is being created, or is about to be removed by another, are safe: they exist only while their
  pool's name does, and are listed before the names are.
- It waits for nobody to remove: whoever is at a pool's gate is using the pool. To give holds back it attaches as anybody does,
  and waits as they do for the locks of the stripes that the topics are in.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from shmpool import lifetime
from shmpool import segment as segments
from shmpool.errors import PoolError, PoolNotFoundError
from shmpool.layout import GATE_BYTE, PROCESS_BYTES
from shmpool.ledger import holding_rows, read_holds
from shmpool.lock import others_hold, semaphore_files
from shmpool.pool import Pool
from shmpool.segment import Segment


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that `gc` found: `memory_size` bytes of real memory at `path`; `note` says why, and what to do where it is `kept`:
    not removed, and would not be without `dry_run` either."""

    path: str
    kind: Literal["pool", "semaphore", "holds"]
    memory_size: int
    removed: bool
    note: str
    kept: bool = False


def gc(*, dry_run: bool = False) -> list[Leftover]:
    """Remove this user's pools that nobody is attached to (but persistent ones) and semaphores that have no pool any more.

    In pools that are in use, or persistent, what killed processes held is given back. What is named as a pool and cannot be read
    is reported and kept, and so are semaphores that might then be its. With `dry_run` nothing is changed. A pool's entry stands
    for its semaphores too. Safe beside all other operations.
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
                continue
            held = _count_dead_holds(segment)
        finally:
            segment.close()
        if held:
            found.append(_give_back(name, held, dry_run=dry_run))
    orphans = [path for path, pool_id in semaphores if pool_id not in known]
    return found + list(_remove_semaphores(orphans, unreadable, dry_run=dry_run))


def _count_dead_holds(segment: Segment) -> int:
    if not segment.constants.policy.counts_holds or others_hold(segment.fd, GATE_BYTE):
        return 0
    with suppress(PoolError):  # damaged, which `check` tells
        rows = [row for row in holding_rows(segment) if not others_hold(segment.fd, PROCESS_BYTES + row)]
        return sum(int(read_holds(segment, row).sum()) for row in rows)
    return 0


def _give_back(name: str, held: int, *, dry_run: bool) -> Leftover:
    path, note = segments.path_of(name), f"{held} holds of processes that were killed"
    try:
        if not dry_run:
            # To attach is to take a row, most likely a killed process's, whose holds go with that: `reap` does not count them.
            with Pool.attach(name, cache_size=1) as pool:
                pool.reap()
    except PoolError as error:
        return Leftover(path, "holds", 0, removed=False, note=f"{note}: {error}", kept=True)
    return Leftover(path, "holds", 0, removed=not dry_run, note=note)


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
