"""Under every policy, whatever several processes do to a pool, and whichever is killed, it behaves as a dict with holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shmpool import NotHeldError, Policy, Pool, PoolBusyError, PoolFullError, StaleRefError, TopicRef
from shmpool.arena import make_meta
from tests.lifecycles import COUNTED, Lifecycles
from tests.property.attached import Attachments, Here, Spare, attach_with
from tests.unit.inside import ENGINES

CAPACITY = 12  # so that it is full at any time, and that the spaces of a stripe soon outnumber its ordinals
RESERVE = 3
MAX_VALUE_SIZE = 400
TIMES_MS = (1, 50, 99, 100, 101)
CACHE_SIZES = (4096, 2)
POLICIES = [Policy.refcount(), Policy.lru(max_unheld=4), Policy.ttl(seconds=0.1)]
ERRORS: dict[str, set[type[Exception] | None]] = {"ok": {None}, "stale": {StaleRefError}, "not held": {NotHeldError}}

imitation = b"".join(word.to_bytes(8, "little") for word in (7, make_meta(ordinal=1, generation=0, size=3), 0, 0))
SIZES = (0, 1, 8, 40, 100, 112, 300, MAX_VALUE_SIZE)
values = (
    st.sampled_from([b"", b"\0", b"\xff\xfe\x80", imitation, imitation * 3])
    | st.integers(0, 9).map(lambda number: b"topic-%d" % number)
    | st.builds(lambda size, number: (b"%d" % number * size)[:size], st.sampled_from(SIZES), st.integers(0, 9))
)
actors = st.integers(0, 9)  # of those attached
places = st.integers(0, 999)  # of whatever is chosen from


class LifecycleMachine(Attachments):
    """Attachments of this process, at least one, and of children, which are killed now and then."""

    @initialize(stripe_count=st.sampled_from((1, 2)), budget=st.sampled_from((1 << 62, 25)), tick=st.sampled_from((0, 1)))
    def create(self, stripe_count: int, budget: int, tick: int) -> None:
        self.tick = tick
        self.model = Lifecycles(self.policy, budget, self.clock)
        self.attach_here(
            lambda: Pool.create(
                self.name,
                policy=self.policy,
                capacity=CAPACITY,
                reserve=RESERVE,
                insert_budget=budget,
                stripe_count=stripe_count,
                max_value_size=MAX_VALUE_SIZE,
                process_count=8,
                clock=self.clock,
            )
        )
        self.attach_child(CACHE_SIZES[0], ENGINES[-1])

    def reap_what_could_be(self, who: int) -> None:
        """Whether an intern that finds a pool full of what is too old reaps too depends on when that was last looked for."""
        is_any_old = any(map(self.model.is_expired, self.model.topics.values()))
        if is_any_old and (self.model.killed or self.model.untold.get(who)):
            self.reap(list(self.attached).index(who))

    # ---- values and refs

    @rule(who=actors, value=values, how=st.sampled_from(("intern", "admit", "hold")))
    def intern(self, who: int, value: bytes, how: str) -> None:
        who = self.actor(who)
        self.reap_what_could_be(who)
        expected = self.model.intern(who, value, CAPACITY - RESERVE if how == "admit" else CAPACITY)

        ref, error = self.attached[who].do(how, value)

        assert error is (None if expected else PoolFullError)
        if expected:
            self.model.told(value, ref)
            if how == "hold":
                assert self.model.release(who, ref) == "ok"
        self.settle(who)

    @rule(seed=st.integers(0, 1 << 32), count=st.sampled_from((5, 20, 60)))
    def come_and_go(self, seed: int, count: int) -> None:
        """Much of what is most usual; and now and then time goes by, or a process comes or is killed."""
        random = Random(seed)
        for _ in range(count):
            what, who, place = random.random(), random.randrange(10), random.randrange(1000)
            value = (b"%d" % random.randrange(6) * MAX_VALUE_SIZE)[: random.choice(SIZES)]
            if what < 0.4:
                self.intern(who, value, random.choice(("intern", "admit", "hold")))
            elif what < 0.75:
                self.release(who, place, 0)
            elif what < 0.9:
                self.lookup(who, random.choice([value, *self.model.topics]))
                self.resolve(who, place, 0)
            elif what < 0.95:
                self.advance(random.choice(TIMES_MS))
            elif what < 0.98 and len(self.attached) > len(self.of_here()):
                self.kill(place)
            elif self.unused:
                self.attach_child(random.choice(CACHE_SIZES), random.choice(ENGINES))

    @rule(who=actors, batch=st.lists(values, max_size=5), fresh=st.integers(0, 14))
    def intern_many(self, who: int, batch: list[bytes], fresh: int) -> None:
        """What is known and needs no room, or what is all new: else which topics went in between would be anybody's guess."""
        who = self.actor(who)
        self.reap_what_could_be(who)
        if len(self.model.topics) + len(set(batch)) > CAPACITY:
            batch = [b"fresh %d %d" % (len(self.model.refs), number) for number in range(fresh)]
        held = 0
        while held < len(batch) and self.model.intern(who, batch[held], CAPACITY):
            held += 1

        refs, error = self.attached[who].do("intern_many", batch)

        if held == len(batch):
            assert error is None
            for value, ref in zip(batch, refs.tolist(), strict=True):
                self.model.told(value, ref)
        else:
            assert error is PoolFullError
            for value in batch[:held]:
                self.model.give_back(who, value)
        self.settle(who)

    @rule(who=actors, value=values)
    def lookup(self, who: int, value: bytes) -> None:
        who = self.actor(who)
        expected = self.model.lookup(who, value)

        assert self.do(who, "lookup", value) == (expected, None)

    @rule(who=actors, batch=st.lists(values, max_size=5))
    def lookup_many(self, who: int, batch: list[bytes]) -> None:
        who = self.actor(who)
        expected = [self.model.lookup(who, value) or 0 for value in batch]

        refs, _ = self.do(who, "lookup_many", batch)

        assert refs.tolist() == expected

    @rule(who=actors, place=places, distance=st.just(0) | st.sampled_from((-40, -8, 1, 8, 16, 24, 1 << 40, -1 << 40)))
    def resolve(self, who: int, place: int, distance: int) -> None:
        who = self.actor(who)
        ref = self.a_ref(place, who) + distance
        expected = (self.model.refs[ref], None) if self.model.find_ref(ref) else (None, StaleRefError)

        assert self.do(who, "resolve", ref) == expected

    @rule(who=actors, place=places, distance=st.just(0) | st.sampled_from((-8, 8, 16, 24, 1 << 40)))
    def release(self, who: int, place: int, distance: int) -> None:
        who = self.actor(who)
        ref = self.a_ref(place, who) + distance
        is_old = self.model.is_kept_though_old(ref)
        expected = self.model.release(who, ref)

        _, error = self.do(who, "release", ref)

        assert error in ERRORS[expected] or (is_old and error is NotHeldError)

    @rule(who=actors, chosen=st.lists(places, max_size=6))
    def release_many(self, who: int, chosen: list[int]) -> None:
        who = self.actor(who)
        refs = [ref for place in chosen if not self.model.is_kept_though_old(ref := self.a_ref(place, who))]
        expected = next((each for each in (self.model.release(who, ref) for ref in refs) if each != "ok"), "ok")

        went = expected == "not held" and self.model.due  # with the release before; which did is seen only afterwards

        _, error = self.do(who, "release_many", refs)

        assert error in ERRORS[expected] or (went and error is StaleRefError)

    @rule(who=actors, place=places)
    def holders(self, who: int, place: int) -> None:
        who = self.actor(who)
        ref = self.a_ref(place, who)
        topic = self.model.find_ref(ref)

        is_old = self.model.is_kept_though_old(ref)
        expected = {self.model.rows[each]: (*self.process(each), count) for each, count in topic.holds.items()} if topic else {}

        holders, error = self.do(who, "holders", ref)

        assert {holder.row: (holder.pid, holder.live, holder.count) for holder in holders or ()} == expected
        assert error is (None if topic or is_old else StaleRefError)

    # ---- time, processes, the pool

    @rule(ms=st.sampled_from(TIMES_MS))
    def advance(self, ms: int) -> None:
        self.clock.advance(ms * 1_000_000)

    @rule(who=actors)
    def flush(self, who: int) -> None:
        self.do(self.actor(who), "flush")
        self.model.flush(self.actor(who))

    @rule(who=actors)
    def reap(self, who: int) -> None:
        who = self.actor(who)
        expected = self.model.reap(who)

        assert self.do(who, "reap") == (expected, None)

    @rule(cache=st.sampled_from(CACHE_SIZES), engine=st.sampled_from(ENGINES))
    def attach(self, cache: int, engine: str) -> None:
        if len(self.of_here()) < 2:
            self.attach_here(lambda: attach_with(engine, self.name, cache, self.clock))

    @precondition(lambda self: self.unused)
    @rule(cache=st.sampled_from(CACHE_SIZES), engine=st.sampled_from(ENGINES))
    def attach_child(self, cache: int, engine: str) -> None:
        spare = self.unused.pop()
        spare.attach(self.name, cache, engine)
        self.came(spare)

    @rule(who=actors)
    def close(self, who: int) -> None:
        who = self.actor(who)
        if isinstance(self.attached[who], Here) and len(self.of_here()) == 1:
            return
        self.model.close(who)
        self.attached.pop(who).close()
        self.settle(who)
        self.model.flush(who)

    @precondition(lambda self: len(self.attached) > len(self.of_here()))
    @rule(place=places)
    def kill(self, place: int) -> None:
        children = list(self.attached.keys() - self.of_here())
        who = children[place % len(children)]
        child = self.attached.pop(who)
        assert isinstance(child, Spare)
        child.kill()
        self.model.kill(who)

    @rule(who=actors, should=st.integers(0, 3))
    def reset(self, who: int, should: int) -> None:
        who = self.actor(who)
        if len(self.attached) > 1:
            assert self.do(who, "reset") == (None, PoolBusyError)
        elif should == 0:
            self.model.reset()
            assert self.do(who, "reset") == (None, None)
        self.model.flush(who)

    # ---- what always holds

    @invariant()
    def is_sound(self) -> None:
        pool = self.here()[1]
        assert pool.check() == []
        assert len(pool) == len(self.model.topics)
        assert dict(pool) == {topic.ref: value for value, topic in self.model.topics.items() if not self.model.is_expired(topic)}

    @invariant()
    def counts_exactly(self) -> None:
        who, pool = self.here()
        stats, _ = self.do(who, "stats")
        self.model.flush(who)
        model = self.model

        assert (stats.size, stats.unheld) == (len(model.topics), len(model.topics) - len(model.held()))
        assert {name: getattr(stats.total, name) for name in COUNTED} == model.total_published()
        assert stats.total.uses_dropped == stats.takeovers == 0
        found = {process.row: process for process in stats.processes}
        assert found.keys() == set(model.rows.values())
        for each, row in model.rows.items():
            process = found[row]
            assert (process.pid, process.live) == self.process(each)
            assert process.holds == model.holds_of(each)
            assert {name: getattr(process.counters, name) for name in COUNTED} == model.published_by(each)
        expected = {value: (topic.ref, topic.uses, topic.holds.total()) for value, topic in model.topics.items()}
        for order, key in (("uses", 2), ("holds", 3)):
            top = pool.top(CAPACITY, by=order)
            assert [count[key] for count in top] == sorted((count[key] for count in top), reverse=True)
            assert {count.value: (count.ref, count.uses, count.holds) for count in top} == expected

    @invariant()
    def stale_refs_stay_stale(self) -> None:
        pool = self.here()[1]
        for ref in list(self.model.stale)[-20:]:
            with pytest.raises(StaleRefError):
                pool.resolve(TopicRef(ref))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_pool_behaves_as_a_dict_with_holds(new_pool_name: Callable[[], str], policy: Policy) -> None:
    run_state_machine_as_test(
        partial(LifecycleMachine, new_pool_name, policy),  # type: ignore[arg-type]  # it only calls it
        settings=settings(max_examples=20, stateful_step_count=40),
    )
