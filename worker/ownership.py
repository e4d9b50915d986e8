"""Which shard owns a topic: a rendezvous hash of its bytes, so every process computes the same answer without talking.

Guarantees:
- Equal bytes and an equal number of shards give the same owner in every process, on every host and in every version of
  Python: the hash is BLAKE2b, neither the pool's (keyed at random) nor Python's own `hash()` (salted per process).
- When the number of shards grows from n to n + 1, a topic either stays or moves to the new shard; one in n + 1 moves.

The ref's own bits are no substitute: refs are aligned and depend on the order of insertion, so `ref % n` puts every
topic on one shard. A ring of virtual nodes needs a table for the same result; for a few shards, n hashes are the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")

MAX_REMEMBERED = 65_536
MAX_SHARD_COUNT = 1024  # far above any host's cores; bounds the loop below against a mistyped number


class Ownership(Generic[K]):
    """The owner of each key of one router, computed once per key and remembered.

    Remembered keys are not held: one that has gone never comes back as another topic's, so what is remembered of it is of no
    use and does no harm. That table is bounded: at `MAX_REMEMBERED` the owner computed longest ago goes.
    """

    def __init__(self, shard_count: int, resolve: Callable[[K], bytes]) -> None:
        """`resolve` turns a key back into the topic's bytes (`Topics.resolve`)."""
        _check_shard_count(shard_count)
        self.shard_count = shard_count
        self._resolve = resolve
        self._owners: dict[K, int] = {}

    def owner(self, key: K) -> int:
        """The index (0 to `shard_count` - 1) of the shard that owns the topic `key` stands for. The caller holds the key."""
        owner = self._owners.get(key)
        if owner is None:
            owner = owner_of(self._resolve(key), self.shard_count)
            if len(self._owners) >= MAX_REMEMBERED:
                del self._owners[next(iter(self._owners))]
            self._owners[key] = owner
        return owner


def owner_of(topic: bytes, shard_count: int) -> int:
    """The index of the shard with the highest hash of (shard, topic).

    Source: Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous" (1996). Costs `shard_count` hashes.
    """
    _check_shard_count(shard_count)
    return max(range(shard_count), key=lambda shard: _weight(topic, shard))


def _weight(topic: bytes, shard: int) -> bytes:
    # The shard goes into the key, not before the topic's bytes: no two (shard, topic) pairs can run together.
    return hashlib.blake2b(topic, digest_size=8, key=shard.to_bytes(2, "big")).digest()


def _check_shard_count(shard_count: int) -> None:
    if not 1 <= shard_count <= MAX_SHARD_COUNT:
        raise ValueError(f"shard_count is {shard_count}; it must be from 1 to {MAX_SHARD_COUNT}")
