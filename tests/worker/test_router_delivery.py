"""The way of a message: validation, seen cache, delivery, forwarding, publishing, message ids."""

import dataclasses
import hashlib

import pytest

from tests.worker.harness import (
    OTHER_TOPIC,
    PARAMS,
    TOPIC,
    Harness,
    a_message,
    delivered,
    misbehaviours,
    receivers,
    sent,
    validations,
    wanted,
)
from worker.effects import Deliver, Misbehaved, Misbehaviour, Validate, Verdict
from worker.messages import RPC, Message, MessageId


def meshed(bench: Harness, *peers: bytes) -> None:
    """The bench joins TOPIC, and these peers are its mesh."""
    bench.router.join(TOPIC)
    for peer in peers:
        bench.add(peer, TOPIC)
        bench.rpc(peer, graft=[TOPIC])


# Forwarding


def test_new_message_is_validated_then_delivered_and_forwarded_to_the_rest_of_the_mesh() -> None:
    bench = Harness()
    meshed(bench, b"p", b"q", b"r")
    bench.add(b"not in the mesh", TOPIC)

    before = bench.rpc(b"p", publish=[a_message()])
    after = bench.checked(bench.router.validated(b"author" + (0).to_bytes(8, "big"), Verdict.ACCEPT))

    message_id = b"author" + (0).to_bytes(8, "big")
    assert before == [Validate(b"p", message_id, a_message())]
    assert after[0] == Deliver(b"p", message_id, a_message())
    assert receivers(after, a_message()) == {b"q", b"r"}


def test_message_goes_to_floodsub_peers_of_the_topic() -> None:
    bench = Harness()
    meshed(bench, b"p")
    bench.add(b"flood", TOPIC, protocol="/floodsub/1.0.0")
    bench.add(b"flood elsewhere", OTHER_TOPIC, protocol="/floodsub/1.0.0")

    forwarded = bench.receive(b"p", a_message(1))
    published = bench.router.publish(a_message(2))

    assert receivers(forwarded, a_message(1)) == {b"flood"}
    assert receivers(published, a_message(2)) == {b"flood", b"p"}


def test_message_goes_out_in_the_order_of_peers() -> None:
    bench = Harness(dataclasses.replace(PARAMS, D_high=40))
    mesh = [f"mesh-{index:03}".encode() for index in range(40)]
    flood = [f"peer-{index:03}".encode() for index in range(40)]
    meshed(bench, *mesh)
    for peer in flood:
        bench.add(peer, TOPIC, protocol="/floodsub/1.0.0")

    effects = bench.router.publish(a_message())

    assert list(sent(effects)) == flood + mesh


def test_message_is_never_sent_to_who_sent_or_wrote_it() -> None:
    bench = Harness()
    meshed(bench, b"p", b"q", b"author")

    validating = bench.rpc(b"p", publish=[a_message()]) + bench.rpc(b"q", publish=[a_message()])
    effects = bench.router.validated(validations(validating)[0].message_id, Verdict.ACCEPT)

    assert len(validations(validating)) == 1
    assert delivered(effects) == [a_message()]
    assert sent(effects) == {}


def test_message_seen_before_ends_there_until_seen_ttl_is_over() -> None:
    bench = Harness()
    meshed(bench, b"p", b"q")
    bench.receive(b"p", a_message())

    bench.now += 119
    early = bench.receive(b"q", a_message())
    bench.now += 1
    late = bench.receive(b"q", a_message())

    assert early == []
    assert bench.router.stats.duplicates == 1
    assert delivered(late) == [a_message()]


@pytest.mark.parametrize("known", [False, True])
def test_message_on_a_topic_not_joined_is_dropped(known: bool) -> None:
    bench = Harness()
    meshed(bench, b"p", b"q")
    if known:
        bench.topics.intern(OTHER_TOPIC)

    effects = bench.rpc(b"p", publish=[a_message(topic=OTHER_TOPIC)])

    assert effects == []
    assert bench.router.stats.unjoined == 1


