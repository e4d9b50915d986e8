"""What holding costs: the policies that let topics go, beside `forever` and beside a refcounted dict, in the same run.

    python tools/bench_holds.py [--rounds N] [--json] [--save]

Every figure is a median over rounds in which the contestants take turns; ratios are medians of the rounds' ratios. A pair is an
intern and a release. Each call gets a fresh bytes object, as a parser would make it.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns

from rich.console import Console
from rich.progress import track
from rich.table import Table

from shmpool import ENGINE, Policy, Pool
from tools.bench_intern import HOT, REPEATS, RESULTS, dict_function, fresh, machine, time_calls, time_intern, topics

TARGETS = {"hot_pair_ratio": 4.0, "forever_hit_ratio": 1.5}
CHURN = 2_000  # pairs a round
LIVE = 1_000
UNHELD = 1_000

Figures = dict[str, float]


class CountedDict:
    """What a single process would write instead: a dict of refs and counts that forgets what nobody holds."""

    def __init__(self) -> None:
        self._refs: dict[bytes, int] = {}
        self._held: dict[int, tuple[bytes, list[int]]] = {}
        self._next = 1

    def intern(self, value: bytes) -> int:
        ref = self._refs.get(value)
        if ref is None:
            ref = self._refs[value] = self._next
            self._held[ref] = (value, [0])
            self._next += 1
        self._held[ref][1][0] += 1
        return ref

    def release(self, ref: int) -> None:
        value, count = self._held[ref]
        count[0] -= 1
        if not count[0]:
            del self._held[ref], self._refs[value]


def time_pairs(pool: "Pool | CountedDict", values: list[bytes]) -> float:
    """Microseconds an intern and a release, the loop's own cost included."""
    start = perf_counter_ns()
    for value in values:
        pool.release(pool.intern(value))  # type: ignore[arg-type]
    return (perf_counter_ns() - start) / len(values) / 1000


def hot(name: str) -> Callable[[], dict[str, float]]:
    """One more hold of what the process holds already, given back."""
    values = topics(HOT)
    forever = Pool.create(f"{name}-forever")
    counted = Pool.create(f"{name}-refcount", policy=Policy.refcount())
    rival, function = CountedDict(), dict_function()
    for value in values:
        forever.intern(value), counted.intern(value), rival.intern(value), function(value)

    def measure() -> Figures:
        return {
            "dict_function_us": time_calls(function, fresh(values * REPEATS)),
            "forever_hit_us": time_intern(forever, fresh(values * REPEATS)),
            "hot_pair_us": time_pairs(counted, fresh(values * REPEATS)),
            "counted_dict_pair_us": time_pairs(rival, fresh(values * REPEATS)),
        }

    return measure


def churn(name: str) -> Callable[[], Figures]:
    """Each topic's first hold and its last: it is inserted and goes, or is left unheld, or is evicted for the next. LIVE others
    are held all the time."""
    pools = {
        "forever_insert_us": Pool.create(f"{name}-churn-forever", capacity=1 << 22),
        "refcount_churn_us": Pool.create(f"{name}-churn-refcount", policy=Policy.refcount()),
        "lru_rehold_us": Pool.create(f"{name}-churn-rehold", policy=Policy.lru(max_unheld=1 << 20)),
        "lru_evict_us": Pool.create(f"{name}-churn-lru", policy=Policy.lru(max_unheld=UNHELD)),
        "full_evict_us": Pool.create(
            f"{name}-churn-full", policy=Policy.lru(max_unheld=1 << 20), capacity=LIVE + UNHELD, reserve=0, stripe_count=4
        ),
        "ttl_churn_us": Pool.create(f"{name}-churn-ttl", policy=Policy.ttl(seconds=0.05)),
    }
    rival = CountedDict()
    contestants: list[Pool | CountedDict] = [*pools.values(), rival]
    for contestant in contestants:
        for value in topics(LIVE):
            contestant.intern(value)
    for pool in list(pools.values())[2:5]:
        time_pairs(pool, topics(CHURN, salt=1))
    rounds = iter(range(2, 1 << 30))

    def measure() -> Figures:
        salt = next(rounds)
        figures = {"counted_dict_churn_us": time_pairs(rival, topics(CHURN, salt))}
        for figure, pool in pools.items():
            figures[figure] = time_pairs(pool, topics(CHURN, 1 if figure == "lru_rehold_us" else salt))
        return figures

    return measure


def take_rounds(contest: Callable[[], Figures], rounds: int, what: str, *, quiet: bool) -> list[Figures]:
    contest()  # to warm up
    return [contest() for _ in track(range(rounds), what, console=Console(stderr=True), disable=quiet)]


def medians(seen: list[Figures]) -> Figures:
    return {figure: statistics.median(each[figure] for each in seen) for figure in seen[0]}


def ratio(seen: list[Figures], mine: str, theirs: str) -> float:
    return statistics.median(each[mine] / each[theirs] for each in seen)


def measure(rounds: int, *, quiet: bool) -> Figures:
    name = f"bench-{os.getpid()}"
    hits = take_rounds(hot(name), rounds, "hot", quiet=quiet)
    misses = take_rounds(churn(name), rounds, "churn", quiet=quiet)
    return medians(hits) | medians(misses) | {
        "forever_hit_ratio": ratio(hits, "forever_hit_us", "dict_function_us"),
        "hot_pair_ratio": ratio(hits, "hot_pair_us", "forever_hit_us"),
        "hot_pair_to_counted_dict": ratio(hits, "hot_pair_us", "counted_dict_pair_us"),
        **{f"{figure}_ratio": ratio(misses, f"{figure}_us", "forever_insert_us")
           for figure in ("refcount_churn", "lru_rehold", "lru_evict", "full_evict", "ttl_churn")},
    }


def show(figures: Figures) -> None:
    table = Table("figure", "value", "at most", box=None)
    for figure, value in figures.items():
        bound = TARGETS.get(figure)
        unit = "us" if figure.endswith("_us") else "x"
        verdict = "" if bound is None else f"{bound:g}: {'met' if value <= bound else 'MISSED'}"
        table.add_row(figure, f"{value:.2f} {unit}", verdict)
    Console().print(f"{ENGINE} engine, CPython {platform.python_version()}, {os.cpu_count()} cores", table)


def main() -> None:
    parser = argparse.ArgumentParser(description="What holding costs, beside `forever` and a refcounted dict in the same run.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="keep it in tools/results/holds.json too")
    options = parser.parse_args()
    figures = measure(options.rounds, quiet=options.json)
    command = " ".join(["python", "tools/" + Path(sys.argv[0]).name, *sys.argv[1:]])
    record = json.dumps({"command": command, **machine(), "figures": figures}, indent=2)
    if options.save:
        (RESULTS / "holds.json").write_text(record + "\n")
    print(record) if options.json else show(figures)


if __name__ == "__main__":
    main()
