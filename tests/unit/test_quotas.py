"""Claims about bounds and facts under every policy: what each process may insert, and who inserted, used and holds what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from random import Random

import pytest

from shmpool import NotHeldError, Policy, Pool, PoolFullError, StaleRefError
from tests.unit.processes import Forked

HOLDING = [Policy.refcount(), Policy.lru(max_unheld=100), Policy.ttl(seconds=1000)]
POLICIES = [Policy.forever(), *HOLDING]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=str)


def serve(pool: Pool) -> Callable[[Connection], None]:
    """A child's body: do what it is told, each time a method and its argument, and tell the error if there was one."""

    def body(connection: Connection) -> None:
        while message := connection.recv():
            try:
                getattr(pool, message[0])(*message[1:])
            except (PoolFullError, NotHeldError, StaleRefError) as error:
                connection.send(type(error))
            else:
                connection.send(None)
        pool.close()

    return body


@contextmanager
def children_of(pool: Pool, count: int) -> Iterator[list[Forked]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Forked(serve(pool))) for _ in range(count)]


def tell(child: Forked, *message: object) -> type[Exception] | None:
    child.say(message)
    answer: type[Exception] | None = child.hear()
    return answer


def end(child: Forked) -> None:
    child.say(None)
    child.result()


# ---- what each may insert


@every_policy
def test_each_process_makes_the_inserts_of_its_budget_and_no_more(pool_name: str, policy: Policy) -> None:
    with Pool.create(pool_name, policy=policy, insert_budget=5) as pool, children_of(pool, 3) as children:
        for child in children:
            answers = [tell(child, "intern", b"%d of %d" % (number, child.pid)) for number in range(8)]
            assert answers == [None] * 5 + [PoolFullError] * 3
            assert tell(child, "flush") is None

        assert len(pool) == 15
        inserts = {process.pid: process.counters.inserts for process in pool.stats().processes}
        assert [inserts[child.pid] for child in children] == [5, 5, 5]
        # What others inserted is theirs to use, and this process's own budget is its own.
        for number, child in enumerate(children):
            assert tell(child, "intern", b"0 of %d" % children[number - 1].pid) is None
        assert pool.intern(b"of the parent")
        for child in children:
            end(child)


@pytest.mark.parametrize("policy", HOLDING, ids=str)
def test_a_budget_is_of_inserts_and_not_given_back_by_what_goes(pool_name: str, policy: Policy) -> None:
    with Pool.create(pool_name, policy=policy, insert_budget=5) as pool:
        for number in range(5):
            pool.release(pool.intern(b"%d" % number))

        with pytest.raises(PoolFullError, match="budget"):
            pool.intern(b"one more")

        assert pool.stats().inserts == 5
        with Pool.attach(pool_name) as other:
            assert other.intern(b"one more")


@pytest.mark.parametrize("policy", [Policy.lru(max_unheld=10), Policy.ttl(seconds=1000)], ids=str)
def test_a_used_up_budget_makes_no_room_at_others_cost(pool_name: str, policy: Policy) -> None:
    options = {"policy": policy, "insert_budget": 5, "capacity": 10, "reserve": 0}
    with Pool.open(pool_name, **options) as pool, Pool.attach(pool_name) as other:
        other.release_many(other.intern_many([b"%d" % number for number in range(5)]))
        pool.release_many(pool.intern_many([b"mine %d" % number for number in range(5)]))
        before = dict(pool)

        with pytest.raises(PoolFullError, match="budget"):
            pool.intern(b"one more")

        assert dict(pool) == before


@every_policy
def test_strangers_names_never_take_the_reserve(pool_name: str, policy: Policy) -> None:
    with Pool.create(pool_name, policy=policy, capacity=20, reserve=5, stripe_count=1) as pool:
        with children_of(pool, 2) as children:
            for number in range(10):
                for child in children:
                    is_full = len(pool) == 15
                    assert tell(child, "admit", b"%d of %d" % (number, child.pid)) is (PoolFullError if is_full else None)
            assert len(pool) == 15
            for number in range(5):
                assert tell(children[number % 2], "intern", b"local %d" % number) is None

            answers = [tell(child, how, b"one more") for child in children for how in ("intern", "admit")]

            assert answers == [PoolFullError] * 4
            assert len(pool) == 20
            assert tell(children[0], "admit", b"local 0") is None  # it is there
            for child in children:
                end(child)
        assert pool.check() == []


