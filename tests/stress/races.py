"""Processes that create, attach, open, close, unlink and die on one name at once, and a squatter that wants it too.

While a process is attached it says so, and with which pool, where all can see it: it begins after it has attached and ends
before it starts to leave. So two that say it at one instant are attached at one instant.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from select import select
from typing import Any, Final

import pytest

from shmpool import (
    Pool,
    PoolBusyError,
    PoolCorruptError,
    PoolExistsError,
    PoolNotFoundError,
    gc,
    leftovers,
)
from shmpool import segment as segments
from shmpool.lock import unlink_semaphores
from tests.unit.inside import store_of
from tests.unit.processes import DEADLINE_S, ChildDiedError, ChildFailedError, Forked

ROUNDS_A_LIFE: Final = 20
LATELY: Final = 1024
PAUSES_S: Final = (0.0, 0.0, 0.001, 0.003)  # so that now and then nobody is attached, and the pool goes
OPTIONS: Final[dict[str, Any]] = {"stripe_count": 1, "process_count": 16, "capacity": 100, "max_value_size": 100}


class ViolationError(AssertionError):
    """Something that must never be was seen."""


def collect(name: str) -> None:
    """`gc`, of this pool alone: others' are none of the racers' business."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "own_names", lambda: [name])
        patch.setattr(leftovers, "semaphore_files", list)
        if not any(left.removed for left in gc()):
            raise PoolBusyError("in use, persistent, no pool, or gone meanwhile")


REMOVERS: Final[list[Callable[[str], object]]] = [Pool.unlink, collect]  # what removes a pool that nobody uses, by its name


class Board:
    """Who is attached to which pool, in memory that the racers share; and the pools there were lately."""

    def __init__(self, places: int) -> None:
        self._words = memoryview(mmap.mmap(-1, places * LATELY * 8)).cast("Q")
        self.places = places

    def announce(self, place: int, pool_id: int) -> None:
        """0: to none."""
        self._words[place * LATELY] = pool_id

    def note(self, place: int, pool_id: int, number: int) -> None:
        self._words[place * LATELY + 1 + number % (LATELY - 1)] = pool_id

    def others(self, place: int) -> set[int]:
        return {self._words[other * LATELY] for other in range(self.places) if other != place} - {0}

    def remove_semaphores(self) -> None:
        """What a broken variant has left."""
        for pool_id in set(self._words) - {0}:
            unlink_semaphores(pool_id, 1)


