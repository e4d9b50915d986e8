"""Reports for people: tables and bars on a terminal; plain columns without colours, bars or line breaks everywhere else.

Everything that a process chose (topics, command lines, names of files) comes through `printable`.
"""

import pwd
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from shmpool.inspection import Counters, TopicCount
from shmpool.report import ProcessReport, Report, StripeReport
from shmpool.text import printable, show_age, show_size

_UNBROKEN: Final = 100_000  # columns of what is no terminal: whoever reads it line by line gets whole lines
_BAR: Final = 24
_STATES: Final = {
    "in use": "green", "running": "green", "idle": "cyan", "abandoned": "yellow", "stopped": "yellow", "dead": "yellow",
    "damaged": "bold red", "other version": "magenta", "no pool": "red", "unreadable": "red",
}


def make_console() -> Console:
    """For standard output as it is now. FORCE_COLOR does not make a terminal of it, as a pipe's reader is no terminal."""
    if sys.stdout.isatty():
        return Console(highlight=False, markup=False, emoji=False)
    return Console(force_terminal=False, color_system=None, width=_UNBROKEN, highlight=False, markup=False, emoji=False)


def show(console: Console, drawn: RenderableType) -> None:
    """Print; where it is no terminal, without the spaces that fill up a table's lines."""
    if console.is_terminal:
        console.print(drawn)
        return
    with console.capture() as captured:
        console.print(drawn)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


