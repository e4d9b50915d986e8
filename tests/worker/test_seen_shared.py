"""What one shard of a host has settled, no other delivers, verifies or asks for again: over a real pool, and a real kill."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import trio

from shmpool import Policy, Pool, PoolFullError, TopicRef
from tests.worker.harness import PARAMS, TOPIC, a_message, sent, validations
from tests.worker.replay import DEADLINE_S, POLL_S, TOPICS, fleet_of, kill_under_load, peers_with_full_meshes
from worker.bus import Greeting, connect
from worker.effects import Verdict
from worker.fleet import socket_path
from worker.frames import REFS, Frame, Kind
from worker.host import Host as PeerHost
from worker.messages import RPC, ControlIHave, ControlMessage, Message, SubOpts
from worker.node import Node
from worker.router import Router, from_and_seqno
from worker.seen import MAX_ID_SIZE, SeenCache, SharedSeen
from worker.supervisor import Fleet
from worker.topics import BytesTopics

TTL_S = 10.0


class Host:
    """The shards of one host in this process, over one pool: each has an attachment of its own."""

    def __init__(self, pool_name: str) -> None:
        self.now = 1_000.0
        self.verified: list[Message] = []
        self.pool = Pool.create(pool_name, capacity=64, stripe_count=1, max_value_size=MAX_ID_SIZE, reserve=0,
                                policy=Policy.ttl(seconds=TTL_S), clock=self.now_ns)  # fmt: skip
        self._name = pool_name
        self.attachments = [self.pool]

    def now_ns(self) -> int:
        return int(self.now * 1e9)

    def seen(self) -> SharedSeen:
        self.attachments.append(Pool.attach(self._name, cache_size=16, clock=self.now_ns))
        return SharedSeen(SeenCache(TTL_S, 100), self.attachments[-1])

    def shard(self) -> Router[bytes]:
        """A new one, that has joined TOPIC and is connected to the peer p."""
        router = Router(
            BytesTopics(), clock=lambda: self.now, rng=Random(1), params=PARAMS, seen=self.seen(), is_authentic=self.verify,
            self_id=b"self",
        )  # fmt: skip
        router.join(TOPIC)
        router.add_peer(b"p")
        router.handle_rpc(b"p", RPC(subscriptions=(SubOpts(subscribe=True, topic=TOPIC),)))
        return router

    def verify(self, message: Message) -> bool:
        self.verified.append(message)
        return True


@pytest.fixture
def host(pool_name: str) -> Iterator[Host]:
    host = Host(pool_name)
    yield host
    assert host.pool.check() == []
    assert host.pool.stats().holds == 0
    for pool in host.attachments:
        pool.close()


def receive(router: Router[bytes], message: Message) -> bool:
    """Whether the router takes it for new."""
    return bool(validations(router.handle_rpc(b"p", RPC(publish=(message,)))))


def offer(router: Router[bytes], message: Message) -> bool:
    """Whether the router asks for it."""
    ihave = ControlMessage(ihave=(ControlIHave(TOPIC, (from_and_seqno(message),)),))
    return any(rpc.control.iwant for rpc in sent(router.handle_rpc(b"p", RPC(control=ihave))).values())


def test_what_a_shard_has_settled_the_next_neither_verifies_nor_takes_nor_asks_for(host: Host) -> None:
    first, message = host.shard(), a_message()
    assert receive(first, message)
    first.validated(from_and_seqno(message), Verdict.ACCEPT)
    first.settle(from_and_seqno(message))

    second = host.shard()

    assert not receive(second, message)
    assert not offer(second, message)
    assert second.stats.duplicates == 1
    assert host.verified == [message]


def test_what_a_shard_had_not_settled_yet_is_new_to_the_next(host: Host) -> None:
    first, message = host.shard(), a_message()
    receive(first, message)
    first.validated(from_and_seqno(message), Verdict.ACCEPT)  # and killed with it in the application's queue

    second = host.shard()

    assert offer(second, message)
    assert receive(second, message)


@pytest.mark.parametrize(("verdict", "takes"), [(Verdict.REJECT, False), (Verdict.IGNORE, False), (None, True)])
def test_what_a_validator_refused_is_settled_and_what_it_did_not_judge_is_not(
    host: Host, verdict: Verdict | None, takes: bool
) -> None:
    first, message = host.shard(), a_message()
    receive(first, message)
    if verdict is not None:
        first.validated(from_and_seqno(message), verdict)

    assert receive(host.shard(), message) is takes


def test_forgeries_settle_nothing(host: Host) -> None:
    first, message = host.shard(), a_message()
    refusing = Router(BytesTopics(), clock=lambda: host.now, rng=Random(1), seen=host.seen(), is_authentic=lambda _: False)
    refusing.join(TOPIC)
    refusing.add_peer(b"p")

    assert not receive(refusing, message)
    assert receive(first, message)


def test_what_this_host_published_is_not_delivered_when_another_shard_hears_it(host: Host) -> None:
    mine = a_message(author=b"another shard")
    host.shard().publish(mine)

    assert not receive(host.shard(), mine)


def test_an_empty_shared_cache_is_used_all_the_same(host: Host) -> None:
    seen = host.seen()
    assert len(seen) == 0
    router = Router(BytesTopics(), clock=lambda: host.now, rng=Random(1), seen=seen)

    router.settle(b"id")

    assert seen.settled_count == 1


def test_settled_ids_go_after_their_time_and_not_before(host: Host) -> None:
    host.seen().settle(b"id")

    after = []
    for then in (0.0, TTL_S - 0.1, TTL_S + 0.1):
        host.now = 1_000.0 + then
        after.append(host.seen().is_settled(b"id"))

    assert after == [True, True, False]


def test_settled_ids_are_bounded_and_the_oldest_go_first(host: Host) -> None:
    one, other = host.seen(), host.seen()
    ids = [b"%d" % number for number in range(1_000)]

    for number, id_ in enumerate(ids):
        host.now = 1_000.0 + number / 1_000  # all within the ttl
        one.settle(id_)

    known = [other.is_settled(id_) for id_ in ids]
    assert (one.settled_count, one.unsettled_count) == (1_000, 0)
    assert len(host.pool) == sum(known) <= 64
    assert sum(known) >= 48
    assert [(before, after) for before, after in pairwise(known) if before > after] == []


@pytest.mark.parametrize("size", [0, 1, MAX_ID_SIZE - 1, MAX_ID_SIZE, MAX_ID_SIZE + 1, 10_000])
def test_ids_of_any_size_can_be_shared(host: Host, size: int) -> None:
    host.seen().settle(b"x" * size)

    assert host.seen().is_settled(b"x" * size)
    assert not host.seen().is_settled(b"x" * size + b"y")


def test_an_id_that_cannot_be_shared_is_counted_and_nothing_else(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def intern(_value: bytes) -> TopicRef:
        raise PoolFullError("no memory")

    seen = host.seen()
    monkeypatch.setattr(host.attachments[-1], "intern", intern)

    seen.add(b"id", host.now)
    seen.settle(b"id")

    assert (seen.settled_count, seen.unsettled_count) == (0, 1)
    assert seen.has(b"id", host.now)
    assert not host.seen().is_settled(b"id")


def test_a_peer_cannot_make_a_shard_look_up_more_ids_than_it_may_ask_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    params = dataclasses.replace(PARAMS, max_ihave_length=5)
    seen = host.seen()
    monkeypatch.setattr(seen, "is_settled", asked.append)
    router = Router(BytesTopics(), clock=lambda: host.now, rng=Random(1), params=params, seen=seen)
    router.join(TOPIC)
    router.add_peer(b"p")

    for start in (0, 100, 200):
        ids = tuple(b"%d" % number for number in range(start, start + 100))
        router.handle_rpc(b"p", RPC(control=ControlMessage(ihave=(ControlIHave(TOPIC, ids),))))

    assert len(asked) == 5


# A real shard, in the end really killed


async def reported(node: Node) -> dict[str, Any]:
    [report] = await node.report([])
    return report


# py-libp2p closes some of its sockets by leaving them to the garbage collector.
fleet_test = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def garbage_of_this_test() -> Iterator[None]:
    """Collected before the test ends, so that no other test is blamed."""
    yield
    gc.collect()


@fleet_test
@pytest.mark.usefixtures("garbage_of_this_test")
def test_what_waits_for_an_application_that_does_not_read_is_not_settled() -> None:
    count, data = 12, bytes(100_000)  # far more than a socket holds

    async def test(peer: PeerHost[bytes], fleet: Fleet, node: Node, pool: Pool, nursery: trio.Nursery) -> None:
        for topic in TOPICS:
            await node.unsubscribe(topic)
        idle = await connect(nursery, socket_path(fleet.directory, 0), REFS, Greeting(pool.name, "a test"))
        await idle.send(Frame(Kind.SUBSCRIBE, pool.intern(TOPICS[0])))
        assert (answer := await idle.receive()) is not None
        assert answer.kind is Kind.DONE
        while not peer.router.topic_peers(TOPICS[0]):
            await trio.sleep(POLL_S)

        for _ in range(count):
            peer.publish(TOPICS[0], data)
        while (report := await reported(node))["host"]["delivered"] < count:
            await trio.sleep(POLL_S)
        settled_unread = report["seen"]["settled"]
        for _ in range(count):
            await idle.receive()

        assert settled_unread < count // 2
        assert (await reported(node))["seen"]["settled"] == count

    async def among_all() -> None:
        with trio.fail_after(DEADLINE_S):
            async with (
                peers_with_full_meshes(1, count=1) as [peer],
                fleet_of("shared", [peer]) as (fleet, node),
                trio.open_nursery() as nursery,
            ):
                assert node.pool is not None
                await test(peer, fleet, node, node.pool, nursery)
                nursery.cancel_scope.cancel()

    trio.run(among_all)


@fleet_test
@pytest.mark.usefixtures("garbage_of_this_test")
@pytest.mark.parametrize("seen", ["shared", "private"])
def test_a_shard_killed_under_load_delivers_nothing_twice_if_what_it_saw_is_shared(seed: int, seen: str) -> None:
    replay = trio.run(lambda: kill_under_load(seen, kills=1, rate=60.0, life_s=2.0, seed=seed))

    assert replay.kills == 1
    assert replay.sent > 100
    if seen == "shared":
        assert replay.duplicates == 0
        assert replay.verified_again <= replay.sent // 4  # those that were verified and not delivered yet: mostly none
    else:
        assert replay.duplicates > 20  # the control: all of its history comes again
        assert replay.verified_again > 20
