"""Draw tools/results/probes.json: probes of adversarial families beside what theory expects.

    python tools/plot_probes.py
"""

from __future__ import annotations

import json
from typing import Any, Final

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tools.drawing import RESULTS, WIDTH, Theme, bare, plain_numbers, save

FIGURES: Final = ("mean", "p99", "longest")


def draw(record: dict[str, Any], theme: Theme) -> Figure:
    rows = [*record["families"], record["control"]]
    plot, axes = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    places = range(len(rows) - 1, -1, -1)
    for figure, colour in zip(FIGURES, theme.series, strict=False):
        axes.scatter([row[figure] for row in rows], places, color=colour, label=f"hit, {figure}", s=28, zorder=3)
    axes.axvline(rows[0]["expected_mean"], color=theme.warning, linewidth=1.5, label="mean expected of random hashes")
    axes.set_yticks(places, [row["family"] for row in rows])
    axes.set_xscale("log")
    plain_numbers(axes.xaxis)
    axes.set_xlabel(f"slots read, logarithmic; load {rows[0]['load']}; last row: who knows the key")
    axes.grid(axis="x", alpha=0.5)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=4, frameon=False, fontsize="small")
    bare(axes)
    return plot


def main() -> None:
    record = json.loads((RESULTS / "probes.json").read_text())
    save("probes", lambda theme: draw(record, theme))


if __name__ == "__main__":
    main()
