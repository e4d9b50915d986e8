"""The benchmarks' figures are of work that was done: whoever does not find what was inserted, or is slow, is noticed.

No time is bounded from above here: what a machine takes is its own business.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.stress import rigged
from tests.stress.rigged import BALLAST, SLEEP_S
from tools.drawing import DARK, LIGHT
from tools.plot_growth import draw as draw_growth
from tools.plot_rivals import draw as draw_rivals
from tools.rivals import contest, growing, growth
from tools.rivals.catalog import RIVALS
from tools.rivals.figures import Results
from tools.rivals.member import WrongAnswerError
from tools.rivals.memory import measure_memory
from tools.rivals.names import Names
from tools.rivals.rival import SHM, Rival, placed
from tools.rivals.rounds import Effort, Measured, measure
from tools.traffic import consensus_topics

SIZE = 300
TINY = Effort(singles=40, repeats=1, batch=SIZE, seconds=0.02, most=500, processes=(1, 2))
EVERY_ROW = {
    "batch insert", "attach", "batch lookup", "first lookup", "repeated lookup", "insert", "lookup beside a writer",
    "insert beside readers",
}  # fmt: skip
ALONE = replace(RIVALS["dict"], name="rigged")
SHARED = replace(ALONE, is_shared=True, left_out={})


def or_skip(name: str) -> Rival:
    rival = RIVALS[name]
    if reason := rival.missing():
        pytest.skip(reason)
    return rival


def lookups(rival: Rival, seed: int) -> Measured:
    return next(measured for measured in measure(rival, SIZE, TINY, seed) if measured.row == "repeated lookup")


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_does_all_the_work_it_can(name: str, seed: int) -> None:
    rival = or_skip(name)
    before = set(os.listdir(SHM))

    measured = list(measure(rival, SIZE, TINY, seed))

    assert {each.row for each in measured} == EVERY_ROW - set(rival.left_out)
    assert all(each.each > 0 for each in measured)
    inserts = [each for each in measured if each.row == "insert"]
    assert [(each.processes, len(each.calls)) for each in inserts] == [(1, 20), (2, 40)][: len(inserts)]
    assert len(inserts) == (2 if rival.is_shared else 1)
    assert not {name for name in set(os.listdir(SHM)) - before if f"shmpool-bench-{os.getpid()}-" in name}


@pytest.mark.parametrize(
    ("rival", "complaint"),
    [
        (replace(ALONE, open=rigged.open_forgetful), "1 of 300 values were not found"),
        (replace(ALONE, open=rigged.open_boastful), "finds what nobody inserted"),
        (replace(ALONE, open=rigged.open_monotonous), "were given 1 references"),
        (SHARED, "300 of 300 values were not found"),
        (replace(SHARED, open=rigged.open_confused), "processes do not agree"),
    ],
    ids=["forgetful", "boastful", "monotonous", "private", "confused"],
)
def test_wrong_answers_are_noticed(rival: Rival, complaint: str, seed: int) -> None:
    with pytest.raises(WrongAnswerError, match=complaint):
        list(measure(rival, SIZE, TINY, seed))


def test_a_slow_rival_shows_and_a_slow_pool_fails_its_guard(seed: int) -> None:
    slow = replace(ALONE, open=rigged.open_slow)
    results = Results()

    for number in range(3):
        results.add("shmpool", SIZE, lookups(slow, seed + number))
        results.add("dict", SIZE, lookups(ALONE, seed + number))

    figure = next(each for each in results.figures() if each.rival == "shmpool")
    assert figure.least >= SLEEP_S * 1e6
    assert figure.p50 is not None
    assert figure.p50 > 0.9 * SLEEP_S * 1e6
    verdicts = {(guard["row"], guard["rival"]): guard["holds"] for guard in results.judge(SIZE, {})}
    assert verdicts.pop(("repeated lookup", "dict")) is False
    assert set(verdicts.values()) == {None}


def test_guards_hold_for_a_pool_that_costs_what_its_rivals_cost() -> None:
    results = Results()

    for rival in RIVALS:
        for row in EVERY_ROW:
            for _ in range(3):
                results.add(rival, SIZE, Measured(row, 1, 1000.0))
    memory = {"shmpool": {1: 100, 4: 120}, "dict": {1: 100, 4: 400}}

    assert all(guard["holds"] for guard in results.judge(SIZE, memory))
    assert not all(guard["holds"] for guard in results.judge(SIZE, memory | {"shmpool": {1: 100, 4: 300}}))


def test_memory_is_that_of_all_processes(seed: int) -> None:
    plain = measure_memory(ALONE, SIZE, (1, 2), seed)
    fat = measure_memory(replace(ALONE, open=rigged.open_fat), SIZE, (1, 2), seed)

    assert BALLAST <= fat[1] - plain[1] <= 1.5 * BALLAST
    assert 2 * BALLAST <= fat[2] - plain[2] <= 3 * BALLAST


def test_memory_of_a_pool_counts_its_segment_once(seed: int) -> None:
    size, value_size = 10_000, 40

    totals = measure_memory(RIVALS["shmpool"], size, (1, 2), seed)

    assert totals[1] > size * value_size
    assert 0 < totals[2] - totals[1] < totals[1]


@pytest.mark.parametrize("name", ["Redis", "memcached", "Manager().dict"])
def test_servers_end_with_the_measurement_whatever_happens(name: str) -> None:
    rival = or_skip(name)

    with suppress(ZeroDivisionError), placed(rival, SIZE) as place:
        assert all(Path(f"/proc/{pid}").exists() for pid in place.pids)
        raise ZeroDivisionError

    assert place.pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in place.pids)
    assert not place.folder.exists()


def test_names_begin_with_the_real_ones_and_never_repeat(seed: int) -> None:
    real = [topic.encode() for topic in consensus_topics()]

    names = Names(seed).span(0, 50_000)

    assert names[: len(real)] == real
    assert len(set(names)) == 50_000
    assert names == Names(seed).pick(range(50_000))
    assert names[-10:] != Names(seed + 2).span(49_990, 10)


Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def rivals_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command for a few rivals and little work; returns its exit status and the record it printed."""

    def run(**rivals: Rival) -> tuple[int, dict[str, Any]]:
        plan = contest.Plan({SIZE: 1}, TINY, (1000,))
        monkeypatch.setattr(contest, "QUICK", plan)
        monkeypatch.setattr(contest, "RIVALS", rivals)
        monkeypatch.setattr("sys.argv", ["bench_rivals.py", "--quick", "--json", "--seed", "7"])
        status = contest.main("What it does.")
        output = capsys.readouterr().out
        return status, json.loads(output) if output else {}

    return run


