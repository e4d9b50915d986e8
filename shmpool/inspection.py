"""What a pool holds, who uses it and whether it is sound; nothing here changes a pool."""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from shmpool.arena import Chunk, Record, read_chunk, read_value, walk
from shmpool.attachment import is_live
from shmpool.errors import PoolCorruptError
from shmpool.layout import (
    ATTACHED,
    CHUNK,
    COUNT,
    COUNTERS,
    INTENT,
    OCCUPIED,
    OFFSET_MASK,
    PID,
    START_TIME,
    STRIPE_WORDS,
    TOMBSTONE,
    WORD_SIZE,
    TopicRef,
)
from shmpool.ledger import Snapshot, ledger_size, read_holds, row_word, take_snapshot
from shmpool.reuse import ReusingStripes
from shmpool.segment import Segment
from shmpool.stripe import Stripes
from shmpool.table import find_slot, make_slot, read_table
from shmpool.turnover import check_turnover

_MAX_FINDINGS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Counts of events. A hit is an intern or lookup that found its value, a miss one that did not (an insert is also a miss)."""

    hits: int = 0
    misses: int = 0
    inserts: int = 0
    lock_waits: int = 0
    takeovers: int = 0
    rollbacks: int = 0
    rollforwards: int = 0
    uses_dropped: int = 0
    frees: int = 0
    evictions: int = 0
    reaped: int = 0


COUNTER_MEANINGS: Final = {
    "hits": "Interns and lookups that found their value.",
    "misses": "Interns and lookups that did not; an insert is one.",
    "inserts": "Topics inserted.",
    "lock_waits": "Waits for a stripe's lock.",
    "takeovers": "Locks taken over from killed processes.",
    "rollbacks": "Operations of killed processes that were undone.",
    "rollforwards": "Operations of killed processes that were finished.",
    "uses_dropped": "Uses that found no memory to be counted in.",
    "frees": "Topics that went with their last hold.",
    "evictions": "Topics that nobody held and that went for their age or for room.",
    "reaped": "Holds of killed processes that were given back.",
}


@dataclass(frozen=True, slots=True)
class ProcessStats:
    """One row of the process table. `attached_ns` is wall-clock time; a row that is not live is a killed process's, and so are
    its holds until somebody gives them back (see `Pool.reap`)."""

    row: int
    pid: int
    start_time: int
    attached_ns: int
    live: bool
    counters: Counters
    holds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """A pool at one instant. Sizes in bytes; `arena_used_size` counts records with their headers, `memory_size` is the real
    memory behind the segment; `unheld` topics are held by nobody. Counters are exact as of each process's last flush; `total`
    includes processes that left."""

    name: str
    size: int
    capacity: int
    arena_used_size: int
    arena_committed_size: int
    arena_size: int
    memory_size: int
    total: Counters
    processes: tuple[ProcessStats, ...]
    unheld: int = 0

    @property
    def holds(self) -> int:
        """Holds of all processes."""
        return sum(process.holds for process in self.processes)

    @property
    def hits(self) -> int:
        return self.total.hits

    @property
    def misses(self) -> int:
        return self.total.misses

    @property
    def inserts(self) -> int:
        return self.total.inserts

    @property
    def lock_waits(self) -> int:
        return self.total.lock_waits

    @property
    def takeovers(self) -> int:
        return self.total.takeovers


class TopicCount(NamedTuple):
    """A topic, how often it was interned or looked up, and how many holds of it there are now, by all processes."""

    ref: TopicRef
    value: bytes
    uses: int
    holds: int = 0


class Finding(NamedTuple):
    """Something in the segment that contradicts something else, where, and what to do about it."""

    what: str
    where: str
    advice: str


def read_stats(stripes: Stripes, own_row: int) -> PoolStats:
    """The pool's statistics. Takes no lock."""
    segment, geometry = stripes.segment, stripes.geometry
    total, processes = read_processes(segment, own_row)
    chunks = list(read_chunks(stripes))
    return PoolStats(
        name=segment.pool_name,
        size=stripes.total(),
        capacity=geometry.capacity,
        arena_used_size=sum(chunk.used for chunk in chunks),
        arena_committed_size=stripes.limit(),
        arena_size=geometry.arena_size,
        memory_size=segment.memory_size,
        total=total,
        processes=processes,
        unheld=stripes.unheld_total(),
    )


