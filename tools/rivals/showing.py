"""The record of a run as tables."""

from __future__ import annotations

import sys
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tools.rivals.figures import ROWS


def show(record: dict[str, Any]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=130)
    for size in record["rounds"]:
        console.print(costs(record, int(size)))
    guarded = 10_000 if "10000" in record["rounds"] else int(max(record["rounds"], key=int))
    console.print(spread(record, guarded), *map(memory, record["memory"]), guards(record))
    for rival, version in record["versions"].items():
        console.print(f"{rival}: {version}. {record['notes'].get(rival, '')}", highlight=False, markup=False)
    for rival, reason in record["skipped"].items():
        console.print(f"{rival}: skipped: {reason}", highlight=False, markup=False)


def costs(record: dict[str, Any], size: int) -> Table:
    """Microseconds a call of every rival."""
    rivals = list(record["versions"])
    found = {(each["rival"], each["row"], each["processes"]): each["each"] for each in record["figures"] if each["size"] == size}
    rounds = record["rounds"][str(size)]
    table = start_table(f"{size:,} values: us a call usually costs, median of {rounds} rounds", "row", "processes", *rivals)
    for row, title in ROWS.items():
        for processes in sorted({processes for _, name, processes in found if name == row}):
            cells = [number(found.get((rival, row, processes))) for rival in rivals]
            table.add_row(title, str(processes), *cells)
    return table


def spread(record: dict[str, Any], size: int) -> Table:
    """p50, p90, p99 and the longest of single calls."""
    rivals = list(record["versions"])
    table = start_table(f"{size:,} values: us of single calls", "rival", "row", "processes", "mean", "p50",
                        "p90", "p99", "max")  # fmt: skip
    for rival in rivals:
        for each in record["figures"]:
            if each["rival"] == rival and each["size"] == size and each["calls"]:
                cells = [number(each[name]) for name in ("mean", "p50", "p90", "p99", "max")]
                table.add_row(rival, ROWS[each["row"]], str(each["processes"]), *cells)
    return table


def memory(measured: dict[str, Any]) -> Table:
    topics, own = measured["topics"], measured["value_bytes"]
    counts = sorted(next(iter(measured["bytes"].values())), key=int)
    titles = [f"{count} process{'es' if int(count) > 1 else ''}, MiB" for count in counts]
    title = f"real memory of processes that all know {topics:,} topics of {own / topics:.0f} bytes"
    table = start_table(title, "rival", *titles, "bytes a topic", "beyond its value")
    for rival, totals in measured["bytes"].items():
        mebibytes = [f"{totals[count] / 2**20:.1f}" for count in counts]
        alone = totals[counts[0]]
        table.add_row(rival, *mebibytes, f"{alone / topics:.0f}", f"{(alone - own) / topics:.0f}")
    return table


def guards(record: dict[str, Any]) -> Table:
    table = start_table("guards: shmpool's cost in that of a rival, same rounds", "row", "rival", "ratio", "at most", "")
    for guard in record["guards"]:
        said = {True: "holds", False: "[red bold]PASSED[/]", None: "not judged: too little measured"}[guard["holds"]]
        table.add_row(guard["row"], guard["rival"], number(guard["ratio"]), f"{guard['most']:g}", said)
    return table


def start_table(title: str, *columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("row", "rival", "") else "right")
    return table


def number(value: float | None) -> str:
    """Three digits, and a dash where nothing was measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
