"""Claims about stripes whose spaces are used again, without a Pool: what is held stays, and no handle or column comes twice."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from shmpool import Policy, PoolFullError, lifetime
from shmpool.arena import Record, read_record
from shmpool.holding import HoldingStore
from shmpool.layout import (
    GENERATION_SHIFT,
    LOW_40,
    MAX_GENERATION,
    META_GENERATION_SHIFT,
    MIN_TABLE_BITS,
    SPACES,
    TABLE,
    TOMBSTONES,
    UNHELD,
    WORD_SIZE,
)
from shmpool.reuse import Place

SMALL, MIDDLE, LARGE = 10, 60, 200  # bytes of values, of three classes of spaces


class Bench:
    """A stripe to work on, as its lock's only holder."""

    def __init__(self, name: str, policy: Policy, capacity: int) -> None:
        self.now = 1000
        constants = lifetime.choose_constants(
            capacity=capacity, arena_size=1 << 20, stripe_count=1, max_value_size=1000, insert_budget=None, reserve=0,
            process_count=4, persistent=False, policy=policy,
        )  # fmt: skip
        self.store = HoldingStore(lifetime.create(name, constants), 8, lambda: self.now)
        self.stripes = self.store.stripes
        self.words = self.store.segment.words
        self.places: dict[int, Place] = {}
        self.stripes.recover(0)

    def place_of(self, column: int) -> Place:
        return Place(*self.store.attachment.commit_column(column))

    def hold(self, value: bytes) -> int:
        """The handle of a value, held once more."""
        hash_ = self.store._hash(value)  # noqa: SLF001
        taken: list[int] = []
        got = self.stripes.hold(0, hash_, value, self.place_of, taken)
        got = got or self.stripes.insert_held(0, hash_, value, self.place_of, taken)
        assert taken == [got[0]]
        self.places[got[0]] = got[1]
        return got[0]

    def give(self, handle: int) -> bool:
        return self.stripes.give_back(0, handle, self.places[handle])

    def find(self, value: bytes) -> int:
        return self.stripes.find(0, self.store._hash(value), value)  # noqa: SLF001

    def record(self, handle: int) -> Record:
        return read_record(self.store.segment, handle & LOW_40)

    def shelf(self, field: int) -> int:
        return int(self.words[self.stripes.shelf(0) + field])

    def image(self) -> bytes:
        return bytes(self.words)

    def is_sound(self) -> bool:
        findings = self.store.check()
        assert not findings, findings
        return True


