"""Damage where topics go: lists of free spaces that lead astray, sums that are wrong, live bits and policies that changed.

Whatever is wrong, an operation ends with the right answer or an error of ours, no topic's bytes are another's, and `check` tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from shmpool import Policy, Pool, PoolCorruptError, PoolError, PoolFullError
from shmpool.arena import read_record, size_class, space_size
from shmpool.header import encode
from shmpool.layout import (
    EPOCH_WORD,
    FREE,
    INTENT,
    LOW_40,
    MAX_GENERATION,
    META_GENERATION_SHIFT,
    META_LIVE,
    META_ORDINAL_MASK,
    META_ORDINAL_SHIFT,
    OCCUPIED,
    TOMBSTONES,
    UNHELD,
    WORD_SIZE,
)
from shmpool.reuse import ReusingStripes
from shmpool.segment import Segment
from tests.unit.inside import ENGINES, engine_chosen, store_of
from tests.unit.processes import in_child

HELD = [b"held %d" % number for number in range(6)]  # all of one size class, with those below
GONE = [b"gone %d" % number for number in range(4)]
NEW = [b"newt %d" % number for number in range(12)]


@pytest.fixture(params=ENGINES)
def pool(request: pytest.FixtureRequest, pool_name: str) -> Iterator[Pool]:
    """With topics held and free spaces; its bytes are put back before it goes."""
    with engine_chosen(request.param), Pool.create(pool_name, policy=Policy.refcount(), stripe_count=1, capacity=100) as made:
        made.intern_many(HELD)
        made.release_many(made.intern_many(GONE))
        segment, geometry = store_of(made).segment, made.constants.geometry
        parts = [(0, geometry.tables_offset), (geometry.arena_offset, geometry.arena_offset + geometry.chunk_size)]
        before = [(start, segment.data[start:end]) for start, end in parts]
        yield made
        for start, data in before:
            segment.data[start : start + len(data)] = data
        tables = store_of(made).stripes
        tables.refresh()


def inside(pool: Pool) -> tuple[ReusingStripes, Segment]:
    stripes = store_of(pool).stripes
    assert isinstance(stripes, ReusingStripes)
    return stripes, stripes.segment


def head_of(stripes: ReusingStripes) -> int:
    return stripes.shelf(0) + FREE + size_class(space_size(len(HELD[0])))


def word_of(pool: Pool, offset: int) -> int:
    return (pool.constants.geometry.arena_offset + offset) // WORD_SIZE


def offset_of(pool: Pool, value: bytes) -> int:
    return int(pool.lookup(value) or 0) - store_of(pool).stripes.origin & LOW_40


def assert_held_is_untouched(pool: Pool) -> None:
    with Pool.attach(pool.name) as cold:
        for value in HELD:
            ref = cold.lookup(value)
            assert ref is not None
            assert cold.resolve(ref) == value


def intern_all(pool: Pool) -> list[PoolError]:
    """Each gives a ref that resolves, or an error of ours."""
    errors: list[PoolError] = []
    for value in NEW:
        try:
            assert pool.resolve(pool.intern(value)) == value
        except PoolError as error:
            errors.append(error)
    return errors


@pytest.mark.parametrize("length", [1, 2, 4])
def test_list_of_free_spaces_that_is_a_circle_is_reported_and_ends_in_an_error(pool: Pool, length: int) -> None:
    stripes, segment = inside(pool)
    spaces = [record.offset for record in stripes.free_spaces(head_of(stripes))]
    segment.words[word_of(pool, spaces[length - 1])] = spaces[0] | OCCUPIED

    findings = pool.check()
    errors = intern_all(pool)

    assert any("leads there twice" in finding.what for finding in findings)
    assert len(errors) == len(NEW) - length
    assert all(isinstance(error, PoolCorruptError) and "free spaces leads to" in str(error) for error in errors)
    assert_held_is_untouched(pool)


def test_search_for_an_ordinal_ends_in_a_circle_of_spaces_without_one(pool_name: str) -> None:
    with Pool.create(pool_name, policy=Policy.refcount(), stripe_count=1, capacity=2, reserve=0) as pool:
        pool.release_many(pool.intern_many(GONE[:2]))
        stripes, segment = inside(pool)
        for record in list(stripes.free_spaces(head_of(stripes))):
            segment.words[word_of(pool, record.offset)] = record.offset | OCCUPIED
            segment.words[word_of(pool, record.offset) + 1] |= META_ORDINAL_MASK << META_ORDINAL_SHIFT

        for value in (b"gone 9", b"a long one".ljust(200)):
            with pytest.raises(PoolCorruptError, match="no ordinal"):
                pool.intern(value)
        assert pool.check()


@pytest.mark.parametrize("engine", ENGINES)
def test_list_that_leads_into_a_topic_is_an_error_and_the_topic_stays(pool_name: str, engine: str) -> None:
    with engine_chosen(engine), Pool.create(pool_name, policy=Policy.refcount(), stripe_count=2, capacity=1000) as pool:
        pool.intern_many([*HELD, *NEW])
        stripes, segment = inside(pool)
        limit = stripes.limit()
        places = {offset_of(pool, value) for value in (*HELD, *NEW)} | {limit - 8, limit, limit + 8, (1 << 40) - 8}
        more = (b"more %d" % number for number in range(1000))

        for place in places:
            for stripe in range(2):
                segment.words[head_of(stripes) - stripes.shelf(0) + stripes.shelf(stripe)] = place | OCCUPIED
            for value in (next(more), next(more), next(more)):
                with pytest.raises(PoolCorruptError, match="free spaces leads to"):
                    pool.intern(value)

        assert_held_is_untouched(pool)
        for stripe in range(2):
            segment.words[head_of(stripes) - stripes.shelf(0) + stripes.shelf(stripe)] = 0
        assert pool.check() == []


def test_space_of_the_last_generation_on_a_list_is_not_used_again(pool: Pool) -> None:
    stripes, segment = inside(pool)
    first = segment.words[head_of(stripes)] & LOW_40 & ~7
    segment.words[word_of(pool, first) + 1] |= MAX_GENERATION << META_GENERATION_SHIFT

    errors = intern_all(pool)

    assert len(errors) == len(NEW)
    assert any("another class's list" in finding.what for finding in pool.check())
    assert read_record(segment, first).generation == MAX_GENERATION
    assert_held_is_untouched(pool)


def test_topic_whose_live_bit_is_lost_is_reported_and_not_freed_by_who_takes_a_dead_row(pool_name: str) -> None:
    with Pool.create(pool_name, policy=Policy.lru(max_unheld=100), stripe_count=1) as pool:
        def hold_and_die() -> None:
            pool.intern_many(HELD)

        in_child(hold_and_die)
        _, segment = inside(pool)
        word = word_of(pool, offset_of(pool, HELD[0])) + 1
        segment.words[word] &= ~META_LIVE

        with Pool.attach(pool_name) as other:
            assert any("where no record is" in finding.what for finding in other.check())

            segment.words[word] |= META_LIVE
            assert other.lookup(HELD[0]) is not None


@pytest.mark.parametrize("field", [UNHELD, TOMBSTONES])
@pytest.mark.parametrize("count", [0, 1, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_sum_is_reported_and_loses_nothing_that_is_held(pool_name: str, field: int, count: int, engine: str) -> None:
    policy = Policy.lru(max_unheld=4)
    with engine_chosen(engine), Pool.create(pool_name, policy=policy, stripe_count=1, capacity=100) as pool:
        pool.intern_many(HELD)
        pool.release_many(pool.intern_many(GONE))
        pool.release_many(pool.intern_many(NEW))  # of which four stay
        stripes, segment = inside(pool)
        word = stripes.shelf(0) + field
        segment.words[word] = count if count != segment.words[word] else count + 1

        assert any("and has" in finding.what for finding in pool.check())
        with suppress(PoolError, PoolFullError):
            pool.release(pool.intern(NEW[-1]))
            pool.release_many(pool.intern_many(GONE))

        assert_held_is_untouched(pool)


def test_header_of_another_policy_with_its_checksum_right_is_refused_and_no_topic_goes(pool_name: str) -> None:
    with Pool.create(pool_name, policy=Policy.lru(max_unheld=100), stripe_count=1, persistent=True) as pool:
        pool.release_many(pool.intern_many(HELD))
        data, size = store_of(pool).segment.data, EPOCH_WORD * WORD_SIZE
        honest = data[:size]

        for policy in (Policy.lru(max_unheld=1), Policy.refcount(), Policy.ttl(seconds=1e-9)):
            data[:size] = encode(replace(pool.constants, policy=policy))[:size]
            with pytest.raises(PoolCorruptError, match="geometry or policy"):
                Pool.attach(pool_name)

        data[:size] = honest
        with Pool.attach(pool_name) as other:
            assert set(HELD) == {value for _, value in other}


@pytest.mark.parametrize("operation", [3, 4, 5, 6, 255])
def test_intent_that_makes_no_sense_is_an_error_or_changes_nothing(pool: Pool, operation: int) -> None:
    stripes, segment = inside(pool)
    row = pool.constants.geometry.stripes_offset // WORD_SIZE
    middle = offset_of(pool, HELD[2]) + 8

    for place in (middle, stripes.limit(), stripes.limit() - 8, (1 << 56) - 8, 3):
        segment.words[row + INTENT] = operation << 56 | place
        with suppress(PoolCorruptError):
            pool.intern(NEW[0])
        segment.words[row + INTENT] = 0

    assert_held_is_untouched(pool)


def test_wild_next_of_a_free_space_harms_no_topic(pool: Pool) -> None:
    stripes, segment = inside(pool)
    first = segment.words[head_of(stripes)] & LOW_40 & ~7
    for wild in ((1 << 64) - 1, stripes.limit() | OCCUPIED, offset_of(pool, HELD[1]) | OCCUPIED):
        segment.words[word_of(pool, first)] = wild
        assert pool.check()

    errors = intern_all(pool)

    assert len(errors) == len(NEW) - 1
    assert_held_is_untouched(pool)