def test_message_left_behind_while_it_was_validated_goes_nowhere() -> None:
    bench = Harness()
    meshed(bench, b"p", b"q")
    (validate,) = validations(bench.rpc(b"p", publish=[a_message()]))
    bench.router.leave(TOPIC)

    assert bench.router.validated(validate.message_id, Verdict.ACCEPT) == []


def test_message_ids_are_forgotten_after_seen_ttl() -> None:
    bench = Harness()
    meshed(bench, b"p")
    bench.receive(b"p", *map(a_message, range(20)))
    before = bench.router.sizes().seen

    bench.now += 119
    bench.tick()

    assert before == 20
    assert bench.router.sizes().seen == 0


def test_own_message_that_comes_back_is_not_forwarded() -> None:
    bench = Harness()
    meshed(bench, b"p", b"q")

    forged = bench.receive(b"p", a_message(author=b"self"))

    assert forged == []
    assert bench.router.stats.from_self == 1


def test_messages_for_one_peer_travel_in_one_rpc_and_equal_rpcs_are_one_object() -> None:
    bench = Harness()
    meshed(bench, b"p", b"q", b"r")

    effects = bench.receive(b"p", a_message())

    assert sent(effects)[b"q"] is sent(effects)[b"r"]


# Verdicts


def test_rejected_message_is_dropped_and_costs_everyone_who_sent_it() -> None:
    bench = Harness()
    meshed(bench, b"p", b"q", b"r")
    (validate,) = validations(bench.rpc(b"p", publish=[a_message()]))
    bench.rpc(b"q", publish=[a_message(), a_message()])

    effects = bench.checked(bench.router.validated(validate.message_id, Verdict.REJECT))

    assert misbehaviours(effects) == [(b"p", Misbehaviour.INVALID_MESSAGE), (b"q", Misbehaviour.INVALID_MESSAGE)]
    assert delivered(effects) == []
    assert sent(effects) == {}
    assert bench.receive(b"r", a_message()) == []


def test_ignored_message_is_dropped_and_costs_nobody() -> None:
    bench = Harness()
    meshed(bench, b"p", b"q")

    effects = bench.receive(b"p", a_message(), verdict=Verdict.IGNORE)

    assert effects == []
    assert bench.router.stats.ignored == 1
    assert bench.receive(b"q", a_message()) == []


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.IGNORE])
def test_message_that_was_not_accepted_is_neither_gossiped_nor_served(verdict: Verdict) -> None:
    bench = Harness()
    meshed(bench, b"p")
    bench.add(b"q", TOPIC)
    bench.rpc(b"q", prune={TOPIC: 60})  # keeps it out of the mesh
    bench.receive(b"p", a_message(), verdict=verdict)

    effects = bench.rpc(b"q", iwant=[b"author" + (0).to_bytes(8, "big")])

    assert effects == []
    assert bench.tick() == []


@pytest.mark.parametrize("verdict", list(Verdict))
def test_second_verdict_changes_nothing(verdict: Verdict) -> None:
    bench = Harness()
    meshed(bench, b"p", b"q")
    (validate,) = validations(bench.rpc(b"p", publish=[a_message()]))
    bench.router.validated(validate.message_id, Verdict.ACCEPT)

    assert bench.router.validated(validate.message_id, verdict) == []
    assert bench.router.validated(b"never heard of", verdict) == []


def test_verdict_that_never_comes_counts_as_ignore() -> None:
    bench = Harness(dataclasses.replace(PARAMS, max_pending_validation_count=1))
    meshed(bench, b"p", b"q")
    bench.rpc(b"p", publish=[a_message(1)])
    bench.now += 121

    bench.tick()
    size = bench.router.sizes().at_validation_size
    effects = bench.rpc(b"p", publish=[a_message(2)])

    assert bench.router.stats.ignored == 1
    assert size == 0
    assert [validate.message for validate in validations(effects)] == [a_message(2)]


