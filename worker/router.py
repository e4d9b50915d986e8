"""GossipSub v1.0 and most of v1.1 as a state machine without I/O: events in, effects out.

Invariants, after every call:
- every member of a mesh or fanout is a connected gossipsub peer, subscribed to the topic, and not explicit;
- a topic that only strangers name has no key: it is never interned, and waits as bytes until this host cares;
- tables that a peer can fill are bounded by `GossipSubParams`, and no input of a peer raises;
- each table holds the key of each of its entries once (`holds` tells which): what nobody joins, no peer subscribes to, no
  fanout, backoff or recent message is about is not held;
- the same events, clock and RNG give the same effects, whatever the key type and PYTHONHASHSEED.

Left out: peer exchange (PRUNE carries and reads no peers), score, opportunistic grafting and IWANT promises.
Sources: libp2p/specs pubsub/gossipsub/gossipsub-v1.0.md and gossipsub-v1.1.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from random import Random
from typing import Generic

from worker.admission import admit
from worker.delivery import Delivery
from worker.effects import Connect, Effect, Misbehaviour, Verdict
from worker.gossip import Gossip
from worker.mesh import Mesh
from worker.messages import (
    NO_CONTROL,
    RPC,
    ControlGraft,
    ControlMessage,
    ControlPrune,
    Message,
    MessageId,
    PeerId,
    SubOpts,
)
from worker.outbox import Outbox
from worker.params import GossipSubParams
from worker.peers import PeerKind, PeerTable, peer_kind
from worker.seen import Seen, SeenCache
from worker.soundness import check_state
from worker.stats import RouterSizes, RouterStats
from worker.topics import K, Topics

BACKOFF_CLEAN_TICKS = 15  # heartbeats between walks of the whole backoff table


def from_and_seqno(message: Message) -> MessageId:
    """The specification's default message id: `from` and `seqno`, concatenated."""
    return message.from_peer + message.seqno


@dataclass(slots=True)
class _Unsaid:
    """Topics of which an undelivered RPC told a peer something; ordered, as dicts are."""

    announced: dict[bytes, None] = field(default_factory=dict)
    linked: dict[bytes, None] = field(default_factory=dict)


