"""What the plots of tools/results have in common: each is drawn twice, NAME.svg for light pages and NAME-dark.svg for dark ones.

In a README both go into one <picture>, with a <source media="(prefers-color-scheme: dark)"> for the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

RESULTS: Final = Path(__file__).parent / "results"
WIDTH: Final = 8.6  # inches: at a README's width a point of text is about a pixel and a half


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours. `ours` is the pool; `series` are told apart by people who see colours differently, too."""

    suffix: str
    ink: str
    faint: str
    ours: str
    others: str
    warning: str
    series: tuple[str, ...]


LIGHT: Final = Theme("", "#1f2328", "#c6ccd2", "#0b6bcb", "#9aa4ae", "#c62828", ("#0b6bcb", "#d1690b", "#2a8a43", "#8a4fbf"))
DARK: Final = Theme("-dark", "#e6edf3", "#4a525c", "#58a6ff", "#6e7883", "#ff7b72", ("#58a6ff", "#f0a04b", "#56d364", "#c297ff"))


def save(name: str, draw: Callable[[Theme], Figure]) -> None:
    """Draw tools/results/NAME.svg and NAME-dark.svg. Their bytes depend on what is drawn only, not on the day."""
    for theme in (LIGHT, DARK):
        style: dict[Any, Any] = {
            "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 9,
            "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.edgecolor": theme.faint, "axes.titlecolor": theme.ink,
            "xtick.color": theme.ink, "ytick.color": theme.ink, "grid.color": theme.faint, "axes.titlesize": 10,
        }  # fmt: skip
        with mpl.rc_context(style):
            figure = draw(theme)
            figure.savefig(RESULTS / f"{name}{theme.suffix}.svg", transparent=True, metadata={"Date": None})
            plt.close(figure)


def bare(axes: Axes, *sides: str) -> None:
    """Leave only those sides of the frame."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in sides)


def plain_numbers(axis: Axis) -> None:
    """10,000 and 0.1 rather than powers, and a mark for each power only."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def short(value: float) -> str:
    """Two digits that matter, and no exponent."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
