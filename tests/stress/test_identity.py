"""One value, one ref: in every process that takes part in a run, and however many insert it at the same instant."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest

from shmpool import Pool, PoolNotFoundError, TopicRef
from tests.model import assert_sound
from tests.unit.inside import ENGINES, engine_chosen
from tests.unit.processes import DEADLINE_S, Forked, independent

SLOTS = 8
TOPIC_COUNT = 4000  # four stripes, each of which grows once or twice
OPTIONS: dict[str, Any] = {"capacity": 2 * TOPIC_COUNT, "stripe_count": 4, "max_value_size": 128, "persistent": True}


# One pool per run, for all workers and the processes they start. It is persistent: only the judge removes it.


@dataclass(frozen=True)
class Topics:
    """What the run's topics are called, in every process the same."""

    count: int = TOPIC_COUNT

    def __getitem__(self, number: int) -> bytes:
        if number < 256:
            return bytes((number,))
        return b"/eth2/6a95a1a9/topic_%d/ssz_snappy" % number + bytes(number % 5)


topics = Topics()


@pytest.fixture(scope="session")
def one_pool_per_run(testrun_uid: str, judge_at_the_end: Callable[..., None]) -> str:
    """The pool's name, which the judge hears of before there is a pool: it removes it, whatever becomes of the tests."""
    name = f"test-{testrun_uid[:12]}-stress"
    judge_at_the_end(judge_identity, {"pool": name})
    return name


@pytest.mark.parametrize("slot", range(SLOTS))
def test_workers_their_forks_and_strangers_get_one_ref_for_each_topic(
    one_pool_per_run: str, judge_at_the_end: Callable[..., None], seed: int, slot: int
) -> None:
    judge_at_the_end(judge_identity, {"began": slot})
    rng = random.Random(f"{seed} {slot}")
    with engine_chosen(rng.choice(ENGINES)), Pool.open(one_pool_per_run, cache_size=rng.choice((16, 4096)), **OPTIONS) as pool:
        seeds = [rng.getrandbits(32) for _ in range(3)]

        with (
            Forked(lambda _: fork_in_the_middle(pool, seeds[0])) as parent,
            Forked(lambda _: intern_some(pool, seeds[1])) as child,
        ):
            own = intern_some(pool, seeds[2])
            stranger = independent(STRANGER, one_pool_per_run, str(seed + slot))
            reports = [own, *parent.result(), child.result()]

        assert stranger.returncode == 0, stranger.stderr
        reports.append(read_report(stranger.stdout))
        held = {number: ref for report in reports for number, ref in report}
        assert all(held[number] == ref for report in reports for number, ref in report)
        assert pool.check() == []
    judge_at_the_end(judge_identity, {"ended": slot, "pid": os.getpid(), "refs": sorted(held.items())})


def intern_some(pool: Pool, seed: int) -> list[tuple[int, int]]:
    """Intern most topics in a random order, singly and in batches. Returns their numbers and refs."""
    rng = random.Random(seed)
    numbers = rng.sample(range(TOPIC_COUNT), rng.randrange(TOPIC_COUNT // 2, TOPIC_COUNT))
    report: list[tuple[int, int]] = []
    while numbers:
        part = [numbers.pop() for _ in range(min(rng.choice((1, 1, 1, 50)), len(numbers)))]
        batch = [topics[number] for number in part]
        if len(part) == 1:
            report.append((part[0], pool.intern(batch[0])))
        else:
            report += zip(part, pool.intern_many(batch).tolist(), strict=True)
        for number, ref in rng.sample(report, 1):
            assert pool.lookup(topics[number]) == ref
            assert pool.resolve(TopicRef(ref)) == topics[number]
    pool.flush()  # a forked child ends without closing
    return report


def fork_in_the_middle(pool: Pool, seed: int) -> list[list[tuple[int, int]]]:
    """Fork while others insert; parent and child go on."""
    before = intern_some(pool, seed)
    with Forked(lambda _: intern_some(pool, seed + 1)) as child:
        after = intern_some(pool, seed + 2)
        return [before, after, child.result()]


# A process that nobody has forked: it attaches by name, and exits as any program does.
STRANGER = """
import sys
from shmpool import Pool
from tests.stress.test_identity import intern_some
with Pool.attach(sys.argv[1]) as pool:
    for number, ref in intern_some(pool, int(sys.argv[2])):
        print(number, ref)
"""


def read_report(text: str) -> list[tuple[int, int]]:
    return [(int(number), int(ref)) for number, ref in map(str.split, text.splitlines())]


def judge_identity(values: list[dict[str, Any]]) -> None:
    """In the controller, once all workers have ended: what they hold agrees, and the pool holds that and nothing else."""
    name = next(value["pool"] for value in values if "pool" in value)
    try:
        pool = Pool.attach(name)
    except PoolNotFoundError:
        return  # the tests failed before there was one
    try:
        with pool:
            if sum("began" in value for value in values) == sum("ended" in value for value in values):
                assert_all_agree(pool, [value["refs"] for value in values if "ended" in value])
    finally:
        Pool.unlink(name)


def assert_all_agree(pool: Pool, reports: list[list[tuple[int, int]]]) -> None:
    refs = {number: ref for report in reports for number, ref in report}
    differing = sorted({number for report in reports for number, ref in report if refs[number] != ref})
    assert not differing, f"workers hold different refs of topics {differing[:10]}"
    assert_sound(pool, {topics[number]: ref for number, ref in refs.items()})
    stats = pool.stats()
    assert stats.inserts == len(pool) == len(refs), f"{stats.inserts} inserts, {len(pool)} topics, {len(refs)} interned"


# At the same instant

PROCESSES = 4
ROUNDS = 150
VALUES_A_ROUND = 12


@pytest.mark.parametrize("stripe_count", [1, 4])
def test_processes_interning_one_new_value_at_the_same_instant_make_one_record(pool_name: str, stripe_count: int) -> None:
    with Pool.create(pool_name, stripe_count=stripe_count, capacity=1 << 14) as pool:
        barrier = get_context("fork").Barrier(PROCESSES)
        children = [Forked(lambda connection: intern_together(pool, barrier, connection)) for _ in range(PROCESSES)]
        try:
            results = [child.result() for child in children]
        finally:
            for child in children:
                child.__exit__(None, None, None)

        assert all(result == results[0] for result in results)
        assert_sound(pool, {b"%d" % number: ref for number, ref in enumerate(results[0])})
        stats = pool.stats()
        assert stats.inserts == ROUNDS * VALUES_A_ROUND
        assert {count.uses for count in pool.top(len(pool))} == {PROCESSES + 1}  # and one lookup in assert_sound


def intern_together(pool: Pool, barrier: Barrier, _: Connection) -> list[int]:
    """Each round all wait for each other and then want the same new values in the same order: whoever lags meets the lock."""
    refs: list[int] = []
    for start in range(0, ROUNDS * VALUES_A_ROUND, VALUES_A_ROUND):
        batch = [b"%d" % number for number in range(start, start + VALUES_A_ROUND)]
        barrier.wait(DEADLINE_S)
        if start % (4 * VALUES_A_ROUND) == 0:
            refs += pool.intern_many(batch).tolist()
        else:
            refs += map(pool.intern, batch)
    pool.flush()
    return refs
