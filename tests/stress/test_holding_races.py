"""Processes that hold, give back, evict and look up the same topics at once: what killed other refcounts, each by its name.

All of it under every way of reading: without a lock, and under it, as on CPUs that reorder.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from multiprocessing.connection import Connection

import pytest

from shmpool import NotHeldError, Policy, Pool, PoolFullError, StaleRefError, TopicRef, holding
from tests.stress.crowd import (
    Barrier,
    SharedWords,
    assert_held,
    assert_nothing_left,
    crowd,
    hold,
    kill_with_holds,
    raises,
    threads,
)
from tests.unit.processes import Forked, in_child

POLICIES = [Policy.refcount(), Policy.lru(max_unheld=1), Policy.ttl(seconds=1000.0)]
GONE = (NotHeldError, StaleRefError)  # what a release of too much raises: the topic may be there yet, or not

every_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)


@pytest.fixture(params=[False, True], ids=["lock-free", "locked"])
def scale(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], int]:
    """Reads as on this CPU, or under the lock; how many rounds of so many are played then."""
    monkeypatch.setattr(holding, "READS_LOCK", request.param)
    return lambda rounds: rounds // 8 if request.param else rounds


def drained(pool: Pool) -> None:
    """What nobody holds goes, whatever the policy."""
    pool.reap()  # a crowd's members end without closing
    assert pool.stats().holds == 0
    assert pool.check() == []
    assert all(not pool.holders(ref) for ref, _ in pool)
    if pool.policy.name == "refcount":
        assert_nothing_left(pool)


# ---- first and last holds


@every_policy
def test_last_release_against_interns_of_the_same_value(pool_name: str, policy: Policy, scale: Callable[[int], int]) -> None:
    """Whoever holds the value has the ref that all who hold it have, finds it by its bytes, and reads them."""
    processes, rounds, value = 4, scale(600), b"/the/same"
    refs, barrier = SharedWords(processes).words, Barrier(processes)

    def body(place: int) -> int:
        shared = 0
        barrier.wait(place)
        for number in range(rounds):
            ref = pool.intern(value)
            refs[place] = ref
            if number % 8 == 0:
                os.sched_yield()  # so that others hold it meanwhile, however few CPUs there are
            others = {refs[other] for other in range(processes)} - {0, ref}
            assert not others, f"held as {ref}, and by another process as {others}"
            assert pool.lookup(value) == ref
            assert pool.resolve(ref) == value
            shared += len(pool.holders(ref)) > 1
            refs[place] = 0
            pool.release(ref)
        return shared

    with Pool.create(pool_name, policy=policy, stripe_count=1) as pool:
        shared = crowd(processes, body)

        drained(pool)
        assert sum(shared), "no two processes ever held it at once"


@every_policy
def test_two_processes_that_take_the_first_hold_at_once_hold_one_topic(
    pool_name: str, policy: Policy, scale: Callable[[int], int]
) -> None:
    processes, rounds = 2, scale(400)
    refs, barrier = SharedWords(processes).words, Barrier(processes)

    def body(place: int) -> None:
        for number in range(rounds):
            value = b"%d" % (number % 7)
            barrier.wait(place)
            refs[place] = ref = pool.intern(value)
            barrier.wait(place)
            assert set(refs) == {ref}
            assert [holder.count for holder in pool.holders(ref)] == [1] * processes
            barrier.wait(place)
            pool.release(ref)

    with Pool.create(pool_name, policy=policy, stripe_count=1) as pool:
        crowd(processes, body)

        drained(pool)


# ---- fork


@pytest.mark.parametrize("ends", ["closing", "killed"])
def test_a_forked_child_holds_nothing_and_its_parents_holds_stay(pool_name: str, ends: str, scale: Callable[[int], int]) -> None:
    held = {b"%d" % number: 1 + number % 3 for number in range(20)}

    def body(connection: Connection) -> None:
        for ref in refs.values():
            assert raises(lambda ref=ref: pool.release(ref)) is NotHeldError  # type: ignore[misc]
        assert pool.resolve(refs[b"1"]) == b"1"
        own = hold(pool, b"1", 2)
        pool.release(own)
        hold(pool, b"the child's", 2)
        connection.send("done")
        if ends == "killed":
            connection.recv()
        pool.close()

    with Pool.create(pool_name, policy=Policy.refcount(), stripe_count=2) as pool:
        refs = {value: hold(pool, value, times) for value, times in held.items()}
        for _ in range(scale(24)):
            with Forked(body) as child:
                assert child.hear() == "done"
                if ends == "killed":
                    child.kill()
                else:
                    child.result()
            assert pool.reap() == (3 if ends == "killed" else 0)
            assert_held(pool, held)
            assert pool.lookup(b"the child's") is None


def test_children_forked_amid_threads_that_hold_and_give_back_hold_nothing(pool_name: str, scale: Callable[[int], int]) -> None:
    values = [b"%d" % number for number in range(6)]

    def churn(place: int) -> None:
        for value in cycle(values[place::2]):
            pool.release(hold(pool, value, 2))
            pool.release(pool.lookup(value) or kept)
            if stop.is_set():
                return

    def is_empty_handed() -> list[type[Exception] | None]:
        own = hold(pool, b"child", 1)
        kinds = [raises(lambda ref=ref: pool.release(ref)) for ref in (kept, *others)]  # type: ignore[misc]
        pool.release(own)
        return [*kinds, raises(lambda: pool.release(own))]

    stop = threading.Event()
    with Pool.create(pool_name, policy=Policy.lru(max_unheld=100), stripe_count=2) as pool:
        kept, others = pool.intern(b"kept"), [pool.intern(value) for value in values]
        for ref in others:
            pool.release(ref)
        churners = [threading.Thread(target=churn, args=(place,)) for place in range(2)]
        for thread in churners:
            thread.start()
        try:
            kinds = [in_child(is_empty_handed) for _ in range(scale(24))]
        finally:
            stop.set()
            for thread in churners:
                thread.join()

        assert all(set(each) == {NotHeldError} for each in kinds), kinds
        assert_held(pool, {b"kept": 1, **dict.fromkeys(values, 0)})


# ---- eviction against lookup and resolve


@pytest.mark.parametrize("policy", [Policy.refcount(), Policy.lru(max_unheld=1)], ids=lambda policy: policy.name)
def test_a_ref_from_a_lookup_resolves_to_its_bytes_or_is_stale_while_its_space_changes_hands(
    pool_name: str, policy: Policy, scale: Callable[[int], int], seed: int
) -> None:
    """Values of one size alternate in very few spaces. Every ref that was ever given stays its value's for good."""
    values = [bytes([97 + number]) * 20 for number in range(4)]
    rounds = scale(8000)

    def read(place: int) -> Counter[str]:
        rng, seen, tally = random.Random(f"{seed} {place}"), dict[TopicRef, bytes](), Counter[str]()
        barrier.wait(place)
        while not done[0]:
            for value in values:
                ref = pool.lookup(value)
                if ref is None:
                    tally["missed"] += 1
                    continue
                assert seen.setdefault(ref, value) == value, f"{ref} was the ref of {seen[ref]!r}, and now of {value!r}"
                for each in (ref, rng.choice(list(seen))) if tally["right"] % 16 == 0 else (ref,):
                    try:
                        found = pool.resolve(each)
                    except StaleRefError:
                        tally["stale"] += 1
                    else:
                        assert found == seen[each], f"{each} is of {seen[each]!r}, and resolves to {found!r}"
                        tally["right"] += 1
            if len(seen) > 1000:
                seen.clear()
        return tally

    def write(place: int) -> Counter[str]:
        rng = random.Random(f"{seed} {place}")
        barrier.wait(place)
        for _ in range(rounds):
            pool.release(pool.intern(rng.choice(values)))
        done[0] += 1
        return Counter()

    done, barrier = SharedWords(1).words, Barrier(3)
    with Pool.create(pool_name, policy=policy, stripe_count=1) as pool:
        tally = sum(crowd(3, lambda place: read(place) if place else write(place)), Counter[str]())

        assert tally["right"] > rounds // 8, tally
        assert tally["missed"] + tally["stale"] > 0, tally
        drained(pool)
        spaces = len({ref & 0xFF_FFFF_FFFF for ref in [pool.intern(value) for value in values]})
        assert spaces == len(values)
        assert pool.stats().arena_used_size <= 8 * 48


