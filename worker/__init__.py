"""Gossip workers that share one intern pool: a GossipSub router without I/O, and the processes around it.

General layout, a file imports only from groups above it:
- facts: `messages`, `params`, `effects`, `topics`, `stats`;
- pure parts of the router: `selection`, `backoff`, `mcache`, `seen`, `outbox`, `admission`, `peers`;
- the protocol over them: `mesh` (full messages), `gossip` (metadata), `delivery` (a message's way), `soundness`;
- `router`, the state machine: events in, effects out;
- what does I/O, and imports the router, never the other way round.
"""
