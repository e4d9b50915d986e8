"""Claims about the command: what it prints and where, its exit codes, and that it changes nothing unasked."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import click
import pytest

from shmpool import Policy, Pool, exchange
from shmpool import segment as segments
from shmpool.commands import root
from shmpool.layout import HEADER
from tests.unit.command import HOSTILE, Ran, Run, command, environment, run_inside, run_outside
from tests.unit.looks import VALUES, at_rest, damage, field, flip, footprint, hold_every_lock, sample_pool
from tests.unit.own_files import own_files
from tests.unit.processes import DEADLINE_S, Forked


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


# ---- exit codes and errors


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["ls"], 0, id="ls"),
        pytest.param(["inspect", "NAME"], 0, id="inspect"),
        pytest.param(["check", "NAME"], 0, id="sound"),
        pytest.param(["lookup", "NAME", "/topic/1"], 0, id="there"),
        pytest.param(["lookup", "NAME", "/topic/1", "missing"], 1, id="not there"),
        pytest.param(["resolve", "NAME", "5"], 1, id="no ref"),
        pytest.param(["resolve", "NAME", "five"], 2, id="no number"),
        pytest.param(["resolve", "NAME"], 2, id="missing argument"),
        pytest.param(["inspect", "NAME", "--color"], 2, id="unknown option"),
        pytest.param(["inspect", "../etc"], 2, id="impossible name"),
        pytest.param(["lookup", "NAME", "--base64", "?"], 2, id="no base64"),
        pytest.param(["metrics", "NAME", "--listen", "here"], 2, id="no address"),
        pytest.param(["fly"], 2, id="unknown command"),
        pytest.param(["inspect", "NAME-not"], 3, id="no pool"),
        pytest.param(["rm", "NAME"], 3, id="in use"),
    ],
)
def test_exit_codes_are_as_documented_and_errors_go_to_stderr(pool: Pool, run: Run, arguments: list[str], code: int) -> None:
    ran = run(*(argument.replace("NAME", pool.name) for argument in arguments))

    assert ran.code == code
    assert bool(ran.err) == bool(code)
    assert "Traceback" not in ran.err
    if code > 1:
        assert ran.out == ""
        assert "shmpool: " in ran.err


def test_the_exit_code_is_the_processs(pool: Pool) -> None:
    assert run_outside("check", pool.name) == Ran(0, f"{pool.name} is sound\n", "")
    assert run_outside("lookup", pool.name, "missing").code == 1


@pytest.mark.parametrize("library", ["click", "rich"])
def test_without_its_libraries_it_says_what_to_install(library: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; from shmpool.cli import main; sys.exit(main(['ls']))"

    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)

    assert done.returncode == 3
    assert done.stderr == f"shmpool: the command needs {library}, which is not installed: pip install 'shmpool[cli]'\n"


def test_every_command_has_an_example(run: Run) -> None:
    assert "shmpool inspect gossip" in run("--help").out
    for name in root.list_commands(click.Context(root)):
        assert f"shmpool {name}" in run(name, "--help").out.replace(f"Usage: shmpool {name}", "")


def test_the_shell_completes_names_of_pools(pool: Pool) -> None:
    words = f"shmpool inspect {pool.name[:-1]}"

    ran = run_outside(_SHMPOOL_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD="2")

    assert f"plain,{pool.name}" in ran.out.splitlines()


def test_a_reader_that_has_seen_enough_is_no_error(pool: Pool) -> None:
    pool.intern_many([b"%0100d" % number for number in range(600)])  # more than a pipe holds
    with subprocess.Popen(
        command("dump", pool.name), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()

        assert process.stderr.read() == b""
        assert process.wait(DEADLINE_S) == 0


# ---- looking


def test_ls_tells_every_pools_state(
    pool: Pool, new_pool_name: Callable[[], str], run: Run
) -> None:
    idle, killed, broken = new_pool_name(), new_pool_name(), new_pool_name()
    Pool.create(idle, persistent=True).close()
    leave_abandoned(killed)
    Path(segments.path_of(broken)).write_bytes(b"notes")

    try:
        listed = {each["name"]: each for each in run("ls", "--json").data}
        lines = run("ls").out.splitlines()
    finally:
        Path(segments.path_of(broken)).unlink()

    states = {pool.name: "in use", idle: "idle", killed: "abandoned", broken: "no pool"}
    assert {name: listed[name]["state"] for name in states} == states
    # The killed child was forked with this pool attached too.
    assert (listed[pool.name]["topics"], listed[pool.name]["live_processes"], listed[pool.name]["dead_rows"]) == (300, 1, 1)
    assert (listed[killed]["topics"], listed[killed]["live_processes"], listed[killed]["dead_rows"]) == (1, 0, 1)
    for name, state in states.items():
        assert any(line.startswith(f"{name} ") and f" {state} " in line for line in lines)


def leave_abandoned(name: str) -> None:
    def use(connection: Connection) -> None:
        made = Pool.create(name)
        made.intern(b"x")
        connection.send("done")
        signal.pause()

    with Forked(use) as user:
        assert user.hear() == "done"
        user.kill()


KEYS = """schema name path state problems uid mode created_ns policy persistent version file_size memory_size topics capacity
arena_used_size live_processes dead_rows fingerprint pool_id options resets fill counters gate_locked grow_locked stripes
probe_lengths processes top top_by_holds"""
KEYS_OF = {
    "options": "capacity arena_size stripe_count process_count max_value_size insert_budget reserve",
    "fill": "topics capacity arena_used_size arena_committed_size arena_size inserts insert_budget holds unheld",
    "stripes": "stripe topics slots tombstones load probe_mean probe_max growths waits takeovers rollbacks rollforwards intent "
    "locked",
    "processes": "row pid state command attached_ns counters holds",
    "counters": "hits misses inserts lock_waits takeovers rollbacks rollforwards uses_dropped frees evictions "
    "reaped",
}


def test_inspect_as_json_has_the_promised_keys_and_the_pools_figures(pool: Pool, run: Run) -> None:
    data = run("inspect", pool.name, "--json", "--top", "2").data

    assert list(data) == KEYS.split()
    for part, keys in KEYS_OF.items():
        held = data[part][0] if isinstance(data[part], list) else data[part]
        assert list(held) == keys.split()
    assert data["fill"]["topics"] == data["topics"] == len(pool)
    assert data["counters"]["inserts"] == pool.stats().inserts
    assert data["top"][0] == {"ref": pool.intern(VALUES[7]), "text": "/topic/7", "uses": 2, "holds": 0}
    assert sys.executable in data["processes"][0]["command"] or "python" in data["processes"][0]["command"]


def test_inspect_lists_the_topics_that_match(pool: Pool, run: Run) -> None:
    every = run("inspect", pool.name, "--topics", "--json").data["topics_list"]
    some = run("inspect", pool.name, "--topics", "*/29?", "--json").data["topics_list"]

    assert {each["text"].encode() for each in every} == set(VALUES)
    assert {each["text"] for each in some} == {f"/topic/29{digit}" for digit in range(10)}


def test_of_a_damaged_pool_inspect_shows_the_rest_and_check_tells_where_and_what_to_do(
    pool: Pool, resting: str, run: Run
) -> None:
    flip(resting, pool.constants.geometry.arena_offset + 20)
    before = footprint(resting)

    shown, checked = run("inspect", resting), run("check", resting)

    assert (shown.code, checked.code) == (1, 1)
    assert "1 topics are damaged" in shown.out
    assert "300 of 1,000" in shown.out
    assert "arena offset 0: the value's hash is not the record's" in checked.out
    assert "Make the pool anew" in checked.out
    assert footprint(resting) == before


def test_of_another_versions_pool_the_header_is_shown_and_the_rest_refused(resting: str, run: Run) -> None:
    damage(resting, field("version"), (99).to_bytes(8, "little"))
    assert HEADER.fields is not None

    shown, checked = run("inspect", resting), run("check", resting)

    assert (shown.code, checked.code) == (1, 3)
    assert "version 99" in shown.out
    assert "other version" in shown.out
    assert "format version 99" in checked.err


def test_refs_and_topics_are_translated_both_ways_whatever_their_bytes(pool: Pool, run: Run) -> None:
    refs = [pool.intern(value) for value in HOSTILE]

    data = run("resolve", pool.name, "--json", *map(str, refs)).data
    lines = [exchange.line_to_value(json.dumps(each)) for each in data]
    there = run("lookup", pool.name, "--json", os.fsdecode(HOSTILE[0]), os.fsdecode(HOSTILE[3]), "missing").data
    coded = run("lookup", pool.name, "--base64", data[2]["base64"]).out

    assert lines == HOSTILE
    assert [each.get("ref") for each in there] == [refs[0], refs[3], None]
    assert coded.startswith(f"{refs[2]} ")


def test_all_locks_held_by_a_stopped_process_keep_no_command_waiting(resting: str) -> None:
    with Forked(hold_every_lock(resting)) as holder:
        assert holder.hear() == "inside"
        holder.kill(signal.SIGSTOP)
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)

        shown = run_outside("inspect", resting)  # each of which fails if it takes a minute
        removed = run_outside("rm", resting)

        assert shown.code == 0
        assert f"kill -CONT {holder.pid}" in shown.out
        assert "300 of 1,000" in shown.out
        assert (removed.code, removed.out) == (3, "")
        assert "attaching or leaving" in removed.err


# ---- dump and load


def test_what_is_dumped_is_loaded_whatever_its_bytes(
    pool: Pool, new_pool_name: Callable[[], str], run: Run, tmp_path: Path
) -> None:
    pool.intern_many([*HOSTILE, b"", b"\0" * 100])
    file = tmp_path / "topics.jsonl"
    file.write_text(run("dump", pool.name).out)

    with Pool.create(new_pool_name()) as other:
        first, again = run("load", other.name, str(file)), run("load", other.name, str(file))

        assert {value for _, value in other} == {value for _, value in pool}
        assert first.out == "307 topics, of which 307 are new\n"
        assert again.out == "307 topics, of which 0 are new\n"


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"ref": 1}', '{"text": 1}', '{"text": "a", "base64": "YQ=="}', '{"base64": "?"}', '{"text": "\\ud800"}'],
)
def test_a_line_that_is_no_topic_is_named_and_what_was_before_it_stays(
    pool: Pool, run: Run, tmp_path: Path, line: str
) -> None:
    file = tmp_path / "topics.jsonl"
    file.write_text("\n".join([*(json.dumps({"text": str(number)}) for number in range(500)), line, "{}"]))

    ran = run("load", pool.name, str(file))

    assert ran.code == 2
    assert "line 501 is no topic" in ran.err
    assert len(pool) == 800


def test_load_into_a_full_pool_is_refused_and_what_fits_stays(pool: Pool, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "topics.jsonl"
    file.write_text("\n".join(json.dumps({"text": str(number)}) for number in range(2000)))

    ran = run("load", pool.name, str(file))

    assert ran.code == 3
    assert "capacity 1000" in ran.err
    assert len(pool) == 1000
    assert pool.check() == []


@pytest.mark.parametrize("policy", ["refcount", "lru:10", "ttl:60"])
def test_what_is_loaded_stays_unheld_or_is_refused(
    new_pool_name: Callable[[], str], run: Run, tmp_path: Path, policy: str
) -> None:
    (tmp_path / "dump").write_text('{"text": "a"}\n{"text": "b"}\n')
    with Pool.create(new_pool_name(), policy=Policy.parse(policy)) as pool:
        ran = run("load", pool.name, str(tmp_path / "dump"))

        assert (ran.code, len(pool), pool.stats().holds) == ((3, 0, 0) if policy == "refcount" else (0, 2, 0))
        assert ("refcount" in ran.err) == (policy == "refcount")


def test_load_removes_no_pool_by_leaving_it_as_the_last(new_pool_name: Callable[[], str], run: Run, tmp_path: Path) -> None:
    name, file = new_pool_name(), tmp_path / "topics.jsonl"
    leave_abandoned(name)
    file.write_text('{"text": "y"}')

    ran = run("load", name, str(file))

    assert ran.code == 3
    assert "not persistent" in ran.err
    assert run("lookup", name, "x").code == 0


# ---- cleaning up


def test_rm_removes_what_nobody_uses_with_its_semaphores(pool: Pool, run: Run) -> None:
    assert run("rm", pool.name).code == 3
    pool.close()

    ran = run("rm", pool.name)

    assert (ran.code, ran.out) == (0, f"{pool.name} was removed\n")
    assert not Path(segments.path_of(pool.name)).exists()
    assert not list(Path("/dev/shm").glob(f"sem.shmpool-{pool.constants.pool_id:016x}-*"))


class Person(io.StringIO):
    """A standard input at which somebody sits."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("arguments", "answer", "code", "goes"),
    [
        pytest.param(["--dry-run"], None, 0, False, id="dry run"),
        pytest.param([], None, 2, False, id="nobody to ask"),
        pytest.param([], "n\n", 130, False, id="no"),
        pytest.param([], "", 130, False, id="no answer"),
        pytest.param([], "y\n", 0, True, id="yes"),
        pytest.param(["--yes"], None, 0, True, id="--yes"),
        pytest.param(["--json"], "y\n", 2, False, id="json asks nobody"),
        pytest.param(["--json", "--yes"], None, 0, True, id="json"),
    ],
)
def test_gc_removes_only_what_it_may(
    run: Run, new_pool_name: Callable[[], str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], answer: str | None, code: int, goes: bool,
) -> None:
    abandoned = new_pool_name()
    monkeypatch.setattr(sys, "stdin", io.StringIO() if answer is None else Person(answer))
    with own_files(abandoned) as files:
        leave_abandoned(abandoned)
        damaged = Path(segments.path_of(abandoned + ".damaged"))
        damaged.write_bytes(b"notes")
        try:
            before = files.now()

            ran = run("gc", *arguments)

            gone = set(before) - set(files.now())
        finally:
            damaged.unlink()

    assert ran.code == code
    assert (f"shmpool.{abandoned}" in gone) == goes
    assert bool(gone) == goes
    if code == 0:
        assert str(damaged) in ran.out


