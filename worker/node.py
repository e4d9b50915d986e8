"""What an application sees of a fleet: subscribe, publish, and iterate over messages, whichever shard owns what.

    async with open_node(directory) as node:
        await node.subscribe(b"/eth2/6a95a1a9/beacon_block/ssz_snappy")
        async for message in node:
            ...

Guarantees:
- A subscription lasts until `unsubscribe` or the end of the block: after a shard was restarted it is made again.
- `publish` returns once the owner's router has taken the message, and raises `ShardLostError` if it is not known to have.
- Every key that a shard is sent is held here until it has answered, also when nobody waits for the answer any more: by then
  the shard holds what it keeps. So no request can reach a live shard with a ref that has gone.
- Nothing is dropped silently: a message that finds the inbox full is counted in `dropped` and logged. (Reading must not
  stop instead: the answers to this node's own requests come the same way.)
- Messages of one topic come in the order in which its shard delivered them. Those of a shard's restart are lost to this
  node, as gossip is to any peer that is away.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from worker.bus import Connection, Greeting, connect
from worker.errors import BusClosedError, BusError, BusProtocolError, NodeError, RequestRefusedError, ShardLostError
from worker.fleet import FleetInfo, Naming, naming, socket_path
from worker.frames import Frame, Kind
from worker.ownership import Ownership, owner_of
from worker.topics import HeldDict, Topics, interned

if TYPE_CHECKING:
    from shmpool import Pool

log = logging.getLogger(__name__)

INBOX_MESSAGES: Final = 4096
RECONNECT_S: Final = 0.1
PUBLISH_DEADLINE_S: Final = 30.0


class Message(NamedTuple):
    """What was heard. `ref` is the topic's `TopicRef`, the same in every process of the host; None with interning off.

    It is good for as long as this node subscribes to the topic.
    """

    topic: bytes
    data: bytes
    ref: int | None


class Node:
    """An application's end of a fleet; made by `open_node`. Any number of tasks may use it, one at a time iterate."""

    def __init__(self, directory: Path, info: FleetInfo, names: Naming, *, inbox_messages: int) -> None:
        self.directory = directory
        self.info = info
        self.dropped = 0
        self._names = names
        self._ownership = Ownership(info.shard_count, names.topics.resolve)
        self._links = [_Link(self, index, names) for index in range(info.shard_count)]
        self._subscribed: HeldDict[Any, None] = HeldDict(names.topics)
        self._send_inbox, self._inbox = trio.open_memory_channel[Message](inbox_messages)

    async def subscribe(self, topic: bytes) -> None:
        """Hear `topic` from now on. Returns once its owner has joined it. Raises `RequestRefusedError`, as the pool does.

        While the owner is being restarted this waits: the subscription is made when it is back.
        """
        with interned(self._names.topics, topic) as key:
            self._subscribed[key] = None
            try:
                while True:
                    try:
                        await self._link(key).ask(Kind.SUBSCRIBE, key)
                    except ShardLostError:
                        continue
                    return
            except RequestRefusedError:
                self._subscribed.pop(key)
                raise

    async def unsubscribe(self, topic: bytes) -> None:
        """Hear `topic` no longer; messages already in the inbox stay. Nothing happens if it was not subscribed."""
        key = self._names.topics.lookup(topic)
        if key is not None and key in self._subscribed:
            with interned(self._names.topics, topic):
                del self._subscribed[key]
                await self._link(key).ask(Kind.UNSUBSCRIBE, key)

    async def publish(self, topic: bytes, data: bytes) -> int:
        """Send `data` to `topic`'s peers and this host's other applications. Returns for how many peers it was queued.

        Raises `RequestRefusedError` (too long, not UTF-8), `ShardLostError`, and as the pool does for a new topic.
        """
        with interned(self._names.topics, topic) as key, trio.move_on_after(PUBLISH_DEADLINE_S):
            return int.from_bytes(await self._link(key).ask(Kind.PUBLISH, key, data), "big")
        raise ShardLostError(f"shard {self.owner(topic)} did not answer within {PUBLISH_DEADLINE_S:g} s")

    def owner(self, topic: bytes) -> int:
        """The index of the shard that owns `topic`."""
        return owner_of(topic, self.info.shard_count)

    @property
    def pool(self) -> Pool | None:
        """The fleet's pool as this process has it open; None with interning off."""
        return self._names.pool

    def ref(self, topic: bytes) -> int | None:
        """This process's own `TopicRef` of `topic`, or None if no process has interned it (or with interning off)."""
        return self._names.topics.lookup(topic) if self._names.pool is not None else None

    async def report(self, topics: list[bytes]) -> list[dict[str, Any]]:
        """What each shard knows, in order of index: counts, topics joined, and its own refs of `topics`."""
        question = json.dumps([topic.decode() for topic in topics]).encode()
        nothing = self._names.codec.nothing
        return [json.loads(await link.ask(Kind.REPORT, nothing, question)) for link in self._links]

    def open_inbox(self) -> AbstractContextManager[Any]:
        """Until it is left; then iterating ends after what is already there."""
        return self._send_inbox

    def __aiter__(self) -> AsyncIterator[Message]:
        return self._inbox

    async def keep_connected(self) -> None:
        """Stay connected to every shard until cancelled."""
        async with trio.open_nursery() as nursery:
            for link in self._links:
                nursery.start_soon(link.keep, nursery)

    def greeting(self) -> Greeting:
        return Greeting(self.info.pool or "", f"the node of pid {os.getpid()}")

    def subscriptions(self, shard: int) -> list[Any]:
        """Keys of the subscribed topics that `shard` owns."""
        return [key for key in self._subscribed if self._ownership.owner(key) == shard]

    def is_subscribed(self, key: Any) -> bool:
        return key in self._subscribed

    def hear(self, frame: Frame[Any]) -> None:
        """A MESSAGE frame arrived."""
        if frame.key not in self._subscribed:
            return  # unsubscribed while it was on its way
        ref = frame.key if self._names.pool is not None else None
        try:
            self._send_inbox.send_nowait(Message(self._names.topics.resolve(frame.key), frame.payload, ref))
        except trio.WouldBlock:
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:  # the 1st, 2nd, 4th, ...: said, without becoming a flood itself
                log.warning("the application reads too slowly: %d messages dropped so far", self.dropped)

    def _link(self, key: Any) -> _Link:
        return self._links[self._ownership.owner(key)]


