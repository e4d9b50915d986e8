"""What the pool's operations cost, beside a plain dict function measured in the same run, and what memory a pool takes.

    python tools/bench_intern.py [--rounds N] [--json] [--save]

Every figure is a median over rounds; the operations and their rivals take turns within a round, so that what disturbs one
disturbs the other. Where the compiled engine is in use, the misses of plain Python follow, measured by a process of its own right
after. The ratio of a repeated intern or lookup to the dict function is the median of the rounds' ratios. Each
call there gets a fresh bytes object, as a parser would make it, so that no hash is remembered from the call before.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter_ns

from shmpool import ENGINE, Pool

TARGETS = {  # (figure, bound, unit)
    "intern_hit_ratio": (1.5, "x dict function"),
    "lookup_hit_ratio": (1.5, "x dict function"),
    "first_lookup_us": (4.0, "us"),
    "insert_us": (10.0, "us"),
    "intern_many_us": (5.0, "us each"),
    "empty_pool_kib": (512.0, "KiB"),
    "bytes_a_topic": (64.0, "bytes beyond the value"),
}
PLAIN = ("first_lookup_us", "insert_us", "intern_many_us", "lookup_many_us")  # what the engine makes cheaper
UNITS = {"counter_bytes_a_topic_and_process": "bytes"}
RESULTS = Path(__file__).parent / "results"
HOT = 256
REPEATS = 40
ONE_BY_ONE = 5_000
BATCH = 50_000


def topics(count: int, salt: int = 0) -> list[bytes]:
    """Names as consensus clients use them, 47 bytes and more."""
    return [b"/eth2/%08x/beacon_attestation_%d/ssz_snappy" % (salt, number) for number in range(count)]


def fresh(values: Iterable[bytes]) -> list[bytes]:
    return [bytes(bytearray(value)) for value in values]


def time_calls(function: Callable[[bytes], object], values: list[bytes]) -> float:
    """Microseconds a call, the loop's own cost included."""
    start = perf_counter_ns()
    for value in values:
        function(value)
    return (perf_counter_ns() - start) / len(values) / 1000


def dict_function() -> Callable[[bytes], int]:
    """The rival: what a single process would write instead."""
    table: dict[bytes, int] = {}

    def intern(value: bytes) -> int:
        ref = table.get(value)
        if ref is None:
            ref = table[value] = len(table) + 1
        return ref

    return intern


def time_intern(pool: Pool, values: list[bytes]) -> float:
    """Microseconds of pool.intern as users call it: a method call, not a bound method kept aside."""
    start = perf_counter_ns()
    for value in values:
        pool.intern(value)
    return (perf_counter_ns() - start) / len(values) / 1000


def time_lookup(pool: Pool, values: list[bytes]) -> float:
    start = perf_counter_ns()
    for value in values:
        pool.lookup(value)
    return (perf_counter_ns() - start) / len(values) / 1000


def measure_hits(pool: Pool, rounds: int) -> dict[str, float]:
    hot, rival = topics(HOT), dict_function()
    contestants: list[tuple[str, Callable[[list[bytes]], float]]] = [
        ("dict_us", lambda values: time_calls(rival, values)),
        ("intern_hit_us", lambda values: time_intern(pool, values)),
        ("lookup_hit_us", lambda values: time_lookup(pool, values)),
    ]
    seen: dict[str, list[float]] = {name: [] for name, _ in contestants}
    for number in range(3 * rounds + 1):
        for name, contestant in contestants[number % 3 :] + contestants[: number % 3]:
            took = contestant(fresh(hot * REPEATS))
            if number:  # the first round is for warming up
                seen[name].append(took)
    figures = {name: statistics.median(times) for name, times in seen.items()}
    for name in ("intern", "lookup"):
        ratios = [mine / theirs for mine, theirs in zip(seen[f"{name}_hit_us"], seen["dict_us"], strict=True)]
        figures[f"{name}_hit_ratio"] = statistics.median(ratios)
    return figures


def measure_misses(name: str, rounds: int) -> dict[str, float]:
    """Inserts one by one; and the first lookups here of what a process of its own inserted.

    The rival's inserts come between the wait for that process and the lookups: they also wake this core up again.
    """
    lookups, inserts, rival_inserts = [], [], []
    with Pool.create(name, capacity=1 << 20) as pool:
        for number in range(rounds):
            subprocess.run([sys.executable, __file__, "--insert", name, str(number)], check=True)
            rival_inserts.append(time_calls(dict_function(), topics(ONE_BY_ONE, salt=number)))
            lookups.append(time_calls(pool.lookup, topics(ONE_BY_ONE, salt=number)))
            inserts.append(time_calls(pool.intern, topics(ONE_BY_ONE, salt=1_000_000 + number)))
            assert len(pool) == 2 * (number + 1) * ONE_BY_ONE
    return {
        "first_lookup_us": statistics.median(lookups),
        "insert_us": statistics.median(inserts),
        "dict_insert_us": statistics.median(rival_inserts),
        "first_lookup_best_us": min(lookups),
        "insert_best_us": min(inserts),
    }


