"""Threads, signal handlers and finalizers of one process hold and give back: counts stay exact, and nobody waits for ever.

Here at each point where CPython lets another in, one by one, and in crowds that switch as often as they can.
"""

from __future__ import annotations

import dis
import gc
import sys
import weakref
from collections.abc import Callable
from operator import methodcaller

import pytest

from shmpool import NotHeldError, Policy, Pool, StaleRefError, TopicRef
from shmpool.held import Held
from shmpool.holding import HoldingStore
from tests.stress.crowd import (
    Barrier,
    assert_held,
    assert_nothing_left,
    crowd,
    each_point,
    hold,
    kill_with_holds,
    raises,
    threads,
    try_until_closed,
    with_thread_at,
)
from tests.unit.inside import ENGINES, engine_chosen, store_of
from tests.unit.interrupts import interrupted_at
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


def test_a_thread_that_holds_while_another_resets_leaves_no_hold_of_what_no_topic_has(new_pool_name: Names) -> None:
    def try_point(point: int) -> bool:
        with Pool.create(new_pool_name(), policy=Policy.refcount(), stripe_count=2) as pool:
            store = store_of(pool)
            assert isinstance(store, HoldingStore)
            empty, held = store.empty_cache, store.held

            def empty_and_hold() -> None:  # as a third thread's intern does that comes before the locks are taken
                empty()
                pool.intern(b"known")

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(store, "empty_cache", empty_and_hold)
                was_met = with_thread_at(point, pool.reset, lambda: held.by_value and pool.intern(b"known"))

            assert_nothing_left(pool)
            return was_met

    with engine_chosen(ENGINES[0]):
        assert each_point(lambda number: try_point(3 * number)) > 10


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


