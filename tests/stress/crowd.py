"""Processes and threads that are to meet: memory that they share, barriers without sleeps, and a thread that comes in at every
point of a call where CPython would let one in.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from shmpool import Pool, PoolClosedError, PoolError, TopicRef
from tests.unit.interrupts import interrupted_at
from tests.unit.processes import DEADLINE_S, Forked

_MOST_POINTS: Final = 2000
_BLOCKED_S: Final = 0.02  # a thread that has not come back after so long waits for who called it in


class SharedWords:
    """64-bit words that forked processes share."""

    def __init__(self, count: int) -> None:
        self.words = memoryview(mmap.mmap(-1, 8 * count)).cast("Q")


class Barrier:
    """Where `parties` processes wait for each other, spinning: they leave it within some microseconds of each other."""

    def __init__(self, parties: int) -> None:
        self._arrived = SharedWords(parties).words

    def wait(self, party: int) -> None:
        arrived, leader = self._arrived, os.getppid()
        arrived[party] = turn = arrived[party] + 1
        while min(arrived) < turn:
            if os.getppid() != leader:
                os._exit(1)  # the test has ended without us
            os.sched_yield()


def crowd(count: int, body: Callable[[int], Any]) -> list[Any]:
    """What `body(place)` returns in each of `count` forked processes. Raises the first one's exception, as text."""
    members = [Forked(lambda _, place=place: body(place)) for place in range(count)]  # type: ignore[misc]
    try:
        return [member.result() for member in members]
    finally:
        for member in members:
            member.__exit__(None, None, None)


def threads(count: int, body: Callable[[int], Any]) -> list[Any]:
    """The same in threads of this process, which switch as often as they can."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(place: int) -> None:
        try:
            results[place] = body(place)
        except BaseException as error:  # noqa: BLE001 - it goes to the test
            errors.append(error)

    with switching_often():
        running = [threading.Thread(target=run, args=(place,)) for place in range(count)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(DEADLINE_S)
    assert not any(thread.is_alive() for thread in running), "a thread did not come to its end"
    if errors:
        raise errors[0]
    return results


@contextmanager
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def with_thread_at(point: int, call: Callable[[], object], other: Callable[[], object]) -> bool:
    """Run `call`, and at its point-th check point `other` in another thread, as far as it comes without waiting for this one;
    False if there are fewer points. Both have ended then. What either raises comes out here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            other()
        except BaseException as error:  # noqa: BLE001 - it goes to the test
            errors.append(error)

    thread = threading.Thread(target=run)

    def come_in() -> None:
        thread.start()
        thread.join(_BLOCKED_S)

    was_met = interrupted_at(point, come_in, call)
    if was_met:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), f"the thread that came in at check point {point} waits for ever"
    if errors:
        raise errors[0]
    return was_met


def each_point(try_point: Callable[[int], bool]) -> int:
    """Try points from 1 on until `try_point` says that there are no more; how many there were."""
    for point in range(1, _MOST_POINTS):
        if not try_point(point):
            return point - 1
    raise AssertionError(f"more than {_MOST_POINTS} points")


def hold(pool: Pool, value: bytes, times: int) -> TopicRef:
    for _ in range(times):
        ref = pool.intern(value)
    return ref


def kill_with_holds(pool: Pool, values: list[bytes], times: int = 1) -> None:
    """Have a child hold values and be killed."""

    def body(connection: Any) -> None:
        for value in values:
            hold(pool, value, times)
        connection.send("held")
        connection.recv()

    with Forked(body) as victim:
        assert victim.hear() == "held"
        victim.kill()


def own_holds(pool: Pool, ref: TopicRef) -> int:
    """Holds of a topic by this process."""
    return sum(holder.count for holder in pool.holders(ref) if holder.pid == os.getpid())


def assert_held(pool: Pool, held: dict[bytes, int]) -> None:
    """This process holds these topics as often as it says, and none else; with their refs and bytes all is right."""
    assert pool.check() == []
    for value, count in held.items():
        ref = pool.lookup(value)
        assert ref is not None, f"{value!r} is held and not there"
        assert pool.resolve(ref) == value
        assert own_holds(pool, ref) == count, (value, pool.holders(ref))
    own = next(process for process in pool.stats().processes if process.pid == os.getpid())
    assert own.holds == sum(held.values())


def assert_nothing_left(pool: Pool) -> None:
    """Nobody holds anything, so that under refcount nothing is there."""
    assert pool.check() == []
    assert pool.stats().holds == 0
    assert {value for _, value in pool} == set()
    assert len(pool) == 0


def try_until_closed(act: Callable[[], object]) -> None:
    with suppress(PoolClosedError):
        act()


def raises(act: Callable[[], object]) -> type[PoolError] | None:
    """The kind of PoolError that it raised."""
    try:
        act()
    except PoolError as error:
        return type(error)
    return None
