"""The command: all rounds of all rivals, and the record of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress

from tools.recording import finish, parse, start_record
from tools.rivals.catalog import RIVALS
from tools.rivals.figures import Results
from tools.rivals.member import WrongAnswerError
from tools.rivals.memory import measure_memory
from tools.rivals.names import Names
from tools.rivals.rival import Rival
from tools.rivals.rounds import Effort, measure
from tools.rivals.showing import show

PROCESSES: Final = (1, 2, 4)  # that share what they know, for their memory
GUARDED: Final = 10_000  # values at which ratios are judged


Memory = dict[int, dict[str, dict[int, int]]]  # bytes: topics, rival, processes


@dataclass(frozen=True, slots=True)
class Plan:
    """rounds: how many at each size. topics: how many memory is measured with."""

    rounds: dict[int, int]
    effort: Effort
    topics: tuple[int, ...]


FULL: Final = Plan({64: 3, 10_000: 5, 1_000_000: 1}, Effort(), (1000, 10_000, 100_000))
QUICK: Final = Plan({64: 1, 10_000: 1}, Effort(singles=300, repeats=2, seconds=0.05, processes=(1, 2)), (10_000,))


def run(rivals: Iterable[Rival], plan: Plan, seed: int, console: Console) -> tuple[Results, Memory]:
    """All rounds, then memory. Raises WrongAnswerError for a rival whose answers are wrong."""
    rivals, results = list(rivals), Results()
    memory: Memory = {topics: {} for topics in plan.topics}
    total = (sum(plan.rounds.values()) + len(plan.topics)) * len(rivals)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total)
        for size, rounds in plan.rounds.items():
            for number in range(rounds):
                shift = number % len(rivals)
                for rival in rivals[shift:] + rivals[:shift]:
                    progress.update(bar, description=f"{size:,} values, round {number + 1} of {rounds}: {rival.name}")
                    for measured in measure(rival, size, plan.effort.scaled_to(size), seed + number):
                        results.add(rival.name, size, measured)
                    progress.advance(bar)
        for topics, rival in product(plan.topics, rivals):
            progress.update(bar, description=f"memory of {topics:,} values: {rival.name}")
            memory[topics][rival.name] = measure_memory(rival, topics, PROCESSES, seed)
            progress.advance(bar)
    return results, memory


def make_record(plan: Plan, seed: int, skipped: dict[str, str], results: Results, memory: Memory) -> dict[str, Any]:
    measured = [RIVALS[name] for name in memory[plan.topics[0]]]
    value_bytes = {topics: sum(map(len, Names(seed).span(0, topics))) for topics in plan.topics}
    return {
        "rounds": {str(size): rounds for size, rounds in plan.rounds.items()},
        "effort": asdict(plan.effort),
        "versions": {rival.name: rival.version() for rival in measured},
        "notes": {rival.name: rival.note for rival in measured if rival.note},
        "left_out": {rival.name: rival.left_out for rival in measured if rival.left_out},
        "skipped": skipped,
        "guards": results.judge(GUARDED, memory.get(GUARDED, {})),
        "memory": [{"topics": topics, "value_bytes": value_bytes[topics], "bytes": memory[topics]} for topics in memory],
        "unit": "us a call",
        "figures": [asdict(figure) for figure in results.figures()],
    }


def main(about: str) -> int:
    options = parse("rivals", about, sys.argv[1:])
    console = Console(stderr=True)
    skipped = {name: reason for name, rival in RIVALS.items() if (reason := rival.missing())}
    for name, reason in skipped.items():
        console.print(f"Skipped: {name}: {reason}", highlight=False, markup=False)
    plan = QUICK if options.quick else FULL
    origin = start_record("rivals", options.seed)
    try:
        results, memory = run([rival for name, rival in RIVALS.items() if name not in skipped], plan, options.seed, console)
    except KeyboardInterrupt:
        return 130
    except WrongAnswerError as error:
        console.print(f"Wrong: {error}", highlight=False, markup=False)
        return 1
    return finish("rivals", origin | make_record(plan, options.seed, skipped, results, memory), options, show)
