"""Draw tools/results/probes.json as tools/results/probes.svg: probes of adversarial families beside what theory expects.

    python tools/plot_probes.py
"""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
INK = "#808890"  # legible on a light page and on a dark one
COLOURS = {"mean": "#4c8fc9", "p99": "#d98032", "longest": "#9a6fb8"}


def main() -> None:
    record = json.loads((RESULTS / "probes.json").read_text())
    rows = [*record["families"], record["control"]]
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "probes", "font.family": "sans-serif", "text.color": INK})
    plot, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    places = range(len(rows) - 1, -1, -1)
    for figure, colour in COLOURS.items():
        axes.scatter([row[figure] for row in rows], places, color=colour, label=f"hit, {figure}", s=28, zorder=3)
    axes.axvline(rows[0]["expected_mean"], color="#d03a3a", linewidth=1.5, label="mean expected of random hashes")
    axes.set_yticks(places, [row["family"] for row in rows], color=INK)
    axes.set_xscale("log")
    axes.set_xlabel(f"slots read, logarithmic; load {rows[0]['load']}; last row: who knows the key", color=INK)
    axes.tick_params(colors=INK)
    axes.grid(axis="x", color=INK, alpha=0.25)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=4, frameon=False, fontsize="small")
    for side in axes.spines.values():
        side.set_visible(False)
    plot.savefig(RESULTS / "probes.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
