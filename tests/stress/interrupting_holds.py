"""Operations to interrupt on pools whose policy lets topics go. What this process holds is exactly what it was told it holds.

Refs are handed over by one C call each (`extend` over `map`), so that a signal between an operation's return and the note of it
does not blur the count.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar, Final

from shmpool import NotHeldError, Policy, Pool, StaleRefError, TopicRef
from tests.model import refuses
from tests.stress.interrupting import SCENES as FOREVER_SCENES
from tests.stress.interrupting import Hit, Scene
from tests.stress.turns import fill_with_tombstones
from tests.unit.inside import store_of

HANDLERS: Final = b"the handler's"  # of a handler that used the pool, too: held once more than anyone can tell
TTL_NS: Final = 1000


class Holding(Scene):
    """`given` has a ref for each hold that this process was told it has. Of those that are held already and held once more, one
    may be counted that an exception on the way out kept from being told: `spare`, here none."""

    policy: ClassVar = Policy.refcount()
    options: ClassVar[dict[str, Any]] = {}
    spare: ClassVar = 0

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.given: list[TopicRef] = []
        self.now_ns = 1

    def create(self, **options: Any) -> Pool:
        return super().create(policy=self.policy, clock=lambda: self.now_ns, **self.options | options)

    def take(self, *values: bytes) -> None:
        for value in values:
            self.given.extend(map(self.pool.intern, (value,)))

    def own_holds(self) -> Counter[TopicRef]:
        row = store_of(self.pool).attachment.row
        found: Counter[TopicRef] = Counter()
        for ref, value in self.pool:
            if value != HANDLERS:
                found.update({ref: sum(holder.count for holder in self.pool.holders(ref) if holder.row == row)})
        return +found

    def assert_exact(self) -> None:
        assert self.pool.check() == []
        told, held = Counter(self.given), self.own_holds()
        assert not told - held, f"told of {told}, and holds {held}"
        assert (held - told).total() <= self.spare, f"told of {told}, and holds {held}"
        for ref, count in (held - told).items():
            self.given += [ref] * count

    def repeat(self) -> None:
        self.assert_exact()
        self.act()
        self.assert_exact()

    def finish(self) -> None:
        refs = set(self.given)
        while self.given:
            self.pool.release(self.given.pop())
        assert self.own_holds() == Counter()
        for ref in refs:
            self.assert_not_held(ref)
        self.pool.release_many(self.handlers_refs())
        assert self.pool.check() == []

    def handlers_refs(self) -> list[TopicRef]:
        row = store_of(self.pool).attachment.row
        ref = self.pool.lookup(HANDLERS)
        count = sum(each.count for each in self.pool.holders(ref) if each.row == row) if ref else 0
        return [ref] * count if ref else []

    def assert_not_held(self, ref: TopicRef) -> None:
        try:
            self.pool.release(ref)
        except (NotHeldError, StaleRefError):
            return
        raise AssertionError(f"{ref} was given back once too often")


class Again(Holding):
    """What is held already, and given back but for the last hold."""

    spare = 1

    def prepare(self) -> None:
        self.take(*Hit.values)

    def act(self) -> None:
        self.take(*Hit.values, *Hit.values)


class FirstHold(Holding):
    """Of what another attachment holds."""

    def prepare(self) -> None:
        self.made.append(Pool.attach(self.name))
        self.made[1].intern_many(Hit.values[:4])

    def act(self) -> None:
        self.take(*Hit.values[:4])

    def finish(self) -> None:
        super().finish()
        self.made.pop().close()


class InsertHeld(Holding):
    def prepare(self) -> None:
        self.values = self.new(2)

    def act(self) -> None:
        self.take(*self.values)


class Reuse(InsertHeld):
    """Two free spaces of the right size are there from the shot before, or from this."""

    def prepare(self) -> None:
        super().prepare()
        self.pool.release_many(self.pool.intern_many([b"%7d" % number for number in range(2)]))
        self.values = [value.rjust(7) for value in self.values]


class Rebuild(InsertHeld):
    """Of a table that tombstones fill."""

    stripe_count = 1

    def prepare(self) -> None:
        super().prepare()
        self.pool.release(self.pool.intern(b"first"))  # so that there is a table
        fill_with_tombstones(self.pool)


class HoldMany(Holding):
    """All, or where it was interrupted none."""

    def prepare(self) -> None:
        self.values = self.new(12)

    def act(self) -> None:
        self.given.extend(map(TopicRef, self.pool.intern_many(self.values).tolist()))

    def repeat(self) -> None:
        if Counter(self.given).total() == 0:
            assert self.own_holds() == Counter(), "an interrupted batch holds something"
        self.assert_exact()
        self.act()
        self.assert_exact()


class Block(Holding):
    """However a `with` block is left, nothing is held afterwards; but for an exception that keeps its end from giving back."""

    spare = 1

    def prepare(self) -> None:
        self.values = self.new(2)

    def act(self) -> None:
        for value in self.values:
            with self.pool.hold(value) as ref:
                assert self.pool.resolve(ref) == value


class Release(Holding):
    """An exception on the way out does not tell whether the hold was given back; but once it was, it cannot be again."""

    def prepare(self) -> None:
        self.values = self.new(2)
        self.take(*self.values)

    def act(self) -> None:
        for ref in list(self.given):
            with suppress(NotHeldError, StaleRefError):
                self.pool.release(ref)

    def repeat(self) -> None:
        assert self.pool.check() == []
        self.act()
        assert self.own_holds() == Counter()
        refs, self.given = self.given, []
        for ref in refs:
            self.assert_not_held(ref)


class ReleaseAndEvict(Release):
    policy = Policy.lru(max_unheld=1)


class MakeRoom(InsertHeld):
    """By eviction: nothing else is left that could go."""

    policy = Policy.lru(max_unheld=100)
    options: ClassVar = {"capacity": 24, "reserve": 0}

    def prepare(self) -> None:
        super().prepare()
        for value in self.new(24):
            self.pool.release(self.pool.intern(value))


class Expire(InsertHeld):
    """What is too old goes, and is inserted again."""

    policy = Policy.ttl(seconds=TTL_NS / 1e9)

    def prepare(self) -> None:
        super().prepare()
        self.pool.release_many(self.pool.intern_many(self.values))
        self.now_ns += 2 * TTL_NS


class Reap(Holding):
    """What a process held that ended without closing."""

    def prepare(self) -> None:
        values = [*self.new(3), *Hit.values[:2]]
        self.take(*Hit.values[:2])
        pid = os.fork()
        if pid == 0:
            try:
                self.pool.intern_many(values)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    def act(self) -> None:
        self.pool.reap()

    def repeat(self) -> None:
        self.act()
        self.assert_exact()
        assert self.pool.stats().holds == len(self.given) + len(self.handlers_refs())


class CloseHolding(Holding):
    """Somebody else stays, and all that is held is given back."""

    def prepare(self) -> None:
        self.made.append(Pool.attach(self.name))
        self.refs = self.made[1].intern_many([*self.new(3), *Hit.values])

    def act(self) -> None:
        self.made[1].close()

    def repeat(self) -> None:
        self.act()
        self.made.pop()
        assert self.pool.check() == []  # and finishes what was half done, as whoever wants the stripe next would
        assert self.pool.stats().holds == len(self.handlers_refs())
        assert all(refuses(self.pool, ref) for ref in self.refs.tolist())


class ResetHolding(Holding):
    persists = False

    def prepare(self) -> None:
        self.made.append(self.create())
        self.refs = self.pool.intern_many(Hit.values).tolist()

    def act(self) -> None:
        self.pool.reset()

    def repeat(self) -> None:
        self.act()
        assert all(refuses(self.pool, ref) for ref in self.refs)
        assert list(self.pool) == []
        self.take(*Hit.values)
        self.assert_exact()

    def finish(self) -> None:
        super().finish()
        self.close()


def named(scenes: Iterable[tuple[str, type[Holding]]]) -> dict[str, type[Scene]]:
    return {f"{name} ({scene.policy.name})": scene for name, scene in scenes}


SCENES: Final[dict[str, type[Scene]]] = FOREVER_SCENES | named(
    [
        ("a hold more", Again),
        ("a first hold", FirstHold),
        ("an insert", InsertHeld),
        ("a space used again", Reuse),
        ("a table rebuilt", Rebuild),
        ("intern_many", HoldMany),
        ("a with block", Block),
        ("a last release", Release),
        ("a release that evicts", ReleaseAndEvict),
        ("room made", MakeRoom),
        ("what is too old", Expire),
        ("reap", Reap),
        ("close", CloseHolding),
        ("reset", ResetHolding),
    ]
)