@pytest.fixture
def bench(pool_name: str, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Under refcount, of four topics, unless the test says otherwise."""
    made = Bench(pool_name, *getattr(request, "param", (Policy.refcount(), 4)))
    yield made
    made.store.close()


def value_of(size: int, number: int) -> bytes:
    return (b"%06d" % number * 200)[:size]


def generation_of(handle: int) -> int:
    return handle >> GENERATION_SHIFT


def test_a_hold_of_what_is_there_counts_and_of_what_is_not_is_none(bench: Bench) -> None:
    assert bench.stripes.hold(0, 5, b"unknown", bench.place_of, []) is None
    handle = bench.hold(b"value")
    assert bench.hold(b"value") == handle == bench.find(b"value")

    assert bench.words[bench.places[handle].holds] == 2
    assert (bench.give(handle), bench.find(b"value")) == (True, handle)
    assert (bench.give(handle), bench.find(b"value")) == (True, -1)
    assert (bench.stripes.inserts, bench.stripes.frees, bench.stripes.total()) == (1, 1, 0)
    before = bench.image()
    assert not bench.give(handle)
    assert bench.image() == before
    assert bench.is_sound()


def test_a_space_is_used_again_by_its_class_with_the_next_generation_and_by_no_other(bench: Bench) -> None:
    first = bench.hold(value_of(MIDDLE, 0))
    bench.give(first)

    other = bench.hold(value_of(SMALL, 1))
    again = bench.hold(value_of(MIDDLE, 2))

    assert other & LOW_40 != first & LOW_40 == again & LOW_40
    assert (generation_of(first), generation_of(again), generation_of(other)) == (0, 1, 0)
    assert bench.record(again).ordinal == 0
    assert bench.find(value_of(MIDDLE, 0)) == -1
    assert bench.is_sound()


@pytest.mark.parametrize("bench", [(Policy.lru(max_unheld=4), 4)], indirect=True)
def test_only_what_nobody_holds_since_that_very_time_is_evicted(bench: Bench) -> None:
    held, unheld = bench.hold(b"held"), bench.hold(b"unheld")
    bench.give(unheld)
    before = bench.image()
    offset = unheld & LOW_40

    assert not bench.stripes.evict(0, held & LOW_40, 0)
    assert not bench.stripes.evict(0, held & LOW_40, 1000)
    assert not bench.stripes.evict(0, offset, 999)
    assert not bench.stripes.evict(0, offset + 8, 0)
    assert bench.image() == before
    assert (bench.stripes.stamp_of(offset), bench.shelf(UNHELD)) == (1000, 1)
    assert bench.stripes.evict(0, offset, 1000)
    assert not bench.stripes.evict(0, offset, 1000)
    assert (bench.find(b"unheld"), bench.find(b"held"), bench.shelf(UNHELD)) == (-1, held, 0)
    assert (bench.stripes.evictions, bench.stripes.frees) == (1, 0)
    assert bench.is_sound()


@pytest.mark.parametrize("bench", [(Policy.ttl(seconds=1e-6), 4)], indirect=True)
def test_what_is_too_old_is_not_found_and_held_again_it_is_another_topic(bench: Bench) -> None:
    old = bench.hold(b"value")
    bench.give(old)
    bench.now += 999
    assert bench.find(b"value") == old
    assert bench.hold(b"value") == old
    bench.now += 5000  # held for long
    assert bench.find(b"value") == old
    bench.give(old)
    bench.now += 1000

    assert (bench.find(b"value"), bench.shelf(UNHELD)) == (-1, 1)
    new = bench.hold(b"value")

    assert (new & LOW_40, generation_of(new)) == (old & LOW_40, 1)
    assert (bench.stripes.evictions, bench.stripes.inserts, bench.shelf(UNHELD)) == (1, 2, 0)
    assert bench.is_sound()


def test_a_full_stripe_takes_no_more_and_nothing_is_changed(bench: Bench) -> None:
    handles = [bench.hold(value_of(SMALL, number)) for number in range(4)]
    before = bench.image()

    with pytest.raises(PoolFullError, match="takes no more"):
        bench.hold(value_of(SMALL, 4))

    assert bench.image() == before
    bench.give(handles[2])
    assert bench.hold(value_of(LARGE, 4))
    assert bench.is_sound()


def test_where_sizes_drift_free_spaces_lend_their_ordinals_and_no_column_is_of_two_topics(bench: Bench) -> None:
    for round_ in range(1, 6):
        for size in (SMALL, MIDDLE, LARGE):
            handles = [bench.hold(value_of(size, number)) for number in range(4)]
            records = [bench.record(handle) for handle in handles]

            assert sorted(record.ordinal for record in records) == [0, 1, 2, 3]
            assert bench.is_sound()
            for handle in handles:
                bench.give(handle)
        assert bench.shelf(SPACES) == 4
        assert len(list(bench.stripes._all_free_spaces(0))) == 12  # noqa: SLF001 - as many as the most there were, of each class
        assert min(generation_of(handle) for handle in handles) >= round_


@pytest.mark.parametrize("bench", [(Policy.refcount(), 9), (Policy.lru(max_unheld=9), 9)], indirect=True, ids=["free", "evict"])
def test_no_handle_and_no_column_with_its_generation_is_ever_given_to_another_topic(bench: Bench, rng: Random) -> None:
    held: dict[bytes, int] = {}
    handles, columns = set[int](), set[tuple[int, int]]()
    for number in range(600):
        if len(held) < 9 and rng.random() < 0.6:
            value = value_of(rng.choice((0, SMALL, MIDDLE, LARGE, 900)), number)
            if value in held:
                continue
            handle = held[value] = bench.hold(value)
            column = (bench.record(handle).ordinal, generation_of(handle))
            assert handle not in handles
            assert column not in columns
            handles.add(handle)
            columns.add(column)
        elif held:
            value = rng.choice(list(held))
            handle = held.pop(value)
            assert bench.give(handle)
            assert not bench.stripes.policy.keeps_unheld or bench.stripes.evict(0, handle & LOW_40, bench.now)
        assert all(bench.find(value) == handle for value, handle in held.items())
        if number % 20 == 0:
            assert bench.is_sound()
    assert len(handles) > 200


@pytest.mark.parametrize("bench", [(Policy.refcount(), 1)], indirect=True)
def test_a_space_of_the_last_generation_is_retired_and_only_its_ordinal_goes_on(bench: Bench) -> None:
    first = bench.hold(value_of(SMALL, 0))
    bench.give(first)
    meta_word = (bench.stripes.geometry.arena_offset + (first & LOW_40)) // WORD_SIZE + 1
    bench.words[meta_word] += MAX_GENERATION - 1 << META_GENERATION_SHIFT
    last = bench.hold(value_of(SMALL, 1))
    assert (last & LOW_40, generation_of(last)) == (first & LOW_40, MAX_GENERATION)
    bench.give(last)
    assert bench.is_sound()

    seen = {first, last}
    for number in range(2, 6):
        handle = bench.hold(value_of(SMALL, number))
        assert handle & LOW_40 != last & LOW_40
        assert handle not in seen
        assert bench.record(handle).ordinal == 0
        seen.add(handle)
        assert bench.is_sound()
        bench.give(handle)


@pytest.mark.parametrize("bench", [(Policy.refcount(), 1000)], indirect=True)
def test_a_table_is_rebuilt_without_tombstones_and_grows_only_for_what_is_there(bench: Bench) -> None:
    row = bench.stripes.geometry.stripes_offset // WORD_SIZE + TABLE
    states = [bench.words[row]]
    held = {value_of(SMALL, number): bench.hold(value_of(SMALL, number)) for number in range(240)}
    for number in range(240, 3000):
        value = next(iter(held))
        assert bench.give(held.pop(value))
        held[value_of(SMALL, number)] = bench.hold(value_of(SMALL, number))
        if bench.words[row] != states[-1]:
            states.append(bench.words[row])
            assert bench.shelf(TOMBSTONES) == 0
            assert bench.stripes.table(0).bits == MIN_TABLE_BITS  # 240 of 512
    assert all(bench.find(value) == handle for value, handle in held.items())
    assert 3 < len(states) == len(set(states))
    assert bench.is_sound()

    for number in range(3000, 3300):
        held[value_of(SMALL, number)] = bench.hold(value_of(SMALL, number))

    assert bench.stripes.table(0).bits == MIN_TABLE_BITS + 1
    assert all(bench.find(value) == handle for value, handle in held.items())
    assert bench.is_sound()
