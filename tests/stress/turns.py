"""Which operations of pools that let topics go are killed everywhere, and how each comes about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmpool import Policy, Pool
from shmpool.layout import (
    COUNT,
    FREE,
    MAX_GENERATION,
    META_GENERATION_SHIFT,
    SHELF_WORDS,
    TOMBSTONE,
    TOMBSTONES,
    WORD_SIZE,
)
from tests.stress.deaths import AfterADeath, Close, Reset
from tests.stress.kill_points import Scene
from tests.stress.lifecycles import Turn, give, interns, releases, stripes_of, take

REFCOUNT, LRU = Policy.refcount(), Policy.lru(max_unheld=1000)
LRU_OF_1 = Policy.lru(max_unheld=1)
NEW, SHARED, MINE, OLD = b"new", b"shared", b"mine", b"old"
LONG = b"long".ljust(100)
SMALL = [b"s%d" % number for number in range(4)]
FILL_OF_A_TABLE = 384  # slots in use, be it by records or by tombstones, of a table of 512: it is rebuilt before the next
TTL_NS = 1000


def numbered(count: int, size: int = 0) -> list[bytes]:
    return [(b"%d" % number).rjust(size) for number in range(count)]


def fill_with_tombstones(pool: Pool) -> None:
    """As much churn would: each slot that was never used may be a tombstone just as well."""
    stripes = stripes_of(pool)
    words, table = stripes.segment.words, stripes.table(0)
    row, shelf = stripes.geometry.stripes_offset // WORD_SIZE, stripes.shelf(0)
    for index in range(table.word, table.word + (1 << table.bits)):
        if not words[index] and words[row + COUNT] + words[shelf + TOMBSTONES] < FILL_OF_A_TABLE:
            words[index] = TOMBSTONE
            words[shelf + TOMBSTONES] += 1


def full_of_tombstones(scene: Scene) -> None:
    fill_with_tombstones(scene.open())


def age_free_spaces(scene: Scene) -> None:
    """To the last generation but one."""
    stripes = stripes_of(scene.open())
    words, arena = stripes.segment.words, stripes.geometry.arena_offset
    for head in range(stripes.shelf(0) + FREE, stripes.shelf(0) + SHELF_WORDS):
        for record in stripes.free_spaces(head):
            word = (arena + record.offset) // WORD_SIZE + 1
            words[word] += (MAX_GENERATION - 1 - record.generation) << META_GENERATION_SHIFT


def retire_free_spaces(scene: Scene) -> None:
    age_free_spaces(scene)
    for ref in [take(scene, value) for value in SMALL]:
        give(scene, scene.open(), ref)


def take_an_ordinal_away(scene: Scene) -> None:
    """From the first free space that a small value would get."""
    give(scene, scene.open(), take(scene, LONG))
    stripes = stripes_of(scene.open())
    heads = range(stripes.shelf(0) + FREE, stripes.shelf(0) + SHELF_WORDS)
    assert any(record.ordinal >= len(SMALL) for head in heads for record in stripes.free_spaces(head))


class Expire(Turn):
    """`later` ns pass before the process interns a topic that nobody has held since."""

    def __init__(self, name: str) -> None:
        super().__init__(name, Policy.ttl(seconds=TTL_NS / 1e9), self.wait_and_intern, {OLD: 1}, unheld=[OLD], mine=[MINE])

    def wait_and_intern(self, scene: Scene) -> dict[bytes, int]:
        self.clock.now_ns += 2 * TTL_NS  # it has just looked for what is too old, and will not so soon again
        return {OLD: scene.open().intern(OLD)}

    def survive(self, scene: Scene) -> None:
        self.clock.now_ns += 2 * TTL_NS
        super().survive(scene)


def reaps(scene: Scene) -> dict[bytes, int]:
    scene.open().reap()
    return {}


def under_pressure(name: str, held: list[bytes], unheld: list[bytes], new: bytes, **options: Any) -> Turn:
    turn = Turn(name, LRU, interns(new), {new: 1}, held=held, unheld=unheld, stays=unheld[3:], reserve=0, **options)
    turn.makes_room = True
    return turn


def with_few_ordinals(name: str, value: bytes, spoil: Callable[[Scene], object] = bool) -> Turn:
    """In a stripe that has as many spaces as it may have topics, all of them free."""
    return Turn(name, REFCOUNT, interns(value), {value: 1}, unheld=SMALL, spoil=spoil, capacity=len(SMALL), reserve=0)


FIRST_HOLD = Turn("first hold of what another holds", REFCOUNT, interns(SHARED), {SHARED: 1}, held=[SHARED])
HOLD_UNHELD = Turn("hold of what nobody held", LRU, interns(SHARED), {SHARED: 1}, unheld=[SHARED, OLD], stays=[OLD, SHARED])
FIRST_INSERT = Turn("first insert", REFCOUNT, interns(NEW), {NEW: 1})
APPEND = Turn("insert into new space", REFCOUNT, interns(NEW), {NEW: 1}, held=[SHARED])
REUSE = Turn("insert into a free space", REFCOUNT, interns(NEW), {NEW: 1}, held=[SHARED], unheld=[b"off", b"out"])
REUSE_UNHELD = Turn("insert into a free space", LRU_OF_1, interns(NEW), {NEW: 1}, unheld=[b"off", b"out"])
FREE_LAST = Turn("last release, which frees", REFCOUNT, releases(MINE), {MINE: -1}, held=[SHARED], mine=[MINE])
UNHOLD = Turn("last release, which evicts another", LRU_OF_1, releases(MINE), {MINE: -1}, unheld=[OLD], mine=[MINE])
EVICT = under_pressure("eviction where capacity ends", SMALL, numbered(4), NEW, capacity=8)
EVICT_CLASS = under_pressure(
    "eviction where the arena ends", [], [*numbered(127, 100), b"f" * 40], NEW.rjust(100), arena_size=16 << 10
)
EXPIRE = Expire("insert of what is too old")
REBUILD = Turn(
    "rebuild of a table full of tombstones", REFCOUNT, interns(NEW), {NEW: 1}, held=numbered(60), spoil=full_of_tombstones
)
GROW = Turn("growth of a table", REFCOUNT, interns(NEW), {NEW: 1}, held=numbered(260), spoil=full_of_tombstones)
LEND = with_few_ordinals("new space that takes a free one's ordinal", LONG)
BORROW = with_few_ordinals("free space without an ordinal", NEW, take_an_ordinal_away)
INHERIT = with_few_ordinals("new space that takes a retired one's ordinal", NEW, retire_free_spaces)
AGE = Turn("insert of the last generation", REFCOUNT, interns(NEW), {NEW: 1}, unheld=SMALL[:2], spoil=age_free_spaces)
RETIRE = Turn(
    "release of the last generation", REFCOUNT, releases(MINE), {MINE: -1}, unheld=SMALL[:1], mine=[MINE], spoil=age_free_spaces
)
REAP = AfterADeath("reap", reaps, [MINE, SHARED], {}, takes_row=False, held=[SHARED])
ADOPT = AfterADeath("first operation in a dead row", interns(NEW), [MINE, SHARED], {NEW: 1}, takes_row=True, held=[SHARED])

# Those of which it is recovered from every kill, too.
BASES = [
    HOLD_UNHELD, FIRST_INSERT, APPEND, REUSE, REUSE_UNHELD, FREE_LAST, UNHOLD, EVICT, EXPIRE, REBUILD, GROW, LEND, BORROW,
    INHERIT, AGE, RETIRE,
]
TURNS: list[Turn] = [FIRST_HOLD, *BASES, EVICT_CLASS, Close(), REAP, ADOPT, Reset()]

