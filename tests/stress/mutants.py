"""What a pool does with a mutant: everything a process can do to it, held against what was in it before.

A mutant may be refused, may raise PoolError (ValueError, too, for arguments), and may be found fault with by `check`. It must
not crash, hang, eat memory, leak descriptors, raise anything else or hand out wrong bytes; and where a value or ref is lost,
`check` must say something.
"""

from __future__ import annotations

import gc
import os
import random
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from shmpool import Pool, PoolError, TopicRef
from shmpool.layout import LOW_40
from tests.stress.damage import Mutant
from tests.stress.image import Copy, Image

MEMORY_SLACK: Final = 1 << 20  # what a few inserts, a grown table and ledgers may commit, and a damaged word must not pass
SAMPLE: Final = 24
CACHE_SIZES: Final = (1, *[4096] * 9)  # a new attachment is cold in any case; with 1 it stays so, and is slow
T = TypeVar("T")

# Outcomes, the gravest first. The first group are violations.
VIOLATIONS: Final = ("crashed", "hung", "wrong bytes", "foreign error", "memory", "leak", "unreported loss")
HARMLESS: Final = ("refused", "reported", "error", "right")


@dataclass
class Verdict:
    """What became of one mutant; `complaints` say what was wrong, for violations."""

    outcome: str = "right"
    complaints: list[str] = field(default_factory=list)

    def blame(self, outcome: str, complaint: str) -> None:
        self.complaints.append(f"{outcome}: {complaint}")
        self.settle(outcome)

    def settle(self, outcome: str) -> None:
        order = (*VIOLATIONS, *HARMLESS)
        if order.index(outcome) < order.index(self.outcome):
            self.outcome = outcome

    @contextmanager
    def allowing(self, what: str) -> Iterator[None]:
        """PoolError and ValueError are answers; any other exception is a violation."""
        try:
            yield
        except (PoolError, ValueError):
            self.settle("error")
        except MemoryError:
            self.blame("memory", what)
        except Exception:  # noqa: BLE001 - that is the claim
            self.blame("foreign error", f"{what}\n{traceback.format_exc(limit=-4)}")