def test_the_command_records_what_was_measured_where_and_what_was_not(rivals_command: Run) -> None:
    absent = replace(ALONE, name="absent", program="no-such-server")

    status, record = rivals_command(shmpool=RIVALS["shmpool"], dict=RIVALS["dict"], absent=absent)

    assert status == 0
    assert record["seed"] == 7
    assert record["command"] == "python tools/bench_rivals.py --quick --json --seed 7"
    assert record["skipped"] == {"absent": "no-such-server not installed (apt-get install no-such-server)"}
    assert set(record["versions"]) == {"shmpool", "dict"}
    assert {each["row"] for each in record["figures"] if each["rival"] == "shmpool"} == EVERY_ROW
    assert set(record["memory"][0]["bytes"]) == {"shmpool", "dict"}
    for theme in (LIGHT, DARK):
        assert len(draw_rivals(record, theme).axes) == 8


def test_the_command_fails_when_a_rival_is_wrong(rivals_command: Run, capsys: pytest.CaptureFixture[str]) -> None:
    status, record = rivals_command(rigged=replace(ALONE, open=rigged.open_forgetful))

    assert status == 1
    assert record == {}


def test_growth_is_measured_in_every_direction(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plan = replace(
        growth.QUICK, sizes=[512, 2048], slots=1 << 10, loads=2, counts=[1, 2], stripes=[4], rates=[2000], samples=100,
        seconds=0.02,
    )  # fmt: skip
    monkeypatch.setattr(growth, "QUICK", plan)
    monkeypatch.setattr(growing, "MANY", 2000)
    monkeypatch.setattr(growing, "SETTLED", 2000)
    monkeypatch.setattr("sys.argv", ["bench_growth.py", "--quick", "--json", "--seed", "7"])

    growth.main("What it does.")  # whose status is that of guards, which a few values are too few for

    record = json.loads(capsys.readouterr().out)
    series = record["series"]
    assert set(series) == set(growth.TITLES)
    assert [row["values"] for row in series["values"]] == plan.sizes
    assert all(row["probes"] >= 1 and 0.3 < row["load"] < 0.76 for row in series["load"])
    assert series["load"][0]["load"] < series["load"][1]["load"]
    assert all(value >= 0 for rows in series.values() for row in rows for value in row.values())
    assert len(draw_growth(record, LIGHT).axes) == 8


def test_a_cost_that_grows_faster_than_a_dicts_fails_its_guard() -> None:
    small = {"first lookup": 1.0, "insert": 5.0, "dict lookup": 0.1, "dict insert": 0.2, "attach": 500.0}
    grown = {"first lookup": 4.0, "insert": 5.0, "dict lookup": 0.1, "dict insert": 0.2, "attach": 600.0}

    verdicts = [guard["holds"] for guard in growth.judge([small, grown])]

    assert verdicts == [False, True, True]
