"""What the benchmarks' commands have in common: their options, and how a record is kept, drawn and printed."""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench_intern import machine
from tools.drawing import RESULTS


def parse(name: str, about: str, arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"bench_{name}", description=about.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run of under a minute: few values, one round")
    parser.add_argument("--seed", type=int, help="of the values and of which are looked up; default: a new one, recorded")
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of tables")
    parser.add_argument("--save", action="store_true", help=f"keep it in tools/results/{name}.json too, and draw it")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    return options


def start_record(name: str, seed: int) -> dict[str, Any]:
    """How it came about: the command, the machine and its load now, the day and the seed."""
    command = " ".join([f"python tools/bench_{name}.py", *sys.argv[1:]])
    return {"command": command, **machine(), "date": time.strftime("%Y-%m-%d"), "seed": seed}


def finish(name: str, record: dict[str, Any], options: argparse.Namespace, show: Callable[[dict[str, Any]], None]) -> int:
    """Keep and print the record; returns the exit status: 1 if a guard does not hold."""
    text = json.dumps(record, indent=1)
    if options.save:
        (RESULTS / f"{name}.json").write_text(text + "\n")
        subprocess.run([sys.executable, Path(__file__).with_name(f"plot_{name}.py")], check=True)
    if options.json:
        print(text)
    else:
        show(record)
    return 1 if any(guard["holds"] is False for guard in record["guards"]) else 0
