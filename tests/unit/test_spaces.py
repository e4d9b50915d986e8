"""Claims about the sizes of spaces that are used again, for every size that a value can have."""

from __future__ import annotations

from itertools import pairwise

import pytest

from shmpool import Policy
from shmpool.arena import size_class, space_size
from shmpool.layout import FREE, MAX_VALUE_SIZE, RECORD_SIZE, SHELF_WORDS, WORD_SIZE
from shmpool.lifetime import choose_constants

SIZES = range(MAX_VALUE_SIZE + 1)
SPACES = [space_size(size) for size in SIZES]
CLASSES = [size_class(space) for space in SPACES]


def test_a_space_holds_header_value_and_stamp_and_no_more_than_an_eighth_besides() -> None:
    for size, space in zip(SIZES, SPACES, strict=True):
        needed = RECORD_SIZE + size + WORD_SIZE
        assert needed <= space <= max(needed + 7, needed + needed // 8)
        assert space % WORD_SIZE == 0


def test_a_larger_value_never_has_a_smaller_space_or_class() -> None:
    assert all(smaller <= larger for smaller, larger in pairwise(SPACES))
    assert all(0 <= larger - smaller <= 1 for smaller, larger in pairwise(CLASSES))


def test_every_class_is_of_one_size_and_has_a_list_on_the_shelf() -> None:
    sizes_of = {(number, space) for number, space in zip(CLASSES, SPACES, strict=True)}

    assert len({number for number, _ in sizes_of}) == len({space for _, space in sizes_of}) == len(sizes_of)
    assert max(CLASSES) < 90 == SHELF_WORDS - FREE
    assert min(CLASSES) >= 0


@pytest.mark.parametrize("around", [1, 100, 1024, 4080, 4096, 16384, MAX_VALUE_SIZE])
def test_the_arena_has_room_for_as_many_of_the_largest_values_as_the_pool_takes(around: int) -> None:
    for max_value_size in range(max(1, around - 60), min(around + 60, MAX_VALUE_SIZE) + 1):
        geometry = choose_constants(
            capacity=1000,
            arena_size=None,
            stripe_count=4,
            max_value_size=max_value_size,
            insert_budget=None,
            reserve=None,
            process_count=1,
            persistent=False,
            policy=Policy.refcount(),
        ).geometry

        # Each stripe but one may leave its last chunk nearly empty.
        chunks = geometry.chunk_count - geometry.stripe_count
        assert chunks * (geometry.chunk_size // SPACES[max_value_size]) >= geometry.capacity
