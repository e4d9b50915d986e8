"""Interrupt every operation of a pool, at every point where Python runs signal handlers and by thousands of a timer's signals.

    python tools/interrupts.py [--interrupts N] [--seed N] [--only OPERATION] [--json] [--save]

After each interrupt no lock may be held and no turnstile lack its token, the operation must be done when it is repeated, another
thread and another process must be able to attach, insert and check the pool, and descriptors and mappings must be as many as
before. Points are tried one by one, all of them, with a KeyboardInterrupt. Signals come at random instants; their handlers raise
KeyboardInterrupt, SystemExit or TimeoutError or return, and some use the pool themselves. N counts those that came while
code of the pool ran. Exit status 1 if anything was otherwise.
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
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.stress.alarms import Alarm, Tally
from tests.stress.interrupting import Scene
from tests.stress.interrupting_holds import SCENES
from tests.stress.stage import Stage
from tests.unit.interrupts import interrupted_at
from tests.unit.processes import Forked

RESULTS: Final = Path(__file__).parent / "results"
SAY_EVERY: Final = 25
SHOTS_PER_HIT: Final = 20  # at most; else the timer misses the operation, and the count would mean nothing
Part: TypeAlias = Callable[[str, int, int, Connection], None]
COLUMNS: Final = ("points", "shots", "inside", "raised", "used", "swallowed")


def main() -> int:
    options = parse()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    console = Console(stderr=True)
    rows: dict[str, dict[str, Any]] = {}
    files = pool_files()
    try:
        with Progress(
            TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        ) as progress:
            for operation in options.only or SCENES:
                task = progress.add_task(operation, total=options.interrupts)
                rows[operation] = run(operation, seed, options.interrupts, progress, task)
                if not console.is_terminal:
                    console.print(f"{operation}: {'a violation' if rows[operation]['violation'] else 'sound'}")
    except KeyboardInterrupt:
        console.print(f"Stopped after {len(rows)} operations.")
    left = sorted(pool_files() - files)
    record = {
        "command": " ".join(["python", "tools/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        **machine(),
        "seed": seed,
        "operations": rows,
        "files_left": left,
        "violations": sum(bool(row["violation"]) for row in rows.values()) + bool(left),
    }
    if options.save:
        (RESULTS / "interrupts.json").write_text(json.dumps(record, indent=2) + "\n")
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        Console().print(tabulate(rows, seed))
        for operation, row in rows.items():
            if row["violation"]:
                print(f"\n{operation}:\n{row['violation']}")
    if left:
        console.print(f"Files left: {', '.join(left)}")
    return 1 if record["violations"] or len(rows) < len(options.only or SCENES) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Interrupt every operation of a pool and see that nothing is left behind.")
    parser.add_argument("--interrupts", type=int, default=1000, metavar="N", help="signals inside each operation (1000)")
    parser.add_argument("--seed", type=int, help="repeats a run's random choices; the instants of the signals are the kernel's")
    parser.add_argument("--only", action="append", choices=list(SCENES), help="this operation only; may be given again")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="keep it in tools/results/interrupts.json too")
    return parser.parse_args()


def run(operation: str, seed: int, interrupts: int, progress: Progress, task: TaskID) -> dict[str, Any]:
    """Play one operation in a process of its own, first every check point, then signals."""
    start = monotonic()
    row: dict[str, Any] = dict.fromkeys(COLUMNS, 0) | {"violation": ""}
    parts: tuple[Part, ...] = (every_point, signals)
    for part in parts:
        with Forked(partial(undisturbed, part, operation, seed, interrupts)) as child:
            try:
                while (news := child.hear()) is not None:
                    row |= news
                    progress.update(task, completed=row["inside"])
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
                row["violation"] += str(error)
    progress.update(task, completed=row["inside"])
    row["seconds"] = round(monotonic() - start, 1)
    return row


def undisturbed(part: Part, operation: str, seed: int, interrupts: int, connection: Connection) -> None:
    """A Ctrl-C is for the process that shows how far it is, and which ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    part(operation, seed, interrupts, connection)


def every_point(operation: str, _: int, __: int, connection: Connection) -> None:
    with Stage(scene(operation)) as stage:
        for point in count(1):
            stage.about = f"a KeyboardInterrupt at check point {point}"
            struck: list[bool] = []
            stage.shoot(lambda act, point=point, struck=struck: struck.append(strike_at(point, act)))  # type: ignore[misc]
            if not struck[0]:
                break
            if point % SAY_EVERY == 0:
                connection.send({"points": point})
    connection.send({"points": point - 1})
    connection.send(None)


def strike_at(point: int, act: Callable[[], object]) -> bool:
    try:
        return interrupted_at(point, strike, act)
    except KeyboardInterrupt:
        return True


def strike() -> None:
    raise KeyboardInterrupt


def signals(operation: str, seed: int, interrupts: int, connection: Connection) -> None:
    played = scene(operation)
    with Stage(played) as stage, Alarm(played, random.Random(f"{seed} {operation}")) as alarm:
        for _ in range(5):
            stage.shoot(alarm.measure)
        for tally in shots(stage, alarm, interrupts):
            connection.send(asdict(tally))
        connection.send(asdict(alarm.tally))
    assert alarm.tally.inside >= interrupts, f"the timer met the operation {alarm.tally.inside} times in {alarm.tally.shots}"
    connection.send(None)


def shots(stage: Stage, alarm: Alarm, interrupts: int) -> Iterator[Tally]:
    while alarm.tally.inside < interrupts and alarm.tally.shots < interrupts * SHOTS_PER_HIT:
        stage.about = f"seed as given, signal {alarm.tally.shots}"
        stage.shoot(alarm.interrupt)
        if alarm.tally.shots % SAY_EVERY == 0:
            yield alarm.tally


def scene(operation: str) -> Scene:
    return SCENES[operation](f"interrupts-{os.getpid()}")


def pool_files() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "shmpool" in name}


def tabulate(rows: dict[str, dict[str, Any]], seed: int) -> Table:
    table = Table(title=f"Interrupted operations, seed {seed}, CPython {platform.python_version()}")
    for heading in ("operation", "check points", "signals", "inside", "raised", "handler used it", "swallowed", "s", "violation"):
        table.add_column(heading, justify="left" if heading in {"operation", "violation"} else "right")
    for operation, row in rows.items():
        figures = [str(row[column]) for column in (*COLUMNS, "seconds")]
        table.add_row(operation, *figures, "yes" if row["violation"] else "none")
    return table


def machine() -> dict[str, object]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    sys.exit(main())
