"""The command that measures growth: the series, their rounds, the guards and the tables."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress

from tools.recording import finish, parse, start_record
from tools.rivals.growing import (
    Maker,
    Row,
    by_load,
    by_processes,
    by_rate,
    by_stripes,
    by_value_size,
    by_values,
    median_rows,
)
from tools.rivals.member import WrongAnswerError
from tools.rivals.names import Names
from tools.rivals.showing import number, start_table


@dataclass(frozen=True, slots=True)
class Plan:
    """How far each series goes. `rates`: inserts a second of all processes, 0 for as many as they can."""

    rounds: int
    sizes: list[int]
    slots: int
    loads: int
    value_sizes: list[int]
    counts: list[int]
    stripes: list[int]
    rates: list[int]
    processes: int
    samples: int
    seconds: float


FULL: Final = Plan(
    rounds=3, sizes=[1 << bits for bits in range(10, 21, 2)], slots=1 << 14, loads=8,
    value_sizes=[16, 64, 256, 1024, 4096, 16_384, 65_535], counts=[1, 2, 4, 8], stripes=[1, 2, 4, 8, 16, 32, 64],
    rates=[500, 2000, 8000, 32_000, 0], processes=4, samples=1000, seconds=0.6,
)  # fmt: skip
QUICK: Final = Plan(
    rounds=1, sizes=[1 << 10, 1 << 14], slots=1 << 12, loads=3, value_sizes=[16, 1024], counts=[1, 2], stripes=[1, 16],
    rates=[2000, 0], processes=2, samples=300, seconds=0.1,
)  # fmt: skip
WAITING: Final = {"rate, 1 stripe": (1, True), "rate, 16 stripes": (16, True), "rate, alone": (16, False)}  # stripes, all at once

TITLES: Final = {
    "values": "us a call, by the number of values in the pool",
    "load": "us a call, by the load of the table (it doubles at three quarters); slots read for a hit",
    "value size": "us a call, by the size of the value in bytes",
    "processes": "calls a second of all processes together",
    "stripes": "inserts a second of processes that do nothing else; us of single ones",
    **dict.fromkeys(WAITING, "us of single inserts by how many a second are asked for (0: as many as can be) and reached"),
}


def series(plan: Plan, seed: int) -> dict[str, Maker]:
    def names(number: int) -> Names:
        return Names(seed + number)

    def rng(number: int) -> Random:
        return Random(f"{seed}/{number}")

    makers: dict[str, Maker] = {
        "values": lambda number: by_values(plan.sizes, plan.samples, names(number), rng(number)),
        "load": lambda number: by_load(plan.slots, plan.loads, plan.samples, names(number), rng(number)),
        "value size": lambda number: by_value_size(plan.value_sizes, plan.samples, names(number), rng(number)),
        "processes": lambda number: by_processes(plan.counts, plan.seconds, seed + number),
        "stripes": lambda number: by_stripes(plan.stripes, plan.processes, plan.seconds, seed + number),
    }

    def waiting(stripes: int, processes: int) -> Maker:
        rates = [rate * processes // plan.processes for rate in plan.rates]
        return lambda number: by_rate(rates, stripes, processes, plan.seconds, seed + number)

    return makers | {name: waiting(stripes, plan.processes if together else 1) for name, (stripes, together) in WAITING.items()}


def judge(rows: list[Row]) -> list[dict[str, Any]]:
    """Growth from the smallest pool to the largest, beside what must not grow faster."""
    first, last = rows[0], rows[-1]

    def grown(figure: str) -> float:
        return last[figure] / first[figure]

    ratios = [
        ("first lookup, largest pool to smallest", "the same of a dict", grown("first lookup") / grown("dict lookup"), 3.0),
        ("insert, largest pool to smallest", "the same of a dict", grown("insert") / grown("dict insert"), 3.0),
        ("attach, largest pool", "smallest pool", grown("attach"), 5.0),
    ]
    return [
        {"row": row, "rival": rival, "ratio": round(ratio, 3), "most": most, "holds": ratio <= most}
        for row, rival, ratio, most in ratios
    ]


def show(record: dict[str, Any]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=130)
    for name, rows in record["series"].items():
        table = start_table(f"{name}: {TITLES[name]}", *rows[0])
        for row in rows:
            table.add_row(*map(number, row.values()))
        console.print(table)
    table = start_table("guards", "row", "rival", "ratio", "at most", "")
    for guard in record["guards"]:
        said = "holds" if guard["holds"] else "[red bold]PASSED[/]"
        table.add_row(guard["row"], guard["rival"], number(guard["ratio"]), f"{guard['most']:g}", said)
    console.print(table)


def main(about: str) -> int:
    options = parse("growth", about, sys.argv[1:])
    plan = QUICK if options.quick else FULL
    console = Console(stderr=True)
    record = start_record("growth", options.seed) | {"rounds": plan.rounds, "processes": plan.processes, "series": {}}
    makers = series(plan, options.seed)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("", total=len(makers) * plan.rounds)
            for name, maker in makers.items():
                rounds = []
                for turn in range(plan.rounds):
                    progress.update(bar, description=f"{name}, round {turn + 1} of {plan.rounds}")
                    rounds.append(list(maker(turn)))
                    progress.advance(bar)
                record["series"][name] = median_rows(rounds)
    except KeyboardInterrupt:
        return 130
    except WrongAnswerError as error:
        console.print(f"Wrong: {error}", highlight=False, markup=False)
        return 1
    return finish("growth", record | {"guards": judge(record["series"]["values"])}, options, show)
