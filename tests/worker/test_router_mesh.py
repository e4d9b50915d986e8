"""Mesh membership: JOIN, LEAVE, GRAFT, PRUNE, heartbeat maintenance, backoff, D_out, explicit peers, fanout."""

import dataclasses

import pytest

from tests.worker.harness import (
    OTHER_TOPIC,
    PARAMS,
    TOPIC,
    Harness,
    a_message,
    announced,
    connections,
    grafted,
    misbehaviours,
    pruned,
    receivers,
    sent,
)
from worker.effects import Misbehaviour
from worker.params import GossipSubParams
from worker.router import BACKOFF_CLEAN_TICKS

WITH_D_OUT = dataclasses.replace(PARAMS, D=4, D_low=3, D_high=5, D_out=2)


# JOIN and LEAVE


def test_join_grafts_d_subscribers_and_announces_to_every_peer() -> None:
    bench = Harness()
    subscribers = bench.add_many(10, TOPIC)
    bench.add(b"elsewhere", OTHER_TOPIC)

    effects = bench.checked(bench.router.join(TOPIC))

    assert len(grafted(effects)) == PARAMS.D
    assert grafted(effects) <= set(subscribers)
    assert sorted(grafted(effects)) == bench.router.mesh_peers(TOPIC)
    assert announced(effects) == dict.fromkeys([*subscribers, b"elsewhere"], True)


def test_join_with_too_few_subscribers_grafts_all_of_them() -> None:
    bench = Harness()
    bench.add_many(2, TOPIC)

    effects = bench.router.join(TOPIC)

    assert grafted(effects) == {b"peer-000", b"peer-001"}


def test_join_takes_the_fanout_first_and_fills_up_to_d() -> None:
    bench = Harness()
    bench.add_many(2, TOPIC, name="early")
    bench.router.publish(a_message())
    fanout = bench.router.fanout_peers(TOPIC)
    bench.add_many(20, TOPIC, name="late")

    effects = bench.checked(bench.router.join(TOPIC))

    assert fanout == [b"early-000", b"early-001"]
    assert set(fanout) < grafted(effects)
    assert len(grafted(effects)) == PARAMS.D
    assert bench.router.fanout_peers(TOPIC) == []


def test_join_does_not_graft_fanout_peers_in_backoff() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.router.join(TOPIC)
    bench.router.leave(TOPIC)
    bench.router.publish(a_message())
    fanout = bench.router.fanout_peers(TOPIC)

    effects = bench.checked(bench.router.join(TOPIC))

    assert fanout == [b"p"]
    assert grafted(effects) == set()


def test_joining_twice_says_nothing_twice() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.router.join(TOPIC)

    assert bench.router.join(TOPIC) == []


def test_leave_prunes_the_mesh_with_the_unsubscribe_backoff_and_announces_to_every_peer() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.add(b"elsewhere")
    bench.router.join(TOPIC)

    effects = bench.checked(bench.router.leave(TOPIC))

    assert pruned(effects) == {b"p": 10}
    assert announced(effects) == {b"p": False, b"elsewhere": False}
    assert bench.router.joined() == []


def test_prunes_of_a_leave_go_out_in_the_order_of_peers() -> None:
    bench = Harness(dataclasses.replace(PARAMS, D_high=40), announce=False)
    bench.router.join(TOPIC)
    for peer in bench.add_many(40, TOPIC):
        bench.rpc(peer, graft=[TOPIC])

    effects = bench.router.leave(TOPIC)

    assert list(sent(effects)) == [f"peer-{index:03}".encode() for index in range(40)]


def test_leaving_a_topic_not_joined_says_nothing() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)

    assert bench.router.leave(TOPIC) == []


def test_rejoining_within_the_unsubscribe_backoff_does_not_graft_who_was_pruned() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.router.join(TOPIC)
    bench.router.leave(TOPIC)

    at_once = grafted(bench.checked(bench.router.join(TOPIC)))
    grafted_at = next(second for second in range(1, 100) if grafted(bench.tick()))

    assert at_once == set()
    assert grafted_at == 12  # 10 s of backoff and 2 heartbeats of slack


