"""Processes that are killed, stopped or forked while they insert block nobody, lose nothing and leave nothing twice.

`tools/storm.py` runs the same for ten thousand kills.
"""

from __future__ import annotations

import random

import pytest

from tests.stress.rounds import Plan, run_round

KILLS = 75  # for each count of stripes


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
