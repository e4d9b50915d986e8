"""Processes that are killed, stopped or forked while they insert block nobody, lose nothing and leave nothing twice.

`tools/storm.py` runs the same for ten thousand kills.
"""

from __future__ import annotations

import random

import pytest

from shmpool import Policy
from tests.stress.rounds import Plan, run_round

KILLS = 75  # for each count of stripes
HOLDER_KILLS = 60  # for each policy


@pytest.mark.parametrize("stripe_count", [1, 2, 4, 16])
def test_killed_stopped_and_forked_inserters_block_nobody_and_lose_nothing(
    pool_name: str, rng: random.Random, stripe_count: int
) -> None:
    outcome = run_round(pool_name, rng, Plan(stripe_count, KILLS))

    assert not outcome.verdict.total, "\n".join(outcome.verdict.notes)
    assert outcome.kills.total >= KILLS
    assert outcome.kills.holding, "no kill hit a process that held a lock"
    assert outcome.takeovers
    assert outcome.forks
    assert outcome.attaches


@pytest.mark.parametrize(
    ("policy", "stripe_count"),
    [(Policy.refcount(), 1), (Policy.refcount(), 4), (Policy.lru(max_unheld=20), 2), (Policy.ttl(seconds=0.05), 2)],
    ids=str,
)
def test_killed_stopped_and_forked_holders_lose_their_holds_and_no_others(
    pool_name: str, rng: random.Random, policy: Policy, stripe_count: int
) -> None:
    outcome = run_round(pool_name, rng, Plan(stripe_count, HOLDER_KILLS, policy=policy))

    assert not outcome.verdict.total, "\n".join(outcome.verdict.notes)
    assert outcome.kills.total >= HOLDER_KILLS
    assert outcome.kills.holding, "no kill hit a process that held a lock"
    assert outcome.takeovers
    assert outcome.forks
    assert outcome.attaches
    assert outcome.given
    assert outcome.kept, "nobody held anything in the end"
