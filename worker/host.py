"""One libp2p peer around a `Router`: the only file here that imports libp2p.

py-libp2p gives TCP, noise, yamux, identify and the RPC's protobuf; our router replaces its GossipSub, through
`IPubsubRouter` under its `Pubsub`. Two of `Pubsub`'s methods are replaced, the reading and the sending loop, because:
- one frame of a peer that does not parse, or one unreadable public key, ends the stock service, and with it the shard;
- it hands its router nothing but control messages, and keeps tables of seen messages and of peers' topics of its own;
- its outbound queue holds 32 RPCs, which no option changes, and drops what does not fit without a count.

Guarantees:
- What a peer sends costs that peer at most: a frame that does not parse ends its connection, a bad signature, an
  over-long topic or too many of anything is a strike, and `STRIKE_LIMIT` strikes end its connection too.
- Every message is signed, and none is delivered or forwarded whose signature does not verify (StrictSign).
- Outbound queues are bounded, in RPCs and in bytes; what does not fit is dropped, counted, and the router is told.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any, Final, Generic, TypeAlias

import trio
from google.protobuf.message import DecodeError
from libp2p import new_host
from libp2p.abc import INetStream, IPubsubRouter
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from libp2p.peer.peerstore import PeerStoreError
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.utils import maybe_consume_signed_record
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from worker.effects import Connect, Deliver, Effect, Misbehaved, SendRPC, Validate, Verdict
from worker.errors import HostError, WireError
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
from worker.seen import Seen
from worker.topics import K, Topics

log = logging.getLogger(__name__)

PROTOCOLS: Final = [TProtocol("/meshsub/1.1.0"), TProtocol("/meshsub/1.0.0")]
MAX_RPC_SIZE: Final = 1 << 20  # bytes; what go-libp2p-pubsub and py-libp2p accept
MAX_DATA_SIZE: Final = MAX_RPC_SIZE - (4 << 10)  # of one message: leaves room for topic, key and signature
SEND_QUEUE_RPCS: Final = 4096
SEND_QUEUE_SIZE: Final = 16 << 20  # bytes waiting for one peer
STRIKE_LIMIT: Final = 16  # forgiven one by one, each heartbeat
READ_SIZE: Final = 1 << 16
MAX_VARINT_SIZE: Final = 10
REGISTRATION_DEADLINE_S: Final = 15.0
IDENTIFY_DEADLINE_S: Final = 10.0
MAX_ADDRESSES: Final = 8  # of one peer: it can claim any number, of any host, and each would be dialled
STREAM_ENDS: Final = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)

_PLAIN_ADDRESS: Final = re.compile(r"/ip[46]/[0-9A-Fa-f.:]+/tcp/\d+")

MessageHandler: TypeAlias = Callable[[Message, MessageId], None]
Validator: TypeAlias = Callable[[PeerId, Message], Verdict]


@dataclass(slots=True)
class HostStats:
    """Counts since this host started; `dropped` are messages (not RPCs) that found a peer's queue full or gone."""

    published: int = 0
    verified: int = 0  # signatures of peers' messages that were checked
    delivered: int = 0
    sent: int = 0
    dropped: int = 0
    bad_frames: int = 0
    disconnected: int = 0
    misbehaviour: dict[str, int] = field(default_factory=dict)  # by `Misbehaviour`'s names


