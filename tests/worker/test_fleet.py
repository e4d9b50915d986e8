"""Claims about a real fleet: shards in processes of their own, a stock peer outside, kills and ends."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.pubsub.pb import rpc_pb2

from shmpool import Policy, Pool, PoolNotFoundError, TopicRef
from tests.worker.stock import StockPeer, hostile_peer, stock_peer
from worker.bus import Connection, Greeting, connect
from worker.errors import BusClosedError, BusError, FleetError, RequestRefusedError, ShardLostError
from worker.fleet import socket_path
from worker.frames import NAMES, REFS, Frame, Kind
from worker.node import Node, open_node
from worker.supervisor import FAILED_START_LIMIT, Fleet, FleetOptions, run_fleet

ROOT = Path(__file__).parents[2]
TOPICS = [f"/eth2/6a95a1a9/data_column_sidecar_{number}/ssz_snappy" for number in range(8)]  # of both shards: see below
OPTIONS = ["--policy", "lru:1000", "--seen", "shared"]  # of the command
DEADLINE_S = 120.0

# py-libp2p closes some of its sockets by leaving them to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("garbage_of_this_test"),
]


@pytest.fixture
def garbage_of_this_test() -> Iterator[None]:
    """Collected before the test ends, so that no other test is blamed."""
    yield
    gc.collect()


@asynccontextmanager
async def running(shard_count: int = 2, **options: Any) -> AsyncIterator[tuple[Fleet, Node]]:
    """A fleet and an application of it."""
    with trio.fail_after(DEADLINE_S):
        async with run_fleet(FleetOptions(shard_count, **options)) as fleet, open_node(fleet.directory) as node:
            yield fleet, node


@asynccontextmanager
async def running_with_stock_peer() -> AsyncIterator[tuple[Fleet, Node, StockPeer]]:
    """The same, subscribed to TOPICS, and a stock peer that dialled shard 0 and is in every topic's mesh."""
    async with running() as (fleet, node), stock_peer(*TOPICS) as stock:
        for topic in TOPICS:
            await node.subscribe(topic.encode())
        await stock.dial(fleet.addresses[0])
        await stock.wait_for_meshes(*TOPICS)
        yield fleet, node, stock


async def exchange(node: Node, stock: StockPeer, topics: list[str], data: bytes) -> None:
    """One message each way on each topic."""
    for topic in topics:
        await stock.publish(topic, data)
        message = await anext(aiter(node))
        assert (message.topic, message.data) == (topic.encode(), data)
        assert await node.publish(topic.encode(), data) == 1
        assert await stock.heard.receive() == (topic, data)


def run_demo(*options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "tools/demo.py", "--shards", "2", "--seed", "7", "--json", *options],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def each_once(count: int) -> dict[str, int]:
    return {"sent": count, "delivered": count, "duplicates": 0, "lost": 0, "wrong": 0}


@pytest.mark.parametrize("interning", ["on", "off"])
def test_the_demo_loses_nothing_and_every_process_agrees(interning: str) -> None:
    figures = run_demo("--messages", "300", "--interning", interning)

    for way in ("outwards", "inwards"):
        assert figures[way] | each_once(300) == figures[way]
    assert figures["outside_dialled"] == 1
    assert figures["outside_connected"] == 2
    assert figures["processes_compared"] == 3
    if interning == "on":
        assert figures["refs_equal"] is True
        assert figures["pool"]["topics"] == figures["topics"] == 205
        assert figures["pool"]["process_count"] == 3
    else:
        assert figures["refs_equal"] is None
        assert figures["pool"] is None


def test_the_demo_runs_under_a_policy_that_lets_topics_go_and_with_a_shared_seen_cache(tmp_path: Path) -> None:
    """On few topics; under each policy and on all of them it is tools/demo.py --policy."""
    topics = tmp_path / "topics"
    topics.write_text("\n".join(TOPICS))

    figures = run_demo("--messages", "40", "--topics", str(topics), "--policy", "refcount", "--seen", "shared")

    for way in ("outwards", "inwards"):
        assert figures[way] | each_once(40) == figures[way]
    assert figures["refs_equal"] is True
    assert (figures["pool"]["policy"], figures["seen"]) == ("refcount", "shared")
    assert figures["pool"]["topics"] == len(TOPICS)
    assert figures["pool"]["holds"] >= 3 * len(TOPICS)  # by the application, a shard, its router


