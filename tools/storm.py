"""A long storm: processes intern into one pool while they are killed, stopped, forked and attached again, ten thousand times.

    python tools/storm.py [--policy POLICY] [--kills N] [--processes N] [--seed N] [--json] [--save]

Goes in rounds, each with a fresh pool (so that tables and arena grow again) of another number of stripes; after each, the pool
is held against everything that was acknowledged. Under another policy than forever the processes hold and give back too.
Ends at the first round that shows a violation. Exit status 0 if there was none, 1 if there was one, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import secrets
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from shmpool import Policy
from tests.stress.judge import KINDS
from tests.stress.rounds import FOREVER, Outcome, Plan, run_round

RESULTS: Final = Path(__file__).parent / "results"
STRIPE_COUNTS: Final = (1, 2, 4, 16)
KILLS_A_ROUND: Final = 100
PLAIN_WIDTH: Final = 100  # of the table in a file or a pipe
SUMS: Final = (
    "stops", "forks", "attaches", "acknowledged", "given", "kept", "topics", "growths", "waits", "takeovers", "rollbacks",
    "rollforwards",
)
LABELS: Final = {
    "kills": "processes killed",
    "kills_compiled": "... that had the compiled engine (the others: plain Python)",
    "kills_inside": "... inside an operation",
    "kills_seen": "... that stood still, so that their locks could be seen",
    "kills_holding": "... ... holding a stripe's lock",
    "kills_writing": "... ... between the first and the last store of an insert",
    "kills_growing": "... ... holding the growth lock",
    "kills_gate": "... ... holding the gate (attaching or leaving)",
    "stops": "stops and continuations",
    "forks": "forks by those who are killed",
    "attaches": "re-attaches",
    "acknowledged": "refs acknowledged",
    "given": "holds given back",
    "kept": "holds of the living, compared in the end",
    "topics": "topics inserted",
    "growths": "tables doubled",
    "waits": "waits for a lock",
    "takeovers": "takeovers",
    "rollbacks": "rollbacks",
    "rollforwards": "roll-forwards",
    "stall_p50_ms": "intern, median (ms)",
    "stall_p99_ms": "intern, 99th percentile (ms)",
    "stall_p9999_ms": "intern, 99.99th percentile (ms)",
    "stall_worst_ms": "intern, worst (ms)",
    "give_p50_ms": "release, median (ms)",
    "give_p99_ms": "release, 99th percentile (ms)",
    "give_worst_ms": "release, worst (ms)",
    "attach_worst_ms": "leave and attach, worst (ms)",
}


@dataclass
class Durations:
    """A histogram, fine enough for percentiles to a hundredth of their value, and the exact maximum. In nanoseconds."""

    edges: NDArray[np.float64] = field(default_factory=lambda: np.geomspace(100, 1e11, 2100))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2101, np.int64))
    worst: int = 0

    def add(self, durations: NDArray[np.int64]) -> None:
        self.counts += np.bincount(np.searchsorted(self.edges, durations), minlength=len(self.counts))
        self.worst = max(self.worst, int(durations.max(initial=0)))

    def percentile_ms(self, share: float) -> float:
        """The upper edge of the step in which the percentile lies."""
        passed = np.cumsum(self.counts)
        place = int(np.searchsorted(passed, share * passed[-1]))
        return float(min(self.edges[min(place, len(self.edges) - 1)], self.worst)) / 1e6


@dataclass
class Figures:
    """What all rounds showed together."""

    rounds: int = 0
    duration_s: float = 0.0
    sums: dict[str, int] = field(default_factory=dict)
    violations: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    notes: list[str] = field(default_factory=list)
    interns: Durations = field(default_factory=Durations)
    attaches: Durations = field(default_factory=Durations)
    gives: Durations = field(default_factory=Durations)

    def add(self, outcome: Outcome) -> None:
        self.rounds += 1
        kills = {("kills_" + name).removesuffix("_total"): count for name, count in asdict(outcome.kills).items()}
        for name, count in (kills | {name: getattr(outcome, name) for name in SUMS}).items():
            self.sums[name] = self.sums.get(name, 0) + count
        for kind in KINDS:
            self.violations[kind] += getattr(outcome.verdict, kind)
        self.notes += outcome.verdict.notes
        self.interns.add(outcome.stalls)
        self.attaches.add(outcome.attach_stalls)
        self.gives.add(outcome.give_stalls)

    @property
    def violated(self) -> int:
        return sum(self.violations.values())

    def as_dict(self) -> dict[str, Any]:
        shares = {"stall_p50_ms": 0.5, "stall_p99_ms": 0.99, "stall_p9999_ms": 0.9999}
        stalls = {name: round(self.interns.percentile_ms(share), 3) for name, share in shares.items()}
        stalls |= {"stall_worst_ms": round(self.interns.worst / 1e6, 3), "attach_worst_ms": round(self.attaches.worst / 1e6, 3)}
        if self.gives.counts.any():
            stalls |= {f"give_p{share}_ms": round(self.gives.percentile_ms(share / 100), 3) for share in (50, 99)}
            stalls["give_worst_ms"] = round(self.gives.worst / 1e6, 3)
        return {"rounds": self.rounds, "duration_s": round(self.duration_s, 1), **self.sums, **stalls, **self.violations}


def main() -> int:
    options = parse(sys.argv[1:])
    figures, status = Figures(), 0
    start = time.monotonic()
    try:
        with Reporter(options.kills, options.seed) as reporter:
            rage(options, figures, reporter)
    except KeyboardInterrupt:
        status = 130
    figures.duration_s = time.monotonic() - start
    status = 1 if figures.violated else status
    record = json.dumps(described(options, figures), indent=2)
    if options.save and figures.rounds and status != 130:
        (RESULTS / f"storm{'' if options.policy == FOREVER else f'-{options.policy.name}'}.json").write_text(record + "\n")
    if options.json:
        print(record)
    elif figures.rounds:
        show(options, figures)
    return status


def rage(options: argparse.Namespace, figures: Figures, reporter: Reporter) -> None:
    """Rounds until there were enough kills, or a violation. Each round's random choices follow from the seed and its number."""
    while (left := options.kills - figures.sums.get("kills", 0)) > 0 and not figures.violated:
        rng = random.Random(f"{options.seed} {figures.rounds}")
        stripe_count = STRIPE_COUNTS[figures.rounds % len(STRIPE_COUNTS)]
        plan = Plan(stripe_count, min(left, KILLS_A_ROUND), options.processes, policy=options.policy)
        figures.add(run_round(f"storm-{os.getpid()}-{figures.rounds}", rng, plan, reporter.advance))
        reporter.tell(figures)