def test_message_beyond_the_validation_bound_is_dropped_as_if_never_seen() -> None:
    bench = Harness(dataclasses.replace(PARAMS, max_pending_validation_count=1))
    meshed(bench, b"p", b"q")
    (validate,) = validations(bench.rpc(b"p", publish=[a_message(1), a_message(2)]))

    bench.router.validated(validate.message_id, Verdict.ACCEPT)
    again = bench.rpc(b"q", publish=[a_message(2)])

    assert bench.router.stats.overflowed == 1
    assert [validate.message for validate in validations(again)] == [a_message(2)]


def test_message_at_validation_is_not_validated_again_even_if_the_seen_cache_lost_it() -> None:
    bench = Harness(dataclasses.replace(PARAMS, max_seen_count=1))
    meshed(bench, b"p", b"q")
    bench.rpc(b"p", publish=[a_message(1), a_message(2)])

    again = bench.rpc(b"q", publish=[a_message(1)])

    assert again == []


def test_data_beyond_the_validation_bound_is_dropped_as_if_never_seen() -> None:
    bench = Harness(dataclasses.replace(PARAMS, max_pending_validation_size=100))
    meshed(bench, b"p", b"q")
    large, medium, small = a_message(1, size=200), a_message(2, size=80), a_message(3, size=20)

    alone = bench.rpc(b"p", publish=[large, small])
    bench.router.validated(validations(alone)[0].message_id, Verdict.ACCEPT)
    fitting = bench.rpc(b"p", publish=[medium, small, a_message(4, size=20)])
    size = bench.router.sizes().at_validation_size
    for validate in validations(fitting):
        bench.router.validated(validate.message_id, Verdict.REJECT)

    assert [validate.message for validate in validations(alone)] == [large]
    assert [validate.message for validate in validations(fitting)] == [medium, small]
    assert bench.router.stats.overflowed == 2
    assert size == 100
    assert bench.router.sizes().at_validation_size == 0


# Forgeries


def is_signed(message: Message) -> bool:
    return {b"good": True, b"bad": False}[message.signature]


@pytest.mark.parametrize("signature", [b"bad", b"makes is_signed raise"])
def test_forged_message_costs_its_sender_and_does_not_hide_the_real_one(signature: bytes) -> None:
    bench = Harness(is_authentic=is_signed)
    meshed(bench, b"p", b"q")
    forged = dataclasses.replace(a_message(), data=b"forged", signature=signature)
    real = dataclasses.replace(a_message(), signature=b"good")

    first = bench.rpc(b"p", publish=[forged, forged])
    second = bench.receive(b"q", real)

    assert first == [Misbehaved(b"p", Misbehaviour.FORGED_MESSAGE)]
    assert delivered(second) == [real]


def test_seen_messages_are_not_verified_again() -> None:
    verified: list[Message] = []

    def verify(message: Message) -> bool:
        verified.append(message)
        return True

    bench = Harness(is_authentic=verify)
    meshed(bench, b"p", b"q")

    for peer in (b"p", b"q", b"p"):
        bench.receive(peer, a_message())

    assert verified == [a_message()]


# Publishing


def test_own_message_goes_to_the_mesh_and_to_the_local_application() -> None:
    bench = Harness()
    meshed(bench, b"p", b"q")
    bench.add(b"not in the mesh", TOPIC)

    effects = bench.checked(bench.router.publish(a_message(author=b"self")))

    assert receivers(effects, a_message(author=b"self")) == {b"p", b"q"}
    assert effects[0] == Deliver(None, b"self" + (0).to_bytes(8, "big"), a_message(author=b"self"))


def test_flood_publish_reaches_every_subscriber_joined_or_not() -> None:
    bench = Harness(dataclasses.replace(PARAMS, flood_publish=True))
    subscribers = set(bench.add_many(20, TOPIC))
    bench.add(b"elsewhere", OTHER_TOPIC)

    unjoined = bench.router.publish(a_message(1))
    bench.router.join(TOPIC)
    joined = bench.router.publish(a_message(2))
    forwarded = bench.receive(b"elsewhere", a_message(3))

    assert receivers(unjoined, a_message(1)) == subscribers
    assert receivers(joined, a_message(2)) == subscribers
    assert receivers(forwarded, a_message(3)) == set(bench.router.mesh_peers(TOPIC))
    assert bench.router.fanout_peers(TOPIC) == []


