"""A process that does the work and times it, as it is told through a pipe: makes ready, waits for "go", works, reports.

Times are taken twice. One half of the values goes through bare loops with the clock read at their ends only: that gives what a
call usually costs (with the loop's own few nanoseconds). The other half is timed call by call for the mean and the percentiles,
less what reading the clock twice takes, which is measured on the spot: there everything counts, a table that grows, a page that
is met for the first time, and the wait for a core.
"""

from __future__ import annotations

import ctypes
import gc
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from itertools import accumulate
from multiprocessing.connection import Connection
from random import Random
from time import perf_counter, perf_counter_ns
from typing import Any, Final

from tools.rivals.names import Names
from tools.rivals.rival import Open, Operations, Place

CHUNK: Final = 1000
SAMPLE: Final = 10_000
PARTS: Final = 16
OPENED: Final = "opened"
READY: Final = "ready"
DONE: Final = "done"
FAILED: Final = "failed"


@dataclass(frozen=True, slots=True)
class Opening:
    """What of a rival can be sent to another process."""

    open: Open
    imports: tuple[str, ...]


class WrongAnswerError(Exception):
    """A rival did not find what was inserted, or found what was not: its times mean nothing."""


@dataclass(slots=True)
class Timing:
    """`each`: nanoseconds a call usually takes; `calls`: those of single calls."""

    count: int
    each: float
    calls: list[int] = field(default_factory=list)


