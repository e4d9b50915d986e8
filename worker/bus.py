"""Connections that carry frames between the processes of one host, over Unix stream sockets.

Guarantees:
- Only processes of the same user can speak: the sockets live in a directory of mode 0700 that this user owns, and each
  end checks the other's uid with SO_PEERCRED.
- Every queue is bounded, in frames and in bytes. `offer` never waits: what does not fit is dropped and counted in
  `dropped`. `send` waits for room and drops nothing. A closed connection refuses both with `BusClosedError`.
- A frame that does not parse, or is over-long, ends that connection with `BusProtocolError` and touches no other.
- Frames of one connection arrive in the order in which they were queued.

Both ends say in their first frame which kind of key they speak (`frames.REFS` or `frames.NAMES`) and refuse the other.
Handles never leave the host, and neither do these sockets.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeAlias

import trio

from worker.errors import BusClosedError, BusError, BusProtocolError, FrameError
from worker.frames import NAMES, Codec, Frame, Kind, pack, unpack
from worker.topics import K

log = logging.getLogger(__name__)

QUEUE_FRAMES: Final = 1024
QUEUE_SIZE: Final = 16 << 20  # bytes waiting in one connection's queue
HELLO_DEADLINE_S: Final = 10.0
VERSION: Final = 1

_PEERCRED: Final = struct.Struct("=iII")  # pid, uid, gid
_READ_SIZE: Final = 1 << 16
_SOCKET_PATH_SIZE: Final = 107  # sockaddr_un, less the final NUL


class Greeting(NamedTuple):
    """What each end says first: `pool` is the pool's name with REFS, else empty; `who` is for people to read."""

    pool: str
    who: str


class Connection(Generic[K]):
    """One end of a bus connection, after the greeting. Run `write_queued` in a task; iterate to receive.

    Not for several receiving tasks at once. Any number of tasks may `offer` and `send`.
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        codec: Codec[K],
        *,
        queue_frames: int = QUEUE_FRAMES,
        queue_size: int = QUEUE_SIZE,
    ) -> None:
        self.codec = codec
        self.peer = Greeting(pool="", who="unknown")
        self.sent = 0
        self.received = 0
        self.dropped = 0  # frames that `offer` refused for want of room
        self._stream = stream
        self._queue_frames = queue_frames
        self._queue_size = queue_size
        self._queue: deque[tuple[bytes, Callable[[], None] | None]] = deque()
        self._queued_size = 0
        self._changed = trio.Event()  # set, and replaced, whenever the queue or `_closed` changes
        self._closed = False
        self._buffer = bytearray()

    def offer(self, frame: Frame[K], on_write: Callable[[], None] | None = None) -> bool:
        """Queue `frame` if there is room, else drop and count it. Returns whether it was queued. Never waits.

        `on_write` is called when its bytes are about to be written, just before the system call; never, if they are not.
        """
        packed = pack(frame, self.codec)
        if self._closed:
            raise BusClosedError(f"the bus connection to {self.peer.who} is closed")
        if not self._has_room(len(packed)):
            self.dropped += 1
            return False
        self._append(packed, on_write)
        return True

    async def send(self, frame: Frame[K]) -> None:
        """Queue `frame`, waiting for room. Returning says that it is queued, not that it has arrived."""
        packed = pack(frame, self.codec)
        while not self._closed and not self._has_room(len(packed)):
            await self._changed.wait()
        if self._closed:
            raise BusClosedError(f"the bus connection to {self.peer.who} is closed")
        self._append(packed)

    async def write_queued(self) -> None:
        """Write what is queued until the connection is closed or breaks, or its nursery ends; who receives sees the end."""
        try:
            while not self._closed:
                if not self._queue:
                    await self._changed.wait()
                    continue
                await self._stream.send_all(self._take_batch())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._close()
            self._stream.socket.close()

    def __aiter__(self) -> Connection[K]:
        """Frames until the other end closes. Raises `BusProtocolError` for bytes that are no frame."""
        return self

    async def __anext__(self) -> Frame[K]:
        frame = await self.receive()
        if frame is None:
            raise StopAsyncIteration
        return frame

    async def receive(self) -> Frame[K] | None:
        """The next frame, or None when the other end has closed between two frames or vanished."""
        while (frame := self._unpack()) is None:
            try:
                data = await self._stream.receive_some(_READ_SIZE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not data:
                return None
            self._buffer += data
        self.received += 1
        return frame

    async def aclose(self) -> None:
        """Close both directions at once; queued frames are given up."""
        self._close()
        await self._stream.aclose()

    def _unpack(self) -> Frame[K] | None:
        try:
            return unpack(self._buffer, self.codec)
        except FrameError as error:
            raise BusProtocolError(f"{self.peer.who} sent {error}") from error

    def _has_room(self, size: int) -> bool:
        # An empty queue takes any one frame, so that a queue smaller than the largest frame cannot block for ever.
        if not self._queue:
            return True
        return len(self._queue) < self._queue_frames and self._queued_size + size <= self._queue_size

    def _append(self, packed: bytes, on_write: Callable[[], None] | None = None) -> None:
        self._queue.append((packed, on_write))
        self._queued_size += len(packed)
        self._wake()

    def _take_batch(self) -> bytes:
        # Many frames are small: one system call for all that is waiting, up to a socket buffer's worth.
        batch: list[bytes] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0][0]) <= _READ_SIZE):
            packed, on_write = self._queue.popleft()
            batch.append(packed)
            size += len(packed)
            if on_write is not None:
                on_write()
        self.sent += len(batch)
        self._queued_size -= size
        self._wake()
        return b"".join(batch)

    def _close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


Handler: TypeAlias = Callable[[Connection[Any]], Awaitable[None]]


class Listener(Generic[K]):
    """A bus socket at `path`, which can be connected to as soon as this exists.

    `serve` greets who connects and hands each connection to a handler, in a task of its own.
    """

    def __init__(self, path: Path, codec: Codec[K], greeting: Greeting, *, trusted_uid: int | None = None) -> None:
        """Only processes of `trusted_uid` (this process's effective uid) may connect."""
        self.path = path
        self.refused = 0  # connections ended for a foreign uid, a wrong greeting or a frame that did not parse
        self._codec = codec
        self._greeting = greeting
        self._trusted_uid = os.geteuid() if trusted_uid is None else trusted_uid
        check_directory(path.parent)
        path.unlink(missing_ok=True)  # left by an earlier process of this name that was killed
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.bind(_address(path))
            sock.listen()
            self._socket = trio.socket.from_stdlib_socket(sock.dup())

    async def serve(self, handler: Handler) -> None:
        """Accept until cancelled, then remove the socket.

        A `BusError` in a handler or a greeting ends that connection only; any other exception is a bug and comes out.
        """
        with self._socket as sock:
            try:
                async with trio.open_nursery() as nursery:
                    while True:
                        accepted, _ = await sock.accept()
                        nursery.start_soon(self._handle, nursery, trio.SocketStream(accepted), handler)
            finally:
                self.path.unlink(missing_ok=True)

    async def _handle(self, nursery: trio.Nursery, stream: trio.SocketStream, handler: Handler) -> None:
        try:
            connection = await _greeted(nursery, stream, self._codec, self._greeting, self._trusted_uid)
            try:
                await handler(connection)
            finally:
                await connection.aclose()
        except BusError as error:
            self.refused += 1
            log.warning("%s: a connection was refused: %s", self.path.name, error)


async def connect(nursery: trio.Nursery, path: Path, codec: Codec[K], greeting: Greeting) -> Connection[K]:
    """Connect to the listener at `path` and greet. Queued frames are written by a task in `nursery` until `aclose`.

    Raises `OSError` if nobody listens there, `BusError` if it is not one of ours or speaks another kind of key.
    """
    check_directory(path.parent)
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(_address(path))
    except BaseException:
        sock.close()
        raise
    return await _greeted(nursery, trio.SocketStream(sock), codec, greeting, os.geteuid())


async def _greeted(
    nursery: trio.Nursery, stream: trio.SocketStream, codec: Codec[K], greeting: Greeting, trusted_uid: int
) -> Connection[K]:
    # Greetings are framed alike whatever the codec, and sent before the other's is judged: so each end can say why not.
    connection: Connection[Any] = Connection(stream, NAMES)
    try:
        _check_uid(stream, trusted_uid)
        with trio.fail_after(HELLO_DEADLINE_S):
            await stream.send_all(pack(_pack_greeting(greeting, codec), NAMES))
            connection.peer = _unpack_greeting(await connection.receive(), codec, greeting)
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error, trio.TooSlowError):
            raise BusClosedError(f"no greeting within {HELLO_DEADLINE_S:g} s") from None  # a busy process: worth another try
        if isinstance(error, trio.BrokenResourceError):
            raise BusClosedError("the other end closed before it greeted") from None
        raise
    connection.codec = codec
    nursery.start_soon(connection.write_queued)
    return connection


