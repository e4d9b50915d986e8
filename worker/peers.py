"""Who is connected, and who subscribes to what.

A peer announces a subscription once per connection. One for a topic that this host does not care about is neither
interned nor forgotten: it waits as bytes until `own` gives the topic a key, so that a late join finds its peers. Both
kinds share one bound per peer: how much a peer may subscribe to does not depend on what other processes interned.

The key of a topic that peers subscribe to is held once, however many they are, until the last of them has gone.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic

from worker.messages import PeerId
from worker.params import GossipSubParams
from worker.topics import HeldDict, K, Topics, interned

_NOBODY: frozenset[PeerId] = frozenset()


class PeerKind(enum.Enum):
    FLOODSUB = enum.auto()  # gets every message of its topics, takes no part in meshes, its control is ignored
    GOSSIPSUB_V10 = enum.auto()  # its PRUNEs carry no backoff
    GOSSIPSUB = enum.auto()  # v1.1 or later


def peer_kind(protocol: str) -> PeerKind:
    """Kind of a negotiated protocol id, such as "/meshsub/1.1.0"."""
    if protocol.startswith("/floodsub/"):
        return PeerKind.FLOODSUB
    return PeerKind.GOSSIPSUB_V10 if protocol == "/meshsub/1.0.0" else PeerKind.GOSSIPSUB


@dataclass(slots=True)
class Peer(Generic[K]):
    """A connected peer. The counts are of the current heartbeat."""

    kind: PeerKind
    outbound: bool
    explicit: bool
    topics: set[K] = field(default_factory=set)
    unknown_topics: set[bytes] = field(default_factory=set)
    ihave_count: int = 0  # RPCs with IHAVE
    iasked_count: int = 0  # ids asked for

    @property
    def meshable(self) -> bool:
        return self.kind is not PeerKind.FLOODSUB and not self.explicit

    @property
    def subscription_count(self) -> int:
        return len(self.topics) + len(self.unknown_topics)


class PeerTable(Generic[K]):
    """Guarantee: `by_topic` and `unknown` are the inverse of the peers' own sets, without empty entries."""

    def __init__(self, topics: Topics[K], explicit_peers: Iterable[PeerId], params: GossipSubParams) -> None:
        self._topics = topics
        self._params = params
        self.explicit_peers = frozenset(explicit_peers)
        self.peers: dict[PeerId, Peer[K]] = {}
        self.by_topic: HeldDict[K, set[PeerId]] = HeldDict(topics)
        self.unknown: dict[bytes, set[PeerId]] = {}
        # Few or none. Asked with every message, so that a message costs its mesh and not its topic's subscribers.
        self._unmeshable: set[PeerId] = set()

    def add(self, peer: PeerId, kind: PeerKind, *, outbound: bool) -> None:
        record = self.peers[peer] = Peer(kind, outbound, peer in self.explicit_peers)
        if not record.meshable:
            self._unmeshable.add(peer)

    def remove(self, peer: PeerId) -> None:
        record = self.peers.pop(peer, None)
        if record is None:
            return
        self._unmeshable.discard(peer)
        for key in record.topics:
            _discard(self.by_topic, key, peer)
        for topic in record.unknown_topics:
            _discard(self.unknown, topic, peer)

    def subscribe(self, peer: PeerId, topic: bytes) -> bool:
        """False, and nothing changed, if the connected peer has as many subscriptions as it may."""
        record = self.peers[peer]
        with self._known(topic) as key:
            if (topic in record.unknown_topics) if key is None else (key in record.topics):
                return True
            if record.subscription_count >= self._params.max_subscriptions_per_peer:
                return False
            if key is None:
                record.unknown_topics.add(topic)
                self.unknown.setdefault(topic, set()).add(peer)
            else:
                record.topics.add(key)
                self.by_topic.setdefault(key, set()).add(peer)
        return True

    def unsubscribe(self, peer: PeerId, topic: bytes) -> K | None:
        """The topic's key, if it has one."""
        record = self.peers[peer]
        key = self._topics.lookup(topic)
        if topic in record.unknown_topics:
            record.unknown_topics.discard(topic)
            _discard(self.unknown, topic, peer)
        elif key is not None:
            record.topics.discard(key)
            _discard(self.by_topic, key, peer)
        return key

    @contextmanager
    def own(self, topic: bytes) -> Iterator[K]:
        """Key of a topic that this host itself cares about, held for the block.

        Raises as interning does, or `ValueError`, before anything has changed.
        """
        if len(topic) > self._params.max_topic_size:
            raise ValueError(f"topic of {len(topic)} bytes: max_topic_size is {self._params.max_topic_size}")
        with interned(self._topics, topic) as key:
            self._promote(topic, key)
            yield key

    def subscribers(self, topic: bytes) -> list[PeerId]:
        """Sorted, whether or not the topic has a key."""
        key = self._topics.lookup(topic)
        peers = set(self.unknown.get(topic, ()))
        if key is not None:
            peers.update(self.by_topic.get(key, ()))
        return sorted(peers)

    def meshable(self, key: K) -> list[PeerId]:
        """Sorted subscribers that mesh, fanout and gossip choose from: `peers.gossipsub[topic]` less explicit peers."""
        return sorted(self.by_topic.get(key, _NOBODY) - self._unmeshable)

    def unmeshable(self, key: K) -> list[PeerId]:
        """Sorted subscribers that get every message directly: `peers.floodsub[topic]` and explicit peers."""
        return sorted(self.by_topic.get(key, _NOBODY) & self._unmeshable)

    @contextmanager
    def _known(self, topic: bytes) -> Iterator[K | None]:
        """Key of a topic that somebody on this host cares about, held for the block; whoever waited for it has moved there."""
        key = self._topics.hold_known(topic)
        if key is None:
            yield None
            return
        try:
            self._promote(topic, key)
            yield key
        finally:
            self._topics.release(key)

    def _promote(self, topic: bytes, key: K) -> None:
        """The topic has a key now: whoever waited for it under its bytes moves there."""
        if topic not in self.unknown:
            return
        members = self.by_topic.setdefault(key, set())
        for peer in self.unknown.pop(topic):
            record = self.peers[peer]
            record.unknown_topics.discard(topic)
            record.topics.add(key)
            members.add(peer)


def _discard(table: dict[K, set[PeerId]], key: K, peer: PeerId) -> None:
    peers = table.get(key)
    if peers is not None:
        peers.discard(peer)
        if not peers:
            del table[key]
