"""Who subscribes to what: topics of strangers, late joins, and the bounds on what one peer or one RPC can say."""

import dataclasses

import pytest

from tests.worker.harness import (
    OTHER_TOPIC,
    PARAMS,
    TOPIC,
    Harness,
    a_message,
    grafted,
    misbehaviours,
    pruned,
    receivers,
    sent,
    validations,
    wanted,
)
from worker.effects import Misbehaviour
from worker.messages import RPC, ControlGraft, ControlIHave, ControlIWant, ControlMessage, ControlPrune, SubOpts
from worker.router import from_and_seqno
from worker.topics import BytesTopics

STRANGE = [f"/strange/{number}".encode() for number in range(100)]


# Topics of strangers


def test_topics_that_only_strangers_name_are_never_interned() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    bench.add(b"p", *STRANGE[:50])

    bench.rpc(
        b"p",
        unsubscribe=STRANGE[10:20],
        publish=[a_message(number, topic) for number, topic in enumerate(STRANGE)],
        ihave={topic: [b"id"] for topic in STRANGE},
        graft=STRANGE,
        prune=dict.fromkeys(STRANGE, 60),
    )
    bench.router.leave(STRANGE[0])
    bench.tick()

    assert [topic for topic in STRANGE if bench.topics.lookup(topic) is not None] == []


def test_late_join_finds_the_peers_that_subscribed_before_anyone_here_cared() -> None:
    bench = Harness()
    bench.add(b"p", OTHER_TOPIC, TOPIC)
    bench.add(b"q", TOPIC)

    effects = bench.checked(bench.router.join(TOPIC))

    assert grafted(effects) == {b"p", b"q"}


def test_late_publish_finds_the_peers_that_subscribed_before_anyone_here_cared() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)

    effects = bench.checked(bench.router.publish(a_message()))

    assert receivers(effects, a_message()) == {b"p"}


def test_late_join_does_not_find_peers_that_unsubscribed_or_left() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.add(b"q", TOPIC)
    bench.rpc(b"p", unsubscribe=[TOPIC])
    bench.router.remove_peer(b"q")

    assert grafted(bench.checked(bench.router.join(TOPIC))) == set()
    assert bench.router.topic_peers(TOPIC) == []


@pytest.mark.parametrize("last", ["subscribe", "unsubscribe", "join"])
def test_topic_interned_by_another_process_meanwhile_keeps_its_subscribers(last: str) -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.add(b"q", TOPIC)
    bench.topics.intern(TOPIC)  # as another process of the host does to a shared pool
    before = bench.router.topic_peers(TOPIC)

    if last == "subscribe":
        bench.rpc(b"p", subscribe=[TOPIC])
    elif last == "unsubscribe":
        bench.rpc(b"p", unsubscribe=[TOPIC])
    bench.checked(bench.router.join(TOPIC))

    expected = [b"q"] if last == "unsubscribe" else [b"p", b"q"]
    assert before == [b"p", b"q"]
    assert bench.router.topic_peers(TOPIC) == expected
    assert bench.router.mesh_peers(TOPIC) == expected


def test_rejoined_topic_still_has_its_subscribers() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.router.join(TOPIC)
    bench.router.leave(TOPIC)
    bench.add(b"q", TOPIC)

    effects = bench.checked(bench.router.join(TOPIC))

    assert grafted(effects) == {b"q"}
    assert bench.router.topic_peers(TOPIC) == [b"p", b"q"]


def test_peer_added_again_starts_afresh() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC, OTHER_TOPIC)
    bench.router.join(TOPIC)

    bench.router.add_peer(b"p")
    bench.checked([])

    assert bench.router.mesh_peers(TOPIC) == []
    assert bench.router.topic_peers(TOPIC) == bench.router.topic_peers(OTHER_TOPIC) == []


class SmallTopics(BytesTopics):
    """As a pool that has no room left once it is `full`."""

    full = False

    def intern(self, topic: bytes) -> bytes:
        if self.full:
            raise MemoryError(topic)
        return super().intern(topic)


def test_full_pool_refuses_join_and_publish_and_changes_nothing() -> None:
    topics = SmallTopics()
    bench = Harness(topics=topics)
    bench.add(b"p", TOPIC)
    topics.full = True

    with pytest.raises(MemoryError):
        bench.router.join(TOPIC)
    with pytest.raises(MemoryError):
        bench.router.publish(a_message())

    assert bench.router.joined() == []
    assert bench.router.topic_peers(TOPIC) == [b"p"]
    assert bench.router.stats.published == 0
    assert bench.tick() == []


# Bounds on one peer


def test_subscriptions_beyond_the_peers_bound_are_refused_known_or_not() -> None:
    bench = Harness(dataclasses.replace(PARAMS, max_subscriptions_per_peer=10))
    bench.router.join(TOPIC)
    bench.add(b"p")

    effects = bench.rpc(b"p", subscribe=[*STRANGE[:12], TOPIC])
    graft = bench.rpc(b"p", graft=[TOPIC])

    assert misbehaviours(effects) == [(b"p", Misbehaviour.TOO_MANY_SUBSCRIPTIONS)]
    assert bench.router.stats.refused_subscriptions == 3
    assert [topic for topic in STRANGE if bench.router.topic_peers(topic)] == STRANGE[:10]
    assert bench.router.topic_peers(TOPIC) == []
    assert list(pruned(graft)) == [b"p"]


