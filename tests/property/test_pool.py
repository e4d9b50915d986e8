"""Whatever is done to a pool, through whichever attachment, it behaves as a dict that hands out refs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shmpool import Pool, PoolBusyError, PoolClosedError, PoolFullError, PoolNotFoundError, TopicRef
from shmpool.arena import make_record
from tests.model import Model, assert_sound, refuses
from tests.unit.inside import ENGINES, engine_chosen

CAPACITY = 1100  # so that a table of 512 slots grows twice, and the pool gets full
RESERVE = 100
MAX_VALUE_SIZE = 200
CACHE_SIZES = (4096, 3)
ODD_VALUES = [
    b"",
    b"\0",
    b"\0\0",
    b"\xff\xfe\x80",
    "/eth2/ünïcode".encode("latin-1"),
    make_record(7, b"inner", 0),  # imitates a record
    bytes(MAX_VALUE_SIZE),
    b"\xff" * MAX_VALUE_SIZE,
]

values = st.sampled_from(ODD_VALUES) | st.integers(0, 20).map(lambda number: b"topic-%d" % number) | st.binary(max_size=24)
batches = st.lists(values, max_size=20) | st.builds(
    lambda start, count: [b"bulk-%d" % number for number in range(start, start + count)],
    st.integers(0, 600),
    st.integers(100, 600),
)
attachments = st.sampled_from((0, 1))


class PoolMachine(RuleBasedStateMachine):
    """Two attachments of one process, of which at least one is open; the second remembers next to nothing."""

    def __init__(self, new_name: Callable[[], str]) -> None:
        super().__init__()
        self.name = new_name()
        self.pools: dict[int, Pool] = {}
        self.closed = Pool.create(self.name + ".closed")
        self.closed.close()

    @initialize(stripe_count=st.sampled_from((1, 2, 4)), persistent=st.booleans(), count=st.sampled_from((0, 380, 760)))
    def create(self, stripe_count: int, persistent: bool, count: int) -> None:
        self.options = {"stripe_count": stripe_count, "persistent": persistent}
        self.start()
        self.intern_many(0, [b"first-%d" % number for number in range(count)])  # near or past the growth of a lone stripe

    def start(self) -> None:
        self.pools[0] = Pool.create(
            self.name,
            capacity=CAPACITY,
            reserve=RESERVE,
            max_value_size=MAX_VALUE_SIZE,
            cache_size=CACHE_SIZES[0],
            **self.options,  # type: ignore[arg-type]
        )
        self.model = Model(CAPACITY, RESERVE, MAX_VALUE_SIZE)
        self.uses: Counter[bytes] = Counter()
        self.hits = self.misses = self.inserts = 0
        self.counts_are_known = True  # a batch that fails in its middle has counted what it got to

    def pool(self, which: int) -> Pool:
        """The attachment meant, or the other one while it is closed."""
        return self.pools[which if which in self.pools else 1 - which]

    def used(self, value: bytes, ref: TopicRef, limit: int | None = None) -> None:
        """An intern gave `ref`; hold it against the model and count it."""
        known = value in self.model.refs
        self.model.interned(value, ref, limit=limit)
        self.uses[value] += 1
        self.hits += known
        self.misses += not known
        self.inserts += not known

    def looked_up(self, value: bytes, ref: int | None) -> None:
        assert ref == self.model.lookup(value)
        self.uses[value] += ref is not None
        self.hits += ref is not None
        self.misses += ref is None

    # ---- values and refs

    @rule(which=attachments, value=values)
    def intern(self, which: int, value: bytes) -> None:
        if self.model.lookup(value) is None and self.model.is_full():
            with pytest.raises(PoolFullError):
                self.pool(which).intern(value)
        else:
            self.used(value, self.pool(which).intern(value))

    @rule(which=attachments, value=values)
    def admit(self, which: int, value: bytes) -> None:
        limit = CAPACITY - RESERVE
        if self.model.lookup(value) is None and self.model.is_full(limit):
            with pytest.raises(PoolFullError):
                self.pool(which).admit(value)
        else:
            self.used(value, self.pool(which).admit(value), limit)

    @rule(which=attachments, value=values)
    def lookup(self, which: int, value: bytes) -> None:
        self.looked_up(value, self.pool(which).lookup(value))

    @rule(which=attachments, value=values)
    def contains(self, which: int, value: bytes) -> None:
        found = value in self.pool(which)

        assert found == (value in self.model.refs)
        self.looked_up(value, self.model.lookup(value))

    @rule(which=attachments, batch=batches)
    def lookup_many(self, which: int, batch: list[bytes]) -> None:
        refs = self.pool(which).lookup_many(batch)

        assert refs.dtype == "uint64"
        for value, ref in zip(batch, refs.tolist(), strict=True):
            self.looked_up(value, ref or None)

    @rule(which=attachments, batch=batches)
    def intern_many(self, which: int, batch: list[bytes]) -> None:
        new = set(batch) - self.model.refs.keys()
        if len(self.model.refs) + len(new) > CAPACITY:
            self.fill_up(which, batch, new)
            return

        refs = self.pool(which).intern_many(batch)

        assert refs.dtype == "uint64"
        for value, ref in zip(batch, refs.tolist(), strict=True):
            self.used(value, TopicRef(ref))

    def fill_up(self, which: int, batch: list[bytes], new: set[bytes]) -> None:
        """A batch that does not fit: the pool says so, is full to the last topic, and keeps what fitted."""
        with pytest.raises(PoolFullError):
            self.pool(which).intern_many(batch)

        self.counts_are_known = False
        for value in new:
            ref = self.pool(which).lookup(value)
            if ref is not None:
                self.model.interned(value, ref)
        assert self.model.is_full()

    @rule(which=attachments, batch=batches, place=st.integers(0, 2**16))
    def one_too_long_value_spoils_a_batch(self, which: int, batch: list[bytes], place: int) -> None:
        spoilt = [*batch]
        spoilt.insert(place % (len(batch) + 1), bytes(MAX_VALUE_SIZE + 1))

        with pytest.raises(ValueError, match="max_value_size"):
            self.pool(which).intern_many(spoilt)
        with pytest.raises(ValueError, match="max_value_size"):
            self.pool(which).intern(bytes(MAX_VALUE_SIZE + 1))

    @rule(which=attachments, start=st.integers(0, CAPACITY), count=st.integers(1, 20))
    def resolve(self, which: int, start: int, count: int) -> None:
        known = list(self.model.values.items())[start : start + count]

        resolved = self.pool(which).resolve_many(ref for ref, _ in known)

        assert resolved == [value for _, value in known]

    @rule(which=attachments, ref=st.integers(-10, 2**63) | st.integers(2**39, 2**40))
    def resolve_what_is_no_ref(self, which: int, ref: int) -> None:
        assert ref in self.model.values or refuses(self.pool(which), ref)

    @precondition(lambda self: self.model.values)
    @rule(which=attachments, place=st.integers(0, CAPACITY), distance=st.integers(-64, 64))
    def resolve_what_is_near_a_ref(self, which: int, place: int, distance: int) -> None:
        refs = list(self.model.values)
        near = refs[place % len(refs)] + distance

        assert near in self.model.values or refuses(self.pool(which), near)

    @precondition(lambda self: self.model.stale)
    @rule(which=attachments)
    def resolve_what_was_reset(self, which: int) -> None:
        assert all(refuses(self.pool(which), ref) for ref in self.model.stale)

    # ---- the pool's life

    @rule(which=attachments)
    def close_and_attach_again(self, which: int) -> None:
        if which in self.pools:
            self.pools.pop(which).close()
        if self.pools or self.options["persistent"]:
            with engine_chosen(ENGINES[which % len(ENGINES)]):
                self.pools[which] = Pool.attach(self.name, cache_size=CACHE_SIZES[which])
            return
        with pytest.raises(PoolNotFoundError):
            Pool.attach(self.name)
        self.start()

    @precondition(lambda self: len(self.pools) == 2)
    @rule(which=attachments)
    def close(self, which: int) -> None:
        self.pools.pop(which).close()

    @rule(which=attachments)
    def reset(self, which: int) -> None:
        if len(self.pools) == 2:
            with pytest.raises(PoolBusyError):
                self.pool(which).reset()
            return
        self.pool(which).reset()
        self.model.reset()
        self.uses.clear()

    @rule(which=attachments)
    def unlinking_a_pool_in_use_is_refused(self, which: int) -> None:
        with pytest.raises(PoolBusyError):
            Pool.unlink(self.pool(which).name)

    @rule(value=values)
    def a_closed_pool_refuses(self, value: bytes) -> None:
        with pytest.raises(PoolClosedError):
            self.closed.intern(value)

    # ---- what always holds

    @invariant()
    def is_sound(self) -> None:
        for pool in self.pools.values():
            assert len(pool) == len(self.model.refs)
        assert self.pool(0).check() == []

    @invariant()
    def counts_exactly(self) -> None:
        if not self.counts_are_known:
            return
        for pool in self.pools.values():
            pool.flush()
        stats = self.pool(0).stats()

        assert (stats.hits, stats.misses, stats.inserts) == (self.hits, self.misses, self.inserts)
        assert (stats.takeovers, stats.total.uses_dropped) == (0, 0)

    def teardown(self) -> None:
        if not self.pools:
            return
        try:
            for pool in self.pools.values():
                assert_sound(pool, self.model.refs)
            self.assert_uses()
        finally:
            while self.pools:
                self.pools.popitem()[1].close()

    def assert_uses(self) -> None:
        """Exact but for the one lookup of each value in `assert_sound`, for each attachment."""
        top = self.pool(0).top(CAPACITY)

        assert [count.uses for count in top] == sorted((count.uses for count in top), reverse=True)
        assert {count.value: count.ref for count in top} == self.model.refs
        if self.counts_are_known:
            for pool in self.pools.values():
                pool.flush()
            counted = {count.value: count.uses - len(self.pools) for count in self.pool(0).top(CAPACITY)}
            assert counted == {value: self.uses[value] for value in self.model.refs}


def test_a_pool_behaves_as_a_dict_that_hands_out_refs(new_pool_name: Callable[[], str]) -> None:
    run_state_machine_as_test(
        partial(PoolMachine, new_pool_name),  # type: ignore[arg-type]  # it only calls it
        settings=settings(max_examples=60, stateful_step_count=40),
    )
