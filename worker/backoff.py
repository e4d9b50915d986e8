"""PRUNE backoff: until when a peer and this host must not graft each other in a topic (v1.1).

Both sides of a PRUNE keep one. An entry outlives the connection, so that reconnecting does not escape it; that lets
peers who come, prune and go fill the table, so it is bounded: at `max_count` the entry made longest ago goes.
"""

from __future__ import annotations

from typing import Generic

from worker.messages import PeerId
from worker.topics import K


class BackoffTable(Generic[K]):
    def __init__(self, max_count: int, slack_s: float, counts: dict[K, int] | None = None) -> None:
        """`slack_s` is waited beyond the end before we graft: the other side clears its entry only at a heartbeat.

        `counts` is to hold the number of each key's entries: a `HeldDict` keeps a left topic's key until its last one ends.
        """
        self.counts: dict[K, int] = {} if counts is None else counts
        self._max_count = max_count
        self._slack_s = slack_s
        self._ends: dict[tuple[K, PeerId], float] = {}

    def add(self, key: K, peer: PeerId, end: float) -> None:
        """Back off until `end`. Extends, never shortens."""
        entry = (key, peer)
        if entry not in self._ends:
            self.counts[key] = self.counts.get(key, 0) + 1
            if len(self._ends) >= self._max_count:
                self._forget(next(iter(self._ends)))
        self._ends[entry] = max(end, self._ends.get(entry, end))

    def remaining_s(self, key: K, peer: PeerId, now: float) -> float:
        """Seconds until the peer may graft us, 0.0 if it may."""
        return max(0.0, self._ends.get((key, peer), now) - now)

    def may_graft(self, key: K, peer: PeerId, now: float) -> bool:
        """Whether we may graft the peer: the backoff and the slack are over."""
        end = self._ends.get((key, peer))
        return end is None or end + self._slack_s <= now

    def forget_ended(self, now: float) -> None:
        """Reads the whole table; the caller decides how often."""
        limit = now - self._slack_s
        for entry in [entry for entry, end in self._ends.items() if end <= limit]:
            self._forget(entry)

    def __len__(self) -> int:
        return len(self._ends)

    def _forget(self, entry: tuple[K, PeerId]) -> None:
        del self._ends[entry]
        key, _ = entry
        self.counts[key] -= 1
        if not self.counts[key]:
            del self.counts[key]
