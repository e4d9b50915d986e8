"""What a process of a storm does until it is killed: intern, acknowledge, hold the pool to its word, fork, attach again."""

from __future__ import annotations

import os
import random
import time
from select import select
from typing import TYPE_CHECKING

from shmpool import Pool, TopicRef, engine
from tests.stress.dawdle import dawdle
from tests.stress.traces import (
    ALSO,
    ATTACH,
    ATTACHED,
    ATTACHES,
    COMPILED,
    DONE,
    FORKS,
    INSERT,
    INTERNED,
    REST,
    SINCE,
    TAKEOVERS,
    WAITS,
    make_ack,
)
from tests.unit.inside import store_of

if TYPE_CHECKING:
    from tests.stress.storm import Storm

BATCH = 48
REMEMBERED = 32
# What a process attaches with is one of these. Most that start are forked from their leader, with the engine that it has.
ENGINES = ("python", "python", "compiled") if engine.ENGINE == "compiled" else ("python",)
NUMBERS = 1 << 32  # of values


def value_of(number: int) -> bytes:
    """Of sizes from 0 on, all different."""
    return number.to_bytes(4, "little") * (number % 7) + b"%d" % number if number else b""


def number_of(value: bytes) -> int | None:
    """The number that `value_of` makes this value of, or None."""
    for start in range(0, 28, 4):
        digits = value[start:]
        if digits.isdigit() and int(digits) < NUMBERS and value_of(int(digits)) == value:
            return int(digits)
    return None if value else 0


class BrokenPromiseError(Exception):
    """The pool has taken back what it said before."""


