"""Questions to a view: is it sound, what does a ref mean, which ref has a value, what are all of them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from shmpool.arena import read_record
from shmpool.errors import PoolCorruptError, PoolVersionError
from shmpool.hashing import make_hasher
from shmpool.inspection import Finding, TopicCount, check_chunks, check_rows, recover_and_check
from shmpool.layout import LOW_40, RECORD_SIZE, TopicRef
from shmpool.ledger import Snapshot
from shmpool.stripe import Stripes
from shmpool.topics import open_stripes, read_counts, read_topics
from shmpool.view import View, open_view

_TRIES: Final = 5
_WAIT_S: Final = 0.01
_ANEW: Final = "Make the pool anew."


@contextmanager
def _open_readable(name: str) -> Iterator[tuple[tuple[str, ...], View]]:
    """A view with its rows loaded, and what is wrong with its header all the same."""
    with open_view(name) as (header, view):
        if not header.is_readable:
            raise PoolVersionError(header.problems[-1])
        if view is None:
            raise PoolCorruptError(header.problems[-1])
        view.load_rows()
        yield header.problems, view


# ---- soundness


def check(name: str) -> list[Finding]:
    """Every invariant of a pool, held against a copy of each stripe as recovery would leave it. Takes no lock, changes nothing.

    Empty means sound. What is found in a stripe that is in use counts only if it is still there when looked at again: damage
    stays, what was half seen does not. Raises PoolNotFoundError, PoolVersionError, PoolError for what may not be read.
    """
    try:
        with _open_readable(name) as (problems, view):
            findings = [Finding(problem, "the header", _ANEW) for problem in problems]
            return findings + _check_view(view)
    except PoolCorruptError as error:
        return [Finding(str(error), "the header", _ANEW)]


def _check_view(view: View) -> list[Finding]:
    findings: list[Finding] = []
    try:
        stripes = open_stripes(view)
        stripes.limit()
    except PoolCorruptError as error:
        return [Finding(str(error), "the header", _ANEW), *check_rows(view)]
    hash_value = make_hasher(view.constants.hash_key)
    for stripe in range(stripes.geometry.stripe_count):
        findings += _check_stripe(view, stripes, stripe, hash_value)
    view.load_rows()
    return findings + check_chunks(stripes) + check_rows(view)


def _check_stripe(view: View, stripes: Stripes, stripe: int, hash_value: Callable[[bytes], int]) -> list[Finding]:
    findings: list[Finding] | None = None
    for _ in range(_TRIES):
        is_still = view.reload_stripe(stripe, stripes.epoch)
        stripes.refresh()
        found = recover_and_check(stripes, stripe, hash_value)
        # Where topics go, one that went and one that came meanwhile may leave the stripe's row as it was.
        if is_still and not stripes.geometry.reuses:
            return found
        findings = found if findings is None else [finding for finding in findings if finding in found]
        if not findings:
            return []
        time.sleep(_WAIT_S)
    return findings or []


# ---- topics


def resolve(name: str, refs: list[int]) -> list[bytes | None]:
    """The values of refs, None for what is no ref of this pool. Raises PoolCorruptError for a damaged value."""
    with _open_readable(name) as (_, view):
        view.load_topics()
        stripes = open_stripes(view)
        return [_resolve(stripes, ref) for ref in refs]


def _resolve(stripes: Stripes, ref: int) -> bytes | None:
    offset, chunk_size = ref - stripes.origin & LOW_40, stripes.geometry.chunk_size
    if ref < stripes.origin or offset > stripes.limit() - RECORD_SIZE or offset % 8:
        return None
    record = read_record(stripes.segment, offset)
    if not record.live or offset % chunk_size + record.end - offset > chunk_size or stripes.ref_of(record) != ref:
        return None
    if not stripes.points_at(record):
        return None
    problems: list[str] = []
    for topic in read_topics(stripes, [record], Snapshot(), problems):
        return topic.value
    raise PoolCorruptError(f"pool {stripes.segment.pool_name!r}: the value of ref {ref} is damaged. Run `shmpool check`.")


def lookup(name: str, values: list[bytes]) -> list[TopicRef | None]:
    """The refs of values, None for what the pool does not hold."""
    with _open_readable(name) as (_, view):
        view.load_topics()
        stripes = open_stripes(view)
        hash_value = make_hasher(view.constants.hash_key)
        return [_lookup(stripes, hash_value(value), value) for value in values]


def _lookup(stripes: Stripes, hash_: int, value: bytes) -> TopicRef | None:
    offset = stripes.find(stripes.geometry.stripe_of(hash_), hash_, value)
    return TopicRef(stripes.origin + offset) if offset >= 0 else None


@contextmanager
def all_topics(name: str) -> Iterator[tuple[Iterator[TopicCount], list[str]]]:
    """Every topic of a pool in order of refs, and a list that tells, once they were iterated over, what could not be read."""
    with _open_readable(name) as (header_problems, view):
        view.load_topics()
        problems = list(header_problems)
        stripes = open_stripes(view)
        yield read_topics(stripes, stripes.records(), read_counts(stripes, problems), problems), problems
