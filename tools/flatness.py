"""When a figure of a soak is flat: its median over the last quarter of the samples is at most that over the second quarter, plus
its allowance. The first quarter is for warming up.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from rich.table import Table

# How much each figure may rise, in its own unit, from the second quarter's median to the last's. A leak in every tenth act would
# be more in a minute. Python's allocator may map another arena, and keep it; how many of the last act's killed processes have
# left a row that nobody has taken yet is chance.
ALLOWED: Final = {
    "descriptors": 0.0,
    "mappings": 4.0,
    "segment_files": 0.0,
    "semaphores": 0.0,
    "rows": 4.0,
    "resident_kib": 1024.0,
    "segment_kib": 0.0,
    "shm_kib": 0.0,
}


@dataclass(frozen=True)
class Verdict:
    """A figure's medians over the second quarter of the samples and over the last."""

    figure: str
    second_quarter: float
    last_quarter: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        return self.last_quarter <= self.second_quarter + self.allowed


def judge(
    samples: list[dict[str, float]], figures: Iterable[str], allowed: Mapping[str, float] = ALLOWED
) -> list[Verdict]:
    """Raises ValueError for fewer than four samples."""
    quarter = len(samples) // 4
    if not quarter:
        raise ValueError(f"{len(samples)} samples cannot be judged; soak for longer")

    def median(part: list[dict[str, float]], figure: str) -> float:
        return statistics.median(sample[figure] for sample in part)

    return [
        Verdict(each, median(samples[quarter : 2 * quarter], each), median(samples[-quarter:], each), allowed[each])
        for each in figures
    ]


def tabulate(verdicts: Iterable[Verdict], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("figure", "second quarter", "last quarter", "may rise by", ""):
        table.add_column(heading, justify="left" if heading in ("figure", "") else "right")
    for each in verdicts:
        said = "[green]flat[/]" if each.is_flat else "[red bold]RISES[/]"
        table.add_row(each.figure, f"{each.second_quarter:,.0f}", f"{each.last_quarter:,.0f}", f"{each.allowed:g}", said)
    return table
