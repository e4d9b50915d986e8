"""The bounds on one RPC: what exceeds them is cut off unread and costs the peer, and nothing later has to check again.

An RPC within them is handed on as it came, for the price of a few length comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

from worker.effects import Misbehaviour
from worker.messages import NO_CONTROL, RPC, ControlIHave, ControlIWant, ControlMessage, PeerId
from worker.outbox import Outbox
from worker.params import GossipSubParams


class _Named(Protocol):
    @property
    def topic(self) -> bytes: ...


_E = TypeVar("_E")
_N = TypeVar("_N", bound=_Named)
_I = TypeVar("_I", ControlIHave, ControlIWant)
_Blame: TypeAlias = Callable[[Misbehaviour], None]


def admit(peer: PeerId, rpc: RPC, params: GossipSubParams, outbox: Outbox) -> RPC:
    """The part of a peer's RPC to look at: the first entries of each list, without those on over-long topics."""
    blame = partial(outbox.misbehaved, peer)
    too_many = Misbehaviour.TOO_MANY_SUBSCRIPTIONS
    subscriptions = _first(rpc.subscriptions, params.max_subscriptions_per_rpc, blame, too_many)
    publish = _first(rpc.publish, params.max_messages_per_rpc, blame, Misbehaviour.TOO_MANY_MESSAGES)
    return RPC(
        _with_short_topics(subscriptions, params, blame),
        _with_short_topics(publish, params, blame),
        NO_CONTROL if rpc.control == NO_CONTROL else _admit_control(rpc.control, params, blame),
    )


def _admit_control(control: ControlMessage, params: GossipSubParams, blame: _Blame) -> ControlMessage:
    def first(entries: tuple[_E, ...]) -> tuple[_E, ...]:
        return _first(entries, params.max_control_per_rpc, blame, Misbehaviour.TOO_MANY_CONTROL)

    return ControlMessage(
        ihave=_with_few_ids(_with_short_topics(first(control.ihave), params, blame), params, blame),
        iwant=_with_few_ids(first(control.iwant), params, blame),
        graft=_with_short_topics(first(control.graft), params, blame),
        prune=_with_short_topics(first(control.prune), params, blame),
    )


def _first(entries: tuple[_E, ...], limit: int, blame: _Blame, reason: Misbehaviour) -> tuple[_E, ...]:
    if len(entries) <= limit:
        return entries
    blame(reason)
    return entries[:limit]


def _with_short_topics(entries: tuple[_N, ...], params: GossipSubParams, blame: _Blame) -> tuple[_N, ...]:
    limit = params.max_topic_size
    if all(len(entry.topic) <= limit for entry in entries):
        return entries
    blame(Misbehaviour.OVERLONG_TOPIC)
    return tuple(entry for entry in entries if len(entry.topic) <= limit)


def _with_few_ids(entries: tuple[_I, ...], params: GossipSubParams, blame: _Blame) -> tuple[_I, ...]:
    left = params.max_ids_per_rpc
    if sum(len(entry.message_ids) for entry in entries) <= left:
        return entries
    blame(Misbehaviour.TOO_MANY_IDS)
    kept: list[_I] = []
    for entry in entries:
        ids = entry.message_ids[:left]
        left -= len(ids)
        kept.append(replace(entry, message_ids=ids))
        if not left:
            break
    return tuple(kept)
