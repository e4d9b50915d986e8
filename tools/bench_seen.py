"""What a seen cache shared by all shards of a host spares after a crash, and what it costs per message.

    python -m tools.bench_seen [--kills N] [--rate N] [--life S] [--messages N] [--rounds N] [--seed S] [--json] [--save]

Kills: a fleet of one shard is killed under load, again and again, among libp2p peers that offer their last 30 seconds again, once
with private caches and once with the shared one (tests/worker/replay.py). Cost: CPU time, so that what else runs here does not
count; medians over rounds, ratios the medians of the rounds' ratios. The same signed messages, each followed by a duplicate, go
through two hosts without a network that differ in nothing but their seen cache, by turns; and two shards, in processes of their
own, hear the same messages over the network at the same time. Exit status 1 if the shared cache let anything through twice, or
the private ones nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from time import thread_time_ns
from typing import Any, Final

import trio
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from shmpool import Pool
from tests.worker.replay import POLL_S, SIZE, TOPICS, Replay, fleet_of, hear, kill_under_load, peers_with_full_meshes
from tools.bench_intern import machine
from worker.host import Host
from worker.messages import Message
from worker.params import GossipSubParams
from worker.seen import Seen, SeenCache, SharedSeen
from worker.supervisor import create_seen_pool
from worker.topics import BytesTopics

RESULTS: Final = Path(__file__).parent / "results"
KINDS: Final = ("private", "shared")
TIMED: Final = ("new id", "duplicate id", "message without a network")
TTL_S: Final = GossipSubParams().seen_ttl_s


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of CPU for one message, by kind of seen cache, and the second over the first."""

    private_us: float
    shared_us: float
    ratio: float


