"""What a process of a storm does where topics go: hold, give back, acknowledge both, and hold the pool to its word.

It acknowledges when it had which topic by which ref, and in the end, while it lives, what it holds.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Final

from shmpool import NotHeldError, Pool, StaleRefError, TopicRef
from tests.stress.dawdle import dawdle
from tests.stress.member import BATCH, NUMBERS, BrokenPromiseError, Member, value_of
from tests.stress.traces import ALSO, ATTACH, CALM, GIVEN, HALT, HELD, INSERT, INTERNED, KEPT, QUIET, SINCE, make_ack

if TYPE_CHECKING:
    from tests.stress.storm import Storm

WANTED: Final = 90  # values that everybody wants
MOST: Final = 60  # that one process holds


class Holder(Member):
    """`holds`: of each number the ref, how often it is held, and since when."""

    def __init__(self, storm: Storm, pool: Pool, rng: random.Random) -> None:
        self.holds: dict[int, tuple[TopicRef, int, int]] = {}
        super().__init__(storm, pool, rng)

    def begin(self) -> None:
        self.take(self.rng.sample(range(WANTED), 16))
        self.storm.announce()

    def attach_afresh(self, kind: str | None = None) -> None:
        """What it held through the attachment that it leaves is gone with that."""
        self._acknowledge_held(list(self.holds))
        self.holds.clear()
        super().attach_afresh(kind)

    def fork(self) -> None:
        before, leader = dict(self.holds), os.getpid()
        super().fork()
        if os.getpid() == leader:
            return
        for ref, *_ in list(before.values())[:2]:
            self._expect_not_held(ref)

    def use(self, pool: Pool) -> None:
        self.holds = {}  # a forked child's, too, are its own
        super().use(pool)

    def _act(self) -> None:
        rng, mode = self.rng, self.storm.traces.mode
        if mode == HALT:
            self._halt()
        dawdle(on=mode == INSERT)
        choice = rng.random()
        if mode == INSERT or choice < 0.06:  # what nobody has: each is inserted, and goes
            numbers = [rng.randrange(1 << 20, NUMBERS) for _ in range(BATCH // 4)]
            self.take(numbers)
            self.give(numbers)
        elif mode not in (CALM, ATTACH):
            time.sleep(rng.uniform(0, 0.002))
        elif choice < 0.35:
            self.take(rng.sample(range(WANTED), rng.randrange(1, 8)) * rng.randrange(1, 3))
        elif choice < 0.6 or len(self.holds) > MOST:
            self.give(rng.sample(sorted(self.holds), min(rng.randrange(1, 10), len(self.holds))))
        elif choice < 0.65:
            self.take_batch(rng.sample(range(WANTED), 12))
        elif choice < 0.8:
            self._look_at_held()
        elif choice < 0.88:
            self._look_at_any()
        elif choice < 0.9:
            self.pool.reap()
        else:
            time.sleep(rng.uniform(0, 0.002))

    # ---- holding

    def take(self, numbers: list[int]) -> None:
        values, acks = [value_of(number) for number in numbers], []
        intern, now, pid = self.pool.intern, time.monotonic_ns, os.getpid()
        self.cell[SINCE] = began = now()
        for number, value in zip(numbers, values, strict=True):  # nothing else in here: a kill is to hit the pool
            ref = intern(value)
            ended = now()
            self._took(number, ref, ended)
            acks.append(make_ack(pid, number, ref, began, ended, INTERNED))
            began = ended
        self._end(acks)

    def take_batch(self, numbers: list[int]) -> None:
        values, pid = [value_of(number) for number in numbers], os.getpid()
        self.cell[SINCE] = began = time.monotonic_ns()
        refs = self.pool.intern_many(values).tolist()
        ended = time.monotonic_ns()
        for number, ref in zip(numbers, refs, strict=True):
            self._took(number, TopicRef(ref), ended)
        self._end([make_ack(pid, number, ref, began, ended, ALSO) for number, ref in zip(numbers, refs, strict=True)])

    def _took(self, number: int, ref: TopicRef, now_ns: int) -> None:
        had, count, since_ns = self.holds.get(number, (ref, 0, now_ns))
        if had != ref:
            raise BrokenPromiseError(f"value {number} is held as {had}, and was interned again as {ref}")
        self.holds[number] = ref, count + 1, since_ns

    def give(self, numbers: list[int]) -> None:
        """Give one hold of each back."""
        release, now, pid, acks = self.pool.release, time.monotonic_ns, os.getpid(), []
        self._acknowledge_held([number for number in numbers if self.holds[number][1] == 1])
        self.cell[SINCE] = began = now()
        for number in numbers:
            ref, count, since_ns = self.holds[number]
            release(ref)
            ended = now()
            acks.append(make_ack(pid, number, ref, began, ended, GIVEN))
            began = ended
            if count > 1:
                self.holds[number] = ref, count - 1, since_ns
            else:
                del self.holds[number]
        self._end(acks)

    def _acknowledge_held(self, numbers: list[int]) -> None:
        """From when to when it was held; before it is given back."""
        now_ns, pid = time.monotonic_ns(), os.getpid()
        held = [(number, *self.holds[number]) for number in numbers]
        self.storm.traces.acknowledge([make_ack(pid, number, ref, since, now_ns, HELD) for number, ref, _, since in held])

    # ---- holding the pool to its word

    def _look_at_held(self) -> None:
        """What is held is found without a lock at any time, by its bytes and by its ref."""
        for number, (ref, count, _) in self.rng.sample(sorted(self.holds.items()), min(6, len(self.holds))):
            found = self.pool.lookup(value_of(number))
            if found != ref:
                raise BrokenPromiseError(f"value {number} is held as {ref}, and found as {found}")
            if self.pool.resolve(ref) != value_of(number):
                raise BrokenPromiseError(f"ref {ref} of value {number}, which is held, resolves to other bytes")
            counts = [holder.count for holder in self.pool.holders(ref) if holder.pid == os.getpid()]
            if counts != [count]:
                raise BrokenPromiseError(f"value {number} is held {count} times, and the pool says {counts}")

    def _look_at_any(self) -> None:
        """What is not held may be there or not, and its ref is of its bytes or stale."""
        for number in self.rng.sample(range(WANTED), 8):
            ref = self.pool.lookup(value_of(number))
            if ref is None:
                if number in self.holds:
                    raise BrokenPromiseError(f"value {number} is held, and not found")
                continue
            try:
                value = self.pool.resolve(ref)
            except StaleRefError:
                if number in self.holds:
                    raise
                continue
            if value != value_of(number):
                raise BrokenPromiseError(f"ref {ref} of value {number} resolves to other bytes")

    def _expect_not_held(self, ref: TopicRef) -> None:
        """Of what its parent holds, or held, a forked child has nothing to give back."""
        if any(ref == own for own, *_ in self.holds.values()):
            return
        try:
            self.pool.release(ref)
        except (NotHeldError, StaleRefError):
            return
        raise BrokenPromiseError(f"a forked child gave {ref} back, which it never held")

    def _halt(self) -> None:
        """Say what is held, and do nothing more."""
        dawdle(on=False)
        self.take(self.rng.sample(range(WANTED), 6))
        pid = os.getpid()
        kept = [make_ack(pid, number, ref, since, count, KEPT) for number, (ref, count, since) in self.holds.items()]
        self._acknowledge_held(list(self.holds))
        self.storm.traces.acknowledge(kept)
        self.cell[QUIET] = 1
        self.is_abandoned()
        os._exit(0)
