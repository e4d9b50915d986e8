"""Claims about an application's end, over a real bus and pool, with shards that the test plays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from shmpool import Policy, Pool, StaleRefError
from worker.bus import Connection, Greeting, Listener
from worker.errors import RequestRefusedError
from worker.fleet import FleetInfo, socket_path
from worker.frames import REFS, Frame, Kind
from worker.node import Node, open_node

TOPICS = [b"/eth2/6a95a1a9/sync_committee_%d/ssz_snappy" % number for number in range(3)]
DEADLINE_S = 20.0


class PlayedShard:
    """The only shard of a fleet, in this process: writes down what it is asked, and whether the key could be resolved."""

    def __init__(self, directory: Path, pool: Pool) -> None:
        FleetInfo(1, pool.name).write(directory)
        self.listener: Listener[Any] = Listener(socket_path(directory, 0), REFS, Greeting(pool.name, "a played shard"))
        self.asked: list[tuple[Kind, bytes | None]] = []
        self.connections: list[Connection[Any]] = []
        self.may_answer = trio.Event()
        self.may_answer.set()
        self.answers = Kind.DONE
        self._pool = pool

    async def serve(self, connection: Connection[Any]) -> None:
        self.connections.append(connection)
        async for frame in connection:
            self.asked.append((frame.kind, self.resolved(frame)))
            await self.may_answer.wait()
            await connection.send(Frame(self.answers, frame.key))

    def resolved(self, frame: Frame[Any]) -> bytes | None:
        try:
            return self._pool.resolve(frame.key)
        except StaleRefError:
            return None

    async def wait_for(self, count: int) -> None:
        while len(self.asked) < count:
            await trio.sleep(0.005)


@asynccontextmanager
async def playing(tmp_path: Path, pool_name: str) -> AsyncIterator[tuple[Node, PlayedShard, Pool]]:
    directory = tmp_path / "fleet"
    directory.mkdir(mode=0o700)
    with trio.fail_after(DEADLINE_S), Pool.create(pool_name, policy=Policy.refcount()) as pool:
        shard = PlayedShard(directory, pool)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shard.listener.serve, shard.serve)
            async with open_node(directory) as node:
                yield node, shard, pool
            nursery.cancel_scope.cancel()
        assert pool.stats().holds == len(pool) == 0


def test_every_key_that_is_sent_is_good_where_it_arrives_and_let_go_after_the_answer(tmp_path: Path, pool_name: str) -> None:
    async def test() -> None:
        async with playing(tmp_path, pool_name) as (node, shard, pool):
            await node.publish(TOPICS[0], b"data")
            after_publish = len(pool)
            await node.subscribe(TOPICS[0])
            await node.subscribe(TOPICS[0])
            await node.publish(TOPICS[0], b"data")
            subscribed = pool.stats().holds
            await node.unsubscribe(TOPICS[0])
            await node.unsubscribe(TOPICS[0])

            assert shard.asked == [
                (kind, TOPICS[0]) for kind in (Kind.PUBLISH, Kind.SUBSCRIBE, Kind.SUBSCRIBE, Kind.PUBLISH, Kind.UNSUBSCRIBE)
            ]
            assert (after_publish, subscribed, len(pool)) == (0, 1, 0)

    trio.run(test)


def test_what_is_refused_is_let_go(tmp_path: Path, pool_name: str) -> None:
    async def test() -> None:
        async with playing(tmp_path, pool_name) as (node, shard, pool):
            shard.answers = Kind.FAILED
            for request in (node.subscribe(TOPICS[0]), node.publish(TOPICS[1], b"data")):
                with pytest.raises(RequestRefusedError):
                    await request

            assert len(pool) == 0

    trio.run(test)


@pytest.mark.parametrize("lost", [False, True])
def test_what_nobody_waits_for_any_more_is_held_until_it_is_answered_or_its_shard_is_lost(
    tmp_path: Path, pool_name: str, lost: bool
) -> None:
    async def test() -> None:
        async with playing(tmp_path, pool_name) as (node, shard, pool):
            shard.may_answer = trio.Event()
            with trio.move_on_after(0.05):
                await node.publish(TOPICS[0], b"data")
            await shard.wait_for(1)
            waiting = len(pool)

            if lost:
                await shard.connections[0].aclose()
            shard.may_answer.set()
            while len(pool):
                await trio.sleep(0.005)

            assert waiting == 1
            assert shard.asked == [(Kind.PUBLISH, TOPICS[0])]

    trio.run(test)


def test_a_subscription_given_up_while_others_are_made_again_is_not_made_again(tmp_path: Path, pool_name: str) -> None:
    async def test() -> None:
        async with playing(tmp_path, pool_name) as (node, shard, _):
            for topic in TOPICS:
                await node.subscribe(topic)
            shard.asked.clear()
            shard.may_answer = trio.Event()

            await shard.connections[0].aclose()
            await shard.wait_for(1)
            with trio.move_on_after(0.05):
                await node.unsubscribe(TOPICS[1])
            shard.may_answer.set()
            await node.publish(TOPICS[2], b"still there")

            assert shard.asked == [(Kind.SUBSCRIBE, TOPICS[0]), (Kind.SUBSCRIBE, TOPICS[2]), (Kind.PUBLISH, TOPICS[2])]

    trio.run(test)
