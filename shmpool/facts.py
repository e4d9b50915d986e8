"""What a report says, in words, gauges and columns: told once, for a terminal and for a page.

Texts are as their processes chose them: who shows one brings it through `printable` first.
"""

import pwd
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Final, Generic, Literal, NamedTuple, TypeVar

from shmpool.inspection import COUNTER_MEANINGS, Counters, TopicCount
from shmpool.report import ProcessReport, Report, StripeReport
from shmpool.text import show_age, show_size

T = TypeVar("T")
Kind = Literal["number", "word", "state", "command", "topic"]
_GROWS_AT: Final = 0.75


class Gauge(NamedTuple):
    """How much of something is used; `share` is None where it has no bound."""

    title: str
    text: str
    share: float | None


class ProbeClass(NamedTuple):
    """How many topics are found by reading so many slots ("3-4"), and which part of all those are."""

    slots: str
    topics: int
    share: float


@dataclass(frozen=True, slots=True)
class Heat(Generic[T]):
    """What makes a cell hot, and between which values it goes from cold to hot, by the whole column's."""

    measure: Callable[[T], float]
    scale: Callable[[list[float]], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column of a table. `total` is what it says of all rows together, those that left included. One with `if_any` is there
    if that is true of any row."""

    title: str
    text: Callable[[T], str | bytes]
    meaning: str
    kind: Kind = "number"
    total: Callable[[Report], str] | None = None
    heat: Heat[T] | None = None
    if_any: Callable[[T], object] | None = None


def worth_showing(columns: Sequence[Column[T]], rows: Sequence[T]) -> list[Column[T]]:
    """The columns that have something to say of such rows."""
    return [column for column in columns if column.if_any is None or any(map(column.if_any, rows))]


def _uneven(values: list[float]) -> tuple[float, float]:
    """Cold is what has no more than its share, hot what has twice that: a stripe has room for no more topics."""
    mean = sum(values) / len(values)
    return mean, 2 * mean


def _up_to_most(values: list[float]) -> tuple[float, float]:
    return 0.0, max(values)


def _counted(title: str, counter: str) -> Column[ProcessReport]:
    def count(counters: Counters) -> str:
        return f"{getattr(counters, counter):,}"

    return Column(
        title, lambda each: count(each.counters), COUNTER_MEANINGS[counter],
        total=lambda report: count(report.total or Counters()),
    )


PROCESS_COLUMNS: Final[tuple[Column[ProcessReport], ...]] = (
    Column("row", lambda each: str(each.row), "Row of the pool's process table."),
    Column("pid", lambda each: str(each.pid), "Of the process, in its own namespace."),
    Column("process", lambda each: each.state, "Running, stopped by a signal or a debugger, or dead: it was killed.", "state",
           total=lambda _: "all, ever"),
    Column("attached", lambda each: age(each.attached_ns), "How long ago it attached."),
    _counted("hits", "hits"),
    _counted("misses", "misses"),
    _counted("inserts", "inserts"),
    Column("holds", lambda each: f"{each.holds:,}", "Holds it has taken and not given back; a dead one's are given back for it.",
           total=lambda report: f"{sum(process.holds for process in report.processes):,}", if_any=lambda each: each.holds),
    _counted("waits", "lock_waits"),
    _counted("takeovers", "takeovers"),
    Column("command", lambda each: each.command or "", "Its command line, of a process that lives.", "command"),
)

STRIPE_COLUMNS: Final[tuple[Column[StripeReport], ...]] = (
    Column("stripe", lambda each: str(each.stripe), "A part of the table with a lock of its own."),
    Column("topics", lambda each: f"{each.topics:,}", "Topics whose hash falls to it.",
           heat=Heat(lambda each: each.topics, _uneven)),
    Column("slots", lambda each: f"{each.slots:,}", "Size of its table."),
    Column("tombstones", lambda each: f"{each.tombstones:,}", "Slots of topics that went, which searches still go past.",
           if_any=lambda each: each.tombstones),
    Column("load", lambda each: f"{each.load:.0%}", f"Slots in use; its table doubles at {_GROWS_AT:.0%}.",
           heat=Heat(lambda each: each.load, lambda _: (0.0, _GROWS_AT))),
    Column("probes", lambda each: f"{each.probe_mean:.2f}", "Slots read to find a topic, on average; 1 is the least.",
           heat=Heat(lambda each: each.probe_mean, lambda _: (1.0, 3.0))),
    Column("worst", lambda each: str(each.probe_max), "Slots read to find the topic that takes most.",
           heat=Heat(lambda each: each.probe_max, lambda _: (1.0, 128.0))),
    Column("growths", lambda each: str(each.growths), "How often its table doubled.",
           heat=Heat(lambda each: each.growths, _uneven)),
    Column("waits", lambda each: f"{each.waits:,}", "Waits for its lock.", heat=Heat(lambda each: each.waits, _uneven)),
    Column("takeovers", lambda each: f"{each.takeovers:,}", "Waits that ended with taking its lock over from a killed process.",
           heat=Heat(lambda each: each.takeovers, _uneven)),
    Column("undone", lambda each: str(each.rollbacks), COUNTER_MEANINGS["rollbacks"],
           heat=Heat(lambda each: each.rollbacks, _uneven)),
    Column("finished", lambda each: str(each.rollforwards), COUNTER_MEANINGS["rollforwards"],
           heat=Heat(lambda each: each.rollforwards, _uneven)),
    Column("locked", lambda each: "locked" if each.locked else "", "Whether a live process holds its lock.", "word"),
    Column("intent", lambda each: each.intent, "What somebody is doing in it, or died doing.", "word"),
)

TOPIC_COLUMNS: Final[tuple[Column[TopicCount], ...]] = (
    Column("uses", lambda each: f"{each.uses:,}", "How often it was interned or looked up.",
           heat=Heat(lambda each: each.uses, _up_to_most)),
    Column("holds", lambda each: f"{each.holds:,}", "Holds of it that processes have now.",
           heat=Heat(lambda each: each.holds, _up_to_most), if_any=lambda each: each.holds),
    Column("ref", lambda each: str(each.ref), "The integer that every process has for it."),
    Column("topic", lambda each: each.value, "The topic itself.", "topic"),
)


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """What the header says, by name."""
    header, constants = report.header, report.header.constants
    yield "file", f"{header.path}, {show_size(header.memory_size)} of memory, {show_size(header.file_size)} reserved"
    if header.version is not None:
        yield "format", f"version {header.version}, layout {header.fingerprint:016x}"
    owner = f"by {user(header.uid)}, mode {header.mode:04o}"
    if constants:
        yield "policy", f"{policy(report)}, reset {report.resets or 0} times"
        made = datetime.fromtimestamp(constants.created_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        owner = f"{made} ({age(constants.created_ns)} ago) {owner}"
    yield "created", owner


def gauges(report: Report) -> Iterator[Gauge]:
    """How full it is; nothing where that could not be read."""
    fill, constants = report.fill, report.header.constants
    if not fill or not constants:
        return
    yield Gauge("topics", f"{fill.topics:,} of {fill.capacity:,}", _share(fill.topics, fill.capacity))
    if constants.policy.counts_holds:
        yield Gauge("holds", f"{fill.holds:,}, and {fill.unheld:,} topics that nobody holds", None)
    arena = f"{show_size(fill.arena_used_size)} of {show_size(fill.arena_size)}"
    yield Gauge("arena", arena, _share(fill.arena_used_size, fill.arena_size))
    if fill.insert_budget is None:
        yield Gauge("budget", "no bound on a process's inserts", None)
    else:
        budget = f"{fill.inserts:,} of {fill.insert_budget:,} inserts, the most of one process"
        yield Gauge("budget", budget, _share(fill.inserts, fill.insert_budget))


def probe_classes(lengths: list[int]) -> Iterator[ProbeClass]:
    """A histogram of probe lengths, in classes that double."""
    for bits, pairs in groupby(enumerate(lengths, 1), lambda pair: (pair[0] - 1).bit_length()):
        first, last = 1 if bits == 0 else (1 << bits - 1) + 1, 1 << bits
        count = sum(topics for _, topics in pairs)
        yield ProbeClass(str(first) if first == last else f"{first}-{last}", count, _share(count, sum(lengths)))


def hints(report: Report) -> Iterator[str]:
    """What somebody who sees such a pool may want to do."""
    name = report.header.name
    if report.state == "damaged":
        yield f"`shmpool check {name}` tells all that is wrong."
    if report.state == "abandoned":
        yield "Nobody is attached: its last process was killed. Attach to go on using it; `shmpool gc` removes it."
    stopped = [str(process.pid) for process in report.processes if process.state == "stopped"]
    if stopped and (report.gate_locked or report.grow_locked or any(stripe.locked for stripe in report.stripes)):
        yield f"Locks are held and a process is stopped; others may wait for it: kill -CONT {' '.join(stopped)}"
    elif report.gate_locked:
        yield "The gate is held: some process is attaching or leaving."
    if report.live_count and report.live_count < len(report.processes):
        yield "Rows of dead processes are added to the totals when their row is needed."
    held = sum(process.holds for process in report.processes if process.state == "dead")
    if held:
        yield f"Dead processes still hold {held:,} times; `shmpool gc` gives that back, and so does whoever needs the room."
    if report.fill and report.fill.topics > 0.9 * report.fill.capacity:
        yield "Nearly full: inserts will raise PoolFullError. Create the pool with a larger capacity."


def top_held(report: Report) -> list[TopicCount]:
    """The topics that are held most; none where nobody holds any."""
    return [topic for topic in report.top_held if topic.holds]


def policy(report: Report) -> str:
    constants = report.header.constants
    if not constants:
        return ""
    return f"{constants.policy}, persistent" if constants.persistent else str(constants.policy)


def age(then_ns: int) -> str:
    return show_age(time.time() - then_ns / 1e9)


def user(uid: int) -> str:
    if uid < 0:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