class Member:
    """One process of a storm, seen from inside."""

    def __init__(self, storm: Storm, pool: Pool, rng: random.Random) -> None:
        self.storm = storm
        self.rng = rng
        self._remembered: dict[int, int] = {}
        self._least = 0
        self.use(pool)

    def use(self, pool: Pool) -> None:
        self.pool = pool
        self.cell = self.storm.traces.cell(os.getpid())
        self.cell[SINCE] = 0
        self.cell[COMPILED] = store_of(pool).stripes.engine is not None
        self._before = self.cell[TAKEOVERS], self.cell[WAITS]  # through earlier attachments

    def attach_afresh(self, kind: str | None = None) -> None:
        """Leave and come back, or the other way round: then this process is attached twice for a while. With a kind of engine,
        or the one that this process uses anyway."""
        before, name = self.pool, store_of(self.pool).name
        self.cell[SINCE] = began = time.monotonic_ns()
        if self.rng.random() < 0.5:
            before.close()
        engine.ENGINE = kind or engine.ENGINE
        pool = Pool.attach(name, cache_size=self.rng.choice((16, 16, 512)))
        before.close()
        self.use(pool)
        self.cell[ATTACHES] += 1
        self._end([make_ack(os.getpid(), 0, 0, began, time.monotonic_ns(), ATTACHED)])

    def begin(self) -> None:
        """Insert under every lock, most likely: whoever waits for a dead process does so here. Then say so."""
        frontier = len(self.pool)
        self.intern(self.rng.sample(range(frontier, frontier + BATCH), 16))
        self.storm.announce()

    def live(self) -> None:
        """Until killed, or until whoever leads the storm has ended."""
        while not self.is_abandoned(0):
            self.act(2 if self.storm.traces.mode == ATTACH else 20)
            if self.storm.traces.mode == ATTACH or self.rng.random() < 0.05:
                self.attach_afresh(self.rng.choice(ENGINES))
            if self.storm.may_fork():
                self.fork()
            self._reap()

    def is_abandoned(self, timeout_s: float | None = None) -> bool:
        """Whether the leader has ended, within that time or, without one, at last."""
        return bool(select([self.storm.led], [], [], timeout_s)[0])

    def fork(self) -> None:
        """Have a child that goes on as a member of its own, and may outlive this process."""
        seed = self.rng.getrandbits(32)
        self.cell[FORKS] += 1
        if os.fork() == 0:
            self.storm.traces.register()
            self.rng = random.Random(seed)
            self.use(self.pool)
            self.begin()

    def _reap(self) -> None:
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self.storm.check_was_killed(*ended)
        except ChildProcessError:
            pass

    def act(self, times: int) -> None:
        for _ in range(times):
            self._act()

    def _act(self) -> None:
        rng = self.rng
        frontier = len(self.pool)
        if frontier < self._least:
            raise BrokenPromiseError(f"the pool held {self._least} topics, and now {frontier}")
        self._least = frontier
        mode = self.storm.traces.mode
        dawdle(on=mode == INSERT)
        choice = {INSERT: 0.0, REST: 1.0}.get(mode, rng.random())
        if choice < 0.1:  # what nobody has: every one of them takes a lock
            self.intern([rng.randrange(1 << 20, NUMBERS) for _ in range(BATCH)])
        elif choice < 0.35:  # a few numbers around how many there are: everybody wants the same ones, and most are new
            self.intern(rng.sample(range(max(frontier - 4, 0), frontier + BATCH), rng.randrange(1, 16)))
        elif choice < 0.45:
            self.intern_batch(rng.sample(range(max(frontier - 4, 0), frontier + BATCH), rng.randrange(2, BATCH)))
        elif choice < 0.55:
            self.intern([rng.randrange(frontier + 1) for _ in range(4)])
        elif choice < 0.65:
            self._look_again()
        else:
            time.sleep(rng.uniform(0, 0.002))

    def intern(self, numbers: list[int]) -> None:
        """Intern values by their numbers one after the other, and acknowledge their refs."""
        values, acks = [value_of(number) for number in numbers], []
        intern, now, pid = self.pool.intern, time.monotonic_ns, os.getpid()
        self.cell[SINCE] = began = now()
        for number, value in zip(numbers, values, strict=True):  # nothing else in here: a kill is to hit the pool
            ref = intern(value)
            ended = now()
            acks.append(make_ack(pid, number, ref, began, ended, INTERNED))
            began = ended
        self._end(acks, (numbers[-1], ref))

    def intern_batch(self, numbers: list[int]) -> None:
        values = [value_of(number) for number in numbers]
        self.cell[SINCE] = began = time.monotonic_ns()
        refs = self.pool.intern_many(values).tolist()
        ended, pid = time.monotonic_ns(), os.getpid()
        acks = [make_ack(pid, number, ref, began, ended, ALSO) for number, ref in zip(numbers, refs, strict=True)]
        acks[0] = make_ack(pid, numbers[0], refs[0], began, ended, INTERNED)
        self._end(acks, (numbers[0], refs[0]))

    def _look_again(self) -> None:
        """What has a ref keeps it, and is found without a lock at any time."""
        for number, ref in self.rng.sample(sorted(self._remembered.items()), min(4, len(self._remembered))):
            found = self.pool.lookup(value_of(number))
            if found != ref:
                raise BrokenPromiseError(f"value {number} had ref {ref}, and now {found}")
            if self.pool.resolve(TopicRef(ref)) != value_of(number):
                raise BrokenPromiseError(f"ref {ref} of value {number} resolves to other bytes")

    def _end(self, acks: list[bytes], *given: tuple[int, int]) -> None:
        """Acknowledge an operation, and remember what it gave."""
        self.storm.traces.acknowledge(acks)
        self.cell[SINCE] = 0
        self.cell[DONE] += 1
        if len(self._remembered) >= REMEMBERED:
            self._remembered.clear()
        self._remembered |= given
        # The pool's own counters miss what a killed process had not published; a cell does not.
        locks = store_of(self.pool).locks
        self.cell[TAKEOVERS] = self._before[0] + sum(lock.takeovers for lock in locks)
        self.cell[WAITS] = self._before[1] + sum(lock.waits for lock in locks)