def test_the_demo_fails_when_messages_are_lost() -> None:
    process = subprocess.Popen(
        [sys.executable, "tools/demo.py", "--shards", "2", "--messages", "1000", "--seed", "7", "--json"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "messages" in line:  # a tenth of them has arrived
            break
    [outside] = [pid for pid in children(process.pid) if b"tools.outside_peer" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    os.kill(outside, signal.SIGKILL)
    figures, errors = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 1, errors
    result = json.loads(figures)
    assert "the outside peer ended early (-9)" in result["problems"]
    for way in (result["outwards"], result["inwards"]):
        assert way["sent"] > 0
        assert way["lost"] == 1000 - way["delivered"] > 0


def test_a_killed_shard_comes_back_with_its_topics_and_the_other_never_stops() -> None:
    async def test() -> None:
        async with running_with_stock_peer() as (fleet, node, stock):
            victim, survivor = await node.report([])
            kept = [topic for topic in TOPICS if node.owner(topic.encode()) == survivor["shard"]]
            lost = [topic for topic in TOPICS if node.owner(topic.encode()) == victim["shard"]]
            assert kept
            assert lost

            os.kill(victim["pid"], signal.SIGKILL)
            await exchange(node, stock, kept, b"while the other is away")
            await wait_for(lambda: fleet.members[victim["shard"]].restart_count == 1)
            await fleet.wait_ready()
            await wait_for_mesh_of_all(node)
            await stock.wait_for_meshes(*TOPICS)

            await exchange(node, stock, TOPICS, b"after it is back")
            again = await node.report([])
            assert again[0]["pid"] != victim["pid"]
            assert (again[0]["peer_id"], again[0]["addresses"]) == (victim["peer_id"], victim["addresses"])
            assert again[1]["pid"] == survivor["pid"]
            assert sorted(again[0]["joined"]) == sorted(lost)

    trio.run(test)


def test_a_publish_whose_shard_is_killed_is_an_error_and_not_a_silence() -> None:
    async def test() -> None:
        async with running(topics=tuple(TOPICS)) as (_, node):
            shard = (await node.report([]))[node.owner(TOPICS[0].encode())]
            os.kill(shard["pid"], signal.SIGSTOP)
            async with trio.open_nursery() as nursery:

                async def publish() -> None:
                    with pytest.raises(ShardLostError):
                        await node.publish(TOPICS[0].encode(), b"never answered")

                nursery.start_soon(publish)
                await trio.testing.wait_all_tasks_blocked(0.05)
                os.kill(shard["pid"], signal.SIGKILL)

            assert await node.publish(TOPICS[0].encode(), b"to the one that came back") == 0

    trio.run(test)


def test_who_subscribes_again_at_once_does_not_keep_the_node_from_connecting_again(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Connection.send
    refused = 0
    noticed = trio.Event()

    async def send_when_noticed(connection: Connection[Any], frame: Frame[Any]) -> None:
        """As a connection whose end only another task has yet to notice."""
        nonlocal refused
        if not noticed.is_set():
            refused += 1
            assert refused < 1000
            raise BusClosedError("closed")
        await send(connection, frame)

    async def notice() -> None:
        noticed.set()

    async def test() -> None:
        async with running(1, interning=False) as (_, node), trio.open_nursery() as nursery:
            await node.report([])  # it is connected
            monkeypatch.setattr(Connection, "send", send_when_noticed)
            nursery.start_soon(notice)

            await node.subscribe(TOPICS[0].encode())

            assert await joined(node) == {TOPICS[0].encode()}

    trio.run(test)


def test_a_shard_that_cannot_come_back_yet_is_tried_on_and_the_others_serve() -> None:
    async def test() -> None:
        async with running(topics=tuple(TOPICS)) as (fleet, node):
            victim = (await node.report([]))[0]
            of_another = next(topic.encode() for topic in TOPICS if node.owner(topic.encode()) == 1)
            with socket.socket() as taken:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as the shard has it, which still listens
                taken.bind(("127.0.0.1", int(victim["addresses"][0].split("/")[4])))
                taken.listen()
                os.kill(victim["pid"], signal.SIGKILL)
                await wait_for(lambda: fleet.members[0].restart_count > FAILED_START_LIMIT)
                assert await node.publish(of_another, b"served") == 0
            await fleet.wait_ready()

            assert (await node.report([]))[0]["addresses"] == victim["addresses"]
            assert fleet.members[1].restart_count == 0

    trio.run(test)


def test_a_peer_that_sends_garbage_costs_no_shard() -> None:
    async def test() -> None:
        async with running_with_stock_peer() as (fleet, node, stock):
            for address in fleet.addresses:
                async with hostile_peer(address) as hostile:
                    await hostile.send(rpc_pb2.RPC(publish=[rpc_pb2.Message(data=b"unsigned", topicIDs=TOPICS[:1])]))
                    await hostile.write(b"\x64" + b"\xff" * 100)
                    await hostile.wait_until_disconnected()

            await exchange(node, stock, TOPICS, b"still here")
            assert [member.restart_count for member in fleet.members] == [0, 0]
            reports = await node.report([])
            assert [report["host"]["bad_frames"] for report in reports] == [1, 1]
            assert sum(report["host"]["misbehaviour"].get("MALFORMED_MESSAGE", 0) for report in reports) == 1

    trio.run(test)


def test_strangers_topics_do_not_enter_the_pool_and_are_not_forgotten() -> None:
    unknown = [f"/unknown/{number}" for number in range(50)]

    async def test() -> None:
        async with running() as (fleet, node), stock_peer(*unknown, TOPICS[0]) as stock:
            await node.subscribe(TOPICS[0].encode())
            await stock.dial(fleet.addresses[0])
            await stock.wait_for_meshes(TOPICS[0])
            assert node.pool is not None
            assert [value for _, value in node.pool] == [TOPICS[0].encode()]

            await node.subscribe(unknown[3].encode())
            await stock.wait_for_meshes(unknown[3])
            await exchange(node, stock, [unknown[3]], b"a late join")

            assert {value for _, value in node.pool} == {TOPICS[0].encode(), unknown[3].encode()}

    trio.run(test)


def test_others_see_what_shards_and_applications_count_without_asking_them() -> None:
    async def test() -> None:
        async with running(1, topics=(TOPICS[0],)) as (fleet, node):
            with Pool.attach(fleet.info.pool or "") as watcher:
                for number in range(20):
                    await node.publish(TOPICS[0].encode(), b"%d" % number)

                await wait_for(lambda: sum(process.counters.hits >= 20 for process in watcher.stats().processes) == 2)

    trio.run(test)


def test_every_shard_dials_the_configured_peers_and_joins_the_configured_topics_it_owns() -> None:
    async def test() -> None:
        async with stock_peer(*TOPICS) as stock, running(peers=(stock.address,), topics=tuple(TOPICS)) as (_, node):
            await stock.wait_for_meshes(*TOPICS)

            reports = await node.report([topic.encode() for topic in TOPICS])

            assert len(stock.pubsub.peers) == 2
            assert {topic: report["shard"] for report in reports for topic in report["joined"]} == {
                topic: node.owner(topic.encode()) for topic in TOPICS
            }
            assert reports[0]["refs"] == reports[1]["refs"] == [node.ref(topic.encode()) for topic in TOPICS]
            assert len(set(reports[0]["refs"])) == len(TOPICS)

    trio.run(test)


def test_applications_of_one_host_hear_each_other_and_not_themselves() -> None:
    async def test() -> None:
        async with running() as (fleet, one), open_node(fleet.directory) as two:
            for node in (one, two):
                for topic in TOPICS:
                    await node.subscribe(topic.encode())

            for topic in TOPICS:
                await one.publish(topic.encode(), b"from one")
                await two.publish(topic.encode(), b"from two")

                assert [await anext(aiter(node)) for node in (one, two)] == [
                    (topic.encode(), b"from two", one.ref(topic.encode())),
                    (topic.encode(), b"from one", one.ref(topic.encode())),
                ]

    trio.run(test)


def test_an_application_that_does_not_read_loses_its_own_messages_counted_and_is_still_answered() -> None:
    async def test() -> None:
        async with running(1, interning=False) as (fleet, writer), open_node(fleet.directory, inbox_messages=4) as idle:
            await idle.subscribe(TOPICS[0].encode())

            for number in range(20):
                await writer.publish(TOPICS[0].encode(), b"%d" % number)
            await idle.report([])  # answered after all that was sent before it

            assert idle.dropped == 16
            assert [(await anext(aiter(idle))).data for _ in range(4)] == [b"0", b"1", b"2", b"3"]

    trio.run(test)


def test_a_topic_is_left_when_its_last_application_unsubscribes_or_goes() -> None:
    first, second = (topic.encode() for topic in TOPICS[:2])

    async def test() -> None:
        async with running(1, interning=False) as (fleet, node):
            async with open_node(fleet.directory) as other:
                for topic in (first, second):
                    await node.subscribe(topic)
                    await other.subscribe(topic)
                await node.unsubscribe(first)

                assert await joined(node) == {first, second}

            await node.unsubscribe(second)
            while await joined(node):  # the other's end is noticed when it is noticed
                await trio.sleep(0.005)

    trio.run(test)


def test_what_libp2p_cannot_carry_is_refused_in_words() -> None:
    async def test() -> None:
        async with running(1, interning=False) as (_, node):
            with pytest.raises(RequestRefusedError, match="utf-8"):
                await node.publish(b"\xff\xfe", b"x")
            with pytest.raises(RequestRefusedError, match="utf-8"):
                await node.subscribe(b"\xff\xfe")
            with pytest.raises(RequestRefusedError, match="a message of 1048577 bytes"):
                await node.publish(b"topic", bytes((1 << 20) + 1))

            assert await node.publish(b"topic", b"fine") == 0

    trio.run(test)


def test_a_shard_refuses_what_it_does_not_own_or_understand_and_goes_on() -> None:
    async def test() -> None:
        async with running(interning=False) as (fleet, node), trio.open_nursery() as nursery:
            theirs = next(topic.encode() for topic in TOPICS if node.owner(topic.encode()) == 1)
            shard = await connect(nursery, socket_path(fleet.directory, 0), NAMES, Greeting("", "a test"))
            requests = [
                (Frame(Kind.SUBSCRIBE, theirs), b"shard 1 owns this topic, not shard 0"),
                (Frame(Kind.PUBLISH, theirs, b"data"), b"shard 1 owns this topic, not shard 0"),
                (Frame(Kind.REPORT, b"", b"{"), b"Expecting property name"),
                (Frame(Kind.REPORT, b"", b"[1]"), b"a JSON list of topics"),
                (Frame(Kind.MESSAGE, theirs, b"data"), b"a MESSAGE frame is no request"),
            ]

            for request, reason in requests:
                await shard.send(request)
                answer = await shard.receive()

                assert answer is not None
                assert answer.kind is Kind.FAILED
                assert reason in answer.payload

            await shard.send(Frame(Kind.INTRODUCE, b"", b"nobody"))
            assert await shard.receive() is None
            while (await node.report([]))[0]["bus"]["refused"] == 0:  # counted once the connection is closed
                await trio.sleep(0.005)
            assert [member.restart_count for member in fleet.members] == [0, 0]
            nursery.cancel_scope.cancel()

    trio.run(test)


def test_a_stale_ref_is_refused_and_the_shard_goes_on() -> None:
    async def test() -> None:
        async with running(1) as (fleet, node), trio.open_nursery() as nursery:
            shard = await connect(nursery, socket_path(fleet.directory, 0), REFS, Greeting(fleet.info.pool or "", "a test"))

            for ref in (0, 12345, 2**63):
                for kind in (Kind.SUBSCRIBE, Kind.PUBLISH):
                    await shard.send(Frame(kind, TopicRef(ref), b"data"))
                    answer = await shard.receive()

                    assert answer is not None
                    assert answer.kind is Kind.FAILED

            assert (await node.report([]))[0]["joined"] == []
            nursery.cancel_scope.cancel()

    trio.run(test)


def test_a_node_of_no_fleet_is_an_error_in_words(tmp_path: Path) -> None:
    private = tmp_path / "none"
    private.mkdir(mode=0o700)

    async def test() -> None:
        with pytest.raises(BusError, match="not the directory of a running fleet"):
            async with open_node(private):
                pass

    trio.run(test)


def test_a_fleet_that_cannot_start_ends_with_an_error_and_leaves_nothing() -> None:
    async def test() -> None:
        with pytest.RaisesGroup(pytest.RaisesExc(FleetError, match="ended 3 times before it was ready")):
            async with run_fleet(FleetOptions(1, listen="/ip4/192.0.2.1/tcp/0", pool_name="cannot-start")):
                pass

    trio.run(test)

    with pytest.raises(PoolNotFoundError):
        Pool.attach("cannot-start")


@pytest.mark.parametrize(
    "options",
    [
        {"shard_count": 0}, {"shard_count": 1025}, {"shard_count": 2, "listen": "/ip4/127.0.0.1/udp/1"},
        {"shard_count": 2, "listen": "/ip4/127.0.0.1/tcp/65535"}, {"shard_count": 2, "peers": ("/ip4/127.0.0.1/tcp/1",)},
        {"shard_count": 2, "seen": "all"}, {"shard_count": 2, "interning": False, "policy": Policy.refcount()},
    ],
)  # fmt: skip
def test_options_that_make_no_fleet_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"will do|need|neither|there is none"):
        FleetOptions(**options)


class Command:
    """`python -m worker` in a process of its own, once it has said where it listens."""

    def __init__(self, tmp_path: Path, pool_name: str) -> None:
        topics = tmp_path / "topics"
        topics.write_text("\n".join(TOPICS))
        self.pool_name = pool_name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker", "--shards", "2", "--pool", pool_name, "--topics", str(topics), *OPTIONS],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.directory = Path(self.process.stdout.readline().split()[1].rstrip(","))
        self.addresses = [self.process.stdout.readline().split()[-1] for _ in range(2)]
        self.shard_pids = children(self.process.pid)

    def end(self, signal_number: int) -> tuple[int, str]:
        """Send the signal; returns the exit status and what it said on standard error."""
        self.process.send_signal(signal_number)
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors

    def assert_gone(self) -> None:
        """Nothing of it is left: shards, sockets, pools."""
        deadline = time.monotonic() + DEADLINE_S
        while any(is_alive(pid) for pid in self.shard_pids) or self.directory.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for name in (self.pool_name, f"{self.pool_name}-seen"):
            with pytest.raises(PoolNotFoundError):
                Pool.attach(name)


@pytest.fixture
def command(tmp_path: Path, pool_name: str) -> Iterator[Command]:
    command = Command(tmp_path, pool_name)
    yield command
    command.process.kill()
    command.process.communicate(timeout=DEADLINE_S)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_on_a_signal_and_leaves_nothing(command: Command, signal_number: int) -> None:
    assert len(command.shard_pids) == 2
    assert all("/p2p/" in address for address in command.addresses)

    status, errors = command.end(signal_number)

    assert (status, errors) == (0, "")
    command.assert_gone()


def test_shards_whose_supervisor_is_killed_end_and_leave_nothing(command: Command) -> None:
    command.end(signal.SIGKILL)

    command.assert_gone()


def test_a_node_whose_fleet_ends_learns_it(command: Command) -> None:
    async def test() -> None:
        with trio.fail_after(DEADLINE_S):
            async with open_node(command.directory) as node:
                await node.subscribe(TOPICS[0].encode())
                await trio.to_thread.run_sync(command.end, signal.SIGTERM)
                await node.publish(TOPICS[0].encode(), b"never taken")

    with pytest.RaisesGroup(pytest.RaisesExc(BusError, match="has ended"), flatten_subgroups=True):
        trio.run(test)

    command.assert_gone()


@pytest.mark.parametrize(
    "arguments",
    [["--shards", "0"], ["--topics", "/no/such/file"], ["--peer", "nobody"], ["--policy", "lru"], ["--seen", "all"],
     ["--policy", "refcount", "--interning", "off"]],
)  # fmt: skip
def test_the_command_refuses_bad_options_in_a_sentence(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )

    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


async def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.005)


async def wait_for_mesh_of_all(node: Node) -> None:
    """Until every shard has a peer in the mesh of each topic it has joined, and all topics are joined."""
    while sum(report["meshed"] for report in await node.report([])) < len(TOPICS):
        await trio.sleep(0.01)


async def joined(node: Node) -> set[bytes]:
    return {topic.encode() for report in await node.report([]) for topic in report["joined"]}


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")  # a child belongs to the thread that started it
    return [int(child) for task in tasks.glob("*/children") for child in task.read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which only its parent can remove, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
