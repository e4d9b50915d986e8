"""The router's holds: one for each entry of a table, and none once nobody subscribes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from shmpool import Policy, Pool
from tests.worker.counted import CountedTopics
from tests.worker.harness import PARAMS, TOPIC, Harness, a_message, sent, validations
from worker.effects import Effect, Verdict
from worker.messages import MessageId
from worker.params import GossipSubParams
from worker.router import BACKOFF_CLEAN_TICKS
from worker.topics import HeldDict, PoolTopics

# Small, so that every table fills, overflows and empties within a few steps.
SMALL = dataclasses.replace(
    PARAMS, fanout_ttl_s=3.0, mcache_len=2, mcache_gossip=1, prune_backoff_s=4.0, unsubscribe_backoff_s=2.0, max_backoff_s=6.0,
    max_backoff_count=3, max_subscriptions_per_peer=3, max_mcache_size=40, seen_ttl_s=4.0,
)  # fmt: skip
PEERS = [b"p", b"q", b"r"]
NAMES = [b"a", b"b", b"c", b"d"]


def bench_of(params: GossipSubParams = PARAMS) -> tuple[Harness, CountedTopics]:
    topics = CountedTopics()
    return Harness(params, topics=topics), topics


def after(bench: Harness, seconds: float) -> None:
    for _ in range(int(seconds / bench.params.heartbeat_interval_s) + 1):
        bench.tick()


def end_of_all(bench: Harness) -> None:
    """Nobody subscribes any more, every peer goes, and all that had a time has had it."""
    for topic in bench.router.joined():
        bench.checked(bench.router.leave(topic))
    for peer in PEERS:
        bench.checked(bench.router.remove_peer(peer))
    params = bench.params
    after(bench, max(params.fanout_ttl_s, params.max_backoff_s, params.prune_backoff_s) + BACKOFF_CLEAN_TICKS)


# The two that leaked elsewhere


def test_subscribing_again_does_not_leak() -> None:
    bench, topics = bench_of()
    bench.add(b"p", TOPIC)
    bench.router.join(TOPIC)
    once = topics.holds[TOPIC]

    for _ in range(10):
        bench.checked(bench.router.join(TOPIC))
        bench.rpc(b"p", subscribe=[TOPIC, TOPIC])
    again = topics.holds[TOPIC]
    bench.rpc(b"p", unsubscribe=[TOPIC])
    bench.checked(bench.router.leave(TOPIC))

    assert once == again == 2  # the mesh's, and that of the topic's subscribers
    assert not topics.holds


def test_fanout_then_join_does_not_leak() -> None:
    bench, topics = bench_of()
    bench.add(b"p", TOPIC)
    bench.router.publish(a_message())
    assert bench.router.fanout_peers(TOPIC) == [b"p"]
    bench.tick(PARAMS.mcache_len)
    with_fanout = topics.holds[TOPIC]

    bench.checked(bench.router.join(TOPIC))
    joined = topics.holds[TOPIC]
    bench.rpc(b"p", unsubscribe=[TOPIC])
    bench.checked(bench.router.leave(TOPIC))

    assert with_fanout == joined == 2  # the fanout's or the mesh's, and that of the topic's subscribers
    assert not topics.holds


# What holds, and until when


def test_fanout_that_expires_gives_its_hold_back() -> None:
    bench, topics = bench_of()
    bench.add(b"p", TOPIC)
    bench.router.publish(a_message())
    bench.router.remove_peer(b"p")
    assert topics.holds[TOPIC] == 2  # the fanout's and the recent message's

    after(bench, PARAMS.fanout_ttl_s)

    assert not topics.holds


def test_topic_is_held_while_one_peer_is_left_that_subscribes_to_it() -> None:
    bench, topics = bench_of()
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)
    bench.add(b"q", TOPIC)
    bench.router.leave(TOPIC)

    held = []
    for gone in (b"p", b"q"):
        held.append(topics.holds[TOPIC])
        bench.checked(bench.router.remove_peer(gone))

    assert held == [1, 1]
    assert not topics.holds


def test_backoff_is_kept_though_nothing_else_holds_its_topic() -> None:
    bench, topics = bench_of(dataclasses.replace(PARAMS, prune_backoff_s=30.0))
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)
    bench.rpc(b"p", graft=[TOPIC])
    bench.rpc(b"p", prune={TOPIC: 30})
    bench.rpc(b"p", unsubscribe=[TOPIC])
    bench.checked(bench.router.leave(TOPIC))
    held = topics.holds[TOPIC]

    bench.rpc(b"p", subscribe=[TOPIC])
    bench.checked(bench.router.join(TOPIC))
    bench.tick()

    assert held == 1
    assert bench.router.mesh_peers(TOPIC) == []


def test_recent_messages_are_offered_after_a_topic_was_left_and_joined_again() -> None:
    bench, topics = bench_of(dataclasses.replace(PARAMS, D=0, D_low=0))
    bench.router.join(TOPIC)
    bench.router.publish(a_message())
    bench.checked(bench.router.leave(TOPIC))
    held = topics.holds[TOPIC]

    bench.checked(bench.router.join(TOPIC))
    bench.add(b"p", TOPIC)
    effects = bench.tick()

    assert held == 1
    assert [ihave.topic for ihave in sent(effects)[b"p"].control.ihave] == [TOPIC]


def test_verdict_on_a_message_of_a_topic_left_and_joined_meanwhile_still_counts() -> None:
    bench, _ = bench_of()
    bench.router.join(TOPIC)
    bench.add(b"p")
    [waiting] = validations(bench.rpc(b"p", publish=[a_message()]))
    bench.checked(bench.router.leave(TOPIC))
    bench.checked(bench.router.join(TOPIC))

    bench.checked(bench.router.validated(waiting.message_id, Verdict.ACCEPT))

    assert bench.router.stats.accepted == 1


def test_peer_is_told_of_a_prune_that_was_lost_though_the_topic_has_gone() -> None:
    bench, topics = bench_of(dataclasses.replace(PARAMS, unsubscribe_backoff_s=0.0))
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)
    bench.rpc(b"p", graft=[TOPIC])
    lost = sent(bench.checked(bench.router.leave(TOPIC)))[b"p"]
    bench.rpc(b"p", unsubscribe=[TOPIC])
    bench.now += 3.0
    bench.router.heartbeat()  # the first: backoffs are walked

    bench.router.undelivered(b"p", lost)
    gone = topics.lookup(TOPIC)
    effects = bench.tick()

    assert gone is None
    assert [prune.topic for prune in sent(effects)[b"p"].control.prune] == [TOPIC]


def test_strangers_subscriptions_hold_nothing_and_raise_nothing_when_no_hold_can_be_had() -> None:
    class Refusing(CountedTopics):
        def hold_known(self, topic: bytes) -> None:
            """As of a pool without room for one more count."""

    topics = Refusing()
    bench = Harness(topics=topics)
    topics.intern(TOPIC)  # by another process

    bench.add(b"p", TOPIC)
    bench.rpc(b"p", unsubscribe=[TOPIC])
    bench.add(b"q", TOPIC)

    assert topics.holds[TOPIC] == 1
    assert bench.router.topic_peers(TOPIC) == [b"q"]


# The dict that does it


def test_held_dict_holds_each_key_once_while_it_is_there() -> None:
    topics = CountedTopics()
    held: HeldDict[Any, int] = HeldDict(topics)
    one, two = topics.intern(b"one"), topics.intern(b"two")

    held[one] = 1
    held[one] = 2
    held.setdefault(two, 3)
    held.setdefault(two, 4)
    counts = dict(topics.holds)
    popped = (held.pop(one), held.pop(one))
    held.clear()

    assert counts == {b"one": 2, b"two": 2}
    assert popped == (2, None)
    assert topics.holds == {b"one": 1, b"two": 1}


@pytest.mark.parametrize(
    "change",
    [lambda held: held.update({}), lambda held: held.popitem(), lambda held: held.__ior__({}), lambda held: held.copy()],
)
def test_held_dict_refuses_what_would_pass_its_holds_by(change: Callable[[HeldDict[Any, int]], object]) -> None:
    with pytest.raises(TypeError, match="one by one"):
        change(HeldDict(CountedTopics()))


def test_held_dict_whose_hold_fails_is_unchanged() -> None:
    topics = CountedTopics()
    held: HeldDict[Any, int] = HeldDict(topics)
    gone = topics.intern(b"gone")
    topics.release(gone)

    with pytest.raises(KeyError):
        held[gone] = 1

    assert not held


# Any trace


peers = st.sampled_from(PEERS)
names = st.sampled_from(NAMES)


class AnyTrace(RuleBasedStateMachine):
    """Everything that can happen to a router. At every step each topic is held once for each table that has it, and when all
    is over by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.resources = ExitStack()
        self.bench: Harness
        self.waiting: list[MessageId] = []
        self.last: list[Effect] = []
        self.number = 0

    @initialize(flood_publish=st.sampled_from([False, False, True]), announce=st.booleans())
    def begin(self, flood_publish: bool, announce: bool) -> None:
        params = dataclasses.replace(SMALL, flood_publish=flood_publish)
        self.bench = Harness(params, topics=self.make_topics(), announce=announce)
        for peer in PEERS:
            self.did(self.bench.add(peer, NAMES[0], NAMES[1]))

    def make_topics(self) -> Any:
        self.counted = CountedTopics()
        return self.counted

    def held(self) -> dict[bytes, int]:
        return dict(self.counted.holds)

    def did(self, effects: list[Effect]) -> None:
        self.last = self.bench.checked(effects)
        self.waiting += [effect.message_id for effect in validations(effects)]

    @rule(peer=peers, protocol=st.sampled_from(["/meshsub/1.1.0", "/meshsub/1.0.0", "/floodsub/1.0.0"]), outbound=st.booleans())
    def connect(self, peer: bytes, protocol: str, outbound: bool) -> None:
        self.did(self.bench.router.add_peer(peer, protocol=protocol, outbound=outbound))

    @rule(peer=peers)
    def disconnect(self, peer: bytes) -> None:
        self.did(self.bench.router.remove_peer(peer))

    @rule(peer=peers, subscribe=st.lists(names, max_size=3), unsubscribe=st.lists(names, max_size=2))
    def hear_subscriptions(self, peer: bytes, subscribe: list[bytes], unsubscribe: list[bytes]) -> None:
        self.did(self.bench.rpc(peer, subscribe=subscribe, unsubscribe=unsubscribe))

    @rule(peer=peers, graft=st.lists(names, max_size=2), prune=st.dictionaries(names, st.integers(0, 10), max_size=2))
    def hear_control(self, peer: bytes, graft: list[bytes], prune: dict[bytes, int]) -> None:
        self.did(self.bench.rpc(peer, graft=graft, prune=prune))

    @rule(peer=peers, topic=names)
    def hear_message(self, peer: bytes, topic: bytes) -> None:
        self.number += 1
        self.did(self.bench.rpc(peer, publish=[a_message(self.number, topic)]))

    @precondition(lambda self: self.waiting)
    @rule(verdict=st.sampled_from(list(Verdict)))
    def judge(self, verdict: Verdict) -> None:
        self.did(self.bench.router.validated(self.waiting.pop(0), verdict))

    @rule(topic=names)
    def publish(self, topic: bytes) -> None:
        self.number += 1
        self.did(self.bench.router.publish(a_message(self.number, topic, author=b"self")))

    @rule(topic=names)
    def join(self, topic: bytes) -> None:
        self.did(self.bench.router.join(topic))

    @rule(topic=names)
    def leave(self, topic: bytes) -> None:
        self.did(self.bench.router.leave(topic))

    @rule()
    def lose_what_was_said(self) -> None:
        for peer, rpc in sent(self.last).items():
            self.bench.router.undelivered(peer, rpc)
        self.last = []

    @rule(count=st.integers(1, 5))
    def beat(self, count: int) -> None:
        self.last = self.bench.tick(count)

    @invariant()
    def each_entry_holds_once(self) -> None:
        if hasattr(self, "bench"):
            assert self.held() == self.bench.router.holds()

    def teardown(self) -> None:
        with self.resources:
            if hasattr(self, "bench"):
                end_of_all(self.bench)
                assert self.bench.router.holds() == self.held() == {}


class AnyTraceOfAPool(AnyTrace):
    """The same over a real pool, which counts the holds itself and lets the topics go."""

    def make_topics(self) -> Any:
        name = f"router-holds-{uuid4().hex}"
        self.pool = self.resources.enter_context(Pool.create(name, capacity=256, stripe_count=1, policy=Policy.refcount()))
        return PoolTopics(self.pool)

    def held(self) -> dict[bytes, int]:
        held = {topic.value: topic.holds for topic in self.pool.top(len(NAMES) + 1, by="holds")}
        assert self.pool.stats().holds == sum(held.values())
        return held


A_FEW = settings(max_examples=60, stateful_step_count=40)
FEWER = settings(max_examples=20, stateful_step_count=30)


def test_any_trace_that_ends_with_nobody_subscribed_leaves_no_holds() -> None:
    run_state_machine_as_test(AnyTrace, settings=A_FEW)


def test_any_trace_that_ends_with_nobody_subscribed_leaves_a_refcounted_pool_empty() -> None:
    run_state_machine_as_test(AnyTraceOfAPool, settings=FEWER)
