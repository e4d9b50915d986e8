"""Gossip workers that share one intern pool: a GossipSub router without I/O, and the processes around it.

General layout. A module imports only from groups above its own, or from above it in its group:

    errors       the exceptions                              Facts.
    messages     the RPC and what it holds, as values
    params       the specifications' parameters, and bounds
    effects      what the router asks of its host
    topics       topic bytes to keys, and back
    stats        what the router counts

    selection    random choices that can be replayed         Parts of the router: none knows Router,
    backoff      PRUNE backoffs                              each can be used alone.
    mcache       recent messages, in history windows
    seen         ids observed lately
    outbox       what one event makes the router say
    admission    the bounds on one RPC
    peers        who is connected, who subscribes to what

    mesh         full messages: GRAFT, PRUNE, fanout         The protocol.
    gossip       metadata: IHAVE, IWANT
    delivery     a message's way, from receipt to forwarding
    soundness    whether the state keeps its promises
    router       the state machine: events in, effects out

    ownership    which shard owns a topic                    Between the processes of a host.
    frames       what shards tell each other, as bytes
    bus          sockets that carry it

    host         a libp2p peer around a router               Processes and what they offer.
    fleet        names and addresses of shards
    shard        one worker process
    supervisor   makes the pool, starts and restarts shards
    node         what an application sees
"""
