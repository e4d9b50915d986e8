"""Draw tools/results/intern.json: what each operation costs, beside its bound and a dict.

    python tools/plot_bench.py
"""

from __future__ import annotations

import json
from typing import Final

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tools.drawing import RESULTS, WIDTH, Theme, bare, plain_numbers, save

ROWS: Final = (  # label, figure, its bound in us or None
    ("dict function, hit", "dict_us", None),
    ("lookup, repeated", "lookup_hit_us", None),
    ("intern, repeated", "intern_hit_us", None),
    ("lookup_many, first in a process", "lookup_many_us", None),
    ("lookup, first in a process", "first_lookup_us", 4.0),
    ("dict function, insert", "dict_insert_us", None),
    ("intern_many of 50,000 new", "intern_many_us", 5.0),
    ("intern of a new value", "insert_us", 10.0),
)


def draw(figures: dict[str, float], theme: Theme) -> Figure:
    plot, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
    for place, (label, figure, bound) in enumerate(ROWS):
        cost, plain = figures[figure], figures.get(f"plain_{figure}")
        if plain:
            axes.plot([cost, plain], [place, place], color=theme.ours, linewidth=1.5, linestyle=":", zorder=1)
            axes.plot([plain], [place], marker="|", markersize=11, color=theme.ours)
            axes.annotate("plain Python", (plain, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
        axes.barh(place, cost, height=0.62, color=theme.others if label.startswith("dict") else theme.ours)
        axes.annotate(f"{cost:.2g} us", (1, place), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="center", annotation_clip=False)  # fmt: skip
        if bound:
            axes.plot([bound, bound], [place - 0.4, place + 0.4], color=theme.warning, linewidth=2, zorder=3)
    axes.set_yticks(range(len(ROWS)), [label for label, *_ in ROWS])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.02, 90)
    plain_numbers(axes.xaxis)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("us a call, median, logarithmic; red: the bound")
    bare(axes)
    return plot


def main() -> None:
    figures = json.loads((RESULTS / "intern.json").read_text())["figures"]
    save("intern", lambda theme: draw(figures, theme))


if __name__ == "__main__":
    main()
