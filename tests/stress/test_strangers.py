"""Programs that are started and executed, worker pools of every kind, other pid namespaces: each is attached when it attached
itself, to the same refs, and its end takes nothing from the others."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from shmpool import Pool, PoolClosedError, PoolNotFoundError
from tests.model import assert_sound
from tests.stress.programs import Program
from tests.stress.test_lives import VALUES, assert_attached, live_pids
from tests.unit.processes import DEADLINE_S, Forked, wait_for_exit

METHODS = ["fork", "spawn", "forkserver"]
SLEEP = ["sleep", "60"]


def held_by(pid: int) -> list[str]:
    """What of pools a process has: its descriptors and mappings."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return [name for name in [*links, *Path(f"/proc/{pid}/maps").read_text().splitlines()] if "shmpool" in name]


# ---- execution


def wait_until_executed(pid: int) -> None:
    """A new program has its name once what is close-on-exec was closed; who waits for a vfork may go on a little earlier."""
    deadline = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{pid}/comm").read_text() != SLEEP[0] + "\n":
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_program_executed_by_an_attached_process_has_nothing_of_the_pool(pool_name: str) -> None:
    def execute(connection: Connection) -> None:
        pool = Pool.attach(pool_name)
        connection.send([int(pool.intern(value)) for value in VALUES])
        connection.recv()
        os.execvp(SLEEP[0], SLEEP)

    with Pool.create(pool_name) as pool, Forked(execute) as child:
        refs = child.hear()
        assert live_pids(pool).count(child.pid) == 2  # what it inherited and what it attached
        child.say("execute")
        wait_until_executed(child.pid)

        assert held_by(child.pid) == []
        assert_attached(pool, [os.getpid()])
        assert_sound(pool, dict(zip(VALUES, refs, strict=True)))


def popen() -> int:
    return subprocess.Popen(SLEEP, close_fds=False).pid


def spawn() -> int:
    return os.posix_spawnp(SLEEP[0], SLEEP, os.environ)


@pytest.mark.parametrize("start", [popen, spawn])
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_program_started_beside_a_pool_is_not_attached_and_keeps_nothing_alive(pool_name: str, start: Callable[[], int]) -> None:
    with Pool.create(pool_name) as pool, Pool.attach(pool_name) as again:
        again.intern_many(VALUES)

        pid = start()
        wait_until_executed(pid)

        assert held_by(pid) == []
        assert_attached(pool, [os.getpid()] * 2)
    with pytest.raises(PoolNotFoundError):
        Pool.attach(pool_name)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_independent_processes_come_and_go_in_any_order_and_remove_nothing_of_the_others(pool_name: str) -> None:
    code = """
import sys
from shmpool import Pool
pool = Pool.open(sys.argv[1])
for line in sys.stdin:
    print(int(pool.intern(line.encode())), flush=True)
"""
    with Program(code, pool_name) as first, Program(code, pool_name) as second:
        refs = {first.ask("a"), second.ask("a")}
        assert first.process.stdin is not None
        first.process.stdin.close()  # it made the pool, and exits as any program does, without closing
        assert first.process.wait(DEADLINE_S) == 0

        refs.add(second.ask("a"))
        with Program(code, pool_name) as third:
            refs.add(third.ask("a"))
            second.process.kill()
            second.process.wait()
            assert len(refs) == 1
            assert third.ask("b") not in refs
            with Pool.attach(pool_name) as pool:
                assert_attached(pool, [os.getpid(), third.process.pid])
                assert pool.check() == []
    with pytest.raises(PoolNotFoundError):
        Pool.attach(pool_name)


# ---- worker pools

adopted: Pool


def adopt(pool: Pool) -> None:
    global adopted  # noqa: PLW0603 - as programs do with an initializer
    adopted = pool


def intern_adopted(values: list[bytes]) -> list[int]:
    return [int(adopted.intern(value)) for value in values]


def intern_sent(pool: Pool, values: list[bytes]) -> list[int]:
    return [int(ref) for ref in pool.intern_many(values)]


def chunks() -> list[list[bytes]]:
    return [[b"shared", *VALUES[start : start + 20]] for start in range(0, len(VALUES), 10)]


