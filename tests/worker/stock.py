"""Peers that are not ours, for tests: a stock GossipSub node, and one that writes whatever bytes it likes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

LISTEN = Multiaddr("/ip4/127.0.0.1/tcp/0")
POLL_S = 0.01


@dataclass
class StockPeer:
    """A running stock node, and (topic, data) of what others sent it."""

    host: IHost
    gossipsub: GossipSub
    pubsub: Pubsub
    heard: trio.MemoryReceiveChannel[tuple[str, bytes]]

    @property
    def address(self) -> str:
        return str(self.host.get_addrs()[0])

    async def dial(self, address: str) -> None:
        await self.host.connect(info_from_p2p_addr(Multiaddr(address)))

    async def publish(self, topic: str, data: bytes) -> None:
        await self.pubsub.publish(topic, data)

    async def wait_for_meshes(self, *topics: str) -> None:
        """Polls: the peer to wait for is not known."""
        while not all(self.gossipsub.mesh.get(topic) for topic in topics):
            await trio.sleep(POLL_S)


@asynccontextmanager
async def stock_peer(*topics: str) -> AsyncIterator[StockPeer]:
    """A stock node subscribed to `topics`."""
    host = new_host(key_pair=create_new_key_pair())
    gossipsub = GossipSub(
        [PROTOCOL_ID_V11], 6, 4, 12, heartbeat_interval=1, spam_protection_enabled=False, pending_messages_ttl=0.0
    )
    pubsub = Pubsub(host, gossipsub, max_subscriptions_per_peer=10_000)
    send, heard = trio.open_memory_channel[tuple[str, bytes]](10_000)
    async with (
        host.run([LISTEN]),
        background_trio_service(pubsub),
        background_trio_service(gossipsub),
        trio.open_nursery() as nursery,
    ):
        await pubsub.wait_until_ready()

        async def hear(topic: str) -> None:
            async for message in await pubsub.subscribe(topic):
                if message.from_id != host.get_id().to_bytes():
                    send.send_nowait((topic, message.data))

        for topic in topics:
            nursery.start_soon(hear, topic)
        yield StockPeer(host, gossipsub, pubsub, heard)
        nursery.cancel_scope.cancel()


class HostilePeer:
    """Connects as a libp2p peer does, takes the victim's stream, and writes bytes of its own making."""

    def __init__(self, host: IHost, key: KeyPair, victim: str) -> None:
        self.host = host
        self.key = key
        self.incoming: list[INetStream] = []  # pubsub streams that the victim opened
        self._info = info_from_p2p_addr(Multiaddr(victim))
        self._victim = self._info.peer_id
        self._seqno = 0
        self._stream: INetStream | None = None

    async def connect(self) -> None:
        self._stream = None
        await self.host.connect(self._info)

    async def reset_incoming(self) -> None:
        """Break the victim's stream, and nothing else."""
        while not self.incoming:
            await trio.sleep(POLL_S)
        await self.incoming.pop().reset()

    async def write(self, data: bytes) -> None:
        """Raw bytes on a pubsub stream."""
        if self._stream is None:
            self._stream = await self.host.new_stream(self._victim, [TProtocol(PROTOCOL_ID_V11)])
        await self._stream.write(data)

    async def send(self, rpc: rpc_pb2.RPC) -> None:
        await self.write(encode_varint_prefixed(rpc.SerializeToString()))

    def message(self, topic: str, data: bytes) -> rpc_pb2.Message:
        """A message as an honest peer would sign it."""
        self._seqno += 1
        message = rpc_pb2.Message(
            from_id=self.host.get_id().to_bytes(), seqno=self._seqno.to_bytes(8, "big"), data=data, topicIDs=[topic]
        )
        message.signature = self.key.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
        return message

    async def wait_until_disconnected(self) -> None:
        while self.host.get_network().get_connections(self._victim):
            await trio.sleep(POLL_S)


@asynccontextmanager
async def hostile_peer(victim: str, *, reads: bool = True) -> AsyncIterator[HostilePeer]:
    """A peer connected to `victim`, which it lets open a pubsub stream; it reads it or not, and answers nothing."""
    key = create_new_key_pair()
    host = new_host(key_pair=key)
    peer = HostilePeer(host, key, victim)

    async def swallow(stream: INetStream) -> None:
        peer.incoming.append(stream)
        try:
            while reads and await stream.read(65_536):
                pass
            await trio.sleep_forever()
        except StreamError:
            pass

    host.set_stream_handler(TProtocol(PROTOCOL_ID_V11), swallow)
    async with host.run([LISTEN]):
        await peer.connect()
        yield peer