def test_subscribing_again_costs_nothing_and_unsubscribing_makes_room() -> None:
    bench = Harness(dataclasses.replace(PARAMS, max_subscriptions_per_peer=10))
    bench.add(b"p", *STRANGE[:10])

    again = bench.rpc(b"p", subscribe=STRANGE[:10])
    replaced = bench.rpc(b"p", unsubscribe=STRANGE[:1]) + bench.rpc(b"p", subscribe=[TOPIC])

    assert misbehaviours(again + replaced) == []
    assert bench.router.topic_peers(TOPIC) == [b"p"]


def test_topic_interned_by_another_process_meanwhile_is_one_subscription_still() -> None:
    bench = Harness(dataclasses.replace(PARAMS, max_subscriptions_per_peer=2))
    bench.add(b"p", TOPIC)
    bench.topics.intern(TOPIC)

    effects = bench.rpc(b"p", subscribe=[TOPIC, OTHER_TOPIC])

    assert misbehaviours(effects) == []
    assert bench.router.topic_peers(OTHER_TOPIC) == [b"p"]


# Bounds on one RPC


def send(bench: Harness, rpc: RPC) -> list[tuple[bytes, Misbehaviour]]:
    """The misbehaviours that the peer p's RPC makes known."""
    return misbehaviours(bench.checked(bench.router.handle_rpc(b"p", rpc)))


def test_entries_beyond_an_rpcs_bounds_are_not_looked_at_and_cost_the_peer() -> None:
    bench = Harness(
        dataclasses.replace(
            PARAMS, max_subscriptions_per_rpc=3, max_messages_per_rpc=3, max_control_per_rpc=3, max_ids_per_rpc=5,
            max_ihave_length=5,
        )
    )
    for topic in STRANGE[:5]:
        bench.router.join(topic)
    bench.add(b"p")

    subscribing = bench.rpc(b"p", subscribe=STRANGE[:4])
    publishing = bench.rpc(b"p", publish=[a_message(number, STRANGE[0]) for number in range(4)])
    grafting = bench.rpc(b"p", graft=STRANGE[1:5])
    having = bench.rpc(b"p", ihave={STRANGE[0]: [b"1", b"2", b"3"], STRANGE[1]: [b"4", b"5", b"6"], STRANGE[2]: [b"7"]})

    assert misbehaviours(subscribing) == [(b"p", Misbehaviour.TOO_MANY_SUBSCRIPTIONS)]
    assert [bool(bench.router.topic_peers(topic)) for topic in STRANGE[:5]] == [True, True, True, True, False]  # 4 by GRAFT
    assert misbehaviours(publishing) == [(b"p", Misbehaviour.TOO_MANY_MESSAGES)]
    assert len(validations(publishing)) == 3
    assert misbehaviours(grafting) == [(b"p", Misbehaviour.TOO_MANY_CONTROL)]
    assert [bool(bench.router.mesh_peers(topic)) for topic in STRANGE[:5]] == [False, True, True, True, False]
    assert misbehaviours(having) == [(b"p", Misbehaviour.TOO_MANY_IDS)]
    assert wanted(having, b"p") == [b"1", b"2", b"3", b"4", b"5"]


def test_iwant_ids_beyond_the_bound_are_not_served() -> None:
    bench = Harness(dataclasses.replace(PARAMS, max_ids_per_rpc=5, max_ihave_length=5))
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)
    bench.router.publish(a_message())

    effects = bench.rpc(b"p", iwant=[b"1", b"2", b"3", b"4", b"5", from_and_seqno(a_message())])

    assert misbehaviours(effects) == [(b"p", Misbehaviour.TOO_MANY_IDS)]
    assert sent(effects) == {}


OVERLONG = b"t" * (PARAMS.max_topic_size + 1)


@pytest.mark.parametrize(
    "rpc",
    [
        RPC(subscriptions=(SubOpts(subscribe=True, topic=OVERLONG),)),
        RPC(subscriptions=(SubOpts(subscribe=False, topic=OVERLONG),)),
        RPC(publish=(a_message(topic=OVERLONG),)),
        RPC(control=ControlMessage(ihave=(ControlIHave(OVERLONG, (b"id",)),))),
        RPC(control=ControlMessage(graft=(ControlGraft(OVERLONG),))),
        RPC(control=ControlMessage(prune=(ControlPrune(OVERLONG, 60),))),
    ],
)
def test_overlong_topic_costs_the_peer_and_leaves_nothing_behind(rpc: RPC) -> None:
    bench = Harness()
    bench.add(b"p")

    reasons = send(bench, rpc)

    assert reasons == [(b"p", Misbehaviour.OVERLONG_TOPIC)]
    assert bench.router.topic_peers(OVERLONG) == []


def test_good_entries_beside_overlong_ones_still_count() -> None:
    bench = Harness()
    bench.add(b"p")

    effects = bench.rpc(b"p", subscribe=[OVERLONG, TOPIC, b"", OVERLONG])

    assert misbehaviours(effects) == [(b"p", Misbehaviour.OVERLONG_TOPIC)]
    assert bench.router.topic_peers(TOPIC) == bench.router.topic_peers(b"") == [b"p"]


def test_thousand_faults_of_one_kind_in_an_rpc_cost_the_peer_once() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)
    bench.router.publish(a_message())
    control = ControlMessage(iwant=(ControlIWant((b"id",)),) * 1_000, prune=(ControlPrune(TOPIC, 60),) * 1_000)
    grafts = ControlMessage(graft=(ControlGraft(TOPIC),) * 1_000)

    first = send(bench, RPC(control=control))
    second = bench.router.handle_rpc(b"p", RPC(control=grafts))

    assert first == []
    assert misbehaviours(second) == [(b"p", Misbehaviour.GRAFT_IN_BACKOFF), (b"p", Misbehaviour.GRAFT_FLOOD)]
    assert sent(second)[b"p"].control.prune == (ControlPrune(TOPIC, 60),)
