"""What tests/conftest.py promises of a whole run, seen on small runs of their own with a /dev/shm of their own."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CONFTEST = """\
from pathlib import Path
import tests.conftest as promises
from tests.conftest import *

promises.SHM = Path(__file__).parent / "shm"
promises.SETTLE_S = 0.0
"""

Run = Callable[..., subprocess.CompletedProcess[str]]

in_one_process_and_in_two = pytest.mark.parametrize("processes", ["-n0", "-n2"])


@pytest.fixture
def shm(tmp_path: Path) -> Path:
    """Stands for /dev/shm in the small run."""
    (tmp_path / "shm").mkdir()
    return tmp_path / "shm"


@pytest.fixture
def run(tmp_path: Path, shm: Path) -> Run:
    """Run pytest on a file of tests; `SHM` in it is the folder that stands for /dev/shm."""

    def run_tests(code: str, *options: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "test_small.py").write_text(f"from pathlib import Path\nSHM = Path({str(shm)!r})\n\n{code}")
        (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = --import-mode=importlib\npythonpath = . {ROOT}\n")
        command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "no:cacheprovider", *options, str(tmp_path)]
        environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # what libraries bring along costs a second
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return run_tests


@in_one_process_and_in_two
def test_run_passes_that_leaves_only_what_is_not_its_own(run: Run, shm: Path, processes: str) -> None:
    (shm / "shmpool.older").touch()
    code = """\
def test_tidy():
    (SHM / "shmpool.x").touch()
    (SHM / "shmpool.x").unlink()
    (SHM / "sem.of-another-program").touch()
"""

    result = run(code, processes)

    assert result.returncode == 0, result.stdout


@in_one_process_and_in_two
def test_leftovers_fail_the_run_and_are_named(run: Run, shm: Path, processes: str) -> None:
    code = """\
def test_untidy():
    (SHM / "shmpool.left").touch()
    (SHM / "sem.shmpool-00ff-3").touch()
"""

    result = run(code, processes)

    assert result.returncode == 1
    assert f"The run has left 2 files in {shm}: sem.shmpool-00ff-3, shmpool.left." in result.stdout
    assert "1 failed, 1 passed" in result.stdout


def test_what_a_worker_removes_as_it_exits_is_no_leftover(run: Run) -> None:
    code = """\
import atexit

def test_tidy_in_the_end():
    (SHM / "shmpool.x").touch()
    atexit.register((SHM / "shmpool.x").unlink)
"""

    result = run(code, "-n2")

    assert result.returncode == 0, result.stdout


HOLD = """\
import mmap, sys
with open(sys.argv[1], "w+b") as file:
    file.truncate(4096)
    mapping = mmap.mmap(file.fileno(), 4096)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_run(shm: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that this small run has not started, and that makes and maps a segment when asked to."""
    code = f"import sys\nsys.stdin.readline()\n{HOLD}"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(shm / "shmpool.of-another-run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()


def test_pool_in_use_by_another_run_is_not_this_runs_leftover(run: Run, other_run: subprocess.Popen[str]) -> None:
    assert other_run.stdin is not None
    fd = other_run.stdin.fileno()
    code = f"""\
import os, time

def test_while_another_run_makes_a_pool():
    with open("/proc/{os.getpid()}/fd/{fd}", "w") as ask:
        ask.write("go\\n")
    deadline = time.monotonic() + 30
    while not (SHM / "shmpool.of-another-run").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (SHM / "shmpool.of-another-run").exists()
"""

    result = run(code)

    assert result.returncode == 0, result.stdout


def test_pool_held_by_a_process_the_run_has_left_behind_is_a_leftover(run: Run) -> None:
    code = f"""\
import subprocess, sys

def test_leaves_a_process():
    process = subprocess.Popen(
        [sys.executable, "-c", {HOLD!r}, str(SHM / "shmpool.held")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )
    assert process.stdout.readline() == b"mapped\\n"
    globals()["process"] = process  # until the run ends
"""

    result = run(code, "-p", "no:unraisableexception")

    assert result.returncode == 1
    assert "shmpool.held" in result.stdout


JUDGED = """\
import pytest

def judge(values):
    assert sorted(set(values)) == [7], f"the workers reported {{sorted(values)}}"

@pytest.mark.parametrize("part", range(4))
def test_reports(judge_at_the_end, worker_id, part):
    judge_at_the_end(judge, {value})
"""


def test_judge_that_is_content_lets_the_run_pass(run: Run) -> None:
    result = run(JUDGED.format(value="7"))

    assert result.returncode == 0, result.stdout


def test_judge_sees_every_workers_values_and_fails_the_run(run: Run) -> None:
    result = run(JUDGED.format(value="8 if worker_id == 'gw1' else 7"), "-n2")

    assert result.returncode == 1
    assert "the workers reported [7, 7, 8, 8]" in result.stdout
    assert "test_small:judge" in result.stdout


def test_failure_shows_its_seed_and_the_seed_repeats_it(run: Run) -> None:
    code = """\
def test_one(rng): assert rng.random() < 0
def test_two(rng): assert rng.random() < 0
"""

    first = run(code).stdout
    second = run(code, f"--seed={seeds(first)[0]}").stdout

    assert len(set(choices(first))) == 2
    assert choices(second) == [choices(first)[0]] * 2


def seeds(output: str) -> list[str]:
    return re.findall(r"--seed=(\d+) repeats", output)


def choices(output: str) -> list[str]:
    return re.findall(r"^E +assert (0\.\d+) < 0", output, re.MULTILINE)
