"""A pool's life by a seed: what its processes do and what comes of it, to be held against another life of the same seed.

Everything that is chosen at random otherwise (hash key, id, origin) is the seed's too, so two such lives write the same bytes
unless whoever wrote them does something else. Attachments stand for processes; one is "killed" by closing its descriptor.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Final, NamedTuple

import pytest

from shmpool import Policy, Pool, PoolError, TopicRef, lifetime
from shmpool.arena import read_record
from shmpool.header import Constants
from shmpool.holding import HoldingStore
from shmpool.layout import ATTACHED, MAX_GENERATION, META_GENERATION_SHIFT, WORD_SIZE
from shmpool.ledger import row_word
from tests.unit.inside import engine_chosen, store_of

_MOST_ATTACHED: Final = 3
_MUCH: Final = 1 << 18  # bytes of arena: to look at more after each step takes too long
_CLOCK_STEPS: Final = (0, 0, 1, 7, 100, 3000, 3000, 20_000_000, -5)


class Shape(NamedTuple):
    """The pool of a life, and the sizes of what is interned in it."""

    policy: Policy
    capacity: int
    stripe_count: int = 1
    max_value_size: int = 300
    insert_budget: int | None = None
    reserve: int = 0
    sizes: tuple[int, ...] = (3, 9, 40, 100, 101, 130, 300)
    value_count: int = 60

    def constants(self, rng: random.Random) -> Constants:
        chosen = lifetime.choose_constants(
            capacity=self.capacity, arena_size=None, stripe_count=self.stripe_count, max_value_size=self.max_value_size,
            insert_budget=self.insert_budget, reserve=self.reserve, process_count=4, persistent=True, policy=self.policy,
        )
        return Constants(rng.getrandbits(64), rng.randbytes(16), chosen.geometry, chosen.insert_budget, chosen.reserve,
                         chosen.persistent, 0, chosen.policy)


class Moment(NamedTuple):
    """One thing that was done, what it gave, and all bytes of the segment after it."""

    what: str
    outcome: object
    digest: bytes


class Life:
    """What happens to one pool. `engines` are those that its attachments choose from."""

    def __init__(self, name: str, shape: Shape, seed: int, engines: tuple[str, ...]) -> None:
        self._name, self._shape, self._engines = name, shape, engines
        self._rng = random.Random(seed)
        self._engine_rng = random.Random(seed)  # of its own: the choice of engines must not change what else is chosen
        self._now = 10**9
        sizes = [min(size, shape.max_value_size) for size in shape.sizes]
        self._values = [self._rng.randbytes(self._rng.choice(sizes)) for _ in range(shape.value_count)]
        self._pools: list[Pool] = []
        self._refs: list[TopicRef] = [TopicRef(0), TopicRef(1 << 62)]

    def run(self, count: int) -> Iterator[Moment]:
        constants = self._shape.constants(self._rng)
        with engine_chosen(self._engine_rng.choice(self._engines)):
            seat = lifetime.create(self._name, constants)
            first = Pool._settle(lambda: seat, self._cache_size(), lambda: self._now, lifetime.undo_create)  # noqa: SLF001
        self._pools.append(first)
        acts = [
            (30, self._intern), (6, self._admit), (8, self._lookup), (30, self._release), (3, self._intern_many),
            (3, self._resolve), (6, self._advance), (1, self._attach), (0.4, self._leave), (0.4, self._die), (1, self._reap),
            (0.3, self._reset), (1, self._age), (1, self._flush),
        ]
        weights, bodies = zip(*acts, strict=True)
        try:
            for _ in range(count):
                body = self._rng.choices(bodies, weights)[0]
                yield Moment(body.__name__, self._outcome_of(body), self._digest())
        finally:
            for pool in self._pools:
                pool.close()
            Pool.unlink(self._name)

    def _outcome_of(self, body: Callable[[], object]) -> object:
        try:
            return body()
        except PoolError as error:
            return f"{type(error).__name__}: {error}".replace(self._name, "NAME")

    def _digest(self) -> bytes:
        stripes = store_of(self._pools[0]).stripes
        segment, limit = stripes.segment, stripes.limit()
        if limit > _MUCH and self._rng.random() > _MUCH / limit:
            return b""
        data = bytearray(os.pread(segment.fd, segment.constants.geometry.arena_offset + limit, 0))
        for row in range(segment.constants.geometry.process_count):
            start = (row_word(segment, row) + ATTACHED) * WORD_SIZE
            data[start : start + WORD_SIZE] = bytes(WORD_SIZE)
        return blake2b(data, digest_size=8).digest()

    def _cache_size(self) -> int:
        return self._rng.choice((1, 8, 4096))

    def _pool(self) -> Pool:
        return self._rng.choice(self._pools)

    def _value(self) -> bytes:
        return self._rng.choice(self._values)

    # ---- what is done

    def _intern(self) -> object:
        return self._keep(self._pool().intern(self._value()))

    def _admit(self) -> object:
        return self._keep(self._pool().admit(self._value()))

    def _keep(self, ref: TopicRef) -> TopicRef:
        self._refs.append(ref)
        del self._refs[2 : len(self._refs) - 150]
        return ref

    def _intern_many(self) -> object:
        return [self._keep(TopicRef(ref)) for ref in self._pool().intern_many([self._value() for _ in range(5)]).tolist()]

    def _lookup(self) -> object:
        return self._pool().lookup(self._value())

    def _resolve(self) -> object:
        return self._pool().resolve(self._rng.choice(self._refs))

    def _release(self) -> None:
        self._pool().release(self._rng.choice(self._refs))

    def _advance(self) -> object:
        self._now += self._rng.choice(_CLOCK_STEPS)
        return self._now

    def _attach(self) -> object:
        size = self._cache_size()
        if len(self._pools) < _MOST_ATTACHED:
            with engine_chosen(self._engine_rng.choice(self._engines)):
                self._pools.append(Pool.attach(self._name, cache_size=size, clock=lambda: self._now))
        return len(self._pools)

    def _leave(self) -> object:
        if len(self._pools) > 1:
            self._pools.pop().close()
        return len(self._pools)

    def _die(self) -> object:
        if len(self._pools) > 1:
            store = store_of(self._pools.pop())
            store.closed = "was killed"
            store.attachment.retire()
            store.segment.close()
        return len(self._pools)

    def _reap(self) -> object:
        return self._pool().reap()

    def _reset(self) -> None:
        self._pool().reset()

    def _flush(self) -> object:
        pool = self._pool()
        pool.flush()
        return len(pool), pool.stats().holds, pool.stats().unheld, pool.check()

    def _age(self) -> object:
        """Let a free space be one that was used nearly as often as it can be, as if it had been."""
        store = store_of(self._pools[0])
        assert isinstance(store, HoldingStore)
        stripes, geometry = store.stripes, store.constants.geometry
        stripe = self._rng.randrange(geometry.stripe_count)
        free = [record for record in stripes._all_free_spaces(stripe) if record.generation < MAX_GENERATION]  # noqa: SLF001
        if not free:
            return 0
        record = self._rng.choice(free)
        word = (geometry.arena_offset + record.offset) // WORD_SIZE + 1
        generation = MAX_GENERATION - self._rng.randrange(1, 3)
        if record.generation < generation:
            store.segment.words[word] += generation - record.generation << META_GENERATION_SHIFT
        return read_record(store.segment, record.offset).generation


def moments(name: str, shape: Shape, seed: int, engines: tuple[str, ...], count: int) -> list[Moment]:
    """All of a life, origins of refs being the seed's."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifetime, "choose_origin", lambda geometry, _: (1 << 39) + rng.randrange(1 << 38) // 8 * 8)
        return list(Life(name, shape, seed, engines).run(count))
