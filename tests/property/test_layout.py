"""Of any options a pool can have: regions lie apart, headers survive a round trip, and no damage goes unnoticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmpool import PoolCorruptError, PoolVersionError
from shmpool.header import Constants, decode, encode
from shmpool.layout import (
    HEADER,
    MAX_EPOCH,
    MIN_TABLE_BITS,
    PAGE_SIZE,
    PROCESS,
    STRIPE,
    WORD_SIZE,
    Geometry,
    seal,
    unseal,
)
from shmpool.lifetime import choose_constants
from shmpool.table import ceiling

WORDS = st.integers(0, 2**64 - 1)


def numbers_up_to(most: int) -> st.SearchStrategy[int]:
    """From 1 on, small and large ones equally often."""
    return st.integers(0, most.bit_length() - 1).flatmap(lambda bits: st.integers(1 << bits, min(most, (2 << bits) - 1)))


@st.composite
def constants_of_a_pool(draw: st.DrawFn) -> Constants:
    capacity = draw(numbers_up_to(1 << 30))
    chosen = choose_constants(
        capacity=capacity,
        arena_size=None,
        stripe_count=1 << draw(st.integers(0, 8)),
        max_value_size=draw(numbers_up_to(65_535)),
        insert_budget=draw(st.none() | st.integers(0, 2**63)),
        reserve=draw(st.none() | st.integers(0, capacity)),
        process_count=draw(numbers_up_to(4096)),
        persistent=draw(st.booleans()),
    )
    return replace(chosen, pool_id=draw(WORDS), hash_key=draw(st.binary(min_size=16, max_size=16)), created_ns=draw(WORDS))


def regions_of(geometry: Geometry, stripes: set[int], rows: set[int]) -> list[tuple[int, int]]:
    """Where the regions start and how long they are; of tables and ledgers, those of some stripes and process rows."""
    return [
        (0, HEADER.itemsize),
        (geometry.scratch_offset, PAGE_SIZE),
        (geometry.stripes_offset, geometry.stripe_count * STRIPE.itemsize),
        (geometry.totals_offset, (1 + geometry.process_count) * PROCESS.itemsize),
        (geometry.chunks_offset, geometry.chunk_count * WORD_SIZE),
        *(
            (geometry.table_offset(stripe, region, bits), WORD_SIZE << bits)
            for stripe in stripes
            for bits in range(MIN_TABLE_BITS, geometry.max_table_bits + 1)
            for region in (0, 1)
        ),
        *((geometry.ledgers_offset + row * geometry.ledger_size, geometry.ledger_size) for row in rows),
        (geometry.arena_offset, geometry.arena_size),
    ]


@given(constants_of_a_pool(), st.data())
def test_regions_are_page_aligned_and_lie_apart_within_the_segment(constants: Constants, data: st.DataObject) -> None:
    geometry = constants.geometry
    stripes = {0, geometry.stripe_count - 1, data.draw(st.integers(0, geometry.stripe_count - 1))}
    rows = {0, geometry.process_count, data.draw(st.integers(0, geometry.process_count))}

    regions = sorted(regions_of(geometry, stripes, rows))

    assert all(start % PAGE_SIZE == 0 for start, _ in regions)
    ends = [start + size for start, size in regions]
    assert all(end <= start for end, (start, _) in zip(ends, regions[1:], strict=False))
    assert ends[-1] == geometry.total_size


@given(constants_of_a_pool(), WORDS)
def test_tables_ledgers_and_chunks_hold_what_they_are_for(constants: Constants, hash_: int) -> None:
    geometry = constants.geometry

    stripe = geometry.stripe_of(hash_)

    assert 0 <= stripe < geometry.stripe_count
    assert ceiling(1 << geometry.max_table_bits) >= geometry.stripe_capacity
    assert geometry.stripe_capacity * geometry.stripe_count >= geometry.capacity
    last_column = (geometry.stripe_capacity - 1) * geometry.stripe_count + geometry.stripe_count - 1
    assert (last_column + 1) * WORD_SIZE <= geometry.ledger_size
    assert geometry.chunk_size >= 4 * geometry.max_value_size
    assert geometry.chunk_count >= geometry.stripe_count


@given(constants_of_a_pool())
def test_a_header_decodes_to_what_was_encoded(constants: Constants) -> None:
    page = encode(constants)

    decoded = decode(page, constants.geometry.total_size, "here")

    assert decoded == constants
    assert len(page) == PAGE_SIZE


@settings(max_examples=30)
@given(constants_of_a_pool(), st.integers(1, 255))
def test_any_changed_byte_of_a_headers_constants_is_refused(constants: Constants, change: int) -> None:
    page, size = encode(constants), constants.geometry.total_size
    assert HEADER.fields is not None
    version, pool_id, checksum = (int(HEADER.fields[name][1]) for name in ("version", "pool_id", "checksum"))

    for place in range(checksum + WORD_SIZE):
        damaged = bytearray(page)
        damaged[place] ^= change

        with pytest.raises(PoolVersionError if version <= place < pool_id else PoolCorruptError):
            decode(bytes(damaged), size, "here")


@given(constants_of_a_pool(), st.integers(0, PAGE_SIZE - 1), st.integers(1, 2**40))
def test_a_header_cut_short_or_of_a_file_of_another_size_is_refused(constants: Constants, left: int, more: int) -> None:
    page, size = encode(constants), constants.geometry.total_size

    with pytest.raises(PoolCorruptError):
        decode(page[:left], size, "here")
    with pytest.raises(PoolCorruptError):
        decode(page, size + more, "here")


@given(st.integers(1, MAX_EPOCH), st.integers(0, 2**40 - 1))
def test_a_sealed_word_opens_to_what_was_sealed_and_shows_every_flipped_bit(epoch: int, value: int) -> None:
    word = seal(epoch, value)

    damaged = [word ^ 1 << bit for bit in range(64)]

    assert 0 < word < 2**64
    assert unseal(word) == (epoch, value)
    assert [unseal(each) for each in damaged] == [None] * 64
