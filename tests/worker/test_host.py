"""Claims about one host among peers that are not ours, over real TCP, noise and yamux."""

from __future__ import annotations

import contextlib
import gc
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.network.stream.exceptions import StreamError
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.utils import encode_varint_prefixed

from tests.worker.stock import HostilePeer, hostile_peer, stock_peer
from worker.effects import Verdict
from worker.errors import HostError
from worker.host import MAX_DATA_SIZE, PROTOCOLS, SEND_QUEUE_RPCS, Host, SendQueue, dialable
from worker.messages import Message, SubOpts
from worker.params import GossipSubParams
from worker.topics import BytesTopics

LISTEN = "/ip4/127.0.0.1/tcp/0"
TOPIC = "/eth2/6a95a1a9/beacon_block/ssz_snappy"
DEADLINE_S = 60.0

# py-libp2p closes some of its sockets by leaving them to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("garbage_of_this_test"),
]


@pytest.fixture
def garbage_of_this_test() -> Iterator[None]:
    """Collected before the test ends, so that no other test is blamed."""
    yield
    gc.collect()


class Heard:
    """A host and what its application was given."""

    def __init__(self, **options: Any) -> None:
        self._send, self.messages = trio.open_memory_channel[Message](1000)
        self.host: Host[bytes] = Host(
            BytesTopics(), secret=hashlib.sha256(b"a test's key").digest(), on_message=self._hear, **options
        )

    def _hear(self, message: Message, _message_id: bytes) -> None:
        self._send.send_nowait(message)


@asynccontextmanager
async def running_host(*topics: str, **options: Any) -> AsyncIterator[Heard]:
    heard = Heard(**options)
    with trio.fail_after(DEADLINE_S):
        async with heard.host.running(LISTEN):
            for topic in topics:
                await heard.host.join(topic.encode())
            yield heard


async def wait_for(condition: Callable[[], bool]) -> None:
    """Until the network has made `condition` true; the test's deadline ends it otherwise."""
    while not condition():
        await trio.sleep(0.005)


def test_messages_go_both_ways_with_a_stock_peer_whoever_dials() -> None:
    async def exchange(*, host_dials: bool) -> None:
        async with running_host(TOPIC) as heard, stock_peer(TOPIC) as stock:
            if host_dials:
                await heard.host.dial([stock.address])
            else:
                await stock.dial(heard.host.addresses[0])
            await stock.wait_for_meshes(TOPIC)
            await wait_for(lambda: bool(heard.host.router.mesh_peers(TOPIC.encode())))

            await stock.publish(TOPIC, b"to the host")
            peer_count = heard.host.publish(TOPIC.encode(), b"x" * 200_000)

            message = await heard.messages.receive()
            assert (message.topic, message.data) == (TOPIC.encode(), b"to the host")
            assert await stock.heard.receive() == (TOPIC, b"x" * 200_000)
            assert peer_count == 1

    trio.run(lambda: exchange(host_dials=True))
    trio.run(lambda: exchange(host_dials=False))


def test_an_unjoined_topic_is_not_delivered_and_a_late_join_is() -> None:
    async def test() -> None:
        async with running_host() as heard, stock_peer(TOPIC) as stock:
            await stock.dial(heard.host.addresses[0])
            await wait_for(lambda: bool(heard.host.router.topic_peers(TOPIC.encode())))

            await heard.host.join(TOPIC.encode())
            await stock.wait_for_meshes(TOPIC)
            await stock.publish(TOPIC, b"after the join")

            assert (await heard.messages.receive()).data == b"after the join"

    trio.run(test)


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.IGNORE])
def test_the_callers_verdict_decides_what_is_delivered(verdict: Verdict) -> None:
    def validate(_peer: bytes, message: Message) -> Verdict:
        return verdict if message.data == b"unwanted" else Verdict.ACCEPT

    async def test() -> None:
        async with running_host(TOPIC, validate=validate) as heard, stock_peer(TOPIC) as stock:
            await stock.dial(heard.host.addresses[0])
            await stock.wait_for_meshes(TOPIC)

            await stock.publish(TOPIC, b"unwanted")
            await stock.publish(TOPIC, b"wanted")

            assert (await heard.messages.receive()).data == b"wanted"
            assert heard.host.stats.misbehaviour == ({"INVALID_MESSAGE": 1} if verdict is Verdict.REJECT else {})

    trio.run(test)


