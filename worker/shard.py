"""One worker process: a libp2p host for the topics that this shard owns, and a bus socket for those who use it.

Guarantees:
- A shard serves only topics that it owns; a request for another's is answered with FAILED and the owner's number.
- A topic is joined while an application that is connected subscribes to it, or if the fleet was configured with it.
- The key in a request is held by who sent it until the answer has arrived; what outlives the answer is held here by then.
- What an application does not read in time is dropped for that application only, and counted in its report.
- Every peer that connects is introduced to the siblings, again every `INTRODUCE_INTERVAL_S`, so that each of them dials
  it: a peer that knows one shard hears all topics, also after a shard was restarted or a dial failed.
- The process ends by itself when its supervisor does: standard input is the lifeline.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, Generic

import trio

from shmpool import PoolError
from worker.bus import Connection, Greeting, Listener, connect
from worker.errors import BusClosedError, BusError, BusProtocolError, HostError, RequestRefusedError, WorkerError, leaves
from worker.fleet import INFO_FILE, Naming, ShardConfig, naming, shared_seen, socket_path
from worker.frames import Codec, Frame, Kind
from worker.host import Host
from worker.messages import Message, MessageId, PeerId
from worker.ownership import Ownership, owner_of
from worker.seen import SharedSeen
from worker.topics import HeldDict, K, Topics, interned

log = logging.getLogger("worker.shard")  # not __name__: the process runs it as __main__

INTRODUCE_INTERVAL_S: Final = 10.0
SIBLING_RETRY_S: Final = 0.2
FIRST_DIAL_RETRY_S: Final = 0.2
LAST_DIAL_RETRY_S: Final = 30.0
PEER_WATCH_S: Final = 1.0
SUPERVISOR_END_S: Final = 5.0


class Shard(Generic[K]):
    """The state of one worker process. `running` is its life; everything else are the events in it."""

    def __init__(self, config: ShardConfig, names: Naming, seen: SharedSeen | None) -> None:
        topics: Topics[K] = names.topics
        codec: Codec[K] = names.codec
        self.config = config
        self.host: Host[K] = Host(
            topics,
            secret=bytes.fromhex(config.secret),
            on_message=self._deliver,
            on_peer=self._peer_connected,
            rng=Random(config.seed),
            seen=seen,
        )
        self._topics = topics
        self._codec = codec
        self._pool = names.pool
        self._seen = seen
        self._ownership = Ownership(config.info.shard_count, topics.resolve)
        self._greeting = Greeting(config.info.pool or "", f"shard {config.index}")
        self._directory = Path(config.directory)
        self._listener = Listener(socket_path(self._directory, config.index), codec, self._greeting)
        self._configured: HeldDict[K, None] = HeldDict(topics)
        for topic in self._own(config.topics):
            with interned(topics, topic) as key:
                self._configured[key] = None
        # The inner one is ordered: deliveries are in order of subscription.
        self._subscribers: HeldDict[K, dict[Connection[K], None]] = HeldDict(topics)
        self._membership = trio.Lock()
        self._joined: HeldDict[K, None] = HeldDict(topics)
        self._siblings: dict[int, Connection[K]] = {}
        self._dialling: set[tuple[str, ...]] = set()
        self._dropped = 0  # by connections that are closed by now
        self._nursery: trio.Nursery | None = None

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled. `ready` is called once the configured topics are joined and both sockets listen."""
        async with self.host.running(self.config.listen), trio.open_nursery() as nursery:
            self._nursery = nursery
            for key in self._configured:
                await self._settle(key)
            nursery.start_soon(self._listener.serve, self._serve)
            for sibling in range(self.config.info.shard_count):
                if sibling != self.config.index:
                    nursery.start_soon(self._keep_sibling, sibling)
            for address in self.config.peers:
                nursery.start_soon(self._keep_dialled, address)
            nursery.start_soon(self._keep_introducing)
            ready()

    # ---- applications

    async def _serve(self, connection: Connection[K]) -> None:
        try:
            async for frame in connection:
                if frame.kind is Kind.INTRODUCE:
                    self._introduced(connection, frame.payload)
                    continue
                try:
                    answer = Frame(Kind.DONE, frame.key, await self._answer(connection, frame))
                except (RequestRefusedError, PoolError, ValueError) as error:
                    answer = Frame(Kind.FAILED, frame.key, str(error).encode())
                await connection.send(answer)
        finally:
            self._dropped += connection.dropped
            with trio.CancelScope(shield=True):
                await self._forget(connection)

    async def _answer(self, connection: Connection[K], frame: Frame[K]) -> bytes:
        match frame.kind:
            case Kind.SUBSCRIBE:
                self._check_owned(frame.key)
                self._subscribers.setdefault(frame.key, {})[connection] = None
                try:
                    await self._settle(frame.key)
                except (PoolError, ValueError):
                    self._unsubscribe(frame.key, connection)
                    raise
            case Kind.UNSUBSCRIBE:
                self._unsubscribe(frame.key, connection)
                await self._settle(frame.key)
            case Kind.PUBLISH:
                self._check_owned(frame.key)
                peer_count = self.host.publish(self._topics.resolve(frame.key), frame.payload)
                self._hand_out(frame.key, frame.payload, except_to=connection)
                return peer_count.to_bytes(4, "big")
            case Kind.REPORT:
                return json.dumps(self.report(_topics_asked(frame.payload))).encode()
            case _:
                raise RequestRefusedError(f"a {frame.kind.name} frame is no request")
        return b""

    def report(self, topics: list[str]) -> dict[str, Any]:
        """What this shard knows: its counts, the topics it has joined, and its own ref of each of `topics`."""
        keys = [self._topics.lookup(topic.encode()) for topic in topics]
        return {
            "shard": self.config.index,
            "pid": os.getpid(),
            "peer_id": self.host.peer_id,
            "addresses": self.host.addresses,
            "peers": len(self.host.peers),
            "joined": [self._topics.resolve(key).decode() for key in self._joined],
            "meshed": sum(bool(self.host.router.mesh_peers(topic)) for topic in self.host.router.joined()),
            "refs": keys if self._pool is not None else None,
            "pool": dataclasses.asdict(self._pool.stats()) if self._pool is not None else None,
            "host": dataclasses.asdict(self.host.stats),
            "router": dataclasses.asdict(self.host.router.stats),
            "seen": None if self._seen is None else {
                "settled": self._seen.settled_count, "unsettled": self._seen.unsettled_count,
            },
            "bus": {"dropped": self._dropped + self._open_drops(), "refused": self._listener.refused},
        }

    def _deliver(self, message: Message, message_id: MessageId) -> None:
        key = self._topics.lookup(message.topic)
        settle = partial(self.host.settle, message_id)
        if key is None or not self._hand_out(key, message.data, on_write=settle):
            settle()  # nobody hears it, or who does has dropped it

    def _hand_out(
        self, key: K, data: bytes, *, except_to: Connection[K] | None = None, on_write: Callable[[], None] | None = None
    ) -> bool:
        """Whether it is on its way to anybody."""
        frame = Frame(Kind.MESSAGE, key, data)
        queued = False
        for connection in list(self._subscribers.get(key, ())):
            if connection is not except_to:
                with contextlib.suppress(BusClosedError):  # its own task is about to forget it
                    queued |= connection.offer(frame, on_write)
        return queued

    async def _settle(self, key: K) -> None:
        """Join or leave a topic, whichever its subscribers by now ask for."""
        async with self._membership:
            wanted = key in self._configured or bool(self._subscribers.get(key))
            if wanted and key not in self._joined:
                await self.host.join(self._topics.resolve(key))
                self._joined[key] = None
            elif not wanted and key in self._joined:
                await self.host.leave(self._topics.resolve(key))
                del self._joined[key]

    def _unsubscribe(self, key: K, connection: Connection[K]) -> None:
        subscribers = self._subscribers.get(key)
        if subscribers is not None:
            subscribers.pop(connection, None)
            if not subscribers:
                del self._subscribers[key]

    async def _forget(self, connection: Connection[K]) -> None:
        for key in [key for key, subscribers in self._subscribers.items() if connection in subscribers]:
            self._unsubscribe(key, connection)
            await self._settle(key)

    def _check_owned(self, key: K) -> None:
        owner = self._ownership.owner(key)
        if owner != self.config.index:
            raise RequestRefusedError(f"shard {owner} owns this topic, not shard {self.config.index}")

    def _own(self, topics: tuple[str, ...]) -> list[bytes]:
        count = self.config.info.shard_count
        return [topic.encode() for topic in topics if owner_of(topic.encode(), count) == self.config.index]

    def _open_drops(self) -> int:
        connections = {connection for subscribers in self._subscribers.values() for connection in subscribers}
        connections.update(self._siblings.values())
        return sum(connection.dropped for connection in connections)

    # ---- siblings and peers

    async def _keep_sibling(self, index: int) -> None:
        """Stay connected to a sibling's bus, to introduce peers; whenever it is new, introduce all."""
        while True:
            try:
                assert self._nursery is not None
                path = socket_path(self._directory, index)
                connection = await connect(self._nursery, path, self._codec, self._greeting)
            except (OSError, BusError):  # not up yet, or being restarted
                await trio.sleep(SIBLING_RETRY_S)
                continue
            self._siblings[index] = connection
            try:
                for peer in self.host.peers:
                    self._peer_connected(peer)
                while await connection.receive() is not None:
                    pass
            except BusError as error:
                log.warning("the bus connection to shard %d ended: %s", index, error)
            finally:
                del self._siblings[index]
                self._dropped += connection.dropped
                await connection.aclose()

    def _peer_connected(self, peer: PeerId) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._introduce, peer)

    async def _introduce(self, peer: PeerId) -> None:
        addresses = await self.host.addresses_of(peer)
        for connection in list(self._siblings.values()) if addresses else ():
            with contextlib.suppress(BusClosedError):
                connection.offer(Frame(Kind.INTRODUCE, self._codec.nothing, "\n".join(addresses).encode()))

    async def _keep_introducing(self) -> None:
        while True:
            await trio.sleep(INTRODUCE_INTERVAL_S)
            for peer in self.host.peers:
                self._peer_connected(peer)

    def _introduced(self, connection: Connection[K], payload: bytes) -> None:
        try:
            addresses = tuple(payload.decode().split("\n"))
            known = addresses in self._dialling or self.host.is_connected(addresses)
        except (ValueError, HostError) as error:
            raise BusProtocolError(f"{connection.peer.who} introduced nobody: {error}") from error
        if self._nursery is not None and not known:
            self._nursery.start_soon(self._dial, addresses)

    async def _dial(self, addresses: tuple[str, ...]) -> bool:
        self._dialling.add(addresses)
        try:
            await self.host.dial(addresses)
        except HostError as error:
            log.info("%s", error)
            return False
        finally:
            self._dialling.discard(addresses)
        return True

    async def _keep_dialled(self, address: str) -> None:
        """Dial a configured peer whenever it is not connected, less and less often while it does not answer."""
        delay = FIRST_DIAL_RETRY_S
        while True:
            if self.host.is_connected((address,)) or await self._dial((address,)):
                delay = FIRST_DIAL_RETRY_S
                await trio.sleep(PEER_WATCH_S)
            else:
                if delay == FIRST_DIAL_RETRY_S:
                    log.warning("shard %d: peer %s does not answer; it is dialled again and again", self.config.index, address)
                await trio.sleep(delay)
                delay = min(2 * delay, LAST_DIAL_RETRY_S)


