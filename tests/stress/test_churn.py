"""A short churn: topics come and go, and nothing grows. `tools/churn.py` is the long form."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from shmpool import Policy
from tests.stress.churn import Plan, churn
from tests.unit.processes import DEADLINE_S, ROOT
from tools import churn as tool
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


# ---- the command


def test_the_command_shows_what_it_saw_and_exits_with_0() -> None:
    options = ["--pairs", "6000", "--live", "200", "--processes", "2", "--readers", "1", "--json"]
    command = [sys.executable, "-m", "tools.churn", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    record = json.loads(ended.stdout)
    assert record["tally"]["pairs"] == 6000
    assert set(record["figures"]) == set(RISE)
    assert len(record["samples"]["pairs"]) >= 8


@pytest.mark.parametrize("is_wrong", [False, True])
def test_what_is_left_over_in_the_end_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_wrong: bool
) -> None:
    level = dict.fromkeys((*RISE, "pairs", "looks", "elapsed_s"), 1000.0)
    wrong = ["3 holds are left"] if is_wrong else []
    monkeypatch.setattr(tool, "churn", lambda *_, **__: ([level] * 8, wrong, Counter(pairs=10)))
    monkeypatch.setattr(sys, "argv", ["churn.py"])

    status = tool.main()

    assert status == is_wrong
    assert ("3 holds are left" in capsys.readouterr().out) == is_wrong


def test_ctrl_c_ends_the_churn_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "churn", interrupted)
    monkeypatch.setattr(sys, "argv", ["churn.py"])

    assert tool.main() == 130