def test_the_callers_message_id_decides_what_is_a_duplicate() -> None:
    async def test() -> None:
        async with running_host(TOPIC, message_id=lambda message: message.data) as heard, stock_peer(TOPIC) as stock:
            await stock.dial(heard.host.addresses[0])
            await stock.wait_for_meshes(TOPIC)

            for data in (b"one", b"one", b"two"):
                await stock.publish(TOPIC, data)

            assert [(await heard.messages.receive()).data for _ in range(2)] == [b"one", b"two"]

    trio.run(test)


def test_what_a_peer_says_before_it_can_be_sent_to_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    method = "_handle_new_peer"  # the host's own stream to a peer opens in there: held back here, as a slow network would
    open_stream = getattr(Pubsub, method)

    async def test() -> None:
        may_open = trio.Event()

        async def open_later(pubsub: Pubsub, peer: ID) -> None:
            await may_open.wait()
            await open_stream(pubsub, peer)

        monkeypatch.setattr(Pubsub, method, open_later)
        async with running_host(TOPIC) as heard, hostile_peer(heard.host.addresses[0]) as early:
            await early.send(rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)]))
            await early.send(rpc_pb2.RPC(publish=[early.message(TOPIC, b"early")]))
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert heard.host.peers == []

            may_open.set()

            assert (await heard.messages.receive()).data == b"early"
            assert heard.host.router.topic_peers(TOPIC.encode()) == [early.host.get_id().to_bytes()]

    trio.run(test)


def test_a_topic_joined_while_a_peer_is_greeted_is_announced_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    write = NetStream.write
    greetings: list[bytes] = []
    may_write = trio.Event()

    async def write_later(stream: NetStream, data: bytes) -> None:
        if stream.get_protocol() in PROTOCOLS and not may_write.is_set():
            greetings.append(data)
            await may_write.wait()
        await write(stream, data)

    async def test() -> None:
        monkeypatch.setattr(NetStream, "write", write_later)
        async with running_host(TOPIC) as heard, stock_peer() as stock:
            await stock.dial(heard.host.addresses[0])
            await wait_for(lambda: len(greetings) == 2)  # of each to the other

            await heard.host.join(b"another")
            may_write.set()

            await wait_for(lambda: {TOPIC, "another"} <= stock.pubsub.peer_topics.keys())

    trio.run(test)


def test_a_topic_that_cannot_be_joined_is_not_announced() -> None:
    async def test() -> None:
        async with running_host() as heard, stock_peer(TOPIC) as stock:
            await stock.dial(heard.host.addresses[0])
            await wait_for(lambda: bool(heard.host.peers))

            with pytest.raises(ValueError, match="topic of 1025 bytes"):
                await heard.host.join(b"x" * 1025)

            await heard.host.join(TOPIC.encode())
            await stock.wait_for_meshes(TOPIC)
            assert list(stock.pubsub.peer_topics) == [TOPIC]

    trio.run(test)


Attack = Callable[[HostilePeer], Awaitable[None]]


async def garbage(hostile: HostilePeer) -> None:
    await hostile.write(encode_varint_prefixed(b"\xff" * 100))


async def an_endless_length_prefix(hostile: HostilePeer) -> None:
    await hostile.write(b"\xff" * 11)


async def an_over_long_frame(hostile: HostilePeer) -> None:
    await hostile.write(b"\x81\x80\x40")  # the varint of MAX_RPC_SIZE + 1