class Host(Generic[K]):
    """A gossiping libp2p peer. Create it, enter `running`, then `join`, `publish` and `dial`."""

    def __init__(
        self,
        topics: Topics[K],
        *,
        secret: bytes,
        on_message: MessageHandler,
        on_peer: Callable[[PeerId], None] = lambda _peer: None,
        params: GossipSubParams | None = None,
        message_id: Callable[[Message], MessageId] = from_and_seqno,
        validate: Validator = lambda _peer, _message: Verdict.ACCEPT,
        rng: Random | None = None,
        seen: Seen | None = None,
    ) -> None:
        """`secret` is the 32 bytes of a secp256k1 private key: the peer id follows from it.

        `on_message` hears accepted messages of other peers on joined topics, each with its id, for which it is to call
        `settle` (see `worker.seen`; `seen` is by default this host's own, which needs none). `on_peer` hears each peer that
        connects; `validate` judges what is well signed.
        """
        self.stats = HostStats()
        self._key = create_new_key_pair(secret)
        self._on_message = on_message
        self._on_peer = on_peer
        self._validate = validate
        self._params = params or GossipSubParams()
        self._host = new_host(key_pair=self._key)
        self.router: Router[K] = Router(
            topics,
            clock=time.monotonic,
            rng=rng or Random(),
            params=self._params,
            message_id=message_id,
            is_authentic=self._verify,
            self_id=self._host.get_id().to_bytes(),
            announce=False,  # Pubsub announces
            seen=seen,
        )
        self._pubsub = _Pubsub(self._host, _RouterBinding(self), max_inbound_rpc_size=MAX_RPC_SIZE)
        # Time, not a random start: a restarted peer with the same key must not repeat a (from, seqno) that others have
        # seen. Stock Pubsub starts at whole seconds, which a peer that published faster than one a second has passed.
        self._seqno = time.time_ns()
        self._peers: dict[PeerId, ID] = {}
        self._strikes: Counter[PeerId] = Counter()
        self._nursery: trio.Nursery | None = None

    @property
    def identity(self) -> ID:
        return self._host.get_id()

    @property
    def peer_id(self) -> str:
        """In base 58, as in multiaddrs."""
        return self._host.get_id().to_base58()

    @property
    def addresses(self) -> list[str]:
        """Multiaddrs that this host listens on, each ending in /p2p/<its peer id>."""
        return [str(address) for address in self._host.get_addrs()]

    @property
    def peers(self) -> list[PeerId]:
        """Peers that can be sent to."""
        return sorted(self._peers)

    @asynccontextmanager
    async def running(self, listen: str) -> AsyncIterator[None]:
        """Listen on the multiaddr `listen` and gossip until the block ends. Raises `HostError` if it cannot listen."""
        async with (
            self._listening(listen),
            background_trio_service(self._pubsub),
            trio.open_nursery() as nursery,
        ):
            await self._pubsub.wait_until_ready()
            self._nursery = nursery
            nursery.start_soon(self._heartbeats)
            yield
            nursery.cancel_scope.cancel()

    async def join(self, topic: bytes) -> None:
        """Subscribe to `topic`. Raises as the pool does, and `ValueError` for a name that is not UTF-8 or over-long."""
        name = _text(topic)
        with self.router.owning(topic):  # raises now, if at all: Pubsub tells its peers before it asks its router
            await self._pubsub.subscribe(name)

    async def leave(self, topic: bytes) -> None:
        await self._pubsub.unsubscribe(_text(topic))

    def publish(self, topic: bytes, data: bytes) -> int:
        """Sign and send to the mesh (to all subscribed peers with flood publish). Returns for how many it was queued.

        Raises `ValueError` for data over `MAX_DATA_SIZE` or a topic name that is not UTF-8, and as the pool does.
        """
        if len(data) > MAX_DATA_SIZE:
            raise ValueError(f"a message of {len(data)} bytes; a libp2p RPC takes {MAX_DATA_SIZE}")
        message = self._signed(_text(topic), data)
        self.stats.published += 1
        return self.apply(self.router.publish(message))

    def settle(self, message_id: MessageId) -> None:
        """As `Router.settle`."""
        self.router.settle(message_id)

    async def dial(self, addresses: Sequence[str]) -> None:
        """Connect to one peer at any of its multiaddrs, unless connected. Raises `HostError`."""
        identity, known = _one_peer(addresses)
        try:
            await self._host.connect(PeerInfo(identity, known))
        except (BaseLibp2pError, OSError, trio.TooSlowError) as error:
            raise HostError(f"cannot dial {', '.join(addresses)}: {error}") from error

    def is_connected(self, addresses: Sequence[str]) -> bool:
        """Whether the peer that these multiaddrs name can be sent to now. Raises `HostError` if they name none, or several."""
        identity, _ = _one_peer(addresses)
        return identity == self.identity or identity.to_bytes() in self._peers

    async def addresses_of(self, peer: PeerId) -> list[str]:
        """The `dialable` multiaddrs at which a connected peer says it listens; empty if it has not said within 10 seconds.

        They come with identify or with the signed record of its first RPC, both shortly after it connects, and
        py-libp2p signals neither: hence the polling.
        """
        identity = ID(peer)
        deadline = trio.current_time() + IDENTIFY_DEADLINE_S
        while peer in self._peers and trio.current_time() < deadline:
            try:
                known = [str(address) for address in self._host.get_peerstore().addrs(identity)]
            except PeerStoreError:
                known = []
            if addresses := dialable(known, str(identity)):
                return addresses
            await trio.sleep(0.05)
        return []

    def apply(self, effects: Iterable[Effect]) -> int:
        """Carry out what the router asks. Returns for how many peers messages were queued."""
        queued = 0
        for effect in effects:
            match effect:
                case SendRPC(peer, rpc):
                    queued += self._send(peer, rpc)
                case Validate(received_from, message_id, message):
                    queued += self.apply(self.router.validated(message_id, self._validate(received_from, message)))
                case Deliver(received_from, message_id, message):
                    if received_from is not None:
                        self.stats.delivered += 1
                        self._on_message(message, message_id)
                case Misbehaved(peer, reason):
                    self.stats.misbehaviour[reason.name] = self.stats.misbehaviour.get(reason.name, 0) + 1
                    self.strike(peer, reason.value)
                case Connect(peer):
                    log.debug("explicit peer %s is not connected", ID(peer))
        return queued

    def strike(self, peer: PeerId, reason: str, *, count: int = 1) -> None:
        """A peer misbehaved: at `STRIKE_LIMIT` its connection is closed."""
        self._strikes[peer] += count
        if self._strikes[peer] >= STRIKE_LIMIT and self._nursery is not None:
            del self._strikes[peer]
            self.stats.disconnected += 1
            log.warning("disconnecting peer %s: %s", ID(peer), reason)
            self._nursery.start_soon(self._host.disconnect, ID(peer))

    def peer_added(self, identity: ID, protocol: TProtocol | None) -> None:
        peer = identity.to_bytes()
        self._peers[peer] = identity
        connections = self._host.get_network().get_connections(identity)
        outbound = any(str(getattr(connection, "direction", "")) == "outbound" for connection in connections)
        self.apply(self.router.add_peer(peer, protocol=protocol or PROTOCOLS[0], outbound=outbound))
        self._on_peer(peer)

    def peer_removed(self, identity: ID) -> None:
        """Our stream to a peer is gone. If its connection is not, it goes too.

        `Pubsub` would open another stream and the router take the peer for a new one; but the peer, whose own stream to us
        still stands, would not tell us its subscriptions again. After a new connection both ends say all.
        """
        peer = identity.to_bytes()
        self._peers.pop(peer, None)
        self.apply(self.router.remove_peer(peer))
        if self._nursery is not None and self._host.get_network().get_connections(identity):
            self._nursery.start_soon(self._host.disconnect, identity)

    def handle(self, identity: ID, rpc: rpc_pb2.RPC) -> None:
        """An RPC arrived. Raises `WireError` if it holds what no RPC may."""
        peer = identity.to_bytes()
        self.apply(self.router.handle_rpc(peer, _from_wire(rpc, self._params)))

    def bad_frame(self, identity: ID, error: Exception) -> None:
        """A peer sent what is no RPC: nothing after it can be understood."""
        self.stats.bad_frames += 1
        self.strike(identity.to_bytes(), f"a frame that does not parse: {error}", count=STRIKE_LIMIT)

    def _send(self, peer: PeerId, rpc: RPC) -> bool:
        queue = self._pubsub.peer_queues.get(self._peers.get(peer, ID(peer)))
        wire = _to_wire(rpc)
        parts = [wire] if queue is None or wire.ByteSize() <= queue.max_message_size else queue.split_rpc(wire)
        # Not `if queue`: an empty RpcQueue is falsy. No priority either: a GRAFT must not overtake its SUBSCRIBE.
        refused = [part for part in parts if queue is None or not queue.push(part)]
        if refused:
            self.stats.dropped += sum(len(part.publish) for part in refused)
            self.router.undelivered(peer, rpc)
            return False
        self.stats.sent += len(rpc.publish)
        return bool(rpc.publish)

    def _verify(self, message: Message) -> bool:
        # Asked only of what is not a duplicate: see `Delivery.receive`.
        self.stats.verified += 1
        return _is_signed(message)

    def _signed(self, topic: str, data: bytes) -> Message:
        self._seqno += 1
        wire = rpc_pb2.Message(
            from_id=self._host.get_id().to_bytes(), seqno=self._seqno.to_bytes(8, "big"), data=data, topicIDs=[topic]
        )
        signature = self._key.private_key.sign(_signed_bytes(wire))
        return Message(topic.encode(), data, wire.from_id, wire.seqno, signature, self._key.public_key.serialize())

    @asynccontextmanager
    async def _listening(self, listen: str) -> AsyncIterator[None]:
        try:
            address = Multiaddr(listen)
        except ValueError as error:
            raise HostError(f"{listen} is no multiaddr: {error}") from error
        _check_port_is_free(address)
        async with self._host.run([address]):
            if not self._host.get_transport_addrs():
                raise HostError(f"cannot listen on {listen}")
            yield

    async def _heartbeats(self) -> None:
        while True:
            await trio.sleep(self._params.heartbeat_interval_s)
            self.apply(self.router.heartbeat())
            self._strikes = Counter({peer: count - 1 for peer, count in self._strikes.items() if count > 1})


