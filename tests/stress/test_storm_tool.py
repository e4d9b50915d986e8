"""The long storm's command: what it shows, and what its exit status says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.stress.judge import KINDS
from tests.stress.rounds import Outcome
from tests.unit.processes import DEADLINE_S
from tools import storm

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "tools/storm.py", "--seed", "1", "--processes", "3"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def test_a_storm_without_violations_shows_its_figures_and_exits_with_0() -> None:
    result = subprocess.run(
        [*COMMAND, "--kills", "8", "--json"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=DEADLINE_S, check=False
    )

    assert result.returncode == 0, result.stderr.decode()
    shown = json.loads(result.stdout)
    assert shown["seed"] == 1
    assert shown["figures"]["kills"] >= 8
    assert shown["figures"]["acknowledged"] >= shown["figures"]["topics"] / 2
    assert shown["figures"]["stall_worst_ms"] >= shown["figures"]["stall_p99_ms"] >= shown["figures"]["stall_p50_ms"] > 0
    assert [shown["figures"][kind] for kind in KINDS] == [0] * len(KINDS)


def test_a_storm_under_a_policy_shows_holds_given_back_and_kept() -> None:
    result = subprocess.run(
        [*COMMAND, "--kills", "8", "--policy", "lru:20", "--json"],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=DEADLINE_S, check=False,
    )

    assert result.returncode == 0, result.stderr.decode()
    shown = json.loads(result.stdout)
    assert shown["policy"] == "lru:20"
    assert shown["figures"]["given"] > 0
    assert shown["figures"]["kept"] > 0
    assert shown["figures"]["give_worst_ms"] >= shown["figures"]["give_p99_ms"] >= shown["figures"]["give_p50_ms"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_violation_ends_the_storm_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    rounds = []

    def run_round(*_: object) -> Outcome:
        rounds.append(1)
        outcome = Outcome()
        outcome.kills.total = 3
        outcome.verdict.add(kind, "what it was")
        return outcome

    monkeypatch.setattr(storm, "run_round", run_round)
    monkeypatch.setattr(sys, "argv", ["storm.py", "--kills", "10"])

    status = storm.main()

    assert status == 1
    assert len(rounds) == 1
    assert f"{kind}: what it was" in capsys.readouterr().out


def test_ctrl_c_ends_the_storm_in_order() -> None:
    """Nobody is left: the pipe that all the storm's processes have inherited ends."""
    process = subprocess.Popen(
        [*COMMAND, "--kills", "100000"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + DEADLINE_S
    while not Path(f"/dev/shm/shmpool.storm-{process.pid}-0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)

    os.killpg(process.pid, signal.SIGINT)

    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
