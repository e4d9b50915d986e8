"""Claims about the compiled holds: they do to the bytes what plain Python does, and leave alone what is not plain sailing."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from shmpool import Policy, Pool, PoolError
from shmpool.held import Hot
from shmpool.holding import HoldingStore
from shmpool.layout import FREE, PROCESS_WORDS, SHELF_WORDS, STRIPE_WORDS, TOMBSTONE, WORD_SIZE
from shmpool.reuse import ReusingStripes
from tests.unit.inside import store_of
from tests.unit.lives import Shape, moments

Names = Callable[[], str]
SMALL = (0, 1, 7, 8, 9, 40)
LARGE = tuple(range(0, 65_536, 977))
SHAPES = [
    Shape(Policy.refcount(), capacity=20),
    Shape(Policy.refcount(), capacity=400, sizes=SMALL, value_count=700, insert_budget=900),
    Shape(Policy.lru(max_unheld=1), capacity=50, stripe_count=8, reserve=10, value_count=120),
    Shape(Policy.lru(max_unheld=1 << 20), capacity=400, value_count=500, sizes=SMALL),
    Shape(Policy.ttl(seconds=1e-6), capacity=30, stripe_count=2, insert_budget=150),
    Shape(Policy.ttl(seconds=1 << 32), capacity=1, value_count=4),
    Shape(Policy.lru(max_unheld=5), capacity=12, max_value_size=65_535, sizes=LARGE),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.policy}-{shape.capacity}")
def test_both_engines_and_a_mixture_live_the_same_life(new_pool_name: Names, shape: Shape, seed: int) -> None:
    count = 100 if shape.sizes is LARGE else 300
    plain = moments(new_pool_name(), shape, seed, ("python",), count)

    for engines in (("compiled",), ("compiled", "python")):
        compiled = moments(new_pool_name(), shape, seed, engines, count)
        for place, (expected, found) in enumerate(zip(plain, compiled, strict=True)):
            assert found == expected, f"step {place} of seed {seed} with {engines}"
    assert all(not moment.outcome[3] for moment in plain if moment.what == "_flush" and isinstance(moment.outcome, tuple))


# ---- damage


@pytest.fixture
def pool(pool_name: str) -> Iterator[Pool]:
    """One with topics that are held, that nobody holds, free spaces and tombstones."""
    options: dict[str, Any] = {"stripe_count": 1, "capacity": 350, "process_count": 4, "cache_size": 1, "clock": lambda: 1000}
    with Pool.create(pool_name, policy=Policy.lru(max_unheld=9), **options) as made:
        refs = made.intern_many([b"topic %d" % number for number in range(300)])
        made.release_many(refs[::3])
        yield made


def stripes_of(pool: Pool) -> ReusingStripes:
    stripes = store_of(pool).stripes
    assert isinstance(stripes, ReusingStripes)
    return stripes


def words_that_matter(stripes: ReusingStripes) -> list[int]:
    """Rows, shelves, process rows, chunks, slots and the first words of records."""
    geometry, words, table = stripes.geometry, stripes.segment.words, stripes.table(0)
    row, shelf = geometry.stripes_offset // WORD_SIZE, stripes.shelf(0)
    processes, arena = geometry.totals_offset // WORD_SIZE, geometry.arena_offset // WORD_SIZE
    slots = [word for word in range(table.word, table.word + (1 << table.bits)) if words[word]]
    records = [arena + record.offset // WORD_SIZE + i for record in stripes.records() for i in range(2)]
    free = [arena + record.offset // WORD_SIZE + i for record in stripes._all_free_spaces(0) for i in range(2)]  # noqa: SLF001
    few = [*range(row, row + STRIPE_WORDS), *range(shelf, shelf + 4), *range(shelf + FREE, shelf + SHELF_WORDS)]
    few += [*range(processes, processes + 5 * PROCESS_WORDS), geometry.chunks_offset // WORD_SIZE]
    return few * 3 + slots + records + free * 3


def test_what_is_declined_was_not_begun_whatever_the_bytes_say(pool: Pool, rng: random.Random) -> None:
    """And nothing that had no memory is read: to read it would take some."""
    store, stripes = store_of(pool), stripes_of(pool)
    turnover: Any = stripes._turnover  # noqa: SLF001
    assert isinstance(store, HoldingStore)
    assert any(stripes.segment.words[word] == TOMBSTONE for word in words_that_matter(stripes))
    places, fd = words_that_matter(stripes), stripes.segment.fd
    size, ledgers = stripes.geometry.arena_offset + stripes.limit(), store.attachment.ledgers
    honest, blocks = np.frombuffer(os.pread(fd, size, 0), np.uint64), os.fstat(fd).st_blocks
    offsets = [record.offset for record in stripes.records()]
    calls: list[Callable[[], object]] = [
        lambda: turnover.find(b"topic %d" % rng.randrange(400), 500),
        lambda: turnover.hold(b"topic %d" % rng.randrange(400), *ledgers, 0, 1, []),
        lambda: turnover.drop(0, rng.choice(offsets), ledgers[0] + rng.randrange(300), 2000, rng.randrange(2)),
        lambda: turnover.evict(0, rng.choice(offsets), 1000),
    ]
    done = 0
    for _ in range(6000):
        word = rng.choice(places)
        stripes.segment.words[word] = rng.choice(
            (stripes.segment.words[word] ^ 1 << rng.randrange(64), rng.getrandbits(64), rng.getrandbits(40), 0, (1 << 64) - 1, 1)
        )
        damaged = os.pread(fd, size, 0)

        answer = rng.choice(calls)()

        after = os.pread(fd, size, 0)
        if answer in (None, False, -1):
            assert after == damaged or answer is False, f"word {word}"  # False of `drop`: others hold it
        done += after != damaged
        for changed in np.flatnonzero(np.frombuffer(after, np.uint64) != honest).tolist():
            stripes.segment.words[changed] = int(honest[changed])
    assert done > 300
    assert os.fstat(fd).st_blocks == blocks
    assert pool.check() == []


def test_who_has_another_stripes_lock_frees_nothing(new_pool_name: Names) -> None:
    with Pool.create(new_pool_name(), policy=Policy.lru(max_unheld=9), stripe_count=2, clock=lambda: 1000) as pool:
        store, stripes = store_of(pool), stripes_of(pool)
        turnover: Any = stripes._turnover  # noqa: SLF001
        assert isinstance(store, HoldingStore)
        ref = pool.intern(b"topic")
        stripe, other = (1, 0) if stripes.engine and stripes.engine.stripe(b"topic") else (0, 1)

        assert turnover.drop(other, ref - stripes.origin, store.held.by_ref[ref][1], 1000, 1) is None

        pool.release(ref)
        assert turnover.evict(other, ref - stripes.origin, 1000) is False
        assert turnover.evict(stripe, ref - stripes.origin, 1000) is True
        assert pool.check() == []


def test_what_nobody_has_held_since_a_time_is_not_found_from_that_time_on(pool: Pool) -> None:
    turnover: Any = stripes_of(pool)._turnover  # noqa: SLF001
    ref = pool.lookup(b"topic 297")  # one of the last nine that were given back
    assert ref
    handle, ledgers = ref - stripes_of(pool).origin, store_of(pool).attachment.ledgers

    assert [turnover.find(b"topic 297", oldest) for oldest in (0, 999, 1000, 1001)] == [handle, handle, -1, -1]
    assert turnover.hold(b"topic 297", *ledgers, 1000, 1, []) is None
    assert turnover.hold(b"topic 297", *ledgers, 999, 1, [])[0] == handle
    assert turnover.find(b"topic 297", 1001) == handle


# ---- what it is called with


def test_the_largest_pool_that_can_be_mapped_is_one_for_this_engine_too(new_pool_name: Names) -> None:
    with Pool.create(new_pool_name(), policy=Policy.refcount(), capacity=1 << 30, process_count=1024) as pool:
        ref = pool.intern(b"topic")
        pool.release(ref)

        assert stripes_of(pool)._turnover  # noqa: SLF001
        assert pool.check() == []


@pytest.mark.parametrize(
    "ledgers", [((1 << 64) - 8, 16, 0, 16), (0, 1 << 63, 0, 16), (0, 16, (1 << 64) - 8, 16), (0, 16, 1 << 40, 1)]
)
def test_ledgers_that_are_not_in_the_segment_are_not_written_to(pool: Pool, ledgers: tuple[int, int, int, int]) -> None:
    turnover: Any = stripes_of(pool)._turnover  # noqa: SLF001

    assert turnover.hold(b"topic 1", *ledgers, 0, 1, []) is None


def test_arguments_of_another_type_or_number_are_refused(pool: Pool) -> None:
    turnover: Any = stripes_of(pool)._turnover  # noqa: SLF001
    for wrong in ("text", bytearray(b"x"), None, 7):
        with pytest.raises(TypeError):
            turnover.find(wrong, 0)
        with pytest.raises(TypeError):
            turnover.hold(wrong, 0, 0, 0, 0, 0, 1, [])
    for call in (turnover.find, turnover.hold, turnover.drop, turnover.evict):
        with pytest.raises(TypeError):
            call(b"x")
    for number in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            turnover.evict(0, number, 1)
        with pytest.raises(OverflowError):
            turnover.drop(0, 0, number, 1, 1)
    assert turnover.drop(0, 0, 0, 0, 1) is None  # a time of 0 would say that somebody holds it


def test_the_mark_of_hot_counts_is_a_byte() -> None:
    from shmpool import _engine  # here, as it is not there in every installation

    with pytest.raises(ValueError, match="the mark is a byte"):
        _engine.Hot(memoryview(bytearray(8)).cast("Q"), {}, {}, b"")  # type: ignore[arg-type]


# ---- references


def test_a_hundred_thousand_calls_of_each_kind_keep_nothing(pool: Pool) -> None:
    store, stripes = store_of(pool), stripes_of(pool)
    turnover: Any = stripes._turnover  # noqa: SLF001
    assert isinstance(store, HoldingStore)
    value, missing, ledgers = b"topic 1", b"topic 3", store.attachment.ledgers
    ref = pool.intern(value)
    entry = store.held.by_ref[ref]
    hot: Hot = store.held.hot()
    watched = (value, missing, ref, entry, None, True, False, store.held.by_ref, stripes.segment.words)

    def rounds(count: int) -> None:
        for _ in range(count):
            hot.take(value), hot.use(value), hot.give(ref), hot.take(missing), hot.give(ref + 8)  # type: ignore[arg-type]
            hot.take([]), hot.give([]), hot.use({})  # type: ignore[arg-type]
            turnover.find(value, 0), turnover.find(missing, 0), turnover.hold(value, 0, 0, 0, 0, 0, 1, [])
            turnover.drop(0, 8, 0, 1, 1), turnover.evict(0, 8, 1)
            with suppress(OverflowError):
                turnover.drop(0, -1, 0, 1, 1)
            turnover.hold(value, *ledgers, 0, 1, [])

    rounds(100)
    gc.collect()
    before, blocks = [sys.getrefcount(each) for each in watched], sys.getallocatedblocks()
    rounds(100_000)
    gc.collect()

    assert [sys.getrefcount(each) for each in watched] == pytest.approx(before, abs=50)
    assert abs(sys.getallocatedblocks() - blocks) < 1000


def test_no_attachment_of_a_closed_pool_is_kept(new_pool_name: Names) -> None:
    with Pool.create(new_pool_name(), policy=Policy.refcount(), stripe_count=1) as pool:
        pool.release(pool.intern(b"topic"))
        pool.intern(b"topic")
        with suppress(PoolError):
            pool.release(pool.lookup(b"none") or 0)  # type: ignore[arg-type]
        segment = store_of(pool).segment

    assert segment.data.closed