async def a_topic_that_is_not_utf8(hostile: HostilePeer) -> None:
    await hostile.write(encode_varint_prefixed(b"\x12\x04\x22\x02\xff\xfe"))  # RPC.publish { topicIDs: ff fe }


async def a_message_on_two_topics(hostile: HostilePeer) -> None:
    message = hostile.message(TOPIC, b"twice")
    message.topicIDs.append("another")
    await hostile.send(rpc_pb2.RPC(publish=[message]))


async def a_forged_record_of_its_addresses(hostile: HostilePeer) -> None:
    await hostile.send(rpc_pb2.RPC(senderRecord=b"\x0a\x03abc"))


async def many_unsigned_messages(hostile: HostilePeer) -> None:
    for number in range(20):
        message = hostile.message(TOPIC, b"unsigned %d" % number)
        message.ClearField("signature")
        await hostile.send(rpc_pb2.RPC(publish=[message]))


async def many_over_long_topics(hostile: HostilePeer) -> None:
    for number in range(20):
        await hostile.send(rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"{number}" + "x" * 2000)]))


async def many_rpcs_of_too_many_ids(hostile: HostilePeer) -> None:
    ids = rpc_pb2.ControlIWant(messageIDs=[number.to_bytes(8, "big") for number in range(25_000)])
    for _ in range(20):
        await hostile.send(rpc_pb2.RPC(control=rpc_pb2.ControlMessage(iwant=[ids])))


@pytest.mark.parametrize(
    "attack",
    [
        garbage, an_endless_length_prefix, an_over_long_frame, a_topic_that_is_not_utf8, a_message_on_two_topics,
        a_forged_record_of_its_addresses, many_unsigned_messages, many_over_long_topics, many_rpcs_of_too_many_ids,
    ],
)  # fmt: skip
def test_an_attack_costs_the_attacker_its_connection_and_others_nothing(attack: Attack) -> None:
    async def test() -> None:
        async with running_host(TOPIC) as heard, stock_peer(TOPIC) as stock, hostile_peer(heard.host.addresses[0]) as hostile:
            await stock.dial(heard.host.addresses[0])
            await stock.wait_for_meshes(TOPIC)

            with contextlib.suppress(StreamError):  # it may be cut off before it is done
                await attack(hostile)

            await hostile.wait_until_disconnected()
            await wait_for(lambda: len(heard.host.peers) == 1)
            assert heard.host.stats.disconnected == 1
            await stock.publish(TOPIC, b"still here")
            assert (await heard.messages.receive()).data == b"still here"

    trio.run(test)


def unsigned(message: rpc_pb2.Message, _hostile: HostilePeer) -> None:
    message.ClearField("signature")


def changed_after_signing(message: rpc_pb2.Message, _hostile: HostilePeer) -> None:
    message.data += b"!"


def in_anothers_name(message: rpc_pb2.Message, _hostile: HostilePeer) -> None:
    message.from_id = create_new_key_pair().public_key.serialize()


def with_a_key_that_is_none(message: rpc_pb2.Message, _hostile: HostilePeer) -> None:
    message.from_id = b"\x12\x20" + bytes(32)  # a hash, as of an RSA key: the key must come with the message
    message.key = b"\xff\xff\xff"


def from_nobody(message: rpc_pb2.Message, _hostile: HostilePeer) -> None:
    message.ClearField("from_id")


def without_a_number(message: rpc_pb2.Message, hostile: HostilePeer) -> None:
    message.ClearField("seqno")
    message.ClearField("signature")
    message.signature = hostile.key.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())