async def run_process() -> None:
    """The life of a shard's process: its configuration comes first on standard input, then nothing until it must end.

    "stop" or SIGTERM ends it in order. The end of the input says that the supervisor is gone: then nobody else will
    remove the fleet's directory, so the last shard does.
    """
    # Standard output is the supervisor's pipe, and holds one line: whatever a library prints goes to standard error.
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    supervisor = os.pidfd_open(os.getppid())
    lifeline = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    line, _, rest = (await _read_line(lifeline)).partition(b"\n")
    config = ShardConfig.from_json(line.decode())
    with naming(config.info) as names, shared_seen(config.info) as seen:
        shard: Shard[Any] = Shard(config, names, seen)

        def ready() -> None:
            os.write(answer, json.dumps({"addresses": shard.host.addresses}).encode() + b"\n")
            os.close(answer)

        orphaned = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shard.run, ready)
            nursery.start_soon(names.keep_counters_public)
            nursery.start_soon(_cancel_on_sigterm, nursery.cancel_scope)
            orphaned = not rest and not await lifeline.receive_some(16)
            nursery.cancel_scope.cancel()
        if orphaned:
            await _wait_until_ended(supervisor)
    if orphaned:
        log.warning("shard %d: the supervisor is gone, ending", config.index)
        _remove_directory(Path(config.directory))


