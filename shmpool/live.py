"""`shmpool top`: all pools, live on a terminal, with keys to sort and filter."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shmpool.inspection import Counters
from shmpool.report import Report
from shmpool.text import printable, show_size

_ESCAPE: Final = "\x1b"
_ERASE: Final = ("\x7f", "\x08")


class Row(NamedTuple):
    """A pool, and what happened in it a second since the look before."""

    report: Report
    hit_rate: float
    miss_rate: float
    insert_rate: float
    wait_rate: float

    @property
    def topics(self) -> int:
        return self.report.fill.topics if self.report.fill else 0


class Column(NamedTuple):
    """What a column shows, and what it is sorted by; `key` is the key that sorts by it."""

    key: str
    title: str
    show: Callable[[Row], str]
    order: Callable[[Row], str | float]


COLUMNS: Final = (
    Column("n", "name", lambda row: printable(row.report.header.name), lambda row: row.report.header.name),
    Column("s", "state", lambda row: row.report.state, lambda row: row.report.state),
    Column("t", "topics", lambda row: f"{row.topics:,}", lambda row: row.topics),
    Column("m", "memory", lambda row: show_size(row.report.header.memory_size), lambda row: row.report.header.memory_size),
    Column("a", "attached", lambda row: str(row.report.live_count), lambda row: row.report.live_count),
    Column("h", "hits/s", lambda row: f"{row.hit_rate:,.0f}", lambda row: row.hit_rate),
    Column("x", "misses/s", lambda row: f"{row.miss_rate:,.0f}", lambda row: row.miss_rate),
    Column("i", "inserts/s", lambda row: f"{row.insert_rate:,.0f}", lambda row: row.insert_rate),
    Column("w", "waits/s", lambda row: f"{row.wait_rate:,.1f}", lambda row: row.wait_rate),
)


@dataclass
class Board:
    """What is shown: sorted by one column, the largest (of names and states the first) on top; of the pools whose name has
    `filter` in it."""

    sorted_by: Column = COLUMNS[0]
    is_reversed: bool = False
    filter: str = ""
    is_typing: bool = False
    rows: list[Row] = field(default_factory=list)
    _seen: dict[str, tuple[float, Counters]] = field(default_factory=dict)

    def update(self, reports: list[Report], now_s: float) -> None:
        """Take in a new look at all pools."""
        self.rows = [self._rate(report, now_s) for report in reports]
        self._seen = {report.header.name: (now_s, report.total) for report in reports if report.total}

    def _rate(self, report: Report, now_s: float) -> Row:
        then_s, before = self._seen.get(report.header.name, (now_s, None))
        if before is None or report.total is None or now_s <= then_s:
            return Row(report, 0.0, 0.0, 0.0, 0.0)
        names = ("hits", "misses", "inserts", "lock_waits")
        # Fewer than before: another pool has the name by now.
        counts = [max(getattr(report.total, name) - getattr(before, name), 0) for name in names]
        return Row(report, *(count / (now_s - then_s) for count in counts))

    def press(self, key: str) -> bool:
        """Do what a key says; False: leave."""
        if self.is_typing:
            self._type(key)
        elif key == "/":
            self.is_typing = True
        elif key == "r":
            self.is_reversed = not self.is_reversed
        elif key == _ESCAPE:
            self.filter = ""
        elif key == "q":
            return False
        else:
            self.sorted_by = next((column for column in COLUMNS if column.key == key), self.sorted_by)
        return True

    def _type(self, key: str) -> None:
        if key in ("\r", "\n", _ESCAPE):
            self.is_typing = False
            self.filter = "" if key == _ESCAPE else self.filter
        elif key in _ERASE:
            self.filter = self.filter[:-1]
        else:
            self.filter += key

    def shown(self) -> list[Row]:
        """The rows in the order in which they are shown."""
        rows = [row for row in self.rows if self.filter in row.report.header.name]
        is_number = self.sorted_by.title not in ("name", "state")
        return sorted(rows, key=self.sorted_by.order, reverse=is_number != self.is_reversed)

    def draw(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for column in COLUMNS:
            style = "bold reverse" if column is self.sorted_by else "bold"
            justify = "left" if column.title in ("name", "state") else "right"
            table.add_column(Text(column.title, style), justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for row in self.shown():
            table.add_row(*(column.show(row) for column in COLUMNS))
        keys = "  ".join(f"{column.key} {column.title}" for column in COLUMNS)
        typed = f"filter: {printable(self.filter)}{'_' if self.is_typing else ''}   " if self.filter or self.is_typing else ""
        return Group(table, "", Text(f"{typed}sort by {keys}   r reverse   / filter   q quit", "dim"))


def run_top(console: Console, look: Callable[[], list[Report]], seconds: float) -> None:
    """Show all pools every so many seconds, and at once after a key, until q or Ctrl-C."""
    board = Board()
    next_s = time.monotonic()
    with _each_key(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            if time.monotonic() >= next_s:
                board.update(look(), time.monotonic())
                next_s = time.monotonic() + seconds
            live.update(board.draw(), refresh=True)
            if select.select([0], [], [], max(next_s - time.monotonic(), 0))[0]:
                pressed = os.read(0, 64).decode(errors="ignore")
                if not pressed or not all(map(board.press, pressed)):
                    return


@contextmanager
def _each_key() -> Iterator[None]:
    """Have the terminal hand over each key as it is pressed, and show none."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