class _Pubsub(Pubsub):
    """py-libp2p's Pubsub with a reading loop that one peer cannot break and an outbound queue that counts."""

    def __init__(self, host: Any, binding: _RouterBinding, *, max_inbound_rpc_size: int) -> None:
        super().__init__(host, binding, max_inbound_rpc_size=max_inbound_rpc_size)
        self._binding = binding

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Give every RPC of a peer, whole, to the router until the stream ends or a frame does not parse."""
        peer = stream.muxed_conn.peer_id
        record = b""
        try:
            # A peer's SUBSCRIBEs may come before our own stream to it is open: the router knows it only from then on.
            await self.wait_for_peer(peer, timeout=REGISTRATION_DEADLINE_S)
            async with aclosing(_frames(stream, self.max_inbound_rpc_size)) as frames:
                async for data in frames:
                    rpc = rpc_pb2.RPC.FromString(data)
                    # py-libp2p puts its signed record on every RPC: verify it when it changes, not each time.
                    if rpc.senderRecord != record:
                        if not maybe_consume_signed_record(rpc, self.host, peer):
                            raise WireError("an invalid signed record of its addresses")
                        record = rpc.senderRecord
                    await self._binding.handle_rpc(rpc, peer)
        except (DecodeError, WireError) as error:
            self._binding.host.bad_frame(peer, error)
        except trio.TooSlowError:
            log.debug("peer %s takes no stream of ours, so it cannot be heard either", peer)
            await stream.reset()
        except STREAM_ENDS as error:
            log.debug("the stream of peer %s ended: %r", peer, error)

    def get_hello_packet(self) -> rpc_pb2.RPC:
        """Who we are, without our subscriptions: while stock Pubsub writes this, the peer is in no table yet, and would never
        be told of a topic joined meanwhile."""
        hello = super().get_hello_packet()
        hello.ClearField("subscriptions")
        return hello

    async def handle_sending_messages(self, peer_id: ID, stream: INetStream, queue: RpcQueue) -> None:
        """Put a queue with room and a count in the place of the stock one, our subscriptions first, then send as stock does."""
        roomy = SendQueue(queue.max_message_size)
        if self.peer_queues.get(peer_id) is not queue:
            return  # the peer was gone before this task started
        for part in roomy.split_rpc(super().get_hello_packet()):
            roomy.push(part)
        while len(queue) and (rpc := await queue.pop()) is not None:
            roomy.push(rpc)
        self.peer_queues[peer_id] = roomy
        await super().handle_sending_messages(peer_id, stream, roomy)


class SendQueue(RpcQueue):
    """What waits for one peer: bounded in RPCs and in bytes."""

    def __init__(self, max_message_size: int = MAX_RPC_SIZE) -> None:
        super().__init__(SEND_QUEUE_RPCS, max_message_size)
        self._size = 0

    def push(self, rpc: rpc_pb2.RPC, priority: bool = False) -> bool:  # noqa: FBT001, FBT002 - RpcQueue's signature
        """Whether `rpc` was queued. An empty queue takes any one RPC."""
        size = rpc.ByteSize()
        if (len(self) and self._size + size > SEND_QUEUE_SIZE) or not super().push(rpc, priority):
            return False
        self._size += size
        return True

    async def pop(self) -> rpc_pb2.RPC | None:
        rpc = await super().pop()
        if rpc is not None:
            self._size -= rpc.ByteSize()
        return rpc


class _RouterBinding(IPubsubRouter):
    """What `Pubsub` calls its router, in our router's words."""

    def __init__(self, host: Host[Any]) -> None:
        self.host = host

    def get_protocols(self) -> list[TProtocol]:
        return PROTOCOLS

    def attach(self, pubsub: Pubsub) -> None:
        """Nothing to keep: the host made both."""

    def add_peer(self, peer_id: ID, protocol_id: TProtocol | None) -> None:
        self.host.peer_added(peer_id, protocol_id)

    def remove_peer(self, peer_id: ID) -> None:
        self.host.peer_removed(peer_id)

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        self.host.handle(sender_peer_id, rpc)

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """A message that stock Pubsub has validated (`Pubsub.publish`; our own `Host.publish` does not come here)."""
        message = _message_from_wire(pubsub_msg)
        if msg_forwarder == self.host.identity:
            self.host.apply(self.host.router.publish(message))
        else:
            self.host.apply(self.host.router.forward(message, msg_forwarder.to_bytes()))

    async def join(self, topic: str) -> None:
        self.host.apply(self.host.router.join(topic.encode()))

    async def leave(self, topic: str) -> None:
        self.host.apply(self.host.router.leave(topic.encode()))


