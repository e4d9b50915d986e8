"""Attachments to drive by hand: one of this process, or of a child that can be killed. And the clock that they share."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine

from shmpool import Policy, Pool, PoolError
from shmpool.arena import read_value
from tests.lifecycles import Lifecycles
from tests.unit.inside import engine_chosen, store_of
from tests.unit.processes import Forked

SPARES = 4


class Clock:
    """Nanoseconds that stand still until told; the same in forked children."""

    def __init__(self, start: int) -> None:
        self._words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        self._words[0] = start

    def __call__(self) -> int:
        return int(self._words[0])

    def advance(self, ns: int) -> None:
        self._words[0] += ns


Result = tuple[Any, type[Exception] | None]  # what a call gave, or its error


class Here:
    """A pool of this process."""

    def __init__(self, attach: Callable[[], Pool]) -> None:
        self.pool = attach()
        self.pid = os.getpid()
        self.row = store_of(self.pool).attachment.row

    def do(self, method: str, *arguments: object) -> Result:
        return call(self.pool, method, arguments)

    def close(self) -> None:
        self.pool.close()


class Spare:
    """A child forked while no pool is attached, so that it has nothing of its parent's; `attach` makes it an attachment."""

    def __init__(self, clock: Clock) -> None:
        self.child = Forked(partial(_serve, clock=clock))
        self.pid = self.child.pid
        self.row = -1

    def attach(self, name: str, cache_size: int, engine: str) -> None:
        self.child.say((name, cache_size, engine))
        self.row = self.child.hear()

    def do(self, method: str, *arguments: object) -> Result:
        self.child.say((method, arguments))
        answer: Result = self.child.hear()
        return answer

    def close(self) -> None:
        self.child.say(None)
        self.child.result()

    def kill(self) -> None:
        self.child.kill()

    def end(self) -> None:
        """Whatever became of it."""
        self.child.__exit__(None, None, None)


def _serve(connection: Connection, clock: Clock) -> None:
    name, cache_size, engine = connection.recv()
    with attach_with(engine, name, cache_size, clock) as pool:
        connection.send(store_of(pool).attachment.row)
        while message := connection.recv():
            method, arguments = message
            connection.send(call(pool, method, arguments))


def attach_with(engine: str, name: str, cache_size: int, clock: Clock) -> Pool:
    with engine_chosen(engine):
        return Pool.attach(name, cache_size=cache_size, clock=clock)


def call(pool: Pool, method: str, arguments: tuple[Any, ...]) -> Result:
    """What a pool's method gave, or its error; "hold" holds for the length of an empty block."""
    try:
        if method == "hold":
            with pool.hold(*arguments) as ref:
                return ref, None
        return getattr(pool, method)(*arguments), None
    except (PoolError, ValueError) as error:
        return None, type(error)


class Attachments(RuleBasedStateMachine):
    """Who is attached to a pool, by numbers, and what they do, with the model beside it."""

    model: Lifecycles
    tick = 0  # between any two operations

    def __init__(self, new_name: Callable[[], str], policy: Policy) -> None:
        super().__init__()
        self.name, self.policy = new_name(), policy
        self.clock = Clock(1000)
        self.spares = [Spare(self.clock) for _ in range(SPARES)]
        self.unused = list(self.spares)
        self.attached: dict[int, Here | Spare] = {}
        self.pids: dict[int, int] = {}

    def actor(self, number: int) -> int:
        return list(self.attached)[number % len(self.attached)]

    def of_here(self) -> dict[int, Pool]:
        return {who: each.pool for who, each in self.attached.items() if isinstance(each, Here)}

    def here(self) -> tuple[int, Pool]:
        return next(iter(self.of_here().items()))

    def do(self, who: int, method: str, *arguments: object) -> tuple[Any, type[Exception] | None]:
        result = self.attached[who].do(method, *arguments)
        self.settle(who)
        return result

    def settle(self, who: int) -> None:
        stripes = store_of(self.here()[1]).stripes
        present = {int(stripes.ref_of(record)): read_value(stripes.segment, record) for record in stripes.records()}
        self.model.settle(who, present)
        self.clock.advance(self.tick)

    def attach_here(self, attach: Callable[[], Pool]) -> None:
        self.came(Here(attach))

    def came(self, attached: Here | Spare) -> None:
        who = len(self.pids)
        self.attached[who] = attached
        self.pids[who] = attached.pid
        self.model.attach(who, attached.row)
        self.settle(who)

    def a_ref(self, place: int, who: int) -> int:
        """Of what it holds, of what is there, or of those ever given, the latest most often."""
        there = self.model.topics.values()
        sorts = ([topic.ref for topic in there if topic.holds[who]], [topic.ref for topic in there], list(self.model.refs))
        refs = sorts[place % 3] or sorts[2] or [8]
        return refs[-1 - place // 3 % min(len(refs), 1 + place // 20)]

    def process(self, who: int) -> tuple[int, bool]:
        return self.pids[who], who in self.attached

    def teardown(self) -> None:
        try:
            while self.attached:
                self.attached.popitem()[1].close()
        finally:
            for spare in self.spares:
                spare.end()
