"""Damaged pools are refused, reported or harmless; and whoever stops looking closely is caught by the same mutants."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest

from shmpool import PoolCorruptError, arena, inspection, store, stripe
from shmpool.layout import META_SIZE_MASK, OFFSET_MASK, RECORD_SIZE, TAG_SHIFT
from shmpool.segment import Segment
from shmpool.store import Store
from tests.stress import watched
from tests.stress.image import SMALL_KINDS
from tests.stress.mutants import VIOLATIONS
from tests.stress.watched import Mutants, Result

PARTS = 3
RANDOM_COUNT = 1200
FIELDS_STEP = 6  # of the extremes of every field this share is tried, another for each seed; tools/mutants.py tries them all
CONTROL_COUNT = 300


@pytest.mark.parametrize("part", range(PARTS))
def test_no_mutant_crashes_hangs_leaks_or_hands_out_wrong_bytes(new_pool_name: Callable[[], str], seed: int, part: int) -> None:
    mutants = Mutants(new_pool_name(), seed, SMALL_KINDS)
    of_fields = range(seed % FIELDS_STEP, len(mutants.systematic), FIELDS_STEP)
    of_all = range(len(mutants.systematic), len(mutants.systematic) + RANDOM_COUNT)
    numbers = [*of_fields, *of_all][part::PARTS]

    results = list(mutants.try_all(numbers, processes=1))

    violations = [result for result in results if result.outcome in VIOLATIONS]
    assert not violations, "\n".join(f"mutant {one.number}: {one.complaints}" for one in violations[:5])
    assert len(results) == len({result.number for result in results}) == len(numbers)
    assert {"refused", "reported", "right"} <= {result.outcome for result in results}


# ---- controls: each must be caught


def first_violations(name: str, seed: int) -> Iterator[Result]:
    """Violations among random mutants, which are tried only until the first is asked for."""
    mutants = Mutants(name, seed, SMALL_KINDS)
    start = len(mutants.systematic)
    for result in mutants.try_all(range(start, start + CONTROL_COUNT), processes=2):
        if result.outcome in VIOLATIONS:
            yield result


def resolve_without_looking(self: Store, ref: int) -> bytes:
    return arena.read_value(self.segment, arena.read_record(self.segment, ref - self.stripes.origin))


def test_control_that_resolves_without_looking_is_caught(
    new_pool_name: Callable[[], str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "resolve", resolve_without_looking)

    assert next(first_violations(new_pool_name(), seed)).outcome in {"wrong bytes", "foreign error"}


def test_control_that_does_not_report_is_caught(
    new_pool_name: Callable[[], str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "check", lambda _: [])

    assert next(first_violations(new_pool_name(), seed)).outcome == "unreported loss"


def find_without_bounds(
    words: memoryview, data: object, table_word: int, slot_mask: int, arena_offset: int, _: int, hash_: int, value: bytes
) -> int:
    """As compiled code would that trusts a slot: what the slot points at is read, wherever that is."""
    base = ctypes.addressof(ctypes.c_char.from_buffer(words))
    index = hash_ & slot_mask
    for _ in range(slot_mask + 1):
        slot = words[table_word + index]
        if not slot:
            return ~index
        start = base + arena_offset + (slot & OFFSET_MASK)
        size = int.from_bytes(ctypes.string_at(start + 8, 8), "little") & META_SIZE_MASK
        if ctypes.string_at(start + RECORD_SIZE, size) == value and slot >> TAG_SHIFT == hash_ >> TAG_SHIFT:
            return slot & OFFSET_MASK
        index = index + 1 & slot_mask
    return ~slot_mask - 1


def test_control_that_follows_any_slot_crashes_and_the_next_mutant_is_tried(
    new_pool_name: Callable[[], str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripe, "make_engine", lambda *_: None)
    monkeypatch.setattr(stripe, "find", find_without_bounds)

    crashes = (result for result in first_violations(new_pool_name(), seed) if result.outcome == "crashed")

    assert "ended with status -" in next(crashes).complaints[0]
    assert next(crashes)


def walk_for_ever(segment: Segment, index: int, used: int) -> Iterator[arena.Record]:
    """Believes every size and goes on, also where one leads nowhere."""
    offset = index * segment.constants.geometry.chunk_size
    while offset != index * segment.constants.geometry.chunk_size + used:
        record = arena.read_record(segment, offset)
        if record.live:
            yield record
            offset = record.end


def test_control_that_walks_for_ever_hangs_and_is_ended(
    new_pool_name: Callable[[], str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "HANG_S", 2.0)
    monkeypatch.setattr(inspection, "walk", walk_for_ever)
    monkeypatch.setattr(stripe, "walk", walk_for_ever)

    hangs = (result for result in first_violations(new_pool_name(), seed) if result.outcome == "hung")

    assert "ended with status -9" in next(hangs).complaints[0]


def test_control_that_answers_with_another_exception_is_caught(
    new_pool_name: Callable[[], str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(*_: object) -> PoolCorruptError:
        raise IndexError

    monkeypatch.setattr(store.Store, "_damaged", say)

    assert next(first_violations(new_pool_name(), seed)).outcome == "foreign error"