def main() -> int:
    options = parse(sys.argv[1:])
    logging.basicConfig(level=logging.ERROR)  # not that a shard was killed: it was, on purpose
    console = Console(stderr=True)
    started = time.monotonic()
    try:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("kills and rounds", total=2 * options.kills + 2 * (options.rounds + 1))
            costs = measure_costs(options, lambda: bar.advance(task))
            costs["message over the network"] = trio.run(measure_shards, options, lambda: bar.advance(task))
            replays = [run_kills(kind, options, lambda: bar.advance(task)) for kind in KINDS]
    except KeyboardInterrupt:
        return 130
    record = {
        "command": " ".join(["python -m tools.bench_seen", *sys.argv[1:]]),
        **machine(),
        "date": time.strftime("%Y-%m-%d"),
        "seed": options.seed,
        "seconds": round(time.monotonic() - started, 1),
        "kills": {replay.seen: outcome(replay) for replay in replays},
        "cost": {what: asdict(cost) for what, cost in costs.items()},
    }
    if options.save:
        (RESULTS / "seen.json").write_text(json.dumps(record, indent=2) + "\n")
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        show(replays, costs, time.monotonic() - started)
    violations = violations_of(*replays)
    for violation in violations:
        print(f"FAILED: {violation}", file=sys.stderr)
    return int(bool(violations))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench_seen", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, help="of the shard, with each kind of cache; default %(default)s")
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second, to each shard; default %(default)s")
    parser.add_argument("--life", type=float, default=4.0, help="seconds from a shard's start to its end; default %(default)s")
    parser.add_argument("--messages", type=int, default=400, help="of a round of the cost; default %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="of the cost; default %(default)s")
    parser.add_argument("--seed", type=int, help="default: a new one, shown with the figures")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--save", action="store_true", help="keep them in tools/results/seen.json too")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    return options


# Kills


def run_kills(kind: str, options: argparse.Namespace, progress: Callable[[], object]) -> Replay:
    async def run() -> Replay:
        return await kill_under_load(
            kind, kills=options.kills, rate=options.rate, life_s=options.life, seed=options.seed, progress=progress
        )

    return trio.run(run)


def outcome(replay: Replay) -> dict[str, Any]:
    names = ("kills", "sent", "delivered", "duplicates", "lost", "dropped", "verified_again")
    return {name: getattr(replay, name) for name in names}


def violations_of(private: Replay, shared: Replay) -> list[str]:
    found = []
    if shared.duplicates:
        found.append(f"with the shared cache {shared.duplicates} messages were delivered twice")
    if not private.duplicates:
        found.append("with private caches nothing was delivered twice: the peers did not offer it again, so this shows nothing")
    return found


# Cost


def measure_costs(options: argparse.Namespace, progress: Callable[[], object]) -> dict[str, Cost]:
    """What a process of its own can measure. In each round both kinds get the same messages, which are new to both; who comes
    first takes turns."""
    key = create_new_key_pair(hashlib.sha256(b"author of seed %d" % options.seed).digest())
    times: dict[str, dict[str, list[float]]] = {what: {kind: [] for kind in KINDS} for what in TIMED}
    with create_seen_pool(f"bench-seen-{os.getpid()}") as pool:
        for number in range(options.rounds + 1):
            rpcs = [_signed_rpc(key, number * options.messages + index) for index in range(options.messages)]
            ids = [b"%d of round %d, as long as others are" % (index, number) for index in range(options.messages)]
            for kind in KINDS[:: 1 if number % 2 else -1]:
                took = {**_time_cache(_cache(kind, pool), ids), "message without a network": _time_host(_cache(kind, pool), rpcs)}
                for what, us in took.items():
                    times[what][kind].append(us)
            progress()
    return {what: _cost(kinds["private"][1:], kinds["shared"][1:]) for what, kinds in times.items()}  # the first warms up


async def measure_shards(options: argparse.Namespace, progress: Callable[[], object]) -> Cost:
    """Two fleets of one shard, the same peers: each message goes to both."""
    spent: dict[str, list[float]] = {kind: [] for kind in KINDS}
    async with peers_with_full_meshes(options.seed) as peers, AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        nodes = {kind: (await stack.enter_async_context(fleet_of(kind, peers)))[1] for kind in KINDS}
        heard = {kind: Replay(kind) for kind in KINDS}
        for kind, node in nodes.items():
            nursery.start_soon(hear, node, heard[kind])
        pids = {kind: (await node.report([]))[0]["pid"] for kind, node in nodes.items()}
        for number in range(options.rounds + 1):
            before = {kind: _cpu_ns(pid) for kind, pid in pids.items()}
            for index in range(number * options.messages, (number + 1) * options.messages):
                peers[index % len(peers)].publish(TOPICS[index % len(TOPICS)], index.to_bytes(4, "big") + bytes(SIZE - 4))
                await trio.sleep(1 / options.rate)
            while any(replay.delivered <= index for replay in heard.values()):
                await trio.sleep(POLL_S)
            for kind, pid in pids.items():
                spent[kind].append((_cpu_ns(pid) - before[kind]) / options.messages / 1000)
            progress()
        nursery.cancel_scope.cancel()
    return _cost(spent["private"][1:], spent["shared"][1:])


def _cpu_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def _cost(private: list[float], shared: list[float]) -> Cost:
    ratios = [one / other for one, other in zip(shared, private, strict=True)]
    return Cost(*(round(statistics.median(figures), 3) for figures in (private, shared, ratios)))


def _cache(kind: str, pool: Pool) -> Seen:
    own = SeenCache(TTL_S, GossipSubParams().max_seen_count)
    return SharedSeen(own, pool) if kind == "shared" else own


def _time_cache(seen: Seen, ids: list[bytes]) -> dict[str, float]:
    """Microseconds of CPU for a new id, from the question to its settlement, and for one that comes again."""
    start = thread_time_ns()
    for id_ in ids:
        assert not seen.has(id_, 0.0)
        assert not seen.is_settled(id_)
        seen.add(id_, 0.0)
        seen.settle(id_)
    middle = thread_time_ns()
    for id_ in ids:
        assert seen.has(id_, 0.0)
    end = thread_time_ns()
    return {"new id": (middle - start) / len(ids) / 1000, "duplicate id": (end - middle) / len(ids) / 1000}


def _time_host(seen: Seen, rpcs: list[bytes]) -> float:
    """Microseconds of CPU for a message and its duplicate in a host without a network, from parsing to delivery."""
    peer = ID(b"a peer that sends it all")
    heard: list[bytes] = []

    def hear(message: Message, message_id: bytes) -> None:
        heard.append(message.data)
        host.settle(message_id)

    host: Host[bytes] = Host(BytesTopics(), secret=bytes(31) + b"1", on_message=hear, rng=Random(1), seen=seen)
    host.router.join(TOPICS[0])
    host.router.add_peer(peer.to_bytes())
    start = thread_time_ns()
    for rpc in rpcs:
        host.handle(peer, rpc_pb2.RPC.FromString(rpc))
        host.handle(peer, rpc_pb2.RPC.FromString(rpc))
    end = thread_time_ns()
    assert len(heard) == host.stats.verified == host.router.stats.duplicates == len(rpcs)
    return (end - start) / len(rpcs) / 1000


def _signed_rpc(key: KeyPair, number: int) -> bytes:
    """As an honest author's RPC comes over the wire."""
    author = ID.from_pubkey(key.public_key).to_bytes()
    data = hashlib.shake_128(b"%d" % number).digest(SIZE)
    message = rpc_pb2.Message(from_id=author, seqno=number.to_bytes(8, "big"), data=data, topicIDs=[TOPICS[0].decode()])
    message.signature = key.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
    return bytes(rpc_pb2.RPC(publish=[message]).SerializeToString())


# For people


def show(replays: list[Replay], costs: dict[str, Cost], seconds: float) -> None:
    console = Console()
    kills = Table(title=f"a shard killed {replays[0].kills} times under load", title_justify="left", box=SIMPLE_HEAD)
    for column in ("seen", "sent", "delivered", "delivered twice", "verified again", "lost", "dropped"):
        kills.add_column(column, justify="left" if column == "seen" else "right")
    for replay in replays:
        figures = (replay.sent, replay.delivered, replay.duplicates, replay.verified_again, replay.lost, replay.dropped)
        kills.add_row(replay.seen, *(f"{figure:,}" for figure in figures))
    console.print(kills)
    table = Table(title=f"cost, medians; {seconds:.0f} s in all", title_justify="left", box=SIMPLE_HEAD)
    for column in ("us of CPU", *KINDS, "ratio"):
        table.add_column(column, justify="left" if column == "us of CPU" else "right")
    for what, cost in costs.items():
        table.add_row(what, f"{cost.private_us:.2f}", f"{cost.shared_us:.2f}", f"{cost.ratio:.3f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