@pytest.mark.parametrize(
    "spoil", [unsigned, changed_after_signing, in_anothers_name, with_a_key_that_is_none, from_nobody, without_a_number]
)
def test_a_message_that_is_not_well_signed_is_lost_and_its_sender_goes_on(
    spoil: Callable[[rpc_pb2.Message, HostilePeer], None],
) -> None:
    async def test() -> None:
        async with running_host(TOPIC) as heard, hostile_peer(heard.host.addresses[0]) as hostile:
            spoiled = hostile.message(TOPIC, b"spoiled")
            spoil(spoiled, hostile)

            await hostile.send(rpc_pb2.RPC(publish=[spoiled]))
            await hostile.send(rpc_pb2.RPC(publish=[hostile.message(TOPIC, b"honest")]))

            assert (await heard.messages.receive()).data == b"honest"
            assert heard.messages.statistics().current_buffer_used == 0
            assert sum(heard.host.stats.misbehaviour.values()) == 1

    trio.run(test)


def test_a_forgery_that_comes_first_does_not_hide_the_real_message() -> None:
    async def test() -> None:
        async with (
            running_host(TOPIC) as heard,
            hostile_peer(heard.host.addresses[0]) as author,
            hostile_peer(heard.host.addresses[0]) as forger,
        ):
            real = author.message(TOPIC, b"real")
            forged = rpc_pb2.Message()
            forged.CopyFrom(real)  # `from` and `seqno` are the id, and can be guessed
            forged.data = b"forged"

            await forger.send(rpc_pb2.RPC(publish=[forged]))
            await wait_for(lambda: heard.host.stats.misbehaviour == {"FORGED_MESSAGE": 1})
            await author.send(rpc_pb2.RPC(publish=[real]))

            assert (await heard.messages.receive()).data == b"real"

    trio.run(test)


def test_of_a_frame_full_of_entries_no_more_are_made_than_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def count_and_make(*arguments: Any) -> SubOpts:
        nonlocal made
        made += 1
        return SubOpts(*arguments)

    async def test() -> None:
        monkeypatch.setattr("worker.host.SubOpts", count_and_make)
        async with running_host(TOPIC) as heard, hostile_peer(heard.host.addresses[0]) as hostile:
            await hostile.send(rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts()] * 300_000))

            await wait_for(lambda: heard.host.stats.misbehaviour == {"TOO_MANY_SUBSCRIPTIONS": 1})
            assert made == GossipSubParams().max_subscriptions_per_rpc + 1

    trio.run(test)


def test_bytes_that_are_no_noise_handshake_cost_nobody_else_anything() -> None:
    async def test() -> None:
        async with running_host(TOPIC) as heard, stock_peer(TOPIC) as stock:
            port = int(heard.host.addresses[0].split("/")[4])
            for opening in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\xff" * 200):
                raw = await trio.open_tcp_stream("127.0.0.1", port)
                await raw.send_all(opening)
                await raw.aclose()

            await stock.dial(heard.host.addresses[0])
            await stock.wait_for_meshes(TOPIC)
            await stock.publish(TOPIC, b"still here")

            assert (await heard.messages.receive()).data == b"still here"

    trio.run(test)


def test_what_a_peer_does_not_read_is_dropped_and_counted_and_never_waited_for() -> None:
    count = 40

    async def test() -> None:
        async with running_host() as heard, hostile_peer(heard.host.addresses[0], reads=False) as hostile:
            await hostile.send(rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)]))
            await wait_for(lambda: bool(heard.host.router.topic_peers(TOPIC.encode())))

            queued = [heard.host.publish(TOPIC.encode(), bytes(1_000_000)) for _ in range(count)]  # no pause: nothing is sent

            assert sum(queued) == 16  # 16 MiB, in messages of 1 MB
            assert heard.host.stats.dropped == count - 16

    trio.run(test)


def test_a_peer_whose_stream_breaks_is_disconnected_and_tells_all_when_it_comes_back() -> None:
    subscribe = rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)])

    async def test() -> None:
        async with running_host() as heard, hostile_peer(heard.host.addresses[0]) as peer:
            await peer.send(subscribe)
            await wait_for(lambda: bool(heard.host.router.topic_peers(TOPIC.encode())))

            await peer.reset_incoming()
            while heard.host.peers:
                heard.host.publish(TOPIC.encode(), b"into a stream that is no more")
                await trio.sleep(0.005)
            await peer.wait_until_disconnected()
            await peer.connect()
            await peer.send(subscribe)

            await wait_for(lambda: bool(heard.host.router.topic_peers(TOPIC.encode())))
            assert heard.host.publish(TOPIC.encode(), b"it can be sent to again") == 1

    trio.run(test)


