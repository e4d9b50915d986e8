"""Claims about the bus: real Unix sockets, both ends in this process unless the claim is about another."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from worker.bus import Connection, Greeting, Listener, connect
from worker.errors import BusClosedError, BusError, BusProtocolError, FrameError
from worker.frames import MAX_FRAME_SIZE, NAMES, REFS, Codec, Frame, Kind, pack, unpack

POOL = Greeting("pool", "a test")
DEADLINE_S = 20.0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    private = tmp_path / "bus"
    private.mkdir(mode=0o700)
    return private


class Server:
    """A listener whose handler keeps what it hears, and its connections."""

    def __init__(self, path: Path, codec: Codec[Any], **options: Any) -> None:
        self.listener: Listener[Any] = Listener(path, codec, POOL, **options)
        self.connections: list[Connection[Any]] = []
        self._send, self.heard = trio.open_memory_channel[Frame[Any]](1000)
        self.ended = trio.Event()

    async def handle(self, connection: Connection[Any]) -> None:
        self.connections.append(connection)
        try:
            async for frame in connection:
                self._send.send_nowait(frame)
        finally:
            self.ended.set()


@asynccontextmanager
async def serving(path: Path, codec: Codec[Any] = REFS, **options: Any) -> AsyncIterator[tuple[Server, trio.Nursery]]:
    server = Server(path, codec, **options)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.listener.serve, server.handle)
            yield server, nursery
            nursery.cancel_scope.cancel()


def frame(kind: Kind, key: Any, payload: bytes = b"") -> Frame[Any]:
    return Frame(kind, key, payload)


@pytest.mark.parametrize(("codec", "key"), [(REFS, 2**62 + 5), (NAMES, b"/eth2/topic"), (NAMES, b"")])
def test_frames_arrive_whole_and_in_order(directory: Path, codec: Codec[Any], key: Any) -> None:
    frames = [frame(Kind.PUBLISH, key, bytes([number]) * size) for number, size in enumerate([0, 1, 70_000, 1 << 20])]

    async def test() -> None:
        async with serving(directory / "s", codec) as (server, nursery):
            connection = await connect(nursery, directory / "s", codec, POOL)
            for sent in frames:
                await connection.send(sent)

            assert [await server.heard.receive() for _ in frames] == frames
            assert connection.dropped == 0
            assert connection.peer == POOL

    trio.run(test)


def test_a_full_queue_drops_and_counts_and_never_waits(directory: Path) -> None:
    async def test() -> None:
        async with serving(directory / "s") as (server, nursery):
            connection = await connect(nursery, directory / "s", REFS, POOL)
            await wait_for(lambda: bool(server.connections))
            sender = server.connections[0]

            offered = [sender.offer(frame(Kind.MESSAGE, 7, bytes(1000))) for _ in range(5000)]  # no pause: nothing is written

            assert offered == [True] * 1024 + [False] * (5000 - 1024)
            assert sender.dropped == 5000 - 1024
            received = [await connection.receive() for _ in range(1024)]
            assert received == [frame(Kind.MESSAGE, 7, bytes(1000))] * 1024
            assert sender.offer(frame(Kind.MESSAGE, 7))

    trio.run(test)


def test_a_queue_is_bounded_in_bytes_too(directory: Path) -> None:
    async def test() -> None:
        async with serving(directory / "s") as (server, nursery):
            await connect(nursery, directory / "s", REFS, POOL)
            await wait_for(lambda: bool(server.connections))

            offered = [server.connections[0].offer(frame(Kind.MESSAGE, 7, bytes(1 << 20))) for _ in range(20)]

            assert offered == [True] * 15 + [False] * 5  # 16 MiB hold 15 frames of 1 MiB and a header

    trio.run(test)


def test_who_offers_is_told_just_before_a_frame_is_written_and_not_of_one_that_never_is(directory: Path) -> None:
    big = bytes(1 << 20)  # more than the socket takes at once

    async def test() -> None:
        async with serving(directory / "s") as (server, nursery):
            path = directory / "s"
            connection = await connect(nursery, path, REFS, POOL)
            told: list[int] = []
            queued = [connection.offer(frame(Kind.MESSAGE, 1), lambda: told.append(connection.sent))]
            before = list(told)
            assert (await server.heard.receive()).kind is Kind.MESSAGE

            silent = await greeted_by_hand(path)
            theirs = server.connections[-1]
            queued += [theirs.offer(frame(Kind.MESSAGE, 2, big), lambda: told.append(2)) for _ in range(3)]
            await wait_for(lambda: 2 in told)
            await trio.testing.wait_all_tasks_blocked()
            await silent.aclose()
            await theirs.aclose()

            assert queued == [True] * 4
            assert before == []
            assert told == [0, 2]  # of the others, which waited behind it, nobody was

    trio.run(test)


def test_send_waits_for_room_and_loses_nothing(directory: Path) -> None:
    count = 5000

    async def test() -> None:
        async with serving(directory / "s") as (server, nursery):
            connection = await connect(nursery, directory / "s", REFS, POOL)
            await wait_for(lambda: bool(server.connections))

            async def send_all() -> None:
                for number in range(1, count + 1):
                    await server.connections[0].send(frame(Kind.MESSAGE, number, bytes(1000)))

            nursery.start_soon(send_all)

            received = [await connection.receive() for _ in range(count)]

            assert received == [frame(Kind.MESSAGE, number, bytes(1000)) for number in range(1, count + 1)]
            assert server.connections[0].dropped == 0

    trio.run(test)


def test_a_closed_connection_refuses_to_send(directory: Path) -> None:
    async def test() -> None:
        async with serving(directory / "s") as (_, nursery):
            connection = await connect(nursery, directory / "s", REFS, POOL)
            await connection.aclose()

            with pytest.raises(BusClosedError):
                connection.offer(frame(Kind.MESSAGE, 7))
            with pytest.raises(BusClosedError):
                await connection.send(frame(Kind.MESSAGE, 7))

    trio.run(test)


def test_a_sender_that_waits_for_room_learns_that_the_connection_closed(directory: Path) -> None:
    async def test() -> None:
        async with serving(directory / "s") as (server, nursery):
            connection = await connect(nursery, directory / "s", REFS, POOL)
            await wait_for(lambda: bool(server.connections))
            refused = trio.Event()

            async def send_for_ever() -> None:
                try:
                    while True:
                        await server.connections[0].send(frame(Kind.MESSAGE, 7, bytes(1 << 20)))
                except BusClosedError:
                    refused.set()

            nursery.start_soon(send_for_ever)
            await connection.receive()
            await connection.aclose()
            await refused.wait()

    trio.run(test)


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack("!IB", MAX_FRAME_SIZE + 1, Kind.PUBLISH),  # over-long: refused before it is read
        struct.pack("!IB", 0, Kind.PUBLISH),
        struct.pack("!IBQ", 9, 200, 7),  # no such kind
        struct.pack("!IBI", 5, Kind.PUBLISH, 7),  # a ref cut short
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_frame_ends_that_connection_and_no_other(directory: Path, garbage: bytes) -> None:
    async def test() -> None:
        async with serving(directory / "s") as (server, nursery):
            good = await connect(nursery, directory / "s", REFS, POOL)
            bad = await greeted_by_hand(directory / "s")

            await bad.send_all(garbage)

            assert await drain(bad) == b""
            await bad.aclose()
            await wait_for(lambda: server.listener.refused == 1)
            await good.send(frame(Kind.PUBLISH, 7, b"still here"))
            assert await server.heard.receive() == frame(Kind.PUBLISH, 7, b"still here")

    trio.run(test)


def test_another_user_is_refused(directory: Path) -> None:
    async def test() -> None:
        async with serving(directory / "s", trusted_uid=os.geteuid() + 1) as (server, nursery):
            with pytest.raises(BusError, match="closed before it greeted"):
                await connect(nursery, directory / "s", REFS, POOL)

            assert server.listener.refused == 1
            assert server.connections == []

    trio.run(test)


@pytest.mark.parametrize(
    ("codec", "greeting", "reason"),
    [
        (NAMES, POOL, "with refs of pool 'pool'.* with names of pool 'pool'"),
        (REFS, Greeting("another", "a test"), "of pool 'pool'.* of pool 'another'"),
    ],
)
def test_ends_that_name_topics_differently_refuse_each_other(
    directory: Path, codec: Codec[Any], greeting: Greeting, reason: str
) -> None:
    async def test() -> None:
        async with serving(directory / "s") as (server, nursery):
            with pytest.raises(BusProtocolError, match=reason):
                await connect(nursery, directory / "s", codec, greeting)

            await wait_for(lambda: server.listener.refused == 1)

    trio.run(test)


def test_an_end_too_busy_to_greet_counts_as_closed_and_is_worth_another_try(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.bus.HELLO_DEADLINE_S", 0.05)

    async def test() -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(directory / "s"))
            silent.listen()
            async with trio.open_nursery() as nursery:
                with pytest.raises(BusClosedError, match="no greeting"):
                    await connect(nursery, directory / "s", REFS, POOL)

    trio.run(test)


def test_a_directory_that_others_can_enter_is_refused(directory: Path) -> None:
    directory.chmod(0o755)

    with pytest.raises(BusError, match="mode 0755"):
        Listener(directory / "s", REFS, POOL)


def test_a_socket_path_that_linux_cannot_take_is_refused_in_words(directory: Path) -> None:
    with pytest.raises(BusError, match="longer than the 107 bytes"):
        Listener(directory / ("s" * 120), REFS, POOL)


def test_the_socket_is_gone_after_serving_and_one_left_by_a_killed_process_is_taken_over(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(directory / "s"))

    async def test() -> None:
        async with serving(directory / "s") as (_, nursery):
            await connect(nursery, directory / "s", REFS, POOL)

    trio.run(test)

    assert list(directory.iterdir()) == []


def test_an_over_long_frame_is_refused_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="at most 2097152 fit"):
        pack(frame(Kind.PUBLISH, 7, bytes(MAX_FRAME_SIZE)), REFS)


def test_a_name_longer_than_its_frame_is_no_frame() -> None:
    with pytest.raises(FrameError, match="does not parse"):
        unpack(bytearray(struct.pack("!IBH", 3, Kind.PUBLISH, 500)), NAMES)


async def wait_for(condition: Callable[[], bool]) -> None:
    """Until another task has made `condition` true; the test's deadline ends it otherwise."""
    while not condition():
        await trio.sleep(0.001)


async def greeted_by_hand(path: Path) -> trio.SocketStream:
    """A raw connection after both greetings."""
    stream = await trio.open_unix_socket(str(path))
    words = b'{"bus": 1, "keys": "refs", "pool": "pool", "who": "raw"}'
    await stream.send_all(pack(frame(Kind.HELLO, b"", words), NAMES))
    buffer = bytearray()
    while unpack(buffer, NAMES) is None:
        buffer += await stream.receive_some()
    return stream


async def drain(stream: trio.SocketStream) -> bytes:
    """What still comes until the other end closes."""
    data = b""
    try:
        async for more in stream:
            data += more
    except trio.BrokenResourceError:
        pass
    return data
