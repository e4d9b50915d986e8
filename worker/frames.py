"""Frames `(kind, key, payload)`: what one process of a host says to another, as bytes.

The key is a `TopicRef` in 8 bytes where interning is on (`REFS`), the topic's own bytes where it is off (`NAMES`).
Everything here is pure: `bus.py` moves the bytes.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, Protocol, cast

from worker.errors import FrameError
from worker.topics import K

if TYPE_CHECKING:
    from shmpool import TopicRef

MAX_FRAME_SIZE: Final = 2 << 20  # bytes after the size word; a libp2p message is at most 1 MiB

_HEADER: Final = struct.Struct("!IB")  # size of what follows the size word; kind
_REF: Final = struct.Struct("!Q")
_NAME_SIZE: Final = struct.Struct("!H")


class Kind(enum.IntEnum):
    """What a frame means. Every request is answered by one DONE or FAILED, in the order of the requests."""

    HELLO = 0  # first in each direction; payload: JSON, see `Greeting`
    DONE = 1  # answer; payload as the request says, else empty
    FAILED = 2  # answer; payload: why, in UTF-8
    SUBSCRIBE = 3  # request: MESSAGE frames of the key's topic from now on
    UNSUBSCRIBE = 4  # request
    PUBLISH = 5  # request; payload: the data. DONE's payload: the number of peers it was queued for (4 bytes)
    REPORT = 6  # request; payload and DONE's payload: JSON
    MESSAGE = 7  # notice: `payload` was heard on the key's topic
    INTRODUCE = 8  # notice: the multiaddr of a peer that the receiver should dial


class Frame(NamedTuple, Generic[K]):
    """One unit on the bus. `key` is the codec's `nothing` for kinds that are about no topic."""

    kind: Kind
    key: K
    payload: bytes = b""


class Codec(Protocol[K]):
    """How a key travels."""

    name: str
    nothing: K

    def encode(self, key: K) -> bytes: ...
    def decode(self, body: bytes) -> tuple[K, bytes]:
        """Key and payload of what follows the kind. Raises `struct.error` or `ValueError` when it is cut short."""


class RefCodec:
    """Interning on: 8 bytes a key, whatever the topic's name."""

    name = "refs"
    nothing = cast("TopicRef", 0)

    def encode(self, key: TopicRef) -> bytes:
        return _REF.pack(key)

    def decode(self, body: bytes) -> tuple[TopicRef, bytes]:
        return cast("TopicRef", _REF.unpack_from(body)[0]), body[_REF.size:]


class NameCodec:
    """Interning off: the topic's bytes, after their size in 2 bytes."""

    name = "names"
    nothing = b""

    def encode(self, key: bytes) -> bytes:
        return _NAME_SIZE.pack(len(key)) + key

    def decode(self, body: bytes) -> tuple[bytes, bytes]:
        end = _NAME_SIZE.size + _NAME_SIZE.unpack_from(body)[0]
        if end > len(body):
            raise ValueError(f"a name of {end - _NAME_SIZE.size} bytes in a frame of {len(body)}")
        return body[_NAME_SIZE.size:end], body[end:]


REFS: Final[Codec[TopicRef]] = RefCodec()
NAMES: Final[Codec[bytes]] = NameCodec()


def pack(frame: Frame[K], codec: Codec[K]) -> bytes:
    """The bytes of a frame. Raises `ValueError` for one over `MAX_FRAME_SIZE`."""
    key = codec.encode(frame.key)
    size = 1 + len(key) + len(frame.payload)
    if size > MAX_FRAME_SIZE:
        raise ValueError(f"a {frame.kind.name} frame of {size} bytes; at most {MAX_FRAME_SIZE} fit")
    return _HEADER.pack(size, frame.kind) + key + frame.payload


def unpack(buffer: bytearray, codec: Codec[K]) -> Frame[K] | None:
    """Take the first frame out of `buffer`, or return None if it is not complete. Raises `FrameError`."""
    if len(buffer) < _HEADER.size:
        return None
    size, kind = _HEADER.unpack_from(buffer)
    if not 1 <= size <= MAX_FRAME_SIZE:
        raise FrameError(f"a frame of {size} bytes; from 1 to {MAX_FRAME_SIZE} are allowed")
    end = _HEADER.size - 1 + size
    if len(buffer) < end:
        return None
    try:
        key, payload = codec.decode(bytes(buffer[_HEADER.size : end]))
        frame = Frame(Kind(kind), key, payload)
    except (struct.error, ValueError) as error:
        raise FrameError(f"a frame of kind {kind} and {size} bytes does not parse: {error}") from error
    del buffer[:end]
    return frame
