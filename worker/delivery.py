"""The way of a message: received, identified, validated, then delivered and forwarded; or published.

Guarantees: a message is delivered and forwarded at most once while the seen cache remembers it, and never to who sent
or wrote it. Two kinds count as never seen, so that the real or a later one is not taken for a duplicate: what is dropped
for want of room at validation, and forgeries, for with `from` and `seqno` as the id anybody can make a message of any id.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic

from worker.effects import Deliver, Misbehaviour, Validate, Verdict
from worker.mcache import MessageCache
from worker.mesh import Mesh
from worker.messages import Message, MessageId, PeerId
from worker.outbox import Outbox
from worker.params import GossipSubParams
from worker.peers import PeerTable
from worker.seen import Seen
from worker.stats import RouterStats
from worker.topics import K, Topics


@dataclass(slots=True)
class _Pending:
    """A message at validation. It keeps no key: by the time of the verdict the topic may have been left, and joined again."""

    message: Message
    senders: list[PeerId]  # everyone who sent it so far, first come first
    since_s: float


class Delivery(Generic[K]):
    def __init__(
        self,
        topics: Topics[K],
        peers: PeerTable[K],
        mesh: Mesh[K],
        mcache: MessageCache[K],
        params: GossipSubParams,
        message_id: Callable[[Message], MessageId],
        is_authentic: Callable[[Message], bool],
        self_id: PeerId,
        stats: RouterStats,
        seen: Seen,
    ) -> None:
        self._topics = topics
        self._peers = peers
        self._mesh = mesh
        self._mcache = mcache
        self._params = params
        self._message_id = message_id
        self._is_authentic = is_authentic
        self._self_id = self_id
        self._stats = stats
        self._pending: dict[MessageId, _Pending] = {}  # oldest first
        self._pending_size = 0  # bytes of data
        self.seen = seen

    def receive(self, peer: PeerId, message: Message, now: float, outbox: Outbox) -> None:
        """A message that nobody has validated yet."""
        received = self._identify(peer, message, now, outbox)
        if received is None:
            return
        message_id, _ = received
        if not self._vouched(message):
            outbox.misbehaved(peer, Misbehaviour.FORGED_MESSAGE)
            return
        if not self._has_room(message):
            self._stats.overflowed += 1
            return
        self.seen.add(message_id, now)
        self._pending[message_id] = _Pending(message, [peer], now)
        self._pending_size += len(message.data)
        self._stats.validating += 1
        outbox.effect(Validate(peer, message_id, message))

    def validated(self, message_id: MessageId, verdict: Verdict, outbox: Outbox) -> None:
        if message_id not in self._pending:
            return
        pending = self._take_pending(message_id)
        if verdict is Verdict.ACCEPT:
            self._accept(message_id, pending.message, self._topics.lookup(pending.message.topic), pending.senders, outbox)
        elif verdict is Verdict.IGNORE:
            self._stats.ignored += 1
            self.seen.settle(message_id)
        else:
            self._stats.rejected += 1
            self.seen.settle(message_id)
            for sender in pending.senders:
                outbox.misbehaved(sender, Misbehaviour.INVALID_MESSAGE)

    def forward(self, peer: PeerId, message: Message, now: float, outbox: Outbox) -> None:
        """A message that somebody else has validated."""
        received = self._identify(peer, message, now, outbox)
        if received is not None:
            message_id, key = received
            self.seen.add(message_id, now)
            self._accept(message_id, message, key, [peer], outbox)

    def publish(self, message: Message, now: float, outbox: Outbox) -> None:
        message_id = self._message_id(message)
        if not message_id:
            raise ValueError("message_id gave an empty id; nothing was published")
        with self._peers.own(message.topic) as key:
            if not self.seen.add(message_id, now):
                self._stats.duplicates += 1
                return
            self._mcache.put(message_id, message, key)
            self._stats.published += 1
            if key in self._mesh.mesh:
                outbox.effect(Deliver(None, message_id, message))
            flood = self._params.flood_publish
            linked = self._peers.meshable(key) if flood else sorted(self._mesh.publish_peers(key, now))
            self._send(message, key, linked, (), outbox)
        # Killed from here on, this host has told nobody of it: then nobody can bring it back either.
        self.seen.settle(message_id)

    def forget_old(self, now: float) -> None:
        """Seen ids at the end of their ttl, and messages whose verdict has not come for as long."""
        self.seen.forget_expired(now)
        while self._pending:
            oldest = next(iter(self._pending))
            if now - self._pending[oldest].since_s <= self._params.seen_ttl_s:
                return
            self._take_pending(oldest)
            self._stats.ignored += 1

    def has_received(self, message_id: MessageId, now: float) -> bool:
        return message_id in self._pending or self.seen.has(message_id, now)

    @property
    def pending_count(self) -> int:
        return len(self._pending)

    @property
    def pending_size(self) -> int:
        return self._pending_size

    def _identify(self, peer: PeerId, message: Message, now: float, outbox: Outbox) -> tuple[MessageId, K] | None:
        """Id and key of a message that is new and on a joined topic; anything else is accounted for and ends here."""
        key = self._topics.lookup(message.topic)
        if key is None or key not in self._mesh.mesh:
            self._stats.unjoined += 1
            return None
        if self._self_id and message.from_peer == self._self_id:
            self._stats.from_self += 1
            return None
        try:
            message_id = self._message_id(message)
        except Exception:  # noqa: BLE001  the caller's function on a stranger's bytes: that costs the peer, not the shard
            message_id = b""
        if not message_id:
            outbox.misbehaved(peer, Misbehaviour.MALFORMED_MESSAGE)
            return None
        pending = self._pending.get(message_id)
        if pending is not None and peer not in pending.senders:
            pending.senders.append(peer)
        # What comes again comes again soon, mostly to the same process. Before the signature is verified: that is the dear part.
        if self.has_received(message_id, now) or self.seen.is_settled(message_id):
            self._stats.duplicates += 1
            return None
        return message_id, key

    def _has_room(self, message: Message) -> bool:
        params = self._params
        if len(self._pending) >= params.max_pending_validation_count:
            return False
        # A message larger than the bound is let in when it is alone, or no peer could ever bring it.
        return not self._pending or self._pending_size + len(message.data) <= params.max_pending_validation_size

    def _take_pending(self, message_id: MessageId) -> _Pending:
        pending = self._pending.pop(message_id)
        self._pending_size -= len(pending.message.data)
        return pending

    def _vouched(self, message: Message) -> bool:
        try:
            return self._is_authentic(message)
        except Exception:  # noqa: BLE001  as for the message id
            return False

    def _accept(
        self, message_id: MessageId, message: Message, key: K | None, senders: Collection[PeerId], outbox: Outbox
    ) -> None:
        members = None if key is None else self._mesh.mesh.get(key)
        if key is None or members is None:  # left while the message was at validation
            self._stats.unjoined += 1
            return
        self._stats.accepted += 1
        self._mcache.put(message_id, message, key)
        outbox.effect(Deliver(next(iter(senders)), message_id, message))
        self._send(message, key, sorted(members), senders, outbox)

    def _send(
        self, message: Message, key: K, linked: list[PeerId], senders: Collection[PeerId], outbox: Outbox
    ) -> None:
        """To floodsub and explicit peers first, then to the linked ones."""
        recipients = [
            peer
            for peer in (*self._peers.unmeshable(key), *linked)
            if peer not in senders and peer != message.from_peer
        ]
        outbox.message(recipients, message)