class Reporter:
    """Progress: a bar with live figures on a terminal, a line each round elsewhere. On stderr: stdout is for the figures."""

    def __init__(self, total: int, seed: int) -> None:
        self._seed = seed
        self._is_interrupted = False
        console = Console(stderr=True)
        self._total, self._done = total, 0
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("kills"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
            live = TextColumn("{task.description}")
            # No refreshing thread: the storm forks from here.
            self._bar = Progress(*columns, TimeRemainingColumn(), live, console=console, auto_refresh=False)
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        signal.signal(signal.SIGINT, self._interrupt)
        print(f"seed {self._seed}", file=sys.stderr, flush=True)  # now: a storm that ends badly is to be repeated
        if self._bar:
            self._bar.start()
        return self

    def _interrupt(self, *_: object) -> None:
        """Ctrl-C ends the storm after the strike that is under way: what is raised inside a fork's hooks, Python swallows. A
        second one ends it at once."""
        self._is_interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._bar:
            self._bar.stop()

    def advance(self, kills: int) -> None:
        if self._is_interrupted:
            raise KeyboardInterrupt
        self._done += kills
        if self._bar:
            self._bar.update(self._task, advance=kills, refresh=True)

    def tell(self, figures: Figures) -> None:
        sums = figures.sums
        text = (
            f"{sums['kills_holding']:,} held a lock, {sums['takeovers']:,} takeovers, worst stall "
            f"{figures.interns.worst / 1e6:.0f} ms, {figures.violated} violations"
        )
        if self._bar:
            self._bar.update(self._task, description=text, refresh=True)
        else:
            print(f"{self._done:,} of {self._total:,} kills: {text}", file=sys.stderr, flush=True)


def show(options: argparse.Namespace, figures: Figures) -> None:
    title = f"Storm of {options.processes} processes, {options.policy}, seed {options.seed}"
    table = Table(box=SIMPLE_HEAD, show_header=False, title=title)
    table.add_column()
    table.add_column(justify="right")
    found = figures.as_dict()
    for name, label in LABELS.items():
        if name in found and (found[name] or name not in ("given", "kept")):
            table.add_row(label, f"{found[name]:,}")
    table.add_section()
    for kind in KINDS:
        table.add_row(kind, f"{figures.violations[kind]:,}", style="bold red" if figures.violations[kind] else "green")
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    console.print(table)
    console.print(f"{found['rounds']} rounds in {found['duration_s']:.0f} s.", highlight=False)
    for note in figures.notes:
        console.print(note, style="red", markup=False, highlight=False, soft_wrap=True)


def described(options: argparse.Namespace, figures: Figures) -> dict[str, Any]:
    return {
        "command": " ".join(["python", "tools/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "seed": options.seed,
        "policy": str(options.policy),
        "processes": options.processes,
        "figures": figures.as_dict(),
        "notes": figures.notes,
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="storm", description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=policy, default=FOREVER, help="forever, refcount, lru:N or ttl:S; default %(default)s")
    parser.add_argument("--kills", type=positive, default=10_000, help="default %(default)s")
    parser.add_argument("--processes", type=at_least_two, default=4, help="at a time, one of which survives; default %(default)s")
    parser.add_argument("--seed", type=int, help="of everything random; default: a new one, shown with the figures")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--save", action="store_true", help="keep them in tools/results/storm.json, or storm-POLICY.json, too")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    return options


def policy(text: str) -> Policy:
    try:
        return Policy.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} would leave nobody to be killed")
    return number


if __name__ == "__main__":
    sys.exit(main())
