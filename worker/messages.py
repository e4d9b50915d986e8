"""The pubsub RPC as plain values, in the words of libp2p/specs `pubsub/README.md` and `gossipsub-v1.0.md`.

Topics are bytes here, as on the wire: no key of ours (a `TopicRef`) ever appears in a message.
Every type is frozen and holds only tuples and bytes, so a value can be shared, cached and compared.
The router takes these from a binding (`host.py`) that has parsed the protobuf, and hands them back to it to serialise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

PeerId: TypeAlias = bytes  # the peer id's multihash bytes; compared and sorted as bytes
MessageId: TypeAlias = bytes


@dataclass(frozen=True, slots=True)
class Message:
    """One published message. `from_peer` is the spec's `from`; empty bytes mean that the field is absent."""

    topic: bytes
    data: bytes
    from_peer: PeerId = b""
    seqno: bytes = b""
    signature: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class SubOpts:
    """SUBSCRIBE (`subscribe=True`) or UNSUBSCRIBE of one topic."""

    subscribe: bool
    topic: bytes


@dataclass(frozen=True, slots=True)
class ControlIHave:
    """"I have these": ids of messages seen recently in a topic."""

    topic: bytes
    message_ids: tuple[MessageId, ...]


@dataclass(frozen=True, slots=True)
class ControlIWant:
    """"I want these": asks for messages that an IHAVE announced."""

    message_ids: tuple[MessageId, ...]


@dataclass(frozen=True, slots=True)
class ControlGraft:
    """"You are in my mesh for this topic"."""

    topic: bytes


@dataclass(frozen=True, slots=True)
class ControlPrune:
    """"You are no longer in my mesh for this topic"; `backoff` in whole seconds, 0 when absent (v1.0 peers).

    Peer exchange (v1.1's `peers`) is neither sent nor read.
    """

    topic: bytes
    backoff: int = 0


@dataclass(frozen=True, slots=True)
class ControlMessage:
    """The control part of an RPC; any number of each kind."""

    ihave: tuple[ControlIHave, ...] = ()
    iwant: tuple[ControlIWant, ...] = ()
    graft: tuple[ControlGraft, ...] = ()
    prune: tuple[ControlPrune, ...] = ()


NO_CONTROL = ControlMessage()


@dataclass(frozen=True, slots=True)
class RPC:
    """What one peer sends another: subscription changes, then messages, then control, handled in that order."""

    subscriptions: tuple[SubOpts, ...] = ()
    publish: tuple[Message, ...] = ()
    control: ControlMessage = NO_CONTROL