@asynccontextmanager
async def open_node(directory: Path, *, inbox_messages: int = INBOX_MESSAGES) -> AsyncIterator[Node]:
    """Attach to the fleet in `directory` for the block. Raises `BusError` if there is none, and as the pool does.

    Exceptions of the block come in a group, as from a nursery; with them `BusError` if the fleet ends before the block.
    """
    info = FleetInfo.read(directory)
    with naming(info) as names:
        node = Node(directory, info, names, inbox_messages=inbox_messages)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.keep_connected)
            nursery.start_soon(names.keep_counters_public)
            with node.open_inbox():
                yield node
            nursery.cancel_scope.cancel()


class _Link:
    """The connection to one shard, made again whenever it breaks, and the requests that wait for its answers."""

    def __init__(self, node: Node, index: int, names: Naming) -> None:
        self._node = node
        self._topics = names.topics
        self._codec = names.codec
        self._index = index
        self._connection: Connection[Any] | None = None
        self._connected = trio.Event()
        self._waiting: deque[_Request] = deque()  # in the order sent: so do the answers come

    async def ask(self, kind: Kind, key: Any, payload: bytes = b"") -> bytes:
        """Send a request and return its answer's payload. Waits for a shard that is not up."""
        while self._connection is None:
            await self._connected.wait()
        return await self._request(self._connection, kind, key, payload)

    async def keep(self, nursery: trio.Nursery) -> None:
        path = socket_path(self._node.directory, self._index)
        while True:
            try:
                connection = await connect(nursery, path, self._codec, self._node.greeting())
            except (OSError, BusClosedError):  # not up yet, or being restarted
                if not self._node.directory.exists():
                    raise BusError(f"the fleet in {self._node.directory} has ended") from None
                await trio.sleep(RECONNECT_S)
                continue
            try:
                async with trio.open_nursery() as reading:
                    reading.start_soon(self._subscribe_again, connection)
                    await self._read(connection)
                    reading.cancel_scope.cancel()
            finally:
                self._lose()
                await connection.aclose()

    async def _subscribe_again(self, connection: Connection[Any]) -> None:
        """Make the subscriptions of before, then let requests through."""
        for key in self._node.subscriptions(self._index):
            if not self._node.is_subscribed(key):
                continue  # no longer, since the one before it was asked for; its key may have gone with it
            try:
                await self._request(connection, Kind.SUBSCRIBE, key)
            except NodeError as error:
                log.warning("shard %d: a subscription was not made again: %s", self._index, error)
        self._connection = connection
        self._connected.set()

    async def _read(self, connection: Connection[Any]) -> None:
        try:
            async for frame in connection:
                if frame.kind is Kind.MESSAGE:
                    self._node.hear(frame)
                elif not self._waiting:
                    raise BusProtocolError(f"{connection.peer.who} answered what was not asked")
                else:
                    self._waiting.popleft().answer(frame)
        except BusError as error:
            log.warning("the connection to shard %d is made again: %s", self._index, error)

    async def _request(self, connection: Connection[Any], kind: Kind, key: Any, payload: bytes = b"") -> bytes:
        request = _Request(self._topics, None if kind is Kind.REPORT else key)
        try:
            await connection.send(Frame(kind, key, payload))
        except BaseException as error:
            request.answer(None)
            if not isinstance(error, BusClosedError):
                raise
            # Who asks again at once must not keep the reading task from noticing the end, and from connecting again.
            await trio.lowlevel.checkpoint()
            raise ShardLostError(f"shard {self._index} went away") from None
        # `send` queues last of all, and no other task runs before this line: requests wait in the order of the queue.
        self._waiting.append(request)
        frame = await request.answered()
        if frame is None:
            raise ShardLostError(f"shard {self._index} went away before it answered")
        if frame.kind is Kind.FAILED:
            raise RequestRefusedError(frame.payload.decode())
        return frame.payload

    def _lose(self) -> None:
        self._connection = None
        self._connected = trio.Event()
        while self._waiting:
            self._waiting.popleft().answer(None)


class _Request:
    """One request's answer, when it comes. If the asking task was cancelled, the answer goes nowhere, in its turn.

    Holds the key that it is about until then: the frame may still be on its way when the asking task is gone.
    """

    def __init__(self, topics: Topics[Any], key: Any) -> None:
        """`key` is None for a request about no topic."""
        self._topics = topics
        self._key = key
        self._answered = trio.Event()
        self._frame: Frame[Any] | None = None
        if key is not None:
            topics.hold(key)

    def answer(self, frame: Frame[Any] | None) -> None:
        """Once. None: there will be none."""
        self._frame = frame
        self._answered.set()
        if self._key is not None:
            self._topics.release(self._key)

    async def answered(self) -> Frame[Any] | None:
        await self._answered.wait()
        return self._frame
