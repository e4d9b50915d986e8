"""Reports for people: tables and bars on a terminal; plain columns without colours, bars or line breaks everywhere else.

Everything that a process chose (topics, command lines, names of files) comes through `printable`.
"""

import sys
from collections.abc import Sequence
from typing import Final, TypeVar

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from shmpool.facts import (
    PROCESS_COLUMNS,
    STRIPE_COLUMNS,
    TOPIC_COLUMNS,
    Column,
    Kind,
    age,
    facts,
    gauges,
    hints,
    policy,
    probe_classes,
    top_held,
    user,
    worth_showing,
)
from shmpool.report import Report
from shmpool.text import printable, show_size

T = TypeVar("T")
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
                age(constants.created_ns) if constants else "",
                printable(user(header.uid)),
                policy(report),
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
            parts += ["", self._gauges(report)]
        if report.stripes:
            parts += ["", self._columns(STRIPE_COLUMNS, report.stripes), "", self._probes(report.probe_lengths)]
        if report.total:
            parts += ["", self._columns(PROCESS_COLUMNS, report.processes, report)]
        lists = [each for each in (report.top, top_held(report)) if each] + ([] if report.topics is None else [report.topics])
        for topics in lists:
            parts += ["", self._columns(TOPIC_COLUMNS, topics)]
        for style, lines in (("bold red", report.problems), ("yellow", list(hints(report)))):
            parts += [Text(printable(line), style) for line in lines]
        return Group(*parts)

    def _facts(self, report: Report) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row(Text(f"pool {printable(report.header.name)}", "bold"), self._state(report.state))
        for name, text in facts(report):
            table.add_row(name, printable(text))
        return table

    def _gauges(self, report: Report) -> Table:
        table = Table.grid(padding=(0, 2))
        for gauge in gauges(report):
            table.add_row(gauge.title, gauge.text, *(self._bar(gauge.share) if gauge.share is not None else ()))
        return table

    def _probes(self, lengths: list[int]) -> Table:
        table = self._table("slots read", ">topics", ">")
        for each in probe_classes(lengths):
            table.add_row(each.slots, f"{each.topics:,}", *self._bar(each.share))
        return table

    def _columns(self, columns: Sequence[Column[T]], rows: Sequence[T], report: Report | None = None) -> Table:
        """A table, with a line of totals if there is a report to take them from."""
        columns = worth_showing(columns, rows)
        table = self._table(*(f">{column.title}" if column.kind == "number" else column.title for column in columns))
        for row in rows:
            table.add_row(*(self._cell(column.kind, printable(column.text(row))) for column in columns))
        if report:
            table.add_row(*(column.total(report) if column.total else "" for column in columns))
        return table

    def _cell(self, kind: Kind, text: str) -> RenderableType:
        match kind:
            case "state":
                return self._state(text)
            case "topic":
                return Text(text, overflow="fold")
            case "command":
                return Text(text, overflow="ellipsis", no_wrap=True)
        return text

    def _bar(self, share: float) -> list[RenderableType]:
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
