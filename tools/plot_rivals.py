"""Draw tools/results/rivals.json: what each rival's operations cost one process, and what it takes that several know the names.

    python tools/plot_rivals.py
"""

from __future__ import annotations

import json
from typing import Any, Final

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.drawing import RESULTS, WIDTH, Theme, bare, plain_numbers, save, short

SIZE: Final = 10_000  # drawn are the figures of this size, where there are any
PANELS: Final = (  # row, processes at work, figure, title
    ("repeated lookup", 1, "each", "repeated lookup"),
    ("first lookup", 1, "each", "first lookup in another process"),
    ("batch lookup", 1, "each", "batch lookup in another process, each"),
    ("insert", 1, "each", "insert"),
    ("batch insert", 1, "each", "batch insert, each"),
    ("lookup beside a writer", 4, "p50", "lookup by 3 processes while a 4th inserts"),
    ("insert", 4, "p50", "insert by 4 processes at once"),
)


def draw(record: dict[str, Any], theme: Theme) -> Figure:
    rivals = list(record["versions"])
    size = SIZE if str(SIZE) in record["rounds"] else int(max(record["rounds"], key=int))
    found = {(each["row"], each["processes"], each["rival"]): each for each in record["figures"] if each["size"] == size}
    plot, grid = plt.subplots(4, 2, figsize=(WIDTH, 9.6), layout="constrained")
    for place, (axes, (row, processes, figure, title)) in enumerate(zip(grid.flat, PANELS, strict=False)):
        costs = {rival: found.get((row, processes, rival)) for rival in rivals}
        absent = {rival: why_absent(record, rival, row) for rival, cost in costs.items() if not cost}
        bars(axes, rivals, {rival: cost[figure] for rival, cost in costs.items() if cost}, theme, "us", absent)
        for level, rival in enumerate(rivals):
            cost = costs[rival]
            if cost and cost["p99"]:
                axes.plot([cost["p99"]] * 2, [level - 0.3, level + 0.3], color=theme.warning, linewidth=1.6, zorder=3)
        axes.set_xscale("log")
        axes.set_xlim(0.05, 20_000)
        finish(axes, title, rivals, names=place % 2 == 0)
    memory = record["memory"][-1]
    axes = grid.flat[len(PANELS)]
    processes = max(memory["bytes"]["shmpool"], key=int)
    sizes = {rival: totals[processes] / 2**20 for rival, totals in memory["bytes"].items()}
    bars(axes, rivals, sizes, theme, "MiB", {})
    axes.set_xlim(0, 1.05 * max(sizes.values()))
    finish(axes, f"memory of {processes} processes, {memory['topics']:,} names", rivals, names=False)
    rounds = record["rounds"][str(size)]
    about = f"us a call among {size:,} names, logarithmic; bars: a usual call, median of {rounds} rounds; red: p99"
    plot.supxlabel(about, fontsize=9)
    return plot


def why_absent(record: dict[str, Any], rival: str, row: str) -> str:
    return "no such call" if record["left_out"].get(rival, {}).get(row, "").startswith("no call") else "one process only"


def bars(
    axes: Axes, rivals: list[str], values: dict[str, float], theme: Theme, unit: str, absent: dict[str, str]
) -> None:
    for level, rival in enumerate(rivals):
        value = values.get(rival)
        if value is None:
            axes.annotate(absent.get(rival, ""), (0, level), (4, 0), xycoords=("axes fraction", "data"),
                          textcoords="offset points", va="center", fontsize=8, style="italic", color=theme.others)  # fmt: skip
            continue
        axes.barh(level, value, height=0.7, color=theme.ours if rival == "shmpool" else theme.others)
        axes.annotate(f"{short(value)} {unit}", (1, level), (3, 0), xycoords=("axes fraction", "data"),
                      textcoords="offset points", va="center", fontsize=8.5, annotation_clip=False,
                      weight="bold" if rival == "shmpool" else "normal")  # fmt: skip


def finish(axes: Axes, title: str, rivals: list[str], *, names: bool) -> None:
    axes.set_title(title, loc="left", weight="bold")
    axes.set_yticks(range(len(rivals)), rivals if names else [])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.5)
    plain_numbers(axes.xaxis)
    axes.set_axisbelow(True)
    bare(axes, "left")


def main() -> None:
    record = json.loads((RESULTS / "rivals.json").read_text())
    save("rivals", lambda theme: draw(record, theme))


if __name__ == "__main__":
    main()
