"""A short churn: topics come and go, and nothing grows. `tools/churn.py` is the long form."""

from __future__ import annotations

import pytest

from shmpool import Policy
from tests.stress.churn import Plan, churn
from tools.churn import RISE, judge_churn


@pytest.mark.parametrize("policy", [Policy.refcount(), Policy.lru(max_unheld=200)], ids=str)
def test_nothing_grows_while_topics_come_and_go_and_readers_see_right_bytes(pool_name: str, seed: int, policy: Policy) -> None:
    samples, wrong, tally = churn(pool_name, Plan(16_000, live=500, policy=policy, seed=seed), samples=24)

    assert not wrong
    assert tally["pairs"] == 16_000
    assert tally["right"] > 500
    rising = [verdict for verdict in judge_churn(samples) if not verdict.is_flat]
    assert not rising


@pytest.mark.parametrize("figure", RISE)
def test_a_figure_that_rises_is_found(figure: str) -> None:
    level = dict.fromkeys(RISE, 1000.0)
    rising = [level | {figure: 1000.0 + (RISE[figure] + 10.0) * number} for number in range(8)]

    assert all(verdict.is_flat for verdict in judge_churn([level] * 8))
    assert [verdict.figure for verdict in judge_churn(rising) if not verdict.is_flat] == [figure]
