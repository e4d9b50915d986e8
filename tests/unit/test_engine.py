"""Claims about the compiled engine: it does to the bytes what plain Python does, and leaves alone what is not plain sailing."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

from shmpool import Pool, PoolCorruptError, PoolFullError, engine, lifetime
from shmpool.arena import make_chunk, make_record, record_size
from shmpool.hashing import make_hasher
from shmpool.header import Constants
from shmpool.layout import ARENA_LIMIT_WORD, CHUNK, COUNT, INTENT, STRIPE_WORDS, TABLE, WORD_SIZE, seal
from shmpool.store import Store
from shmpool.table import make_slot
from tests.model import assert_sound
from tests.unit.inside import store_of
from tests.unit.processes import independent
from tests.unit.stepping import states_at_each_instruction

Names = Callable[[], str]


@pytest.fixture
def pool(pool_name: str) -> Iterator[Pool]:
    with Pool.create(pool_name, stripe_count=1, cache_size=0) as made:
        made.intern(b"known")
        yield made


def test_hash_is_the_reference_hash_of_values_of_every_size(pool: Pool, rng: random.Random) -> None:
    compiled = store_of(pool).stripes.engine
    assert compiled
    reference = make_hasher(pool.constants.hash_key)

    for size in range(300):
        value = rng.randbytes(size)
        assert compiled.hash(value) == reference(value)


@pytest.mark.parametrize("stripe_count", [1, 4])
def test_both_engines_write_the_same_bytes(new_pool_name: Names, rng: random.Random, stripe_count: int) -> None:
    """One by one and in batches, through growth, new chunks and a reset, with values of every size, some of them repeated."""
    constants = lifetime.choose_constants(
        capacity=4000, arena_size=None, stripe_count=stripe_count, max_value_size=1000, insert_budget=None, reserve=0,
        process_count=4, persistent=False,
    )
    values = [rng.randbytes(rng.choice((0, 1, 7, 8, 9, 40, rng.randrange(1000)))) for _ in range(2500)]

    written = [written_by(kind, new_pool_name(), constants, values) for kind in ("python", "compiled")]

    assert written[0] == written[1]


def written_by(kind: str, name: str, constants: Constants, values: list[bytes]) -> list[bytes]:
    """The tables, chunks and arena after each half of a life: inserts, a reset, fewer inserts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "ENGINE", kind)
        store = Store(lifetime.create(name, constants), 64)
    assert (store.stripes.engine is not None) == (kind == "compiled")
    geometry, seen = constants.geometry, []
    for part in (values, values[::-2]):
        for value in part[:500]:
            store.intern(value, geometry.capacity)
        store.find_many(list(dict.fromkeys(part)), capacity=geometry.capacity)
        state = bytearray(store.segment.data[geometry.stripes_offset : geometry.totals_offset])
        state += store.segment.data[geometry.chunks_offset : geometry.ledgers_offset]
        arena_size = store.stripes.limit()
        state += store.segment.data[geometry.arena_offset : geometry.arena_offset + arena_size]
        seen.append(bytes(state))
        store.reset()
    store.close()
    return seen


