"""Claims about the holds of a real fleet whose pool is refcounted: nothing leaks, and no ref is stale where it arrives."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from shmpool import Policy, Pool
from worker import supervisor
from worker.errors import RequestRefusedError
from worker.node import Node, open_node
from worker.supervisor import Fleet, FleetOptions, run_fleet

ROOT = Path(__file__).parents[2]
TOPICS = [f"/eth2/6a95a1a9/data_column_sidecar_{number}/ssz_snappy".encode() for number in range(4)]
DEADLINE_S = 120.0

# py-libp2p closes some of its sockets by leaving them to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("garbage_of_this_test"),
]

# An application of its own process: subscribes, says so, and goes on until it is killed.
APPLICATION = """
import sys, trio
from pathlib import Path
from worker.node import open_node

async def main():
    async with open_node(Path(sys.argv[1])) as node:
        for topic in sys.argv[2:]:
            await node.subscribe(topic.encode())
        print("subscribed", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.fixture
def garbage_of_this_test() -> Iterator[None]:
    """Collected before the test ends, so that no other test is blamed."""
    yield
    gc.collect()


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Fleet, Node, Pool]]:
    """A fleet of one shard, an application of it, and its refcounted pool."""
    with trio.fail_after(DEADLINE_S):
        async with run_fleet(FleetOptions(1, policy=Policy.refcount())) as fleet, open_node(fleet.directory) as node:
            assert node.pool is not None
            yield fleet, node, node.pool


async def empty(pool: Pool) -> None:
    """Until nobody holds anything. The test's deadline ends it otherwise."""
    while len(pool):
        await trio.sleep(0.02)
    assert pool.stats().holds == 0
    assert pool.check() == []


def test_a_fleet_holds_what_is_subscribed_and_nothing_once_nobody_is() -> None:
    async def test() -> None:
        async with running() as (_, node, pool):
            for topic in TOPICS[:3] * 3:  # again and again: the first leak of others
                await node.subscribe(topic)
            for topic in TOPICS:  # the last without a subscription, then with one: the second
                await node.publish(topic, b"data")
            await node.subscribe(TOPICS[3])
            for refused in (node.subscribe(b"\xff\xfe"), node.publish(b"\xff\xfe", b""), node.publish(b"t", bytes(1 << 20))):
                with pytest.raises(RequestRefusedError):
                    await refused
            held = {topic.value: len(pool.holders(topic.ref)) for topic in pool.top(100, by="holds")}

            for topic in TOPICS * 2:
                await node.unsubscribe(topic)

            assert held == dict.fromkeys(TOPICS, 2)  # by the shard and by the application
            await empty(pool)  # when the messages are no longer recent

    trio.run(test)


def test_a_killed_shard_leaks_no_hold() -> None:
    async def test() -> None:
        async with running() as (fleet, node, pool):
            for topic in TOPICS:
                await node.subscribe(topic)
            [report] = await node.report([])

            os.kill(report["pid"], signal.SIGKILL)
            while fleet.members[0].restart_count == 0:
                await trio.sleep(0.005)
            holders = [holder for topic in pool.top(100, by="holds") for holder in pool.holders(topic.ref)]
            await fleet.wait_ready()
            for topic in TOPICS:
                await node.unsubscribe(topic)

            assert {holder.pid for holder in holders} == {os.getpid()}
            await empty(pool)

    trio.run(test)


def test_a_killed_application_leaks_no_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "REAP_INTERVAL_S", 0.2)

    async def test() -> None:
        async with running() as (fleet, _, pool):
            application = subprocess.Popen(
                [sys.executable, "-c", APPLICATION, str(fleet.directory), *(topic.decode() for topic in TOPICS)],
                cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert application.stdout is not None
            try:
                assert await trio.to_thread.run_sync(application.stdout.readline) == b"subscribed\n"
                count = len(pool)
            finally:
                application.kill()
                application.communicate()

            assert count == len(TOPICS)
            await empty(pool)

    trio.run(test)
