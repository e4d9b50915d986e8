"""Draw tools/results/soak.json as tools/results/soak.svg: what a soak counted between its acts, from its start to its end.

    python tools/plot_soak.py
"""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
INK = "#808890"  # legible on a light page and on a dark one
PANELS = (  # figure, title
    ("descriptors", "open descriptors"),
    ("mappings", "mappings"),
    ("resident_kib", "resident memory of the long-lived process, KiB"),
    ("segment_files", "segment files"),
    ("semaphores", "semaphores"),
    ("rows", "occupied process rows"),
    ("segment_kib", "real memory of the segment, KiB"),
    ("shm_kib", "all of /dev/shm, KiB"),
)


def main() -> None:
    record = json.loads((RESULTS / "soak.json").read_text())
    samples = record["samples"]
    minutes = [seconds / 60 for seconds in samples["elapsed_s"]]
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "soak", "font.family": "sans-serif", "text.color": INK})
    plot, grid = plt.subplots(4, 2, figsize=(8, 6.4), sharex=True, layout="constrained")
    for axes, (figure, title) in zip(grid.flat, PANELS, strict=True):
        axes.plot(minutes, samples[figure], color="#4c8fc9", linewidth=1.4)
        if figure in record["figures"]:
            judged = record["figures"][figure]
            axes.axhline(judged["second_quarter"] + judged["allowed"], color="#d03a3a", linewidth=1, linestyle="--")
        axes.set_ylim(0, 1.25 * max(*samples[figure], 1))
        axes.set_title(title, color=INK, fontsize=9, loc="left")
        axes.tick_params(colors=INK, labelsize=8)
        for side in axes.spines.values():
            side.set_visible(False)
    plot.supxlabel("minutes; red: the most that the last quarter's median may be", color=INK, fontsize=9)
    plot.savefig(RESULTS / "soak.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
