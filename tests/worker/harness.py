"""One router among peers that the test plays, and questions about the effects it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

from worker.effects import Connect, Deliver, Effect, Misbehaved, Misbehaviour, SendRPC, Validate, Verdict
from worker.messages import (
    RPC,
    ControlGraft,
    ControlIHave,
    ControlIWant,
    ControlMessage,
    ControlPrune,
    Message,
    MessageId,
    PeerId,
    SubOpts,
)
from worker.params import GossipSubParams
from worker.router import Router, from_and_seqno
from worker.topics import BytesTopics

TOPIC = b"/eth2/6a95a1a9/beacon_block/ssz_snappy"
OTHER_TOPIC = b"/eth2/6a95a1a9/voluntary_exit/ssz_snappy"

# Small degrees, and no D_out unless a test asks: a test about one rule should not meet the other.
PARAMS = GossipSubParams(D=3, D_low=2, D_high=4, D_lazy=3, D_out=0, flood_publish=False)


class Harness:
    """Every call checks the router's invariants."""

    def __init__(
        self,
        params: GossipSubParams = PARAMS,
        *,
        explicit: Iterable[PeerId] = (),
        message_id: Callable[[Message], MessageId] = from_and_seqno,
        is_authentic: Callable[[Message], bool] = lambda _message: True,
        announce: bool = True,
        seed: int = 1,
        topics: Any = None,  # any `Topics`; by default bytes of its own
    ) -> None:
        self.now = 1_000.0
        self.params = params
        self.topics = topics or BytesTopics()
        self.router = Router(
            self.topics,
            clock=lambda: self.now,
            rng=Random(seed),
            params=params,
            message_id=message_id,
            is_authentic=is_authentic,
            self_id=b"self",
            explicit_peers=explicit,
            announce=announce,
        )

    def add(
        self, peer: PeerId, *topics: bytes, protocol: str = "/meshsub/1.1.0", outbound: bool = False
    ) -> list[Effect]:
        """A peer connects and subscribes to topics."""
        effects = self.router.add_peer(peer, protocol=protocol, outbound=outbound)
        return effects + self.rpc(peer, subscribe=topics)

    def add_many(self, count: int, *topics: bytes, name: str = "peer", outbound: bool = False) -> list[PeerId]:
        peers = [f"{name}-{index:03}".encode() for index in range(count)]
        for peer in peers:
            self.add(peer, *topics, outbound=outbound)
        return peers

    def rpc(
        self,
        peer: PeerId,
        *,
        subscribe: Iterable[bytes] = (),
        unsubscribe: Iterable[bytes] = (),
        publish: Iterable[Message] = (),
        ihave: Mapping[bytes, Iterable[MessageId]] | None = None,
        iwant: Iterable[MessageId] = (),
        graft: Iterable[bytes] = (),
        prune: Mapping[bytes, int] | None = None,
    ) -> list[Effect]:
        """The peer sends one RPC."""
        wanted = tuple(iwant)
        control = ControlMessage(
            ihave=tuple(ControlIHave(topic, tuple(ids)) for topic, ids in (ihave or {}).items()),
            iwant=(ControlIWant(wanted),) if wanted else (),
            graft=tuple(map(ControlGraft, graft)),
            prune=tuple(ControlPrune(topic, backoff) for topic, backoff in (prune or {}).items()),
        )
        changes = [SubOpts(subscribe=True, topic=topic) for topic in subscribe]
        changes += [SubOpts(subscribe=False, topic=topic) for topic in unsubscribe]
        return self.checked(self.router.handle_rpc(peer, RPC(tuple(changes), tuple(publish), control)))

    def receive(self, peer: PeerId, *messages: Message, verdict: Verdict = Verdict.ACCEPT) -> list[Effect]:
        """The peer sends messages, and every validation that follows gives the verdict at once."""
        effects: list[Effect] = []
        for effect in self.rpc(peer, publish=messages):
            if isinstance(effect, Validate):
                effects += self.checked(self.router.validated(effect.message_id, verdict))
            else:
                effects.append(effect)
        return effects

    def tick(self, count: int = 1) -> list[Effect]:
        """Heartbeats, each one interval later; the effects of the last."""
        effects: list[Effect] = []
        for _ in range(count):
            self.now += self.params.heartbeat_interval_s
            effects = self.checked(self.router.heartbeat())
        return effects

    def checked(self, effects: list[Effect]) -> list[Effect]:
        assert self.router.check() == []
        receivers = [effect.peer for effect in effects if isinstance(effect, SendRPC)]
        assert len(receivers) == len(set(receivers)), "more than one RPC to a peer"
        return effects


def a_message(number: int = 0, topic: bytes = TOPIC, *, author: PeerId = b"author", size: int = 16) -> Message:
    return Message(topic, number.to_bytes(4, "big").ljust(size, b"."), author, number.to_bytes(8, "big"))


def sent(effects: Iterable[Effect]) -> dict[PeerId, RPC]:
    return {effect.peer: effect.rpc for effect in effects if isinstance(effect, SendRPC)}


def receivers(effects: Iterable[Effect], message: Message) -> set[PeerId]:
    return {peer for peer, rpc in sent(effects).items() if message in rpc.publish}


def grafted(effects: Iterable[Effect], topic: bytes = TOPIC) -> set[PeerId]:
    return {peer for peer, rpc in sent(effects).items() if ControlGraft(topic) in rpc.control.graft}


def pruned(effects: Iterable[Effect], topic: bytes = TOPIC) -> dict[PeerId, int]:
    """Who is sent a PRUNE, and its backoff in seconds."""
    return {
        peer: prune.backoff for peer, rpc in sent(effects).items() for prune in rpc.control.prune if prune.topic == topic
    }


def announced(effects: Iterable[Effect], topic: bytes = TOPIC) -> dict[PeerId, bool]:
    """Who is told of our subscription, and whether it begins."""
    return {
        peer: change.subscribe for peer, rpc in sent(effects).items() for change in rpc.subscriptions
        if change.topic == topic
    }


def offered(effects: Iterable[Effect], topic: bytes = TOPIC) -> dict[PeerId, tuple[MessageId, ...]]:
    """Who is sent an IHAVE of the topic, and its ids."""
    return {
        peer: ihave.message_ids for peer, rpc in sent(effects).items() for ihave in rpc.control.ihave
        if ihave.topic == topic
    }


def wanted(effects: Iterable[Effect], peer: PeerId) -> list[MessageId]:
    """Ids that IWANTs ask of the peer."""
    rpc = sent(effects).get(peer, RPC())
    return [id_ for iwant in rpc.control.iwant for id_ in iwant.message_ids]


def misbehaviours(effects: Iterable[Effect]) -> list[tuple[PeerId, Misbehaviour]]:
    return [(effect.peer, effect.reason) for effect in effects if isinstance(effect, Misbehaved)]


def delivered(effects: Iterable[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Deliver)]


def validations(effects: Iterable[Effect]) -> list[Validate]:
    return [effect for effect in effects if isinstance(effect, Validate)]


def connections(effects: Iterable[Effect]) -> list[PeerId]:
    return [effect.peer for effect in effects if isinstance(effect, Connect)]
