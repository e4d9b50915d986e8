"""Claims about holding: what each call promises, which errors it raises, and that nothing is changed after one."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import pytest

from shmpool import Policy, Pool, PoolBusyError, PoolFullError, StaleRefError, TopicRef
from shmpool.arena import make_meta
from shmpool.holding import HoldingStore
from shmpool.layout import RECORD_SIZE
from shmpool.pool import HoldingPool
from shmpool.reuse import ReusingStripes
from tests.unit.inside import store_of
from tests.unit.processes import Forked

VALUES = [b"topic %d" % number for number in range(5)]
HOLDING = [Policy.refcount(), Policy.lru(max_unheld=2), Policy.ttl(seconds=1)]


@pytest.mark.parametrize("policy", HOLDING, ids=str)
def test_a_ref_into_a_value_that_imitates_a_record_is_refused_and_frees_nothing(pool_name: str, policy: Policy) -> None:
    imitation = struct.pack("<QQ", 12345, make_meta(ordinal=0, generation=0, size=4)) + b"abcd" + bytes(20)
    with Pool.create(pool_name, policy=policy, stripe_count=1) as pool:
        victim = pool.intern(b"of ordinal 0")
        ref = pool.intern(imitation)
        forged = TopicRef(ref + RECORD_SIZE)

        for refused in (pool.release, pool.holders, pool.resolve):
            with pytest.raises(StaleRefError):
                refused(forged)

        assert pool.check() == []
        assert pool.resolve(ref) == imitation
        assert [holder.count for holder in pool.holders(victim)] == [1]


def test_what_goes_when_its_process_closes_counts_as_freed_by_it(pool_name: str) -> None:
    with Pool.create(pool_name, policy=Policy.refcount()) as pool:
        with Pool.attach(pool_name) as other:
            other.intern_many(VALUES)

        stats = pool.stats()

        assert len(pool) == 0
        assert (stats.inserts, stats.total.frees) == (len(VALUES), len(VALUES))


def test_no_more_is_kept_under_lru_than_it_says_when_a_holder_closes(pool_name: str) -> None:
    with Pool.create(pool_name, policy=Policy.lru(max_unheld=2)) as pool:
        with Pool.attach(pool_name) as other:
            other.intern_many(VALUES)

        stats = pool.stats()

        assert (len(pool), stats.unheld) == (2, 2)
        assert stats.total.evictions == len(VALUES) - 2


def killed_holding(pool: Pool, values: Iterable[bytes] = VALUES, times: int = 1) -> int:
    """Have a forked process hold each value so often, and kill it; returns its pid."""

    def body(connection: Connection) -> None:
        for _ in range(times):
            pool.intern_many(values)
        pool.flush()
        connection.send("holds")
        connection.recv()

    with Forked(body) as child:
        assert child.hear() == "holds"
        child.kill()
    return child.pid


def test_no_more_is_kept_under_lru_than_it_says_when_a_killed_holders_row_is_taken(pool_name: str) -> None:
    with Pool.create(pool_name, policy=Policy.lru(max_unheld=2)) as pool:
        killed_holding(pool)
        with Pool.attach(pool_name):
            assert (pool.stats().unheld, pool.check()) == (2, [])


@pytest.mark.parametrize("policy", HOLDING, ids=str)
def test_who_takes_a_killed_holders_row_has_none_of_its_holds_from_the_start(pool_name: str, policy: Policy) -> None:
    with Pool.create(pool_name, policy=policy) as pool:
        dead = killed_holding(pool)
        assert [(process.pid == dead, process.live, process.holds) for process in pool.stats().processes] == [
            (False, True, 0),
            (True, False, len(VALUES)),
        ]

        with Pool.attach(pool_name) as taker:
            assert [(process.pid, process.holds) for process in pool.stats().processes] == [(os.getpid(), 0)] * 2
            assert pool.reap() == 0
            assert taker.stats().total.reaped == len(VALUES)
            assert len(pool) == (0 if policy == Policy.refcount() else pool.stats().unheld)


@pytest.mark.parametrize("policy", [Policy.forever(), *HOLDING], ids=str)
def test_hits_count_once_whether_a_reset_is_refused_or_done(pool_name: str, policy: Policy) -> None:
    with Pool.create(pool_name, policy=policy) as pool:
        for _ in range(5):
            pool.intern(b"topic")
        with Pool.attach(pool_name), pytest.raises(PoolBusyError):
            pool.reset()

        assert pool.stats().hits == 4

        pool.reset()
        assert pool.stats().hits == 4
        pool.intern(b"topic")
        pool.intern(b"topic")
        assert (pool.stats().hits, pool.stats().misses) == (5, 2)


def test_a_topic_held_anew_while_another_thread_forgets_all_is_not_handed_out_once_it_went(pool_name: str) -> None:
    class Interrupted(dict[Any, Any]):
        """Has something done by "another thread" right after it was cleared, once."""

        acts: ClassVar[list[Callable[[], object]]] = []

        def clear(self) -> None:
            super().clear()
            while self.acts:
                self.acts.pop()()

    with Pool.create(pool_name, policy=Policy.refcount()) as first:
        store = store_of(first)
        assert isinstance(store, HoldingStore)
        store.held.by_value = Interrupted()
        pool = HoldingPool(store)
        Interrupted.acts.append(lambda: pool.intern(b"topic"))
        store.empty_cache()
        (ref,) = pool.lookup_many([b"topic"]).tolist()

        pool.release(ref)

        assert pool.lookup(b"topic") is None
        assert pool.intern(b"topic") != ref
        assert pool.check() == []


@pytest.mark.parametrize("policy", [Policy.lru(max_unheld=10), Policy.ttl(seconds=60)], ids=str)
def test_an_admit_that_cannot_have_room_evicts_nothing(pool_name: str, policy: Policy) -> None:
    with Pool.create(pool_name, policy=policy, capacity=10, reserve=5) as pool:
        pool.intern_many([b"held %d" % number for number in range(5)])
        pool.release_many(pool.intern_many(VALUES))
        before = dict(pool)

        with pytest.raises(PoolFullError):
            pool.admit(b"of a stranger")

        assert dict(pool) == before
        pool.intern(b"of this host")
        assert (len(pool), pool.stats().total.evictions) == (10, 1)


# ---- room


def test_a_stripe_that_is_full_rebuilds_its_table_only_when_tombstones_fill_it(pool_name: str) -> None:
    with Pool.create(pool_name, policy=Policy.lru(max_unheld=300), stripe_count=1, capacity=300, reserve=0) as pool:
        pool.release_many(pool.intern_many([b"topic %d" % number for number in range(300)]))
        stripes = store_of(pool).stripes
        assert isinstance(stripes, ReusingStripes)
        before = stripes._serial(0)  # noqa: SLF001

        for number in range(300, 900):
            pool.release(pool.intern(b"topic %d" % number))

        assert stripes._serial(0) - before < 600 // 40  # noqa: SLF001 - 84 tombstones fill it, and some go before
        assert (len(pool), pool.check()) == (300, [])
