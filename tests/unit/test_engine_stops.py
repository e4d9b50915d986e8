"""Claims about the compiled holds, frees and evictions when their process is killed after any machine instruction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import pytest

from shmpool import Policy, Pool, TopicRef
from shmpool.engine import Entry
from shmpool.held import Held
from shmpool.holding import HoldingStore
from shmpool.layout import LOW_40, MAX_GENERATION, META_GENERATION_SHIFT, WORD_SIZE
from tests.unit.inside import engine_chosen, store_of
from tests.unit.stepping import states_at_each_instruction

NOW = 77
TOPIC = b"8 bytes!"  # which are copied in one store
REFCOUNT, LRU = Policy.refcount(), Policy.lru(max_unheld=10)


class Act(NamedTuple):
    """The same in C and in Python."""

    compiled: Callable[[], object]
    plain: Callable[[], object]


class Stage(NamedTuple):
    """A pool with topics that others hold, and one process more, which will be killed."""

    pool: Pool
    victim: Pool
    topic: bytes
    neighbour: bytes  # in the slot after the topic's

    @property
    def store(self) -> HoldingStore:
        return held_store(self.victim)

    @property
    def turnover(self) -> Any:
        return self.store.stripes._turnover  # noqa: SLF001

    def take(self) -> Act:
        store, stripes, value = self.store, self.store.stripes, self.topic
        hash_, place_of = store._hash(value), store._place_of  # noqa: SLF001
        ledgers = store.attachment.ledgers  # now: who is stopped is a forked child, which has others
        return Act(
            lambda: self.turnover.hold(value, *ledgers, 0, 1, []),
            lambda: stripes.hold(0, hash_, value, place_of, []) or stripes.insert_held(0, hash_, value, place_of, []),
        )

    def give(self, ref: TopicRef) -> Act:
        stripes, keeps = self.store.stripes, self.pool.policy.keeps_unheld
        offset, holds = ref - stripes.origin & LOW_40, self.store.held.by_ref[ref][1]
        return Act(lambda: self.turnover.drop(0, offset, holds, NOW, keeps), lambda: stripes.drop(0, offset, holds))

    def evict(self, ref: TopicRef) -> Act:
        stripes = self.store.stripes
        offset = ref - stripes.origin & LOW_40
        stamp = stripes.stamp_of(offset)
        return Act(lambda: self.turnover.evict(0, offset, stamp), lambda: stripes.evict(0, offset, stamp))


def held_store(pool: Pool) -> HoldingStore:
    store = store_of(pool)
    assert isinstance(store, HoldingStore)
    return store


def append(stage: Stage) -> Act:
    return stage.take()


def reuse(stage: Stage) -> Act:
    stage.pool.release(stage.pool.intern(b"x" * len(stage.topic)))
    return stage.take()


def take_what_another_holds(stage: Stage) -> Act:
    stage.pool.intern(stage.topic)
    return stage.take()


def take_what_nobody_holds(stage: Stage) -> Act:
    stage.pool.release(stage.pool.intern(stage.topic))
    return stage.take()


def give_back_the_last(stage: Stage) -> Act:
    return stage.give(stage.victim.intern(stage.topic))


def give_back_the_last_before_a_neighbour(stage: Stage) -> Act:
    ref = stage.victim.intern(stage.topic)
    stage.pool.intern(stage.neighbour)
    return stage.give(ref)


def give_back_the_last_after_a_tombstone(stage: Stage) -> Act:
    before, ref = stage.pool.intern(stage.topic), stage.victim.intern(stage.neighbour)
    stage.pool.release(before)
    return stage.give(ref)


def give_back_the_last_of_its_space(stage: Stage) -> Act:
    stage.pool.release(stage.pool.intern(stage.topic))
    stripes = stage.store.stripes
    [free] = stripes._all_free_spaces(0)  # noqa: SLF001
    word = (stripes.geometry.arena_offset + free.offset) // WORD_SIZE + 1
    stripes.segment.words[word] += MAX_GENERATION - 1 - free.generation << META_GENERATION_SHIFT
    return stage.give(stage.victim.intern(stage.topic))


def give_back_what_another_holds(stage: Stage) -> Act:
    stage.pool.intern(stage.topic)
    return stage.give(stage.victim.intern(stage.topic))


def remembered(store: HoldingStore, entry: Entry) -> Held:
    held = Held(store.segment.words, 10)
    held.add(entry)
    return held


def take_again(stage: Stage) -> Act:
    stage.victim.intern(TOPIC)
    store, entry = stage.store, stage.store.held.by_value[TOPIC]
    return Act(lambda: remembered(store, entry).hot().take(TOPIC), lambda: remembered(store, entry).take(TOPIC))


def give_back_one_of_two(stage: Stage) -> Act:
    ref = stage.victim.intern(stage.victim.resolve(stage.victim.intern(TOPIC)))
    store, entry = stage.store, stage.store.held.by_value[TOPIC]
    return Act(lambda: remembered(store, entry).hot().give(ref), lambda: remembered(store, entry).give(ref))


def evict(stage: Stage) -> Act:
    ref = stage.pool.intern(stage.topic)
    stage.pool.intern(stage.neighbour)
    stage.pool.release(ref)
    return stage.evict(ref)


CASES = [
    (append, REFCOUNT), (append, LRU), (reuse, REFCOUNT), (take_what_another_holds, REFCOUNT), (take_what_nobody_holds, LRU),
    (give_back_the_last, REFCOUNT), (give_back_the_last, LRU), (give_back_the_last_before_a_neighbour, REFCOUNT),
    (give_back_the_last_after_a_tombstone, REFCOUNT), (give_back_the_last_of_its_space, REFCOUNT),
    (give_back_what_another_holds, REFCOUNT), (take_again, REFCOUNT), (give_back_one_of_two, LRU), (evict, LRU),
]
FEW_STATES = {take_what_another_holds: 2, take_again: 3, give_back_one_of_two: 2}  # of those that need no intent


@pytest.fixture
def stages(pool_name: str) -> Iterator[Callable[[Policy], Stage]]:
    with ExitStack() as pools:

        def make(policy: Policy) -> Stage:
            options: dict[str, Any] = {"policy": policy, "stripe_count": 1, "capacity": 40, "process_count": 4,
                                       "clock": lambda: NOW}
            with engine_chosen("compiled"):
                pool = pools.enter_context(Pool.create(pool_name, **options))
                victim = pools.enter_context(Pool.attach(pool_name, clock=lambda: NOW))
            victim.release(pool.intern(b"held by another") and victim.intern(b"held by another"))  # it has ledgers now
            pool.intern(b"and this")
            hash_of = held_store(pool).stripes.engine.hash  # type: ignore[union-attr]
            slot = hash_of(TOPIC) & 511
            names = (b"%05d" % number for number in range(100_000))
            return Stage(pool, victim, TOPIC, next(name for name in names if hash_of(name) & 511 == (slot + 1) & 511))

        yield make


@pytest.mark.parametrize(("prepare", "policy"), CASES, ids=lambda case: str(getattr(case, "__name__", case)))
def test_stores_are_those_of_python_in_its_order_and_a_kill_between_any_two_is_finished_or_undone(
    stages: Callable[[Policy], Stage], prepare: Callable[[Stage], Act], policy: Policy
) -> None:
    stage = stages(policy)
    pool, stripes = stage.pool, held_store(stage.pool).stripes
    act = prepare(stage)
    kept = {value: ref for ref, value in pool if any(holder.row == 0 for holder in pool.holders(ref))}
    fd, size = stripes.segment.fd, stripes.geometry.arena_offset + stripes.limit()

    def look() -> bytes:
        return os.pread(fd, size, 0)

    states = states_at_each_instruction(act.compiled, look)

    assert len(states) == FEW_STATES[prepare] if prepare in FEW_STATES else len(states) > 3  # it was not declined
    os.pwrite(fd, states[0], 0)
    assert states == states_at_each_store(stage.store, act.plain, look)
    kill(stage.victim)
    for number, state in enumerate(states):
        os.pwrite(fd, state, 0)
        judge(pool, kept, by_reaping=number % 2 == 0)
    os.pwrite(fd, states[0], 0)
    judge(pool, kept, by_reaping=True)


def states_at_each_store(store: HoldingStore, act: Callable[[], object], look: Callable[[], bytes]) -> list[bytes]:
    """What `look` gives after each store of `act` in Python; only those that differ from the one before."""
    states = [look()]

    def step() -> None:
        if look() != states[-1]:
            states.append(look())

    segment, frombuffer = store.segment, np.frombuffer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.stripes, "_turnover", None)
        for name in ("words", "data"):
            patch.setattr(segment, name, Watched(getattr(segment, name), step))
        patch.setattr(np, "frombuffer", lambda it, *rest: frombuffer(it.base if isinstance(it, Watched) else it, *rest))
        act()
    return states


class Watched:
    """A segment's words or bytes, which tells after each store."""

    def __init__(self, base: Any, step: Callable[[], None]) -> None:
        self.base, self._step = base, step

    def __getitem__(self, place: Any) -> Any:
        return self.base[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        self.base[place] = value
        self._step()


def kill(pool: Pool) -> None:
    """Let go of the row as a killed process's kernel does."""
    store = store_of(pool)
    store.closed = "was killed"
    store.attachment.retire()
    store.segment.close()


def judge(pool: Pool, kept: dict[bytes, TopicRef], *, by_reaping: bool) -> None:
    """Nothing contradicts anything, what others held is there as it was, the killed one holds nothing, and all goes on."""
    store = held_store(pool)
    for value, ref in kept.items():
        assert pool.lookup(value) == ref
    if by_reaping:
        pool.reap()
    assert pool.check() == []
    pool.reap()
    assert pool.check() == []
    assert pool.stats().holds == len(kept)
    if not pool.policy.keeps_unheld:
        assert {value for _, value in pool} == set(kept)
    refs = pool.intern_many([TOPIC, b"other", b"third"])
    assert pool.check() == []
    assert len(set(refs.tolist()) | set(kept.values())) == len({TOPIC, b"other", b"third", *kept})
    pool.release_many(refs)
    assert pool.check() == []
    for value, ref in kept.items():
        assert (pool.lookup(value), pool.resolve(ref)) == (ref, value)
    store.held.clear()
