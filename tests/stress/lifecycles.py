"""The operations of pools whose policy lets topics go, as something to be killed in: holds taken and given back, topics freed,
evicted and expired, spaces, slots and ordinals used again.

The survivor's holds are exact at every instant; the killed one's are what it acknowledged, or one step further, until they are
given back; then what nobody holds is gone, its ref is stale for ever, and every byte of the arena is a topic's or on a list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

from shmpool import NotHeldError, Policy, Pool, StaleRefError, TopicRef, engine
from shmpool.arena import space_size
from shmpool.layout import FREE, PAGE_SIZE, RETIRED, SHELF_WORDS
from shmpool.reuse import ReusingStripes
from tests.model import refuses
from tests.stress.kill_points import SURVIVOR, Operation, Scene
from tests.unit.inside import store_of

Act = Callable[[Scene], dict[bytes, int]]  # gives the refs that it was given


class Clock:
    """Time as a test has it; a forked child goes on from there."""

    def __init__(self) -> None:
        self.now_ns = 1

    def __call__(self) -> int:
        return self.now_ns


class Turn(Operation):
    """`act` changes how often its process holds some values by `changes`. Before, others hold `held`, it holds `mine` itself, and
    nobody does `unheld`, of which `stays` must stay, whoever is killed."""

    slack = 2 * PAGE_SIZE  # the dead one's two ledgers

    def __init__(
        self,
        name: str,
        policy: Policy,
        act: Act,
        changes: dict[bytes, int],
        *,
        held: Iterable[bytes] = (),
        unheld: Iterable[bytes] = (),
        mine: Iterable[bytes] = (),
        stays: Iterable[bytes] = (),
        spoil: Callable[[Scene], object] = bool,
        **options: Any,
    ) -> None:
        self.clock = Clock()
        super().__init__(f"{name} ({policy.name})", policy=policy, clock=self.clock, **options)
        self.act_on, self.changes, self.spoil = act, changes, spoil
        self.held, self.unheld, self.mine, self.stays = list(held), list(unheld), list(mine), list(stays)
        self.makes_room = False  # what the killed hold is then given back by whoever goes on

    def arrange(self, scene: Scene) -> None:
        self.clock.now_ns = 1
        pool = scene.open()
        for value in self.held:
            take(scene, value)
        for ref in [take(scene, value) for value in self.unheld]:
            self.clock.now_ns += 1
            give(scene, pool, ref)
        self.spoil(scene)

    def prepare(self, scene: Scene, connection: Connection) -> None:
        if engine.ENGINE == "compiled":  # which leaves it to Python where the ledgers have no memory yet
            store_of(scene.open()).attachment.commit_column(0)
        refs = {value: int(scene.open().intern(value)) for value in self.mine}
        scene.expected |= refs
        connection.send(refs)

    def act(self, scene: Scene, connection: Connection) -> None:
        connection.send(self.act_on(scene))

    def survive(self, scene: Scene) -> None:
        take(scene, SURVIVOR)

    def settle(self, scene: Scene) -> None:
        """Note what a process held that was killed."""
        for refs in scene.acknowledgements:
            scene.given |= {ref: value for value, ref in refs.items()}
        is_done = len(scene.acknowledgements) == 2
        for value in {*self.mine, *self.changes}:
            before = int(value in self.mine)
            after = before + self.changes.get(value, 0)
            low, high = (after, after) if is_done else sorted((before, after))
            low_too, high_too = scene.dead.get(value, (0, 0))
            scene.dead[value] = (low_too + low, high_too + high)
        scene.acknowledgements = []

    def judge(self, scene: Scene) -> None:
        self.settle(scene)
        pool = scene.open()
        assert_sound(pool)
        given_back = self.count_dead(scene, pool)
        reaped = pool.reap()  # tells also of what it found in its own row when it attached
        assert reaped == given_back or (self.makes_room and reaped > given_back), f"reap gave back {reaped} holds"
        assert pool.reap() == 0
        self.assert_nothing_left(scene, pool)
        self.go_on(scene, pool)

    def count_dead(self, scene: Scene, pool: Pool) -> int:
        """Holds of the killed, held against what they acknowledged, as those of the living are."""
        topics = topics_of(pool)
        total = 0
        for value, ref in topics.items():
            own = dead = 0
            for holder in pool.holders(TopicRef(ref)):
                assert holder.live == (holder.pid == os.getpid()), holder
                own, dead = (own + holder.count, dead) if holder.live else (own, dead + holder.count)
            low, high = scene.dead.get(value, (0, 0))
            assert own == scene.holds[value], f"the survivor holds {value!r} {own} times"
            assert (0 if self.makes_room else low) <= dead <= high, f"the killed hold {value!r} {dead} times"
            total += dead
        lost = [value for value, (low, _) in scene.dead.items() if low and not self.makes_room and value not in topics]
        assert not lost, f"held by a process that nobody has given back for: {lost}"
        assert pool.stats().holds == total + scene.holds.total()
        return total

    def assert_nothing_left(self, scene: Scene, pool: Pool) -> None:
        """The killed hold nothing any more, and what follows from that has come to pass."""
        assert_sound(pool)
        topics = topics_of(pool)
        held = {value for value, times in scene.holds.items() if times}
        may_stay = set() if pool.policy.name == "refcount" else {*self.unheld, *scene.dead}
        assert {*held, *self.stays} <= topics.keys() <= held | may_stay, sorted(topics)[:20]
        assert all(topics[value] == scene.expected[value] for value in held), "a ref has changed"
        assert store_of(pool).stripes.unheld_total() <= pool.policy.max_unheld, "more are kept than the policy allows"
        assert pool.stats().holds == scene.holds.total()
        with attach(scene) as fresh:  # with nothing in its cache
            for value, ref in topics.items():
                assert fresh.lookup(value) == ref
                assert fresh.resolve(TopicRef(ref)) == value
            for ref, value in scene.given.items():
                assert topics.get(value) == ref or refuses(fresh, ref), f"{ref} was of {value!r} and is not stale"
        assert_no_memory_lost(pool, topics)

    def go_on(self, scene: Scene, pool: Pool) -> None:
        """Do all of it to the end, and give everything back."""
        for value in [*self.mine, *self.changes, *self.held[:2]]:
            assert pool.resolve(take(scene, value)) == value
        assert_sound(pool)
        for value, times in list(scene.holds.items()):
            for _ in range(times):
                give(scene, pool, TopicRef(scene.expected[value]))
        assert_sound(pool)
        assert pool.stats().holds == 0
        if pool.policy.name == "refcount":
            assert len(pool) == 0
        for ref in scene.given:
            try:
                pool.release(TopicRef(ref))
            except (NotHeldError, StaleRefError):
                continue
            raise AssertionError(f"{ref} was given back once too often")
        assert_no_memory_lost(pool, topics_of(pool))


def take(scene: Scene, value: bytes) -> TopicRef:
    ref = scene.open().intern(value)
    assert scene.given.setdefault(ref, value) == value, f"{ref} was of {scene.given[ref]!r}, and is of {value!r}"
    if scene.holds[value]:
        assert scene.expected[value] == ref, f"{value!r} is held, and its ref has changed"
    scene.holds[value] += 1
    scene.expected[value] = ref
    return ref


def give(scene: Scene, pool: Pool, ref: TopicRef) -> None:
    pool.release(ref)
    scene.holds[scene.given[ref]] -= 1


def attach(scene: Scene) -> Pool:
    return Pool.attach(scene.name, clock=scene.options["clock"])


def topics_of(pool: Pool) -> dict[bytes, int]:
    pairs = [(value, int(ref)) for ref, value in pool]
    topics = dict(pairs)
    assert len(topics) == len(pairs), "a value stands there twice"
    if not pool.policy.ttl_ns:  # what is too old is counted, and not given out
        assert len(topics) == len(pool)
    return topics


def assert_sound(pool: Pool) -> None:
    findings = pool.check()
    assert not findings, findings


def assert_no_memory_lost(pool: Pool, topics: Iterable[bytes]) -> None:
    """Every byte of the arena that is used is a topic's space or on a list of free ones."""
    if pool.policy.ttl_ns:
        return
    stripes = stripes_of(pool)
    heads = [head for stripe in range(stripes.geometry.stripe_count) for head in heads_of(stripes, stripe)]
    free = [record for head in heads for record in stripes.free_spaces(head)]
    assert len({record.offset for record in free}) == len(free)
    in_use = sum(space_size(len(value)) for value in topics)
    assert pool.stats().arena_used_size == in_use + sum(record.end - record.offset for record in free)


def heads_of(stripes: ReusingStripes, stripe: int) -> list[int]:
    return [stripes.shelf(stripe) + head for head in (RETIRED, *range(FREE, SHELF_WORDS))]


def stripes_of(pool: Pool) -> ReusingStripes:
    stripes = store_of(pool).stripes
    assert isinstance(stripes, ReusingStripes)
    return stripes


def interns(value: bytes) -> Act:
    return lambda scene: {value: scene.open().intern(value)}


def releases(*values: bytes) -> Act:
    def act(scene: Scene) -> dict[bytes, int]:
        for value in values:
            scene.open().release(TopicRef(scene.expected[value]))
        return {}

    return act
