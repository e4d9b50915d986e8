"""The demo's messages: topics, sizes and bytes, equal for equal seeds, so that each end can check what the other sent.

Topic names and sizes are those of Ethereum's consensus layer: consensus-specs, `phase0/p2p-interface.md` and its
successors up to Fulu (topics), and the SSZ sizes of the containers they carry.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from random import Random
from typing import Final

FORK_DIGEST: Final = "6a95a1a9"
HEADER: Final = struct.Struct("!BI")  # direction, number; the rest of a payload follows from them and the seed
OUTWARDS: Final = 0  # from a local application through its shard to the outside peer
INWARDS: Final = 1


@dataclass(frozen=True, slots=True)
class Kind:
    """Topics of one name: how many, their share of all messages, and the sizes of those in bytes."""

    name: str
    count: int  # 0: one topic without a number
    weight: float
    smallest: int
    largest: int


# Weights: nearly all messages of a slot are attestations; blocks and columns are few and carry most of the bytes.
KINDS: Final = (
    Kind("beacon_block", 0, 0.5, 40 << 10, 100 << 10),
    Kind("beacon_aggregate_and_proof", 0, 9.0, 390, 460),
    Kind("beacon_attestation", 64, 70.0, 190, 250),
    Kind("voluntary_exit", 0, 0.2, 112, 112),
    Kind("proposer_slashing", 0, 0.1, 416, 416),
    Kind("attester_slashing", 0, 0.1, 500, 4 << 10),
    Kind("sync_committee_contribution_and_proof", 0, 3.0, 360, 360),
    Kind("sync_committee", 4, 14.0, 144, 144),
    Kind("bls_to_execution_change", 0, 0.3, 172, 172),
    Kind("light_client_finality_update", 0, 0.2, 1 << 10, 2 << 10),
    Kind("light_client_optimistic_update", 0, 0.2, 700, 1 << 10),
    Kind("data_column_sidecar", 128, 2.4, 10 << 10, 60 << 10),
)
OTHER: Final = Kind("", 0, 0.0, 190, 250)  # a topic of a --topics file with none of these names


@dataclass(frozen=True, slots=True)
class Planned:
    """One message to send."""

    topic: str
    number: int
    size: int


def consensus_topics() -> list[str]:
    """Every gossip topic of a consensus node: `/eth2/<fork digest>/<name>/ssz_snappy`."""
    names = [name for kind in KINDS for name in _names(kind)]
    return [f"/eth2/{FORK_DIGEST}/{name}/ssz_snappy" for name in names]


def plan(topics: list[str], message_count: int, direction: int, seed: int) -> list[Planned]:
    """What one end sends, in order: each topic once at first, then topics and sizes as on the real network."""
    rng = Random(f"{seed}/{direction}")
    kinds = {topic: _kind(topic) for topic in topics}
    population = {kind: sum(other is kind for other in kinds.values()) for kind in kinds.values()}
    weights = [(kinds[topic].weight or 1.0) / population[kinds[topic]] for topic in topics]
    every = rng.sample(topics, len(topics))
    chosen = (every + rng.choices(topics, weights, k=max(0, message_count - len(topics))))[:message_count]
    return [
        Planned(topic, number, rng.randint(kinds[topic].smallest, kinds[topic].largest))
        for number, topic in enumerate(chosen)
    ]


def payload(message: Planned, direction: int, seed: int) -> bytes:
    """The bytes of a message: a header, then what nobody could have made up or kept of another message."""
    header = HEADER.pack(direction, message.number)
    noise = hashlib.shake_128(b"%d/" % seed + header + message.topic.encode())
    return header + noise.digest(max(0, message.size - len(header)))


def payload_size(message: Planned) -> int:
    """Bytes of `payload`."""
    return max(message.size, HEADER.size)


def number_of(data: bytes) -> int | None:
    """The number in a payload's header; None if there is no header."""
    return int(HEADER.unpack_from(data)[1]) if len(data) >= HEADER.size else None


def _names(kind: Kind) -> list[str]:
    return [f"{kind.name}_{number}" for number in range(kind.count)] if kind.count else [kind.name]


def _kind(topic: str) -> Kind:
    parts = topic.split("/")
    name = parts[3] if len(parts) > 3 else topic
    return next((kind for kind in KINDS if name in {kind.name, f"{kind.name}_{name.rpartition('_')[2]}"}), OTHER)
