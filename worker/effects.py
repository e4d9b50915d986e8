"""What the router asks its host to do: each event returns a list of these, to be carried out in order.

The router does no I/O itself. A host that ignores `Validate` (because something else validates) must call
`Router.forward` for the messages it accepted; every other effect may be dropped without corrupting the router's state.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from worker.messages import RPC, Message, MessageId, PeerId


class Verdict(enum.Enum):
    """A validator's answer (v1.1, extended validators)."""

    ACCEPT = "accept"  # deliver and forward
    REJECT = "reject"  # invalid: drop, and every peer that sent it is penalised
    IGNORE = "ignore"  # neither deliver nor forward, and penalise nobody


class Misbehaviour(enum.Enum):
    """Why a peer is penalised. What it costs (a score, a disconnect) is the host's decision."""

    INVALID_MESSAGE = "a validator rejected its message"
    MALFORMED_MESSAGE = "a message without an id"
    FORGED_MESSAGE = "a message that is not of who it says it is from"
    OVERLONG_TOPIC = "a topic longer than max_topic_size"
    TOO_MANY_SUBSCRIPTIONS = "more subscriptions than max_subscriptions_per_rpc or max_subscriptions_per_peer"
    TOO_MANY_MESSAGES = "more messages in an RPC than max_messages_per_rpc"
    TOO_MANY_CONTROL = "more control entries in an RPC than max_control_per_rpc"
    TOO_MANY_IDS = "more message ids in an RPC than max_ids_per_rpc"
    IHAVE_FLOOD = "more IHAVEs in a heartbeat than max_ihave_messages or max_ihave_length"
    IWANT_FLOOD = "asked for one message more often than gossip_retransmission"
    GRAFT_IN_BACKOFF = "a GRAFT before the backoff of a PRUNE was over"
    GRAFT_FLOOD = "a GRAFT within graft_flood_threshold_s of the PRUNE"
    GRAFT_EXPLICIT = "a GRAFT between explicit peers"


@dataclass(frozen=True, slots=True)
class SendRPC:
    """Send `rpc` to `peer`. May exceed the transport's frame size: the host splits it.

    At most one per peer in a list of effects. If it cannot be sent, tell `Router.undelivered`.
    """

    peer: PeerId
    rpc: RPC


@dataclass(frozen=True, slots=True)
class Validate:
    """Judge `message`, then call `Router.validated(message_id, verdict)` exactly once, now or later."""

    received_from: PeerId
    message_id: MessageId
    message: Message


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give an accepted message to the local application, and call `Router.settle(message_id)` just before it is out of this
    process's hands. `received_from` is None for what this host published, which is settled."""

    received_from: PeerId | None
    message_id: MessageId
    message: Message


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """`peer` did something that must cost it. At most one of each reason for one RPC."""

    peer: PeerId
    reason: Misbehaviour


@dataclass(frozen=True, slots=True)
class Connect:
    """An explicit peer is not connected: dial it (v1.1, explicit peering agreements)."""

    peer: PeerId


Effect: TypeAlias = SendRPC | Validate | Deliver | Misbehaved | Connect
