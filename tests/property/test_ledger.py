"""However often columns change hands, and whoever departs in whatever order: the newest topic's uses are all there, once."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from shmpool import Policy, Pool
from shmpool.layout import LEDGER, PID, USES_MASK, USES_TAG_SHIFT, WORD_SIZE
from shmpool.ledger import Snapshot, fold, ledger_word, prepare_ledger, row_word, take_snapshot
from shmpool.segment import Segment
from tests.unit.inside import store_of

COLUMNS = (0, 1, 511, 512, 1000)  # on both sides of a page's end
OTHERS = (1, 2, 3)  # rows beside the test's own

words = st.tuples(st.integers(0, 3) | st.just(65535), st.integers(1, 5) | st.just(USES_MASK // 8))
ledgers = st.lists(st.dictionaries(st.sampled_from(COLUMNS), words, max_size=4), min_size=len(OTHERS), max_size=len(OTHERS))


def expected(ledgers: list[dict[int, tuple[int, int]]]) -> dict[int, tuple[int, int]]:
    """The newest generation of each column, and the sum of its uses."""
    newest = {column: max(ledger[column][0] for ledger in ledgers if column in ledger) for ledger in ledgers for column in ledger}
    return {
        column: (generation, sum(ledger[column][1] for ledger in ledgers if ledger.get(column, (-1, 0))[0] == generation))
        for column, generation in newest.items()
    }


def seen(snapshot: Snapshot) -> dict[int, tuple[int, int]]:
    uses = {column: int(word) for column, word in enumerate(snapshot.uses.tolist()) if word}
    return {column: (word >> USES_TAG_SHIFT, word & USES_MASK) for column, word in uses.items()}


def write(segment: Segment, row: int, ledger: dict[int, tuple[int, int]]) -> None:
    if ledger:
        _, word, content = prepare_ledger(segment, row, (max(ledger) + 1) * WORD_SIZE)
        segment.words[word] = content
    for column, (generation, uses) in ledger.items():
        segment.words[ledger_word(segment, row) + column] = generation << USES_TAG_SHIFT | uses
    segment.words[row_word(segment, row) + PID] = 1


def wipe(segment: Segment, row: int) -> None:
    size = (max(COLUMNS) + 1) * WORD_SIZE
    start = ledger_word(segment, row) * WORD_SIZE
    if segment.words[row_word(segment, row) + LEDGER]:
        segment.data[start : start + size] = bytes(size)


def test_a_fold_keeps_the_newest_topics_uses_whole_and_drops_older_ones(new_pool_name: Callable[[], str]) -> None:
    with Pool.create(new_pool_name(), policy=Policy.refcount(), capacity=1100, stripe_count=1, process_count=4) as pool:
        segment = store_of(pool).segment

        @given(ledgers, st.permutations(OTHERS), st.integers(0, len(COLUMNS) - 1))
        def folds(ledgers: list[dict[int, tuple[int, int]]], order: list[int], which: int) -> None:
            for row in (-1, *OTHERS):
                wipe(segment, row)
            for row, ledger in zip(OTHERS, ledgers, strict=True):
                write(segment, row, ledger)
            uses = expected(ledgers)

            for row in order:
                assert seen(take_snapshot(segment, with_topics=True)) == uses
                fold(segment, row)

            snapshot = take_snapshot(segment, with_topics=True)
            assert seen(snapshot) == uses
            generation, count = uses.get(COLUMNS[which], (0, 0))
            assert snapshot.uses_of(COLUMNS[which], generation) == count
            assert snapshot.uses_of(COLUMNS[which], generation + 1) == 0

        folds()