class Renderer:
    """Draws for one console."""

    def __init__(self, console: Console) -> None:
        self._is_terminal = console.is_terminal
        self._full, self._empty = ("#", ".") if console.options.ascii_only else ("█", "░")

    def pools(self, reports: list[Report]) -> RenderableType:
        """What `ls` shows."""
        table = self._table(
            "name", "state", ">age", "owner", "policy", ">topics", ">of", ">used", ">memory", ">attached", ">dead"
        )
        for report in reports:
            header, fill, constants = report.header, report.fill, report.header.constants
            table.add_row(
                printable(header.name),
                self._state(report.state),
                _age(constants.created_ns) if constants else "",
                _user(header.uid),
                _policy(report),
                *((f"{fill.topics:,}", f"{fill.capacity:,}", show_size(fill.arena_used_size)) if fill else ("", "", "")),
                show_size(header.memory_size),
                str(report.live_count) if fill else "",
                str(len(report.processes) - report.live_count) if fill else "",
            )
        notes = [Text(f"{printable(each.header.name)}: {printable(each.problems[0])}") for each in reports if each.problems]
        return Group(table, *notes)

    def report(self, report: Report) -> RenderableType:
        """What `inspect` shows."""
        parts: list[RenderableType] = [self._facts(report)]
        if report.fill:
            parts += ["", self._fill(report)]
        if report.stripes:
            parts += ["", self._stripes(report.stripes), "", self._probes(report.probe_lengths)]
        if report.total:
            parts += ["", self._processes(report.processes, report.total)]
        if report.top:
            parts += ["", self.topics(report.top)]
        if any(topic.holds for topic in report.top_held):
            parts += ["", self.topics(report.top_held)]
        if report.topics is not None:
            parts += ["", self.topics(report.topics)]
        for style, lines in (("bold red", report.problems), ("yellow", list(hints(report)))):
            parts += [Text(printable(line), style) for line in lines]
        return Group(*parts)

    def topics(self, topics: list[TopicCount]) -> Table:
        with_holds = any(topic.holds for topic in topics)
        table = self._table(">uses", *([">holds"] if with_holds else []), ">ref", "topic")
        for topic in topics:
            counts = [f"{topic.uses:,}", f"{topic.holds:,}"] if with_holds else [f"{topic.uses:,}"]
            table.add_row(*counts, str(topic.ref), Text(printable(topic.value), overflow="fold"))
        return table

    def _facts(self, report: Report) -> Table:
        header, constants = report.header, report.header.constants
        table = Table.grid(padding=(0, 2))
        table.add_row(Text(f"pool {printable(header.name)}", "bold"), self._state(report.state))
        reserved = f"{show_size(header.memory_size)} of memory, {show_size(header.file_size)} reserved"
        table.add_row("file", f"{header.path}, {reserved}")
        if header.version is not None:
            table.add_row("format", f"version {header.version}, layout {header.fingerprint:016x}")
        owner = f"by {_user(header.uid)}, mode {header.mode:04o}"
        if constants:
            made = datetime.fromtimestamp(constants.created_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            owner = f"{made} ({_age(constants.created_ns)} ago) {owner}"
            table.add_row("policy", f"{_policy(report)}, reset {report.resets or 0} times")
        table.add_row("created", owner)
        return table

    def _fill(self, report: Report) -> Table:
        fill = report.fill
        assert fill is not None
        table = Table.grid(padding=(0, 2))
        table.add_row("topics", f"{fill.topics:,} of {fill.capacity:,}", *self._bar(fill.topics, fill.capacity))
        if report.header.constants and report.header.constants.policy.counts_holds:
            table.add_row("holds", f"{fill.holds:,}, and {fill.unheld:,} topics that nobody holds")
        table.add_row(
            "arena", f"{show_size(fill.arena_used_size)} of {show_size(fill.arena_size)}",
            *self._bar(fill.arena_used_size, fill.arena_size),
        )
        if fill.insert_budget is None:
            table.add_row("budget", "no bound on a process's inserts")
        else:
            table.add_row(
                "budget", f"{fill.inserts:,} of {fill.insert_budget:,} inserts, the most of one process",
                *self._bar(fill.inserts, fill.insert_budget),
            )
        return table

    def _stripes(self, stripes: list[StripeReport]) -> Table:
        table = self._table(
            ">stripe", ">topics", ">slots", ">load", ">probes", ">worst", ">growths", ">undone", ">finished", "locked", "intent"
        )
        for each in stripes:
            table.add_row(
                str(each.stripe), f"{each.topics:,}", f"{each.slots:,}", f"{each.load:.0%}", f"{each.probe_mean:.2f}",
                str(each.probe_max), str(each.growths), str(each.rollbacks), str(each.rollforwards),
                "locked" if each.locked else "", each.intent,
            )
        return table

    def _probes(self, lengths: list[int]) -> Table:
        """A histogram of probe lengths, in classes that double."""
        table = self._table("slots read", ">topics", ">")
        classes = groupby(enumerate(lengths, 1), lambda pair: (pair[0] - 1).bit_length())
        counts = [(f"{1 if bits == 0 else (1 << bits - 1) + 1}", f"{1 << bits}", sum(n for _, n in pairs))
                  for bits, pairs in classes]
        for first, last, count in counts:
            table.add_row(first if first == last else f"{first}-{last}", f"{count:,}", *self._bar(count, sum(lengths)))
        return table

    def _processes(self, processes: list[ProcessReport], total: Counters) -> Table:
        with_holds = any(process.holds for process in processes)
        table = self._table(
            ">row", ">pid", "process", ">attached", ">hits", ">misses", ">inserts", *([">holds"] if with_holds else []),
            ">waits", ">takeovers", "command"
        )
        for each in processes:
            command = "" if each.command is None else printable(each.command)
            table.add_row(
                str(each.row), str(each.pid), self._state(each.state), _age(each.attached_ns),
                *_counts(each.counters, each.holds if with_holds else None),
                Text(command, overflow="ellipsis", no_wrap=True),
            )
        held = sum(process.holds for process in processes)
        table.add_row("", "", "all, ever", "", *_counts(total, held if with_holds else None), "")
        return table

    def _bar(self, part: int, whole: int) -> list[RenderableType]:
        share = part / whole if whole else 0.0
        shown: list[RenderableType] = [Text(f"{share:.1%}", justify="right")]
        if self._is_terminal:
            width = min(round(share * _BAR), _BAR)
            style = "red" if share > 0.9 else "green"
            shown.append(Text.assemble((self._full * width, style), (self._empty * (_BAR - width), "dim")))
        return shown

    def _state(self, state: str) -> Text:
        return Text(state, _STATES[state])

    def _table(self, *columns: str) -> Table:
        """Columns by their titles; ">" before one sets it to the right."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        for column in columns:
            right = column.startswith(">")
            table.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=column != "topic")
        return table


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


def _policy(report: Report) -> str:
    constants = report.header.constants
    if not constants:
        return ""
    return f"{constants.policy}, persistent" if constants.persistent else str(constants.policy)


def _counts(counters: Counters, holds: int | None) -> list[str]:
    counts = (counters.hits, counters.misses, counters.inserts, holds, counters.lock_waits, counters.takeovers)
    return [f"{count:,}" for count in counts if count is not None]


def _age(then_ns: int) -> str:
    return show_age(time.time() - then_ns / 1e9)


def _user(uid: int) -> str:
    if uid < 0:
        return ""
    try:
        return printable(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return str(uid)
