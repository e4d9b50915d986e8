"""Whether the router's state keeps its promises. Reads everything and changes nothing; for tests and inspection."""

from __future__ import annotations

from collections.abc import Iterator

from worker.mesh import Mesh
from worker.params import GossipSubParams
from worker.peers import PeerTable
from worker.stats import RouterSizes
from worker.topics import K, Topics


def check_state(
    topics: Topics[K], peers: PeerTable[K], mesh: Mesh[K], sizes: RouterSizes, params: GossipSubParams
) -> list[str]:
    """One sentence for each contradiction; empty means sound."""
    findings = [*_check_peers(topics, peers, params), *_check_mesh(topics, peers, mesh)]
    for name, count, limit in (
        ("backoffs", sizes.backoffs, params.max_backoff_count),
        ("messages at validation", sizes.at_validation, params.max_pending_validation_count),
        ("bytes at validation", sizes.at_validation_size if sizes.at_validation > 1 else 0, params.max_pending_validation_size),
        ("seen ids", sizes.seen, params.max_seen_count),
    ):
        if count > limit:
            findings.append(f"{count} {name}, the bound is {limit}")
    return findings


def _check_peers(topics: Topics[K], peers: PeerTable[K], params: GossipSubParams) -> Iterator[str]:
    for peer, record in peers.peers.items():
        if record.subscription_count > params.max_subscriptions_per_peer:
            yield f"peer {peer!r} has {record.subscription_count} subscriptions"
        for key in record.topics:
            if peer not in peers.by_topic.get(key, ()):
                yield f"{topics.resolve(key)!r} does not list its subscriber {peer!r}"
        for topic in record.unknown_topics:
            if peer not in peers.unknown.get(topic, ()):
                yield f"unknown {topic!r} does not list its subscriber {peer!r}"
            if len(topic) > params.max_topic_size:
                yield f"peer {peer!r} has a topic of {len(topic)} bytes"
    listed = sum(map(len, peers.by_topic.values())) + sum(map(len, peers.unknown.values()))
    if listed != sum(record.subscription_count for record in peers.peers.values()):
        yield "a topic lists a peer that has no such subscription"
    if not all(peers.by_topic.values()) or not all(peers.unknown.values()):
        yield "a topic without subscribers was kept"


def _check_mesh(topics: Topics[K], peers: PeerTable[K], mesh: Mesh[K]) -> Iterator[str]:
    if both := mesh.mesh.keys() & mesh.fanout.keys():
        yield f"{len(both)} topics are joined and have a fanout"
    for key, members in mesh.linked_peers():
        for peer in members:
            record = peers.peers.get(peer)
            if record is None:
                yield f"{topics.resolve(key)!r} is linked with {peer!r}, which is not connected"
            elif key not in record.topics:
                yield f"{topics.resolve(key)!r} is linked with {peer!r}, which does not subscribe to it"
            elif not record.meshable:
                yield f"{topics.resolve(key)!r} is linked with {peer!r}, which is explicit or of floodsub"
    for key in mesh.mesh:
        if topics.resolve(key) in peers.unknown:
            yield f"{topics.resolve(key)!r} is joined and still waits as bytes"