# ---- room


@every_policy
def test_a_pool_full_of_what_is_held_refuses_and_loses_nothing(
    pool_name: str, policy: Policy, scale: Callable[[int], int], seed: int
) -> None:
    processes, rounds, capacity = 3, scale(150), 30

    def body(place: int) -> int:
        rng, refused = random.Random(f"{seed} {place}"), 0
        own = [b"%d of %d" % (number, place) for number in range(capacity // processes)]
        refs = {value: pool.intern(value) for value in own}
        barrier.wait(place)
        for number in range(rounds):
            kind = raises(lambda: pool.intern(b"more %d" % number))  # noqa: B023
            assert kind is PoolFullError, kind
            refused += 1
            assert {value: pool.lookup(value) for value in own} == refs
            value = rng.choice(own)
            assert pool.resolve(refs[value]) == value
        barrier.wait(place)
        for number in range(rounds):  # and now everyone wants the places that everyone gives up
            value = rng.choice(own)
            pool.release(refs.pop(value))
            own.remove(value)
            try:
                new = b"%d new %d" % (place, number)
                refs[new] = pool.intern(new)
                own.append(new)
            except PoolFullError:
                refused += 1
                continue
            finally:
                for each, ref in refs.items():
                    assert pool.lookup(each) == ref
            if len(own) < capacity // processes:
                with_room = b"%d again %d" % (place, number)
                if raises(lambda: refs.__setitem__(with_room, pool.intern(with_room))) is None:  # noqa: B023
                    own.append(with_room)
            if len(own) < 2:
                break
        barrier.wait(place)
        assert_held(pool, dict.fromkeys(own, 1))
        barrier.wait(place)
        return refused

    barrier = Barrier(processes)
    with Pool.create(pool_name, policy=policy, stripe_count=1, capacity=capacity, reserve=0) as pool:
        assert sum(crowd(processes, body)) >= processes * rounds
        drained(pool)


# ---- a double release


@every_policy
def test_a_double_release_is_an_error_and_takes_no_others_hold(
    pool_name: str, policy: Policy, scale: Callable[[int], int]
) -> None:
    """Each process holds it once, gives it back twice: never is there a hold less than there are processes that have not."""
    processes, rounds, value = 3, scale(160), b"/both"
    refs, barrier = SharedWords(1).words, Barrier(processes)

    def body(place: int) -> None:
        for number in range(rounds):
            refs[0] = ref = pool.intern(value)
            barrier.wait(place)
            assert refs[0] == ref
            if number % processes == place:  # keeps it
                barrier.wait(place)
                assert [holder.count for holder in pool.holders(ref)] == [1]
                assert pool.resolve(ref) == value
            else:
                pool.release(ref)
                assert raises(lambda: pool.release(ref)) is NotHeldError  # noqa: B023
                barrier.wait(place)
            barrier.wait(place)
            assert raises(lambda: pool.release(ref)) in ((None, *GONE) if number % processes == place else GONE)  # noqa: B023
            barrier.wait(place)

    with Pool.create(pool_name, policy=policy, stripe_count=1) as pool:
        crowd(processes, body)
        drained(pool)


@every_policy
def test_of_threads_that_give_the_same_holds_back_only_so_many_succeed(
    pool_name: str, policy: Policy, scale: Callable[[int], int]
) -> None:
    with Pool.create(pool_name, policy=policy, stripe_count=1) as pool, Pool.attach(pool_name) as other:
        kept = other.intern(b"x")
        for times in [1, 2, 3] * scale(24):
            ref = hold(pool, b"x", times)

            kinds = threads(5, lambda _, ref=ref: raises(lambda: pool.release(ref)))  # type: ignore[misc]

            assert Counter(kinds) == {None: times, NotHeldError: 5 - times}
            assert [holder.count for holder in other.holders(kept)] == [1]
        other.release(kept)
        drained(pool)


# ---- what killed processes held


@every_policy
def test_a_process_killed_with_thousands_of_holds_loses_exactly_its_own(pool_name: str, policy: Policy) -> None:
    shared, own = [b"shared %d" % number for number in range(1500)], [b"own %d" % number for number in range(1500)]
    with Pool.create(pool_name, policy=policy) as pool:
        refs = {value: hold(pool, value, 1 + number % 2) for number, value in enumerate(shared)}
        kill_with_holds(pool, shared + own, 2)
        assert pool.stats().holds == len(shared) * 3 // 2 + 2 * (len(shared) + len(own))

        reaped = pool.reap()

        assert reaped == 2 * (len(shared) + len(own))
        assert_held(pool, {value: 1 + number % 2 for number, value in enumerate(shared)})
        assert {value: pool.lookup(value) for value in shared} == refs
        left = {value for _, value in pool} - set(shared)
        assert len(left) <= {"refcount": 0, "lru": 1, "ttl": len(own)}[policy.name]
        assert pool.reap() == 0


@every_policy
def test_reapers_in_processes_and_threads_give_each_killed_processs_hold_back_once(
    pool_name: str, policy: Policy, scale: Callable[[int], int]
) -> None:
    rounds, processes = scale(16), 2
    values = [b"%d" % number for number in range(40)]

    def reap(place: int) -> int:
        """In two threads, as long as others are killed, attach, close and fork."""
        reaped = 0
        while not done[0]:
            reaped += sum(threads(2, lambda _: sum(pool.reap() for _ in range(20))))
            assert pool.lookup(b"kept") == kept
        assert pool.resolve(kept) == b"kept"
        return reaped

    def live_and_die(place: int) -> int:
        held = 0
        for number in range(rounds):
            if number % 2:
                kill_with_holds(pool, values[: number + 1], 2)
                held += 2 * (number + 1)
            else:
                with Pool.attach(pool_name) as attached:
                    attached.intern_many(values)
                in_child(lambda: hold(pool, b"kept", 2))
                held += 2  # in_child's end is not an orderly one
        done[0] = 1
        return -held

    done = SharedWords(1).words
    with Pool.create(pool_name, policy=policy, stripe_count=2) as pool:
        kept = pool.intern(b"kept")

        counts = crowd(processes + 1, lambda place: live_and_die(place) if not place else reap(place))
        counts.append(pool.reap())

        # Who attaches gives back what is in its row, and tells nobody.
        assert sum(counts) <= 0, "more was given back than was held"
        assert_held(pool, {b"kept": 1})
        pool.release(kept)
        drained(pool)