def _topics_asked(payload: bytes) -> list[str]:
    topics = json.loads(payload)
    if not isinstance(topics, list) or not all(isinstance(topic, str) for topic in topics):
        raise RequestRefusedError("a report is asked for with a JSON list of topics")
    return topics


async def _read_line(stream: trio.lowlevel.FdStream) -> bytes:
    data = b""
    while b"\n" not in data:
        more = await stream.receive_some(1 << 16)
        if not more:
            raise EOFError("no configuration on standard input: shards are started by a supervisor")
        data += more
    return data


async def _wait_until_ended(pidfd: int) -> None:
    """A killed process closes its pipes before the kernel lets go of its place in the pool: some 10 ms, in which a shard can
    end. Each would leave the pool to the other two, and nobody remove it."""
    with trio.move_on_after(SUPERVISOR_END_S):
        await trio.lowlevel.wait_readable(pidfd)


async def _cancel_on_sigterm(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def _remove_directory(directory: Path) -> None:
    with contextlib.suppress(OSError):  # not empty until the last shard has removed its socket
        if not list(directory.glob("*.sock")):
            (directory / INFO_FILE).unlink(missing_ok=True)
            directory.rmdir()


def main() -> int:
    # A terminal's ^C goes to the whole group. The supervisor hears it too and stops its shards in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    failed = False
    try:
        trio.run(run_process)
    except* (WorkerError, PoolError, OSError, EOFError, ValueError) as errors:
        failed = True
        log.error("%s", "; ".join(str(error) for error in leaves(errors)))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
