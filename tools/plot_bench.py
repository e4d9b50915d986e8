"""Draw tools/results/intern.json as tools/results/intern.svg: what each operation costs, beside its bound and a dict.

    python tools/plot_bench.py
"""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
INK = "#808890"  # legible on a light page and on a dark one
ROWS = (  # label, figure, its bound in us or None
    ("dict function, hit", "dict_us", None),
    ("lookup, repeated", "lookup_hit_us", None),
    ("intern, repeated", "intern_hit_us", None),
    ("lookup_many, first in a process", "lookup_many_us", None),
    ("lookup, first in a process", "first_lookup_us", 4.0),
    ("dict function, insert", "dict_insert_us", None),
    ("intern_many of 50,000 new", "intern_many_us", 5.0),
    ("intern of a new value", "insert_us", 10.0),
)


def main() -> None:
    record = json.loads((RESULTS / "intern.json").read_text())
    figures = record["figures"]
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "intern", "font.family": "sans-serif", "text.color": INK})
    plot, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for place, (label, figure, bound) in enumerate(reversed(ROWS)):
        cost = figures[figure]
        plain = figures.get(f"plain_{figure}")
        if plain:
            axes.plot([cost, plain], [place, place], color="#4c8fc9", linewidth=1.5, linestyle=":", zorder=1)
            axes.plot([plain], [place], marker="|", markersize=11, color="#4c8fc9")
            axes.annotate("plain Python", (plain, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
        axes.barh(place, cost, height=0.62, color="#d98032" if label.startswith("dict") else "#4c8fc9")
        axes.annotate(f"{cost:.2g} us", (cost, place), (-4, 0), textcoords="offset points", va="center", ha="right", color="w")
        if bound:
            axes.plot([bound, bound], [place - 0.4, place + 0.4], color="#d03a3a", linewidth=2, zorder=3)
    axes.set_yticks(range(len(ROWS)), [label for label, *_ in reversed(ROWS)], color=INK)
    axes.set_xscale("log")
    axes.set_xlim(0.02, 90)
    axes.set_xlabel("us a call, median, logarithmic; red: the bound", color=INK)
    axes.tick_params(colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    plot.savefig(RESULTS / "intern.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