def _check_uid(stream: trio.SocketStream, trusted_uid: int) -> None:
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    _, uid, _ = _PEERCRED.unpack(credentials)
    if uid != trusted_uid:
        raise BusError(f"the other end runs as uid {uid}, not {trusted_uid}")


def _pack_greeting(greeting: Greeting, codec: Codec[K]) -> Frame[bytes]:
    words = {"bus": VERSION, "keys": codec.name, "pool": greeting.pool, "who": greeting.who}
    return Frame(Kind.HELLO, NAMES.nothing, json.dumps(words).encode())


def _unpack_greeting(frame: Frame[bytes] | None, codec: Codec[K], ours: Greeting) -> Greeting:
    if frame is None:
        raise BusClosedError("the other end closed before it greeted")
    try:
        words = json.loads(frame.payload)
        bus, keys, theirs = words["bus"], words["keys"], Greeting(str(words["pool"]), str(words["who"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BusProtocolError(f"the first frame is no greeting: {error!r}") from error
    if frame.kind is not Kind.HELLO or (bus, keys, theirs.pool) != (VERSION, codec.name, ours.pool):
        raise BusProtocolError(
            f"{theirs.who} speaks version {bus} with {keys} of pool {theirs.pool!r}, "
            f"{ours.who} version {VERSION} with {codec.name} of pool {ours.pool!r}: start both with the same options"
        )
    return theirs


def check_directory(directory: Path) -> None:
    """Refuse a socket directory that another user owns or can enter."""
    status = directory.stat()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise BusError(
            f"{directory} belongs to uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}; "
            "the bus needs a directory of its own user with mode 0700"
        )


def _address(path: Path) -> str:
    if len(os.fsencode(path)) > _SOCKET_PATH_SIZE:
        raise BusError(f"the socket path {path} is longer than the {_SOCKET_PATH_SIZE} bytes that Linux allows")
    return os.fspath(path)
