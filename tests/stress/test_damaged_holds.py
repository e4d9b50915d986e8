"""Damaged words of pools that count holds: refused, reported or harmless, whichever engines are at work.

`test_mutants.py` does this to pools where nothing goes. Here each mutant is a word or two of rows, shelves, ledgers, slots or
records, live and free; then two processes (attachments) hold, give back, look up and resolve, and check.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

import pytest

from shmpool import Policy, Pool, PoolError, TopicRef
from shmpool.layout import ARENA_LIMIT_WORD, FREE, META_LIVE, PROCESS_WORDS, SHELF_WORDS, STRIPE_WORDS, WORD_SIZE, seal, unseal
from shmpool.ledger import ledger_word
from shmpool.reuse import ReusingStripes
from tests.unit.inside import ENGINES, engine_chosen, store_of
from tests.unit.processes import in_child

MUTANTS: Final = 120  # of each policy
STEPS: Final = 25
MOST_GROWTH: Final = 1 << 20  # bytes: what two more processes' ledgers, a table and a chunk take
VALUES: Final = [b"%d" % number * (1 + number % 9 * 4) for number in range(60)]
EXTREMES: Final = [1 << bit for bit in (0, 3, 16, 31, 39, 40, 63)] + [(1 << bit) - 1 for bit in (16, 32, 40, 48, 63, 64)]


class Image(NamedTuple):
    """A pool at rest: its bytes, what its refs mean, and the words to damage."""

    data: bytes
    values: dict[TopicRef, bytes]
    places: list[int]


def let_go(pool: Pool) -> None:
    """Leave as a killed process does: its row free, its holds in it."""
    store = store_of(pool)
    store.closed = "was killed"
    store.attachment.retire()
    store.segment.close()


def make_image(pool: Pool) -> Image:
    with suppress(PoolError):
        pool.intern_many(VALUES[:40])
    with Pool.attach(pool.name) as other:
        for number, value in enumerate(VALUES[:40]):
            other.intern(value)
            if number % 3:
                pool.release(pool.intern(value))
                ref = pool.lookup(value)
                assert ref
                pool.release(ref)
        other.release_many(other.lookup_many(VALUES[:40:2]))
        pool.intern_many(VALUES[50:53])
        stripes = store_of(pool).stripes
        assert isinstance(stripes, ReusingStripes)
        data = os.pread(stripes.segment.fd, stripes.geometry.arena_offset + stripes.limit(), 0)
        return Image(data, dict(pool), list(places_in(stripes)))


def places_in(stripes: ReusingStripes) -> list[int]:
    geometry, words = stripes.geometry, stripes.segment.words
    few = [ARENA_LIMIT_WORD]
    for stripe in range(geometry.stripe_count):
        row, shelf = geometry.stripes_offset // WORD_SIZE + stripe * STRIPE_WORDS, stripes.shelf(stripe)
        table = stripes.table(stripe)
        few += [*range(row, row + STRIPE_WORDS), *range(shelf, shelf + 4)]
        few += [word for word in range(shelf + FREE, shelf + SHELF_WORDS) if words[word]]
        few += [word for word in range(table.word, table.word + (1 << table.bits)) if words[word]]
        for record in [*stripes.records(), *stripes._all_free_spaces(stripe)]:  # noqa: SLF001
            word = (geometry.arena_offset + record.offset) // WORD_SIZE
            few += [word, word + 1, word + 1, word + 2, (geometry.arena_offset + record.end) // WORD_SIZE - 1]
    few += range(geometry.totals_offset // WORD_SIZE, geometry.totals_offset // WORD_SIZE + 3 * PROCESS_WORDS)
    few += range(ledger_word(stripes.segment, 0), ledger_word(stripes.segment, 0) + 40)
    start = geometry.holds_offset // WORD_SIZE
    return [*few, *range(start, start + 40)]


def damaged(rng: random.Random, word: int) -> int:
    content = unseal(word)
    if content and word and rng.random() < 0.2:
        return seal(content[0], rng.choice((0, 9, 10, 12, 1 << 9 | 10, 4096, 1 << 20)))
    flipped = word ^ 1 << rng.randrange(64)
    return rng.choice((flipped, flipped, rng.choice(EXTREMES), rng.getrandbits(64), 0, word & ~META_LIVE))


def live_with(name: str, rng: random.Random, now: list[int], values: dict[TopicRef, bytes]) -> None:
    """Two processes at work in a damaged pool. Errors are the package's own; a ref never gives another's bytes."""
    meant = dict(values)
    pools: list[Pool] = []
    for _ in range(2):
        with suppress(PoolError), engine_chosen(rng.choice(ENGINES)):
            pools.append(Pool.attach(name, clock=lambda: now[0]))
    now[0] += rng.choice((0, 2 * 10**9))
    for _ in range(STEPS if pools else 0):
        pool, value, ref = rng.choice(pools), rng.choice(VALUES), rng.choice(list(meant))
        acts: list[Callable[[], object]] = [
            lambda: meant.setdefault(pool.intern(value), value), lambda: pool.release(ref), pool.reap,  # noqa: B023
            lambda: meant.setdefault(pool.lookup(value) or TopicRef(0), value),  # noqa: B023
        ]
        with suppress(PoolError):
            rng.choices(acts, (8, 5, 1, 2))[0]()
        with suppress(PoolError):
            assert pool.resolve(ref) == meant[ref]
    for pool in pools:
        for look in (pool.check, pool.stats, lambda: pool.top(3), lambda: len(pool)):  # noqa: B023
            with suppress(PoolError):
                look()
        let_go(pool)


@pytest.mark.parametrize("policy", [Policy.refcount(), Policy.lru(max_unheld=6), Policy.ttl(seconds=1)], ids=str)
def test_damage_is_never_other_bytes_nor_memory_nor_an_error_of_another_kind(pool_name: str, seed: int, policy: Policy) -> None:
    def try_all() -> None:
        now = [10**10]
        pool = Pool.create(pool_name, policy=policy, capacity=45, stripe_count=2, process_count=4, persistent=True, reserve=0,
                           clock=lambda: now[0])
        image = make_image(pool)
        fd, size = os.dup(store_of(pool).segment.fd), store_of(pool).constants.geometry.total_size
        let_go(pool)
        os.pwrite(fd, image.data, 0)
        blocks = os.fstat(fd).st_blocks
        for number in range(MUTANTS):
            rng = random.Random(f"{seed} {number}")
            changed = rng.sample(image.places, rng.choice((1, 1, 2)))
            for place in changed:
                word = int.from_bytes(image.data[place * WORD_SIZE :][:WORD_SIZE], "little")
                os.pwrite(fd, damaged(rng, word).to_bytes(WORD_SIZE, "little"), place * WORD_SIZE)
            try:
                live_with(pool_name, rng, now, image.values)
                state = os.fstat(fd)
                assert (state.st_size, (state.st_blocks - blocks) * 512 < MOST_GROWTH) == (size, True)
            except BaseException as error:
                error.add_note(f"mutant {number}, words {changed}")
                raise
            os.pwrite(fd, image.data, 0)

    in_child(try_all)