def test_publishing_an_unjoined_topic_delivers_nothing_here() -> None:
    bench = Harness()
    bench.add(b"p", TOPIC)

    assert delivered(bench.router.publish(a_message())) == []


def test_publishing_the_same_message_twice_sends_it_once() -> None:
    bench = Harness()
    meshed(bench, b"p")
    bench.router.publish(a_message())

    assert bench.router.publish(a_message()) == []
    assert bench.receive(b"p", a_message()) == []


def test_publishing_an_overlong_topic_or_without_an_id_is_refused_and_changes_nothing() -> None:
    bench = Harness()
    overlong = b"t" * (PARAMS.max_topic_size + 1)

    with pytest.raises(ValueError, match="max_topic_size"):
        bench.router.publish(a_message(topic=overlong))
    with pytest.raises(ValueError, match="max_topic_size"):
        bench.router.join(overlong)
    with pytest.raises(ValueError, match="empty id"):
        bench.router.publish(Message(TOPIC, b"data"))

    assert bench.topics.lookup(TOPIC) is None
    assert bench.topics.lookup(overlong) is None
    assert bench.router.joined() == []
    assert bench.router.stats.published == 0


# Validated elsewhere


def test_forward_skips_validation_and_forwards_as_an_accepted_message() -> None:
    bench = Harness()
    meshed(bench, b"p", b"q")
    bench.add(b"r", TOPIC)

    effects = bench.checked(bench.router.forward(a_message(), b"p"))

    assert validations(effects) == []
    assert delivered(effects) == [a_message()]
    assert receivers(effects, a_message()) == {b"q"}
    assert bench.router.forward(a_message(), b"q") == []
    assert receivers(bench.rpc(b"r", iwant=[b"author" + (0).to_bytes(8, "big")]), a_message()) == {b"r"}


# Message ids


def content_id(message: Message) -> MessageId:
    return hashlib.sha256(message.data).digest()[:20]


def test_callers_message_id_is_used_everywhere() -> None:
    bench = Harness(message_id=content_id)
    meshed(bench, b"p", b"q")
    bench.add(b"r", TOPIC)
    first, same_content = a_message(1, author=b"one"), a_message(1, author=b"two")

    (validate,) = validations(bench.rpc(b"p", publish=[first]))
    duplicate = bench.rpc(b"q", publish=[same_content])
    bench.router.validated(validate.message_id, Verdict.ACCEPT)
    announced = {id_ for rpc in sent(bench.tick()).values() for ihave in rpc.control.ihave for id_ in ihave.message_ids}
    served = bench.rpc(b"r", iwant=[content_id(first)])
    asked = wanted(bench.rpc(b"q", ihave={TOPIC: [content_id(first), b"unseen"]}), b"q")
    published = bench.router.publish(same_content)

    assert validate.message_id == content_id(first)
    assert duplicate == []
    assert announced == {content_id(first)}
    assert receivers(served, first) == {b"r"}
    assert asked == [b"unseen"]
    assert published == []


def failing_id(message: Message) -> MessageId:
    raise KeyError(message.topic)


@pytest.mark.parametrize("message_id", [failing_id, lambda message: b""])
def test_message_without_an_id_costs_the_peer_and_not_the_router(message_id: object) -> None:
    bench = Harness(message_id=message_id)  # type: ignore[arg-type]  # parametrize loses the type
    meshed(bench, b"p", b"q")

    effects = bench.receive(b"p", a_message())

    assert misbehaviours(effects) == [(b"p", Misbehaviour.MALFORMED_MESSAGE)]


# Peers not added


def test_rpc_of_a_peer_not_added_is_ignored_and_counted() -> None:
    bench = Harness()
    bench.router.join(TOPIC)

    effects = bench.rpc(b"stranger", subscribe=[TOPIC], graft=[TOPIC], publish=[a_message()])

    assert effects == []
    assert bench.router.stats.strangers == 1
    assert bench.router.topic_peers(TOPIC) == []
    assert bench.router.handle_rpc(b"stranger", RPC()) == []