class Racer:
    """One process's part. `tally` counts what happened to it."""

    def __init__(self, name: str, board: Board, place: int, rng: random.Random) -> None:
        self.name, self.board, self.place, self.rng = name, board, place, rng
        self.path = Path(segments.path_of(name))
        self.tally: Counter[str] = Counter()

    def play(self, rounds: int) -> Counter[str]:
        keeper = os.getppid()
        for _ in range(rounds):
            if os.getppid() != keeper:
                break
            self.rng.choices((self._join, self._remove, self._squat), (6, 4, 2))[0]()
            time.sleep(self.rng.choice(PAUSES_S))
        return self.tally

    def _join(self) -> None:
        way, persistent = self.rng.choice(("open", "attach", "attach", "create")), self.rng.random() < 0.2
        try:
            pool: Pool = getattr(Pool, way)(self.name, **({} if way == "attach" else OPTIONS | {"persistent": persistent}))
        except (PoolNotFoundError, PoolExistsError, PoolBusyError, PoolCorruptError) as error:  # the last: the squatter's
            self.tally[f"{way}: {type(error).__name__}"] += 1
            return
        self.tally[way] += 1
        self.board.announce(self.place, pool.constants.pool_id)
        self.board.note(self.place, pool.constants.pool_id, self.tally.total())
        self._live(pool)
        self.board.announce(self.place, 0)
        if self.rng.random() < 0.03:
            os.kill(os.getpid(), signal.SIGKILL)  # attached, and perhaps the last
        pool.close()

    def _live(self, pool: Pool) -> None:
        self._check(pool)
        value = b"%d" % self.rng.randrange(50)
        if pool.resolve(pool.intern(value)) != value:
            raise ViolationError(f"another value than {value!r}")
        if self.rng.random() < 0.2:
            with Pool.attach(self.name) as again:
                self._check(again)
                if again.constants.pool_id != pool.constants.pool_id:
                    raise ViolationError("attached twice, to two pools")
        for _ in range(self.rng.choice((0, 1, 20))):
            os.sched_yield()
        self._check(pool)

    def _check(self, pool: Pool) -> None:
        if not store_of(pool).segment.is_linked():
            raise ViolationError("an attached orphan: the name does not lead to its pool")
        others = self.board.others(self.place)
        if others - {pool.constants.pool_id}:
            raise ViolationError(f"two live pools of one name: {pool.constants.pool_id:016x} and {others}")
        self.tally["in company"] += bool(others)

    def _remove(self) -> None:
        remove = self.rng.choice(REMOVERS)
        try:
            remove(self.name)
        except (PoolNotFoundError, PoolBusyError, PoolCorruptError) as error:
            self.tally[f"{remove.__name__}: {type(error).__name__}"] += 1
        else:
            self.tally[remove.__name__] += 1

    def _squat(self) -> None:
        """Take the name with a file that is no pool; who finds it must leave it."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return
        try:
            os.write(fd, b"not yours")
            for _ in range(self.rng.choice((1, 50))):
                os.sched_yield()
            try:
                named = os.stat(self.path)
            except FileNotFoundError:
                raise ViolationError("somebody removed another's file") from None
            if named.st_ino != os.fstat(fd).st_ino or os.pread(fd, 100, 0) != b"not yours":
                raise ViolationError("somebody changed another's file")
            self.tally["squat"] += 1
            self.path.unlink()
        finally:
            os.close(fd)


def race(
    name: str, *, processes: int, rounds: int, seed: int, progress: Callable[[int], object] = lambda _: None
) -> Counter[str]:
    """`rounds` rounds of each process, in lives of some rounds each. Raises ViolationError."""
    board = Board(processes)
    tally: Counter[str] = Counter()
    ended, alive = os.pipe()  # nobody writes to it: it ends with the last racer
    keepers = [start_keeper(name, board, place, rounds, seed) for place in range(processes)]
    os.close(alive)
    try:
        done = 0
        for _ in range(rounds // ROUNDS_A_LIFE):
            for keeper in keepers:
                tally += keeper.hear()
                done += ROUNDS_A_LIFE
                progress(done)
        for keeper in keepers:
            keeper.result()
    except ChildFailedError as failed:
        end(keepers, ended)
        board.remove_semaphores()
        raise ViolationError(f"seed {seed}: {failed}") from None
    finally:
        end(keepers, ended)
        os.close(ended)
        with suppress(PoolNotFoundError, PoolCorruptError):
            Pool.unlink(name)
    return tally


def start_keeper(name: str, board: Board, place: int, rounds: int, seed: int) -> Forked:
    return Forked(lambda connection: keep(connection, name, board, place, rounds, seed))


def end(keepers: list[Forked], ended: int) -> None:
    """Keepers and, at their next step, the racers they keep, which miss their parents."""
    for keeper in keepers:
        keeper.__exit__(None, None, None)
    select([ended], [], [], DEADLINE_S)


def keep(connection: Connection, name: str, board: Board, place: int, rounds: int, seed: int) -> None:
    """Fork one racer after another; one that kills itself is as good as one that comes to its end."""
    for life in range(rounds // ROUNDS_A_LIFE):
        rng = random.Random(f"racer {seed} {place} {life}")
        with start_racer(Racer(name, board, place, rng)) as racer:
            try:
                outcome = racer.result()
            except ChildDiedError:
                if racer.wait() != -signal.SIGKILL:
                    raise
                outcome = Counter(killed=1)
        if isinstance(outcome, str):
            raise ViolationError(outcome)
        connection.send(outcome)


def start_racer(racer: Racer) -> Forked:
    return Forked(lambda _: as_text(racer))


def as_text(racer: Racer) -> Counter[str] | str:
    try:
        return racer.play(ROUNDS_A_LIFE)
    except Exception:  # noqa: BLE001 - it goes to the keeper
        return traceback.format_exc()
