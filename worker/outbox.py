"""What one event makes the router say: effects in order, then one RPC for each peer that is owed one.

Gathering per peer is the specification's piggybacking: a heartbeat over 200 topics sends a peer one RPC, not 200.
A peer gets at most one GRAFT or PRUNE of a topic, the last one said. RPCs go out in the order in which their peers were
first owed one, which is deterministic because callers walk peers sorted, or in the order in which they were added.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from worker.effects import Effect, Misbehaved, Misbehaviour, SendRPC
from worker.messages import (
    NO_CONTROL,
    RPC,
    ControlGraft,
    ControlIHave,
    ControlIWant,
    ControlMessage,
    ControlPrune,
    Message,
    MessageId,
    PeerId,
    SubOpts,
)


@dataclass(slots=True)
class _Draft:
    subscriptions: dict[bytes, SubOpts] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    ihave: list[ControlIHave] = field(default_factory=list)
    iwant: list[MessageId] = field(default_factory=list)
    links: dict[bytes, ControlGraft | ControlPrune] = field(default_factory=dict)

    def control(self) -> ControlMessage:
        if not (self.ihave or self.iwant or self.links):
            return NO_CONTROL
        return ControlMessage(
            ihave=tuple(self.ihave),
            iwant=(ControlIWant(tuple(self.iwant)),) if self.iwant else (),
            graft=tuple(link for link in self.links.values() if isinstance(link, ControlGraft)),
            prune=tuple(link for link in self.links.values() if isinstance(link, ControlPrune)),
        )


class Outbox:
    """Lives for one event of the router."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self._drafts: dict[PeerId, _Draft] = {}
        self._misbehaved: set[Misbehaved] = set()

    def effect(self, effect: Effect) -> None:
        self._effects.append(effect)

    def misbehaved(self, peer: PeerId, reason: Misbehaviour) -> None:
        """Once for each peer and reason: an RPC with 1,000 faults of one kind costs no more work than one."""
        effect = Misbehaved(peer, reason)
        if effect not in self._misbehaved:
            self._misbehaved.add(effect)
            self._effects.append(effect)

    def message(self, peers: Iterable[PeerId], message: Message) -> None:
        for peer in peers:
            self._draft(peer).messages.append(message)

    def announce(self, peer: PeerId, change: SubOpts) -> None:
        self._draft(peer).subscriptions[change.topic] = change

    def link(self, peer: PeerId, change: ControlGraft | ControlPrune) -> None:
        self._draft(peer).links[change.topic] = change

    def ihave(self, peer: PeerId, ihave: ControlIHave) -> None:
        self._draft(peer).ihave.append(ihave)

    def iwant(self, peer: PeerId, message_ids: Iterable[MessageId]) -> None:
        self._draft(peer).iwant.extend(message_ids)

    def recipients(self) -> list[PeerId]:
        return list(self._drafts)

    def effects(self) -> list[Effect]:
        """Everything, in order. RPCs of just the same one message are one shared object, to be serialised once."""
        sends: list[Effect] = []
        shared: dict[int, RPC] = {}  # by identity of the message: hashing its payload would cost more than this saves
        for peer, draft in self._drafts.items():
            control = draft.control()
            if len(draft.messages) == 1 and not draft.subscriptions and control is NO_CONTROL:
                rpc = shared.setdefault(id(draft.messages[0]), RPC(publish=(draft.messages[0],)))
            else:
                rpc = RPC(tuple(draft.subscriptions.values()), tuple(draft.messages), control)
            sends.append(SendRPC(peer, rpc))
        return self._effects + sends

    def _draft(self, peer: PeerId) -> _Draft:
        draft = self._drafts.get(peer)
        if draft is None:
            draft = self._drafts[peer] = _Draft()
        return draft