def test_only_plain_addresses_of_a_peer_itself_are_passed_on() -> None:
    claimed = [
        "/ip4/192.0.2.1/tcp/4001",
        "/ip4/192.0.2.1/tcp/4001/p2p/me",
        "/ip6/2001:db8::1/tcp/4001/p2p/me",
        "/ip4/192.0.2.1/tcp/4001/p2p/another",
        "/ip4/192.0.2.1/tcp/4001/p2p/another/p2p-circuit/p2p/me",
        "/ip4/192.0.2.1/udp/4001/quic-v1",
        "/dns4/example.org/tcp/4001",
        "/ip4/192.0.2.1/tcp/1\n/ip4/192.0.2.2/tcp/2",
        *(f"/ip4/192.0.2.2/tcp/{port}" for port in range(100)),
    ]

    passed_on = dialable(claimed, "me")

    assert passed_on[:2] == ["/ip4/192.0.2.1/tcp/4001/p2p/me", "/ip6/2001:db8::1/tcp/4001/p2p/me"]
    assert passed_on[2:] == [f"/ip4/192.0.2.2/tcp/{port}/p2p/me" for port in range(6)]


def test_a_queue_to_a_peer_is_bounded_in_number_too() -> None:
    async def test() -> None:
        queue = SendQueue()

        pushed = [queue.push(rpc_pb2.RPC()) for _ in range(SEND_QUEUE_RPCS + 1)]

        assert pushed == [True] * SEND_QUEUE_RPCS + [False]
        await queue.pop()
        assert queue.push(rpc_pb2.RPC())

    trio.run(test)


def test_a_restarted_host_with_the_same_key_is_the_same_peer_and_repeats_no_number() -> None:
    async def test() -> None:
        seqnos = []
        for _ in range(2):
            async with running_host(TOPIC) as heard, stock_peer(TOPIC) as stock:
                await heard.host.dial([stock.address])
                await stock.wait_for_meshes(TOPIC)
                seen = len(stock.pubsub.seen_messages.cache)
                for _ in range(100):
                    heard.host.publish(TOPIC.encode(), b"x")
                for _ in range(100):
                    await stock.heard.receive()
                seqnos += [bytes(key) for key in stock.pubsub.seen_messages.cache][seen:]

        assert len(set(seqnos)) == 200

    trio.run(test)


@pytest.mark.parametrize("address", ["/ip4/127.0.0.1/tcp/1", "nonsense", "/ip4/127.0.0.1/tcp/1/p2p/nonsense"])
def test_an_address_that_cannot_be_dialled_is_an_error_in_words(address: str) -> None:
    async def test() -> None:
        async with running_host() as heard:
            with pytest.raises(HostError, match=f"cannot dial {address}"):
                await heard.host.dial([address])

    trio.run(test)


def test_a_port_that_is_taken_is_an_error_in_words() -> None:
    async def test() -> None:
        async with running_host() as heard:
            listen = heard.host.addresses[0].partition("/p2p/")[0]
            second = Heard()

            with pytest.raises(HostError, match=r"cannot listen on .*: Address already in use"):
                async with second.host.running(listen):
                    pass

    trio.run(test)


def test_data_that_no_rpc_can_hold_is_refused_before_it_is_signed() -> None:
    async def test() -> None:
        async with running_host(TOPIC) as heard:
            with pytest.raises(ValueError, match="a message of"):
                heard.host.publish(TOPIC.encode(), bytes(MAX_DATA_SIZE + 1))
            with pytest.raises(ValueError, match="utf-8"):
                heard.host.publish(b"\xff", b"data")
            assert heard.host.stats.published == 0

    trio.run(test)