class Router(Generic[K]):
    """One host's GossipSub router over the topics it joins. Not thread-safe; every method is synchronous and short."""

    def __init__(
        self,
        topics: Topics[K],
        *,
        clock: Callable[[], float],
        rng: Random,
        params: GossipSubParams | None = None,
        message_id: Callable[[Message], MessageId] = from_and_seqno,
        is_authentic: Callable[[Message], bool] = lambda _message: True,
        self_id: PeerId = b"",
        explicit_peers: Iterable[PeerId] = (),
        announce: bool = True,
        seen: Seen | None = None,
    ) -> None:
        """`clock` is monotonic seconds. `message_id` is used for everything that is identified, mcache included.

        `is_authentic` verifies a signature. It is asked of each new message before `Validate`, because only what is
        really of its author may be remembered as seen; a validator's REJECT comes too late for that.
        `announce=False` when a framework around the router (py-libp2p's `Pubsub`) sends SUBSCRIBE and UNSUBSCRIBE.
        `explicit_peers` are v1.1's explicit peering agreements. Messages of peers that claim to be `self_id`'s are
        dropped. `seen` remembers message ids; by default it is this router's own.
        """
        self.params = params or GossipSubParams()
        self.stats = RouterStats()
        self._topics = topics
        self._clock = clock
        self._announce = announce
        self._peers = PeerTable(topics, explicit_peers, self.params)
        self._mesh = Mesh(topics, self._peers, self.params, rng)
        self._gossip = Gossip(topics, self._peers, self.params, rng)
        self._delivery = Delivery(
            topics, self._peers, self._mesh, self._gossip.mcache, self.params, message_id, is_authentic, self_id, self.stats,
            SeenCache(self.params.seen_ttl_s, self.params.max_seen_count) if seen is None else seen,  # an empty one is falsy
        )
        self._unsaid: dict[PeerId, _Unsaid] = {}
        self._tick = 0

    # ---- peers

    def add_peer(self, peer: PeerId, *, protocol: str = "/meshsub/1.1.0", outbound: bool = False) -> list[Effect]:
        """A peer can now be sent to. Tells it our subscriptions if `announce`.

        `protocol` is what was negotiated: "/floodsub/1.0.0" gets every message and no control, "/meshsub/1.0.0" gets
        PRUNE without backoff. `outbound` says that this host dialled, for D_out. A known peer starts afresh.
        """
        self.remove_peer(peer)
        self._peers.add(peer, peer_kind(protocol), outbound=outbound)
        outbox = Outbox()
        if self._announce:
            for topic in self.joined():
                outbox.announce(peer, SubOpts(subscribe=True, topic=topic))
        return outbox.effects()

    def remove_peer(self, peer: PeerId) -> list[Effect]:
        """A peer is gone. Its backoffs stay until they end, so that reconnecting does not escape them."""
        record = self._peers.peers.get(peer)
        if record is not None:
            self._mesh.forget(peer, record.topics)
            self._peers.remove(peer)
            self._unsaid.pop(peer, None)
        return []

    def undelivered(self, peer: PeerId, rpc: RPC) -> None:
        """A `SendRPC` was dropped on its way (a full queue).

        Its messages are lost to that peer; gossip may bring them. What it said of subscriptions and mesh links is said
        again, as it is true by then, with the next RPC to that peer, at the latest at the next heartbeat.
        """
        self.stats.undelivered += 1
        announced = dict.fromkeys(change.topic for change in rpc.subscriptions) if self._announce else {}
        links: tuple[ControlGraft | ControlPrune, ...] = (*rpc.control.graft, *rpc.control.prune)
        linked = dict.fromkeys(link.topic for link in links)
        if peer in self._peers.peers and (announced or linked):
            unsaid = self._unsaid.setdefault(peer, _Unsaid())
            unsaid.announced |= announced
            unsaid.linked |= linked

    # ---- what peers send

    def handle_rpc(self, peer: PeerId, rpc: RPC) -> list[Effect]:
        """An RPC arrived: subscriptions, then messages, then control. Of a peer not added, it is ignored and counted.

        A new message on a joined topic gives a `Validate`. Never raises for anything that a peer can send: what exceeds
        a bound of `params` is not looked at, and costs the peer a `Misbehaved`.
        """
        record = self._peers.peers.get(peer)
        if record is None:
            self.stats.strangers += 1
            return []
        now = self._clock()
        outbox = Outbox()
        rpc = admit(peer, rpc, self.params, outbox)
        for change in rpc.subscriptions:
            self._handle_subscription(peer, change, outbox)
        for message in rpc.publish:
            self._delivery.receive(peer, message, now, outbox)
        if rpc.control is not NO_CONTROL and record.kind is not PeerKind.FLOODSUB:
            self._handle_control(peer, rpc.control, now, outbox)
        return self._effects(outbox)

    def validated(self, message_id: MessageId, verdict: Verdict) -> list[Effect]:
        """The answer to a `Validate`: on ACCEPT deliver and forward. Of an id not waiting for one, it is ignored."""
        outbox = Outbox()
        self._delivery.validated(message_id, verdict, outbox)
        return self._effects(outbox)

    def forward(self, message: Message, received_from: PeerId) -> list[Effect]:
        """A peer's message that was validated outside the router: delivered and forwarded as after a verdict of ACCEPT.

        For hosts whose framework reads and validates messages itself. Nothing happens for a message seen before.
        """
        outbox = Outbox()
        self._delivery.forward(received_from, message, self._clock(), outbox)
        return self._effects(outbox)

    def settle(self, message_id: MessageId) -> None:
        """The message of a `Deliver` is about to leave this process for the application, or nobody wants it (`worker.seen`)."""
        self._delivery.seen.settle(message_id)

    # ---- what this host does

    def publish(self, message: Message) -> list[Effect]:
        """A message of this host, complete with `from`, `seqno` and signature. Nothing happens for one seen before.

        Interns the topic, so may raise as the pool does; an over-long topic or an empty message id is a `ValueError`;
        nothing was published then. Goes to every subscriber known (`flood_publish`), or else to the mesh, or, of a
        topic not joined, to its fanout.
        """
        outbox = Outbox()
        self._delivery.publish(message, self._clock(), outbox)
        return self._effects(outbox)

    def owning(self, topic: bytes) -> AbstractContextManager[K]:
        """What `join` does first, and all in it that can fail: intern the topic, and hold it for the block, in which `join`
        will not fail. Raises as `join` does."""
        return self._peers.own(topic)

    def join(self, topic: bytes) -> list[Effect]:
        """JOIN(topic). Interns the topic: may raise as the pool does, or `ValueError`, before anything has changed."""
        outbox = Outbox()
        with self._peers.own(topic) as key:
            if key not in self._mesh.mesh:
                self._announce_to_all(SubOpts(subscribe=True, topic=topic), outbox)
                self._mesh.join(key, topic, self._clock(), outbox)
        return self._effects(outbox)

    def leave(self, topic: bytes) -> list[Effect]:
        """LEAVE(topic): PRUNE, with the unsubscribe backoff, to all of the mesh."""
        key = self._topics.lookup(topic)
        outbox = Outbox()
        if key is not None and key in self._mesh.mesh:
            self._announce_to_all(SubOpts(subscribe=False, topic=topic), outbox)
            self._mesh.leave(key, topic, self._clock(), outbox)
        return self._effects(outbox)

    def heartbeat(self) -> list[Effect]:
        """To be called every `params.heartbeat_interval_s`: mesh and fanout maintenance, gossip, forgetting the old."""
        now = self._clock()
        outbox = Outbox()
        self._delivery.forget_old(now)
        if self._tick % BACKOFF_CLEAN_TICKS == 0:
            self._mesh.backoff.forget_ended(now)
        if self._tick % self.params.direct_connect_ticks == 0:
            for peer in sorted(self._peers.explicit_peers.difference(self._peers.peers)):
                outbox.effect(Connect(peer))
        self._tick += 1
        self._mesh.maintain(now, outbox)
        self._gossip.emit(self._mesh.linked_peers(), outbox)
        self._gossip.end_heartbeat()
        self._say_unsaid(list(self._unsaid), outbox)
        return outbox.effects()

    # ---- questions

    def joined(self) -> list[bytes]:
        """Topics joined, oldest first."""
        return [self._topics.resolve(key) for key in self._mesh.mesh]

    def mesh_peers(self, topic: bytes) -> list[PeerId]:
        """Sorted mesh of a joined topic, else empty."""
        key = self._topics.lookup(topic)
        return [] if key is None else sorted(self._mesh.mesh.get(key, ()))

    def fanout_peers(self, topic: bytes) -> list[PeerId]:
        """Sorted fanout of a topic that this host publishes on without joining it, else empty."""
        key = self._topics.lookup(topic)
        fanout = None if key is None else self._mesh.fanout.get(key)
        return [] if fanout is None else sorted(fanout.peers)

    def topic_peers(self, topic: bytes) -> list[PeerId]:
        """Sorted peers subscribed to a topic, whether or not this host cares about it."""
        return self._peers.subscribers(topic)

    def sizes(self) -> RouterSizes:
        """Entries in each table, to watch that nothing grows without end."""
        return RouterSizes(
            peers=len(self._peers.peers),
            topics=len(self._peers.by_topic),
            unknown_topics=len(self._peers.unknown),
            mesh_links=sum(map(len, self._mesh.mesh.values())),
            fanout_links=sum(len(fanout.peers) for fanout in self._mesh.fanout.values()),
            backoffs=len(self._mesh.backoff),
            mcache=len(self._gossip.mcache),
            seen=len(self._delivery.seen),
            at_validation=self._delivery.pending_count,
            at_validation_size=self._delivery.pending_size,
        )

    def holds(self) -> Counter[bytes]:
        """How many of the router's tables have an entry for each topic: as many holds are its own, no more and no fewer."""
        mesh = self._mesh
        recent = self._gossip.mcache.windows
        tables: list[Iterable[K]] = [mesh.mesh, mesh.fanout, mesh.backoff.counts, self._peers.by_topic, *recent]
        return Counter(self._topics.resolve(key) for table in tables for key in table)

    def check(self) -> list[str]:
        """What contradicts the invariants above, empty if nothing. For tests and inspection: reads all state."""
        return check_state(self._topics, self._peers, self._mesh, self.sizes(), self.params)

    # ----

    def _handle_subscription(self, peer: PeerId, change: SubOpts, outbox: Outbox) -> None:
        if change.subscribe:
            if not self._peers.subscribe(peer, change.topic):
                self.stats.refused_subscriptions += 1
                outbox.misbehaved(peer, Misbehaviour.TOO_MANY_SUBSCRIPTIONS)
            return
        key = self._peers.unsubscribe(peer, change.topic)
        if key is not None:
            self._mesh.forget(peer, (key,))

    def _handle_control(self, peer: PeerId, control: ControlMessage, now: float, outbox: Outbox) -> None:
        ihaves = [ihave for ihave in control.ihave if self._joined_key(ihave.topic) is not None]
        if ihaves:
            delivery = self._delivery
            self._gossip.handle_ihave(peer, ihaves, lambda id_: delivery.has_received(id_, now), delivery.seen.is_settled, outbox)
        if control.iwant:
            self._gossip.handle_iwant(peer, control.iwant, outbox)
        for graft in control.graft:
            key = self._joined_key(graft.topic)
            if key is not None:  # v1.1 ignores the others; v1.0's PRUNE in answer would let strangers make us talk
                self._mesh.handle_graft(peer, key, graft.topic, now, outbox)
        for prune in control.prune:
            key = self._joined_key(prune.topic)
            if key is not None:
                self._mesh.handle_prune(peer, key, prune.backoff, now)

    def _joined_key(self, topic: bytes) -> K | None:
        key = self._topics.lookup(topic)
        return key if key is not None and key in self._mesh.mesh else None

    def _announce_to_all(self, change: SubOpts, outbox: Outbox) -> None:
        if self._announce:
            for peer in self._peers.peers:
                outbox.announce(peer, change)

    def _effects(self, outbox: Outbox) -> list[Effect]:
        if self._unsaid:
            self._say_unsaid([peer for peer in outbox.recipients() if peer in self._unsaid], outbox)
        return outbox.effects()

    def _say_unsaid(self, peers: list[PeerId], outbox: Outbox) -> None:
        for peer in peers:
            unsaid = self._unsaid.pop(peer)
            for topic in unsaid.announced:
                outbox.announce(peer, SubOpts(subscribe=self._joined_key(topic) is not None, topic=topic))
            for topic in unsaid.linked:
                self._mesh.say_link(peer, self._topics.lookup(topic), topic, self._clock(), outbox)
