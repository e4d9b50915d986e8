"""Draw tools/results/growth.json: how the pool's costs grow, one panel for each thing that they could grow with.

    python tools/plot_growth.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.drawing import RESULTS, WIDTH, Theme, bare, plain_numbers, save

Rows = list[dict[str, float]]


def draw(record: dict[str, Any], theme: Theme) -> Figure:
    series: dict[str, Rows] = record["series"]
    figure, grid = plt.subplots(4, 2, figsize=(WIDTH, 10.4), layout="constrained")
    values, processes = series["values"], record["processes"]
    calls = ("insert", "first lookup", "dict insert", "dict lookup")
    lines(grid[0, 0], values, "values", calls, theme, "us a call, by values in the pool")
    lines(grid[0, 1], series["value size"], "bytes", calls, theme, "us a call, by bytes of a value")
    lines(grid[1, 0], series["load"], "load", ("first lookup", "absent"), theme, "us a lookup, by load of the table")
    lines(grid[1, 1], values, "values", ("attach",), theme, "us to attach, by values in the pool")
    lines(grid[2, 0], series["processes"], "processes", ("first lookups", "inserts"), theme, "calls a second, by processes")
    lines(grid[2, 1], series["stripes"], "stripes", ("inserts",), theme, f"inserts a second by {processes} processes, by stripes")
    waiting = {name.removeprefix("rate, "): rows for name, rows in series.items() if name.startswith("rate, ")}
    for colour, (name, rows) in zip(theme.series, waiting.items(), strict=False):
        across = [row["rate"] for row in rows]
        grid[3, 0].plot(across, [row["p99"] for row in rows], color=colour, marker="o", markersize=3.5, label=f"{name}: p99")
        grid[3, 0].plot(across, [row["p50"] for row in rows], color=colour, linestyle=":", label="p50")
        grid[3, 1].plot(across, [row["waits"] for row in rows], color=colour, marker="o", markersize=3.5, label=name)
    name_lines(grid[3, 0], theme, f"us an insert by {processes} processes, by inserts a second")
    name_lines(grid[3, 1], theme, "waits in 1,000 inserts, by inserts a second")
    for axes in (*grid[0], grid[1, 1], *grid[2], *grid[3]):
        axes.set_xscale("log", base=2 if axes in (*grid[2],) else 10)
    for axes in (*grid[0], grid[3, 0]):
        axes.set_yscale("log")
    for axes in grid.flat:
        finish(axes)
    return figure


def lines(axes: Axes, rows: Rows, by: str, figures: Sequence[str], theme: Theme, title: str) -> None:
    across = [row[by] for row in rows]
    for figure, colour in zip(figures, theme.series, strict=False):
        axes.plot(across, [row[figure] for row in rows], color=colour, marker="o", markersize=3.5, linewidth=1.6, label=figure)
    if by in ("processes", "stripes"):
        axes.set_xticks(across)
    name_lines(axes, theme, title)


def name_lines(axes: Axes, theme: Theme, title: str) -> None:
    axes.set_title(title, loc="left", weight="bold")
    if len(axes.lines) > 1:
        columns = 2 + len(axes.lines) // 6
        axes.legend(frameon=False, fontsize=8, ncols=columns, loc="upper left", labelcolor=theme.ink, handlelength=1.4)


def finish(axes: Axes) -> None:
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
    if axes.get_yscale() == "linear":
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    else:
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, 4 * top)
    axes.tick_params(labelsize=8, length=3)
    axes.grid(alpha=0.5)
    axes.set_axisbelow(True)
    bare(axes, "bottom", "left")


def main() -> None:
    record = json.loads((RESULTS / "growth.json").read_text())
    save("growth", lambda theme: draw(record, theme))


if __name__ == "__main__":
    main()
