"""Claims about one attachment under threads, interrupts and resets: counts stay exact, refs true, and closing is orderly."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

import pytest

from shmpool import Pool, PoolBusyError, PoolClosedError, StaleRefError, TopicRef
from shmpool.hashing import make_hasher
from tests.model import assert_sound
from tests.unit.inside import store_of
from tests.unit.interrupts import interrupted_at
from tests.unit.processes import DEADLINE_S, Forked, in_child

Names = Callable[[], str]


@pytest.fixture
def eager_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_thread(act: Callable[[], object]) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


# ---- counts


@pytest.mark.usefixtures("eager_switches")
def test_batches_of_threads_are_counted_exactly(pool_name: str) -> None:
    values = [b"%d" % number for number in range(50)]
    with Pool.create(pool_name, cache_size=0) as pool:
        pool.intern_many(values)

        def look_all_up() -> None:
            for _ in range(100):
                pool.lookup_many(values)

        threads = [threading.Thread(target=look_all_up) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)

        assert pool.stats().hits == 4 * 100 * 50
        assert {topic.uses for topic in pool.top(50)} == {4 * 100 + 1}


def test_uses_go_to_the_right_topic_after_an_interrupt_at_any_point_of_an_insert(new_pool_name: Names) -> None:
    def strike() -> None:
        raise KeyboardInterrupt

    def try_all() -> int:
        for point in count(1):
            with Pool.create(new_pool_name(), stripe_count=1) as pool:
                try:
                    struck = interrupted_at(point, strike, partial(pool.intern, b"interrupted"))
                except KeyboardInterrupt:
                    struck = True
                for _ in range(10):
                    pool.intern(b"used")
                uses = {topic.value: topic.uses for topic in pool.top(2)}
                assert uses[b"used"] == 10, f"interrupted at point {point}"
                assert uses.get(b"interrupted", 0) <= 1, f"interrupted at point {point}"
                if not struck:
                    return point
        raise AssertionError

    assert in_child(try_all) > 15


# ---- handlers


def test_handler_that_interns_at_any_point_gets_the_ref_or_is_refused_and_harms_nothing(pool_name: str) -> None:
    def try_all() -> int:
        with Pool.create(pool_name, stripe_count=1) as pool:
            refs: dict[bytes, int] = {}
            refused = 0

            def handle() -> None:
                nonlocal refused
                value = b"handler's %d" % len(refs)
                try:
                    refs[value] = int(pool.intern(value))
                except PoolBusyError:
                    refused += 1

            for point in count(1):
                value = b"%d" % point
                struck = interrupted_at(point, handle, partial(pool.intern, value))
                refs[value] = int(pool.intern(value))
                if not struck:
                    assert refused > 0
                    held = {value: int(ref) for ref, value in pool}
                    assert refs.items() <= held.items()
                    assert_sound(pool, held)
                    return point
        raise AssertionError

    assert in_child(try_all) > 15


def test_handler_inside_a_flush_may_use_the_pool_and_not_empty_it(pool_name: str) -> None:
    """The flush is reading what a full cache, a reset or a close would throw away."""

    def try_all() -> int:
        with Pool.create(pool_name, stripe_count=1, cache_size=2) as pool:
            used: Counter[bytes] = Counter()
            refused = 0

            def handle() -> None:
                nonlocal refused
                for number in range(4):
                    pool.intern(b"handler's %d" % number)
                    used[b"handler's %d" % number] += 1
                if store_of(pool)._is_flushing:  # noqa: SLF001
                    for act in (pool.reset, pool.close):
                        with pytest.raises(PoolBusyError):
                            act()
                        refused += 1

            for point in count(1):
                pool.intern(b"x")
                used[b"x"] += 1
                if not interrupted_at(point, handle, pool.flush):
                    break
            assert refused > 20
            assert {topic.value: topic.uses for topic in pool.top(9)} == used
            return point

    assert in_child(try_all) > 10


def test_handler_at_any_point_of_a_batch_neither_loses_an_insert_from_the_count_nor_breaks_a_full_cache(pool_name: str) -> None:
    def try_all() -> int:
        with Pool.create(pool_name, stripe_count=16, cache_size=2) as pool:

            def handle() -> None:
                with suppress(PoolBusyError):
                    pool.intern(b"handler's %d" % point)
                    pool.lookup(b"0 of %d" % point)

            for point in count(1):
                values = [b"%d of %d" % (number, point) for number in range(3)]
                pool.intern(values[0])
                struck = interrupted_at(point, handle, partial(pool.intern_many, values))
                assert store_of(pool).stripes.inserts == len(pool)
                if not struck:
                    assert pool.stats().total.inserts == len(pool)
                    assert_sound(pool, {value: int(ref) for ref, value in pool})
                    return point
        raise AssertionError

    assert in_child(try_all) > 100


def test_closing_from_inside_an_operation_is_refused_and_the_operation_goes_on(pool_name: str) -> None:
    with Pool.create(pool_name, stripe_count=1) as pool:

        def inside() -> int:
            with pytest.raises(PoolBusyError):
                pool.close()
            return 7

        assert store_of(pool).locks[0].run(inside) == 7
        assert pool.intern(b"x") == pool.lookup(b"x")


# ---- resets by other threads


def test_reset_by_another_thread_between_search_and_insert_makes_no_second_record(
    pool_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The free slot that the search found is behind an occupied one; after the reset it would be behind a free one."""
    with Pool.create(pool_name, stripe_count=1) as pool:
        store = store_of(pool)
        first, second = two_of_one_slot(pool)
        pool.intern(first)
        instant = "_find_or_insert" if store.stripes.engine else "_insert"
        insert = getattr(store, instant)

        def reset_first(*arguments: Any) -> Any:
            monkeypatch.undo()
            in_thread(pool.reset)
            return insert(*arguments)

        monkeypatch.setattr(store, instant, reset_first)
        ref = pool.intern(second)

        assert_sound(pool, {second: ref})


