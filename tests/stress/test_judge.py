"""The judge of a storm finds what is wrong, whatever it is: planted here one by one, beside a pool that is sound."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from shmpool import Pool
from shmpool.layout import COUNT, WORD_SIZE
from tests.stress.judge import Verdict, judge, stalls_ns
from tests.stress.member import number_of, value_of
from tests.stress.traces import ACK, ALSO, INTERNED, Acks
from tests.unit.inside import store_of

NUMBERS = range(40)


@pytest.fixture
def pool(pool_name: str) -> Iterator[Pool]:
    with Pool.create(pool_name, stripe_count=1) as made:
        yield made


@pytest.fixture
def acks(pool: Pool) -> Acks:
    """Every value acknowledged twice, as if by two processes."""
    acks = np.zeros(2 * len(NUMBERS), ACK)
    acks["number"] = [*NUMBERS, *NUMBERS]
    acks["ref"] = [pool.intern(value_of(number)) for number in acks["number"].tolist()]
    return acks


def verdict_on(pool: Pool, acks: Acks, most_unacknowledged: int = 0) -> Verdict:
    verdict = Verdict()
    judge(pool, acks, verdict, most_unacknowledged)
    assert bool(verdict.notes) == bool(verdict.total)
    return verdict


def test_a_sound_pool_has_no_violations(pool: Pool, acks: Acks) -> None:
    assert verdict_on(pool, acks) == Verdict()


def test_a_value_that_was_acknowledged_and_is_not_there_is_lost(pool: Pool, acks: Acks) -> None:
    acks["number"][[0, len(NUMBERS)]] = 1000

    assert "lost" in verdict_on(pool, acks, 1).kinds()


def test_a_value_with_two_refs_and_a_ref_with_two_values_are_duplicates(pool: Pool, acks: Acks) -> None:
    two_refs, two_values = acks.copy(), acks.copy()
    two_refs["ref"][0] += 8
    two_values["ref"][[0, len(NUMBERS)]] = two_values["ref"][1]

    assert "duplicate" in verdict_on(pool, two_refs).kinds()
    assert "duplicate" in verdict_on(pool, two_values).kinds()


def test_values_that_nobody_has_acknowledged_are_allowed_for_the_killed_and_no_more(pool: Pool, acks: Acks) -> None:
    few = acks[acks["number"] >= 3]

    assert not verdict_on(pool, few, 3).total
    assert verdict_on(pool, few, 2).kinds() == {"corrupt"}


def test_a_value_that_nobody_interns_is_corrupt(pool: Pool, acks: Acks) -> None:
    pool.intern(b"a stranger's")

    assert verdict_on(pool, acks, 1).kinds() == {"corrupt"}


def test_what_check_finds_is_corrupt(pool: Pool, acks: Acks) -> None:
    segment = store_of(pool).segment
    segment.words[segment.constants.geometry.stripes_offset // WORD_SIZE + COUNT] += 1

    assert "corrupt" in verdict_on(pool, acks).kinds()


def test_a_damaged_value_is_corrupt_or_lost(pool: Pool, acks: Acks) -> None:
    segment = store_of(pool).segment
    place = segment.constants.geometry.arena_offset + int(acks["ref"].max()) - store_of(pool).stripes.origin + 16
    segment.data[place] ^= 1

    assert verdict_on(pool, acks).kinds() >= {"corrupt"}


@pytest.mark.parametrize("number", [0, 1, 6, 7, 48, 0x31323334, 0x30303030, (1 << 32) - 1])
def test_numbers_of_values_are_read_back(number: int) -> None:
    assert number_of(value_of(number)) == number
    assert number_of(value_of(number) + b"x") is None


def test_a_stall_is_an_operations_time_less_that_in_which_anybody_was_stopped() -> None:
    acks = np.zeros(5, ACK)
    acks["kind"] = [INTERNED, INTERNED, INTERNED, ALSO, INTERNED]
    acks["began_ns"] = [100, 150, 100, 0, 900]
    acks["ended_ns"] = [110, 450, 1000, 9999, 950]

    stalls = stalls_ns(acks, [(200, 300), (400, 500), (940, 960)])

    assert stalls.tolist() == [10, 300 - 100 - 50, 900 - 100 - 100 - 20, 50 - 10]
    assert stalls_ns(acks, []).tolist() == [10, 300, 900, 50]