def measure_batches(name: str, rounds: int) -> dict[str, float]:
    news, olds = [], []
    for number in range(rounds):
        values = topics(BATCH, salt=number)
        with Pool.create(name) as pool, Pool.attach(name) as other:
            start = perf_counter_ns()
            refs = pool.intern_many(values)
            news.append((perf_counter_ns() - start) / BATCH / 1000)
            values = fresh(values)
            start = perf_counter_ns()
            found = other.lookup_many(values)
            olds.append((perf_counter_ns() - start) / BATCH / 1000)
            assert (refs == found).all()
    return {
        "intern_many_us": statistics.median(news),
        "lookup_many_us": statistics.median(olds),
        "intern_many_best_us": min(news),
    }


def measure_memory(name: str) -> dict[str, float]:
    """Real memory, from the blocks of the files in /dev/shm: the segment's and its semaphores'."""
    with Pool.create(name) as pool:
        semaphores = sum(
            os.stat(entry.path).st_blocks * 512
            for entry in os.scandir("/dev/shm")
            if f"{pool.constants.pool_id:016x}" in entry.name
        )
        empty = pool.stats().memory_size + semaphores
        values = topics(pool.constants.geometry.capacity)
        pool.intern_many(values)
        full = pool.stats().memory_size + semaphores
        counters = -(-len(values) * 8 // 4096) * 4096  # this process's ledger, and nobody else's
        with Pool.attach(name) as other:
            before = pool.stats().memory_size
            other.lookup_many(values)
            other.flush()
            added = pool.stats().memory_size - before
    return {
        "empty_pool_kib": empty / 1024,
        "bytes_a_topic": (full - counters - empty - sum(map(len, values))) / len(values),
        "counter_bytes_a_topic_and_process": added / len(values),
    }


def measure_plain(rounds: int) -> dict[str, float]:
    """The same with SHMPOOL_ENGINE=python."""
    command = [sys.executable, __file__, "--json", "--rounds", str(rounds)]
    environment = os.environ | {"SHMPOOL_ENGINE": "python"}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    figures = json.loads(output)["figures"]
    return {f"plain_{name}": figures[name] for name in PLAIN}


def main() -> None:
    parser = argparse.ArgumentParser(description="What interning costs, beside a dict function in the same run.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="keep it in tools/results/intern.json too, and draw it")
    parser.add_argument("--insert", nargs=2, metavar=("POOL", "ROUND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.insert:
        with Pool.attach(options.insert[0]) as pool:
            pool.intern_many(topics(ONE_BY_ONE, salt=int(options.insert[1])))
        return
    name = f"bench-{os.getpid()}"
    with Pool.create(name) as pool:
        figures = measure_hits(pool, options.rounds)
    figures |= measure_misses(name, options.rounds)
    figures |= measure_batches(name, max(options.rounds // 3, 3))
    figures |= measure_memory(name)
    if ENGINE == "compiled":
        figures |= measure_plain(max(options.rounds // 3, 3))
    command = " ".join(["python", "tools/" + Path(sys.argv[0]).name, *sys.argv[1:]])
    record = json.dumps({"command": command, **machine(), "figures": figures}, indent=2)
    if options.save:
        (RESULTS / "intern.json").write_text(record + "\n")
        subprocess.run([sys.executable, Path(__file__).with_name("plot_bench.py")], check=True)
    if options.json:
        print(record)
    else:
        show(figures, options.rounds)


def show(figures: dict[str, float], rounds: int) -> None:
    print(f"{ENGINE} engine, CPython {platform.python_version()}, {os.cpu_count()} cores, medians of {rounds} rounds")
    for figure, value in figures.items():
        bound, unit = TARGETS.get(figure, (None, UNITS.get(figure, "us")))
        verdict = "" if bound is None else f"at most {bound:g}: {'met' if value <= bound else 'MISSED'}"
        print(f"{figure:36}{value:10.3f} {unit:24}{verdict}")


def machine() -> dict[str, object]:
    return {
        "engine": ENGINE,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def cpu_name() -> str:
    """As the kernel says it; empty where it does not."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
