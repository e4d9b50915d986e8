"""What every test run promises: /dev/shm as it was, unique pool names, seeds that can be repeated.

Under xdist the workers, which are real concurrent processes, run the tests, and the controller none. What must hold for
the run as a whole is judged in the controller, at the end. Without xdist one process is both.
"""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import hypothesis
import pytest

from shmpool import Pool, PoolNotFoundError

SHM = Path("/dev/shm")
PATTERNS = ("shmpool.*", "sem.shmpool-*")  # a pool's segment and its semaphores; whatever else is there is not ours
MARK = "SHMPOOL_TEST_RUN"  # in the environment of every process that a run starts
SETTLE_S = 5.0  # for what other runs on this host are just removing, and for the kernel to end who was killed
NOT_SURE = "If another run was killed on this host meanwhile, they may be its: nothing tells whose a file in no use is."

Judge: TypeAlias = Callable[[list[Any]], None]

before: pytest.StashKey[set[str]] = pytest.StashKey()
reports: pytest.StashKey[dict[str, list[Any]]] = pytest.StashKey()

hypothesis.settings.register_profile("shmpool", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("shmpool"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "shmpool")


# Fixtures


@pytest.fixture
def new_pool_name(testrun_uid: str, worker_id: str) -> Iterator[Callable[[], str]]:
    """A function that returns a pool name nobody else has, in any run; the pools are unlinked when the test ends."""
    names: list[str] = []

    def new() -> str:
        names.append(f"test-{testrun_uid[:12]}-{worker_id}-{next(_serial)}")
        return names[-1]

    yield new
    for name in names:
        with contextlib.suppress(PoolNotFoundError):
            Pool.unlink(name)


_serial = count()


@pytest.fixture
def pool_name(new_pool_name: Callable[[], str]) -> str:
    """A pool name nobody else has; the pool is unlinked when the test ends."""
    return new_pool_name()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test's random choices: a new one each time, unless --seed names it. Shown if the test fails."""
    given = request.config.getoption("seed")
    chosen: int = random.SystemRandom().getrandbits(32) if given is None else given
    request.node.add_report_section("setup", "seed", f"--seed={chosen} repeats this test's random choices")
    return chosen


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.fixture(scope="session")
def judge_at_the_end(request: pytest.FixtureRequest) -> Callable[[Judge, Any], None]:
    """Hand a value to the controller: once all workers have ended it calls `judge(values)`, with every worker's values.

    `judge` is a module's top-level function and `value` is made of plain lists, dicts, numbers and strings. An
    AssertionError of the judge fails the run.
    """

    def hand_over(judge: Judge, value: Any) -> None:
        request.config.stash[reports].setdefault(f"{judge.__module__}:{judge.__qualname__}", []).append(value)

    return hand_over


# The run as a whole


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="seed of the tests that make random choices")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """At least two: the stress tests are about workers meeting."""
    return int(os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS", max(2, len(os.sched_getaffinity(0)))))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[reports] = {}
    if not is_worker(config):
        os.environ[MARK] = uuid4().hex
        config.stash[before] = pool_files()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """In the controller, when a worker has ended: keep what it handed over. One that crashed has nothing to say."""
    for judge, values in getattr(node, "workeroutput", {}).get("reports", {}).items():
        node.config.stash[reports].setdefault(judge, []).extend(values)


@pytest.hookimpl(trylast=True)  # after xdist has ended its workers
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if is_worker(config):
        config.workeroutput["reports"] = config.stash[reports]  # type: ignore[attr-defined]  # xdist's
        return

    for place, values in config.stash[reports].items():
        try:
            judge_of(place)(values)
        except AssertionError as error:
            fail_run(session, place, str(error) or "the workers' reports do not agree")
    leftovers = leftover_files(config.stash[before])
    if leftovers:
        fail_run(session, str(SHM), f"The run has left {len(leftovers)} files in {SHM}: {', '.join(leftovers[:10])}. {NOT_SURE}")


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def judge_of(place: str) -> Judge:
    module, _, name = place.partition(":")
    judge: Judge = getattr(import_module(module), name)
    return judge


def fail_run(session: pytest.Session, what: str, why: str) -> None:
    """Report a failure that belongs to no test."""
    location = (what, None, what)
    report = pytest.TestReport(what, location, keywords={}, outcome="failed", longrepr=why, when="call")
    session.config.hook.pytest_runtest_logreport(report=report)
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# /dev/shm


def pool_files() -> set[str]:
    return {path.name for pattern in PATTERNS for path in SHM.glob(pattern)}


def leftover_files(were_there: set[str]) -> list[str]:
    """Names of the pool files that this run has added and not removed; waits a moment for them to go."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        leftovers = sorted(pool_files() - were_there - files_of_other_runs())
        if not leftovers or time.monotonic() > deadline:
            return leftovers
        time.sleep(0.05)


def files_of_other_runs() -> set[str]:
    """Pool files that are open in a process which this run has not started: another run, or somebody's pool in use."""
    return {
        name
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and not started_by_us(process)
        for name in open_files(process)
    }


def started_by_us(process: Path) -> bool:
    """By the mark in its environment, or by its group: a forked child has the environment of its parent's start."""
    try:
        marked = f"{MARK}={os.environ[MARK]}".encode() in (process / "environ").read_bytes().split(b"\0")
        return marked or os.getpgid(int(process.name)) == os.getpgrp()
    except OSError:  # it has just ended, or is another user's
        return False


def open_files(process: Path) -> set[str]:
    """Names in /dev/shm that `process` has mapped; a pool is mapped for as long as it is in use."""
    try:
        maps = (process / "maps").read_text(errors="replace")
    except OSError:
        return set()
    return {line.partition(f"{SHM}/")[2] for line in maps.splitlines() if f"{SHM}/" in line}