def test_framework_that_announces_is_not_announced_over() -> None:
    bench = Harness(announce=False)
    bench.add(b"p", TOPIC)

    effects = bench.router.join(TOPIC) + bench.router.add_peer(b"q") + bench.router.leave(TOPIC)

    assert announced(effects) == {}
    assert list(pruned(effects)) == [b"p"]


def test_new_peer_is_told_every_subscription() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    bench.router.join(OTHER_TOPIC)

    effects = bench.router.add_peer(b"p")

    assert [change.topic for change in sent(effects)[b"p"].subscriptions] == [TOPIC, OTHER_TOPIC]


# GRAFT and PRUNE


def test_graft_of_a_joined_topic_is_accepted_in_silence() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    bench.add(b"p", TOPIC)

    effects = bench.rpc(b"p", graft=[TOPIC])

    assert effects == []
    assert bench.router.mesh_peers(TOPIC) == [b"p"]


def test_graft_proves_a_subscription_whose_announcement_was_lost() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    bench.add(b"p")

    bench.rpc(b"p", graft=[TOPIC])

    assert bench.router.topic_peers(TOPIC) == [b"p"]
    assert bench.router.mesh_peers(TOPIC) == [b"p"]


@pytest.mark.parametrize("known", [False, True])
def test_graft_of_a_topic_not_joined_is_ignored(known: bool) -> None:
    bench = Harness()
    if known:
        bench.topics.intern(TOPIC)
    bench.add(b"p", TOPIC)

    assert bench.rpc(b"p", graft=[TOPIC]) == []


def test_graft_beyond_d_high_is_pruned_unless_we_dialled() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    for peer in bench.add_many(PARAMS.D_high, TOPIC):
        bench.rpc(peer, graft=[TOPIC])
    bench.add(b"inbound", TOPIC)
    bench.add(b"outbound", TOPIC, outbound=True)

    refused = bench.rpc(b"inbound", graft=[TOPIC])
    accepted = bench.rpc(b"outbound", graft=[TOPIC])

    assert pruned(refused) == {b"inbound": 60}
    assert misbehaviours(refused) == []
    assert accepted == []
    assert b"outbound" in bench.router.mesh_peers(TOPIC)


def test_prune_removes_and_is_not_grafted_back_until_its_backoff_and_the_slack_are_over() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.router.join(TOPIC)

    effects = bench.rpc(b"p", prune={TOPIC: 7})
    mesh = bench.router.mesh_peers(TOPIC)
    grafted_at = next(second for second in range(1, 100) if grafted(bench.tick()))

    assert effects == []
    assert mesh == []
    assert grafted_at == 9


@pytest.mark.parametrize(("stated", "backoff_s"), [(0, 60.0), (30, 30.0), (10**19, 3_600.0)])
def test_backoff_of_a_prune_is_what_it_states_within_reason(stated: int, backoff_s: float) -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.router.join(TOPIC)
    bench.rpc(b"p", prune={TOPIC: stated})

    bench.now += backoff_s + 1.9
    too_early = grafted(bench.router.heartbeat())
    bench.now += 0.2
    in_time = grafted(bench.router.heartbeat())

    assert too_early == set()
    assert in_time == {b"p"}


def test_graft_within_the_backoff_is_pruned_penalised_and_extends_it() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.router.join(TOPIC)
    bench.rpc(b"p", prune={TOPIC: 60})
    bench.now += 59

    effects = bench.rpc(b"p", graft=[TOPIC])
    bench.now += 59
    again = bench.rpc(b"p", graft=[TOPIC])
    bench.now += 60
    after = bench.rpc(b"p", graft=[TOPIC])

    assert pruned(effects) == {b"p": 60}
    assert misbehaviours(effects) == [(b"p", Misbehaviour.GRAFT_IN_BACKOFF)]
    assert pruned(again) == {b"p": 60}
    assert after == []
    assert bench.router.mesh_peers(TOPIC) == [b"p"]