DAMAGE = {
    "table word": (TABLE, (1, (1 << 64) - 1, 1 << 63, seal(1, 20), seal(1, 1 << 8 | 9), seal(2, 9))),
    "intent": (INTENT, (1, 99 << 56)),
    "chunk": (CHUNK, (0, 1 << 20, (1 << 64) - 1)),
    "count": (COUNT, ((1 << 64) - 1, 1 << 40)),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_stripe_is_left_to_plain_python_and_nothing_is_changed(pool: Pool, what: str) -> None:
    store = store_of(pool)
    words, geometry, compiled = store.segment.words, pool.constants.geometry, store.stripes.engine
    assert compiled
    word = geometry.stripes_offset // WORD_SIZE + DAMAGE[what][0]
    honest = words[word]
    for state in DAMAGE[what][1]:
        words[word] = state
        row = words[geometry.stripes_offset // WORD_SIZE :][:STRIPE_WORDS].tolist()

        assert compiled.insert(b"new") is None
        assert compiled.insert_many([(0, b"new", -1)], 1) == []
        assert what != "table word" or compiled.find(b"known") is None

        assert words[geometry.stripes_offset // WORD_SIZE :][:STRIPE_WORDS].tolist() == row
    words[word] = honest
    assert pool.check() == []


def test_limit_that_makes_no_sense_is_left_to_plain_python(pool: Pool) -> None:
    words, compiled = store_of(pool).segment.words, store_of(pool).stripes.engine
    assert compiled
    honest = words[ARENA_LIMIT_WORD]
    words[ARENA_LIMIT_WORD] ^= 1 << 20

    assert compiled.find(b"known") is None
    assert compiled.insert(b"new") is None
    assert compiled.find_many([(0, b"known")]) == []

    words[ARENA_LIMIT_WORD] = honest
    assert compiled.find(b"known") == 0


def test_more_than_there_is_room_for_is_not_inserted(pool: Pool) -> None:
    compiled = store_of(pool).stripes.engine
    assert compiled
    items = [(compiled.hash(value), value, -1) for value in (b"a", b"known", b"b", b"c")]

    offsets = compiled.insert_many(items, 2)

    assert [offset < 0 for offset in offsets] == [True, False, True]
    assert [value for _, value in pool] == [b"known", b"a", b"b"]


@pytest.mark.parametrize("size", [0, 5, 40])
def test_insert_killed_after_any_instruction_is_finished_or_undone(pool: Pool, rng: random.Random, size: int) -> None:
    store, value = store_of(pool), rng.randbytes(size)
    segment, geometry, compiled = store.segment, pool.constants.geometry, store.stripes.engine
    assert compiled
    table, end = store.stripes.table(0), geometry.arena_offset + record_size(len(b"known"))
    places = [
        slice(geometry.stripes_offset, geometry.stripes_offset + WORD_SIZE * STRIPE_WORDS),
        slice(geometry.chunks_offset, geometry.chunks_offset + WORD_SIZE),
        slice(table.word * WORD_SIZE, (table.word << 3) + (WORD_SIZE << table.bits)),
        slice(geometry.arena_offset, end + 200),
    ]

    states = states_at_each_instruction(lambda: compiled.insert(value), lambda: [segment.data[place] for place in places])

    assert len(states) > 6
    outcomes = []
    for state in states:
        for place, held in zip(places, state, strict=True):
            segment.data[place] = held
        seen = pool.lookup(value)
        store.locks[0].run(store.stripes.recover, 0)
        outcomes.append(pool.lookup(value) is not None)
        assert seen is None or outcomes[-1], "a ref was given away and the record dropped"
        assert pool.check() == []
        assert [name for _, name in pool] == ([b"known", value] if outcomes[-1] else [b"known"])
        pool.intern(b"next")
        assert pool.check() == []
        assert len(pool) == (3 if outcomes[-1] else 2)
    assert sorted(outcomes) == outcomes
    assert set(outcomes) == {False, True}


def answers(pool: Pool, value: bytes) -> tuple[int | None, int | None]:
    """What `find` gives with each engine; None for what is left to plain Python, and for what that refuses."""
    stripes = store_of(pool).stripes
    assert stripes.engine
    hash_ = stripes.engine.hash(value)
    many = stripes.engine.find_many([(hash_, value)])
    found = stripes.engine.find(value)
    assert many == ([] if found is None else [found])
    try:
        return found, stripes.find(0, hash_, value)
    except PoolCorruptError:
        return found, None


def test_slots_that_share_a_tag_are_told_apart_by_all_of_the_value(pool: Pool) -> None:
    store = store_of(pool)
    words, compiled, table = store.segment.words, store.stripes.engine, store.stripes.table(0)
    assert compiled
    slot_count = 1 << table.bits
    for value in (b"knowX", b"Xnown", b"know", b"known2", b""):
        hash_ = compiled.hash(value)
        index = hash_ & slot_count - 1
        honest = words[table.word + index]
        assert answers(pool, value)[0] == answers(pool, value)[1]
        words[table.word + index] = make_slot(hash_, 0)

        assert answers(pool, value) == (~slot_count, ~slot_count)

        words[table.word + index] = honest
    words[table.word : table.word + slot_count] = memoryview(bytes([2]) * 8 * slot_count).cast("Q")
    assert answers(pool, b"new") == (~slot_count, ~slot_count)
    assert compiled.insert(b"new") is None


@pytest.mark.parametrize("word", ["table", "limit"])
def test_words_of_other_epochs_and_tables_mean_to_both_engines_the_same(new_pool_name: Names, word: str) -> None:
    name = new_pool_name()
    with Pool.create(name, stripe_count=1, cache_size=0) as pool:
        pool.intern(b"before")
        pool.reset()
        pool.intern(b"known")
        store, geometry = store_of(pool), pool.constants.geometry
        words, compiled, epoch, value = store.segment.words, store.stripes.engine, store.stripes.epoch, b"known"
        assert compiled
        place = geometry.stripes_offset // WORD_SIZE + TABLE if word == "table" else ARENA_LIMIT_WORD
        honest = words[place]
        chunk = geometry.chunk_size
        contents = (9, 1 << 8 | 9, 2 << 8 | 9, 8, 63, 0, 1 << 39, chunk, 2 * chunk, chunk + 8, geometry.arena_size + chunk)
        seen = set()
        for state in [seal(other, content) for other in range(4) for content in contents] + [0, honest ^ 1, honest ^ 1 << 60]:
            words[place] = state
            segment_before = store.segment.data[: geometry.ledgers_offset]

            found, expected = answers(pool, value)

            assert found == expected or (word == "table" and found is None), hex(state)  # that table is not known yet
            seen.add(found)
            if found is None or found < 0:
                assert compiled.insert(b"new") is None or (word, state) == ("table", seal(epoch, 1 << 8 | 9))
            if found is expected is None:
                assert store.segment.data[: geometry.ledgers_offset] == segment_before
            store.segment.data[: geometry.ledgers_offset] = segment_before
        words[place] = honest
        assert {0, None} < seen
        assert min(number for number in seen if number is not None) < 0
        assert pool.check() == []


def test_insert_is_declined_where_the_stripe_or_its_chunk_takes_no_more(new_pool_name: Names) -> None:
    with Pool.create(new_pool_name(), stripe_count=2, capacity=100, cache_size=0) as pool:
        store, geometry = store_of(pool), pool.constants.geometry
        words, compiled, epoch = store.segment.words, store.stripes.engine, store.stripes.epoch
        assert compiled
        names = [b"%d" % number for number in range(200)]
        pool.intern_many(names[:20])
        value = next(name for name in names[20:] if compiled.stripe(name) == 0)
        row, chunks = geometry.stripes_offset // WORD_SIZE, geometry.chunks_offset // WORD_SIZE
        chunk = chunks + words[row + CHUNK] - 1
        limit, size = store.stripes.limit() // geometry.chunk_size, geometry.chunk_size
        honest = [(row + COUNT, words[row + COUNT]), (row + CHUNK, words[row + CHUNK]), (chunk, words[chunk])]
        tries = [
            {row + COUNT: geometry.stripe_capacity},
            {row + CHUNK: limit + 1, chunks + limit: make_chunk(0, 0, epoch)},
            {chunk: make_chunk(1024, 1, epoch)},
            {chunk: make_chunk(1024, 0, epoch - 1)},
            {chunk: make_chunk(1024, 0, epoch + 1)},
            {chunk: make_chunk(1028, 0, epoch)},
            {chunk: make_chunk(size - 8, 0, epoch)},
            {chunk: make_chunk(size, 0, epoch)},
            {chunk: make_chunk(size + 8, 0, epoch)},
            {chunk: make_chunk(0, 0, epoch)},  # where records are
        ]
        for stores in tries:
            for word, state in stores.items():
                words[word] = state
            before = store.segment.data[: geometry.ledgers_offset]

            assert compiled.insert(value) is None, stores

            assert store.segment.data[: geometry.ledgers_offset] == before
            for word, state in [(chunks + limit, 0), *honest]:
                words[word] = state
        assert compiled.insert(value) is not None
        assert pool.check() == []


def test_record_over_what_lies_in_free_space_is_whole(pool: Pool) -> None:
    store, end = store_of(pool), pool.constants.geometry.arena_offset + record_size(len(b"known"))
    compiled = store.stripes.engine
    assert compiled
    store.segment.data[end : end + 100] = bytes([255]) * 100

    assert compiled.insert(b"new") is None
    assert store.segment.data[end : end + 100] == bytes([255]) * 100
    ref = pool.intern(b"new")

    assert ref == store.stripes.origin + record_size(len(b"known"))
    assert store.segment.data[end : end + 24] == make_record(compiled.hash(b"new"), b"new", 1)
    assert store.segment.data[end + 24 : end + 100] == bytes([255]) * 76


def test_counts_damaged_beyond_any_integer_of_c_make_a_full_pool(pool: Pool) -> None:
    store = store_of(pool)
    count = pool.constants.geometry.stripes_offset // WORD_SIZE + COUNT
    store.segment.words[count] = (1 << 64) - 1

    with pytest.raises(PoolFullError):
        pool.intern(b"new")
    with pytest.raises(PoolFullError):
        pool.intern_many([b"new", b"newer"])

    store.segment.words[count] = 1
    assert pool.check() == []


def test_lookup_at_any_moment_of_a_reset_gives_the_old_ref_or_none(pool: Pool) -> None:
    old, seen = pool.lookup(b"known"), []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_name != "refresh":
            return trace
        if event in ("line", "return"):
            seen.append(store_of(pool).lookup(b"known") or None)
        return trace

    tracing = sys.gettrace()
    sys.settrace(trace)
    try:
        pool.reset()
    finally:
        sys.settrace(tracing)

    assert set(seen) == {old, None}
    assert pool.lookup(b"known") is None


def test_arguments_of_another_type_are_refused(pool: Pool) -> None:
    compiled = store_of(pool).stripes.engine
    assert compiled
    for wrong in ("text", bytearray(b"x"), None, 7, memoryview(b"x")):
        for call in (compiled.hash, compiled.stripe, compiled.find, compiled.insert):
            with pytest.raises(TypeError):
                call(wrong)  # type: ignore[arg-type]
    for items in ((), None, [None], [[1, b"x"]], [("x", b"x", -1)], [(1, "x", -1)], [(1.0, b"x", -1)]):
        with pytest.raises(TypeError):
            compiled.find_many(items)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            compiled.insert_many(items, 1)  # type: ignore[arg-type]
    for item in ((-1, b"x", -1), (1 << 64, b"x", -1)):
        with pytest.raises(OverflowError):
            compiled.insert_many([item], 1)
    with pytest.raises(IndexError):
        compiled.find_many([(1,)])  # type: ignore[list-item]
    with pytest.raises(OverflowError):
        compiled.insert_many([], 1 << 64)
    with pytest.raises(TypeError):
        compiled.insert_many([])  # type: ignore[call-arg]
    assert len(pool) == 1


LAYOUT = {
    "stripe_bits": 1, "stripes_word": 64, "tables_word": 128, "stripe_tables_words": 1024, "min_table_bits": 9,
    "max_table_bits": 9, "stripe_capacity": 10, "chunks_word": 100, "arena_word": 2176, "arena_size": 1 << 15,
    "chunk_size": 1 << 14,
}


def test_engine_is_not_made_of_a_layout_that_leads_out_of_the_segment() -> None:
    from shmpool import _engine  # here, as it is not there in every installation

    words = memoryview(bytearray(8 * 2176 + (1 << 15)))
    assert _engine.Engine(words, bytes(16), **LAYOUT).find(b"x") is None

    wrong: dict[str, tuple[int, ...]] = {name: (1 << 63, (1 << 64) - 1) for name in LAYOUT if name != "stripe_capacity"}
    wrong |= {"chunk_size": (0, 4, 3 << 10), "min_table_bits": (10,), "max_table_bits": (8, 10, 63), "stripe_bits": (3, 64)}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match="no segment is laid out like that"):
                _engine.Engine(words, bytes(16), **LAYOUT | {name: value})
    with pytest.raises(ValueError, match="16 bytes"):
        _engine.Engine(words, bytes(15), **LAYOUT)


def test_segment_that_shrank_or_was_released_is_a_value_error() -> None:
    from shmpool import _engine

    for words in (memoryview(bytearray(100)), memoryview(bytearray(8 * 2176 + (1 << 15) + 1))[1:]):
        made = _engine.Engine(words, bytes(16), **LAYOUT)
        for call in (made.find, made.insert):
            with pytest.raises(ValueError, match="smaller than the segment"):
                call(b"x")
        words.release()
        for call in (made.find, made.insert):
            with pytest.raises(ValueError, match="released"):
                call(b"x")
        with pytest.raises(ValueError, match="released"):
            made.find_many([(1, b"x")])
        with pytest.raises(ValueError, match="released"):
            made.insert_many([(1, b"x", -1)], 1)


def test_declining_costs_no_reference_to_none(pool: Pool) -> None:
    """As it did when one Python had built the engine and an older one ran it."""
    words, compiled, epoch = store_of(pool).segment.words, store_of(pool).stripes.engine, store_of(pool).stripes.epoch
    assert compiled
    honest = words[ARENA_LIMIT_WORD]
    words[ARENA_LIMIT_WORD] ^= 1 << 20
    before = sys.getrefcount(None)

    for _ in range(1000):
        assert compiled.find(b"known") is None
        assert compiled.insert(b"new") is None
        assert compiled.start_epoch(epoch) is None  # type: ignore[func-returns-value]

    assert abs(sys.getrefcount(None) - before) < 100
    words[ARENA_LIMIT_WORD] = honest


@pytest.mark.parametrize(
    "call",
    [
        lambda made: made.find(b"known"),
        lambda made: made.insert(b"known"),
        lambda made: made.insert(b"new"),
        lambda made: made.find_many([(made.hash(b"known"), b"known")]),
        lambda made: made.insert_many([(made.hash(b"new"), b"new", -1)], 1),
        lambda made: made.find_many([(1,)]),
        lambda made: made.insert_many([(1, "x", -1)], 1),
    ],
)
def test_no_call_keeps_the_segment_mapped(pool_name: str, call: Callable[[Any], object]) -> None:
    with Pool.create(pool_name, stripe_count=1) as pool:
        pool.intern(b"known")
        segment = store_of(pool).segment
        with suppress(TypeError, IndexError):
            call(store_of(pool).stripes.engine)

    assert segment.data.closed


def test_damaged_slots_that_lead_anywhere_give_a_miss_or_the_record(pool: Pool, rng: random.Random) -> None:
    store = store_of(pool)
    words, compiled = store.segment.words, store.stripes.engine
    assert compiled
    table = store.stripes.table(0)
    hash_ = compiled.hash(b"known")
    slot = table.word + (hash_ & (1 << table.bits) - 1)
    honest = words[slot]
    for _ in range(2000):
        words[slot] = hash_ >> 40 << 40 | rng.getrandbits(40)
        found = compiled.find(b"known")
        assert found is not None
        assert found < 0 or words[slot] == honest
    words[slot] = honest
    assert compiled.find(b"known") == 0


def test_a_process_of_each_engine_share_a_pool(new_pool_name: Names, rng: random.Random) -> None:
    name = new_pool_name()
    values = [b"%d" % number for number in range(3000)]
    with Pool.create(name, stripe_count=2) as pool:
        refs = dict(zip(values[:2000], pool.intern_many(values[:2000]).tolist(), strict=True))
        code = f"""
import os
os.environ["SHMPOOL_ENGINE"] = "python"
from shmpool import ENGINE, Pool
assert ENGINE == "python"
with Pool.attach({name!r}) as pool:
    refs = [int(pool.intern(b"%d" % number)) for number in range(1000, 3000)]
    print(*refs)
"""
        theirs = [int(ref) for ref in independent(code).stdout.split()]
        refs |= dict(zip(values[1000:], theirs, strict=True))

        assert theirs[:1000] == pool.intern_many(values[1000:2000]).tolist()
        assert_sound(pool, refs)


@pytest.mark.parametrize(
    ("setting", "said"),
    [("python", "python"), ("compiled", "compiled"), ("", "compiled"), ("fast", "SHMPOOL_ENGINE is 'fast'")],
)
def test_environment_chooses_the_engine(setting: str, said: str) -> None:
    code = f"""
import os
os.environ["SHMPOOL_ENGINE"] = {setting!r}
try:
    from shmpool import ENGINE
except ImportError as error:
    ENGINE = error
print(ENGINE)
"""
    assert said in independent(code).stdout


def test_a_build_of_another_layout_is_not_used() -> None:
    code = """
import sys, types, warnings
sys.modules["shmpool._engine"] = types.SimpleNamespace(CODES={"TAG_SHIFT": 41})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from shmpool import ENGINE
print(ENGINE, caught[0].message)
"""
    said = independent(code, environment={"SHMPOOL_ENGINE": ""}).stdout

    assert said.startswith("python ")
    assert "install shmpool again" in said


def test_a_build_of_another_layout_is_refused_where_the_engine_is_a_must() -> None:
    code = """
import sys, types
sys.modules["shmpool._engine"] = types.SimpleNamespace(CODES={"NO_CODE_OF_THIS_LAYOUT": 41})
import shmpool
"""
    assert "ImportError: shmpool's compiled engine is of another version" in independent(
        code, environment={"SHMPOOL_ENGINE": "compiled"}
    ).stderr
