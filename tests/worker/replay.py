"""A shard killed under load, among peers that offer again what it has had: what an application hears twice, or not at all.

The peers are libp2p hosts that graft nobody, as if their meshes were full. So each message comes to the shard directly, once; and
for `HISTORY_S` seconds every heartbeat offers it again by IHAVE, as gossip does: to a shard that has just come back, everything
that the one before it was sent.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import trio

from worker.host import Host
from worker.node import Node, open_node
from worker.params import GossipSubParams
from worker.supervisor import Fleet, FleetOptions, run_fleet
from worker.topics import BytesTopics

TOPICS: Final = [b"/eth2/6a95a1a9/sync_committee_%d/ssz_snappy" % number for number in range(4)]
HISTORY_S: Final = 30
PEERS: Final = GossipSubParams(
    D=0, D_low=0, D_high=0, D_out=0, mcache_len=HISTORY_S, mcache_gossip=HISTORY_S,
    gossip_retransmission=100,  # each life of the shard asks anew
)  # fmt: skip
PEER_COUNT: Final = 2
SIZE: Final = 144  # bytes of a message
QUIET_S: Final = 3.5  # without an arrival, and every peer has offered three times what was missed
DEADLINE_S: Final = 120.0
POLL_S: Final = 0.02


@dataclass(slots=True)
class Replay:
    """What became of the messages of one run."""

    seen: str
    kills: int = 0
    sent: int = 0
    heard: Counter[int] = field(default_factory=Counter)
    verified: int = 0  # signatures that all lives of the shard have checked, as far as the killed ones have said
    dropped: int = 0  # by the shard, as many came at once as its queue to the application does not hold

    @property
    def delivered(self) -> int:
        return len(self.heard)

    @property
    def duplicates(self) -> int:
        """Deliveries of what the application had been given already."""
        return self.heard.total() - len(self.heard)

    @property
    def lost(self) -> int:
        return self.sent - len(self.heard)

    @property
    def verified_again(self) -> int:
        """Signatures checked beyond one for each message delivered. Each life is asked just before it is killed: a few are
        missing."""
        return max(0, self.verified - self.delivered)


async def kill_under_load(
    seen: str, *, kills: int, rate: float, life_s: float, seed: int, progress: Callable[[], object] = lambda: None
) -> Replay:
    """Publish `rate` messages a second from outside, and kill the fleet's only shard `kills` times, each after about `life_s`."""
    rng = Random(seed)
    replay = Replay(seen)
    with trio.fail_after(DEADLINE_S + kills * (life_s + 30)):
        async with peers_with_full_meshes(seed) as peers, fleet_of(seen, peers) as (fleet, node), trio.open_nursery() as nursery:
            nursery.start_soon(hear, node, replay)
            with trio.CancelScope() as publishing:
                nursery.start_soon(_publish, publishing, peers, replay, rate, rng)
                for _ in range(kills):
                    await trio.sleep(life_s * rng.uniform(0.8, 1.2))
                    await _kill(fleet, node, replay)
                    await _known(peers)
                    progress()
                await trio.sleep(life_s * 0.5)
                publishing.cancel()
            await _quiet(replay)
            [report] = await node.report([])
            _count(replay, report)
            assert node.dropped == 0
            nursery.cancel_scope.cancel()
    return replay


@asynccontextmanager
async def peers_with_full_meshes(seed: int, count: int = PEER_COUNT) -> AsyncIterator[list[Host[bytes]]]:
    async with AsyncExitStack() as stack:
        hosts: list[Host[bytes]] = []
        for number in range(count):
            secret = hashlib.sha256(b"peer %d of seed %d" % (number, seed)).digest()
            hosts.append(Host(BytesTopics(), secret=secret, on_message=lambda *_: None, params=PEERS, rng=Random(seed + number)))
            await stack.enter_async_context(hosts[-1].running("/ip4/127.0.0.1/tcp/0"))
            for topic in TOPICS:
                await hosts[-1].join(topic)
        yield hosts


@asynccontextmanager
async def fleet_of(seen: str, peers: list[Host[bytes]]) -> AsyncIterator[tuple[Fleet, Node]]:
    """One shard, connected to every peer, and an application that is subscribed, as every peer knows."""
    options = FleetOptions(1, peers=tuple(peer.addresses[0] for peer in peers), seen=seen)
    async with run_fleet(options) as fleet, open_node(fleet.directory) as node:
        for topic in TOPICS:
            await node.subscribe(topic)
        await _known(peers)
        yield fleet, node


async def _known(peers: list[Host[bytes]]) -> None:
    """Until every peer has heard that the shard is subscribed to every topic."""
    while not all(peer.router.topic_peers(topic) for peer in peers for topic in TOPICS):
        await trio.sleep(POLL_S)


async def _publish(scope: trio.CancelScope, peers: list[Host[bytes]], replay: Replay, rate: float, rng: Random) -> None:
    start = trio.current_time()
    while not scope.cancel_called:
        data = replay.sent.to_bytes(4, "big") + rng.randbytes(SIZE - 4)
        rng.choice(peers).publish(rng.choice(TOPICS), data)
        replay.sent += 1
        await trio.sleep_until(start + replay.sent / rate)


async def hear(node: Node, replay: Replay) -> None:
    """Count what the application is given, until cancelled."""
    async for message in node:
        replay.heard[int.from_bytes(message.data[:4], "big")] += 1


async def _kill(fleet: Fleet, node: Node, replay: Replay) -> None:
    """Kill the shard, and wait until another is in its place and has been asked for the application's topics."""
    [report] = await node.report([])
    os.kill(report["pid"], signal.SIGKILL)
    _count(replay, report)
    replay.kills += 1
    while fleet.members[0].restart_count < replay.kills:
        await trio.sleep(POLL_S)
    await fleet.wait_ready()
    for topic in TOPICS:
        await node.subscribe(topic)


async def _quiet(replay: Replay) -> None:
    count, since = -1, trio.current_time()
    while trio.current_time() - since < QUIET_S:
        if replay.heard.total() != count:
            count, since = replay.heard.total(), trio.current_time()
        await trio.sleep(POLL_S)


def _count(replay: Replay, report: dict[str, Any]) -> None:
    replay.verified += report["host"]["verified"]
    replay.dropped += report["bus"]["dropped"]
