"""The metadata half of the protocol: IHAVE, IWANT and the message cache behind them.

Guarantees: a peer is sent a message at most `gossip_retransmission` times on its IWANTs; at most `max_ihave_length` ids
are asked of, and announced to, one peer in one heartbeat.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from random import Random
from typing import Generic

from worker.effects import Misbehaviour
from worker.mcache import MessageCache
from worker.messages import ControlIHave, ControlIWant, MessageId, PeerId
from worker.outbox import Outbox
from worker.params import GossipSubParams
from worker.peers import PeerTable
from worker.selection import select_peers
from worker.topics import HeldDict, K, Topics


class Gossip(Generic[K]):
    def __init__(self, topics: Topics[K], peers: PeerTable[K], params: GossipSubParams, rng: Random) -> None:
        self._topics = topics
        self._peers = peers
        self._params = params
        self._rng = rng
        self.mcache: MessageCache[K] = MessageCache(
            params.mcache_len, params.mcache_gossip, params.max_mcache_size, lambda: HeldDict(topics)
        )

    def handle_ihave(
        self,
        peer: PeerId,
        ihaves: Iterable[ControlIHave],
        has_received: Callable[[MessageId], bool],
        is_settled: Callable[[MessageId], bool],
        outbox: Outbox,
    ) -> None:
        """The IHAVEs of one RPC, on joined topics: asks for what is new, as far as this heartbeat's caps allow.

        `is_settled`, which can cost a lookup in shared memory, is asked of no more ids than the caps allow to ask for.
        """
        record = self._peers.peers[peer]
        record.ihave_count += 1
        if record.ihave_count > self._params.max_ihave_messages:
            outbox.misbehaved(peer, Misbehaviour.IHAVE_FLOOD)
            return
        wanted = list(dict.fromkeys(id_ for ihave in ihaves for id_ in ihave.message_ids if not has_received(id_)))
        allowed = self._params.max_ihave_length - record.iasked_count
        if len(wanted) > allowed:
            outbox.misbehaved(peer, Misbehaviour.IHAVE_FLOOD)
            wanted = self._rng.sample(wanted, allowed)  # at random, so that nobody can steer which ones
        wanted = [id_ for id_ in wanted if not is_settled(id_)]
        if wanted:
            record.iasked_count += len(wanted)
            outbox.iwant(peer, wanted)

    def handle_iwant(self, peer: PeerId, iwants: Iterable[ControlIWant], outbox: Outbox) -> None:
        """Send what is still cached, each message once however often this RPC asks."""
        for message_id in dict.fromkeys(id_ for iwant in iwants for id_ in iwant.message_ids):
            found = self.mcache.take_for(peer, message_id)
            if found is None:
                continue
            message, count = found
            if count > self._params.gossip_retransmission:
                outbox.misbehaved(peer, Misbehaviour.IWANT_FLOOD)
            else:
                outbox.message((peer,), message)

    def emit(self, linked_peers: Iterable[tuple[K, Collection[PeerId]]], outbox: Outbox) -> None:
        """The heartbeat's gossip, to peers beyond `linked_peers`: of each topic, its mesh or fanout."""
        budgets: dict[PeerId, int] = {}
        for key, linked in linked_peers:
            ids = self.mcache.get_gossip_ids(key)
            if not ids:
                continue
            topic = self._topics.resolve(key)
            others = [peer for peer in self._peers.meshable(key) if peer not in linked]
            count = max(self._params.D_lazy, int(self._params.gossip_factor * len(others)))
            for peer in select_peers(others, count, self._rng):
                budget = budgets.get(peer, self._params.max_ihave_length)
                chosen = ids if len(ids) <= budget else self._rng.sample(ids, budget)
                if chosen:
                    budgets[peer] = budget - len(chosen)
                    outbox.ihave(peer, ControlIHave(topic, tuple(chosen)))

    def end_heartbeat(self) -> None:
        self.mcache.shift()
        for record in self._peers.peers.values():
            record.ihave_count = record.iasked_count = 0
