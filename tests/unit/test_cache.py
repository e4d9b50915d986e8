"""Claims about the private cache: each use is counted once, before or after the cache is emptied."""

from __future__ import annotations

from shmpool.cache import Cache
from shmpool.layout import TopicRef


def uses_of(cache: Cache) -> dict[int, int]:
    refs, uses, _ = cache.pending()
    return dict(zip(refs.tolist(), uses.tolist(), strict=True))


def test_next_of_a_cell_is_the_ref_and_counts_one_use() -> None:
    cache = Cache(10)
    cache.add(b"a", TopicRef(8))
    cache.add(b"b", TopicRef(16))

    assert [next(cache.cells[b"a"]) for _ in range(3)] == [8, 8, 8]

    assert uses_of(cache) == {8: 4, 16: 1}


def test_settled_uses_are_not_pending_again_and_unsettled_ones_are() -> None:
    cache = Cache(10)
    cache.add(b"a", TopicRef(8))
    *_, lefts = cache.pending()
    next(cache.cells[b"a"])
    assert uses_of(cache) == {8: 2}

    cache.settle(lefts)

    assert uses_of(cache) == {8: 1}


def test_use_of_a_cell_that_another_thread_still_has_is_counted_after_closing() -> None:
    cache = Cache(10)
    cache.add(b"a", TopicRef(8))
    cell = cache.cells[b"a"]

    cache.close_cells()
    next(cell)

    assert cache.cells == {}
    assert uses_of(cache) == {8: 2}
    assert cache.clear() == 2
    assert uses_of(cache) == {}


def test_values_are_bounded() -> None:
    cache = Cache(3)

    for number in range(10):
        cache.add_value(TopicRef(number), b"%d" % number)

        assert len(cache.values) <= 3
        assert cache.values[TopicRef(number)] == b"%d" % number
