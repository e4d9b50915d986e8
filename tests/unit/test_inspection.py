"""Claims about check: it finds what contradicts something else, says where, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmpool import Pool
from shmpool.layout import COUNT, INTENT, WORD_SIZE
from tests.unit.inside import store_of


@pytest.fixture
def pool(pool_name: str) -> Iterator[Pool]:
    with Pool.create(pool_name, stripe_count=1) as made:
        made.intern_many([b"%08d" % number for number in range(10)])
        yield made


def row_of(pool: Pool) -> int:
    return pool.constants.geometry.stripes_offset // WORD_SIZE


@pytest.mark.parametrize(
    ("place", "what"),
    [
        pytest.param("value", "hash is not the record's", id="value"),
        pytest.param("slot", "slot", id="slot"),
        pytest.param("count", "and has 10", id="count"),
        pytest.param("chunk", "chunk", id="chunk"),
    ],
)
def test_damage_is_found_and_left(pool: Pool, place: str, what: str) -> None:
    assert pool.check() == []
    words, geometry = store_of(pool).segment.words, pool.constants.geometry
    table = store_of(pool).stripes.table(0)
    word = {
        "value": geometry.arena_offset // WORD_SIZE + 2,
        "slot": next(word for word in range(table.word, table.word + (1 << table.bits)) if words[word]),
        "count": row_of(pool) + COUNT,
        "chunk": geometry.chunks_offset // WORD_SIZE,
    }[place]
    words[word] ^= 1 << 20
    before = words[word]

    findings = pool.check()

    assert any(what in finding.what for finding in findings), findings
    assert all(finding.where and finding.advice for finding in findings)
    assert words[word] == before
    words[word] ^= 1 << 20
    assert pool.check() == []


def test_stats_count_the_bytes_that_records_take(pool: Pool) -> None:
    stats = pool.stats()

    assert stats.arena_used_size == 10 * 24
    assert stats.size == 10
    assert store_of(pool).segment.words[row_of(pool) + INTENT] == 0


def test_most_used_come_first_and_ties_in_order_of_refs(pool: Pool) -> None:
    pool.lookup(b"%08d" % 7)

    top = pool.top(4)

    assert (top[0].value, top[0].uses) == (b"%08d" % 7, 2)
    assert [topic.ref for topic in top[1:]] == sorted(topic.ref for topic in top[1:])
    assert len(pool.top(100)) == 10
