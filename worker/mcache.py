"""The message cache: recent messages by id, in history windows of one heartbeat (v1.0, "Message Cache").

Ids come from the caller, so whatever function identifies messages elsewhere identifies them here. A message lives in
exactly one window, and goes when that window is shifted out; or before, oldest first, when the data of all would exceed
`max_size`: a host that accepts whatever strangers send must not hold `mcache_len` heartbeats of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic

from worker.messages import Message, MessageId, PeerId
from worker.topics import K


@dataclass(slots=True)
class _Entry:
    message: Message
    window_ids: list[MessageId]  # of its topic in its window; this message's is among them
    sent_counts: dict[PeerId, int] = field(default_factory=dict)  # answers to IWANTs, by who asked


class MessageCache(Generic[K]):
    def __init__(
        self,
        mcache_len: int,
        mcache_gossip: int,
        max_size: int = 64 << 20,
        make_window: Callable[[], dict[K, list[MessageId]]] = dict,
    ) -> None:
        """`max_size` is bytes of data. The newest message is kept, whatever its size.

        A window's keys are the topics of its messages: as a `HeldDict` it keeps them, so that a topic left and joined again
        still finds its ids.
        """
        self.size = 0
        self._max_size = max_size
        self._gossip_count = mcache_gossip
        self._entries: dict[MessageId, _Entry] = {}  # oldest first
        # Newest first. By topic within a window: a heartbeat asks for each topic's ids, and not the others'.
        self.windows: deque[dict[K, list[MessageId]]] = deque(make_window() for _ in range(mcache_len))

    def put(self, message_id: MessageId, message: Message, key: K) -> None:
        """Add to the current window. An id that is in the cache keeps its message and window."""
        if message_id in self._entries:
            return
        window_ids = self.windows[0].setdefault(key, [])
        window_ids.append(message_id)
        self._entries[message_id] = _Entry(message, window_ids)
        self.size += len(message.data)
        while self.size > self._max_size and len(self._entries) > 1:
            oldest = next(iter(self._entries))
            self._entries[oldest].window_ids.remove(oldest)  # at its front: ids are appended as messages come
            self._forget(oldest)

    def get(self, message_id: MessageId) -> Message | None:
        entry = self._entries.get(message_id)
        return None if entry is None else entry.message

    def take_for(self, peer: PeerId, message_id: MessageId) -> tuple[Message, int] | None:
        """The message and how often, this time included, that peer was given it."""
        entry = self._entries.get(message_id)
        if entry is None:
            return None
        count = entry.sent_counts.get(peer, 0) + 1
        entry.sent_counts[peer] = count
        return entry.message, count

    def get_gossip_ids(self, key: K) -> list[MessageId]:
        """Ids of a topic in the `mcache_gossip` newest windows, newest window first."""
        return [id_ for window in islice(self.windows, self._gossip_count) for id_ in window.get(key, ())]

    def shift(self) -> None:
        """Open a new window; the oldest goes with its messages."""
        window = self.windows.pop()
        for ids in window.values():
            for message_id in ids:
                self._forget(message_id)
        window.clear()
        self.windows.appendleft(window)

    def __len__(self) -> int:
        return len(self._entries)

    def _forget(self, message_id: MessageId) -> None:
        self.size -= len(self._entries.pop(message_id).message.data)