def test_gc_with_nothing_to_do_asks_nothing(run: Run, pool_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Person(""))
    with own_files(pool_name):
        assert run("gc") == Ran(0, "nothing to remove\n", "")


# ---- metrics


def test_prometheus_scrapes_a_pools_figures_as_they_are_and_its_absence(pool: Pool) -> None:
    with subprocess.Popen(
        command("metrics", pool.name, "--listen", "127.0.0.1:0"), env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]

        before = scrape(url)
        pool.intern(b"new")
        pool.flush()
        after = scrape(url)
        pool.close()
        Pool.unlink(pool.name)
        gone = scrape(url)

        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    label = f'{{pool="{pool.name}"}}'
    assert before[f"shmpool_up{label}"] == 1
    assert before[f"shmpool_topics{label}"] == before[f"shmpool_inserts_total{label}"] == 300
    assert after[f"shmpool_topics{label}"] == after[f"shmpool_inserts_total{label}"] == 301
    assert after[f'shmpool_processes{{pool="{pool.name}",state="running"}}'] == 1
    assert gone == {f"shmpool_up{label}": 0}


def scrape(url: str) -> dict[str, float]:
    deadline = time.monotonic() + DEADLINE_S
    with urllib.request.urlopen(url, timeout=deadline - time.monotonic()) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}
