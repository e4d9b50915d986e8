"""What growth is measured with: one pool that fills up, many that differ in one thing."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from random import Random
from time import perf_counter_ns
from typing import Any, Final

import numpy as np

from shmpool import Pool
from shmpool.report import inspect
from tools.rivals.crew import Crew
from tools.rivals.member import Timing, WrongAnswerError, expect_found, time_calls
from tools.rivals.names import Names
from tools.rivals.ours import OURS, open_pool
from tools.rivals.rival import Rival, placed
from tools.rivals.rounds import ABSENT, NEW

Row = dict[str, float]

ATTACHES: Final = 15
FILLING: Final = 65_536  # values of one intern_many
SETTLED: Final = 1 << 14  # values of a pool whose tables are past growing often
MANY: Final = 60_000  # values that one process may insert or look up in one measurement
FEWEST: Final = 50

_serial = count()


@contextmanager
def new_pool(**options: Any) -> Iterator[Pool]:
    with Pool.create(f"growth-{os.getpid()}-{next(_serial)}", **options) as pool:
        yield pool


def by_values(sizes: list[int], samples: int, names: Names, rng: Random) -> Iterator[Row]:
    """Microseconds a call as one pool and one dict fill up: those of the last values to come, and of `samples` at random."""
    table: dict[bytes, int] = {}
    with new_pool(capacity=2 * max(sizes), max_value_size=256) as pool:
        for size in sizes:
            fill(pool, names, size - samples)
            for start in range(len(table), size - samples, FILLING):
                table.update(zip(names.span(start, min(FILLING, size - samples - start)), range(start, size), strict=False))
            last = names.span(size - samples, samples)
            row = {"values": float(size), "dict insert": time_calls(lambda value: table.setdefault(value, len(table)), last)}
            row["insert"] = time_calls(pool.intern, names.span(size - samples, samples))
            chosen = [rng.randrange(size) for _ in range(samples)]
            with Pool.attach(pool.name) as other:
                row["first lookup"] = time_lookups(other, names.pick(chosen))
                row["absent"] = time_calls(other.lookup, names.span(ABSENT, samples))
                row["batch lookup"] = time_batch(other, names.pick(rng.randrange(size) for _ in range(samples)))
            row["dict lookup"] = time_calls(table.__getitem__, names.pick(chosen))
            row["attach"] = time_attach(pool)
            expect_size(pool, size)
            yield in_microseconds(row, "values")


def by_load(slots: int, steps: int, samples: int, names: Names, rng: Random) -> Iterator[Row]:
    """One stripe, from just after its table has grown to `slots` to just before it grows again (at three quarters)."""
    sizes = np.linspace(0.38, 0.745, steps) * slots
    with new_pool(capacity=slots, stripe_count=1, max_value_size=256) as pool:
        for size in sizes.astype(int).tolist():
            fill(pool, names, size)
            stripe = inspect(pool.name).stripes[0]
            if stripe.slots != slots:
                raise RuntimeError(f"{size} values are in a table of {stripe.slots} slots, not {slots}")
            with Pool.attach(pool.name) as other:
                row = {"load": stripe.load, "probes": stripe.probe_mean}
                row["first lookup"] = time_lookups(other, names.pick(rng.sample(range(size), samples)))
                row["absent"] = time_calls(other.lookup, names.span(ABSENT, samples))
            yield in_microseconds(row, "load", "probes")


def by_value_size(sizes: list[int], samples: int, names: Names, rng: Random) -> Iterator[Row]:
    table: dict[bytes, int] = {}
    for size in sizes:
        values = [rng.randbytes(size) for _ in range(samples)]
        with new_pool(max_value_size=max(sizes), capacity=4 * samples + SETTLED) as pool:
            fill(pool, names, SETTLED)
            row = {"bytes": float(size), "insert": time_calls(pool.intern, values)}
            with Pool.attach(pool.name) as other:
                row["first lookup"] = time_lookups(other, fresh(values))
                refs = pool.lookup_many(values).tolist()
            with Pool.attach(pool.name) as other:
                row["resolve"] = time_calls(other.resolve, refs)
            row["dict insert"] = time_calls(lambda value: table.setdefault(value, len(table)), fresh(values))
            row["dict lookup"] = time_calls(table.__getitem__, fresh(values))
            table.clear()
        yield in_microseconds(row, "bytes")


def by_processes(counts: list[int], seconds: float, seed: int) -> Iterator[Row]:
    """Calls a second of all processes together, among so many values that hardly any is met twice; 16 stripes."""
    with placed(OURS, SETTLED + MANY * (2 + sum(counts))) as place, Crew(OURS, place, seed) as crew:
        crew.hire(1 + max(counts))
        crew.ask("fill", 0, start=0, count=MANY)
        start = NEW
        for processes in counts:
            members = range(1, 1 + processes)
            read = crew.ask("read_for", *members, seconds=seconds, size=MANY, most=MANY, seed=seed + processes)
            wrote = write_together(crew, processes, seconds, start)
            start += processes * MANY
            yield {"processes": processes, "first lookups": per_second(read), "inserts": per_second(wrote)}


def by_stripes(stripes: list[int], processes: int, seconds: float, seed: int) -> Iterator[Row]:
    """Inserts a second of processes that do nothing else, and how long single ones take."""
    for stripe_count in stripes:
        with crew_of(stripe_count, processes, seed) as (crew, _):
            timings = write_together(crew, processes, seconds, NEW)
        yield {"stripes": stripe_count, "inserts": per_second(timings)} | percentiles(timings)


def by_rate(rates: list[int], stripe_count: int, processes: int, seconds: float, seed: int) -> Iterator[Row]:
    """What an insert takes when processes insert at random moments, so many a second in all; 0: as fast as they can.

    `waits` are those of a thousand inserts that found their stripe's lock taken, as the pool itself has counted them.
    """
    for rate in rates:
        with crew_of(stripe_count, processes, seed) as (crew, pool):
            before = pool.stats().total.lock_waits
            timings = insert_at(crew, processes, rate, seconds, seed) if rate else write_together(crew, processes, seconds, NEW)
            crew.close()  # and so have counted
            waits = pool.stats().total.lock_waits - before
        inserted = sum(timing.count for timing in timings)
        yield {"asked": rate, "rate": per_second(timings), "waits": 1000 * waits / inserted, **percentiles(timings)}


@contextmanager
def crew_of(stripe_count: int, processes: int, seed: int) -> Iterator[tuple[Crew, Pool]]:
    """Members 1 to `processes` beside a pool of so many stripes whose tables seldom grow, and an attachment of our own."""
    rival = Rival("shmpool", partial(open_pool, stripe_count=stripe_count), OURS.version, files=OURS.files)
    with placed(rival, SETTLED + MANY * (1 + processes)) as place, Crew(rival, place, seed) as crew:
        crew.hire(1 + processes)
        crew.ask("fill", 0, start=0, count=SETTLED)
        with Pool.attach(place.name) as pool:
            yield crew, pool


def write_together(crew: Crew, processes: int, seconds: float, start: int) -> list[Timing]:
    tasks: dict[int, Any] = {}
    for member in range(1, 1 + processes):
        tasks[member] = ("write_for", {"seconds": seconds, "start": start + member * MANY, "most": MANY})
    return crew.ask_each(tasks)


def insert_at(crew: Crew, processes: int, rate: int, seconds: float, seed: int) -> list[Timing]:
    samples = max(FEWEST, int(rate * seconds / processes))
    tasks: dict[int, Any] = {}
    for member in range(1, 1 + processes):
        pace = {"start": NEW + member * samples, "count": samples, "interval": processes / rate, "seed": seed + member}
        tasks[member] = ("paced_insert", pace)
    return crew.ask_each(tasks)


def fill(pool: Pool, names: Names, size: int) -> None:
    """Insert the names of numbers up to `size`; those that are there already are the first."""
    for start in range(len(pool), size, FILLING):
        pool.intern_many(names.span(start, min(FILLING, size - start)))


def time_lookups(pool: Pool, values: list[bytes]) -> float:
    took = time_calls(pool.lookup, values)
    expect_found(list(map(pool.lookup, values)), len(values))
    return took


def time_batch(pool: Pool, values: list[bytes]) -> float:
    start = perf_counter_ns()
    refs = pool.lookup_many(values)
    took = perf_counter_ns() - start
    expect_found([ref or None for ref in refs.tolist()], len(values))
    return took / len(values)


def time_attach(pool: Pool) -> float:
    """Nanoseconds to attach, one lookup included."""
    times = []
    for _ in range(ATTACHES):
        start = perf_counter_ns()
        other = Pool.attach(pool.name)
        other.lookup(b"absent")
        times.append(perf_counter_ns() - start)
        other.close()
    return statistics.median(times)


def expect_size(pool: Pool, size: int) -> None:
    if len(pool) != size:
        raise WrongAnswerError(f"the pool holds {len(pool)} values, not {size}")


def fresh(values: list[bytes]) -> list[bytes]:
    return [bytes(bytearray(value)) for value in values]


def per_second(timings: list[Timing]) -> float:
    return sum(1e9 / timing.each for timing in timings)


def percentiles(timings: list[Timing]) -> Row:
    calls = [call for timing in timings for call in timing.calls]
    p50, p90, p99, most = (np.percentile(calls, (50, 90, 99, 100)) / 1000).tolist()
    return {"p50": p50, "p90": p90, "p99": p99, "max": most, "mean": statistics.fmean(calls) / 1000}


def in_microseconds(row: Row, *kept: str) -> Row:
    return {name: value if name in kept else value / 1000 for name, value in row.items()}


def median_rows(rounds: list[list[Row]]) -> list[Row]:
    """Row by row and figure by figure the median of the rounds."""
    return [
        {name: round(statistics.median(row[name] for row in same), 4) for name in same[0]} for same in zip(*rounds, strict=True)
    ]


Maker = Callable[[int], Iterator[Row]]  # of the number of the round
