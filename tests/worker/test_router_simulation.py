"""Many routers together: messages reach everybody once, meshes hold their degrees, and a seed gives one trace.

The trace is the same whatever the key type (`bytes` or `TopicRef`), with private or shared topics, in this process or in
another one with other hash seeds.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.worker.simulation import PARAMS, TOPIC_NAMES, Simulation, digest, storm
from worker.router import from_and_seqno
from worker.topics import BytesTopics

ROOT = Path(__file__).parents[2]
TOPIC = TOPIC_NAMES[0]


def connected(seed: int, *, count: int = 20, flood_publish: bool = False) -> Simulation[bytes]:
    """Routers in a ring with random chords, all joined to one topic, their meshes grown."""
    params = dataclasses.replace(PARAMS, flood_publish=flood_publish)
    simulation = Simulation(seed, lambda _: BytesTopics(), count=count, params=params)
    names = list(simulation.nodes)
    rng = Random(f"{seed} chords")
    for name in names:
        simulation.join(name, TOPIC)
    for number, name in enumerate(names):
        simulation.connect(name, names[(number + 1) % count])
        for other in rng.sample(names, 3):
            simulation.connect(name, other)
    for _ in range(5):
        simulation.heartbeat()
        simulation.settle()
    return simulation


@pytest.mark.parametrize("flood_publish", [False, True])
def test_every_message_reaches_every_subscriber_exactly_once(seed: int, flood_publish: bool) -> None:
    simulation = connected(seed, flood_publish=flood_publish)

    messages = [simulation.publish(name, TOPIC, number) for number, name in enumerate(simulation.nodes)]
    simulation.settle()
    for _ in range(PARAMS.mcache_gossip):  # for whom every mesh was full
        simulation.heartbeat()
        simulation.settle()

    expected = sorted(map(from_and_seqno, messages))
    assert [sorted(node.deliveries) for node in simulation.nodes.values()] == [expected] * len(simulation.nodes)
    assert simulation.findings() == []


def test_gossip_brings_what_the_mesh_lost(seed: int) -> None:
    simulation = connected(seed)
    publisher, *others = simulation.nodes
    message = simulation.publish(publisher, TOPIC, 0)
    simulation.loss = 1.0
    simulation.settle()
    simulation.loss = 0.0
    lost = [name for name in others if not simulation.nodes[name].deliveries]

    for _ in range(PARAMS.mcache_gossip):
        simulation.heartbeat()
        simulation.settle()

    found = [name for name in others if simulation.nodes[name].deliveries == [from_and_seqno(message)]]
    assert lost == others
    assert found == others


def test_meshes_are_mutual_and_within_their_degrees(seed: int) -> None:
    simulation = connected(seed)

    meshes = {name: node.router.mesh_peers(TOPIC) for name, node in simulation.nodes.items()}

    one_sided = [(name, peer) for name, mesh in meshes.items() for peer in mesh if name not in meshes[peer]]
    degrees = [len(mesh) for mesh in meshes.values()]
    assert one_sided == []
    assert max(degrees) <= PARAMS.D_high + PARAMS.D_out


def test_storm_keeps_the_invariants_and_reaches_every_kind_of_effect(seed: int) -> None:
    trace, findings = storm("bytes", seed)

    kinds = ("SendRPC(", "Validate(", "Deliver(", "Misbehaved(", "Connect(", "ControlIHave(", "ControlIWant(",
             "ControlGraft(", "ControlPrune(", "subscribe=False", "undelivered", "remove_peer")
    assert findings == []
    assert [kind for kind in kinds if not any(kind in line for line in trace)] == []


@pytest.mark.parametrize("kind", ["bytes-shared", "counted", "pool, forever", "pool, refcount", "pool, lru:2", "pool, ttl:0.001"])
def test_one_seed_gives_one_trace_whatever_the_keys(seed: int, kind: str) -> None:
    trace, findings = storm("bytes", seed)

    other_trace, other_findings = storm(kind, seed)

    assert findings == other_findings == []
    assert other_trace == trace


@pytest.mark.parametrize("kind", ["bytes", "pool, refcount"])
def test_one_seed_gives_one_trace_in_another_process_with_another_hash_seed(seed: int, kind: str) -> None:
    trace, _ = storm("bytes", seed)

    answers = [
        subprocess.run(
            [sys.executable, "-m", "tests.worker.simulation", kind, str(seed)],
            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, check=True, capture_output=True, text=True, timeout=120,
        ).stdout
        for hash_seed in ("1", "2")
    ]

    assert answers == [f"{digest(trace)} {len(trace)} 0\n"] * 2


def test_another_seed_gives_another_trace(seed: int) -> None:
    assert storm("bytes", seed)[0] != storm("bytes", seed + 1)[0]
