"""Claims about real memory where topics go: what an empty pool, a topic, a use, a hold and a process cost."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest

from shmpool import Policy, Pool
from shmpool.layout import PAGE_SIZE, WORD_SIZE
from tests.unit.processes import Forked

COUNT = 16_384  # a pool as full as in tools/bench_intern.py
STAMP = WORD_SIZE  # what a policy under which topics go adds to each record
POLICIES = [Policy.refcount(), Policy.lru(max_unheld=1000), Policy.ttl(seconds=1000)]


def topics(count: int) -> list[bytes]:
    return [b"/eth2/00000000/beacon_attestation_%d/ssz_snappy" % number for number in range(count)]


def size_with_semaphores(pool: Pool) -> int:
    files = [entry for entry in os.scandir("/dev/shm") if f"{pool.constants.pool_id:016x}" in entry.name]
    assert len(files) == pool.constants.geometry.stripe_count
    return pool.stats().memory_size + sum(entry.stat().st_blocks * 512 for entry in files)


def growth_by(pool: Pool, body: Callable[[Pool], object]) -> int:
    """Bytes by which the pool's memory grows while another process, new to it, does something."""

    def act(connection: Connection) -> None:
        with Pool.attach(pool.name) as other:
            body(other)
            connection.send("done")
            connection.recv()

    before = pool.stats().memory_size
    with Forked(act) as child:
        assert child.hear() == "done"
        grown = pool.stats().memory_size - before
        child.say("close")
        child.result()
    return grown


def test_an_empty_pool_takes_half_a_mebibyte_at_most_and_a_full_one_64_bytes_a_topic_and_its_stamp(pool_name: str) -> None:
    values = topics(COUNT)
    with Pool.create(pool_name + ".default", policy=Policy.refcount()) as pool:
        assert size_with_semaphores(pool) <= 512 * 1024
    with Pool.create(pool_name, policy=Policy.refcount(), capacity=COUNT) as pool:
        empty = size_with_semaphores(pool)

        for start in range(0, COUNT, 4096):
            pool.intern_many(values[start : start + 4096])

        ledgers = 2 * COUNT * WORD_SIZE * 1.1  # of uses and of holds; stripes are not evenly full
        beyond = size_with_semaphores(pool) - empty - ledgers - sum(map(len, values))
        assert 0 < beyond <= (64 + STAMP) * COUNT


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_uses_and_holds_cost_a_word_for_each_topic_that_a_process_has_touched(pool_name: str, policy: Policy) -> None:
    values = topics(4096)
    a_word_each = len(values) * WORD_SIZE
    with Pool.create(pool_name, policy=policy, capacity=len(values)) as pool:
        pool.intern_many(values)

        nothing = growth_by(pool, lambda other: (other.lookup(b"unknown"), len(other), other.stats()))
        looked_up = growth_by(pool, lambda other: other.lookup_many(values))
        held = growth_by(pool, lambda other: other.intern_many(values))

        assert nothing == 0
        assert a_word_each <= looked_up <= a_word_each * 1.5
        assert a_word_each <= held <= a_word_each * 1.5  # the uses have their memory, from the process before
        assert growth_by(pool, lambda other: other.intern_many(values)) == 0


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_first_topics_of_a_large_pool_cost_a_page_for_uses_and_one_for_holds(pool_name: str, policy: Policy) -> None:
    with Pool.create(pool_name, policy=policy, capacity=1 << 20) as pool:
        pool.intern_many(topics(20))

        assert 0 < growth_by(pool, lambda other: other.intern_many(topics(20))) <= 2 * PAGE_SIZE


@pytest.mark.parametrize("policy", [Policy.refcount(), Policy.lru(max_unheld=100)], ids=str)
def test_topics_that_come_and_go_take_no_more_memory_than_the_most_there_were_at_once(pool_name: str, policy: Policy) -> None:
    values = topics(6000)
    with Pool.create(pool_name, policy=policy, capacity=1000) as pool:
        for _ in range(2):  # the peak, and as many tombstones as there will be
            pool.release_many(pool.intern_many(values[:900]))
        for value in values[:3000]:
            pool.release(pool.intern(value))
        peak = pool.stats().memory_size

        for value in values:
            pool.release(pool.intern(value))

        assert pool.stats().memory_size <= peak + 2 * PAGE_SIZE
        assert pool.check() == []
