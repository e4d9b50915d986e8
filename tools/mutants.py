"""Mutants of full pools: damage of every kind, tried until something crashes, hangs, or hands out wrong bytes.

    python -m tools.mutants [--mutants N] [--minutes M] [--seed S] [--only N ...] [--processes N] [--json] [--save]

Every mutant is attached (or was attached before the damage), read cold, checked, inspected, inserted into and closed, in a child
that a watchdog kills when it hangs. Exit status 0 if none did what it must not, 1 if one did, 2 if it could not be run, 130 if
it was interrupted. A mutant is told by its seed and number: `--seed S --only N` repeats it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from shmpool import PoolError
from tests.stress.mutants import HARMLESS, VIOLATIONS
from tests.stress.watched import Mutants, Result
from tools.bench_intern import machine

MUTANTS: Final = 100_000
SHOWN: Final = 3  # of a mutant's complaints, the first of which is what it is
RESULTS: Final = Path(__file__).parent / "results"


def main() -> int:
    options = parse(sys.argv[1:])
    tally: Counter[tuple[str, str]] = Counter()
    violations: list[Result] = []
    started = time.monotonic()
    status = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell that put this in the background ignores it
    try:
        mutants = Mutants(f"mutants-{os.getpid()}", options.seed)
        numbers = options.only or range(options.mutants)
        for result in with_progress(mutants.try_all(numbers, options.processes), len(numbers)):
            tally[result.region, result.outcome] += 1
            if result.outcome in VIOLATIONS:
                violations.append(result)
                said = "\n    ".join(result.complaints[:SHOWN])
                print(f"mutant {result.number} ({result.outcome})\n    {said}", file=sys.stderr, flush=True)
            if time.monotonic() - started > options.minutes * 60:
                break
    except KeyboardInterrupt:
        status = 130
    except (PoolError, OSError) as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    record = summarise(options, tally, violations, time.monotonic() - started)
    if options.save and status == 0:
        (RESULTS / "mutants.json").write_text(json.dumps(record, indent=2) + "\n")
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        show(record, tally)
    return status or (1 if violations else 0)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutants", type=int, default=MUTANTS, help="default %(default)s")
    parser.add_argument("--seed", type=int, help="default: a new one, shown with the figures")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many, with those tried by then")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="try the mutants of these numbers and no others")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one per core (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--save", action="store_true", help="keep them in tools/results/mutants.json too")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    return options


def with_progress(results: Iterable[Result], total: int) -> Iterator[Result]:
    """A bar on a terminal, a line each tenth elsewhere; on stderr, so that stdout holds only the figures."""
    console = Console(stderr=True)
    columns = (TextColumn("mutants"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    if not console.is_terminal:
        for done, result in enumerate(results, 1):
            if done * 10 // total > (done - 1) * 10 // total:
                print(f"{done:,} of {total:,} mutants", file=sys.stderr, flush=True)
            yield result
        return
    with Progress(*columns, console=console) as bar:
        yield from bar.track(results, total=total)


def summarise(
    options: argparse.Namespace, tally: Counter[tuple[str, str]], violations: list[Result], took_s: float
) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    regions: dict[str, dict[str, int]] = {}
    for (region, outcome), count in sorted(tally.items()):
        outcomes[outcome] += count
        regions.setdefault(region, {})[outcome] = count
    return {
        "command": " ".join(["python -m tools.mutants", *sys.argv[1:]]),
        **machine(),
        "date": time.strftime("%Y-%m-%d"),
        "seed": options.seed,
        "seconds": round(took_s, 1),
        "mutants": sum(tally.values()),
        "violations": len(violations),
        "outcomes": dict(outcomes),
        "regions": regions,
    }


def show(record: dict[str, Any], tally: Counter[tuple[str, str]]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=130)
    table = Table(box=SIMPLE_HEAD, title=f"{record['mutants']:,} mutants, seed {record['seed']}, {record['seconds']} s")
    columns = [outcome for outcome in (*HARMLESS, *VIOLATIONS) if outcome in HARMLESS or outcome in record["outcomes"]]
    table.add_column("region")
    for column in columns:
        table.add_column(column, justify="right", style="red" if column in VIOLATIONS else "")
    for region in record["regions"]:
        table.add_row(region, *(f"{tally[region, outcome]:,}" for outcome in columns))
    table.add_section()
    table.add_row("all", *(f"{record['outcomes'].get(outcome, 0):,}" for outcome in columns))
    console.print(table)
    print(f"{record['violations']} violations")


if __name__ == "__main__":
    sys.exit(main())
