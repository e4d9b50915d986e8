"""However a process comes to be and ends, it has a row of its own or none, and the refs of everybody else.

Forks and ends within one family; tests/stress/test_strangers.py has the programs that are started otherwise.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

import pytest

from shmpool import Pool, PoolBusyError, PoolClosedError, PoolNotFoundError
from tests.model import assert_sound
from tests.unit.interrupts import interrupted_at
from tests.unit.processes import DEADLINE_S, Forked, in_child, wait_for_exit

VALUES = [b"topic %d" % number for number in range(60)]
WORKERS = 4
SETTLE_S = 5.0


def live_pids(pool: Pool) -> list[int]:
    return sorted(process.pid for process in pool.stats().processes if process.live)


def assert_attached(pool: Pool, pids: list[int]) -> None:
    """These processes are attached, as often as they are named: the kernel may need a moment to end one or to begin another."""
    deadline = time.monotonic() + SETTLE_S
    while live_pids(pool) != sorted(pids) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert live_pids(pool) == sorted(pids)


# ---- parents that end first


def test_daemon_whose_parents_exit_at_once_keeps_the_pool_and_takes_it_along(pool_name: str) -> None:
    def become_daemon(connection: Connection) -> None:
        pool = Pool.create(pool_name)
        refs = {value: int(pool.intern(value)) for value in VALUES}
        for _ in range(2):
            if os.fork():
                os._exit(0)  # at once, without closing
            with suppress(PermissionError):  # the second time it leads the session already
                os.setsid()
        refs[b"the daemon's"] = int(pool.intern(b"the daemon's"))
        connection.send((os.getpid(), refs))
        connection.recv()
        pool.close()
        os._exit(0)

    with Forked(become_daemon) as family:
        daemon, refs = family.hear()
        family.wait()
        with Pool.attach(pool_name) as pool:
            assert_attached(pool, [daemon, os.getpid()])
            assert_sound(pool, refs)
        family.say("end")
        assert wait_for_exit(daemon)

    with pytest.raises(PoolNotFoundError):
        Pool.attach(pool_name)


def test_process_that_ends_without_closing_leaves_its_counts_and_no_live_row(pool_name: str) -> None:
    def end(_: Connection) -> None:
        with Pool.attach(pool_name) as other:
            other.intern_many(VALUES)
            other.flush()
            os._exit(0)

    with Pool.create(pool_name, process_count=3) as pool:  # a child has one for what it inherited, too
        for _ in range(5):
            with Forked(end) as child:
                child.wait()
            assert_attached(pool, [os.getpid()])
            with Pool.attach(pool_name):  # takes the dead one's row
                assert len(live_pids(pool)) == 2

        assert pool.stats().inserts == len(VALUES)
        assert pool.stats().hits + pool.stats().misses == 5 * len(VALUES)


# ---- servers


def test_prefork_server_whose_workers_are_killed_and_forked_again_loses_nothing(pool_name: str, rng: random.Random) -> None:
    def serve(connection: Connection) -> None:
        while (numbers := connection.recv()) is not None:
            connection.send(pool.intern_many([b"%d" % number for number in numbers]).tolist())

    refs: dict[bytes, int] = {}
    with Pool.create(pool_name, process_count=WORKERS + 1, stripe_count=2) as pool:
        workers = [Forked(serve) for _ in range(WORKERS)]
        for _ in range(15):
            for worker in workers:
                numbers = [rng.randrange(400) for _ in range(20)]
                worker.say(numbers)
                for number, ref in zip(numbers, worker.hear(), strict=True):
                    assert refs.setdefault(b"%d" % number, ref) == ref
            assert_attached(pool, [os.getpid(), *(worker.pid for worker in workers)])
            victim = rng.randrange(WORKERS)
            workers[victim].kill()
            workers[victim] = Forked(serve)
        for worker in workers:
            worker.say(None)
            worker.result()

        assert_attached(pool, [os.getpid()])
        assert_sound(pool, refs)


# ---- threads


def test_children_forked_amid_other_threads_operations_are_whole(new_pool_name: Callable[[], str]) -> None:
    """Other threads insert, search, flush, attach, close and reset at the instant of the fork."""

    def use_all() -> tuple[dict[bytes, int], list[int]]:
        refs = {value: int(pool.intern(value)) for value in (b"the child's", *VALUES)}
        with Pool.attach(pool.name) as again:
            assert again.intern_many(VALUES).tolist() == [refs[value] for value in VALUES]
            assert again.check() == []
        other.intern(b"x")
        return refs, live_pids(pool)

    def repeat(act: Callable[[int], object]) -> None:
        number = 0
        while not stop.is_set():
            act(number := number + 1)

    stop = threading.Event()
    with Pool.create(new_pool_name(), stripe_count=2, cache_size=64) as pool, Pool.create(new_pool_name()) as other:
        acts: list[Callable[[int], object]] = [
            lambda number: pool.intern(b"%d" % (number % 3000)),
            lambda number: pool.intern_many([b"%d" % (number % 3000 + more) for more in range(30)]),
            lambda _: (pool.lookup_many(VALUES), pool.stats()),
            lambda _: suppressed(other.reset),
        ]
        threads = [threading.Thread(target=repeat, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        try:
            given = [in_child(use_all) for _ in range(12)]
        finally:
            stop.set()
            for thread in threads:
                thread.join(DEADLINE_S)

        refs = given[0][0]
        assert all(each == refs for each, _ in given)
        assert_attached(pool, [os.getpid()])
        assert_sound(pool, refs, at_most_also=[b"%d" % number for number in range(3100)])


def suppressed(act: Callable[[], object]) -> None:
    with suppress(PoolBusyError):
        act()


def test_child_forked_while_another_thread_attaches_keeps_no_row_of_its_parents_alive(pool_name: str) -> None:
    def attach_and_close() -> None:
        while not stop.is_set():
            Pool.attach(pool_name).close()

    def begin(connection: Connection) -> None:
        connection.send("begun")
        connection.recv()

    stop = threading.Event()
    with Pool.create(pool_name) as pool:
        thread = threading.Thread(target=attach_and_close)
        thread.start()
        children = [Forked(begin) for _ in range(30)]
        stop.set()
        thread.join(DEADLINE_S)
        assert [child.hear() for child in children] == ["begun"] * 30
        own = {os.getpid(), *(child.pid for child in children)}

        pids = live_pids(pool)

        for child in children:
            child.kill()
        # A child may have a row for what it inherited whole, besides the one for `pool`; the parent has one again.
        assert pids.count(os.getpid()) == 1, pids
        assert set(pids) == own


def test_parent_killed_while_it_attaches_has_no_live_row_though_its_children_go_on(pool_name: str) -> None:
    read, write = os.pipe()

    def attach_and_fork(connection: Connection) -> None:
        def attach_and_close() -> None:
            while True:
                Pool.attach(pool_name).close()

        threading.Thread(target=attach_and_close, daemon=True).start()
        children = []
        for _ in range(20):
            children.append(os.fork())
            if children[-1] == 0:
                os.close(write)
                os.read(read, 1)  # until the test has seen what it wants
                os._exit(0)
        connection.send(children)
        connection.recv()

    with Pool.create(pool_name) as pool, Forked(attach_and_fork) as parent:
        children = parent.hear()
        parent.kill()

        pids = live_pids(pool)

        os.close(write)
        assert all(wait_for_exit(pid) for pid in children)
        assert parent.pid not in pids
        assert set(children) <= set(pids)
    os.close(read)


# ---- handlers and finalizers


class Interning:
    """Interns a value when it is collected."""

    def __init__(self, pool: Pool, given: dict[bytes, int], value: bytes) -> None:
        self.pool, self.given, self.value = pool, given, value
        self.cycle = self

    def __del__(self) -> None:
        intern_as_finalizer(self.pool, self.given, self.value)


def intern_as_finalizer(pool: Pool, given: dict[bytes, int], value: bytes) -> None:
    try:
        given[value] = int(pool.intern(value))
        pool.release(pool.intern(value))
    except PoolBusyError:
        given.setdefault(b"", 0)


@pytest.mark.parametrize("kind", ["__del__", "weakref"])
def test_finalizer_that_interns_inside_an_insert_is_served_or_refused_and_harms_nothing(pool_name: str, kind: str) -> None:
    def try_all() -> int:
        gc.disable()
        with Pool.create(pool_name, stripe_count=1) as pool:
            given: dict[bytes, int] = {}
            for point in range(1, 200):
                value = b"finalizer's %d" % point
                garbage = Interning(pool, given, value) if kind == "__del__" else Cycle()
                watch = weakref.ref(garbage, lambda _, value=value: intern_as_finalizer(pool, given, value))  # type: ignore[misc]
                if kind == "__del__":
                    del watch
                del garbage
                if not interrupted_at(point, lambda: gc.collect(0), lambda point=point: pool.intern(b"%d" % point)):  # type: ignore[misc]
                    break
            assert given.pop(b"", None) == 0, "no finalizer came while the lock was held"
            held = {value: int(ref) for ref, value in pool}
            assert given.items() <= held.items()
            assert len(given) > 10
            assert_sound(pool, held)
            return point

    assert in_child(try_all) > 20


class Cycle:
    def __init__(self) -> None:
        self.cycle = self


def test_handler_that_forks_attaches_and_closes_inside_any_operation_harms_nothing(new_pool_name: Callable[[], str]) -> None:
    """Real signals, whose handler does what programs do in handlers, and more."""

    def play() -> int:
        with Pool.create(new_pool_name(), stripe_count=1) as pool, Pool.create(new_pool_name()) as other:
            handled = 0

            def handle(*_: object) -> None:
                nonlocal handled
                handled += 1
                if os.fork() == 0:
                    try:
                        with suppress(PoolClosedError):
                            pool.intern(b"the child's")
                        other.intern(b"the child's")
                    finally:
                        os._exit(0)
                with suppress(PoolBusyError):
                    Pool.attach(pool.name).close()
                other.intern(b"%d" % handled)
                pool.flush()

            signal.signal(signal.SIGALRM, handle)
            refs: dict[bytes, int] = {}
            while handled < 12:
                before = handled
                signal.setitimer(signal.ITIMER_REAL, 0.001)
                while handled == before:
                    value = b"%d" % len(refs)
                    refs[value] = int(pool.intern(value))
            with suppress(ChildProcessError):
                while True:
                    os.waitpid(-1, 0)
            assert_attached(pool, [os.getpid()])
            assert_sound(pool, refs, at_most_also=[b"the child's"])
            assert other.check() == []
            return handled

    assert in_child(play) >= 12


# ---- one process, several attachments


def test_pool_attached_twice_is_two_attachments_of_which_each_ends_alone(new_pool_name: Callable[[], str]) -> None:
    one, two = Pool.create(new_pool_name()), Pool.create(new_pool_name())
    again = Pool.attach(one.name)
    refs = {value: int(one.intern(value)) for value in VALUES}
    assert_attached(one, [os.getpid()] * 2)

    def close_some() -> list[int]:
        again.close()
        assert again.name == one.name
        assert {value: int(one.intern(value)) for value in VALUES} == refs
        two.intern(b"x")
        return live_pids(one)

    assert sorted(in_child(close_some)).count(os.getpid()) == 2
    one.close()
    assert_sound(again, refs)
    assert_attached(two, [os.getpid()])
    again.close()
    with pytest.raises(PoolNotFoundError):
        Pool.attach(one.name)
    assert two.check() == []
    two.close()
