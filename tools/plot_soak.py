"""Draw tools/results/soak.json: what a soak counted between its acts, from its start to its end.

    python tools/plot_soak.py
"""

from __future__ import annotations

import json
from typing import Any, Final

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tools.drawing import RESULTS, WIDTH, Theme, bare, save

PANELS: Final = (  # figure, title
    ("descriptors", "open descriptors"),
    ("mappings", "mappings"),
    ("resident_kib", "resident memory of the long-lived process, KiB"),
    ("segment_files", "segment files"),
    ("semaphores", "semaphores"),
    ("rows", "occupied process rows"),
    ("segment_kib", "real memory of the segment, KiB"),
    ("shm_kib", "all of /dev/shm, KiB"),
)


def draw(record: dict[str, Any], theme: Theme) -> Figure:
    samples = record["samples"]
    minutes = [seconds / 60 for seconds in samples["elapsed_s"]]
    plot, grid = plt.subplots(4, 2, figsize=(WIDTH, 6.4), sharex=True, layout="constrained")
    for axes, (figure, title) in zip(grid.flat, PANELS, strict=True):
        axes.plot(minutes, samples[figure], color=theme.ours, linewidth=1.4)
        if figure in record["figures"]:
            judged = record["figures"][figure]
            axes.axhline(judged["second_quarter"] + judged["allowed"], color=theme.warning, linewidth=1, linestyle="--")
        axes.set_ylim(0, 1.25 * max(*samples[figure], 1))
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        bare(axes)
    plot.supxlabel("minutes; red: the most that the last quarter's median may be", fontsize=9)
    return plot


def main() -> None:
    record = json.loads((RESULTS / "soak.json").read_text())
    save("soak", lambda theme: draw(record, theme))


if __name__ == "__main__":
    main()
