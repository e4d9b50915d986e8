"""The router's parameters, under the names of the GossipSub specifications, with their recommended defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GossipSubParams:
    """Immutable; a combination that the specifications forbid is a `ValueError`.

    Times are in seconds. The first two groups are gossipsub v1.0 ("Parameters") and v1.1 ("Overview of New Parameters",
    "Spam Protection Measures", and the defaults of go-libp2p-pubsub where the text gives none); the last group bounds
    the work and the memory that one peer can cause, which the specifications leave open.
    """

    # gossipsub v1.0
    D: int = 6
    D_low: int = 4
    D_high: int = 12
    D_lazy: int = 6
    heartbeat_interval_s: float = 1.0
    fanout_ttl_s: float = 60.0
    mcache_len: int = 5  # in heartbeats
    mcache_gossip: int = 3
    seen_ttl_s: float = 120.0

    # gossipsub v1.1
    D_out: int = 2
    gossip_factor: float = 0.25
    flood_publish: bool = True
    prune_backoff_s: float = 60.0
    unsubscribe_backoff_s: float = 10.0
    graft_flood_threshold_s: float = 10.0
    gossip_retransmission: int = 3  # answers to one peer's IWANTs of one message
    max_ihave_messages: int = 10  # RPCs with IHAVE, of one peer in one heartbeat
    max_ihave_length: int = 5_000  # ids asked of (and announced to) one peer in one heartbeat
    direct_connect_ticks: int = 300  # heartbeats between attempts to reach missing explicit peers

    # bounds
    max_topic_size: int = 1_024
    max_subscriptions_per_rpc: int = 5_000
    max_subscriptions_per_peer: int = 2_048  # of topics known and unknown to this host together
    max_messages_per_rpc: int = 5_000
    max_control_per_rpc: int = 5_000
    max_ids_per_rpc: int = 20_000
    max_backoff_s: float = 3_600.0  # longest backoff that a peer's PRUNE can impose
    max_backoff_count: int = 65_536
    max_pending_validation_count: int = 16_384
    max_pending_validation_size: int = 64 << 20  # bytes of data
    max_mcache_size: int = 64 << 20  # bytes of data
    max_seen_count: int = 1_048_576

    def __post_init__(self) -> None:
        if not 0 <= self.D_low <= self.D <= self.D_high:
            raise ValueError(f"need 0 <= D_low <= D <= D_high, not {self.D_low}, {self.D}, {self.D_high}")
        if self.D_out < 0 or (self.D_out and (self.D_out >= self.D_low or self.D_out > self.D // 2)):
            raise ValueError(f"D_out must be below D_low and at most D/2, not {self.D_out}")
        if not 0 < self.mcache_gossip <= self.mcache_len:
            raise ValueError(f"need 0 < mcache_gossip <= mcache_len, not {self.mcache_gossip}, {self.mcache_len}")
        if not 0.0 <= self.gossip_factor <= 1.0:
            raise ValueError(f"gossip_factor is a fraction, not {self.gossip_factor}")
        if self.heartbeat_interval_s <= 0:
            raise ValueError(f"heartbeat_interval_s must be positive, not {self.heartbeat_interval_s}")
        if self.max_ids_per_rpc < self.max_ihave_length:
            raise ValueError("max_ids_per_rpc below max_ihave_length would refuse what this router itself sends")
