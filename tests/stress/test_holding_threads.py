"""Threads, signal handlers and finalizers of one process hold and give back: counts stay exact, and nobody waits for ever.

Here at each point where CPython lets another in, one by one, and in crowds that switch as often as they can.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shmpool import Policy, Pool
from tests.stress.crowd import (
    assert_held,
    assert_nothing_left,
    each_point,
    hold,
    kill_with_holds,
    try_until_closed,
    with_thread_at,
)
from tests.unit.inside import engine_chosen, store_of
from tests.unit.processes import in_child

Names = Callable[[], str]
DIRTY = [b"of the killed %d" % number for number in range(6)]


def in_other_stripe(pool: Pool, value: bytes, count: int = 1) -> list[bytes]:
    """Values that are in another stripe than this one: to hold them waits for nobody who holds this one's lock."""
    store = store_of(pool)
    stripe_of = store.constants.geometry.stripe_of
    hash_ = store._hash  # noqa: SLF001
    found = (b"other %d" % number for number in range(10_000))
    others = [other for other in found if stripe_of(hash_(other)) != stripe_of(hash_(value))]
    return others[:count]


# ---- another thread at each point


def test_a_thread_that_holds_while_another_forgets_what_it_remembers_never_holds_what_went(new_pool_name: Names) -> None:
    """With room for one entry every intern of another topic makes room, in the midst of which the other thread comes."""

    def try_point(point: int) -> bool:
        with Pool.create(new_pool_name(), policy=Policy.refcount(), stripe_count=2, cache_size=1) as pool:
            [other] = in_other_stripe(pool, b"new")
            pool.intern(b"before")
            was_met = with_thread_at(point, lambda: pool.intern(b"new"), lambda: pool.intern(other))
            if was_met:
                pool.release(pool.lookup(other))  # type: ignore[arg-type]
                assert pool.lookup(other) is None
                assert pool.resolve(pool.intern(other)) == other
                assert_held(pool, {b"before": 1, b"new": 1, other: 1})
            return was_met

    with engine_chosen("python"):
        assert in_child(lambda: each_point(try_point)) > 10


@pytest.mark.parametrize("is_dirty", [False, True], ids=["a-clean-row", "a-killed-processs-row"])
def test_a_forked_childs_first_holds_by_two_threads_are_not_given_back_as_a_killed_processs(
    new_pool_name: Names, is_dirty: bool
) -> None:
    def first_holds(pool: Pool, point: int) -> bool:
        was_met = with_thread_at(point, lambda: hold(pool, b"one", 2), lambda: hold(pool, b"two", 2))
        if was_met:
            assert_held(pool, {b"one": 2, b"two": 2})
        return was_met

    def try_point(point: int) -> bool:
        with Pool.create(new_pool_name(), policy=Policy.refcount(), stripe_count=2, process_count=2) as pool:
            if is_dirty:
                kill_with_holds(pool, DIRTY)
            was_met: bool = in_child(lambda: first_holds(pool, point))
            pool.reap()
            assert_nothing_left(pool)
            return was_met

    step = 16 if is_dirty else 4
    assert each_point(lambda number: try_point(1 + step * (number - 1))) > 10


def test_a_ledger_that_two_threads_extend_at_once_covers_the_holds_of_both(new_pool_name: Names) -> None:
    with Pool.create(new_pool_name(), policy=Policy.refcount(), stripe_count=2, capacity=4096) as pool:
        values = [b"%d" % number for number in range(2500)]
        refs = pool.intern_many(values)
        geometry = store_of(pool).constants.geometry
        far = values[-1]
        near = next(value for value in values if geometry.stripe_of(store_of(pool)._hash(value)) != geometry.stripe_of(  # noqa: SLF001
            store_of(pool)._hash(far)))  # noqa: SLF001

        def try_point(point: int) -> bool:
            with Pool.attach(pool.name) as fresh:
                was_met = with_thread_at(point, lambda: fresh.intern(near), lambda: fresh.intern(far))
                if was_met:
                    held_by = {value: len(pool.holders(refs[values.index(value)])) for value in (near, far)}
                    assert held_by == {near: 2, far: 2}
                return was_met

        assert each_point(try_point) > 10


def test_a_thread_that_holds_while_another_closes_leaves_no_hold_behind(new_pool_name: Names) -> None:
    with Pool.create(new_pool_name(), policy=Policy.refcount(), stripe_count=2) as pool:

        def try_point(point: int) -> bool:
            closing = Pool.attach(pool.name)
            closing.intern(b"held before")
            was_met = with_thread_at(point, lambda: try_until_closed(lambda: closing.intern(b"late")), closing.close)
            closing.close()
            if was_met:
                assert_nothing_left(pool)
            return was_met

        assert each_point(try_point) > 10