def test_graft_right_after_the_prune_is_a_flood() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.router.join(TOPIC)
    bench.rpc(b"p", prune={TOPIC: 60})
    bench.now += 9

    effects = bench.rpc(b"p", graft=[TOPIC])

    assert misbehaviours(effects) == [(b"p", Misbehaviour.GRAFT_IN_BACKOFF), (b"p", Misbehaviour.GRAFT_FLOOD)]


def test_reconnecting_does_not_escape_a_backoff() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.router.join(TOPIC)
    bench.rpc(b"p", prune={TOPIC: 60})
    bench.router.remove_peer(b"p")
    bench.add(b"p", TOPIC)

    effects = bench.rpc(b"p", graft=[TOPIC])

    assert list(pruned(effects)) == [b"p"]


def test_ended_backoffs_are_forgotten() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    for peer in bench.add_many(5, TOPIC):
        bench.rpc(peer, prune={TOPIC: 1})
        bench.router.remove_peer(peer)
    before = bench.router.sizes().backoffs

    bench.tick(BACKOFF_CLEAN_TICKS + 1)

    assert before == 5
    assert bench.router.sizes().backoffs == 0


def test_v1_0_peer_is_pruned_without_a_backoff() -> None:
    bench = Harness()
    bench.add(b"old", TOPIC, protocol="/meshsub/1.0.0")
    bench.router.join(TOPIC)

    effects = bench.router.leave(TOPIC)

    assert pruned(effects) == {b"old": 0}


def test_unsubscribed_and_removed_peers_leave_the_mesh() -> None:
    bench = Harness()
    bench.add_many(3, TOPIC)
    bench.router.join(TOPIC)

    bench.rpc(b"peer-000", unsubscribe=[TOPIC])
    bench.router.remove_peer(b"peer-001")
    bench.checked([])

    assert bench.router.mesh_peers(TOPIC) == [b"peer-002"]
    assert bench.router.topic_peers(TOPIC) == [b"peer-002"]


# Heartbeat


def test_mesh_below_d_low_is_filled_to_d() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    bench.add_many(10, TOPIC)
    bench.rpc(b"peer-000", graft=[TOPIC])

    effects = bench.tick()

    assert len(grafted(effects)) == PARAMS.D - 1
    assert len(bench.router.mesh_peers(TOPIC)) == PARAMS.D


@pytest.mark.parametrize("size", range(PARAMS.D_low, PARAMS.D_high + 1))
def test_mesh_from_d_low_to_d_high_is_left_alone(size: int) -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    peers = bench.add_many(10, TOPIC)
    for peer in peers[:size]:
        bench.rpc(peer, graft=[TOPIC])

    effects = bench.tick()

    assert effects == []
    assert bench.router.mesh_peers(TOPIC) == peers[:size]


def test_mesh_above_d_high_is_pruned_to_d_and_both_sides_back_off() -> None:
    bench = Harness()
    bench.router.join(TOPIC)
    for peer in bench.add_many(7, TOPIC, outbound=True):
        bench.rpc(peer, graft=[TOPIC])

    effects = bench.tick()
    gone = list(pruned(effects))
    regraft = bench.rpc(gone[0], graft=[TOPIC])

    assert len(bench.router.mesh_peers(TOPIC)) == PARAMS.D
    assert set(pruned(effects).values()) == {60}
    assert len(gone) == 7 - PARAMS.D
    assert misbehaviours(regraft)[0] == (gone[0], Misbehaviour.GRAFT_IN_BACKOFF)


