"""Claims about inserts, growth and recovery: a process is killed at each of their steps, and the next finds a sound pool."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import numpy as np
import pytest

from shmpool import Pool, PoolCorruptError, PoolFullError, TopicRef, lifetime
from shmpool.hashing import make_hasher
from shmpool.header import Constants
from shmpool.layout import COUNT, INTENT, MIN_TABLE_BITS, STRIPE_WORDS, TABLE, WORD_SIZE, seal
from shmpool.store import Store
from tests.model import assert_sound
from tests.unit.faults import Faults, install, killed_at
from tests.unit.interrupts import interrupted_at, needs_opcode_tracing
from tests.unit.processes import Forked, in_child

NEW = b"the new value"
FIRST_GROWTH = 3 << MIN_TABLE_BITS - 2  # records that fill the smallest table
Names = Callable[[], str]


def some_values(number: int) -> list[bytes]:
    return [b"/eth2/6a95a1a9/beacon_attestation_%d/ssz_snappy" % index for index in range(number)]


def intern_anew(name: str, *values: bytes) -> Callable[[Faults], object]:
    """Attach, and only then count the steps of interning the values."""

    def act(faults: Faults) -> None:
        pool = Pool.attach(name)
        faults.arm()
        for value in values:
            pool.intern(value)

    return act


# ---- kills


@pytest.mark.parametrize(
    ("known", "steps"),
    [
        pytest.param(0, 12, id="the first of all: an empty table, a chunk"),
        pytest.param(5, 6, id="one more"),
        pytest.param(FIRST_GROWTH, 8, id="the table grows"),
    ],
)
def test_insert_killed_at_any_step_is_whole_or_undone(new_pool_name: Names, known: int, steps: int) -> None:
    for step in count(1):
        with Pool.create(name := new_pool_name(), stripe_count=1) as pool:
            values = some_values(known)
            acknowledged = dict(zip(values, pool.intern_many(values).tolist(), strict=True))

            killed = killed_at(step, intern_anew(name, NEW))

            assert_sound(pool, acknowledged, at_most_also=[NEW])
            acknowledged[NEW] = pool.intern(NEW)
            acknowledged[b"and another"] = pool.intern(b"and another")
            assert_sound(pool, acknowledged)
        if not killed:
            break
    assert step > steps


def test_insert_killed_while_it_takes_a_second_chunk_is_whole_or_undone(new_pool_name: Names) -> None:
    for step in count(1):
        with Pool.create(name := new_pool_name(), stripe_count=1, max_value_size=1000) as pool:
            values = [bytes([number]) * 1000 for number in range(16)]  # with their headers they fill a chunk but for a little
            acknowledged = dict(zip(values, pool.intern_many(values).tolist(), strict=True))
            big = b"\xff" * 1000

            killed = killed_at(step, intern_anew(name, big))

            assert_sound(pool, acknowledged, at_most_also=[big])
            acknowledged[big] = pool.intern(big)
            assert_sound(pool, acknowledged)
            assert pool.stats().arena_committed_size == 2 * pool.constants.geometry.chunk_size
        if not killed:
            break
    assert step > 12


def test_batch_killed_at_any_step_keeps_what_it_had_finished(new_pool_name: Names) -> None:
    values = some_values(4)
    for step in count(1):
        with Pool.create(name := new_pool_name(), stripe_count=1) as pool:
            acknowledged = {NEW: int(pool.intern(NEW))}

            def intern_many(faults: Faults, name: str = name) -> None:
                pool = Pool.attach(name)
                faults.arm()
                pool.intern_many(values)

            killed = killed_at(step, intern_many)

            assert_sound(pool, acknowledged, at_most_also=values)
            held = {value for _, value in pool} - {NEW}
            assert held == set(values[: len(held)])
        if not killed:
            break
    assert step > 15


def test_recovery_killed_at_any_step_is_recovered_by_the_next(new_pool_name: Names) -> None:
    """An insert killed at every step, and where that leaves an intent, its recovery killed at every step."""
    pairs = 0
    for step in count(1):
        for second_step in count(1):
            with Pool.create(name := new_pool_name(), stripe_count=1) as pool:
                acknowledged = {b"known": int(pool.intern(b"known"))}
                killed = killed_at(step, intern_anew(name, NEW))
                is_pending = pending_intent(name)

                killed_again = is_pending and killed_at(second_step, recover_anew(name))

                if is_pending:
                    pairs += 1
                    assert_sound(pool, acknowledged, at_most_also=[NEW])
            if not killed_again:
                break
        if not killed:
            break
    assert pairs > 20


def pending_intent(name: str) -> int:
    store = Store(lifetime.attach(name), 64)
    intent: int = store.segment.words[stripe_word(store, INTENT)]
    store.close()
    return intent


def recover_anew(name: str) -> Callable[[Faults], object]:
    def act(faults: Faults) -> None:
        store = Store(lifetime.attach(name), 64)
        faults.arm()
        store.locks[0].run(store.stripes.recover, 0)

    return act


def test_chunk_taken_after_a_reset_by_a_killed_process_belongs_to_one_stripe_alone(new_pool_name: Names) -> None:
    """The chunk's word is stored before the arena's limit, so a killed taker leaves one that names it and is not taken."""
    for step in count(1):
        with Pool.create(name := new_pool_name(), stripe_count=2) as pool:
            pool.intern_many(some_values(100))
            pool.reset()
            of_stripe = [[value for value in some_values(100) if stripe_in(pool, value) == stripe] for stripe in range(2)]

            killed = killed_at(step, intern_anew(name, of_stripe[0][0]))

            acknowledged = {value: int(pool.intern(value)) for value in of_stripe[0]}
            with Pool.attach(name) as other:
                acknowledged |= {value: int(other.intern(value)) for value in of_stripe[1]}
            assert_sound(pool, acknowledged)
        if not killed:
            break
    assert step > 12


def stripe_in(pool: Pool, value: bytes) -> int:
    return pool.constants.geometry.stripe_of(make_hasher(pool.constants.hash_key)(value))


# ---- interrupts


def strike() -> None:
    raise KeyboardInterrupt


@needs_opcode_tracing
def test_insert_interrupted_at_any_point_is_whole_or_undone_and_the_pool_goes_on(pool_name: str) -> None:
    def try_all() -> int:
        with Pool.create(pool_name, stripe_count=1) as pool, Pool.attach(pool_name) as other:
            acknowledged: dict[bytes, int] = {}
            for point in count(1):
                value = b"%d" % point
                try:
                    struck = interrupted_at(point, strike, partial(pool.intern, value))
                except KeyboardInterrupt:
                    struck = True
                if point % 10 == 1 or not struck:
                    assert_sound(other, acknowledged, at_most_also=[value])
                acknowledged[value] = other.intern(value)
                assert pool.intern(value) == acknowledged[value]
                if not struck:
                    assert other.stats().lock_waits == 0
                    return point
        raise AssertionError

    assert in_child(try_all) > 15


@needs_opcode_tracing
def test_growth_interrupted_at_any_point_loses_nothing(new_pool_name: Names) -> None:
    def try_all() -> int:
        values = some_values(FIRST_GROWTH)
        for point in count(1):
            with Pool.create(new_pool_name(), stripe_count=1) as pool:
                acknowledged = dict(zip(values, pool.intern_many(values).tolist(), strict=True))
                try:
                    struck = interrupted_at(point, strike, partial(pool.intern, NEW))
                except KeyboardInterrupt:
                    struck = True
                acknowledged[NEW] = pool.intern(NEW)
                assert pool.check() == []
                assert {value: ref for ref, value in pool} == acknowledged
                if not struck:
                    return point
        raise AssertionError

    assert in_child(try_all) > 40


def test_a_timers_interrupts_at_random_lose_nothing(pool_name: str) -> None:
    """What tracing cannot reach: interrupts inside system calls, and several in a row."""

    def fuzz() -> int:
        hits = 0
        acknowledged: dict[bytes, int] = {}

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        with Pool.create(pool_name, stripe_count=2) as pool, Pool.attach(pool_name) as other:
            number = 0
            while hits < 300:
                number += 1
                value = b"%d" % number
                try:
                    signal.setitimer(signal.ITIMER_REAL, (number % 50 + 1) * 2e-6)
                    ref = pool.intern(value)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    acknowledged[value] = ref
                except KeyboardInterrupt:
                    hits += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert_sound(other, acknowledged, at_most_also=[b"%d" % seen for seen in range(number + 1)])
            other.intern_many([b"%d" % seen for seen in range(number + 1)])
            assert_sound(pool, {**acknowledged, **{value: int(ref) for ref, value in other}})
        return hits

    assert in_child(fuzz) == 300


# ---- growth


def test_growth_changes_no_ref(pool_name: str) -> None:
    with Pool.create(pool_name, stripe_count=1, cache_size=1) as pool, Pool.attach(pool_name, cache_size=1) as other:
        values = some_values(5 * FIRST_GROWTH)
        refs = {value: pool.intern(value) for value in values}

        assert [other.lookup(value) for value in values] == list(refs.values())
        assert [other.resolve(ref) for ref in refs.values()] == values
        assert_sound(pool, refs)


def test_readers_miss_nothing_while_the_table_grows(pool_name: str) -> None:
    with Pool.create(pool_name, stripe_count=1, cache_size=1) as pool:
        known = some_values(50)
        refs = pool.intern_many(known).tolist()

        def read(connection: object) -> int:
            del connection
            rounds = 0
            while len(pool) < 6 * FIRST_GROWTH:
                assert [pool.lookup(value) for value in known] == refs
                assert [pool.resolve(ref) for ref in refs] == known
                rounds += 1
            return rounds

        with Forked(read) as reader:
            for number in range(6 * FIRST_GROWTH):
                pool.intern(b"%d" % number)

            assert reader.result() > 0


# ---- bounds and damage


@pytest.fixture
def store(pool_name: str) -> Iterator[Store]:
    """A seat in a pool of one stripe and one chunk, with one value in it."""
    made = Store(lifetime.create(pool_name, small_pool()), 64)
    made.intern(b"known", 100)
    yield made
    made.close()


def small_pool() -> Constants:
    return lifetime.choose_constants(
        capacity=100, arena_size=1, stripe_count=1, max_value_size=1000, insert_budget=None, reserve=0, process_count=4,
        persistent=False,
    )


def stripe_word(store: Store, field: int) -> int:
    return store.constants.geometry.stripes_offset // WORD_SIZE + field


def test_full_arena_raises_and_changes_nothing(store: Store) -> None:
    number = 0
    while not is_full(store, bytes([number]) * 1000):
        number += 1
    before = bytes(store.segment.words)

    with pytest.raises(PoolFullError, match="arena_size"):
        store.intern(b"\xff" * 1000, 100)

    assert bytes(store.segment.words) == before
    assert store.stripes.total() == 1 + number
    assert store.check() == []
    assert store.intern(b"a short one still fits", 100)


def is_full(store: Store, value: bytes) -> bool:
    try:
        store.intern(value, 100)
    except PoolFullError:
        return True
    return False


@pytest.mark.parametrize("word", [1 << 56 | 4, 1 << 56 | 1 << 30, 2 << 56 | 1, 3 << 56, 1 << 63, 0xFF << 56 | 7])
def test_damaged_intent_is_a_clear_error_or_harmless_and_changes_no_record(store: Store, word: int) -> None:
    records = list(store.items())
    store.segment.words[stripe_word(store, INTENT)] = word

    refused = is_refused(store, NEW)

    assert [finding.where for finding in store.check()] == ["stripe 0"] * refused
    assert set(records) <= set(store.items())
    assert not refused or list(store.items()) == records
    store.segment.words[stripe_word(store, INTENT)] = 0


def is_refused(store: Store, value: bytes) -> bool:
    try:
        store.intern(value, 100)
    except PoolCorruptError:
        return True
    return False


@pytest.mark.parametrize("bit", range(64))
def test_any_flipped_bit_of_the_table_word_is_a_clear_error_and_never_a_wrong_ref(store: Store, bit: int) -> None:
    place = stripe_word(store, TABLE)
    ref = store.lookup(b"known")
    store.segment.words[place] ^= 1 << bit

    with pytest.raises(PoolCorruptError, match="stripe 0: its table word"):
        store.lookup(b"known")
    with pytest.raises(PoolCorruptError, match="stripe 0: its table word"):
        store.intern(b"new", 100)
    assert [finding.where for finding in store.check()] == ["stripe 0"]

    store.segment.words[place] ^= 1 << bit
    assert store.lookup(b"known") == ref
    assert store.check() == []


@pytest.mark.parametrize("place", [0, MIN_TABLE_BITS - 1, 31, 60, 255, 2 << 8 | MIN_TABLE_BITS])
def test_whole_table_word_that_names_no_table_is_a_clear_error(store: Store, place: int) -> None:
    word = stripe_word(store, TABLE)
    before = store.segment.words[word]
    store.segment.words[word] = seal(store.stripes.epoch, place)

    with pytest.raises(PoolCorruptError, match="names no table"):
        store.lookup(b"known")
    with pytest.raises(PoolCorruptError, match="names no table"):
        store.intern(b"new", 100)

    store.segment.words[word] = before
    assert store.check() == []


@pytest.mark.parametrize("bit", range(64))
def test_a_flipped_bit_of_a_clean_intent_word_overwrites_no_record(store: Store, bit: int) -> None:
    refs = {value: int(store.intern(value, 100)) for value in some_values(20)}
    store.segment.words[stripe_word(store, INTENT)] = 1 << bit

    if not is_refused(store, NEW):
        for number in range(20):
            store.intern(b"%d" % number, 100)

    assert [store.resolve(ref) for ref in refs.values()] == list(refs)
    assert [store.lookup(value) for value in refs] == list(refs.values())
    store.segment.words[stripe_word(store, INTENT)] = 0
    assert store.check() == []


def test_stripe_takes_no_more_topics_than_its_ledger_has_columns(pool_name: str) -> None:
    """Only who knows the key can make it happen."""
    with Pool.create(pool_name, capacity=1000, stripe_count=16) as pool:
        values = [value for number in range(5000) if stripe_in(pool, value := b"%d" % number) == 3]
        most = pool.constants.geometry.stripe_capacity

        refs = {value: int(pool.intern(value)) for value in values[:most]}

        assert len(values) > most
        with pytest.raises(PoolFullError, match="stripe 3 holds"):
            pool.intern(values[most])
        assert_sound(pool, refs)


def test_chunk_of_another_stripe_is_not_written_to(pool_name: str) -> None:
    with Pool.create(pool_name, stripe_count=2) as pool:
        pool.intern_many(some_values(20))
        assert_sound(pool, {value: int(ref) for ref, value in pool})
    # Below the surface, for the damage.
    constants = lifetime.choose_constants(
        capacity=100, arena_size=None, stripe_count=2, max_value_size=100, insert_budget=None, reserve=0, process_count=4,
        persistent=False,
    )
    store = Store(lifetime.create(pool_name, constants), 64)
    store.find_many(some_values(20), capacity=100)
    words, first = store.segment.words, stripe_word(store, 0)
    chunk = first + 3
    words[chunk], words[chunk + STRIPE_WORDS] = words[chunk + STRIPE_WORDS], words[chunk]
    items = list(store.items())

    for number in range(20):
        with pytest.raises(PoolCorruptError, match="is not its own"):
            store.intern(b"new %d" % number, 100)

    assert list(store.items()) == items
    assert {finding.what for finding in store.check()} == {"current chunk 0 is not its own", "current chunk 1 is not its own"}
    store.close()


def test_total_is_the_sum_of_the_stripes_counts(store: Store) -> None:
    assert store.stripes.total() == 1

    store.segment.words[stripe_word(store, COUNT)] += 5

    assert store.stripes.total() == 6
    assert store.check() != []
    store.segment.words[stripe_word(store, COUNT)] -= 5


def test_columns_of_records_are_dense_and_distinct(pool_name: str) -> None:
    with Pool.create(pool_name, stripe_count=4) as pool:
        refs = pool.intern_many(some_values(400))
        store = Store(lifetime.attach(pool_name), 64)

        columns = store.stripes.columns(refs - np.uint64(store.stripes.origin))

        assert len(set(columns.tolist())) == 400
        assert columns.max() < 800
        store.close()


def test_install_counts_stores(pool_name: str) -> None:
    """The proof above is one only if the faults see the stores."""

    def count_steps() -> tuple[int, TopicRef]:
        faults = install(Faults(0, os.abort))
        with Pool.create(pool_name, stripe_count=1) as pool:
            pool.intern(b"the first")
            faults.arm()
            ref = pool.intern(NEW)
            return faults.count, ref

    steps, _ = in_child(count_steps)

    # turnstile, byte, intent, record, record's second half, slot, used, count, intent cleared, byte, turnstile
    assert steps == 11
