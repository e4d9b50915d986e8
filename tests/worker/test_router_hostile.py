"""Whatever peers send, in whatever order: the router never raises, its invariants and bounds hold, its effects are sane."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings

from worker.effects import Effect, Misbehaved, SendRPC, Validate, Verdict
from worker.messages import (
    RPC,
    ControlGraft,
    ControlIHave,
    ControlIWant,
    ControlMessage,
    ControlPrune,
    Message,
    SubOpts,
)
from worker.params import GossipSubParams
from worker.router import Router
from worker.topics import BytesTopics

PEERS = [b"peer-%d" % number for number in range(8)]
LIMITS = GossipSubParams(
    D=3, D_low=2, D_high=4, D_lazy=2, D_out=1, prune_backoff_s=5.0, unsubscribe_backoff_s=2.0, fanout_ttl_s=3.0,
    seen_ttl_s=5.0, max_topic_size=8, max_subscriptions_per_rpc=6, max_subscriptions_per_peer=5, max_messages_per_rpc=4,
    max_control_per_rpc=4, max_ids_per_rpc=8, max_ihave_length=6, max_ihave_messages=2, gossip_retransmission=1,
    max_backoff_s=20.0, max_backoff_count=6, max_pending_validation_count=4, max_pending_validation_size=6,
    max_seen_count=8, direct_connect_ticks=3,
)
OURS = [b"a", b"b", b"", b"\xff\x00"]

topics = st.sampled_from([*OURS, b"c", b"d", b"e", b"12345678", b"123456789"]) | st.binary(max_size=12)
# Mostly ids that exist, so that caches are hit; sometimes others.
ids = st.builds(lambda author, number: author + bytes([number]), st.sampled_from([b"", b"x", *PEERS]), st.integers(0, 5))
messages = st.builds(
    Message, topics, st.binary(max_size=4), st.sampled_from([b"", b"x", b"self", *PEERS]),
    st.integers(0, 5).map(lambda number: bytes([number])) | st.just(b""),
)


def few(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=7).map(tuple)


rpcs = st.builds(
    RPC,
    few(st.builds(SubOpts, st.booleans(), topics)),
    few(messages),
    st.builds(
        ControlMessage,
        few(st.builds(ControlIHave, topics, few(ids))),
        few(st.builds(ControlIWant, few(ids))),
        few(st.builds(ControlGraft, topics)),
        few(st.builds(ControlPrune, topics, st.integers(0, 2**64 - 1))),
    ),
)
peers = st.sampled_from(PEERS)
protocols = st.sampled_from(["/meshsub/1.1.0", "/meshsub/1.0.0", "/floodsub/1.0.0", "/meshsub/1.2.0", ""])
events = st.one_of(
    st.tuples(st.just("rpc"), peers, rpcs),
    st.tuples(st.just("rpc"), peers, rpcs),
    st.tuples(st.just("add"), peers, protocols, st.booleans()),
    st.tuples(st.just("remove"), peers),
    st.tuples(st.just("join"), st.sampled_from(OURS)),
    st.tuples(st.just("leave"), st.sampled_from(OURS)),
    st.tuples(st.just("publish"), st.sampled_from(OURS), st.integers(0, 255)),
    st.tuples(st.just("validated"), ids, st.sampled_from(Verdict)),
    st.tuples(st.just("forward"), peers, messages),
    st.tuples(st.just("undelivered"), peers, rpcs),
    st.tuples(st.just("heartbeat"), st.floats(0, 10)),
)


@settings(max_examples=80)
@given(
    st.lists(events, min_size=10, max_size=60), st.booleans(), st.sets(peers, max_size=2), st.integers(0, 2**32)
)
def test_hostile_peers_never_raise_nor_break_the_invariants(
    script: list[tuple[Any, ...]], flood_publish: bool, explicit: set[bytes], seed: int
) -> None:
    attack = Attack(dataclasses.replace(LIMITS, flood_publish=flood_publish), explicit, seed)
    for peer in PEERS[:4]:
        attack.event("add", peer, "/meshsub/1.1.0", peer == PEERS[0])
    attack.event("join", OURS[0])

    for event in script:
        attack.event(*event)


class Attack:
    """Feeds events to a router and judges what comes back."""

    def __init__(self, params: GossipSubParams, explicit: set[bytes], seed: int) -> None:
        self.now = 0.0
        self.topics = BytesTopics()
        self.connected: set[bytes] = set()
        self.validating: dict[bytes, float] = {}  # since when
        self.cared_about: set[bytes] = set()
        self.router = Router(
            self.topics, clock=lambda: self.now, rng=Random(seed), params=params, self_id=b"self",
            explicit_peers=explicit,
        )

    def event(self, kind: str, *details: Any) -> None:
        before = set(self.connected)
        effects = getattr(self, kind)(*details) or []
        self.judge(effects, before | self.connected)

    def judge(self, effects: list[Effect], connected: set[bytes]) -> None:
        sends = [effect for effect in effects if isinstance(effect, SendRPC)]
        for send in sends:
            assert send.peer in connected
            assert send.rpc != RPC(), "an empty RPC was sent"
            linked = [graft.topic for graft in send.rpc.control.graft] + [prune.topic for prune in send.rpc.control.prune]
            assert len(linked) == len(set(linked)), "a peer is grafted and pruned at once"
            assert sum(len(ihave.message_ids) for ihave in send.rpc.control.ihave) <= LIMITS.max_ihave_length
            assert sum(len(iwant.message_ids) for iwant in send.rpc.control.iwant) <= LIMITS.max_ihave_length
        assert len({send.peer for send in sends}) == len(sends)
        misbehaved = [effect for effect in effects if isinstance(effect, Misbehaved)]
        assert len(set(misbehaved)) == len(misbehaved)
        for effect in effects:
            if isinstance(effect, Validate):
                asked_at = self.validating.get(effect.message_id, float("-inf"))
                assert self.now - asked_at > LIMITS.seen_ttl_s, "asked twice for a verdict"
                self.validating[effect.message_id] = self.now
        assert self.router.check() == []
        assert {topic for topic in self.topics_known() if topic not in self.cared_about} == set()

    def topics_known(self) -> set[bytes]:
        return {topic for topic in [*OURS, b"c", b"d", b"e", b"12345678"] if self.topics.lookup(topic) is not None}

    # ---- events

    def rpc(self, peer: bytes, rpc: RPC) -> list[Effect]:
        return self.router.handle_rpc(peer, rpc)

    def add(self, peer: bytes, protocol: str, outbound: bool) -> list[Effect]:
        self.connected.add(peer)
        return self.router.add_peer(peer, protocol=protocol, outbound=outbound)

    def remove(self, peer: bytes) -> list[Effect]:
        self.connected.discard(peer)
        return self.router.remove_peer(peer)

    def join(self, topic: bytes) -> list[Effect]:
        self.cared_about.add(topic)
        return self.router.join(topic)

    def leave(self, topic: bytes) -> list[Effect]:
        return self.router.leave(topic)

    def publish(self, topic: bytes, number: int) -> list[Effect]:
        self.cared_about.add(topic)
        return self.router.publish(Message(topic, b"ours", b"self", bytes([number])))

    def validated(self, message_id: bytes, verdict: Verdict) -> list[Effect]:
        self.validating.pop(message_id, None)
        return self.router.validated(message_id, verdict)

    def forward(self, peer: bytes, message: Message) -> list[Effect]:
        return self.router.forward(message, peer)

    def undelivered(self, peer: bytes, rpc: RPC) -> None:
        self.router.undelivered(peer, rpc)

    def heartbeat(self, passed_s: float) -> list[Effect]:
        self.now += passed_s
        return self.router.heartbeat()
