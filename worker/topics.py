"""The router's key type is a parameter: how topic bytes become keys, and back.

`BytesTopics` is interning off (the key is the topic), `PoolTopics` is interning on (the key is a `TopicRef`). The
router behaves identically with either: it never orders keys, nor sends one.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from shmpool import Pool, TopicRef

K = TypeVar("K", bound=Hashable)


class Topics(Protocol[K]):
    """The seam between the router and what names topics.

    Guarantees: equal bytes give equal keys, different bytes different keys, for as long as this object lives; once
    `lookup(topic)` is not None it stays so.
    """

    def intern(self, topic: bytes) -> K:
        """Key of a topic that this host itself joins, subscribes to or publishes on; may add it, may raise."""

    def lookup(self, topic: bytes) -> K | None:
        """Key of a topic that a stranger named, or None if nobody here cares about it. Never adds, never raises."""

    def resolve(self, key: K) -> bytes:
        """Bytes of a key that `intern` or `lookup` gave."""


class BytesTopics:
    """Interning off. Remembers what was interned, so that `lookup` answers as a pool would."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()

    def intern(self, topic: bytes) -> bytes:
        self._known.add(topic)
        return topic

    def lookup(self, topic: bytes) -> bytes | None:
        return topic if topic in self._known else None

    def resolve(self, key: bytes) -> bytes:
        return key


class PoolTopics:
    """Interning on: keys are `TopicRef`s of a shared `Pool`, which the caller opens and closes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def intern(self, topic: bytes) -> TopicRef:
        return self._pool.intern(topic)

    def lookup(self, topic: bytes) -> TopicRef | None:
        return self._pool.lookup(topic)

    def resolve(self, key: TopicRef) -> bytes:
        return self._pool.resolve(key)