def _check_port_is_free(address: Multiaddr) -> None:
    """py-libp2p listens with SO_REUSEPORT: two hosts on one port would each get half of the connections, and not know."""
    parts = dict(zip(str(address).split("/")[1::2], str(address).split("/")[2::2], strict=False))
    ip, port = parts.get("ip4") or parts.get("ip6"), int(parts.get("tcp", 0))
    if ip is None or not port:
        return
    family = socket.AF_INET if "ip4" in parts else socket.AF_INET6
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # passes over connections of before, not over listeners
        try:
            probe.bind((ip, port))
        except OSError as error:
            raise HostError(f"cannot listen on {address}: {error.strerror}") from error


async def _frames(stream: INetStream, max_size: int) -> AsyncGenerator[bytes, None]:
    """The varint-prefixed frames of a stream until it ends. Raises `WireError` for one over `max_size`.

    Not py-libp2p's reader: that asks the stream for one byte at a time, each with its locks and its window accounting.
    """
    buffer = bytearray()
    while True:
        start, size = _frame_size(buffer)
        if size > max_size:
            raise WireError(f"an RPC of {size} bytes; at most {max_size} are accepted")
        if start and len(buffer) >= start + size:
            yield bytes(buffer[start : start + size])
            del buffer[: start + size]
            continue
        data = await stream.read(READ_SIZE)
        if not data:
            return
        buffer += data


