"""IHAVE and IWANT: who is told what, who is answered, and the caps on both."""

import dataclasses

import pytest

from tests.worker.harness import (
    OTHER_TOPIC,
    PARAMS,
    TOPIC,
    Harness,
    a_message,
    misbehaviours,
    offered,
    receivers,
    sent,
    wanted,
)
from worker.effects import Misbehaviour
from worker.router import from_and_seqno


def ids(count: int, name: str = "id") -> list[bytes]:
    return [f"{name}-{number}".encode() for number in range(count)]


# Emission


def test_gossip_goes_to_d_lazy_subscribers_outside_the_mesh() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    others = set(bench.add_many(10, TOPIC))
    bench.add(b"elsewhere", OTHER_TOPIC)
    bench.add(b"flood", TOPIC, protocol="/floodsub/1.0.0")
    for peer in (b"peer-000", b"peer-001"):
        bench.rpc(peer, graft=[TOPIC])
    bench.router.publish(a_message())

    effects = bench.tick()

    assert len(offered(effects)) == PARAMS.D_lazy
    assert set(offered(effects)) <= others - {b"peer-000", b"peer-001"}
    assert set(offered(effects).values()) == {(from_and_seqno(a_message()),)}


def test_gossip_factor_takes_over_where_there_are_many_peers() -> None:
    bench = Harness(dataclasses.replace(PARAMS, gossip_factor=0.25))
    bench.router.join(TOPIC)
    bench.add_many(42, TOPIC)
    for peer in (b"peer-000", b"peer-001"):
        bench.rpc(peer, graft=[TOPIC])
    bench.router.publish(a_message())

    assert len(offered(bench.tick())) == 10


def test_message_is_gossiped_for_mcache_gossip_heartbeats_and_served_for_mcache_len() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)
    bench.add(b"q", TOPIC)
    for peer in (b"p", b"q"):
        bench.rpc(peer, prune={TOPIC: 60})  # keeps them out of the mesh
    bench.router.publish(a_message())

    gossiped, served = [], []
    for number in range(6):
        gossiped.append(bool(offered(bench.tick())))
        asker = f"asker-{number}".encode()  # a new one each time, for each is answered only so often
        bench.add(asker)
        served.append(bool(receivers(bench.rpc(asker, iwant=[from_and_seqno(a_message())]), a_message())))

    assert gossiped == [True, True, True, False, False, False]
    assert served == [True, True, True, True, False, False]


def test_fanout_topics_are_gossiped_to_others_than_the_fanout() -> None:
    bench = Harness()
    subscribers = set(bench.add_many(10, TOPIC))
    fanout = receivers(bench.router.publish(a_message()), a_message())

    effects = bench.tick()

    assert len(offered(effects)) == PARAMS.D_lazy
    assert set(offered(effects)) <= subscribers - fanout


def test_explicit_peers_get_no_gossip() -> None:
    bench = Harness(explicit=[b"friend"])
    bench.router.join(TOPIC)
    bench.add(b"friend", TOPIC)
    bench.router.publish(a_message())

    assert offered(bench.tick()) == {}


def test_gossip_of_all_topics_to_a_peer_is_one_rpc_of_at_most_max_ihave_length_ids() -> None:
    bench = Harness(dataclasses.replace(PARAMS, max_ihave_length=5))
    topics = [f"topic-{number}".encode() for number in range(4)]
    bench.add(b"p", *topics)
    bench.add(b"q")
    for topic in topics:
        bench.router.join(topic)
        bench.rpc(b"p", prune={topic: 60})
        for number in range(2):
            bench.router.publish(a_message(number, topic, author=topic))

    effects = bench.tick()

    assert len(effects) == 1
    assert [len(ihave.message_ids) for ihave in sent(effects)[b"p"].control.ihave] == [2, 2, 1]


# IHAVE


def test_ihave_is_answered_with_iwant_for_what_was_not_seen() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)
    bench.receive(b"p", a_message())

    effects = bench.rpc(b"p", ihave={TOPIC: [from_and_seqno(a_message()), b"new", b"new"]})

    assert wanted(effects, b"p") == [b"new"]


def test_message_at_validation_is_not_asked_for() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)
    bench.rpc(b"p", publish=[a_message()])

    assert bench.rpc(b"p", ihave={TOPIC: [from_and_seqno(a_message())]}) == []


@pytest.mark.parametrize("known", [False, True])
def test_ihave_of_a_topic_not_joined_is_ignored(known: bool) -> None:
    bench = Harness()
    if known:
        bench.topics.intern(TOPIC)
    bench.add(b"p", TOPIC)

    assert bench.rpc(b"p", ihave={TOPIC: [b"new"]}) == []


def test_ihaves_beyond_max_ihave_messages_are_ignored_until_the_next_heartbeat() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)

    effects = [bench.rpc(b"p", ihave={TOPIC: [f"new-{number}".encode()]}) for number in range(11)]
    bench.tick()
    later = bench.rpc(b"p", ihave={TOPIC: [b"newer"]})

    assert [len(wanted(answer, b"p")) for answer in effects] == [1] * 10 + [0]
    assert misbehaviours(effects[-1]) == [(b"p", Misbehaviour.IHAVE_FLOOD)]
    assert wanted(later, b"p") == [b"newer"]


def test_at_most_max_ihave_length_ids_are_asked_of_a_peer_in_a_heartbeat() -> None:
    bench = Harness(dataclasses.replace(PARAMS, max_ihave_length=100))
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)
    bench.add(b"q", TOPIC)

    first = bench.rpc(b"p", ihave={TOPIC: ids(60)})
    second = bench.rpc(b"p", ihave={TOPIC: ids(60, "more")})
    other = bench.rpc(b"q", ihave={TOPIC: ids(60, "other")})

    assert len(wanted(first, b"p")) == 60
    assert len(set(wanted(second, b"p"))) == 40
    assert misbehaviours(first + other) == []
    assert misbehaviours(second) == [(b"p", Misbehaviour.IHAVE_FLOOD)]
    assert len(wanted(other, b"q")) == 60


# IWANT


def test_iwant_is_answered_with_what_is_cached_once_however_often_it_asks() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)
    bench.router.publish(a_message(1))
    bench.router.publish(a_message(2))

    effects = bench.rpc(b"p", iwant=[from_and_seqno(a_message(1)), b"unknown", from_and_seqno(a_message(1))])

    assert sent(effects)[b"p"].publish == (a_message(1),)
    assert misbehaviours(effects) == []


def test_message_is_retransmitted_to_a_peer_gossip_retransmission_times() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)
    bench.add(b"q", TOPIC)
    bench.router.publish(a_message())

    answers = [bench.rpc(b"p", iwant=[from_and_seqno(a_message())]) for _ in range(5)]
    other = bench.rpc(b"q", iwant=[from_and_seqno(a_message())])

    assert [len(sent(answer)) for answer in answers] == [1, 1, 1, 0, 0]
    assert [misbehaviours(answer) for answer in answers[3:]] == [[(b"p", Misbehaviour.IWANT_FLOOD)]] * 2
    assert len(sent(other)) == 1
