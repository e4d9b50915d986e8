"""What became of things, counted, and how much the router holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RouterStats:
    """Counts since the router began. Written by the router alone; take a `dataclasses.replace` to keep one."""

    published: int = 0  # messages of this host
    validating: int = 0  # messages of peers that went to validation
    accepted: int = 0  # messages of peers that were delivered and forwarded
    rejected: int = 0
    ignored: int = 0  # by verdict, or because no verdict came within seen_ttl_s
    duplicates: int = 0
    unjoined: int = 0  # messages of peers on topics that are not joined
    from_self: int = 0  # messages of peers that claim to be this host's
    overflowed: int = 0  # messages dropped, as if never seen, while too many or too much were waiting
    strangers: int = 0  # RPCs of peers not added
    refused_subscriptions: int = 0  # beyond max_subscriptions_per_peer
    undelivered: int = 0  # RPCs that the host reported as dropped on their way


@dataclass(frozen=True, slots=True)
class RouterSizes:
    """How many entries each table of the router holds now."""

    peers: int
    topics: int  # with a key, that a peer subscribes to
    unknown_topics: int  # without, waiting as bytes
    mesh_links: int
    fanout_links: int
    backoffs: int
    mcache: int
    seen: int
    at_validation: int
    at_validation_size: int  # bytes of data
