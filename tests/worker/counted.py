"""Topics as a pool under `refcount` names them, in this process and strict: what goes is gone, and every slip raises."""

from __future__ import annotations

from collections import Counter

from shmpool import TopicRef

STEP = 64


class CountedTopics:
    """Keys are made as a pool makes refs: from an origin, in order of insertion; a topic that comes back gets another one."""

    def __init__(self, origin: int = 1 << 39) -> None:
        self.holds: Counter[bytes] = Counter()
        self._next = origin
        self._refs: dict[bytes, TopicRef] = {}
        self._values: dict[TopicRef, bytes] = {}

    def intern(self, topic: bytes) -> TopicRef:
        if topic not in self._refs:
            self._refs[topic] = TopicRef(self._next)
            self._values[self._refs[topic]] = topic
            self._next -= STEP
        self.holds[topic] += 1
        return self._refs[topic]

    def lookup(self, topic: bytes) -> TopicRef | None:
        return self._refs.get(topic)

    def hold_known(self, topic: bytes) -> TopicRef | None:
        return self.intern(topic) if topic in self._refs else None

    def hold(self, key: TopicRef) -> None:
        self.intern(self.resolve(key))

    def release(self, key: TopicRef) -> None:
        topic = self.resolve(key)
        self.holds[topic] -= 1
        if not self.holds[topic]:
            del self.holds[topic], self._refs[topic], self._values[key]

    def resolve(self, key: TopicRef) -> bytes:
        """Raises KeyError for a key that nobody holds, where a pool has StaleRefError."""
        return self._values[key]
