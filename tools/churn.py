"""Hold and give back millions of topics, of which a thousand live at any time, and watch that nothing grows.

    python -m tools.churn [--pairs N] [--processes N] [--readers N] [--live N] [--policy POLICY] [--seed N]
                          [--json] [--save]

Exit status 0 if every figure is flat, by the rule of tools/flatness.py, no reader was given wrong bytes and nothing is left in
the end; 1 if not; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from shmpool import Policy
from tests.stress.churn import Plan, Sample, churn
from tests.unit.processes import ChildFailedError
from tools.bench_intern import machine
from tools.flatness import Verdict, judge, tabulate

RESULTS: Final = Path(__file__).parent / "results"
SAMPLES: Final = 200
PLAIN_WIDTH: Final = 100
# How much each figure may rise from the second quarter's median to the last's. Topics spread over stripes and sizes by chance, so
# now and then one of these has more than ever before: that is some spaces. A leak in every hundredth pair would be 160 in the
# shortest run. Tombstones come and go as a saw's teeth, to half of a table before it is built anew, and with them what a search
# in vain costs; without rebuilds both would be at the tables' size.
RISE: Final = {
    "memory_kib": 64.0,
    "arena_kib": 12.0,
    "spaces": 120.0,
    "slots": 2048.0,
    "tombstones": 700.0,
    "miss_mean": 15.0,
    "miss_p99": 120.0,
}


def judge_churn(samples: list[Sample]) -> list[Verdict]:
    return judge(samples, RISE, RISE)


def main() -> int:
    options = parse(sys.argv[1:])
    plan = Plan(
        options.pairs, options.processes, options.readers, options.live, seed=options.seed, policy=Policy.parse(options.policy)
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    try:
        with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:  # a thread would be forked
            task = progress.add_task("pairs", total=options.pairs)

            def show(sample: Sample) -> None:
                text = f"{sample['pairs']:,.0f} pairs, {sample['looks']:,.0f} looks, {sample['memory_kib']:,.0f} KiB"
                progress.update(task, completed=sample["pairs"], description=text, refresh=True)

            samples, wrong, tally = churn(f"churn-{os.getpid()}", plan, samples=SAMPLES, on_progress=show)
    except ChildFailedError as error:
        print(error)
        return 1
    except KeyboardInterrupt:
        return 130
    return report(options, samples, wrong, tally)


def report(options: argparse.Namespace, samples: list[Sample], wrong: list[str], tally: Counter[str]) -> int:
    if len(samples) < 8:
        print(f"churn: {len(samples)} samples are too few to judge", file=sys.stderr)
        return 1
    verdicts = judge_churn(samples)
    passed = all(verdict.is_flat for verdict in verdicts) and not wrong
    record = json.dumps(describe(options, samples, verdicts, wrong, tally, passed=passed), indent=2)
    if options.save:
        (RESULTS / "churn.json").write_text(record + "\n")
        subprocess.run([sys.executable, Path(__file__).with_name("plot_churn.py")], check=True)
    if options.json:
        print(record)
        return 0 if passed else 1
    seconds = samples[-1]["elapsed_s"]
    title = (
        f"{tally['pairs']:,} pairs over {options.live:,} topics, {options.policy}, seed {options.seed}, in {seconds:,.0f} s; "
        f"{tally['right']:,} resolves right, {tally['stale']:,} stale, {tally['missed']:,} missed, none wrong"
    )
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(tabulate(verdicts, title))
    print(*wrong[:10], sep="\n", end="\n" if wrong else "")
    return 0 if passed else 1


def describe(
    options: argparse.Namespace, samples: list[Sample], verdicts: list[Verdict], wrong: list[str], tally: Counter[str], *,
    passed: bool,
) -> dict[str, Any]:
    return {
        "command": " ".join(["python -m tools.churn", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        **machine(),
        "seed": options.seed,
        "policy": options.policy,
        "processes": options.processes,
        "readers": options.readers,
        "live": options.live,
        "passed": passed,
        "wrong": wrong,
        "tally": dict(tally),
        "figures": {
            each.figure: {"second_quarter": each.second_quarter, "last_quarter": each.last_quarter, "allowed": each.allowed}
            for each in verdicts
        },
        "samples": {figure: [round(sample[figure], 3) for sample in samples] for figure in samples[0]},
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="churn", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10_000_000, help="of intern and release; default %(default)s")
    parser.add_argument("--processes", type=int, default=3, help="that hold and give back; default %(default)s")
    parser.add_argument("--readers", type=int, default=2, help="that look up and resolve beside them; default %(default)s")
    parser.add_argument("--live", type=int, default=1000, help="topics at any time; default %(default)s")
    parser.add_argument("--policy", default="refcount", help="refcount, lru:N or ttl:S; default %(default)s")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of everything random; default: a new one")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="keep it in tools/results/churn.json too, and draw it")
    options = parser.parse_args(arguments)
    try:
        if not Policy.parse(options.policy).counts_holds:
            parser.error("under forever nothing goes: choose another policy")
    except ValueError as error:
        parser.error(str(error))
    if min(options.pairs, options.processes) < 1 or options.readers < 0 or options.live < options.processes:
        parser.error("there must be pairs, processes, and a topic for each of these")
    return options


if __name__ == "__main__":
    sys.exit(main())