def assert_agree(pool: Pool, answers: list[list[int]]) -> None:
    refs: dict[bytes, int] = {}
    for values, given in zip(chunks(), answers, strict=True):
        for value, ref in zip(values, given, strict=True):
            assert refs.setdefault(value, ref) == ref
    assert_attached(pool, [os.getpid()])
    assert_sound(pool, refs)


@pytest.mark.parametrize("method", METHODS)
def test_multiprocessing_pool_interns_into_the_pool_it_was_given(pool_name: str, method: str) -> None:
    with Pool.create(pool_name, stripe_count=2) as pool:
        with multiprocessing.get_context(method).Pool(2, adopt, (pool,)) as workers:
            answers = workers.map_async(intern_adopted, chunks(), chunksize=1).get(DEADLINE_S)
            workers.close()
            workers.join()

        assert_agree(pool, answers)


@pytest.mark.parametrize("method", METHODS)
def test_process_pool_executor_interns_into_a_pool_that_comes_with_each_task(pool_name: str, method: str) -> None:
    with Pool.create(pool_name, stripe_count=2) as pool:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as workers:
            answers = list(workers.map(intern_sent, [pool] * len(chunks()), chunks(), timeout=DEADLINE_S))

        assert_agree(pool, answers)


# ---- pid namespaces

SIDE = """
import os, sys
from shmpool import Pool
from tests.unit.inside import store_of
pool = Pool.attach(sys.argv[1])
store = store_of(pool)
def hold():
    print("inside", flush=True)
    sys.stdin.readline()
for line in sys.stdin:
    if line == "hold\\n":
        store.locks[0].run(hold)
    else:
        ref = int(pool.intern(line.encode()))
        lives = "".join("01"[process.live] for process in pool.stats().processes if process.pid == 1)
        print(os.getpid(), ref, store.locks[0].takeovers, lives, flush=True)
"""
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]


def can_unshare() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*UNSHARE, "true"], check=False, stderr=-3).returncode == 0


def test_processes_of_the_same_pid_in_two_namespaces_are_told_apart_and_taken_over_from(pool_name: str) -> None:
    if not can_unshare():
        pytest.skip("needs root and unshare, for pid namespaces of its own")
    with (
        Pool.create(pool_name, stripe_count=1) as pool,
        Program(SIDE, pool_name, prefix=UNSHARE) as one,
        Program(SIDE, pool_name, prefix=UNSHARE) as two,
    ):
        first, second = one.ask("a").split(), two.ask("a").split()
        assert first[:2] == second[:2] == ["1", str(pool.intern(b"a\n"))]  # both have pid 1 where they are
        assert second[3] == "11"
        assert_attached(pool, [1, 1, os.getpid()])

        assert one.ask("hold") == "inside"
        children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        _, ref, takeovers, lives = two.ask("b").split()

        assert ref == str(pool.intern(b"b\n"))
        assert takeovers == "1"
        assert sorted(lives) == ["0", "1"]
        assert_attached(pool, [1, os.getpid()])
        assert pool.check() == []


# ---- forks past the hooks


def test_child_that_c_code_forked_is_refused_and_its_parents_close_blocks_nobody(pool_name: str) -> None:
    read, write = os.pipe()

    def fork_past_the_hooks(connection: Connection) -> None:
        pool = Pool.attach(pool_name)
        if ctypes.PyDLL(None).fork() == 0:
            try:
                pool.intern(b"x")
            except PoolClosedError:
                os.write(write, b"refused %d" % os.getpid())
            connection.recv()
            os._exit(0)
        pool.close()

    with Pool.create(pool_name) as pool, Forked(fork_past_the_hooks) as family:
        family.result()  # the child lives on, with copies of its parent's descriptors
        answer, grandchild = os.read(read, 100).split()
        assert answer == b"refused"

        with Forked(lambda _: len({Pool.attach(pool_name).intern(b"y") for _ in range(3)})) as other:
            assert other.result() == 1

        family.say("end")
        assert wait_for_exit(int(grandchild))
        assert_attached(pool, [os.getpid()])
    os.close(read)
    os.close(write)
