"""GossipSub v1.0 and most of v1.1 as a state machine without I/O: events in, effects out.

Invariants, after every call:
- every member of a mesh or fanout is a connected gossipsub peer, subscribed to the topic, and not explicit;
- a topic that only strangers name has no key: it is never interned, and waits as bytes until this host cares;
- tables that a peer can fill are bounded by `GossipSubParams`, and no input of a peer raises;
- the same events, clock and RNG give the same effects, whatever the key type and PYTHONHASHSEED.

Left out: peer exchange (PRUNE carries and reads no peers), score, opportunistic grafting and IWANT promises.
Sources: libp2p/specs pubsub/gossipsub/gossipsub-v1.0.md and gossipsub-v1.1.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Generic

from worker.effects import Effect, Verdict
from worker.messages import RPC, Message, MessageId, PeerId
from worker.params import GossipSubParams
from worker.topics import K, Topics


def from_and_seqno(message: Message) -> MessageId:
    """The specification's default message id: `from` and `seqno`, concatenated."""
    return message.from_peer + message.seqno


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
        self_id: PeerId = b"",
        explicit_peers: Iterable[PeerId] = (),
        announce: bool = True,
    ) -> None:
        """`clock` is monotonic seconds. `message_id` is used for everything that is identified, mcache included.

        `announce=False` when a framework around the router (py-libp2p's `Pubsub`) sends SUBSCRIBE and UNSUBSCRIBE itself.
        `explicit_peers` are v1.1's explicit peering agreements. Messages from the network that claim `self_id` are dropped.
        """
        raise NotImplementedError

    def add_peer(self, peer: PeerId, *, protocol: str = "/meshsub/1.1.0", outbound: bool = False) -> list[Effect]:
        """A peer can now be sent to. Sends it our subscriptions if `announce`.

        `protocol` is what was negotiated: "/floodsub/1.0.0" gets every message and no control, "/meshsub/1.0.0" gets
        PRUNE without backoff. `outbound` says that this host dialled, for D_out. A known peer starts afresh.
        """
        raise NotImplementedError

    def remove_peer(self, peer: PeerId) -> list[Effect]:
        """A peer is gone. Its backoffs stay until they end, so that reconnecting does not escape them."""
        raise NotImplementedError

    def handle_rpc(self, peer: PeerId, rpc: RPC) -> list[Effect]:
        """An RPC arrived: subscriptions, then messages, then control. Of a peer not added, it is ignored and counted.

        A new message on a joined topic gives a `Validate`. Never raises for anything that a peer can send.
        """
        raise NotImplementedError

    def validated(self, message_id: MessageId, verdict: Verdict) -> list[Effect]:
        """The answer to a `Validate`: on ACCEPT deliver and forward. Of an id not waiting for one, it is ignored."""
        raise NotImplementedError

    def forward(self, message: Message, received_from: PeerId) -> list[Effect]:
        """A message that was validated outside the router: remembers and forwards it, as `validated` with ACCEPT does.

        For hosts whose framework reads and validates messages itself. Nothing happens for a message seen before.
        """
        raise NotImplementedError

    def publish(self, message: Message) -> list[Effect]:
        """A message of this host, complete with `from`, `seqno` and signature. Interns the topic, so may raise as the pool does.

        Joined or not: without `flood_publish`, an unjoined topic goes to its fanout. Nothing happens for a message seen before.
        """
        raise NotImplementedError

    def join(self, topic: bytes) -> list[Effect]:
        """JOIN(topic). Interns the topic, so may raise as the pool does, before anything has changed."""
        raise NotImplementedError

    def leave(self, topic: bytes) -> list[Effect]:
        """LEAVE(topic): PRUNE, with the unsubscribe backoff, to all of the mesh."""
        raise NotImplementedError

    def heartbeat(self) -> list[Effect]:
        """To be called every `params.heartbeat_interval_s`: mesh and fanout maintenance, gossip, and forgetting what is old."""
        raise NotImplementedError

    def undelivered(self, peer: PeerId, rpc: RPC) -> None:
        """A `SendRPC` was dropped on its way (a full queue): its GRAFTs and PRUNEs go with the next RPC to that peer."""
        raise NotImplementedError

    def joined(self) -> list[bytes]:
        """Topics joined, oldest first."""
        raise NotImplementedError

    def mesh_peers(self, topic: bytes) -> list[PeerId]:
        """Sorted mesh of a joined topic, else empty."""
        raise NotImplementedError

    def topic_peers(self, topic: bytes) -> list[PeerId]:
        """Sorted peers subscribed to a topic, whether or not this host cares about it."""
        raise NotImplementedError
