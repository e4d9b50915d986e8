"""Random choices among peers, replayable: candidates are sorted first, because set order is salted per process."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from random import Random

from worker.messages import PeerId


def select_peers(candidates: Iterable[PeerId], count: int, rng: Random) -> list[PeerId]:
    """Up to `count` candidates, at random."""
    ordered = sorted(candidates)
    return rng.sample(ordered, min(max(count, 0), len(ordered)))


def select_survivors(
    mesh: Collection[PeerId], outbound: Collection[PeerId], count: int, outbound_count: int, rng: Random
) -> set[PeerId]:
    """Who stays in an oversubscribed mesh: `count` at random, `outbound_count` of them outbound if it has as many.

    `outbound_count` is at most `count`.
    """
    survivors = select_peers(mesh, count, rng)
    missing = outbound_count - sum(peer in outbound for peer in survivors)
    if missing > 0:
        inbound = [peer for peer in survivors if peer not in outbound]
        spare = select_peers(set(mesh).intersection(outbound).difference(survivors), missing, rng)
        leaving = set(inbound[: len(spare)])
        survivors = [peer for peer in survivors if peer not in leaving] + spare
    return set(survivors)