def test_reset_and_insert_by_another_thread_after_the_search_give_both_the_same_ref(
    pool_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pool.create(pool_name, stripe_count=1) as pool:
        store, theirs = store_of(pool), []
        first, second = two_of_one_slot(pool)
        pool.intern(first)
        searcher, name = (store, "_find") if store.stripes.engine else (store.stripes, "find")
        find = getattr(searcher, name)

        def find_and_reset(*arguments: Any) -> Any:
            monkeypatch.undo()
            found = find(*arguments)
            in_thread(pool.reset)
            in_thread(lambda: theirs.append(pool.intern(second)))
            return found

        monkeypatch.setattr(searcher, name, find_and_reset)
        mine = pool.intern(second)

        assert theirs == [mine]
        assert_sound(pool, {second: mine})


def two_of_one_slot(pool: Pool) -> tuple[bytes, bytes]:
    """Two values whose search starts at the same slot of the smallest table."""
    hash_value = make_hasher(pool.constants.hash_key)
    homes: dict[int, bytes] = {}
    for number in count():
        value = b"%d" % number
        home = hash_value(value) & 511
        if home in homes:
            return homes[home], value
        homes[home] = value
    raise AssertionError


# ---- closing under threads


def test_closing_while_threads_insert_tells_them_that_it_is_closed(new_pool_name: Names) -> None:
    def try_it() -> list[str]:
        errors: list[str] = []
        for _ in range(15):
            pool = Pool.create(new_pool_name(), stripe_count=1)
            going = threading.Semaphore(0)

            def insert(prefix: int, pool: Pool = pool, going: threading.Semaphore = going) -> None:
                try:
                    for number in count():
                        pool.intern(b"%d-%d" % (prefix, number))
                        if number == 5:
                            going.release()
                except PoolClosedError:
                    pass
                except BaseException as error:  # noqa: BLE001 - whatever it is, it is the failure
                    errors.append(repr(error))

            threads = [threading.Thread(target=insert, args=(prefix,)) for prefix in range(3)]
            for thread in threads:
                thread.start()
            for _ in threads:
                going.acquire()
            pool.close()
            for thread in threads:
                thread.join(DEADLINE_S)
        return errors

    assert in_child(try_it) == []


def test_closing_while_a_thread_waits_at_a_turnstile_lets_it_end_first(pool_name: str) -> None:
    """Another process has the stripe's lock; closing must not take the semaphore away from under the wait."""

    def hold(connection: Connection) -> None:
        pool = Pool.attach(pool_name)

        def inside() -> None:
            connection.send("inside")
            connection.recv()

        store_of(pool).locks[0].run(inside)

    def wait_and_close(connection: Connection) -> list[object]:
        pool, answers = Pool.attach(pool_name), list[object]()
        lock = store_of(pool).locks[0]

        def insert() -> None:
            try:
                answers.append(int(pool.intern(b"waited for")))
            except PoolClosedError:
                answers.append("closed")

        inserter, closer = threading.Thread(target=insert), threading.Thread(target=pool.close)
        inserter.start()
        while not lock.waits:
            pass
        closer.start()
        connection.send("both wait")
        inserter.join(DEADLINE_S)
        closer.join(DEADLINE_S)
        return answers

    with Pool.create(pool_name, stripe_count=1) as pool, Forked(hold) as holder:
        assert holder.hear() == "inside"
        with Forked(wait_and_close) as other:
            assert other.hear() == "both wait"
            holder.say("go")

            assert other.result() in ([pool.lookup(b"waited for")], ["closed"])
        assert pool.check() == []


# ---- refs at the edges


def test_ref_at_the_very_end_of_a_full_arena_is_stale(pool_name: str) -> None:
    with Pool.create(pool_name, stripe_count=1, max_value_size=1000, arena_size=1 << 14) as pool:
        for number in range(15):
            pool.intern(bytes([number]) * 1000)
        end = store_of(pool).stripes.origin + pool.constants.geometry.arena_size

        for distance in (0, 8, 16, 24):
            with pytest.raises(StaleRefError):
                pool.resolve(TopicRef(end - distance))


def test_stale_ref_commits_no_memory(pool_name: str) -> None:
    with Pool.create(pool_name, stripe_count=1) as pool:
        pool.intern(b"x")
        before = pool.stats()

        for beyond in (-8, 0, 8, 1 << 20):
            with pytest.raises(StaleRefError):
                pool.resolve(TopicRef(store_of(pool).stripes.origin + before.arena_committed_size + beyond))

        assert pool.stats().memory_size == before.memory_size
