"""A short soak: processes that come, go and are killed leave nothing that grows. `tools/soak.py` is the long form."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.unit.processes import DEADLINE_S, ROOT
from tools.flatness import ALLOWED, judge

SECONDS = 8


def test_nothing_grows_while_processes_come_go_and_are_killed(seed: int) -> None:
    command = [sys.executable, "-m", "tools.soak", f"--minutes={SECONDS / 60}", f"--seed={seed}", "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    assert ended.stdout, ended.stderr
    record = json.loads(ended.stdout)
    if "may disturb" in ended.stderr:
        assert record["wrong"] == []
        pytest.skip("needs root and unshare, for a /dev/shm of its own: others' pools are counted here too")
    assert ended.returncode == 0, (record["wrong"], record["figures"], ended.stderr)
    assert record["acts"] > 10
    assert record["killed"] > 5


@pytest.mark.parametrize("figure", ALLOWED)
def test_a_figure_that_rises_is_not_flat(figure: str) -> None:
    slope = ALLOWED[figure] + 1

    [rising] = judge([{figure: slope * number} for number in range(8)], [figure])
    [level] = judge([{figure: 7.0 if number else 0.0} for number in range(8)], [figure])

    assert not rising.is_flat
    assert level.is_flat
