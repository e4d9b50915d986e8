"""Churn: processes that hold and give back, so that topics come and go as fast as they can; and readers beside them.

As many topics live at any time as there are places, beside some that stay. Each place has a sequence of topics of one size, and
a word says which one is there: so a reader knows what to ask for, and may find it, miss it, or see it go; never as other bytes.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from shmpool import Policy, Pool, StaleRefError
from shmpool.layout import SPACES, TOMBSTONES
from shmpool.reuse import ReusingStripes
from shmpool.table import read_table
from tests.stress.crowd import SharedWords
from tests.unit.inside import store_of
from tests.unit.processes import Forked

_TURN: Final = 64  # pairs, or looks, between two looks at whether it is over
KEPT: Final = 50  # topics that are held all the time, so that nobody ever misses them, however often tables are built anew
LONGEST: Final = 110  # bytes of a value


class WrongBytesError(AssertionError):
    """A ref resolved to what it never was."""


@dataclass(frozen=True)
class Plan:
    """`pairs` of intern and release by all `writers` together, over `live` topics, while `readers` look."""

    pairs: int
    writers: int = 2
    readers: int = 1
    live: int = 1000
    stripe_count: int = 4
    seed: int = 0
    policy: Policy = Policy.refcount()  # noqa: RUF009 - frozen


def value_of(place: int, serial: int) -> bytes:
    """Of a size that goes with its place: what drifts is where topics are, not how large they are together."""
    return b"/%d/%d/" % (place, serial) + b"x" * (place * 7 % 80)


class Churn:
    """The words that all processes share: of each place the serial number of its topic, of each writer its pairs, of each reader
    what it saw."""

    def __init__(self, pool: Pool, plan: Plan) -> None:
        self.pool, self.plan = pool, plan
        self.serials = SharedWords(plan.live).words
        self.pairs = SharedWords(plan.writers).words
        self.looks = SharedWords(max(plan.readers, 1) * 3).words  # right, stale, missed
        self.is_over = SharedWords(1).words
        self.kept = {value: pool.intern(value) for value in (b"/kept/%d" % number for number in range(KEPT))}

    def write(self, writer: int) -> None:
        plan, rng = self.plan, random.Random(f"writer {self.plan.seed} {writer}")
        intern, release = self.pool.intern, self.pool.release
        own = range(writer, plan.live, plan.writers)
        refs = {place: intern(value_of(place, 0)) for place in own}
        share = plan.pairs // plan.writers
        for done in range(share):
            place = rng.choice(own)
            serial = self.serials[place] + 1
            ref = intern(value_of(place, serial))
            self.serials[place] = serial
            release(refs[place])
            refs[place] = ref
            if done % _TURN == 0:
                self.pairs[writer] = done
                if self.is_over[0]:
                    break
        self.pairs[writer] = done + 1
        while min(self.pairs) < share and not self.is_over[0]:  # the others go on over as many topics as before
            time.sleep(0.001)
        for ref in refs.values():
            release(ref)

    def read(self, reader: int) -> None:
        rng, tally = random.Random(f"reader {self.plan.seed} {reader}"), Counter[int]()
        lookup, resolve = self.pool.lookup, self.pool.resolve
        while not self.is_over[0]:
            for value, kept in self.kept.items():
                if lookup(value) != kept or resolve(kept) != value:
                    raise WrongBytesError(f"{value!r} was held all the time, and was missed or another")
            for _ in range(_TURN):
                place = rng.randrange(self.plan.live)
                value = value_of(place, self.serials[place])
                ref = lookup(value)
                if ref is None:
                    tally[2] += 1
                    continue
                try:
                    found = resolve(ref)
                except StaleRefError:
                    tally[1] += 1
                else:
                    tally[0] += 1
                    if found != value:
                        raise WrongBytesError(f"ref {ref} of {value!r} resolved to {found!r}")
            for kind in range(3):
                self.looks[3 * reader + kind] = tally[kind]


Sample = dict[str, float]


def look_at(churn: Churn, started_s: float) -> Sample:
    """What could grow, at this instant."""
    pool = churn.pool
    stripes, segment = store_of(pool).stripes, store_of(pool).segment
    assert isinstance(stripes, ReusingStripes)
    shelves = [stripes.shelf(stripe) for stripe in range(churn.plan.stripe_count)]
    tables = [stripes.table(stripe) for stripe in range(churn.plan.stripe_count)]
    tables = [table for table in tables if table.bits >= 0]
    searches = [miss_lengths(read_table(segment.words, table.word, 1 << table.bits)) for table in tables]
    misses = np.concatenate(searches or [np.zeros(1, np.int64)])
    stats = pool.stats()
    return {
        "elapsed_s": time.monotonic() - started_s,
        "pairs": float(sum(churn.pairs)),
        "looks": float(sum(churn.looks)),
        "memory_kib": stats.memory_size / 1024,
        "arena_kib": stats.arena_used_size / 1024,
        "spaces": float(sum(segment.words[shelf + SPACES] for shelf in shelves)),
        "tombstones": float(sum(segment.words[shelf + TOMBSTONES] for shelf in shelves)),
        "slots": float(sum(1 << table.bits for table in tables)),
        "miss_mean": float(misses.mean()),
        "miss_p99": float(np.percentile(misses, 99)),
    }


def miss_lengths(slots: np.ndarray[tuple[int, ...], np.dtype[np.uint64]]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Slots that a search for what is not there reads, by where it begins, shape (n,): the longest that any search is."""
    free = np.flatnonzero(slots == 0)
    if not len(free):
        return np.full(len(slots), len(slots))
    places = np.arange(len(slots))
    following = np.concatenate([free, free[:1] + len(slots)])
    lengths: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = following[np.searchsorted(free, places)] - places + 1
    return lengths


