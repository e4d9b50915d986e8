"""A network of routers in one process: what they say to each other is queued, carried in order, and written down.

The trace holds every event and every effect in wire terms (topic bytes, never keys), so two runs can be compared whatever
their key types, and in whichever process they ran. `python -m tests.worker.simulation KIND SEED` prints a digest of a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from random import Random
from typing import Generic
from uuid import uuid4

from shmpool import Policy, Pool
from tests.worker.counted import CountedTopics
from worker.effects import Deliver, Effect, SendRPC, Validate, Verdict
from worker.messages import RPC, Message, MessageId, PeerId
from worker.params import GossipSubParams
from worker.router import Router
from worker.topics import BytesTopics, K, PoolTopics, Topics

TOPIC_NAMES = [f"/eth2/6a95a1a9/beacon_attestation_{number}/ssz_snappy".encode() for number in range(6)]

# Small, so that meshes are pruned, quotas bind, windows pass and fanouts expire within a short run.
PARAMS = GossipSubParams(
    D=3, D_low=2, D_high=4, D_lazy=2, D_out=1, prune_backoff_s=5.0, unsubscribe_backoff_s=2.0, fanout_ttl_s=4.0,
    seen_ttl_s=8.0, max_ihave_length=20, max_ids_per_rpc=30, max_subscriptions_per_peer=8, flood_publish=False,
    graft_flood_threshold_s=2.0, direct_connect_ticks=5,
)


@dataclass(slots=True)
class Node(Generic[K]):
    name: PeerId
    router: Router[K]
    links: dict[PeerId, str] = field(default_factory=dict)  # connected peers and the protocol spoken with them
    deliveries: list[MessageId] = field(default_factory=list)
    at_validation: deque[MessageId] = field(default_factory=deque)


class Simulation(Generic[K]):
    """`make_topics(number)` gives the topics of the router with that number; they may be shared."""

    def __init__(
        self, seed: int, make_topics: Callable[[int], Topics[K]], *, count: int = 10, params: GossipSubParams = PARAMS,
        flood_publishers: Container[int] = (),
    ) -> None:
        self.trace: list[str] = []
        self.now = 0.0
        self.loss = 0.0  # share of the RPCs that are lost, half of them with a word to the sender
        self.slow_validation = False  # whether verdicts wait for `judge`
        self._params = params
        self._rng = Random(f"{seed} network")
        self._wire: deque[tuple[PeerId, PeerId, RPC]] = deque()
        names = [f"node-{number:02}".encode() for number in range(count)]
        self.nodes: dict[PeerId, Node[K]] = {}
        for number, name in enumerate(names):
            router = Router(
                make_topics(number), clock=lambda: self.now, rng=Random(f"{seed} {number}"),
                params=dataclasses.replace(params, flood_publish=params.flood_publish or number in flood_publishers),
                self_id=name, explicit_peers=(names[0], b"node-absent") if number == 1 else (),
            )
            self.nodes[name] = Node(name, router)

    # ---- events

    def connect(self, dialler: PeerId, listener: PeerId, protocol: str = "/meshsub/1.1.0") -> None:
        if listener in self.nodes[dialler].links or dialler == listener:
            return
        self.nodes[dialler].links[listener] = self.nodes[listener].links[dialler] = protocol
        for here, there, outbound in ((dialler, listener, True), (listener, dialler, False)):
            self._note(here, "add_peer", there, protocol, outbound)
            self._carry_out(here, self.nodes[here].router.add_peer(there, protocol=protocol, outbound=outbound))

    def disconnect(self, one: PeerId, other: PeerId) -> None:
        for here, there in ((one, other), (other, one)):
            if self.nodes[here].links.pop(there, None) is not None:
                self._note(here, "remove_peer", there)
                self._carry_out(here, self.nodes[here].router.remove_peer(there))

    def join(self, name: PeerId, topic: bytes) -> None:
        self._note(name, "join", topic)
        self._carry_out(name, self.nodes[name].router.join(topic))

    def leave(self, name: PeerId, topic: bytes) -> None:
        self._note(name, "leave", topic)
        self._carry_out(name, self.nodes[name].router.leave(topic))

    def publish(self, name: PeerId, topic: bytes, number: int) -> Message:
        message = Message(topic, b"payload", name, number.to_bytes(8, "big"))
        self._note(name, "publish", message)
        self._carry_out(name, self.nodes[name].router.publish(message))
        return message

    def judge(self, name: PeerId, verdict: Verdict) -> None:
        """The verdict on the message that has waited longest, if any waits."""
        if self.nodes[name].at_validation:
            message_id = self.nodes[name].at_validation.popleft()
            self._note(name, "validated", message_id, verdict)
            self._carry_out(name, self.nodes[name].router.validated(message_id, verdict))

    def heartbeat(self) -> None:
        """One interval passes for everybody."""
        self.now += self._params.heartbeat_interval_s
        for name, node in self.nodes.items():
            self._note(name, "heartbeat")
            self._carry_out(name, node.router.heartbeat())

    def settle(self, limit: int = 1_000_000) -> None:
        """Carry RPCs until none is under way, or `limit` of them."""
        while self._wire and limit:
            limit -= 1
            sender, receiver, rpc = self._wire.popleft()
            if sender not in self.nodes[receiver].links:
                continue
            if self._rng.random() < self.loss:
                if self._rng.random() < 0.5:
                    self._note(sender, "undelivered", receiver)
                    self.nodes[sender].router.undelivered(receiver, rpc)
                continue
            self._note(receiver, "handle_rpc", sender)
            self._carry_out(receiver, self.nodes[receiver].router.handle_rpc(sender, rpc))

    # ----

    def findings(self) -> list[str]:
        return [f"{name!r}: {finding}" for name, node in self.nodes.items() for finding in node.router.check()]

    def _carry_out(self, name: PeerId, effects: list[Effect]) -> None:
        node = self.nodes[name]
        for effect in effects:
            self.trace.append(f"  {effect!r}")
            if isinstance(effect, SendRPC):
                self._wire.append((name, effect.peer, effect.rpc))
            elif isinstance(effect, Deliver):
                node.deliveries.append(effect.message_id)
            elif isinstance(effect, Validate):
                node.at_validation.append(effect.message_id)
        while node.at_validation and not self.slow_validation:
            self.judge(name, Verdict.ACCEPT)

    def _note(self, name: PeerId, event: str, *details: object) -> None:
        self.trace.append(f"{self.now:.1f} {name.decode()} {event} {details!r}")


def run_storm(simulation: Simulation[K], seed: int, steps: int = 1_000) -> None:
    """Everything at random: links come and go, RPCs are lost, topics are joined and left, verdicts come late."""
    rng = Random(f"{seed} storm")
    names = list(simulation.nodes)
    simulation.loss = 0.05
    simulation.slow_validation = True
    for _ in range(3 * len(names)):
        protocol = rng.choice(["/meshsub/1.1.0"] * 6 + ["/meshsub/1.0.0", "/floodsub/1.0.0"])
        simulation.connect(rng.choice(names), rng.choice(names), protocol)
    for number in range(steps):
        one, other, topic = rng.choice(names), rng.choice(names), rng.choice(TOPIC_NAMES)
        action = rng.random()
        if action < 0.15:
            simulation.join(one, topic)
        elif action < 0.20:
            simulation.leave(one, topic)
        elif action < 0.55:
            simulation.publish(one, topic, number)
        elif action < 0.60:
            simulation.connect(one, other)
        elif action < 0.63:
            simulation.disconnect(one, other)
        elif action < 0.90:
            simulation.judge(one, rng.choices(list(Verdict), (6, 2, 2))[0])
        else:
            simulation.heartbeat()
        simulation.settle(limit=rng.randrange(40))
    simulation.settle()


def digest(trace: list[str]) -> str:
    return hashlib.sha256("\n".join(trace).encode()).hexdigest()


def storm(kind: str, seed: int) -> tuple[list[str], list[str]]:
    """Trace and findings of one storm. `kind` says what the keys are, whether routers share them, and the pool's policy."""
    if kind == "bytes":
        return _storm(seed, lambda _: BytesTopics())
    if kind == "bytes-shared":
        shared = BytesTopics()
        return _storm(seed, lambda _: shared)
    if kind == "counted":
        return _storm(seed, lambda _: CountedTopics(origin=Random().randrange(2**39, 2**40)))
    if kind.startswith("pool, "):
        name = f"simulation-{uuid4().hex}"
        with Pool.create(name, policy=Policy.parse(kind.removeprefix("pool, "))) as pool:
            return _storm(seed, lambda _: PoolTopics(pool))
    raise ValueError(kind)


def _storm(seed: int, make_topics: Callable[[int], Topics[K]]) -> tuple[list[str], list[str]]:
    simulation = Simulation(seed, make_topics, flood_publishers=range(5))
    run_storm(simulation, seed)
    return simulation.trace, simulation.findings()


if __name__ == "__main__":
    trace, findings = storm(sys.argv[1], int(sys.argv[2]))
    sys.stdout.write(f"{digest(trace)} {len(trace)} {len(findings)}\n")