def _frame_size(buffer: bytearray) -> tuple[int, int]:
    """Bytes of the varint at the start of `buffer` and its value; (0, 0) if it is not complete."""
    value = 0
    for index, byte in enumerate(buffer[:MAX_VARINT_SIZE]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return index + 1, value
    if len(buffer) >= MAX_VARINT_SIZE:
        raise WireError("a length prefix of more than 64 bits")
    return 0, 0


def _is_signed(message: Message) -> bool:
    """Whether the message's signature verifies under the key that its `from` names. Never raises."""
    if not (message.signature and message.from_peer and len(message.seqno) == 8):
        return False
    try:
        signer = ID(message.from_peer)
        # Small keys are part of the peer id itself; only a large one (RSA) comes with the message.
        key = signer.extract_public_key() or deserialize_public_key(message.key)
        if ID.from_pubkey(key) != signer:
            return False
        return bool(key.verify(_signed_bytes(_message_to_wire(message, signed=False)), message.signature))
    except Exception as error:  # noqa: BLE001 - keys and signatures of strangers: each crypto library raises its own
        log.debug("a signature could not be checked: %r", error)
        return False


def _signed_bytes(message: rpc_pb2.Message) -> bytes:
    return PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString()


def _to_wire(rpc: RPC) -> rpc_pb2.RPC:
    wire = rpc_pb2.RPC()
    for sub in rpc.subscriptions:
        wire.subscriptions.add(subscribe=sub.subscribe, topicid=_text(sub.topic))
    for message in rpc.publish:
        wire.publish.append(_message_to_wire(message))
    for ihave in rpc.control.ihave:
        wire.control.ihave.add(topicID=_text(ihave.topic), messageIDs=ihave.message_ids)
    for iwant in rpc.control.iwant:
        wire.control.iwant.add(messageIDs=iwant.message_ids)
    for graft in rpc.control.graft:
        wire.control.graft.add(topicID=_text(graft.topic))
    for prune in rpc.control.prune:
        wire.control.prune.add(topicID=_text(prune.topic), backoff=prune.backoff or None)
    return wire


def _message_to_wire(message: Message, *, signed: bool = True) -> rpc_pb2.Message:
    wire = rpc_pb2.Message(
        from_id=message.from_peer, seqno=message.seqno, data=message.data, topicIDs=[_text(message.topic)]
    )
    if signed:
        wire.signature, wire.key = message.signature, message.key
    return wire


def _from_wire(wire: rpc_pb2.RPC, params: GossipSubParams) -> RPC:
    """What the RPC says, up to one entry of each list more than the router reads: it still sees who sends too many, and a frame
    of half a million empty entries does not become as many objects."""
    control = wire.control

    def first(entries: Iterable[Any], limit: int = params.max_control_per_rpc) -> Iterator[Any]:
        return islice(entries, limit + 1)

    return RPC(
        subscriptions=tuple(
            SubOpts(sub.subscribe, _topic(sub.topicid)) for sub in first(wire.subscriptions, params.max_subscriptions_per_rpc)
        ),
        publish=tuple(map(_message_from_wire, first(wire.publish, params.max_messages_per_rpc))),
        control=ControlMessage(
            ihave=tuple(ControlIHave(_topic(entry.topicID), tuple(entry.messageIDs)) for entry in first(control.ihave)),
            iwant=tuple(ControlIWant(tuple(entry.messageIDs)) for entry in first(control.iwant)),
            graft=tuple(ControlGraft(_topic(entry.topicID)) for entry in first(control.graft)),
            prune=tuple(ControlPrune(_topic(entry.topicID), entry.backoff) for entry in first(control.prune)),
        ),
    )


def _message_from_wire(wire: rpc_pb2.Message) -> Message:
    topics = wire.topicIDs
    if len(topics) != 1:
        raise WireError(f"a message on {len(topics)} topics")  # several: an older protocol; py-libp2p can still send it
    return Message(_topic(topics[0]), wire.data, wire.from_id, wire.seqno, wire.signature, wire.key)


def _topic(text: str | bytes) -> bytes:
    # The protobuf runtime gives bytes, unannounced, for a string field that is not UTF-8. We could not send it back.
    if isinstance(text, bytes):
        raise WireError(f"a topic that is not UTF-8: {text[:64]!r}")
    return text.encode()


def _text(topic: bytes) -> str:
    """The topic as libp2p's protobuf has it. Raises `ValueError` (UnicodeDecodeError) if it is not UTF-8."""
    return topic.decode()


def _one_peer(addresses: Sequence[str]) -> tuple[ID, list[Multiaddr]]:
    """The peer that multiaddrs ending in /p2p/<peer id> name, and the addresses without that."""
    try:
        infos = [info_from_p2p_addr(Multiaddr(address)) for address in addresses]
    except (BaseLibp2pError, ValueError) as error:
        raise HostError(f"cannot dial {', '.join(addresses)}: {error}") from error
    identities = {info.peer_id for info in infos}
    if len(identities) != 1:
        raise HostError(f"cannot dial {', '.join(addresses)}: addresses of {len(identities)} peers")
    return identities.pop(), [address for info in infos for address in info.addrs]


def dialable(addresses: Iterable[str], peer_id: str) -> list[str]:
    """Up to 8 of a peer's multiaddrs, those with an IP address and a TCP port, each ending in /p2p/<its peer id>.

    A stranger writes these. What is no plain address of its own (a relay, another peer's, a name to look up) is left out.
    """
    plain = [address.removesuffix(f"/p2p/{peer_id}") for address in addresses]
    return [f"{address}/p2p/{peer_id}" for address in dict.fromkeys(plain) if _PLAIN_ADDRESS.fullmatch(address)][:MAX_ADDRESSES]
