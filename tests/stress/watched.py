"""Mutants in forked children that may crash, hang or be killed for it: whatever happens to one, the next is tried."""

from __future__ import annotations

import mmap
import os
import random
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Final, NoReturn

from tests.stress.damage import Mutant, extremes_of_every_field, make_mutant
from tests.stress.damage_turnover import makers_of
from tests.stress.image import KINDS, Copy, Kind, make_image
from tests.stress.mutants import Trial, Verdict

HANG_S: Final = 60.0  # a mutant takes some hundredths of a second; on a busy machine some tenths
MEMORY_SIZE: Final = 256 << 20  # of private memory, beyond what the child begins with


@dataclass
class Result:
    """What became of the mutant of a number."""

    number: int
    region: str
    kind: str
    outcome: str
    complaints: list[str] = field(default_factory=list)


class Mutants:
    """All mutants of a seed. The first ones set every field to every extreme value, one by one; the others are random."""

    def __init__(self, name: str, seed: int, kinds: tuple[Kind, ...] = KINDS) -> None:
        self.name, self.seed = name, seed
        self.images = [make_image(f"{name}-image", seed, kind) for kind in kinds]
        self._weights = [kind.weight for kind in kinds]
        self.systematic = list(extremes_of_every_field(self.images[0]))

    def with_ids(self, pool_ids: Sequence[int]) -> Mutants:
        """The same, of pools with other ids."""
        other = copy(self)
        other.images = [image.with_id(pool_id) for image, pool_id in zip(self.images, pool_ids, strict=True)]
        other.systematic = list(extremes_of_every_field(other.images[0]))
        return other

    def make(self, number: int) -> tuple[int, Mutant]:
        """The index of the image that a mutant is made from, and the mutant."""
        if number < len(self.systematic):
            return 0, self.systematic[number]
        rng = random.Random(f"image of mutant {self.seed} {number}")
        kind = rng.choices(range(len(self.images)), self._weights)[0]
        return kind, make_mutant(self.images[kind], self.seed, number, makers_of(self.images[kind]))

    def try_all(self, numbers: Sequence[int], processes: int) -> Iterator[Result]:
        """Results as they come, in no particular order."""
        children = [Child(self, numbers[part::processes], f"{self.name}-{part}") for part in range(processes)]
        try:
            for child in children:
                child.start()
            while live := [child for child in children if child.is_running]:
                ready = wait([child.here for child in live], 0.5)
                for child in live:
                    yield from child.hear(is_ready=child.here in ready)
        finally:
            for child in children:
                child.end()


class Child:
    """One child at a time, which tries one mutant after another; another takes over from one that has died."""

    def __init__(self, mutants: Mutants, numbers: Sequence[int], name: str) -> None:
        self.mutants = mutants.with_ids([random.SystemRandom().getrandbits(64) for _ in mutants.images])
        self.numbers, self.name = numbers, name
        self.is_running = False
        self._clock = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")  # the place in `numbers`, and since when

    def start(self) -> None:
        self._clock[1] = time.monotonic_ns()
        self.here, there = Pipe(duplex=False)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(there, parent)
        there.close()
        self.is_running = True

    def _run(self, there: Connection, parent: int) -> NoReturn:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this one
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            limit = private_memory() + MEMORY_SIZE
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            trials = [Trial(f"{self.name}-{index}", image) for index, image in enumerate(self.mutants.images)]
            while self._clock[0] < len(self.numbers) and os.getppid() == parent:
                number = self.numbers[self._clock[0]]
                kind, mutant = self.mutants.make(number)
                self._clock[1] = time.monotonic_ns()
                verdict = trials[kind].run(mutant, random.Random(f"use {self.mutants.seed} {number}"))
                if verdict.complaints:
                    verdict.complaints.insert(0, str(mutant))
                there.send(Result(number, mutant.region, mutant.kind, verdict.outcome, verdict.complaints))
                self._clock[0] += 1
            there.send(None)
        finally:
            os._exit(1)

    def hear(self, *, is_ready: bool) -> Iterator[Result]:
        if not is_ready:
            if time.monotonic_ns() - self._clock[1] > HANG_S * 1e9:
                yield self._died("hung")
            return
        try:
            result = self.here.recv()
        except EOFError:
            yield self._died("crashed")
            return
        if result is None:
            self.end()
        else:
            yield result

    def _died(self, outcome: str) -> Result:
        if outcome == "hung":
            os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.here.close()
        number = self.numbers[self._clock[0]]
        _, mutant = self.mutants.make(number)
        verdict = Verdict()
        verdict.blame(outcome, f"{mutant}; the child ended with status {status}")
        self._clock[0] += 1
        self.start()
        return Result(number, mutant.region, mutant.kind, verdict.outcome, verdict.complaints)

    def end(self) -> None:
        """Kill the child if there is one, and remove what it used."""
        if self.is_running:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.here.close()
            self.is_running = False
        for index, image in enumerate(self.mutants.images):
            left = Copy(f"{self.name}-{index}", image)
            left.remove_semaphores()
            left.remove()


def private_memory() -> int:
    """Bytes of this process's data, as RLIMIT_DATA counts them."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmData")) * 1024
