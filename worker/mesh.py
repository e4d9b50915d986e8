"""The full-message half of the protocol: which peers are linked with us in which topic.

Guarantees: a topic is in `mesh` exactly while it is joined, and then not in `fanout`; members of either are connected,
meshable and subscribed; whoever we prune or who prunes us is in backoff. Each of these tables holds its own keys.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Generic

from worker.backoff import BackoffTable
from worker.effects import Misbehaviour
from worker.messages import ControlGraft, ControlPrune, PeerId
from worker.outbox import Outbox
from worker.params import GossipSubParams
from worker.peers import PeerKind, PeerTable
from worker.selection import select_peers, select_survivors
from worker.topics import HeldDict, K, Topics


@dataclass(slots=True)
class Fanout:
    peers: set[PeerId]
    last_published_s: float


class Mesh(Generic[K]):
    def __init__(self, topics: Topics[K], peers: PeerTable[K], params: GossipSubParams, rng: Random) -> None:
        self._topics = topics
        self._peers = peers
        self._params = params
        self._rng = rng
        # The other side clears its entry at a heartbeat of its own: two intervals cover both clocks' offsets.
        self.backoff: BackoffTable[K] = BackoffTable(
            params.max_backoff_count, slack_s=2 * params.heartbeat_interval_s, counts=HeldDict(topics)
        )
        self.mesh: HeldDict[K, set[PeerId]] = HeldDict(topics)
        self.fanout: HeldDict[K, Fanout] = HeldDict(topics)

    def join(self, key: K, topic: bytes, now: float, outbox: Outbox) -> None:
        """JOIN: the fanout's peers first, then others up to D."""
        members: set[PeerId] = set()
        self.mesh[key] = members
        fanout: Fanout | None = self.fanout.pop(key)
        eligible = self._graftable(key, now, members)
        first = select_peers(fanout.peers.intersection(eligible), self._params.D, self._rng) if fanout else []
        rest = select_peers(set(eligible).difference(first), self._params.D - len(first), self._rng)
        self._graft(key, topic, first + rest, outbox)

    def leave(self, key: K, topic: bytes, now: float, outbox: Outbox) -> None:
        """LEAVE: PRUNE to all of the mesh, with the unsubscribe backoff."""
        for peer in sorted(self.mesh[key]):
            self._prune(key, topic, peer, now, self._params.unsubscribe_backoff_s, outbox)
        del self.mesh[key]

    def forget(self, peer: PeerId, keys: Iterable[K]) -> None:
        """The peer has gone, or has unsubscribed from these topics."""
        for key in keys:
            if key in self.mesh:
                self.mesh[key].discard(peer)
            elif key in self.fanout:
                self.fanout[key].peers.discard(peer)

    def handle_graft(self, peer: PeerId, key: K, topic: bytes, now: float, outbox: Outbox) -> None:
        """GRAFT of a joined topic by a connected gossipsub peer: accept it or answer with PRUNE.

        A GRAFT tells that the peer is subscribed, should its SUBSCRIBE have been lost.
        """
        members = self.mesh[key]
        if peer in members:
            return
        record = self._peers.peers[peer]
        remaining_s = self.backoff.remaining_s(key, peer, now)
        if record.explicit:
            outbox.misbehaved(peer, Misbehaviour.GRAFT_EXPLICIT)
        elif remaining_s > 0:
            outbox.misbehaved(peer, Misbehaviour.GRAFT_IN_BACKOFF)
            if remaining_s > self._params.prune_backoff_s - self._params.graft_flood_threshold_s:
                outbox.misbehaved(peer, Misbehaviour.GRAFT_FLOOD)
        elif not self._peers.subscribe(peer, topic):
            outbox.misbehaved(peer, Misbehaviour.TOO_MANY_SUBSCRIPTIONS)
        elif len(members) < self._params.D_high or record.outbound:
            members.add(peer)
            return
        self._prune(key, topic, peer, now, self._params.prune_backoff_s, outbox)

    def handle_prune(self, peer: PeerId, key: K, backoff_s: float, now: float) -> None:
        """PRUNE of a joined topic; `backoff_s` is 0 if it named none."""
        self.mesh[key].discard(peer)
        asked_s = min(backoff_s, self._params.max_backoff_s) if backoff_s > 0 else self._params.prune_backoff_s
        self.backoff.add(key, peer, now + asked_s)

    def publish_peers(self, key: K, now: float) -> set[PeerId]:
        """Mesh of a joined topic; else its fanout, which this call fills up to D if it is empty, and keeps alive."""
        if key in self.mesh:
            return self.mesh[key]
        fanout = self.fanout.get(key)
        if fanout is None or not fanout.peers:
            chosen = set(select_peers(self._peers.meshable(key), self._params.D, self._rng))
            if not chosen:
                return chosen
            fanout = Fanout(chosen, now)
            self.fanout[key] = fanout
        fanout.last_published_s = now
        return fanout.peers

    def maintain(self, now: float, outbox: Outbox) -> None:
        """The heartbeat's mesh and fanout maintenance."""
        for key, members in self.mesh.items():
            self._maintain_mesh(key, members, now, outbox)
        self._maintain_fanout(now)

    def linked_peers(self) -> Iterator[tuple[K, Collection[PeerId]]]:
        """Of each topic its mesh or fanout, in the order in which these were made."""
        yield from self.mesh.items()
        for key, fanout in self.fanout.items():
            yield key, fanout.peers

    def say_link(self, peer: PeerId, key: K | None, topic: bytes, now: float, outbox: Outbox) -> None:
        """Tell a connected peer how it stands with us in a topic, whatever it was told before.

        Also of a topic whose key has gone since: nobody is linked there, and the peer may still think it is.
        """
        if key is not None and peer in self.mesh.get(key, ()):
            outbox.link(peer, ControlGraft(topic))
        else:
            remaining_s = 0.0 if key is None else self.backoff.remaining_s(key, peer, now)
            outbox.link(peer, ControlPrune(topic, self._stated_backoff(peer, remaining_s)))

    def _maintain_mesh(self, key: K, members: set[PeerId], now: float, outbox: Outbox) -> None:
        params = self._params
        if len(members) < params.D_low:
            chosen = select_peers(self._graftable(key, now, members), params.D - len(members), self._rng)
            self._graft(key, self._topics.resolve(key), chosen, outbox)
        elif len(members) > params.D_high:
            survivors = select_survivors(members, self._outbound(members), params.D, params.D_out, self._rng)
            topic = self._topics.resolve(key)
            for peer in sorted(members - survivors):
                self._prune(key, topic, peer, now, params.prune_backoff_s, outbox)
        missing = params.D_out - len(self._outbound(members))
        if missing > 0 and len(members) >= params.D_low:
            chosen = select_peers(self._outbound(self._graftable(key, now, members)), missing, self._rng)
            self._graft(key, self._topics.resolve(key), chosen, outbox)

    def _maintain_fanout(self, now: float) -> None:
        for key, fanout in list(self.fanout.items()):
            if now - fanout.last_published_s > self._params.fanout_ttl_s:
                del self.fanout[key]
            elif len(fanout.peers) < self._params.D:
                others = set(self._peers.meshable(key)) - fanout.peers
                fanout.peers.update(select_peers(others, self._params.D - len(fanout.peers), self._rng))

    def _graftable(self, key: K, now: float, members: set[PeerId]) -> list[PeerId]:
        candidates = self._peers.meshable(key)
        return [peer for peer in candidates if peer not in members and self.backoff.may_graft(key, peer, now)]

    def _outbound(self, peers: Iterable[PeerId]) -> set[PeerId]:
        return {peer for peer in peers if self._peers.peers[peer].outbound}

    def _graft(self, key: K, topic: bytes, chosen: Iterable[PeerId], outbox: Outbox) -> None:
        for peer in chosen:
            self.mesh[key].add(peer)
            outbox.link(peer, ControlGraft(topic))

    def _prune(self, key: K, topic: bytes, peer: PeerId, now: float, backoff_s: float, outbox: Outbox) -> None:
        self.mesh[key].discard(peer)
        self.backoff.add(key, peer, now + backoff_s)
        outbox.link(peer, ControlPrune(topic, self._stated_backoff(peer, backoff_s)))

    def _stated_backoff(self, peer: PeerId, backoff_s: float) -> int:
        """What a PRUNE to the peer says: whole seconds, or 0 to one that does not know the field."""
        if self._peers.peers[peer].kind is PeerKind.GOSSIPSUB_V10:
            return 0
        return math.ceil(backoff_s)
