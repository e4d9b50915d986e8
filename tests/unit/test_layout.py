"""Claims about the bytes: regions do not overlap, and a sealed word is what was sealed or known to be damaged."""

from __future__ import annotations

from itertools import pairwise

import pytest

from shmpool.layout import LOW_40, MIN_TABLE_BITS, PAGE_SIZE, WORD_SIZE, Geometry, seal, unseal

GEOMETRY = Geometry(capacity=1000, arena_size=1 << 20, stripe_count=4, process_count=8, max_value_size=100)


@pytest.mark.parametrize(("epoch", "value"), [(1, 0), (1, LOW_40), (65_535, 12_345), (7, 1 << 39)])
def test_sealed_word_gives_back_what_was_sealed_and_shows_every_flipped_bit(epoch: int, value: int) -> None:
    word = seal(epoch, value)

    assert unseal(word) == (epoch, value)
    assert 0 < word < 1 << 64
    assert all(unseal(word ^ 1 << bit) is None for bit in range(64))


def test_word_never_written_is_of_no_epoch() -> None:
    assert unseal(0) == (0, 0)


def test_regions_are_page_aligned_and_follow_each_other() -> None:
    starts = [
        GEOMETRY.scratch_offset, GEOMETRY.stripes_offset, GEOMETRY.totals_offset, GEOMETRY.chunks_offset, GEOMETRY.tables_offset,
        GEOMETRY.ledgers_offset, GEOMETRY.arena_offset, GEOMETRY.total_size,
    ]

    assert all(start % PAGE_SIZE == 0 for start in starts)
    assert all(one < other for one, other in pairwise(starts))


def test_tables_of_all_stripes_sizes_and_regions_are_disjoint_and_inside_their_region() -> None:
    tables = sorted(
        (GEOMETRY.table_offset(stripe, region, bits), WORD_SIZE << bits)
        for stripe in range(4)
        for region in range(2)
        for bits in range(MIN_TABLE_BITS, GEOMETRY.max_table_bits + 1)
    )

    assert all(start + size <= following for (start, size), (following, _) in pairwise(tables))
    assert tables[0][0] == GEOMETRY.tables_offset
    assert sum(tables[-1]) == GEOMETRY.ledgers_offset


def test_largest_table_holds_what_a_stripe_may_hold() -> None:
    assert (1 << GEOMETRY.max_table_bits) * 3 // 4 >= GEOMETRY.stripe_capacity


def test_stripe_is_the_hashs_top_bits() -> None:
    assert [GEOMETRY.stripe_of(top << 62) for top in range(4)] == [0, 1, 2, 3]
    assert GEOMETRY.stripe_of((1 << 64) - 1) == 3