class Trial:
    """Mutants of one copy, one after another."""

    def __init__(self, name: str, image: Image) -> None:
        self.copy = Copy(name, image)
        self.image = image
        self.values = {ref: value for value, ref in image.refs.items()}

    def run(self, mutant: Mutant, rng: random.Random) -> Verdict:
        verdict = Verdict()
        self.copy.remove_semaphores()
        self.copy.restore()
        descriptors = count_descriptors()
        # Half of them meet processes that are attached already: what these remember of limits and tables is from before. Not
        # a file cut short under their mapping, whose missing pages trap in any program.
        veteran = None
        if not mutant.cuts_a_file and rng.random() < 0.5:
            veteran = Pool.attach(self.copy.name, cache_size=rng.choice(CACHE_SIZES))
        try:
            self._damage(mutant)
            self._try(verdict, rng, veteran)
        finally:
            if veteran is not None:
                close(verdict, veteran)
            del veteran
        if self.copy.memory_size > self.image.memory_size + MEMORY_SLACK:
            verdict.blame("memory", f"{self.copy.memory_size} bytes committed, and {self.image.memory_size} before")
        if count_descriptors() != descriptors:
            gc.collect()  # a pool whose close raised is let go, and may be in a cycle with the traceback that says so
        if count_descriptors() != descriptors:
            verdict.blame("leak", f"{count_descriptors()} descriptors, and {descriptors} before")
        return verdict

    def _damage(self, mutant: Mutant) -> None:
        for offset, data in mutant.writes:
            os.pwrite(self.copy.fd, data, offset)
        if mutant.size is not None:
            os.ftruncate(self.copy.fd, mutant.size)
        if mutant.semaphore is not None:
            path = self.copy.semaphore_path(0)
            if isinstance(mutant.semaphore, bytes):
                path.touch(mode=0o600)
                os.truncate(path, len(mutant.semaphore))
                with path.open("r+b") as file:
                    file.write(mutant.semaphore)
            else:
                replace_with(path, mutant.semaphore)

    def _try(self, verdict: Verdict, rng: random.Random, veteran: Pool | None) -> None:
        newcomers: list[Pool] = []
        with verdict.allowing("attach"):
            newcomers.append(Pool.attach(self.copy.name, cache_size=rng.choice(CACHE_SIZES)))
        if not newcomers:
            verdict.settle("refused")
        if veteran is not None:
            self._use(verdict, rng, veteran)
        for newcomer in newcomers:
            if veteran is None:
                self._use(verdict, rng, newcomer)
            else:
                self._read(verdict, rng, newcomer, sample=SAMPLE // 4)
            close(verdict, newcomer)
        if veteran is None and rng.random() < 0.1:
            with verdict.allowing("unlink"):
                Pool.unlink(self.copy.name)

    # ---- one pool

    def _use(self, verdict: Verdict, rng: random.Random, pool: Pool) -> None:
        """Cold reads first, then what inspects, then inserts, then reads again."""
        lost = self._read(verdict, rng, pool, sample=SAMPLE)
        findings = self._inspect(verdict, pool)
        if lost and findings == []:
            verdict.blame("unreported loss", f"{lost[0]} ({len(lost)} such), and check finds nothing")
        if findings:
            verdict.settle("reported")
        self._insert(verdict, rng, pool)
        if pool.policy.counts_holds:
            self._turn_over(verdict, rng, pool)
        self._read(verdict, rng, pool, sample=SAMPLE // 4)
        if rng.random() < 0.05:
            with verdict.allowing("reset"):
                pool.reset()
                self._insert(verdict, rng, pool)

    def _read(self, verdict: Verdict, rng: random.Random, pool: Pool, sample: int) -> list[str]:
        """Look up all values and resolve refs, theirs and made-up ones. Returns what was lost."""
        lost: list[str] = []
        values = list(self.image.refs)
        for value in rng.sample(values, sample):
            with verdict.allowing("lookup"):
                ref = pool.lookup(value)
                self._check_ref(verdict, pool, value, ref)
                if not self._is_same(ref, self.image.refs[value]):
                    lost.append(f"lookup of {value!r} gave {ref}")
        with verdict.allowing("lookup_many"):
            for value, found in zip(values, pool.lookup_many(values).tolist(), strict=True):
                if not self._is_same(found, self.image.refs[value]):
                    self._check_ref(verdict, pool, value, found)
                    lost.append(f"lookup_many of {value!r} gave {found}")
        lost += self._resolve(verdict, rng, pool, rng.sample(values, sample))
        return lost

    def _resolve(self, verdict: Verdict, rng: random.Random, pool: Pool, values: list[bytes]) -> list[str]:
        lost: list[str] = []
        for value in values:
            ref = self.image.refs[value]
            try:
                resolved = pool.resolve(TopicRef(ref))
            except PoolError as error:
                verdict.settle("error")
                if not self._has_another_generation(pool, value):
                    lost.append(f"resolve of {value!r} raised {error}")
            except Exception:  # noqa: BLE001
                verdict.blame("foreign error", f"resolve\n{traceback.format_exc(limit=-4)}")
            else:
                self._hold(verdict, f"resolve({ref})", resolved, value)
            far = (ref + 8 * rng.randrange(4096), self.image.origin, ref + self.image.limit, -ref)
            wild = rng.choice((ref + 8, ref - 8, ref | 1, *far))
            with verdict.allowing("resolve of a made-up ref"), suppress(PoolError):
                self._hold(verdict, f"resolve({wild})", pool.resolve(TopicRef(wild)), self.values.get(wild))
        return lost

    def _is_same(self, ref: int | None, expected: int) -> bool:
        """Where topics go a record's generation is the one thing that nothing else tells: the ref with another one is the value's
        all the same, and the one with this is stale."""
        mask = LOW_40 if self.image.constants.geometry.reuses else -1
        return bool(ref) and (ref or 0) - self.image.origin & mask == expected - self.image.origin & mask

    def _has_another_generation(self, pool: Pool, value: bytes) -> bool:
        with suppress(PoolError):
            return self.image.constants.geometry.reuses and self._is_same(pool.lookup(value), self.image.refs[value])
        return False

    def _check_ref(self, verdict: Verdict, pool: Pool, value: bytes, ref: int | None) -> None:
        """A ref that was given for a value resolves to it, or raises."""
        if ref:
            with suppress(PoolError):
                self._hold(verdict, f"resolve({ref})", pool.resolve(TopicRef(ref)), value)

    def _hold(self, verdict: Verdict, what: str, given: bytes, expected: bytes | None) -> None:
        if expected is not None and given != expected:
            verdict.blame("wrong bytes", f"{what} gave {given!r}, not {expected!r}")

    def _inspect(self, verdict: Verdict, pool: Pool) -> list[Any] | None:
        """What `check` found, or None where it raised."""
        findings = None
        with verdict.allowing("check"):
            findings = list(pool.check())
        calls: list[Callable[[], object]] = [pool.stats, pool.__len__, pool.flush, pool.__repr__]
        for call in calls:
            with verdict.allowing(call.__name__):
                len(pool) if call == pool.__len__ else call()
        with verdict.allowing("iteration"):
            self._hold_all(verdict, "iteration", pool)
        with verdict.allowing("top"):
            self._hold_all(verdict, "top", ((topic.ref, topic.value) for topic in pool.top(len(self.image.refs))))
        return findings

    def _hold_all(self, verdict: Verdict, what: str, pairs: Iterable[tuple[int, bytes]]) -> None:
        for ref, value in pairs:
            self._hold(verdict, f"{what} at {ref}", value, self.values.get(ref))

    def _insert(self, verdict: Verdict, rng: random.Random, pool: Pool) -> None:
        new = [rng.randbytes(rng.choice((4, 20, 47, 300))) for _ in range(3)]
        for value in [*new, *new, *rng.sample(list(self.image.refs), 4)]:
            with verdict.allowing("intern"):
                self._check_ref(verdict, pool, value, pool.intern(value))
        many = [b"%d of many, " % number * 4 + rng.randbytes(4) for number in range(rng.choice((4, 4, 4, 300)))]
        with verdict.allowing("intern_many"):
            for value, ref in zip(many, pool.intern_many(many).tolist(), strict=True):
                self._check_ref(verdict, pool, value, ref)

    def _turn_over(self, verdict: Verdict, rng: random.Random, pool: Pool) -> None:
        """Take holds and give them back, of what is there and of what comes into free spaces."""
        new = [rng.randbytes(rng.choice((6, 6, 20, 21, 47, 120, 250))) for _ in range(6)]
        refs: list[TopicRef] = []
        for value in [*new, *rng.sample(list(self.image.refs), 8)]:
            with verdict.allowing("intern"):
                refs.append(pool.intern(value))
                self._check_ref(verdict, pool, value, refs[-1])
                pool.holders(refs[-1])
        with verdict.allowing("reap"):
            pool.reap()
        for ref in refs:
            with verdict.allowing("release"):
                pool.release(ref)
        with verdict.allowing("top"):
            pool.top(3, by="holds")


def close(verdict: Verdict, pool: Pool) -> None:
    """As a program would: close, and where that raises let the pool go as a killed process does."""
    with verdict.allowing("close"):
        pool.close()


def replace_with(path: Path, what: str) -> None:
    path.unlink(missing_ok=True)
    if what == "directory":
        path.mkdir()
    elif what == "link":
        path.symlink_to("/dev/shm/" + "x" * 23)  # as long as a semaphore's file
    elif what == "dangling link":
        path.symlink_to("/nowhere")


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
