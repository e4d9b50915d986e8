"""What a pool promises, as a dict: the model that tests hold a Pool against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shmpool import Pool, PoolFullError, StaleRefError, TopicRef
from shmpool.arena import record_size


class Model:
    """Values and their refs. It cannot foresee a ref, so it is told each when it is given, and holds it against the rule that a
    value has one ref and a ref one value."""

    def __init__(self, capacity: int, reserve: int, max_value_size: int) -> None:
        self.capacity = capacity
        self.reserve = reserve
        self.max_value_size = max_value_size
        self.refs: dict[bytes, TopicRef] = {}
        self.values: dict[TopicRef, bytes] = {}
        self.stale: set[TopicRef] = set()

    def interned(self, value: bytes, ref: TopicRef, *, limit: int | None = None) -> None:
        """The pool gave `ref` for `value`; a new value needs room below `limit`, by default the capacity."""
        assert 0 < ref < 2**63
        if value not in self.refs:
            assert not self.is_full(limit)
            assert len(value) <= self.max_value_size
            assert ref not in self.values, f"{ref} is the ref of {self.values[ref]!r} and {value!r}"
            self.refs[value] = ref
            self.values[ref] = value
        assert self.refs[value] == ref

    def is_full(self, limit: int | None = None) -> bool:
        return len(self.refs) >= (self.capacity if limit is None else limit)

    def lookup(self, value: bytes) -> TopicRef | None:
        return self.refs.get(value)

    def reset(self) -> None:
        self.stale |= set(self.values)
        self.refs.clear()
        self.values.clear()


def assert_sound(pool: Pool, expected: Mapping[bytes, int], *, at_most_also: Iterable[bytes] = ()) -> None:
    """The pool contradicts itself nowhere and holds exactly `expected`, or besides it some of `at_most_also`: what was being
    inserted by a process that was killed. Every byte of the arena that is used belongs to a record."""
    findings = pool.check()
    assert not findings, findings
    held = [(value, int(ref)) for ref, value in pool]
    found = dict(held)
    assert len(found) == len(held) == len(pool)
    assert {value: found.get(value) for value in expected} == dict(expected)
    assert found.keys() - expected.keys() <= set(at_most_also)
    for value, ref in held:
        assert pool.lookup(value) == ref
        assert pool.resolve(TopicRef(ref)) == value
    stats = pool.stats()
    assert stats.size == len(held)
    assert stats.arena_used_size == sum(record_size(len(value)) for value in found)


def refuses(pool: Pool, ref: int) -> bool:
    """Whether the pool says that `ref` is none of its own."""
    try:
        pool.resolve(TopicRef(ref))
    except StaleRefError:
        return True
    return False


def is_full_for(pool: Pool, value: bytes) -> bool:
    try:
        pool.intern(value)
    except PoolFullError:
        return True
    return False