# ---- crowds of threads


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("policy", [Policy.refcount(), Policy.lru(max_unheld=2)], ids=lambda policy: policy.name)
def test_holds_that_several_threads_take_and_give_back_of_one_topic_are_counted_exactly(
    pool_name: str, policy: Policy, engine: str
) -> None:
    """Hot and cold: now and then all of one thread's are given back, and with few entries remembered they are forgotten too."""
    rounds = 1500

    def body(place: int) -> int:
        mine = 0
        for number in range(rounds):
            value = values[number % 2]
            ref = pool.intern(value)
            assert pool.resolve(ref) == value
            if number % 5:
                pool.release(ref)
            else:
                mine += 1
        return mine

    values = [b"/one", b"/two"]
    with engine_chosen(engine), Pool.create(pool_name, policy=policy, stripe_count=2, cache_size=1) as pool:
        taken = threads(4, body)

        assert sum(taken) == 4 * rounds // 5
        assert_held(pool, {values[0]: sum(taken) // 2, values[1]: sum(taken) // 2})
        if policy.keeps_unheld:  # else what was used before the last hold of a moment went is not the topic's that came then
            assert [topic.uses for topic in pool.top(2)] == [2 * rounds + 1] * 2  # with the looks above


@pytest.mark.parametrize("engine", ENGINES)
def test_first_and_last_holds_of_several_threads_leave_nothing(pool_name: str, engine: str) -> None:
    def body(place: int) -> None:
        for number in range(400):
            ref = pool.intern(b"/one")
            assert pool.resolve(ref) == b"/one"
            pool.release(ref)
            pool.release(pool.intern(b"%d" % (number % 3)))

    with engine_chosen(engine), Pool.create(pool_name, policy=Policy.refcount(), stripe_count=2) as pool:
        threads(4, body)

        assert_nothing_left(pool)


# ---- what the counts rest on


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="told for CPython 3.11 to 3.13")
@pytest.mark.parametrize("method", [Held.take, Held.give, Held.use], ids=lambda method: method.__name__)
def test_no_thread_or_handler_comes_between_the_look_at_an_entry_and_the_store_of_its_count(
    method: Callable[..., object],
) -> None:
    """CPython switches threads and runs handlers after calls, at jumps backwards and at a function's start, and nowhere else."""
    names = [instruction.opname for instruction in dis.get_instructions(method)]

    first = next(place for place, name in enumerate(names) if name in LOOKS)
    last = max(place for place, name in enumerate(names) if name == "STORE_SUBSCR")

    assert first < last
    assert not [name for name in names[first : last + 1] if is_check_point(name)]


LOOKS = ("BINARY_SUBSCR", "BINARY_OP")  # a subscript is an operator from 3.14 on


def is_check_point(name: str) -> bool:
    return name.startswith(("CALL", "PRECALL", "RESUME", "YIELD", "SEND", "FOR_ITER")) or "BACKWARD" in name


@pytest.mark.parametrize(
    ("code", "has_one"),
    [("words[0] += 1", False), ("words[0] = max(words[0], 1)", True), ("for word in words: pass", True)],
)
def test_check_points_are_recognized(code: str, has_one: bool) -> None:
    instructions = list(dis.get_instructions(compile(code, "", "exec")))

    assert any(is_check_point(each.opname) for each in instructions[1:]) == has_one


# ---- signal handlers and finalizers


class Owner:
    """Gives back what it holds when it is collected."""

    def __init__(self, pool: Pool, value: bytes) -> None:
        self.pool, self.ref = pool, pool.intern(value)
        self.cycle = self

    def __del__(self) -> None:
        self.pool.release(self.ref)


OPERATIONS: dict[str, Callable[[Pool], object]] = {
    "first hold": lambda pool: pool.intern(b"new"),
    "hold of a batch": lambda pool: pool.intern_many([b"kept", b"new"]),
    "last release": lambda pool: pool.release(pool.intern(b"goes")),
    "lookup": lambda pool: pool.lookup(b"nobody's"),
    "iteration": list,
    "reap": methodcaller("reap"),
    "check": methodcaller("check"),
    "flush": methodcaller("flush"),
}


@pytest.mark.parametrize("way", ["handler", "__del__", "finalize"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_a_finalizer_or_handler_gives_back_inside_an_operation_is_given_back_once(
    new_pool_name: Names, operation: str, way: str
) -> None:
    def play() -> int:
        gc.disable()
        step = {"lookup": 1, "check": 150, "reap": 30}.get(operation, 6)
        return each_point(lambda number: try_point(1 + step * (number - 1)))

    def try_point(point: int) -> bool:
        with Pool.create(new_pool_name(), policy=Policy.refcount(), stripe_count=2, cache_size=2, process_count=4) as pool:
            kept = pool.intern(b"kept")
            if operation == "reap":
                kill_with_holds(pool, DIRTY)
            owners = [Owner(pool, b"owned"), Owner(pool, b"owned")]
            owned, cycles = owners[0].ref, []
            if way != "__del__":
                refs = [pool.intern(b"owned again") for _ in range(2)]
                owners.clear()
                gc.collect(0)
                owned = refs[0]
                if way == "finalize":
                    cycles = [Cycle(), Cycle()]
                    for place in range(2):
                        weakref.finalize(cycles[place], pool.release, owned).atexit = False

            def strike() -> None:
                if way == "handler":
                    for _ in range(2):
                        pool.release(owned)
                    with pytest.raises((NotHeldError, StaleRefError)):
                        pool.release(owned)
                owners.clear()
                cycles.clear()
                gc.collect(0)

            was_struck = interrupted_at(point, strike, lambda: OPERATIONS[operation](pool))
            if not was_struck:
                return False
            pool.release(pool.intern(b"next"))
            pool.reap()
            with pytest.raises(StaleRefError):
                pool.resolve(owned)
            held = {pool.resolve(ref): count for ref, count in holds_in(pool).items()}
            assert held.pop(b"kept") >= 1
            assert held.keys() <= {b"new"}
            assert pool.resolve(kept) == b"kept"
            assert pool.check() == []
            return True

    with engine_chosen("python"):
        assert in_child(play) > 2


class Cycle:
    def __init__(self) -> None:
        self.cycle = self


def holds_in(pool: Pool) -> dict[TopicRef, int]:
    return {ref: sum(holder.count for holder in pool.holders(ref)) for ref, _ in pool}


WELL_INSIDE = 15  # points after the first with the lock's mutex: its byte is locked by then


def test_finalizers_that_give_back_what_is_in_each_others_stripe_do_not_wait_for_each_other(pool_name: str) -> None:
    """Two processes, each inside its own stripe's lock, each with a finalizer that releases a topic of the other's stripe."""
    with Pool.create(pool_name, policy=Policy.refcount(), stripe_count=2) as pool:
        near = b"here"
        far = in_other_stripe(pool, near)[0]
        barrier = Barrier(2)

        def body(place: int) -> bool:
            others = near if place else far
            given = pool.intern(others)
            more = in_other_stripe(pool, others, 2)[1]
            inside = 0

            def try_point(point: int) -> bool:
                def come_in() -> None:
                    nonlocal inside
                    inside += any(lock.is_mine() for lock in store_of(pool).locks)
                    if inside == WELL_INSIDE:
                        barrier.wait(place)  # now both are
                        pool.release(given)

                return interrupted_at(point, come_in, lambda: pool.release(pool.intern(more))) and inside < WELL_INSIDE

            each_point(try_point)
            pool.release(pool.intern(b"next"))
            return inside == WELL_INSIDE and raises(lambda: pool.resolve(given)) is StaleRefError

        with engine_chosen("python"):
            assert crowd(2, body) == [True, True]
