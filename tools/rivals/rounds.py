"""The work of one round: what is asked of whom, and the checks that the answers are right."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from tools.rivals.crew import Crew
from tools.rivals.member import Timing, WrongAnswerError
from tools.rivals.rival import Rival, placed

CREATOR: Final = 0  # fills the store, and later is the writer
NEW: Final = 1 << 24  # numbers of names from here on are inserted while others are measured
ABSENT: Final = 1 << 30  # from here on, never
SPARE: Final = 1_000_000  # values that a measurement may add to those it began with
HOT: Final = 256
CHECKED: Final = 100


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done: values of single calls, times the hot ones are looked up, of a batch, seconds beside the writer."""

    singles: int = 2000  # an even number
    repeats: int = 12
    batch: int = 200_000
    seconds: float = 0.5
    processes: tuple[int, ...] = (1, 2, 4)
    most: int = 100_000

    def scaled_to(self, size: int) -> Effort:
        """Not more single calls than there are values."""
        return replace(self, singles=min(self.singles, size))


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of one round. `each` is nanoseconds a call, the mean of the processes; `calls` those of single calls."""

    row: str
    processes: int
    each: float
    calls: list[int] = field(default_factory=list)


def measure(rival: Rival, size: int, effort: Effort, seed: int) -> Iterator[Measured]:
    """Everything of one rival that holds `size` values.

    Raises WrongAnswerError if it does not find what was inserted, finds what was not, or two processes disagree.
    """
    rng = Random(f"{seed}/{size}")
    with placed(rival, size + SPARE) as place, Crew(rival, place, seed) as crew:
        crew.hire(1)
        yield _joined("batch insert", crew.ask("fill", CREATOR, start=0, count=size))
        if rival.is_shared:
            crew.hire(max(effort.processes) + 1)
            yield Measured("attach", 1, statistics.median(crew.opened_ns[1:]))
        yield from _lookups(rival, crew, size, effort, rng)
        check(rival, crew, size, rng)
        yield from _inserts(rival, crew, effort)
        if rival.is_shared:
            yield from _beside_a_writer(crew, size, effort, seed)
        check(rival, crew, size, rng)


def check(rival: Rival, crew: Crew, size: int, rng: Random) -> None:
    """All processes have the same reference for each of some values, and none for values that nobody inserted."""
    everyone = range(len(crew.pids))
    numbers = rng.sample(range(size), min(CHECKED, size))
    answers = crew.ask("refs", *everyone, numbers=numbers)
    if None in answers[0] or any(refs != answers[0] for refs in answers) or len(set(answers[0])) != len(numbers):
        raise WrongAnswerError(f"{rival.name}: processes do not agree about what was inserted")
    if rival.tells_absent:
        strange = crew.ask("refs", *everyone, numbers=range(ABSENT, ABSENT + CHECKED))
        if any(ref is not None for refs in strange for ref in refs):
            raise WrongAnswerError(f"{rival.name} finds what nobody inserted")


def _lookups(rival: Rival, crew: Crew, size: int, effort: Effort, rng: Random) -> Iterator[Measured]:
    shuffled = rng.sample(range(size), min(size, max(effort.batch, effort.singles * len(effort.processes))))
    if "batch lookup" not in rival.left_out:
        fresh = len(crew.pids) - 1  # who does nothing else
        yield _joined("batch lookup", crew.ask("batch_lookup", fresh, numbers=shuffled[: effort.batch]))
    if rival.is_shared:
        for turn, processes in enumerate(effort.processes):  # each time others, so that nobody has met them before
            numbers = shuffled[turn * effort.singles : (turn + 1) * effort.singles]
            if len(numbers) == effort.singles:
                yield _joined("first lookup", crew.ask("first_lookup", *range(1, 1 + processes), numbers=numbers))
    hot = shuffled[:HOT]
    repeats = effort.repeats * HOT // len(hot)
    for members in _teams(rival, effort):
        yield _joined("repeated lookup", crew.ask("repeated_lookup", *members, numbers=hot, repeats=repeats))


def _inserts(rival: Rival, crew: Crew, effort: Effort) -> Iterator[Measured]:
    start = NEW
    for members in _teams(rival, effort):
        tasks = {}
        for member in members:
            tasks[member] = ("insert", {"start": start, "count": effort.singles})
            start += effort.singles
        yield _joined("insert", crew.ask_each(tasks))


def _teams(rival: Rival, effort: Effort) -> list[range]:
    """Who works at once; of a rival that is not shared, its one process."""
    return [range(1, 1 + count) for count in effort.processes] if rival.is_shared else [range(1)]


def _beside_a_writer(crew: Crew, size: int, effort: Effort, seed: int) -> Iterator[Measured]:
    """`processes` counts the writer too."""
    start = 2 * NEW
    for readers in (count - 1 for count in effort.processes if count > 1):
        told = {"seconds": effort.seconds, "size": size, "most": effort.most}
        tasks = {member: ("read_for", {**told, "seed": seed + member}) for member in range(1, 1 + readers)}
        writing = ("write_for", {"seconds": effort.seconds, "start": start, "most": effort.most})
        start += effort.most
        wrote, *read = crew.ask_each({CREATOR: writing} | tasks)
        yield _joined("lookup beside a writer", read, readers + 1)
        yield _joined("insert beside readers", [wrote], readers + 1)


def _joined(row: str, timings: list[Timing], processes: int | None = None) -> Measured:
    each = sum(timing.each for timing in timings) / len(timings)
    return Measured(row, processes or len(timings), each, [call for timing in timings for call in timing.calls])
