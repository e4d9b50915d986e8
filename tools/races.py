"""Processes that create, attach, close, unlink, squat and die on one name at once, for as many rounds as asked.

    python -m tools.races [--rounds N] [--processes N] [--seed S] [--json] [--save]

Exit status 1 if two live pools had the name at once, if somebody was attached to a pool without its name, or if a stranger's file
was touched; 130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.stress.races import ROUNDS_A_LIFE, ViolationError, race
from tools.bench_intern import machine

RESULTS: Final = Path(__file__).parent / "results"


def main() -> int:
    options = parse(sys.argv[1:])
    started = time.monotonic()
    console = Console(stderr=True)
    total = options.rounds * options.processes
    try:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("rounds", total=total)
            tally = race(
                f"races-{os.getpid()}", processes=options.processes, rounds=options.rounds, seed=options.seed,
                progress=lambda done: bar.update(task, completed=done),
            )
    except ViolationError as violation:
        print(violation)
        return 1
    except KeyboardInterrupt:
        return 130
    record = {
        "command": " ".join(["python -m tools.races", *sys.argv[1:]]),
        **machine(),
        "date": time.strftime("%Y-%m-%d"),
        "seed": options.seed,
        "seconds": round(time.monotonic() - started, 1),
        "rounds": total,
        "violations": 0,
        "tally": dict(tally.most_common()),
    }
    if options.save:
        (RESULTS / "races.json").write_text(json.dumps(record, indent=2) + "\n")
    if options.json:
        print(json.dumps(record, indent=2))
        return 0
    title = f"{total:,} rounds, seed {options.seed}, {record['seconds']} s: no violation"
    table = Table("what happened", box=SIMPLE_HEAD, title=title)
    table.add_column("times", justify="right")
    for what, count in tally.most_common():
        table.add_row(what, f"{count:,}")
    Console().print(table)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="races", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5000, help=f"of each process, {ROUNDS_A_LIFE} a life; default %(default)s")
    parser.add_argument("--processes", type=int, default=4, help="default %(default)s")
    parser.add_argument("--seed", type=int, help="default: a new one, shown with the figures")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--save", action="store_true", help="keep them in tools/results/races.json too")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    return options


if __name__ == "__main__":
    sys.exit(main())
