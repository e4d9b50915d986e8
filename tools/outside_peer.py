"""A stock py-libp2p GossipSub node in a process of its own, with no line of ours in its network path.

It reads one line of JSON on standard input (`Orders`), subscribes, dials one address, says when its meshes are complete,
and then sends and receives. Everything it says is a line of JSON on standard output. It ends with its standard input.

Where its limits would lose messages without a word, the limits are set by the library's own options, or kept clear of:
- `spam_protection_enabled=False`: the default rejects more than 10 messages a second of one peer on one topic, and counts
  this node's own among them. Aggregates alone come faster.
- `max_subscriptions_per_peer`: the default ignores a peer's subscriptions after its 100th; a shard owns more topics.
- `pending_messages_ttl=0`: it keeps every message for each peer that has not subscribed to its topic, which a shard never
  does for another's topics; after 100 it says with each message that it drops the oldest.
- No option changes its outbound queue of 32 RPCs and its subscription queues of 32 messages; both drop what does not fit.
  So at most `window` messages, fewer than 32, are on their way in either direction, until the far application has them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from tools.traffic import INWARDS, OUTWARDS, Planned, number_of, payload, plan


@dataclass(frozen=True, slots=True)
class Orders:
    """What the outside peer is to do. `dial` is the one address it knows."""

    dial: str
    topics: list[str]
    message_count: int  # to send, and to expect
    seed: int
    window: int


class OutsidePeer:
    """The node and what it has heard so far."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.host = new_host(key_pair=create_new_key_pair())
        self.gossipsub = GossipSub(
            protocols=[PROTOCOL_ID_V12, PROTOCOL_ID_V11, PROTOCOL_ID],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=1,
            spam_protection_enabled=False,
            pending_messages_ttl=0.0,
        )
        self.pubsub = Pubsub(self.host, self.gossipsub, max_subscriptions_per_peer=len(orders.topics) + 100)
        self.expected = plan(orders.topics, orders.message_count, OUTWARDS, orders.seed)
        self.arrived = 0  # messages of this peer that the fleet's application has, or has given up
        self.progress = trio.Event()

    async def run(self, lines: AsyncIterator[bytes]) -> None:
        """Until the lines end."""
        listen = Multiaddr("/ip4/127.0.0.1/tcp/0")
        async with (
            self.host.run([listen]),
            background_trio_service(self.pubsub),
            background_trio_service(self.gossipsub),
            trio.open_nursery() as nursery,
        ):
            await self.pubsub.wait_until_ready()
            for topic in self.orders.topics:
                nursery.start_soon(self.receive, await self.pubsub.subscribe(topic))
            dialled = info_from_p2p_addr(Multiaddr(self.orders.dial))
            await self.host.connect(dialled)
            nursery.start_soon(self.announce_readiness)
            async for line in lines:
                words = json.loads(line)
                if words.get("send"):
                    nursery.start_soon(self.send)
                self.arrived = words.get("arrived", self.arrived)
                self.progress.set()
                self.progress = trio.Event()
            nursery.cancel_scope.cancel()

    async def announce_readiness(self) -> None:
        """Polls: the library can wait for a mesh of a peer that it is told of, and this node knows one shard of many."""
        while not all(self.gossipsub.mesh.get(topic) for topic in self.orders.topics):
            await trio.sleep(0.05)
        peers = [peer.to_base58() for peer in self.pubsub.peers]
        connections = self.host.get_network().get_connections()
        dialled = sum(str(getattr(connection, "direction", "")) == "outbound" for connection in connections)
        say({"ready": {"peer_id": self.host.get_id().to_base58(), "dialled": dialled, "peers": peers}})

    async def send(self) -> None:
        messages = plan(self.orders.topics, self.orders.message_count, INWARDS, self.orders.seed)
        for sent, message in enumerate(messages):
            while sent - self.arrived >= self.orders.window:
                await self.progress.wait()
            await self.pubsub.publish(message.topic, payload(message, INWARDS, self.orders.seed))
            say({"sent": message.number})

    async def receive(self, subscription: Any) -> None:
        async for message in subscription:
            if message.from_id == self.host.get_id().to_bytes():
                continue  # stock Pubsub also hears its own messages
            number = number_of(message.data)
            right = number is not None and number < len(self.expected) and self.is_right(self.expected[number], message)
            say({"heard": number if right else None})

    def is_right(self, expected: Planned, message: Any) -> bool:
        """Whether topic and bytes are those that the fleet was to send."""
        return list(message.topicIDs) == [expected.topic] and bool(
            message.data == payload(expected, OUTWARDS, self.orders.seed)
        )


def say(words: dict[str, Any]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(words).encode() + b"\n")


async def lines_of(stream: trio.abc.ReceiveStream) -> AsyncGenerator[bytes, None]:
    """The lines of a stream, without their ends."""
    data = b""
    async for more in stream:
        *whole, data = (data + more).split(b"\n")
        for line in whole:
            yield line


async def main() -> None:
    async with aclosing(lines_of(trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())))) as lines:
        orders = Orders(**json.loads(await anext(lines)))
        await OutsidePeer(orders).run(lines)


if __name__ == "__main__":
    trio.run(main)
