"""Claims about the demo's own counting: what it would say if something were lost."""

from __future__ import annotations

import collections
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from shmpool import Policy
from tools.exchange import Direction, Exchange
from tools.traffic import INWARDS, OUTWARDS, consensus_topics, number_of, payload, payload_size, plan
from tools.verdict import PoolFigures, Result, describe, judge
from worker.fleet import FleetInfo
from worker.ownership import owner_of

if TYPE_CHECKING:
    from worker.node import Node

TOPICS = consensus_topics()


def direction(count: int = 10) -> Direction:
    made = Direction(plan(TOPICS, count, OUTWARDS, seed=1))
    made.sent = count
    return made


def test_the_topics_are_those_of_a_consensus_node() -> None:
    assert len(TOPICS) == len(set(TOPICS)) == 205
    assert "/eth2/6a95a1a9/beacon_attestation_63/ssz_snappy" in TOPICS
    assert "/eth2/6a95a1a9/data_column_sidecar_127/ssz_snappy" in TOPICS


def test_a_plan_is_repeated_by_its_seed_and_touches_every_topic() -> None:
    planned = plan(TOPICS, 2000, OUTWARDS, seed=1)

    assert planned == plan(TOPICS, 2000, OUTWARDS, seed=1)
    assert planned != plan(TOPICS, 2000, OUTWARDS, seed=2)
    assert planned != plan(TOPICS, 2000, INWARDS, seed=1)
    assert {message.topic for message in planned} == set(TOPICS)


def test_most_messages_are_small_attestations_and_a_few_are_large() -> None:
    planned = plan(TOPICS, 20_000, OUTWARDS, seed=1)

    names = collections.Counter(message.topic.split("/")[3].rstrip("0123456789") for message in planned)
    assert names.most_common(1)[0][0] == "beacon_attestation_"
    assert names["beacon_attestation_"] > 10_000
    large = [message for message in planned if message.size >= 10 << 10]
    assert 200 < len(large) < 1000
    assert max(message.size for message in large) <= 100 << 10


def test_a_payload_holds_its_number_and_differs_in_every_seed_direction_number_and_topic() -> None:
    first, second = plan(TOPICS, 2, OUTWARDS, seed=1)

    made = [(first, OUTWARDS, 1), (first, INWARDS, 1), (first, OUTWARDS, 2), (second, OUTWARDS, 1)]
    payloads = [payload(*arguments) for arguments in made]

    assert len({data[5:64] for data in payloads}) == 4  # what follows the header
    assert number_of(payload(second, OUTWARDS, 1)) == 1
    assert len(payload(first, OUTWARDS, 1)) == payload_size(first)
    assert number_of(b"abc") is None


def test_what_is_heard_twice_is_a_duplicate_and_what_is_changed_is_lost() -> None:
    counted = direction()

    for number in (0, 1, 1, None, *range(3, 10)):
        counted.heard(number)

    assert (counted.duplicates, counted.wrong, counted.missing) == (1, 1, {2})


def test_what_was_given_up_is_lost_until_it_is_heard_after_all() -> None:
    counted = direction()
    counted.heard(0)

    counted.give_up()

    assert (counted.settled, len(counted.missing)) == (10, 9)
    counted.heard(5)
    assert (counted.settled, len(counted.missing)) == (10, 8)


def test_a_sender_that_is_stuck_with_nothing_under_way_is_given_up_too() -> None:
    counted = direction()
    counted.sent = 1
    counted.heard(0)

    counted.give_up()

    assert (counted.settled, len(counted.missing)) == (10, 9)


