"""Operations to interrupt, each a scene that can be played again and again."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from typing import Any, ClassVar, Final

from shmpool import Pool, PoolClosedError, PoolNotFoundError, StaleRefError, TopicRef
from shmpool.segment import path_of

FIRST_GROWTH: Final = 384  # records that fill a stripe's first table


class Scene:
    """One operation, `act`, on the pool called `name`. `prepare` comes before it; `repeat` does it again and says what must be
    true then; `finish` puts away what `prepare` made."""

    stripe_count: ClassVar = 2
    cache_size: ClassVar = 4096
    persists: ClassVar = True  # one pool for all shots, and not one for each

    def __init__(self, name: str) -> None:
        self.name = name
        self.serial = 0
        self.made: list[Pool] = []

    def create(self, **options: Any) -> Pool:
        return Pool.create(
            self.name, stripe_count=self.stripe_count, process_count=8, max_value_size=1000, cache_size=self.cache_size, **options
        )

    def open(self) -> None:
        if self.persists:
            self.made = [self.create()]

    @property
    def pool(self) -> Pool:
        return self.made[0]

    def new(self, count: int) -> list[bytes]:
        self.serial += count
        return [b"%d" % (self.serial - number) for number in range(count)]

    def prepare(self) -> None: ...

    def act(self) -> None: ...

    def repeat(self) -> None:
        self.act()

    def finish(self) -> None: ...

    def close(self) -> None:
        while self.made:
            self.made.pop().close()


class Hit(Scene):
    values: ClassVar = [b"known %d" % number for number in range(16)]

    def prepare(self) -> None:
        self.refs = self.pool.intern_many(self.values).tolist()

    def act(self) -> None:
        for _ in range(10):
            for value, ref in zip(self.values, self.refs, strict=True):
                assert self.pool.intern(value) == self.pool.lookup(value) == ref
                assert self.pool.resolve(ref) == value


class Found(Hit):
    """Every search goes to shared memory."""

    cache_size = 0

    def act(self) -> None:
        for value, ref in zip(self.values, self.refs, strict=True):
            assert self.pool.lookup(value) == ref
            assert self.pool.resolve(ref) == value
        assert self.pool.lookup_many(self.values).tolist() == self.refs


class Insert(Scene):
    def prepare(self) -> None:
        self.values = self.new(1)
        self.given: dict[bytes, int] = {}

    def act(self) -> None:
        for value in self.values:
            ref = int(self.pool.intern(value))
            assert self.given.setdefault(value, ref) == ref

    def repeat(self) -> None:
        self.act()
        self.act()
        assert self.pool.resolve(TopicRef(self.given[self.values[0]])) == self.values[0]


class Admit(Insert):
    cache_size = 1  # every insert empties the cache

    def act(self) -> None:
        for value in self.values:
            ref = int(self.pool.admit(value))
            assert self.given.setdefault(value, ref) == ref


class InsertMany(Insert):
    def prepare(self) -> None:
        super().prepare()
        self.values = [*self.new(40), *Hit.values]

    def act(self) -> None:
        refs = self.pool.intern_many(self.values).tolist()
        for value, ref in zip(self.values, refs, strict=True):
            assert self.given.setdefault(value, ref) == ref


class TakeChunk(InsertMany):
    def prepare(self) -> None:
        super().prepare()
        self.values = [value.ljust(1000, b".") for value in self.new(40)]


class Fresh(Scene):
    """A pool for each shot."""

    persists = False

    def prepare(self) -> None:
        self.made.append(self.create())
        self.refs = self.pool.intern_many(Hit.values).tolist()

    def finish(self) -> None:
        self.close()


class Grow(Fresh):
    stripe_count = 1

    def prepare(self) -> None:
        self.made.append(self.create())
        self.values = [b"%d" % number for number in range(FIRST_GROWTH)]
        self.refs = self.pool.intern_many(self.values).tolist()

    def act(self) -> None:
        self.pool.intern(b"one too many for the table")

    def repeat(self) -> None:
        self.act()
        assert self.pool.check() == []  # and finishes a half-done insert, which a search finds and len() does not count
        assert self.pool.intern_many(self.values).tolist() == self.refs
        assert {value for _, value in self.pool} - {b"the handler's"} == {*self.values, b"one too many for the table"}


class Create(Scene):
    persists = False

    def act(self) -> None:
        self.made.append(self.create())

    def repeat(self) -> None:
        self.close()
        if os.path.exists(path_of(self.name)):
            gc.collect()
        assert not os.path.exists(path_of(self.name)), "an interrupted create has left a pool"
        self.act()

    def finish(self) -> None:
        self.close()


class Open(Create):
    def act(self) -> None:
        self.made.append(Pool.open(self.name, stripe_count=2, process_count=8, max_value_size=1000))


class Attach(Scene):
    def act(self) -> None:
        self.made.append(Pool.attach(self.name))

    def repeat(self) -> None:
        self.finish()
        assert len([each for each in self.pool.stats().processes if each.live]) == 1, "a row is left"
        self.act()

    def finish(self) -> None:
        while len(self.made) > 1:
            self.made.pop().close()


class Close(Attach):
    """Somebody else stays."""

    def prepare(self) -> None:
        self.made.append(Pool.attach(self.name))
        self.made[1].intern_many([*self.new(3), *Hit.values])

    def act(self) -> None:
        self.made[1].close()

    def repeat(self) -> None:
        self.act()
        assert len([each for each in self.pool.stats().processes if each.live]) == 1, "a row is left"


class CloseLast(Fresh):
    def act(self) -> None:
        self.pool.close()

    def repeat(self) -> None:
        self.act()
        assert not os.path.exists(path_of(self.name)), "an interrupted close has left the pool"


class Reset(Fresh):
    def act(self) -> None:
        self.pool.reset()

    def repeat(self) -> None:
        self.act()
        assert list(self.pool) == []
        for ref in self.refs:
            with suppress(StaleRefError):
                raise AssertionError(f"{self.pool.resolve(ref)!r} outlived two resets")
        self.pool.intern_many(self.new(5))


class Unlink(Scene):
    persists = False

    def prepare(self) -> None:
        self.create(persistent=True).close()

    def act(self) -> None:
        Pool.unlink(self.name)

    def repeat(self) -> None:
        with suppress(PoolNotFoundError):
            self.act()
        assert not os.path.exists(path_of(self.name)), "an interrupted unlink has left the pool"


class Flush(Scene):
    def prepare(self) -> None:
        self.pool.intern_many([*self.new(5), *Hit.values])

    def act(self) -> None:
        for _ in range(4):
            self.pool.intern_many(Hit.values)
            self.pool.flush()


class Inspect(Flush):
    def act(self) -> None:
        assert self.pool.stats().size == len(self.pool)
        assert self.pool.top(3)
        assert self.pool.check() == []


class Fork(Flush):
    def act(self) -> None:
        here = os.getpid()
        try:
            if os.fork() == 0:
                with suppress(PoolClosedError):
                    self.pool.intern(b"the child's")
        finally:
            if os.getpid() != here:
                os._exit(0)

    def repeat(self) -> None:
        self.act()
        self.act()


SCENES: Final[dict[str, type[Scene]]] = {
    "intern, a hit": Hit,
    "lookup, resolve": Found,
    "intern, an insert": Insert,
    "admit": Admit,
    "intern_many": InsertMany,
    "a chunk is taken": TakeChunk,
    "a table grows": Grow,
    "create": Create,
    "open": Open,
    "attach": Attach,
    "close": Close,
    "close, the last": CloseLast,
    "reset": Reset,
    "unlink": Unlink,
    "flush": Flush,
    "stats, top, check": Inspect,
    "fork": Fork,
}
