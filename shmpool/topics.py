"""The topics that a view holds: every one that is whole, and sentences about those that are not."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from shmpool.arena import Record, read_value
from shmpool.errors import PoolCorruptError
from shmpool.hashing import make_hasher
from shmpool.inspection import TopicCount, counts_of
from shmpool.layout import GROW_BYTE
from shmpool.ledger import Snapshot, take_snapshot
from shmpool.lock import ByteLock
from shmpool.reuse import make_stripes
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
    return make_stripes(view, ByteLock(view, GROW_BYTE, f"pool {view.pool_name!r}, growth of a copy"))


def read_counts(stripes: Stripes, problems: list[str]) -> Snapshot:
    """Uses and holds by column of a view whose rows are loaded; none, and a problem, where a row is damaged."""
    assert isinstance(stripes.segment, View)
    stripes.segment.load_ledgers()
    try:
        return take_snapshot(stripes.segment, with_topics=True)
    except PoolCorruptError as error:
        problems.append(str(error))
        return Snapshot()


def read_topics(stripes: Stripes, records: Iterable[Record], counts: Snapshot, problems: list[str]) -> Iterator[TopicCount]:
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
        yield TopicCount(stripes.ref_of(record), value, *counts_of(stripes, record, counts))
    if damaged:
        places = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        problem = f"{len(damaged)} topics are damaged and left out (arena offset {places})"
        if problem not in problems:
            problems.append(problem)
