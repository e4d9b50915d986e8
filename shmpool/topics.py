"""The topics that a view holds: every one that is whole, and sentences about those that are not."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import numpy as np

from shmpool.arena import Record, read_value
from shmpool.errors import PoolCorruptError
from shmpool.hashing import make_hasher
from shmpool.inspection import TopicCount
from shmpool.layout import GROW_BYTE, TopicRef
from shmpool.ledger import Words, take_snapshot
from shmpool.lock import ByteLock
from shmpool.stripe import Stripes
from shmpool.view import View


@contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Make a problem of a PoolCorruptError, and go on after the block."""
    try:
        yield
    except PoolCorruptError as error:
        problems.append(str(error))


def open_stripes(view: View) -> Stripes:
    """The stripes of a view whose rows are loaded. Raises PoolCorruptError where the epoch is damaged."""
    return Stripes(view, ByteLock(view, GROW_BYTE, f"pool {view.pool_name!r}, growth of a copy"))


def read_uses(stripes: Stripes, problems: list[str]) -> Words:
    """Uses of each column of the ledgers, of a view whose rows are loaded; none, and a problem, where a row is damaged."""
    assert isinstance(stripes.segment, View)
    stripes.segment.load_uses()
    try:
        return take_snapshot(stripes.segment, with_uses=True).uses
    except PoolCorruptError as error:
        problems.append(str(error))
        return np.zeros(0, np.uint64)


def used(stripes: Stripes, record: Record, uses: Words) -> int:
    """How often a record's topic was interned or looked up, by `read_uses`."""
    column = record.ordinal * stripes.geometry.stripe_count + stripes.geometry.stripe_of(record.hash)
    return int(uses[column]) if column < len(uses) else 0


def read_topics(stripes: Stripes, records: Iterable[Record], uses: Words, problems: list[str]) -> Iterator[TopicCount]:
    """The topics that records hold. What is damaged is left out, and how many those were becomes a problem."""
    hash_value = make_hasher(stripes.segment.constants.hash_key)
    damaged = []
    for record in records:
        value = read_value(stripes.segment, record)
        if hash_value(value) != record.hash:
            damaged.append(record.offset)
            continue
        with suppress(PoolCorruptError):  # its stripe's table is lost, which is told elsewhere; the bytes are whole
            if not stripes.points_at(record):
                continue
        yield TopicCount(TopicRef(stripes.origin + record.offset), value, used(stripes, record, uses))
    if damaged:
        places = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        problem = f"{len(damaged)} topics are damaged and left out (arena offset {places})"
        if problem not in problems:
            problems.append(problem)
