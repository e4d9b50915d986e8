"""Every kill point: each operation on a pool, killed before each store and system call of its machine code.

    python -m tools.kill_points [--seed S] [--only WORD ...] [--stride N] [--json] [--save]

A real process does the operation under ptrace and gets SIGKILL before its k-th step, for every k until it completes; then another
process must go on within 100 ms (a slow one is tried again, up to three times: it may have waited for a core), and everything is
judged (see tests/stress/kill_points.py, and lifecycles.py for pools that let topics go). Recovery is an operation, too: after
kills that leave a lock held or an intent set, the next process is killed at every step of taking over and recovering.

Exit status 0 if nothing was lost, doubled, leaked or blocked, 1 if something was, 2 if it could not be run, 130 if interrupted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.stress import deaths, operations
from tests.stress.kill_points import SURVIVOR_LIMIT_S, KillPoints, Operation, Tally
from tests.stress.operations import INSERTS, OPERATIONS, STRIPES
from tests.stress.tracing import is_possible
from tests.stress.turns import BASES, TURNS
from tests.unit.inside import ENGINES, engine_chosen
from tests.unit.own_files import OwnFiles, own_files
from tools.bench_intern import machine

RESULTS: Final = Path(__file__).parent / "results"
MOST_RECOVERIES: Final = 20  # of one operation: a long batch has a hundred kills to recover from that differ in a count alone
SHOWN: Final = 20
PLAIN: Final = ", plain Python"
PLAIN_WIDTH: Final = 150

Tallies = dict[str, Tally]
Say = Callable[[str, int, int], None]  # what is being killed, how many operations are done, of how many


def main() -> int:
    options = parse(sys.argv[1:])
    if not is_possible():
        print("kill_points: this is no x86-64, or this machine lets nobody trace its own children", file=sys.stderr)
        return 2
    tallies: Tallies = {}
    status, started = 0, time.monotonic()
    hash_key = random.Random(options.seed).randbytes(16)
    with own_files(f"kill-{os.getpid()}", hash_key) as files:
        try:
            with progress() as say:
                kill_everywhere(files, options, tallies, say)
        except KeyboardInterrupt:
            status = 130
        left = files.now()
    violations = [violation for tally in tallies.values() for violation in tally.violations]
    violations += [f"left behind at the end: {left}"] if left else []
    record = summarise(options, tallies, violations, time.monotonic() - started)
    if options.save and status == 0:
        (RESULTS / "kill_points.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2)) if options.json else show(record)
    return status or (1 if violations else 0)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kill_points", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, help="of the pools' hash key; default: a new one, shown with the figures")
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[""], help="only operations with one of these in their name")
    parser.add_argument("--stride", type=int, default=1, help="only every N-th kill point")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--save", action="store_true", help="keep them in tools/results/kill_points.json too")
    options = parser.parse_args(arguments)
    if options.stride < 1:
        parser.error("--stride must be at least 1")
    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    return options


def kill_everywhere(files: OwnFiles, options: argparse.Namespace, tallies: Tallies, say: Say) -> None:
    points = KillPoints(files, lambda _: None)
    todo: list[tuple[str, Operation]] = [(operation.name, operation) for operation in [*OPERATIONS, STRIPES]]
    todo += [(turn.name + PLAIN * plain, turn) for turn in TURNS for plain in range(len(ENGINES))]
    bases: dict[str, Callable[[], Sequence[Operation]]] = {
        f"recovery from {base.name}": partial(operations.recoveries, base, files) for base in INSERTS
    }
    bases |= {f"recovery from {base.name}": partial(deaths.recoveries, base, files) for base in BASES}
    wanted = [name for name in [*dict(todo), *bases] if any(word in name for word in options.only)]
    for name, recoveries in bases.items():
        if name in wanted:
            say(f"which kills need {name}", 0, 1)
            found = recoveries()
            todo += [(name, recovery) for recovery in found[:: -(-len(found) // MOST_RECOVERIES)]]
    todo = [(name, operation) for name, operation in todo if name in wanted]
    for done, (name, operation) in enumerate(todo):
        tally = tallies.setdefault(name, Tally())
        with engine_chosen("python" if name.endswith(PLAIN) else ENGINES[0]):
            for _ in points.each(operation, tally, options.stride):
                say(f"{name}: {tally.points} kill points", done, len(todo))
    say("done", len(todo), len(todo))


@contextmanager
def progress() -> Iterator[Say]:
    """A bar on a terminal, a line for each operation elsewhere; on stderr, so that stdout holds only the figures."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lines_of_progress()
        return
    columns = (TextColumn("{task.description:60}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def lines_of_progress() -> Say:
    said = ""

    def say(what: str, done: int, total: int) -> None:
        nonlocal said
        if what.partition(":")[0] != said:
            said = what.partition(":")[0]
            print(f"{said} ({done} of {total} done)", file=sys.stderr, flush=True)

    return say


def summarise(options: argparse.Namespace, tallies: Tallies, violations: list[str], took_s: float) -> dict[str, Any]:
    every = [seconds for tally in tallies.values() for seconds in tally.survivors_s]
    return {
        "command": " ".join(["python -m tools.kill_points", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **machine(),
        "seed": options.seed,
        "took_s": round(took_s),
        "kill_points": len(every),
        "survivor_worst_ms": round(max(every, default=0) * 1000, 1),
        "survivor_limit_ms": SURVIVOR_LIMIT_S * 1000,
        "violations": violations,
        "operations": {name: figures_of(tally) for name, tally in tallies.items() if tally.points},
    }


def figures_of(tally: Tally) -> dict[str, float]:
    return {
        "kill_points": tally.points,
        "stores": tally.stores,
        "system_calls": tally.calls,
        "rollbacks": tally.rollbacks,
        "rollforwards": tally.rollforwards,
        "survivor_median_ms": round(tally.median_s * 1000, 1),
        "survivor_worst_ms": round(tally.worst_s * 1000, 1),
        "retried": tally.retried,
        "violations": len(tally.violations),
    }


def show(record: dict[str, Any]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    heads = ["kill points", "stores", "calls", "rolled back", "forward", "median ms", "worst ms", "retried", "violations"]
    table = Table("operation", *heads, box=SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for name, figures in record["operations"].items():
        table.add_row(name, *(f"{value:,}" for value in figures.values()))
    console.print(table)
    for violation in record["violations"][:SHOWN]:
        console.print(violation, markup=False)
    console.print(
        f"{record['kill_points']:,} kill points in {record['took_s']:,} s, seed {record['seed']}; the worst survivor "
        f"went on after {record['survivor_worst_ms']} ms; {len(record['violations'])} violations"
    )


if __name__ == "__main__":
    sys.exit(main())