def serve(pipe: Connection, rival: Opening, place: Place, seed: int, *, creating: bool) -> None:
    """The member's life. It ends when the other end of the pipe is closed, whatever becomes of who held it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; whoever started us sees to our end
    try:
        for module in rival.imports:
            import_module(module)  # of which opening makes use, and is not to be charged for
        start = perf_counter_ns()
        operations = rival.open(place, creating=creating)
        pipe.send((OPENED, perf_counter_ns() - start))
        member = Member(operations, Names(seed))
        while True:
            task, arguments = pipe.recv()
            run = getattr(member, task)(**arguments)
            pipe.send((READY, None))
            pipe.recv()
            pipe.send((DONE, run()))
    except EOFError:
        operations.close()
    except BaseException:  # noqa: BLE001 - is raised again at the other end
        with suppress(OSError):  # nobody is there to be told, when a benchmark is interrupted
            pipe.send((FAILED, traceback.format_exc()))


class Member:
    """Each task makes its values and returns what is to be timed."""

    def __init__(self, operations: Operations, names: Names) -> None:
        self.operations = operations
        self.names = names
        if operations.lookup is None:
            raise ValueError("a rival without lookup cannot be measured")
        self.lookup = operations.lookup

    def make(self, numbers: Sequence[int]) -> list[Any]:
        """Fresh objects, as a parser would make them, so that no hash is remembered from an earlier call."""
        values = self.names.pick(numbers)
        return values if self.operations.from_bytes is None else list(map(self.operations.from_bytes, values))

    def fill(self, start: int, count: int) -> Callable[[], Timing]:
        values = self.make(range(start, start + count))
        insert_many = self.operations.insert_many or (lambda values: [self.operations.insert(value) for value in values])
        return lambda: Timing(count, time_once(insert_many, values) / count)

    def batch_lookup(self, numbers: Sequence[int]) -> Callable[[], Timing]:
        values, lookup_many = self.make(numbers), self.operations.lookup_many
        assert lookup_many

        def run() -> Timing:
            start = perf_counter_ns()
            found = lookup_many(values)
            took = perf_counter_ns() - start
            expect_found(found, len(values))
            return Timing(len(values), took / len(values))

        return run

    def insert(self, start: int, count: int) -> Callable[[], Timing]:
        half = count // 2
        values = self.make(range(start, start + count))

        def run() -> Timing:
            each = time_calls(self.operations.insert, values[:half])
            calls, refs = time_each_call(self.operations.insert, values[half:])
            if len(set(refs)) != len(refs):
                raise WrongAnswerError(f"{len(refs)} new values were given {len(set(refs))} references")
            return Timing(count, each, calls)

        return run

    def first_lookup(self, numbers: Sequence[int]) -> Callable[[], Timing]:
        half = len(numbers) // 2
        values = self.make(numbers)

        def run() -> Timing:
            each = time_calls(self.lookup, values[:half])
            calls, refs = time_each_call(self.lookup, values[half:])
            expect_found(refs, len(values) - half)
            return Timing(len(values), each, calls)

        return run

    def repeated_lookup(self, numbers: Sequence[int], repeats: int) -> Callable[[], Timing]:
        for value in self.make(numbers):
            self.lookup(value)
        return self.first_lookup([number for _ in range(repeats) for number in numbers])

    def paced_insert(self, start: int, count: int, interval: float, seed: int) -> Callable[[], Timing]:
        """One insert every `interval` seconds on average, at random moments, however long each takes."""
        values = self.make(range(start, start + count))
        rng = Random(seed)
        spare = clock_cost()
        moments = list(accumulate(rng.expovariate(1 / interval) if interval else 0.0 for _ in values))

        def run() -> Timing:
            calls: list[int] = []
            begin = perf_counter()
            for value, moment in zip(values, moments, strict=True):
                early = begin + moment - perf_counter()
                if early > 0:
                    time.sleep(early)
                calls.extend(time_each_call(self.operations.insert, [value], spare)[0])
            return Timing(count, (perf_counter() - begin) * 1e9 / count, calls)

        return run

    def write_for(self, seconds: float, start: int, most: int) -> Callable[[], Timing]:
        values = self.make(range(start, start + most))
        return lambda: work_for(seconds, self.operations.insert, values)

    def read_for(self, seconds: float, size: int, most: int, seed: int) -> Callable[[], Timing]:
        """Values drawn at random from all that were there at first."""
        values = self.make(Random(seed).choices(range(size), k=most))
        return lambda: work_for(seconds, self.lookup, values)

    def refs(self, numbers: Sequence[int]) -> Callable[[], list[Any]]:
        values = self.make(numbers)
        return lambda: list(map(self.lookup, values))

    def learn(self, count: int) -> Callable[[], None]:
        """Insert the first `count` values, a part at a time: only what the rival keeps is still there afterwards."""
        return lambda: self.in_parts(count, self.operations.insert_many, self.operations.insert)

    def know(self, count: int) -> Callable[[], None]:
        """Find what another process inserted; of a rival without batches, which has its calls to pay for, a part of it."""
        find_many = self.operations.lookup_many
        return lambda: self.in_parts(count if find_many else min(count, SAMPLE), find_many, self.lookup)

    def warm_up(self) -> Callable[[], None]:
        """Make a part of the values and drop it: what the allocator keeps of it is there before memory is measured."""
        return lambda: self.in_parts(CHUNK, len, len)

    def in_parts(self, count: int, batch: Callable[[list[Any]], object] | None, single: Callable[[Any], object]) -> None:
        for start in range(0, count, CHUNK):
            values = self.make(range(start, min(start + CHUNK, count)))
            if batch is None:
                for value in values:
                    single(value)
            else:
                batch(values)
            del values
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def time_once(function: Callable[[list[Any]], object], values: list[Any]) -> int:
    start = perf_counter_ns()
    function(values)
    return perf_counter_ns() - start


def time_calls(function: Callable[[Any], object], values: list[Any]) -> float:
    """Nanoseconds a call, the loop's own cost included: the median of up to 16 parts, so that a pause in one does not count."""
    parts = min(PARTS, len(values))
    means = []
    for number in range(parts):
        part = values[len(values) * number // parts : len(values) * (number + 1) // parts]
        start = perf_counter_ns()
        for value in part:
            function(value)
        means.append((perf_counter_ns() - start) / len(part))
    return statistics.median(means)


def time_each_call(
    function: Callable[[Any], Any], values: list[Any], spare: int | None = None
) -> tuple[list[int], list[Any]]:
    """Nanoseconds of each call, the clock's own cost taken off (`spare`, where it is known), and what each returned."""
    clock, times, results = perf_counter_ns, [], []
    spare = clock_cost() if spare is None else spare
    for value in values:
        start = clock()
        result = function(value)
        times.append(max(0, clock() - start - spare))
        results.append(result)
    return times, results


def work_for(seconds: float, function: Callable[[Any], Any], values: list[Any]) -> Timing:
    """Call by call until the time is over or the values are used up."""
    clock, spare, times, missed = perf_counter_ns, clock_cost(), [], 0
    begin = start = clock()
    deadline = begin + int(seconds * 1e9)
    for value in values:
        start = clock()
        if start > deadline:
            break
        missed += function(value) is None
        times.append(max(0, clock() - start - spare))
    if missed:
        raise WrongAnswerError(f"{missed} of {len(times)} values were not found")
    return Timing(len(times), (clock() - begin) / max(1, len(times)), times)


def clock_cost() -> int:
    """Nanoseconds between two readings of the clock with nothing between them."""
    return int(statistics.median(-(perf_counter_ns() - perf_counter_ns()) for _ in range(501)))


def expect_found(refs: Sequence[Any], count: int) -> None:
    missed = sum(ref is None for ref in refs) + count - len(refs)
    if missed:
        raise WrongAnswerError(f"{missed} of {count} values were not found")