def test_floodsub_peer_is_never_grafted_nor_heard_on_control() -> None:
    bench = Harness()
    bench.add(b"flood", TOPIC, protocol="/floodsub/1.0.0")
    bench.router.join(TOPIC)

    effects = bench.rpc(b"flood", graft=[TOPIC])

    assert effects == []
    assert grafted(bench.tick()) == set()
    assert bench.router.mesh_peers(TOPIC) == []


def test_peer_that_comes_back_with_another_protocol_is_what_it_is_now() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC, protocol="/floodsub/1.0.0")
    bench.router.join(TOPIC)
    bench.router.remove_peer(b"p")
    bench.add(b"p", TOPIC, protocol="/meshsub/1.1.0")

    effects = bench.tick()
    published = bench.router.publish(a_message())

    assert grafted(effects) == {b"p"}
    assert sent(published)[b"p"].publish == (a_message(),)


# D_out


@pytest.mark.parametrize("seed", range(20))
def test_pruning_keeps_d_out_outbound_peers(seed: int) -> None:
    bench = Harness(WITH_D_OUT, seed=seed)
    bench.router.join(TOPIC)
    bench.add_many(WITH_D_OUT.D_high, TOPIC, name="inbound")
    bench.add_many(2, TOPIC, name="outbound", outbound=True)
    for peer in bench.router.topic_peers(TOPIC):
        bench.rpc(peer, graft=[TOPIC])
    size_before = len(bench.router.mesh_peers(TOPIC))

    bench.tick()

    mesh = bench.router.mesh_peers(TOPIC)
    assert size_before == WITH_D_OUT.D_high + 2
    assert len(mesh) == WITH_D_OUT.D
    assert {b"outbound-000", b"outbound-001"} <= set(mesh)


def test_full_mesh_without_outbound_peers_grafts_d_out_of_them() -> None:
    bench = Harness(WITH_D_OUT)
    bench.router.join(TOPIC)
    for peer in bench.add_many(3, TOPIC, name="inbound"):
        bench.rpc(peer, graft=[TOPIC])
    bench.add_many(5, TOPIC, name="outbound", outbound=True)

    effects = bench.tick()

    assert len(grafted(effects)) == 2
    assert all(peer.startswith(b"outbound") for peer in grafted(effects))


def test_without_outbound_subscribers_the_quota_asks_for_nothing() -> None:
    bench = Harness(WITH_D_OUT)
    bench.router.join(TOPIC)
    for peer in bench.add_many(3, TOPIC, name="inbound"):
        bench.rpc(peer, graft=[TOPIC])
    bench.add_many(5, TOPIC, name="more")

    assert grafted(bench.tick()) == set()


# Explicit peers


def test_explicit_peer_stays_out_of_the_mesh_and_gets_every_message() -> None:
    bench = Harness(explicit=[b"friend"])
    bench.add(b"friend", TOPIC)
    bench.add(b"p", TOPIC)
    bench.router.join(TOPIC)
    bench.tick()

    effects = bench.receive(b"p", a_message())

    assert bench.router.mesh_peers(TOPIC) == [b"p"]
    assert receivers(effects, a_message()) == {b"friend"}


def test_graft_of_an_explicit_peer_is_refused_with_prune() -> None:
    bench = Harness(explicit=[b"friend"])
    bench.add(b"friend", TOPIC)
    bench.router.join(TOPIC)

    effects = bench.rpc(b"friend", graft=[TOPIC])

    assert list(pruned(effects)) == [b"friend"]
    assert misbehaviours(effects) == [(b"friend", Misbehaviour.GRAFT_EXPLICIT)]
    assert bench.router.mesh_peers(TOPIC) == []


def test_missing_explicit_peers_are_dialled_at_once_and_every_direct_connect_ticks() -> None:
    bench = Harness(dataclasses.replace(PARAMS, direct_connect_ticks=5), explicit=[b"friend", b"companion"])

    dialled = [connections(bench.tick()) for _ in range(6)]
    bench.add(b"friend")
    later = [connections(bench.tick()) for _ in range(5)]

    assert dialled == [[b"companion", b"friend"], [], [], [], [], [b"companion", b"friend"]]
    assert later == [[], [], [], [], [b"companion"]]


