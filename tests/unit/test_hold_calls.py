"""Claims about the calls that take and give back holds: what each does, its errors, and what is unchanged after one."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmpool import (
    NotHeldError,
    Policy,
    Pool,
    PoolBusyError,
    PoolClosedError,
    PoolFullError,
    PoolNotFoundError,
    StaleRefError,
    TopicRef,
)
from shmpool.pool import HoldingPool
from tests.unit.processes import in_child

HOLDING = [Policy.refcount(), Policy.lru(max_unheld=10), Policy.ttl(seconds=1000)]
POLICIES = [Policy.forever(), *HOLDING]
VALUES = [b"topic %d" % number for number in range(5)]
Facts = tuple[Any, ...]


@pytest.fixture(params=HOLDING, ids=str)
def pool(request: pytest.FixtureRequest, pool_name: str) -> Iterator[Pool]:
    """Under each policy that counts holds."""
    with Pool.create(pool_name, policy=request.param, capacity=20, reserve=5, max_value_size=100) as pool:
        yield pool


@pytest.fixture(params=POLICIES, ids=str)
def any_pool(request: pytest.FixtureRequest, pool_name: str) -> Iterator[Pool]:
    with Pool.create(pool_name, policy=request.param, capacity=20, max_value_size=100) as pool:
        yield pool


def facts(pool: Pool) -> Facts:
    """All that a hold more or less would change."""
    stats = pool.stats()
    top = sorted((count.value, count.ref, count.holds) for count in pool.top(100))
    return top, stats.holds, stats.unheld, stats.inserts, stats.total.frees, stats.total.evictions, pool.check()


def holds_of(pool: Pool, ref: TopicRef) -> int:
    return sum(holder.count for holder in pool.holders(ref))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda pool, ref: pool.release(TopicRef(ref + 8)), StaleRefError),
        (lambda pool, ref: pool.release(TopicRef(ref + (1 << 40))), StaleRefError),
        (lambda pool, ref: pool.release(TopicRef(0)), StaleRefError),
        (lambda pool, ref: pool.release(TopicRef(-1)), StaleRefError),
        (lambda pool, ref: pool.release(TopicRef(2**80)), StaleRefError),
        (lambda pool, ref: pool.release("topic"), TypeError),
        (lambda pool, ref: pool.release(None), TypeError),
        (lambda pool, ref: pool.holders(TopicRef(ref + 8)), StaleRefError),
        (lambda pool, ref: pool.resolve(TopicRef(ref + (1 << 40))), StaleRefError),
        (lambda pool, ref: pool.intern("topic"), TypeError),
        (lambda pool, ref: pool.intern([1]), TypeError),
        (lambda pool, ref: pool.admit("topic"), TypeError),
        (lambda pool, ref: pool.lookup("topic"), TypeError),
        (lambda pool, ref: pool.intern(bytes(101)), ValueError),
        (lambda pool, ref: pool.hold("topic").__enter__(), TypeError),
        (lambda pool, ref: pool.hold(bytes(101)).__enter__(), ValueError),
        (lambda pool, ref: pool.intern_many([b"new", *VALUES, "topic"]), TypeError),
        (lambda pool, ref: pool.intern_many([b"new", *VALUES, bytes(101)]), ValueError),
        (lambda pool, ref: pool.intern_many([*VALUES, *(b"%d" % number for number in range(30))]), PoolFullError),
        (lambda pool, ref: pool.top(5, by="age"), ValueError),
    ],
)
def test_an_error_changes_no_hold_and_no_topic_that_is_held(
    pool: Pool, call: Callable[[Pool, int], object], error: type[Exception]
) -> None:
    refs = [pool.intern(value) for value in VALUES]
    before = facts(pool)

    with pytest.raises(error) as raised:
        call(pool, refs[0])

    assert type(raised.value) is error
    assert pool.name in str(raised.value) or error is TypeError
    after = facts(pool)
    if error is not PoolFullError or not pool.policy.keeps_unheld:
        assert after[:3] == before[:3]
    assert [count for count in after[0] if count[2]] == before[0]
    assert after[1] == before[1]
    assert after[-1] == []


def test_a_hold_that_this_process_does_not_have_cannot_be_given_back(pool: Pool) -> None:
    ref = pool.intern(b"topic")
    with Pool.attach(pool.name) as other:
        before = facts(pool)

        for refused in (other.release, lambda ref: other.release_many([ref])):
            with pytest.raises(NotHeldError):
                refused(ref)

        assert other.lookup(b"topic") == ref  # takes none
        with pytest.raises(NotHeldError):
            other.release(ref)
        assert facts(pool) == before
        other.intern(b"topic")
        pool.release(ref)
        with pytest.raises(NotHeldError):
            pool.release(ref)
        assert [(holder.count, holder.live) for holder in other.holders(ref)] == [(1, True)]


def test_every_intern_is_one_hold_to_give_back(pool: Pool) -> None:
    ref = pool.intern(b"topic")
    assert [pool.intern(b"topic"), pool.admit(b"topic"), *pool.intern_many([b"topic"] * 3).tolist()] == [ref] * 5

    for left in range(5, 0, -1):
        pool.release(ref)
        assert holds_of(pool, ref) == left
    pool.release(ref)

    with pytest.raises((StaleRefError, NotHeldError)) as raised:
        pool.release(ref)
    assert raised.type is (NotHeldError if pool.policy.keeps_unheld else StaleRefError)
    assert (pool.lookup(b"topic") == ref) == pool.policy.keeps_unheld


def test_release_many_gives_back_what_comes_before_the_one_that_it_cannot(pool: Pool) -> None:
    refs = [pool.intern(value) for value in VALUES]

    with pytest.raises(StaleRefError):
        pool.release_many([refs[0], refs[1], TopicRef(refs[2] + 8), refs[3]])

    assert sorted(count.value for count in pool.top(9) if count.holds) == sorted(VALUES[2:])


def test_a_batch_that_fails_in_its_middle_keeps_no_hold(pool: Pool) -> None:
    kept = pool.intern(VALUES[0])
    pool.intern_many([b"full %d" % number for number in range(17)])
    before = pool.stats().holds

    with pytest.raises(PoolFullError):
        pool.intern_many(VALUES)

    assert pool.stats().holds == before
    assert holds_of(pool, kept) == 1
    assert pool.lookup(VALUES[1]) is None or pool.policy.keeps_unheld


def test_hold_gives_back_when_its_body_raises_and_lets_the_error_through(any_pool: Pool) -> None:
    def fail() -> None:
        with any_pool.hold(b"topic") as ref, any_pool.hold(b"topic") as again:
            assert ref == again
            assert any_pool.resolve(ref) == b"topic"
            assert any_pool.stats().holds == (2 if any_pool.policy.counts_holds else 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert any_pool.stats().holds == 0
    assert (any_pool.lookup(b"topic") is None) == (any_pool.policy == Policy.refcount())


def test_hold_says_so_when_its_body_has_given_its_hold_back(pool: Pool) -> None:
    with pytest.raises((NotHeldError, StaleRefError)), pool.hold(b"topic") as ref:
        pool.release(ref)

    assert pool.stats().holds == 0


def test_a_topic_that_went_and_came_again_has_another_ref(pool_name: str) -> None:
    with Pool.create(pool_name, policy=Policy.refcount(), stripe_count=1) as pool:
        refs = set()
        for number in range(20):
            with pool.hold(b"topic %d" % (number % 2)) as ref:
                assert not pool.stats().unheld
            refs.add(ref)
            with pytest.raises(StaleRefError):
                pool.resolve(ref)

        assert len(refs) == 20
        assert len({ref & (1 << 40) - 1 for ref in refs}) == 1  # all in one space


def test_closing_gives_all_back_and_then_every_call_says_that_it_is_closed(pool: Pool) -> None:
    with Pool.attach(pool.name) as other:
        ref = other.intern(b"topic")
        other.intern(b"topic")
        pool.intern(b"topic")
    assert [holder.count for holder in pool.holders(ref)] == [1]

    for call in (
        lambda: other.intern(b"topic"), lambda: other.release(ref), lambda: other.holders(ref), lambda: other.resolve(ref),
        lambda: other.hold(b"topic").__enter__(), lambda: other.lookup(b"topic"), other.reap, other.stats,
        lambda: other.intern_many([b"topic"]), lambda: other.release_many([ref]), lambda: other.lookup_many([b"topic"]),
    ):  # fmt: skip
        with pytest.raises(PoolClosedError):
            call()


def test_a_forked_child_holds_nothing_and_takes_nothing_from_its_parent(pool: Pool) -> None:
    ref = pool.intern(b"topic")

    def child() -> tuple[str, bytes, int]:
        try:
            pool.release(ref)
        except NotHeldError as error:
            said = type(error).__name__
        value = pool.resolve(ref)
        pool.intern(b"topic")
        count = pool.stats().holds
        pool.close()
        return said, value, count

    assert in_child(child) == ("NotHeldError", b"topic", 2)
    assert [holder.count for holder in pool.holders(ref)] == [1]


def test_a_pickled_pool_is_another_attachment_that_holds_nothing(pool: Pool) -> None:
    ref = pool.intern(b"topic")
    pickled = pickle.dumps(pool)

    with pickle.loads(pickled) as other:
        assert type(other) is HoldingPool
        assert (other.policy, other.resolve(ref)) == (pool.policy, b"topic")
        with pytest.raises(NotHeldError):
            other.release(ref)

    pool.close()
    with pytest.raises(PoolNotFoundError):
        pickle.loads(pickled)


def test_a_reset_drops_what_is_held_and_its_refs_for_good(pool: Pool) -> None:
    refs = [pool.intern(value) for value in VALUES]
    with Pool.attach(pool.name):
        before = facts(pool)
        with pytest.raises(PoolBusyError):
            pool.reset()
        assert facts(pool) == before

    pool.reset()

    assert (len(pool), pool.stats().holds, pool.check()) == (0, 0, [])
    for ref in refs:
        for call in (pool.release, pool.resolve, pool.holders):
            with pytest.raises(StaleRefError):
                call(ref)
    assert not {int(pool.intern(value)) for value in VALUES} & set(refs)


def test_under_forever_all_of_it_works_and_does_nothing(pool_name: str) -> None:
    with Pool.create(pool_name) as pool:
        ref = pool.intern(b"topic")
        before = facts(pool)

        for given in (ref, ref, TopicRef(0), TopicRef(2**70)):
            pool.release(given)
        pool.release_many([ref, ref])
        with pool.hold(b"topic") as again:
            assert again == ref

        assert (pool.holders(ref), pool.reap()) == ((), 0)
        with pytest.raises(StaleRefError):
            pool.holders(TopicRef(ref + 8))
        with pytest.raises(ValueError, match="holds"):
            pool.top(5, by="holds")
        assert facts(pool) == before
        assert type(pool) is Pool
