"""Draw tools/results/churn.json as tools/results/churn.svg: what could grow while topics come and go, and does not.

    python tools/plot_churn.py
"""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
INK = "#808890"  # legible on a light page and on a dark one
PANELS = (  # figure, title
    ("memory_kib", "real memory of the segment, KiB"),
    ("arena_kib", "arena used, KiB"),
    ("spaces", "spaces ever made"),
    ("slots", "slots of all tables"),
    ("tombstones", "tombstones"),
    ("miss_mean", "slots read by a search in vain, mean"),
    ("miss_p99", "slots read by a search in vain, 99th percentile"),
    ("looks", "lookups by readers beside it, millions"),
)


def main() -> None:
    record = json.loads((RESULTS / "churn.json").read_text())
    samples = record["samples"]
    millions = [pairs / 1e6 for pairs in samples["pairs"]]
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "churn", "font.family": "sans-serif", "text.color": INK})
    plot, grid = plt.subplots(4, 2, figsize=(8, 6.4), sharex=True, layout="constrained")
    for axes, (figure, title) in zip(grid.flat, PANELS, strict=True):
        heights = [height / 1e6 for height in samples[figure]] if figure == "looks" else samples[figure]
        axes.plot(millions, heights, color="#4c8fc9", linewidth=1.2)
        if figure in record["figures"]:
            judged = record["figures"][figure]
            axes.axhline(judged["second_quarter"] + judged["allowed"], color="#d03a3a", linewidth=1, linestyle="--")
        axes.set_ylim(0, 1.25 * max(*heights, 1e-3))
        axes.set_title(title, color=INK, fontsize=9, loc="left")
        axes.tick_params(colors=INK, labelsize=8)
        for side in axes.spines.values():
            side.set_visible(False)
    label = "millions of intern and release pairs; red: the most that the last quarter's median may be"
    plot.supxlabel(label, color=INK, fontsize=9)
    plot.savefig(RESULTS / "churn.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
