"""Tables built at once are those that linear probing makes one by one."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shmpool.layout import MIN_TABLE_BITS, WORD_SIZE
from shmpool.table import build, find_slot, make_slot, read_table

UNSIGNED = 2**64 - 1


@st.composite
def hashes_for_a_table(draw: st.DrawFn) -> tuple[list[int], int]:
    """Hashes, many of which collide and run over the table's end, and a slot count they leave at least one slot free of."""
    slot_count = 1 << draw(st.integers(1, 7))
    near_end = st.integers(slot_count - 3, slot_count - 1)
    homes = st.one_of(st.integers(0, slot_count - 1), st.integers(0, 2), near_end)
    hashes = st.builds(lambda home, high: home & slot_count - 1 | high << 40, homes, st.integers(0, 2**24 - 1))
    return draw(st.lists(hashes, max_size=slot_count - 1)), slot_count


def probe_in(hashes: list[int], slots: list[int], slot_count: int) -> list[int]:
    """Linear probing as the books have it."""
    table = [0] * slot_count
    for hash_, slot in zip(hashes, slots, strict=True):
        index = hash_ % slot_count
        while table[index]:
            index = (index + 1) % slot_count
        table[index] = slot
    return table


def slots_of(hashes: list[int]) -> list[int]:
    return [make_slot(hash_, 8 * place) for place, hash_ in enumerate(hashes)]


def built(hashes: list[int], slots: list[int], slot_count: int) -> list[int]:
    table: list[int] = build(np.array(hashes, np.uint64), np.array(slots, np.uint64), slot_count).tolist()
    return table


@given(hashes_for_a_table())
def test_a_built_table_is_what_linear_probing_makes_in_order_of_home(case: tuple[list[int], int]) -> None:
    hashes, slot_count = case
    slots = slots_of(hashes)
    in_order = sorted(zip(hashes, slots, strict=True), key=lambda pair: pair[0] % slot_count)

    table = built(hashes, slots, slot_count)

    assert table == probe_in([hash_ for hash_, _ in in_order], [slot for _, slot in in_order], slot_count)


@given(hashes_for_a_table(), st.randoms(use_true_random=False))
def test_a_built_table_occupies_what_probing_in_any_order_does(case: tuple[list[int], int], random: Random) -> None:
    hashes, slot_count = case
    shuffled = list(hashes)
    random.shuffle(shuffled)

    table = built(hashes, slots_of(hashes), slot_count)

    naive = probe_in(shuffled, slots_of(shuffled), slot_count)
    assert [slot != 0 for slot in table] == [slot != 0 for slot in naive]


@given(hashes_for_a_table())
def test_every_slot_is_found_on_its_probe_path_and_no_other_is(case: tuple[list[int], int]) -> None:
    hashes, slot_count = case
    slots = slots_of(hashes)
    table = memoryview(np.array(built(hashes, slots, slot_count), np.uint64).tobytes()).cast("Q")

    found = [find_slot(table, 0, slot_count - 1, slot, hash_) for slot, hash_ in zip(slots, hashes, strict=True)]

    assert [table[index] for index in found if index is not None] == slots
    missing = make_slot(0, 8 * len(slots))
    assert find_slot(table, 0, slot_count - 1, missing, 0) is None


@given(st.lists(st.integers(0, UNSIGNED), unique=True, max_size=300))
def test_doubling_a_table_keeps_every_slot(hashes: list[int]) -> None:
    slots = slots_of(hashes)
    small = built(hashes, slots, 1 << MIN_TABLE_BITS)
    memory = memoryview(np.array([0, *small], np.uint64).tobytes()).cast("Q")

    copied = read_table(memory, 1, 1 << MIN_TABLE_BITS)
    kept = copied[copied != 0]
    by_slot = dict(zip(slots, hashes, strict=True))
    grown = build(np.array([by_slot[int(slot)] for slot in kept], np.uint64), kept, 2 << MIN_TABLE_BITS)

    assert sorted(grown[grown != 0].tolist()) == sorted(slots)
    assert grown.nbytes == WORD_SIZE * (2 << MIN_TABLE_BITS)
    words = memoryview(grown.tobytes()).cast("Q")
    mask = (2 << MIN_TABLE_BITS) - 1
    assert all(find_slot(words, 0, mask, slot, hash_) is not None for slot, hash_ in by_slot.items())
