"""Claims about records: what was written is read back, and a walk over damaged bytes ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmpool import Pool
from shmpool.arena import Chunk, make_chunk, make_record, read_chunk, read_record, read_value, record_size, walk
from shmpool.segment import Segment
from tests.unit.inside import store_of

VALUES = [b"", b"\0", b"seven!!", b"eight!!!", b"x" * 100]


@pytest.fixture
def segment(pool_name: str) -> Iterator[Segment]:
    """Of a pool whose one chunk holds VALUES, in their order."""
    with Pool.create(pool_name, stripe_count=1) as pool:
        for value in VALUES:
            pool.intern(value)
        yield store_of(pool).segment


@pytest.mark.parametrize("value", VALUES, ids=len)
def test_record_is_its_size_padded_to_words_and_never_more(value: bytes) -> None:
    record = make_record(1, value, 2)

    assert len(record) == record_size(len(value))
    assert len(record) % 8 == 0
    assert 16 + len(value) <= len(record) < 16 + len(value) + 8


def test_walk_gives_every_record_in_order_with_its_value(segment: Segment) -> None:
    used = sum(record_size(len(value)) for value in VALUES)

    records = list(walk(segment, 0, used))

    assert [read_value(segment, record) for record in records] == VALUES
    assert [record.ordinal for record in records] == list(range(len(VALUES)))
    assert [record.size for record in records] == [len(value) for value in VALUES]
    assert all(read_record(segment, record.offset) == record and record.live for record in records)
    assert records[-1].end == used
    assert read_chunk(segment, 0, 1) == Chunk(used, 0)


def test_walk_ends_where_a_record_is_not_live_or_runs_over_the_end(segment: Segment) -> None:
    chunk_size = segment.constants.geometry.chunk_size

    assert len(list(walk(segment, 0, chunk_size))) == len(VALUES)
    assert len(list(walk(segment, 0, record_size(0) + record_size(1) + 8))) == 2


def test_chunk_of_an_older_epoch_is_nobodys_and_never_overfull(segment: Segment) -> None:
    geometry = segment.constants.geometry
    segment.words[geometry.chunks_offset // 8] = make_chunk(geometry.chunk_size * 9, 5, 3)

    assert read_chunk(segment, 0, 3) == Chunk(geometry.chunk_size, 5)
    assert read_chunk(segment, 0, 4) == Chunk(0, -1)
