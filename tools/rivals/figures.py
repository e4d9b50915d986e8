"""Rounds become figures, ratios and verdicts."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from tools.rivals.rounds import Measured

ROWS: Final = {  # row: what it is called in tables and plots
    "insert": "insert",
    "batch insert": "batch insert, each",
    "first lookup": "first lookup in another process",
    "batch lookup": "batch lookup in another process, each",
    "repeated lookup": "repeated lookup",
    "lookup beside a writer": "lookup while one inserts",
    "insert beside readers": "insert while others look up",
    "attach": "attach",
}


class Key(NamedTuple):
    rival: str
    row: str
    size: int
    processes: int


@dataclass(frozen=True, slots=True)
class Figure:
    """Microseconds: what a call usually costs (`each`, the median of the rounds, and `least`), and how single calls spread."""

    rival: str
    row: str
    size: int
    processes: int
    rounds: int
    each: float
    least: float
    calls: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """shmpool's cost of a row is at most so many times that of a rival, which was measured in the same rounds.

    The bounds have room for a noisy machine: they catch a cost that has doubled or tripled, not one of a few percent.
    """

    row: str
    rival: str
    most: float


GUARDS: Final = (
    Guard("insert", "SQLite", 1.0),
    Guard("batch insert", "SQLite", 2.0),
    Guard("batch lookup", "SQLite", 1.0),
    Guard("first lookup", "SQLite", 1.5),
    Guard("first lookup", "LMDB", 4.0),
    Guard("repeated lookup", "dict", 2.0),
)
MEMORY_GUARD: Final = 0.6  # of processes that know the same names, beside as many dicts
FEWEST_ROUNDS: Final = 3  # of fewer the median says nothing


class Results:
    """What the rounds have measured. Every rival takes part in every round."""

    def __init__(self) -> None:
        self._rounds: dict[Key, list[Measured]] = defaultdict(list)

    def add(self, rival: str, size: int, measured: Measured) -> None:
        self._rounds[Key(rival, measured.row, size, measured.processes)].append(measured)

    def figures(self) -> list[Figure]:
        return [_summarise(key, rounds) for key, rounds in self._rounds.items()]

    def ratio(self, row: str, size: int, rival: str) -> float | None:
        """The median of the rounds' ratios of shmpool's cost to the rival's, one process each; None if too few have both."""
        ours = self._rounds.get(Key("shmpool", row, size, 1), [])
        theirs = self._rounds.get(Key(rival, row, size, 1), [])
        ratios = [mine.each / other.each for mine, other in zip(ours, theirs, strict=False)]
        return statistics.median(ratios) if len(ratios) >= FEWEST_ROUNDS else None

    def judge(self, size: int, memory: dict[str, dict[int, int]]) -> list[dict[str, Any]]:
        """Each guard, the ratio measured, and whether it holds: None where there is no ratio. `memory` is bytes by processes."""
        verdicts = [_verdict(asdict(guard), self.ratio(guard.row, size, guard.rival)) for guard in GUARDS]
        ours, theirs = (memory.get(rival, {}) for rival in ("shmpool", "dict"))
        most = max(ours, default=0)
        row = {"row": f"memory of {most} processes", "rival": "dict", "most": MEMORY_GUARD}
        return [*verdicts, _verdict(row, ours[most] / theirs[most] if ours and theirs else None)]


def _summarise(key: Key, rounds: list[Measured]) -> Figure:
    means = [measured.each / 1000 for measured in rounds]
    figure: dict[str, Any] = {**key._asdict(), "rounds": len(rounds)}
    figure |= {"each": round(statistics.median(means), 4), "least": round(min(means), 4)}
    calls = np.array([call for measured in rounds for call in measured.calls]) / 1000
    if len(calls):
        spread = dict(zip(("p50", "p90", "p99", "max"), np.percentile(calls, (50, 90, 99, 100)), strict=True))
        spread["mean"] = calls.mean()
        figure |= {"calls": len(calls), **{name: round(float(value), 4) for name, value in spread.items()}}
    return Figure(**figure)


def _verdict(guard: dict[str, Any], ratio: float | None) -> dict[str, Any]:
    return guard | {"ratio": ratio and round(ratio, 3), "holds": None if ratio is None else ratio <= guard["most"]}
