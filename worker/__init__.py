"""Gossip workers that share one intern pool: a GossipSub router without I/O, and the processes around it.

General layout, a file imports only from groups above it:
`messages`, `params`, `effects`, `topics` are facts; `backoff`, `mcache`, `seen`, `selection`, `peers`, `outbox` are pure
parts; `mesh` and `gossip` are the protocol's two halves over them; `router` is the state machine. What does I/O imports
the router, never the other way round.
"""