@pytest.mark.parametrize("policy", [Policy.lru(max_unheld=20), Policy.ttl(seconds=1000)], ids=str)
def test_what_nobody_holds_makes_room_for_strangers_names_but_not_the_reserve(pool_name: str, policy: Policy) -> None:
    with Pool.create(pool_name, policy=policy, capacity=20, reserve=5, stripe_count=1) as pool:
        pool.release_many(pool.intern_many([b"%d" % number for number in range(20)]))

        for number in range(15):
            pool.admit(b"of strangers %d" % number)
            assert len(pool) == 15
        with pytest.raises(PoolFullError):
            pool.admit(b"one more")

        assert {value for _, value in pool} == {b"of strangers %d" % number for number in range(15)}
        assert pool.stats().total.evictions == 20


# ---- who does what


@pytest.mark.parametrize("policy", HOLDING, ids=str)
def test_stats_and_top_tell_exactly_who_holds_and_inserted_what_also_of_the_killed(
    pool_name: str, policy: Policy, rng: Random
) -> None:
    values = [b"topic %d" % number for number in range(12)]
    with Pool.create(pool_name, policy=policy) as pool, children_of(pool, 3) as children:
        first = {value: pool.intern(value) for value in values}  # this process holds each, so that none goes
        holds = {child.pid: Counter[bytes]() for child in children}
        uses, hits = Counter(values), Counter[int]()
        for _ in range(150):
            child, value = rng.choice(children), rng.choice(values)
            what = rng.choice(("intern", "intern", "lookup", "release"))
            answer = tell(child, what, first[value] if what == "release" else value)
            assert answer is (NotHeldError if what == "release" and not holds[child.pid][value] else None)
            if what != "lookup":
                holds[child.pid][value] += 1 if what == "intern" else -1 if answer is None else 0
            uses[value] += what != "release"
            hits[child.pid] += what != "release"
        for number, child in enumerate(children):
            for each in range(number + 1):
                value = b"%d only of %d" % (each, child.pid)
                assert tell(child, "intern", value) is None
                holds[child.pid][value] += 1
                uses[value] += 1
            assert tell(child, "flush") is None
        killed = children[0]
        killed.kill()

        def assert_told(gone: int) -> None:
            there = {pid: its for pid, its in holds.items() if pid != gone}
            by_value = Counter(values) + sum(there.values(), Counter())
            processes = {process.pid: process for process in pool.stats().processes}
            for number, child in enumerate(children):
                process = processes[child.pid]
                assert process.live == (child is not killed)
                assert process.holds == (0 if child.pid == gone else holds[child.pid].total())
                assert (process.counters.inserts, process.counters.hits) == (number + 1, hits[child.pid])
            assert pool.stats().holds == by_value.total()
            for by, key in (("holds", 3), ("uses", 2)):
                top = pool.top(100, by=by)
                assert [count[key] for count in top] == sorted((count[key] for count in top), reverse=True)
                held = {count.value: count.holds for count in top if count.holds}
                assert held == by_value
                assert all(count.uses == uses[count.value] for count in top)
                assert [count.value for count in pool.top(3, by=by)] == [count.value for count in top[:3]]
            for value, ref in first.items():
                expected = {pid: its[value] for pid, its in there.items() if its[value]}
                found = {holder.pid: holder.count for holder in pool.holders(ref) if holder.count and holder.pid in holds}
                assert found == expected

        assert_told(gone=0)
        assert pool.reap() == holds[killed.pid].total()
        assert_told(gone=killed.pid)
        assert pool.stats().total.reaped == holds[killed.pid].total()
        for child in children[1:]:
            end(child)
        assert pool.stats().holds == len(values)
        assert (pool.stats().inserts, pool.check()) == (len(values) + 6, [])


@every_policy
def test_uses_are_exact_when_topics_and_processes_come_and_go(pool_name: str, policy: Policy) -> None:
    with Pool.create(pool_name, policy=policy) as pool:
        for generation in range(3):
            with children_of(pool, 2) as children:
                for child, count in zip(children, (3, 4), strict=True):
                    for _ in range(count):
                        assert tell(child, "intern", b"topic") is None
                    assert tell(child, "flush") is None
                expected = 7 if policy == Policy.refcount() else 7 * (generation + 1)
                assert [(count.value, count.uses) for count in pool.top(5)] == [(b"topic", expected)]
                end(children[0])
                if policy.counts_holds:
                    assert [count.holds for count in pool.top(5, by="holds")] == [4]
                assert [count.uses for count in pool.top(5)] == [expected]
                if generation == 1:
                    children[1].kill()
                    pool.reap()
                else:
                    end(children[1])
            if policy == Policy.refcount():
                assert pool.top(5) == []
            else:
                assert [count.uses for count in pool.top(5)] == [expected]
