"""Claims about the compiled engine: it does to the bytes what plain Python does, and leaves alone what is not plain sailing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from shmpool import Pool, engine, lifetime
from shmpool.hashing import make_hasher
from shmpool.header import Constants
from shmpool.layout import ARENA_LIMIT_WORD, CHUNK, COUNT, INTENT, STRIPE_WORDS, TABLE, WORD_SIZE
from shmpool.store import Store
from tests.model import assert_sound
from tests.unit.inside import store_of
from tests.unit.processes import independent

Names = Callable[[], str]

pytestmark = pytest.mark.usefixtures("built")


@pytest.fixture
def built(chosen_engine: None) -> None:
    if engine.ENGINE != "compiled":
        pytest.skip("about the compiled engine")


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
    "table word": (TABLE, (1, (1 << 64) - 1, 1 << 63)),
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
    said = independent(code).stdout

    assert said.startswith("python ")
    assert "install shmpool again" in said
