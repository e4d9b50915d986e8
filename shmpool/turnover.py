"""What must be true of a stripe whose spaces are used again, beside what must be of any."""

from collections import Counter
from collections.abc import Iterator

from shmpool.arena import Record, size_class
from shmpool.layout import (
    FREE,
    MAX_GENERATION,
    META_ORDINAL_MASK,
    RETIRED,
    SHELF_WORDS,
    SPACES,
    TOMBSTONE,
    TOMBSTONES,
    UNHELD,
)
from shmpool.ledger import sum_holds
from shmpool.reuse import ReusingStripes
from shmpool.table import read_table

Problem = tuple[str, str]  # what contradicts something else, and where


def check_turnover(stripes: ReusingStripes, stripe: int, live: list[Record], free: list[Record]) -> Iterator[Problem]:
    """The free lists, ordinals, tombstones, holds and stamps of one stripe, for who holds its lock and has run `recover`."""
    words, where = stripes.segment.words, f"stripe {stripe}"
    shelf = stripes.shelf(stripe)
    table = stripes.table(stripe)
    tombstones = int((read_table(words, table.word, 1 << table.bits) == TOMBSTONE).sum())
    if words[shelf + TOMBSTONES] != tombstones:
        yield f"counts {words[shelf + TOMBSTONES]} tombstones and has {tombstones}", where
    spaces = min(len(live) + len(free), stripes.geometry.stripe_capacity)
    if words[shelf + SPACES] != spaces:
        yield f"counts {words[shelf + SPACES]} spaces and has {spaces}", where
    ordinals = Counter(record.ordinal for record in (*live, *free) if record.ordinal != META_ORDINAL_MASK or record.live)
    for ordinal, count in ordinals.items():
        if count > 1 or ordinal >= spaces:
            yield f"{count} spaces have ordinal {ordinal}, of {spaces}", where
    yield from _check_lists(stripes, stripe, free)
    yield from _check_holds(stripes, stripe, live)


def _check_lists(stripes: ReusingStripes, stripe: int, free: list[Record]) -> Iterator[Problem]:
    missing = {record.offset: record for record in free}
    shelf = stripes.shelf(stripe)
    for head in (RETIRED, *range(FREE, SHELF_WORDS)):
        for record in stripes.free_spaces(shelf + head):
            at = f"stripe {stripe}, arena offset {record.offset}"
            if missing.pop(record.offset, None) is None:
                yield "a list of free spaces leads to what is not free, or leads there twice", at
                break
            is_retired = record.generation == MAX_GENERATION
            if head != (RETIRED if is_retired else FREE + size_class(record.end - record.offset)):
                yield "a free space is on another class's list", at
    for offset in sorted(missing):
        yield "a free space is on no list", f"stripe {stripe}, arena offset {offset}"


def _check_holds(stripes: ReusingStripes, stripe: int, live: list[Record]) -> Iterator[Problem]:
    stripe_count = stripes.geometry.stripe_count
    held = {column: int(count) for column, count in enumerate(sum_holds(stripes.segment).tolist()) if count}
    held = {column: count for column, count in held.items() if column % stripe_count == stripe}
    unheld = 0
    for record in live:
        is_held = held.pop(record.ordinal * stripe_count + stripe, 0) > 0
        is_stamped = stripes.stamp_of(record.offset) != 0
        unheld += is_stamped
        at = f"stripe {stripe}, arena offset {record.offset}"
        if is_held and is_stamped:
            yield "a topic that is held counts as one that is not", at
        if not is_held and not is_stamped:
            yield "a topic that nobody holds has not gone, and no time since when", at
        if is_stamped and not stripes.policy.keeps_unheld:
            yield "a topic that nobody holds has not gone", at
    for column, count in held.items():
        yield f"{count} holds of ordinal {column // stripe_count}, which no topic has", f"stripe {stripe}"
    if stripes.segment.words[stripes.shelf(stripe) + UNHELD] != unheld:
        count = stripes.segment.words[stripes.shelf(stripe) + UNHELD]
        yield f"counts {count} topics that nobody holds and has {unheld}", f"stripe {stripe}"
