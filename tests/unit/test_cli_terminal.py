"""Claims about what reaches a terminal: colours and bars there alone, live views in place, and no text of strangers as it is."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmpool import Counters, Pool, report
from shmpool import segment as segments
from shmpool.live import Board
from tests.unit.command import HOSTILE, Run, command, environment, on_terminal, read_until, run_inside, run_outside
from tests.unit.looks import VALUES, at_rest, sample_pool
from tests.unit.processes import DEADLINE_S
from tests.unit.test_text import is_safe


@pytest.fixture
def pool(pool_name: str) -> Iterator[Pool]:
    with sample_pool(pool_name) as made:
        yield made


@pytest.fixture
def resting(pool: Pool) -> Iterator[str]:
    with at_rest(pool) as name:
        yield name


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run_inside(capsys, *arguments)


def test_a_pipe_gets_no_colours_and_no_bars_even_where_colours_are_forced(pool: Pool) -> None:
    ran = run_outside("inspect", pool.name, FORCE_COLOR="1")

    assert ran.code == 0
    assert is_safe(ran.out.replace("\n", ""))
    assert not set("█░#") & set(ran.out)
    assert "30.0%" in ran.out


def test_a_terminal_gets_colours_and_bars(pool: Pool) -> None:
    with on_terminal("inspect", pool.name) as (process, fd):
        shown = read_until(fd, lambda _: False)

        assert process.wait(DEADLINE_S) == 0
    assert "\x1b[32m" in shown
    assert "█" in shown
    assert "30.0%" in shown


def test_a_terminal_is_redrawn_in_place_until_ctrl_c(pool: Pool) -> None:
    with on_terminal("inspect", pool.name, "--watch", "0.1") as (process, fd):
        first = read_until(fd, lambda shown: "300 of 1,000" in shown)
        pool.intern(b"new")
        second = read_until(fd, lambda shown: "301 of 1,000" in shown)
        process.send_signal(signal.SIGINT)
        last = read_until(fd, lambda _: False)

        assert process.wait(DEADLINE_S) == 0
    assert "\x1b[?1049h" in first  # another screen, so that the shell's stays as it is
    assert "\x1b[H" in second  # from its top each time
    assert "\x1b[?1049l" in last


def test_watching_through_a_pipe_is_a_line_of_json_each_time(pool: Pool) -> None:
    with subprocess.Popen(
        command("inspect", pool.name, "--json", "--watch", "0.1"), env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        pool.intern(b"new")
        later = next(data for data in map(json.loads, process.stdout) if data["topics"] != first["topics"])
        process.send_signal(signal.SIGINT)

        assert process.wait(DEADLINE_S) == 0
    assert (first["topics"], later["topics"]) == (300, 301)


def test_top_sorts_and_filters_by_keys_and_leaves_the_terminal_as_it_was(
    new_pool_name: Callable[[], str],
) -> None:
    small, large = new_pool_name(), new_pool_name()
    with Pool.create(small) as few, Pool.create(large) as many, on_terminal("top", "--every", "0.2") as (process, fd):
        few.intern(b"x")
        many.intern_many(VALUES)
        before = termios.tcgetattr(fd)
        read_until(fd, lambda shown: small in shown and large in shown)

        by_name = last_screen(fd, b"n", lambda screen: 0 < screen.find(small) < screen.find(large))
        by_topics = last_screen(fd, b"t", lambda screen: 0 < screen.find(large) < screen.find(small))
        reverse = last_screen(fd, b"r", lambda screen: 0 < screen.find(small) < screen.find(large))
        some = last_screen(fd, b"/" + large.encode() + b"\r", lambda screen: large in screen and f"\n{small} " not in screen)
        os.write(fd, b"q")
        rest = read_until(fd, lambda _: False)

        assert all((by_name, by_topics, reverse, some))
        assert process.wait(DEADLINE_S) == 0
        assert "\x1b[?1049l" in rest
        assert termios.tcgetattr(fd) == before


def last_screen(fd: int, keys: bytes, is_it: Callable[[str], bool]) -> str:
    """Press keys, and wait for a screen that is as it should be then."""
    os.write(fd, keys)
    shown = read_until(fd, lambda shown: any(map(is_it, whole_screens(shown))))
    return next(filter(is_it, whole_screens(shown)))


def whole_screens(shown: str) -> list[str]:
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", lambda match: "\f" if match[0] == "\x1b[H" else "", shown)
    return [screen for screen in plain.split("\f")[1:] if "q quit" in screen]


def test_top_without_a_terminal_is_refused(run: Run) -> None:
    ran = run("top")

    assert (ran.code, ran.out) == (2, "")
    assert "for a terminal" in ran.err


def test_rates_are_counts_a_second_and_start_over_with_a_new_pool(pool: Pool) -> None:
    board = Board()
    board.update([report.summarize(pool.name)], 10.0)
    first = board.rows[0]
    pool.intern_many([b"%d" % number for number in range(100)])
    board.update([report.summarize(pool.name)], 14.0)
    second = board.rows[0]
    seen = report.summarize(pool.name)
    seen.total = Counters()
    board.update([seen], 18.0)

    assert (first.insert_rate, first.miss_rate) == (0.0, 0.0)
    assert (second.insert_rate, second.miss_rate, second.hit_rate) == (25.0, 25.0, 0.0)
    assert board.rows[0].insert_rate == 0.0


@pytest.mark.parametrize("kind", ["inspect", "json", "dump", "resolve", "lookup", "damaged"])
def test_topics_of_strangers_reach_no_terminal_as_they_are(pool: Pool, run: Run, kind: str) -> None:
    pool.reset()
    refs = [pool.intern(value) for value in HOSTILE]
    ran = {
        "inspect": lambda: run("inspect", pool.name, "--topics"),
        "json": lambda: run("inspect", pool.name, "--topics", "--json"),
        "dump": lambda: run("dump", pool.name),
        "resolve": lambda: run("resolve", pool.name, *map(str, refs)),
        "lookup": lambda: run("lookup", pool.name, *(os.fsdecode(value) + "!" for value in HOSTILE if b"\0" not in value)),
        "damaged": lambda: run("check", pool.name),
    }[kind]()

    for text in (ran.out, ran.err):
        assert is_safe(text.replace("\n", ""))
    if kind != "damaged":
        assert "2J" in ran.out + ran.err
        assert "[bold]x[/bold]" in ran.out + ran.err


def test_a_hostile_command_line_is_shown_escaped_and_whole_lines_stay_whole(pool: Pool, run: Run) -> None:
    code = f"import sys; from shmpool import Pool; p = Pool.attach({pool.name!r}); print('on', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "\x1b[2Jtwo\nlines", "\u202e"], env=environment(), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"

        ran = run("inspect", pool.name)

        process.kill()
    assert is_safe(ran.out.replace("\n", ""))
    line = next(line for line in ran.out.splitlines() if f" {process.pid} " in line)
    assert r"\x1b[2Jtwo\nlines \u202e" in line


def test_a_hostile_file_name_is_shown_escaped(run: Run, pool_name: str) -> None:
    path = Path(f"{segments.path_of(pool_name)}\x1b[2J[red]\n")
    path.touch()

    try:
        plain, data = run("ls"), run("ls", "--json")
    finally:
        path.unlink()

    for ran in (plain, data):
        assert is_safe(ran.out.replace("\n", ""))
    assert any(line.startswith(rf"{pool_name}\x1b[2J[red]\n  ") for line in plain.out.splitlines())
    assert f"{pool_name}\x1b[2J[red]\n" in [each["name"] for each in data.data]