class FakeNode:
    """A node of two shards that answers what it is told to."""

    dropped = 0
    info = FleetInfo(2, None)

    def __init__(self, *, interning: bool = False) -> None:
        self.pool = FakePool() if interning else None
        self.reports: list[dict[str, Any]] = [
            {
                "shard": shard,
                "peer_id": f"peer {shard}",
                "joined": [topic for topic in TOPICS if self.owner(topic.encode()) == shard],
                "refs": [self.ref(topic.encode()) for topic in TOPICS],
                "host": {"dropped": 0},
                "bus": {"dropped": 0},
            }
            for shard in (0, 1)
        ]

    async def report(self, _topics: list[bytes]) -> list[dict[str, Any]]:
        return self.reports

    def owner(self, topic: bytes) -> int:
        return owner_of(topic, 2)

    def ref(self, topic: bytes) -> int:
        return 1000 + TOPICS.index(topic.decode())


class FakePool:
    """A pool of two topics, each used three times."""

    policy = Policy.refcount()

    def stats(self) -> SimpleNamespace:
        processes = [SimpleNamespace(live=live, pid=pid) for live, pid in ((True, 1), (True, 1), (True, 2), (False, 3))]
        return SimpleNamespace(size=2, holds=4, hits=6, misses=2, inserts=2, memory_size=4096, processes=processes)

    def top(self, k: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(value=value, uses=3) for value in (b"abc", b"defgh")][:k]


def judged(change: Callable[[Exchange, FakeNode], None] = lambda _exchange, _node: None, *, interning: bool = False) -> Result:
    """The verdict on a run in which all went well, but for `change`."""
    node = FakeNode(interning=interning)
    exchange = Exchange(cast("Node", node), cast("trio.Process", None), TOPICS, message_count=300, seed=1)
    exchange.ready = {"dialled": 1, "peers": ["peer 0", "peer 1"]}
    for way in (exchange.outwards, exchange.inwards):
        way.sent = 300
        for number in range(300):
            way.heard(number)
    change(exchange, node)
    return trio.run(judge, exchange, 2, 0)


def lose_one(exchange: Exchange, _node: FakeNode) -> None:
    exchange.inwards.delivered.discard(7)


def change_one(exchange: Exchange, _node: FakeNode) -> None:
    exchange.outwards.heard(None)


def differ_in_one_ref(_exchange: Exchange, node: FakeNode) -> None:
    node.reports[1]["refs"][5] += 8


def lack_one_ref(_exchange: Exchange, node: FakeNode) -> None:
    node.reports[0]["refs"][5] = None


def own_one_twice(_exchange: Exchange, node: FakeNode) -> None:
    for report in node.reports:
        report["joined"] = sorted({*report["joined"], TOPICS[0]})


def drop_one(_exchange: Exchange, node: FakeNode) -> None:
    node.reports[0]["host"]["dropped"] = 1


def miss_a_shard(exchange: Exchange, _node: FakeNode) -> None:
    exchange.ready["peers"] = ["peer 0"]


def dial_both(exchange: Exchange, _node: FakeNode) -> None:
    exchange.ready["dialled"] = 2


@pytest.mark.parametrize("interning", [True, False])
def test_a_run_in_which_all_went_well_passes(interning: bool) -> None:
    result = judged(interning=interning)

    assert result.passed
    assert result.problems == []
    assert describe(result)[-1] == "passed"
    if interning:
        assert result.pool == PoolFigures(
            policy="refcount", topics=2, holds=4, hits=6, misses=2, inserts=2, names_size=8, process_count=2, uses=6,
            uses_size=24, memory_size=4096,
        )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lose_one, "outside peer to fleet: lost message 7"),
        (change_one, "1 messages arrived with other bytes"),
        (differ_in_one_ref, "another ref for shard 1"),
        (lack_one_ref, "another ref for shard 0"),
        (own_one_twice, "owner not agreed on"),
        (drop_one, "1 dropped: by shards, to peers"),
        (miss_a_shard, "not connected to shard peer 1"),
        (dial_both, "dialled 2 addresses, not one"),
    ],
)
def test_one_fault_fails_the_run_and_is_named(change: Callable[[Exchange, FakeNode], None], problem: str) -> None:
    result = judged(change, interning=True)

    assert not result.passed
    assert problem in "\n".join(result.problems)
    assert describe(result)[-1] == "failed"
