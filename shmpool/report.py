"""What a view tells about a pool: everything that can be decoded, and sentences about what cannot.

Nothing here raises for a damaged pool; the damage is in `problems`, and what hangs on it is missing or None.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shmpool import segment as segments
from shmpool.arena import Chunk, Record
from shmpool.errors import PoolCorruptError, PoolError, PoolNotFoundError
from shmpool.inspection import (
    Counters,
    ProcessStats,
    TopicCount,
    check_rows,
    counts_of,
    read_chunks,
    read_processes,
)
from shmpool.layout import (
    COUNT,
    GATE_BYTE,
    GROW_BYTE,
    GROWTHS,
    INTENT,
    INTENT_INSERT,
    INTENT_REBUILD,
    INTENT_REUSE,
    INTENT_SETTLE,
    INTENT_SHIFT,
    INTENT_TAKE_CHUNK,
    OCCUPIED,
    OFFSET_MASK,
    RECORD_SIZE,
    ROLLBACKS,
    ROLLFORWARDS,
    SHELF_WORDS,
    STRIPE_BYTES,
    STRIPE_WORDS,
    TAKEOVERS_SHIFT,
    TOMBSTONES,
    WAITS,
    WORD_SIZE,
)
from shmpool.ledger import Snapshot
from shmpool.lock import others_hold
from shmpool.processes import ProcessState, command_of, state_of
from shmpool.stripe import Stripes
from shmpool.table import read_table
from shmpool.topics import noting, open_stripes, read_counts, read_topics
from shmpool.view import Header, View, open_view

PoolState = Literal["in use", "idle", "abandoned", "damaged", "other version", "no pool", "unreadable"]
_INTENTS: Final = {
    0: "",
    INTENT_INSERT: "insert",
    INTENT_TAKE_CHUNK: "take a chunk",
    INTENT_REUSE: "insert",
    INTENT_SETTLE: "hold or free",
    INTENT_REBUILD: "rebuild",
}


class Fill(NamedTuple):
    """How much of what was reserved is used. Sizes in bytes; `insert_budget` is what one process may insert, None if it has no
    bound, and `inserts` the most that one attached process has. `holds` are of all processes, dead ones too, and `unheld` topics
    have none; both are 0 where the policy counts none."""

    topics: int
    capacity: int
    arena_used_size: int
    arena_committed_size: int
    arena_size: int
    inserts: int
    insert_budget: int | None
    holds: int
    unheld: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeReport:
    """One stripe. `probe_mean` and `probe_max` are slots read to find a topic that is there (1: at its home); `intent` is what
    somebody was doing or died doing; `locked`: a live process holds its lock."""

    stripe: int
    topics: int
    slots: int
    tombstones: int
    load: float
    probe_mean: float
    probe_max: int
    growths: int
    waits: int
    takeovers: int
    rollbacks: int
    rollforwards: int
    intent: str
    locked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessReport:
    """One row of the process table. A dead row is of a process that was killed; the next to attach adds it to the totals, and
    gives its holds back."""

    row: int
    pid: int
    state: ProcessState
    command: str | None
    attached_ns: int
    counters: Counters
    holds: int


@dataclass(slots=True, kw_only=True)
class Report:
    """A pool at about one instant. Fields that could not be read are None or empty, and `problems` say why."""

    header: Header
    state: PoolState
    problems: list[str]
    resets: int | None = None
    fill: Fill | None = None
    total: Counters | None = None
    gate_locked: bool = False
    grow_locked: bool = False
    chunks: list[Chunk] = field(default_factory=list)  # those that are taken, in the arena's order
    stripes: list[StripeReport] = field(default_factory=list)
    probe_lengths: list[int] = field(default_factory=list)
    processes: list[ProcessReport] = field(default_factory=list)
    top: list[TopicCount] = field(default_factory=list)
    top_held: list[TopicCount] = field(default_factory=list)
    topics: list[TopicCount] | None = None

    @property
    def live_count(self) -> int:
        return sum(process.state != "dead" for process in self.processes)


def summarize(name: str, uid: int = -1) -> Report:
    """What rows alone tell, without topics: for `ls`. `uid` owns what may not be read. Raises PoolNotFoundError."""
    try:
        with open_view(name) as (header, view):
            report = _start(header, view)
            if view:
                view.load_rows()
                view.load_holds()
                _add_rows(report, view)
            return _judge(report)
    except PoolNotFoundError:
        raise
    except (PoolError, ValueError) as error:
        header = Header(
            name=name, path=f"{segments.SHM_DIR}/{segments.PREFIX}{name}", uid=uid, mode=0, file_size=0, memory_size=0,
            version=None, fingerprint=None, constants=None, is_readable=False, problems=(str(error),),
        )
        return Report(header=header, state="unreadable", problems=[str(error)])


def inspect(name: str, *, top: int = 10, with_topics: bool = False) -> Report:
    """All that can be told of a pool; `top` topics by uses and by holds, and with `with_topics` every one in order of refs.

    Raises PoolNotFoundError, PoolError for what is no file or may not be read.
    """
    seen = _inspect(name, top, with_topics=with_topics)
    # A word that was being stored while the kernel copied it could look damaged. Damage stays, so what is there twice is.
    return _inspect(name, top, with_topics=with_topics) if seen.problems and seen.live_count else seen


def _inspect(name: str, top: int, *, with_topics: bool) -> Report:
    with open_view(name) as (header, view):
        report = _start(header, view)
        if view:
            view.load_rows()
            view.load_ledgers()
            view.load_topics()
            stripes = _add_rows(report, view)
            if stripes:
                _add_stripes(report, stripes)
                _add_topics(report, stripes, top, with_topics=with_topics)
        return _judge(report)


def _start(header: Header, view: View | None) -> Report:
    problems = list(header.problems)
    if view and problems and header.constants:
        problems.append("What follows believes the header's options, which still agree with each other.")
    return Report(header=header, state="in use", problems=problems)


def _judge(report: Report) -> Report:
    header = report.header
    if header.version is None and header.constants is None:
        report.state = "no pool"
    elif not header.is_readable:
        report.state = "other version"
    elif report.problems or not header.constants:
        report.state = "damaged"
    elif report.live_count:
        report.state = "in use"
    else:
        report.state = "idle" if header.constants.persistent else "abandoned"
    return report


def _add_rows(report: Report, view: View) -> Stripes | None:
    """What the rows tell; the stripes, if there is an epoch to read them by."""
    report.gate_locked = others_hold(view.fd, GATE_BYTE)
    report.grow_locked = others_hold(view.fd, GROW_BYTE)
    report.total, rows = read_processes(view, -1)
    report.processes = [_describe(row) for row in rows]
    report.problems += [f"{finding.where}: {finding.what}" for finding in check_rows(view)]
    stripes = None
    with noting(report.problems):
        stripes = open_stripes(view)
        report.resets = stripes.epoch - 1
        _add_fill(report, stripes)
    return stripes


def _add_fill(report: Report, stripes: Stripes) -> None:
    constants, geometry = stripes.segment.constants, stripes.geometry
    committed = 0
    with noting(report.problems):
        report.chunks, committed = list(read_chunks(stripes)), stripes.limit()
    report.fill = Fill(
        topics=sum(_count(stripes, stripe) for stripe in range(geometry.stripe_count)),
        capacity=geometry.capacity,
        arena_used_size=sum(chunk.used for chunk in report.chunks),
        arena_committed_size=committed,
        arena_size=geometry.arena_size,
        inserts=max((process.counters.inserts for process in report.processes if process.state != "dead"), default=0),
        insert_budget=None if constants.insert_budget >= 1 << 63 else constants.insert_budget,
        holds=sum(process.holds for process in report.processes),
        unheld=stripes.unheld_total(),
    )


def _count(stripes: Stripes, stripe: int) -> int:
    """Records of a stripe; none of one that was not used since the last reset, whatever its row still says."""
    with suppress(PoolCorruptError):
        if not stripes.is_started(stripe):
            return 0
    return stripes.count(stripe)


def _describe(row: ProcessStats) -> ProcessReport:
    return ProcessReport(
        row=row.row,
        pid=row.pid,
        state=state_of(row.pid, row.start_time, live=row.live),
        command=command_of(row.pid, row.start_time) if row.live else None,
        attached_ns=row.attached_ns,
        counters=row.counters,
        holds=row.holds,
    )


def _add_stripes(report: Report, stripes: Stripes) -> None:
    histogram = np.zeros(0, np.int64)
    for stripe in range(stripes.geometry.stripe_count):
        lengths = np.zeros(0, np.int64)
        slot_count = 0
        with noting(report.problems):
            if stripes.is_started(stripe):
                slot_count = 1 << stripes.table(stripe).bits
                lengths = _probe_lengths(stripes, stripe)
        histogram = _add(histogram, np.bincount(lengths))
        row = stripes.geometry.stripes_offset // WORD_SIZE + stripe * STRIPE_WORDS
        words = stripes.segment.words
        intent = words[row + INTENT]
        report.stripes.append(
            StripeReport(
                stripe=stripe,
                topics=_count(stripes, stripe),
                slots=slot_count,
                tombstones=words[stripes.geometry.shelves_offset // WORD_SIZE + stripe * SHELF_WORDS + TOMBSTONES]
                if stripes.geometry.reuses and slot_count else 0,
                load=round(len(lengths) / slot_count, 4) if slot_count else 0.0,
                probe_mean=round(float(lengths.mean()), 2) if len(lengths) else 0.0,
                probe_max=int(lengths.max(initial=0)),
                growths=words[row + GROWTHS],
                waits=words[row + WAITS] & (1 << TAKEOVERS_SHIFT) - 1,
                takeovers=words[row + WAITS] >> TAKEOVERS_SHIFT,
                rollbacks=words[row + ROLLBACKS],
                rollforwards=words[row + ROLLFORWARDS],
                intent=_INTENTS.get(intent >> INTENT_SHIFT, f"{intent:#x}, which is none"),
                locked=others_hold(stripes.segment.fd, STRIPE_BYTES + stripe),
            )
        )
        if words[row + COUNT] > stripes.geometry.stripe_capacity:
            report.problems.append(f"stripe {stripe}: it counts {words[row + COUNT]} topics, more than it can hold")
    report.probe_lengths = histogram[1:].tolist()


def _add(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    total = np.zeros(max(len(left), len(right)), np.int64)
    total[: len(left)] += left
    total[: len(right)] += right
    return total


def _probe_lengths(stripes: Stripes, stripe: int) -> NDArray[np.int64]:
    """Slots read to find each topic of a stripe, shape (n,). Left out are slots that point beyond what was committed when the
    rows were read: their records are being inserted, or they are damaged, which `check` tells."""
    _, word, bits, _ = stripes.table(stripe)
    slots = read_table(stripes.segment.words, word, 1 << bits)
    places = np.flatnonzero(slots & np.uint64(OCCUPIED))
    offsets = (slots[places] & np.uint64(OFFSET_MASK)).astype(np.int64)
    known = offsets <= stripes.limit() - RECORD_SIZE
    records = np.frombuffer(
        stripes.segment.words, np.uint64, stripes.limit() // WORD_SIZE, stripes.geometry.arena_offset
    )
    homes = (records[offsets[known] // WORD_SIZE] & np.uint64((1 << bits) - 1)).astype(np.int64)
    return ((places[known] - homes) & ((1 << bits) - 1)) + 1


# ---- topics


def _add_topics(report: Report, stripes: Stripes, top: int, *, with_topics: bool) -> None:
    counts = read_counts(stripes, report.problems)
    with noting(report.problems):
        report.top = list(read_topics(stripes, _most(stripes, top, counts, 0), counts, report.problems))
        if stripes.geometry.reuses:
            report.top_held = list(read_topics(stripes, _most(stripes, top, counts, 1), counts, report.problems))
        if with_topics:
            report.topics = list(read_topics(stripes, stripes.records(), counts, report.problems))


def _most(stripes: Stripes, k: int, counts: Snapshot, which: int) -> list[Record]:
    """The records of the k topics with the highest counts: of uses (0) or holds (1)."""
    counted = ((-counts_of(stripes, record, counts)[which], record.offset, record) for record in stripes.records())
    return [record for *_, record in nsmallest(k, counted)]