# Fanout


def test_publishing_unjoined_fills_a_fanout_of_d_that_stays_the_same() -> None:
    bench = Harness()
    bench.add_many(10, TOPIC)

    first = receivers(bench.checked(bench.router.publish(a_message(1))), a_message(1))
    second = receivers(bench.checked(bench.router.publish(a_message(2))), a_message(2))

    assert len(first) == PARAMS.D
    assert first == second == set(bench.router.fanout_peers(TOPIC))


def test_fanout_ends_fanout_ttl_after_the_last_publish() -> None:
    bench = Harness()
    bench.add_many(10, TOPIC)
    bench.router.publish(a_message(1))
    bench.now += 59
    bench.router.publish(a_message(2))
    bench.now += 59

    bench.tick()
    kept = bench.router.fanout_peers(TOPIC)
    bench.tick()

    assert len(kept) == PARAMS.D
    assert bench.router.fanout_peers(TOPIC) == []


def test_fanout_loses_who_unsubscribes_and_is_filled_at_the_heartbeat() -> None:
    bench = Harness()
    bench.add_many(10, TOPIC)
    bench.router.publish(a_message())
    gone = bench.router.fanout_peers(TOPIC)[0]

    bench.rpc(gone, unsubscribe=[TOPIC])
    without = bench.router.fanout_peers(TOPIC)
    bench.tick()

    assert gone not in without
    assert len(without) == PARAMS.D - 1
    assert len(bench.router.fanout_peers(TOPIC)) == PARAMS.D


def test_fanout_never_grafts() -> None:
    bench = Harness()
    bench.add_many(10, TOPIC)

    effects = bench.router.publish(a_message()) + bench.tick()

    assert grafted(effects) == set()


# Undelivered


def test_undelivered_graft_is_said_again_with_the_next_rpc() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.router.undelivered(b"p", sent(bench.router.join(TOPIC))[b"p"])

    effects = bench.checked(bench.router.publish(a_message()))

    assert grafted(effects) == {b"p"}
    assert receivers(effects, a_message()) == {b"p"}
    assert announced(effects) == {b"p": True}
    assert bench.tick() == []


def test_undelivered_graft_that_is_no_longer_true_becomes_a_prune() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    lost = sent(bench.router.join(TOPIC))[b"p"]
    bench.router.undelivered(b"p", lost)
    bench.router.undelivered(b"p", sent(bench.router.leave(TOPIC))[b"p"])

    effects = bench.tick()

    assert grafted(effects) == set()
    assert pruned(effects) == {b"p": 9}  # what is left of the unsubscribe backoff
    assert announced(effects) == {b"p": False}


def test_undelivered_rpc_to_a_peer_that_left_is_forgotten() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    lost = sent(bench.router.join(TOPIC))[b"p"]
    bench.router.remove_peer(b"p")

    bench.router.undelivered(b"p", lost)

    assert bench.tick() == []


def test_undelivered_rpc_is_forgotten_with_its_peer() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)
    bench.router.undelivered(b"p", sent(bench.router.join(TOPIC))[b"p"])

    bench.router.remove_peer(b"p")
    bench.router.add_peer(b"p")

    assert bench.tick() == []


# Parameters


@pytest.mark.parametrize(
    "change",
    [
        {"D_low": 7}, {"D_high": 5}, {"D_low": -1}, {"D_out": 4}, {"D_out": -1}, {"mcache_gossip": 6},
        {"mcache_gossip": 0}, {"gossip_factor": 1.5}, {"heartbeat_interval_s": 0.0}, {"max_ids_per_rpc": 10},
    ],
)
def test_parameters_that_the_specification_forbids_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(GossipSubParams(), **change)  # type: ignore[arg-type]  # names and values vary together
