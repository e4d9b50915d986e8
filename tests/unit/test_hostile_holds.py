"""Claims about holding where bytes are damaged, or where what is asked for makes no sense: an error, and nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from shmpool import Policy, Pool, PoolCorruptError
from shmpool.holding import HoldingStore
from shmpool.layout import (
    HOLDS,
    MAX_GENERATION,
    META_GENERATION_SHIFT,
    META_ORDINAL_MASK,
    META_ORDINAL_SHIFT,
    TOMBSTONES,
    UNHELD,
    WORD_SIZE,
    seal,
)
from shmpool.ledger import row_word
from shmpool.reuse import ReusingStripes
from tests.unit.inside import store_of

VALUES = [b"topic %d" % number for number in range(5)]
HOLDING = [Policy.refcount(), Policy.lru(max_unheld=2), Policy.ttl(seconds=1)]


# ---- damage


@pytest.fixture
def churned(pool_name: str) -> Iterator[Pool]:
    """A pool of one stripe that has topics that are held and free spaces of one class."""
    with Pool.create(pool_name, policy=Policy.refcount(), stripe_count=1, capacity=100, process_count=4) as pool:
        refs = pool.intern_many(VALUES)
        pool.release_many(refs[2:])
        yield pool


def free_meta_words(pool: Pool) -> list[int]:
    stripes = store_of(pool).stripes
    assert isinstance(stripes, ReusingStripes)
    spaces = stripes._all_free_spaces(0)  # noqa: SLF001
    return [(stripes.geometry.arena_offset + record.offset) // WORD_SIZE + 1 for record in spaces]


@pytest.mark.parametrize("ordinal", [100, 1 << 20, META_ORDINAL_MASK - 1])
def test_a_free_space_whose_ordinal_is_damaged_is_refused_and_takes_no_memory(churned: Pool, ordinal: int) -> None:
    segment = store_of(churned).segment
    for word in free_meta_words(churned):
        segment.words[word] = ordinal << META_ORDINAL_SHIFT | segment.words[word] & ((1 << META_ORDINAL_SHIFT) - 1)
    size, memory = os.fstat(segment.fd).st_size, segment.memory_size

    with pytest.raises(PoolCorruptError, match="ordinal"):
        churned.intern(b"topic 9")

    assert (os.fstat(segment.fd).st_size, segment.memory_size) == (size, memory)
    assert set(VALUES[:2]) <= set(dict(churned).values())


def test_a_free_space_of_the_last_generation_is_not_used_as_one_of_the_first(churned: Pool) -> None:
    words = store_of(churned).segment.words
    for word in free_meta_words(churned):
        words[word] |= MAX_GENERATION << META_GENERATION_SHIFT

    with pytest.raises(PoolCorruptError, match="free spaces"):
        churned.intern(b"topic 9")


@pytest.mark.parametrize("damage", [0, 1, (1 << 64) - 1])
@pytest.mark.parametrize("field", [TOMBSTONES, UNHELD])
def test_sums_that_are_damaged_stop_no_operation_half_way(pool_name: str, field: int, damage: int) -> None:
    with Pool.create(pool_name, policy=Policy.lru(max_unheld=90), stripe_count=1, capacity=100) as pool:
        refs = pool.intern_many(VALUES)
        pool.release_many(refs[1:])
        stripes = store_of(pool).stripes
        assert isinstance(stripes, ReusingStripes)
        stripes.segment.words[stripes.shelf(0) + field] = damage

        again = pool.intern_many(VALUES)
        unheld = stripes.segment.words[stripes.shelf(0) + UNHELD]
        pool.release_many(again)

        assert unheld == (max(damage - 4, 0) if field == UNHELD else 0)
        assert {finding.what.split()[0] for finding in pool.check()} <= {"counts"}
        assert [holder.count for holder in pool.holders(refs[0])] == [1]
        assert pool.stats().holds == 1


def test_holds_damaged_beyond_what_can_be_counted_are_refused(churned: Pool) -> None:
    store = store_of(churned)
    assert isinstance(store, HoldingStore)
    ref = churned.intern(VALUES[0])
    _, holds, uses, _ = store.held.by_ref[ref]
    store.segment.words[holds] = (1 << 64) - 1

    with pytest.raises(PoolCorruptError, match="more than there can be"):
        churned.intern(VALUES[0])

    store.segment.words[holds] = 2
    store.segment.words[uses] = (1 << 64) - 1
    assert churned.intern(VALUES[0]) == ref
    assert [holder.count for holder in churned.holders(ref)] == [3]


def test_a_ledger_of_holds_that_ends_between_two_words_is_read_to_the_last_whole_one(churned: Pool) -> None:
    stripes, row = store_of(churned).stripes, row_word(store_of(churned).segment, 0)
    honest = stripes.segment.words[row + HOLDS]
    stripes.segment.words[row + HOLDS] = seal(stripes.epoch, 12)

    assert churned.stats().holds == 1
    assert churned.reap() == 0
    for finding in churned.check():
        assert "hold" in finding.what

    stripes.segment.words[row + HOLDS] = honest
    assert churned.check() == []


# ---- whatever is asked for


class Odd(bytes):
    """Bytes whose comparison raises what a signal handler would."""

    error: BaseException = KeyboardInterrupt()

    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        raise self.error


def test_what_a_signal_handler_raises_in_a_keys_own_comparison_is_not_lost(pool_name: str) -> None:
    with Pool.create(pool_name, policy=Policy.refcount()) as pool:
        ref = pool.intern(VALUES[0])

        for call in (pool.intern, pool.lookup):
            with pytest.raises(KeyboardInterrupt):
                call(Odd(VALUES[0]))

        assert [holder.count for holder in pool.holders(ref)] == [1]


def test_what_is_no_ref_is_a_type_error_and_gives_nothing_back(churned: Pool) -> None:
    odd: list[object] = ["1", b"1", None, [], memoryview(bytearray(8)), 1.5]
    for wrong in odd:
        for call in (churned.release, churned.resolve, churned.holders):
            with pytest.raises(TypeError):
                call(wrong)  # type: ignore[arg-type]
    assert churned.stats().holds == 2


@pytest.mark.parametrize("policy", HOLDING, ids=str)
def test_a_clock_below_zero_is_taken_as_its_first_tick(pool_name: str, policy: Policy) -> None:
    with Pool.create(pool_name, policy=policy, clock=lambda: -5) as pool:
        pool.release(pool.intern(VALUES[0]))

        assert pool.check() == []
        pool.release(pool.intern(VALUES[0]))
