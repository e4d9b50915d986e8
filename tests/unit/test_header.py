"""Claims about the header: what was encoded is decoded, and any flipped bit of a constant is refused."""

from __future__ import annotations

import pytest

from shmpool import PoolCorruptError, PoolVersionError, lifetime
from shmpool.header import Constants, decode, encode
from shmpool.layout import HEADER, PAGE_SIZE

CONSTANTS: Constants = lifetime.choose_constants(
    capacity=100, arena_size=None, stripe_count=2, max_value_size=100, insert_budget=7, reserve=3, process_count=4,
    persistent=True,
)
SIZE = CONSTANTS.geometry.total_size


def test_what_was_encoded_is_decoded() -> None:
    page = encode(CONSTANTS)

    assert len(page) == PAGE_SIZE
    assert decode(page, SIZE, "a test") == CONSTANTS


def test_any_flipped_bit_of_a_constant_is_refused_and_the_place_named() -> None:
    assert HEADER.fields is not None
    page = encode(CONSTANTS)

    for place in range(HEADER.fields["checksum"][1] + 8):
        for bit in range(8):
            damaged = bytearray(page)
            damaged[place] ^= 1 << bit
            with pytest.raises((PoolCorruptError, PoolVersionError), match=r"a test: .*It was left as it is"):
                decode(bytes(damaged), SIZE, "a test")


@pytest.mark.parametrize("size", [0, 8, PAGE_SIZE - 1])
def test_short_page_is_refused(size: int) -> None:
    with pytest.raises(PoolCorruptError, match="too few"):
        decode(encode(CONSTANTS)[:size], SIZE, "a test")


def test_another_files_size_is_refused() -> None:
    with pytest.raises(PoolCorruptError, match="bytes long"):
        decode(encode(CONSTANTS), SIZE - 1, "a test")
