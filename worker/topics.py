"""The router's key type is a parameter: how topic bytes become keys, and back, and who still needs a key.

`BytesTopics` is interning off (the key is the topic), `PoolTopics` is interning on (the key is a `TopicRef`). The
router behaves identically with either, and under every policy of the pool: it never orders keys, nor sends one.

A key is good for as long as somebody holds it. There is one owner for each reason to hold one: a key in a `HeldDict`
(a mesh, a fanout, a topic's subscribers, ...) is held once, by that entry, from when it is made until it goes; a
function that needs a key for as long as it runs holds it with `interned`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from shmpool import PoolError

if TYPE_CHECKING:
    from shmpool import Pool, TopicRef

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Topics(Protocol[K]):
    """The seam between the router and what names topics.

    Guarantees: equal bytes give equal keys and different bytes different keys, for as long as the key is held. Once nobody
    on this host holds it, it may go: then the topic's next key is another one, and no other topic ever has the old one.
    """

    def intern(self, topic: bytes) -> K:
        """Key of a topic that this host itself joins, subscribes to or publishes on, with a hold. May add it, may raise."""

    def lookup(self, topic: bytes) -> K | None:
        """Key of a topic that a stranger named, or None if nobody here cares about it. Never adds, never raises, no hold."""

    def hold_known(self, topic: bytes) -> K | None:
        """`lookup` with a hold, for what a stranger subscribes to. Never raises: None too if no hold can be had."""

    def hold(self, key: K) -> None:
        """One more hold of a key that the caller, or who sent it, holds. Raises as `intern` does, and for a key that went."""

    def release(self, key: K) -> None:
        """Give one hold back. Raises for a key that is not held: that is a bug of the caller."""

    def resolve(self, key: K) -> bytes:
        """Bytes of a key that is held."""


@contextmanager
def interned(topics: Topics[K], topic: bytes) -> Iterator[K]:
    """The key of a topic of this host's own, held for the block. Raises as `Topics.intern` does, first."""
    key = topics.intern(topic)
    try:
        yield key
    finally:
        topics.release(key)


class HeldDict(dict[K, V]):
    """A dict that holds each of its keys exactly once, for as long as it is in there.

    To store under a key that is there already takes no second hold; a hold that cannot be had raises before anything has
    changed. Who stores needs a hold of its own until then.
    """

    def __init__(self, topics: Topics[K]) -> None:
        super().__init__()
        self._topics = topics

    def __setitem__(self, key: K, value: V) -> None:
        if key not in self:
            self._topics.hold(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: K) -> None:
        super().__delitem__(key)
        self._topics.release(key)

    def setdefault(self, key: K, default: V) -> V:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: K, default: Any = None) -> Any:
        """As of any dict, but that a key that is not there gives `default`, None if none is given."""
        if key not in self:
            return default
        value = self[key]
        del self[key]
        return value

    def clear(self) -> None:
        for key in list(self):
            del self[key]

    def _refused(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a HeldDict does not have this: keys come and go one by one, each with its hold")

    update = popitem = __ior__ = copy = _refused  # dict's own would pass the holds by


class BytesTopics:
    """Interning off. Remembers what is held, and no longer: `lookup` answers as a pool under `refcount` would."""

    def __init__(self) -> None:
        self._holds: dict[bytes, int] = {}

    def intern(self, topic: bytes) -> bytes:
        self.hold(topic)
        return topic

    def lookup(self, topic: bytes) -> bytes | None:
        return topic if topic in self._holds else None

    def hold_known(self, topic: bytes) -> bytes | None:
        return self.intern(topic) if topic in self._holds else None

    def hold(self, key: bytes) -> None:
        self._holds[key] = self._holds.get(key, 0) + 1

    def release(self, key: bytes) -> None:
        count = self._holds[key] - 1
        if count:
            self._holds[key] = count
        else:
            del self._holds[key]

    def resolve(self, key: bytes) -> bytes:
        return key


class PoolTopics:
    """Interning on: keys are `TopicRef`s of a shared `Pool`, which the caller opens and closes.

    Each hold is a hold of this process in the pool: a process that is killed loses its own, and no other's.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._counts = pool.policy.counts_holds

    def intern(self, topic: bytes) -> TopicRef:
        return self._pool.intern(topic)

    def lookup(self, topic: bytes) -> TopicRef | None:
        return self._pool.lookup(topic)

    def hold_known(self, topic: bytes) -> TopicRef | None:
        key = self._pool.lookup(topic)
        if key is None or not self._counts:
            return key
        try:
            # Should it have gone just now, this brings it back: one entry, and not out of the reserve.
            return self._pool.admit(topic)
        except PoolError:
            return None

    def hold(self, key: TopicRef) -> None:
        topic = self._pool.resolve(key)  # raises for a key that went, whatever the policy
        if self._counts:
            self._pool.intern(topic)

    def release(self, key: TopicRef) -> None:
        self._pool.release(key)

    def resolve(self, key: TopicRef) -> bytes:
        return self._pool.resolve(key)