def churn(
    name: str, plan: Plan, *, samples: int = 100, on_progress: Callable[[Sample], object] = bool
) -> tuple[list[Sample], list[str], Counter[str]]:
    """Samples taken between equal numbers of pairs, what was wrong in the end, and what readers saw."""
    taken: list[Sample] = []
    with Pool.create(name, policy=plan.policy, stripe_count=plan.stripe_count, max_value_size=LONGEST, capacity=1 << 16) as pool:
        state = Churn(pool, plan)
        members = [Forked(lambda _, place=place: state.write(place)) for place in range(plan.writers)]  # type: ignore[misc]
        members += [Forked(lambda _, place=place: state.read(place)) for place in range(plan.readers)]  # type: ignore[misc]
        try:
            started_s = time.monotonic()
            while not all(writer.has_spoken_within(0) for writer in members[: plan.writers]):
                if any(reader.has_spoken_within(0) for reader in members[plan.writers :]):
                    break  # it has failed
                time.sleep(0.002)
                if len(taken) * plan.pairs // samples <= sum(state.pairs) < plan.pairs:
                    taken.append(look_at(state, started_s))
                    on_progress(taken[-1])
            state.is_over[0] = 1
            for member in members:
                member.result()
        finally:
            state.is_over[0] = 1
            for member in members:
                member.__exit__(None, None, None)
        pool.release_many(state.kept.values())
        wrong = list(what_is_left(pool))
        tally = Counter({kind: sum(state.looks[place::3]) for place, kind in enumerate(("right", "stale", "missed"))})
        tally["pairs"] = sum(state.pairs)
    return taken, wrong, tally


def what_is_left(pool: Pool) -> list[str]:
    """What is wrong once everything was given back."""
    pool.reap()
    wrong = [str(finding) for finding in pool.check()]
    if pool.stats().holds:
        wrong.append(f"{pool.stats().holds} holds are left")
    if len(pool) > (pool.policy.max_unheld if pool.policy.keeps_unheld else 0):
        wrong.append(f"{len(pool)} topics are left")
    return wrong