def read_processes(segment: Segment, own_row: int) -> tuple[Counters, tuple[ProcessStats, ...]]:
    """What all processes have counted, those that left included, and the rows of those that did not. Takes no lock."""
    snapshot = take_snapshot(segment, with_topics=False)
    total = _counters(snapshot.counters.sum(axis=0, dtype=np.uint64))
    return total, tuple(_processes(segment, snapshot, own_row))


def read_chunks(stripes: Stripes) -> Iterator[Chunk]:
    """The chunks that were taken, in order."""
    for index in range(stripes.limit() // stripes.geometry.chunk_size):
        yield read_chunk(stripes.segment, index, stripes.epoch)


def _processes(segment: Segment, snapshot: Snapshot, own_row: int) -> Iterator[ProcessStats]:
    for row in range(segment.constants.geometry.process_count):
        word = row_word(segment, row)
        pid = segment.words[word + PID]
        if pid:
            yield ProcessStats(
                row=row,
                pid=pid,
                start_time=segment.words[word + START_TIME],
                attached_ns=segment.words[word + ATTACHED],
                live=is_live(segment, row, own_row),
                counters=_counters(snapshot.counters[row + 1]),
                holds=int(read_holds(segment, row).sum()),
            )


def _counters(values: "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]") -> Counters:
    return Counters(**dict(zip(COUNTERS, map(int, values), strict=True)))


def count_topics(stripes: Stripes, k: int, by: str, hash_value: Callable[[bytes], int]) -> list[TopicCount]:
    """The k topics most used or held (`by`), most first, ties in order of arena offset. Raises PoolCorruptError."""
    segment = stripes.segment
    snapshot = take_snapshot(segment, with_topics=True)
    found = []
    counted = ((counts_of(stripes, record, snapshot), record) for record in stripes.records())
    best = heapq.nsmallest(k, counted, key=lambda each: (-each[0][by == "holds"], each[1].offset))
    for (uses, holds), record in best:
        value = read_value(segment, record)
        is_topic = stripes.points_at(record)
        if not stripes.is_still(record):
            continue  # it went meanwhile
        if hash_value(value) != record.hash:
            raise PoolCorruptError(
                f"pool {segment.pool_name!r}: the value at arena offset {record.offset} is damaged (its hash does not match). "
                "Nothing was changed. Run Pool.check(), and make the pool anew."
            )
        if is_topic:
            found.append(TopicCount(stripes.ref_of(record), value, uses, holds))
    return found


def counts_of(stripes: Stripes, record: Record, snapshot: Snapshot) -> tuple[int, int]:
    """The uses and holds of a record's topic."""
    column = record.ordinal * stripes.geometry.stripe_count + stripes.geometry.stripe_of(record.hash)
    return snapshot.uses_of(column, record.generation), snapshot.holds_of(column)


def recover_and_check(stripes: Stripes, stripe: int, hash_value: Callable[[bytes], int]) -> list[Finding]:
    """Every invariant of one stripe, once what a killed process left is finished. For who holds its lock, or has a copy."""
    try:
        if not stripes.is_started(stripe):
            stripes.refuse_unstarted_owner(stripe)
            return []
        stripes.recover(stripe)
        return check_stripe(stripes, stripe, hash_value)
    except PoolCorruptError as error:
        return [Finding(str(error), f"stripe {stripe}", "Make the pool anew.")]


def check_stripe(stripes: Stripes, stripe: int, hash_value: Callable[[bytes], int]) -> list[Finding]:
    """Every invariant of one stripe, for who holds its lock and has run `recover`. Empty means sound."""
    findings: list[Finding] = []
    for finding in _check_stripe(stripes, stripe, hash_value):
        findings.append(finding)
        if len(findings) == _MAX_FINDINGS:
            break
    return findings


def _check_stripe(stripes: Stripes, stripe: int, hash_value: Callable[[bytes], int]) -> Iterator[Finding]:
    segment, geometry = stripes.segment, stripes.geometry
    row = geometry.stripes_offset // WORD_SIZE + stripe * STRIPE_WORDS
    intent, count, chunk = (segment.words[row + field] for field in (INTENT, COUNT, CHUNK))
    anew = "Values and refs of this stripe cannot be trusted. Make the pool anew."
    where = f"stripe {stripe}"
    _, table_word, bits, _ = stripes.table(stripe)
    if intent:
        yield Finding(f"intent {intent:#x} is left after recovery", where, anew)
    slots = read_table(segment.words, table_word, 1 << bits)
    if geometry.reuses:
        slots[slots == TOMBSTONE] = 0
    pointed = {int(slot) & OFFSET_MASK for slot in slots[slots != 0]}
    if len(pointed) != int((slots != 0).sum()):
        yield Finding("two slots point at one record", where, anew)
    if any(int(slot) & 7 != OCCUPIED for slot in slots[slots != 0]):
        yield Finding("a slot's low bits are not what a slot has", where, anew)
    taken_count = stripes.limit() // geometry.chunk_size
    if chunk and (chunk > taken_count or read_chunk(segment, chunk - 1, stripes.epoch).owner != stripe):
        yield Finding(f"current chunk {chunk - 1} is not its own", where, anew)

    walked: set[int] = set()
    free: list[Record] = []
    live: list[Record] = []
    values: dict[bytes, int] = {}
    for index, taken in enumerate(read_chunks(stripes)):
        if taken.owner != stripe:
            continue
        end = index * geometry.chunk_size
        for record in walk(segment, index, taken.used):
            end = record.end
            if not record.live:
                free.append(record)
                continue
            live.append(record)
            walked.add(record.offset)
            at = f"{where}, arena offset {record.offset}"
            value = read_value(segment, record)
            if hash_value(value) != record.hash or geometry.stripe_of(record.hash) != stripe:
                yield Finding("the value's hash is not the record's", at, anew)
            if value in values:
                yield Finding(f"the same value stands at arena offset {values[value]}", at, anew)
            values[value] = record.offset
            if record.generation and not geometry.reuses:
                yield Finding(f"generation {record.generation}, where nothing is ever evicted", at, anew)
            slot = make_slot(record.hash, record.offset)
            if find_slot(segment.words, table_word, (1 << bits) - 1, slot, record.hash) is None:
                yield Finding("no slot on the probe path points at the record", at, anew)
            if record.ordinal >= count and not geometry.reuses:
                yield Finding(f"ordinal {record.ordinal}, and the stripe counts {count} records", at, anew)
        if end != index * geometry.chunk_size + taken.used:
            yield Finding(f"chunk {index} is used to {taken.used}, its records end at {end % geometry.chunk_size}", where, anew)
    for offset in sorted(pointed - walked):
        yield Finding("a slot points where no record is", f"{where}, arena offset {offset}", anew)
    if count != len(walked):
        yield Finding(f"counts {count} records and has {len(walked)}", where, anew)
    if isinstance(stripes, ReusingStripes):
        advice = "Values and refs are not affected, but room may be lost, or freed too early. Make the pool anew."
        yield from (Finding(*problem, advice) for problem in check_turnover(stripes, stripe, live, free))


def check_rows(segment: Segment) -> list[Finding]:
    """Process rows whose counts cannot be read. No topic hangs on them. Empty means sound."""
    findings = []
    for row in range(-1, segment.constants.geometry.process_count):
        try:
            ledger_size(segment, row)
        except PoolCorruptError as error:
            where = "the totals" if row < 0 else f"process row {row}"
            findings.append(Finding(str(error), where, "Topics and refs are not affected; counts are. Make the pool anew."))
    return findings


def check_chunks(stripes: Stripes) -> list[Finding]:
    """Chunks that nobody owns, or somebody who cannot. Empty means sound."""
    return [
        Finding(f"its owner is stripe {chunk.owner}", f"chunk {index}", "Make the pool anew.")
        for index, chunk in enumerate(read_chunks(stripes))
        if not 0 <= chunk.owner < stripes.geometry.stripe_count
    ]
