"""The judge of a storm where topics go finds what is wrong, whatever it is: planted here one by one, beside what is right."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from shmpool import Policy, Pool, TopicRef
from tests.stress.judge import Verdict
from tests.stress.judge_holds import judge_deserted, judge_living
from tests.stress.member import value_of
from tests.stress.traces import ACK, HELD, INTERNED, KEPT, Acks
from tests.unit.inside import store_of

NUMBERS = range(12)
SPAN = len(NUMBERS)


@pytest.fixture
def pool(pool_name: str) -> Iterator[Pool]:
    with Pool.create(pool_name, policy=Policy.refcount(), stripe_count=1) as made:
        yield made


@pytest.fixture
def acks(pool: Pool) -> Acks:
    """Of every value that it was interned, that it was held from then on, and that it is held twice."""
    acks = np.zeros(3 * SPAN, ACK)
    acks["pid"] = os.getpid()
    acks["number"] = [*NUMBERS] * 3
    acks["kind"] = np.repeat([INTERNED, HELD, KEPT], SPAN)
    acks["ref"] = [pool.intern(value_of(number)) for _ in range(2) for number in NUMBERS] + [0] * SPAN
    acks["ref"][2 * SPAN :] = acks["ref"][:SPAN]
    acks["began_ns"], acks["ended_ns"] = 100, 200
    acks["ended_ns"][2 * SPAN :] = 2  # holds
    return acks


def verdict_on(pool: Pool, acks: Acks) -> Verdict:
    verdict = Verdict()
    judge_living(pool, acks, verdict, {os.getpid()})
    assert bool(verdict.notes) == bool(verdict.total)
    return verdict


def test_who_holds_what_he_says_is_right(pool: Pool, acks: Acks) -> None:
    assert verdict_on(pool, acks) == Verdict()


def test_what_is_held_and_not_there_is_lost(pool: Pool, acks: Acks) -> None:
    for _ in range(2):
        pool.release(TopicRef(int(acks["ref"][3])))

    assert "lost" in verdict_on(pool, acks).kinds()


def test_what_is_held_by_another_ref_is_lost(pool: Pool, acks: Acks) -> None:
    acks["ref"][[3, SPAN + 3, 2 * SPAN + 3]] += 1 << 40

    assert "lost" in verdict_on(pool, acks).kinds()


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_held_more_or_less_often_than_said_is_lost(pool: Pool, acks: Acks, count: int) -> None:
    acks["ended_ns"][2 * SPAN] = count

    assert verdict_on(pool, acks).kinds() == {"lost", "corrupt"}


def test_holds_that_nobody_living_has_are_corrupt_and_so_are_their_topics(pool: Pool, acks: Acks) -> None:
    pool.intern(value_of(1000))

    verdict = verdict_on(pool, acks)

    assert verdict.kinds() == {"corrupt"}
    assert any("25 holds, and the living have 24" in note for note in verdict.notes)
    assert any("nobody holds 1 topics" in note for note in verdict.notes)


def test_a_ref_of_two_values_is_a_duplicate_however_long_ago(pool: Pool, acks: Acks) -> None:
    acks["ref"][0] = acks["ref"][1]

    assert "duplicate" in verdict_on(pool, acks).kinds()


@pytest.mark.parametrize(("began", "is_wrong"), [(150, True), (199, True), (200, False), (300, False)])
def test_two_refs_of_one_value_are_duplicates_if_both_were_held_at_one_instant(
    pool: Pool, acks: Acks, began: int, is_wrong: bool
) -> None:
    another = acks[SPAN : SPAN + 1].copy()
    another["pid"], another["ref"], another["began_ns"], another["ended_ns"] = 1, 1 << 50, began, 400

    assert ("duplicate" in verdict_on(pool, np.concatenate([acks, another])).kinds()) == is_wrong


def test_what_a_damaged_pool_raises_is_corrupt(pool: Pool, acks: Acks) -> None:
    segment = store_of(pool).segment
    start = segment.constants.geometry.stripes_offset // 8
    segment.words[start] ^= 1 << 60

    assert "corrupt" in verdict_on(pool, acks).kinds()

    segment.words[start] ^= 1 << 60


def test_what_is_left_when_everybody_is_gone_is_corrupt(pool: Pool) -> None:
    sound, left = Verdict(), Verdict()
    judge_deserted(pool, sound)
    pool.intern(value_of(1))

    judge_deserted(pool, left)

    assert sound == Verdict()
    assert left.kinds() == {"corrupt"}
