"""The `seen` cache: message ids observed in the last `seen_ttl`, so that nothing is processed or asked for twice.

Ids expire by when they were *first* seen (being seen again does not extend them), so they leave in the order they came
and forgetting costs nothing per message. At `max_count` the oldest goes early: that can cost a duplicate, never memory.
"""

from __future__ import annotations

from worker.messages import MessageId


class SeenCache:
    def __init__(self, ttl_s: float, max_count: int) -> None:
        self._ttl_s = ttl_s
        self._max_count = max_count
        self._expiries: dict[MessageId, float] = {}  # in order of expiry, because insertion order is

    def add(self, message_id: MessageId, now: float) -> bool:
        """True if the id was not there; then it stays for the ttl."""
        if self.has(message_id, now):
            return False
        self._expiries.pop(message_id, None)  # an expired one must move to the end
        if len(self._expiries) >= self._max_count:
            del self._expiries[next(iter(self._expiries))]
        self._expiries[message_id] = now + self._ttl_s
        return True

    def has(self, message_id: MessageId, now: float) -> bool:
        expiry = self._expiries.get(message_id)
        return expiry is not None and expiry > now

    def forget_expired(self, now: float) -> None:
        while self._expiries:
            oldest = next(iter(self._expiries))
            if self._expiries[oldest] > now:
                return
            del self._expiries[oldest]

    def __len__(self) -> int:
        return len(self._expiries)
