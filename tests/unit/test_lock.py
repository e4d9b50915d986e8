"""Claims about the byte locks and their turnstiles: real processes, kills, stops and interrupts on a file of their own."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from shmpool import PoolBusyError, PoolError, lock
from shmpool.lock import ByteLock, StripeLock, close_semaphores, open_semaphores, others_hold, try_lock, unlock
from tests.unit.interrupts import interrupted_at
from tests.unit.processes import DEADLINE_S, Forked, in_child

BYTE = 7


@dataclass
class File:
    """A description to take locks on."""

    fd: int


class Locks:
    """A file with one stripe lock; `open` gives another description's view of it, as another attachment would have."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pool_id = secrets.randbits(64)
        self.semaphore_path = Path("/dev/shm") / f"sem.{lock.semaphore_name(self.pool_id, 0)[1:]}"
        self._opened: list[int] = []
        path.write_bytes(bytes(mmap.PAGESIZE))

    def describe(self) -> File:
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self._opened.append(fd)
        return File(fd)

    def open(self) -> StripeLock:
        [semaphore] = open_semaphores("a test's", self.pool_id, 1)
        return StripeLock(self.describe(), BYTE, "stripe 0", semaphore)

    def token_count(self) -> int:
        [semaphore] = open_semaphores("a test's", self.pool_id, 1)
        value = int(semaphore.value)
        semaphore.close()
        return value

    def is_held(self) -> bool:
        return others_hold(self.describe().fd, BYTE)

    def close(self) -> None:
        lock.unlink_semaphores(self.pool_id, 1)
        for fd in self._opened:
            os.close(fd)


@pytest.fixture
def locks(tmp_path: Path) -> Iterator[Locks]:
    made = Locks(tmp_path / "locked")
    yield made
    made.close()


def nothing() -> None:
    pass


def hold_and_wait(locks: Locks) -> Callable[[Connection], None]:
    """A child's body: say "inside" from inside the lock, and stay there until told to leave."""

    def body(connection: Connection) -> None:
        def inside() -> None:
            connection.send("inside")
            connection.recv()

        locks.open().run(inside)

    return body


# ---- exclusion


def test_at_most_one_process_is_inside(locks: Locks) -> None:
    rounds, processes = 400, 3
    with mmap.mmap(-1, mmap.PAGESIZE) as shared:

        def add_one() -> None:
            value = shared[0] << 8 | shared[1]
            os.sched_yield()
            shared[0], shared[1] = (value + 1).to_bytes(2, "big")

        def add(connection: Connection) -> None:
            mine = locks.open()
            connection.recv()
            for _ in range(rounds):
                mine.run(add_one)

        locks.open()  # only a gate's holder may make a semaphore; the children find it
        children = [Forked(add) for _ in range(processes)]
        for child in children:
            child.say("go")
        for child in children:
            child.result()

        assert shared[0] << 8 | shared[1] == rounds * processes


def test_at_most_one_thread_is_inside(locks: Locks) -> None:
    mine, inside, most = locks.open(), [], []

    def stay() -> None:
        inside.append(1)
        most.append(len(inside))
        os.sched_yield()
        inside.pop()

    threads = [threading.Thread(target=lambda: [mine.run(stay) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert max(most) == 1
    assert len(most) == 800


def test_run_returns_what_the_body_returns_and_lets_through_what_it_raises(locks: Locks) -> None:
    mine = locks.open()

    assert mine.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        mine.run(divmod, 7, 0)

    assert not locks.is_held()
    assert locks.token_count() == 1
    assert mine.run(divmod, 7, 2) == (3, 1)


def test_other_bytes_of_the_file_are_other_locks(locks: Locks) -> None:
    one, other = ByteLock(locks.describe(), 1, "one"), ByteLock(locks.describe(), 2, "other")

    assert one.run(other.run, int, "5") == 5


def test_a_lock_is_seen_by_other_descriptions_and_not_by_its_own(locks: Locks) -> None:
    mine, other = locks.describe(), locks.describe()

    assert try_lock(mine.fd, BYTE)

    assert try_lock(mine.fd, BYTE)
    assert not try_lock(other.fd, BYTE)
    assert others_hold(other.fd, BYTE)
    assert others_hold(other.fd, BYTE - 3, 10)
    assert not others_hold(other.fd, BYTE + 1, 10)
    assert not others_hold(mine.fd, BYTE)
    unlock(mine.fd, BYTE)
    unlock(mine.fd, BYTE)
    assert try_lock(other.fd, BYTE)


# ---- holders that die or stop


def test_a_killed_holders_lock_is_taken_over_and_its_token_replaced(locks: Locks) -> None:
    mine = locks.open()
    with Forked(hold_and_wait(locks)) as holder:
        assert holder.hear() == "inside"
        assert locks.token_count() == 0
        holder.kill()

    assert mine.run(divmod, 7, 2) == (3, 1)

    assert (mine.waits, mine.takeovers) == (1, 1)
    assert locks.token_count() == 1
    mine.run(nothing)
    assert (mine.waits, mine.takeovers) == (1, 1)


def test_a_stopped_holders_lock_is_not_stolen_on_a_time_out(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = locks.open()
    refused = 0

    def watched(fd: int, command: int, argument: bytes) -> object:
        nonlocal refused
        try:
            return fcntl.fcntl(fd, command, argument)
        except BlockingIOError:
            refused += 1
            if refused == 4:  # four turnstile time-outs have passed
                holder.say("leave")
                holder.kill(signal.SIGCONT)
            raise

    with Forked(hold_and_wait(locks)) as holder:
        assert holder.hear() == "inside"
        holder.kill(signal.SIGSTOP)
        os.waitpid(holder.pid, os.WUNTRACED)
        monkeypatch.setattr(lock, "fcntl", watched)

        mine.run(nothing)

        assert refused >= 4
        assert mine.takeovers == 0
        holder.result()


def test_a_timer_that_interrupts_the_wait_does_not_prevent_takeover(locks: Locks) -> None:
    def wait_among_signals() -> tuple[int, int]:
        ticks = 0

        def tick(*_: object) -> None:
            nonlocal ticks
            ticks += 1

        signal.signal(signal.SIGALRM, tick)
        signal.setitimer(signal.ITIMER_REAL, lock.TURNSTILE_S / 5, lock.TURNSTILE_S / 5)
        mine = locks.open()
        mine.run(nothing)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return mine.takeovers, ticks

    with Forked(hold_and_wait(locks)) as holder:
        assert holder.hear() == "inside"
        holder.kill()

    takeovers, ticks = in_child(wait_among_signals)

    assert takeovers == 1
    assert ticks >= 1


def test_a_lost_token_costs_a_wait_and_comes_back(locks: Locks) -> None:
    [semaphore] = open_semaphores("a test's", locks.pool_id, 1)
    semaphore.acquire()
    mine = locks.open()

    mine.run(nothing)

    assert mine.waits == 1
    assert locks.token_count() == 1


def test_surplus_tokens_admit_nobody_and_are_drained(locks: Locks) -> None:
    [semaphore] = open_semaphores("a test's", locks.pool_id, 1)
    for _ in range(3):
        semaphore.release()
    with Forked(hold_and_wait(locks)) as holder:
        assert holder.hear() == "inside"
        assert not try_lock(locks.describe().fd, BYTE)
        holder.say("leave")
        holder.result()

    for _ in range(5):
        locks.open().run(nothing)

    assert locks.token_count() == 1


def test_tokens_are_neither_lost_nor_multiplied_by_many_kills(locks: Locks) -> None:
    def churn(connection: Connection) -> None:
        mine = locks.open()
        connection.send("started")
        while True:
            mine.run(nothing)

    for _ in range(20):
        children = [Forked(churn) for _ in range(2)]
        for child in children:
            child.hear()
        for child in children:
            child.kill()

    mine = locks.open()
    mine.run(nothing)
    assert locks.token_count() == 1
    assert not locks.is_held()
    mine.waits = 0
    mine.run(nothing)
    assert mine.waits == 0


# ---- signal handlers


def strike() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("contended", [False, True])
def test_an_interrupt_at_any_point_leaves_neither_the_byte_nor_a_token_behind(locks: Locks, contended: bool) -> None:
    def try_all() -> int:
        mine = locks.open()
        for point in count(1):
            if contended:
                lose_token(locks)
            try:
                struck = interrupted_at(point, strike, lambda: mine.run(nothing))
            except KeyboardInterrupt:
                struck = True
            assert not locks.is_held(), f"after an interrupt at point {point}"
            mine.run(nothing)
            assert locks.token_count() == 1, f"after an interrupt at point {point}"
            if not struck:
                return point
        raise AssertionError

    assert in_child(try_all) > 5


def lose_token(locks: Locks) -> None:
    """As a killed holder would."""
    [semaphore] = open_semaphores("a test's", locks.pool_id, 1)
    semaphore.acquire()
    semaphore.close()


def test_an_uncontended_interrupt_does_not_even_cost_the_next_a_wait(locks: Locks) -> None:
    def try_all() -> None:
        mine = locks.open()
        for point in count(1):
            try:
                if not interrupted_at(point, strike, lambda: mine.run(nothing)):
                    return
            except KeyboardInterrupt:
                pass
            mine.run(nothing)
            assert mine.waits == 0, f"after an interrupt at point {point}"

    in_child(try_all)


def test_an_interrupt_at_any_point_leaves_no_byte_of_a_lock_without_a_turnstile_behind(locks: Locks) -> None:
    def try_all() -> int:
        mine = ByteLock(locks.describe(), BYTE, "the gate")
        for point in count(1):
            try:
                struck = interrupted_at(point, strike, lambda: mine.run(mine.is_mine))
            except KeyboardInterrupt:
                struck = True
            assert not locks.is_held(), f"after an interrupt at point {point}"
            assert not mine.is_mine(), f"after an interrupt at point {point}"
            if not struck:
                return point
        raise AssertionError

    assert in_child(try_all) > 5


@pytest.mark.parametrize("kind", [ByteLock, StripeLock])
def test_reentry_from_a_handler_raises_and_the_interrupted_operation_goes_on(locks: Locks, kind: type[ByteLock]) -> None:
    mine = locks.open() if kind is StripeLock else ByteLock(locks.describe(), BYTE, "the gate")

    def inside() -> str:
        with pytest.raises(PoolBusyError, match="signal handler or finalizer"):
            mine.run(nothing)
        assert others_hold(locks.describe().fd, BYTE)
        return "went on"

    assert mine.run(inside) == "went on"

    assert not locks.is_held()


# ---- fork


@pytest.mark.parametrize("kind", [ByteLock, StripeLock])
def test_reentry_from_a_handler_at_any_point_is_refused_or_served_and_never_hangs(locks: Locks, kind: type[ByteLock]) -> None:
    def try_all() -> int:
        mine = locks.open() if kind is StripeLock else ByteLock(locks.describe(), BYTE, "the gate")
        answers: list[str] = []

        def handler() -> None:
            try:
                mine.run(nothing)
            except PoolBusyError:
                answers.append("busy")
            else:
                answers.append("done")

        for point in count(1):
            if not interrupted_at(point, handler, lambda: mine.run(nothing)):
                assert "busy" in answers
                return len(answers)
            assert len(answers) == point
        raise AssertionError

    assert in_child(try_all) > 3


def test_a_frozen_lock_lets_nobody_in_until_it_is_thawed(locks: Locks) -> None:
    mine = locks.open()
    entered = threading.Event()
    thread = threading.Thread(target=mine.run, args=(entered.set,))

    mine.freeze()
    thread.start()
    assert not others_hold(locks.describe().fd, BYTE)
    assert not entered.is_set()
    mine.thaw()
    thread.join(DEADLINE_S)

    assert entered.is_set()


def test_freezing_from_inside_waits_for_nobody_and_keeps_the_lock(locks: Locks) -> None:
    mine = locks.open()

    def inside() -> bool:
        mine.freeze()
        mine.thaw()
        return mine.is_mine() and locks.is_held()

    assert mine.run(inside)
    assert not mine.is_mine()
    assert not locks.is_held()


def test_thawing_what_was_never_frozen_does_no_harm(locks: Locks) -> None:
    mine = locks.open()

    mine.thaw()

    mine.run(nothing)
    assert locks.token_count() == 1


def test_shutting_out_keeps_this_processs_threads_out_and_other_processes_not(locks: Locks) -> None:
    mine = locks.open()
    entered = threading.Event()
    thread = threading.Thread(target=mine.run, args=(entered.set,))

    def inside() -> None:
        thread.start()
        assert mine.is_mine()
        assert not locks.is_held()
        assert not entered.is_set()

    mine.shut_out(inside)
    thread.join(DEADLINE_S)

    assert entered.is_set()


# ---- semaphores


def test_semaphores_are_private_whatever_the_umask(locks: Locks) -> None:
    def make() -> int:
        os.umask(0)
        locks.open()
        return locks.semaphore_path.stat().st_mode & 0o777

    assert in_child(make) == 0o600

    locks.semaphore_path.unlink()
    os.umask(before := os.umask(0o777))

    def make_again() -> int:
        os.umask(0o777)
        locks.open()
        return locks.semaphore_path.stat().st_mode & 0o777

    assert in_child(make_again) == 0o600
    assert os.umask(before) == before


def test_a_damaged_semaphore_is_made_anew(locks: Locks) -> None:
    locks.open()
    os.truncate(locks.semaphore_path, 5)

    mine = locks.open()

    mine.run(nothing)
    assert mine.waits == 0
    assert locks.token_count() == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_another_users_semaphore_is_refused_and_left(locks: Locks) -> None:
    locks.open()
    os.chown(locks.semaphore_path, 12345, -1)

    with pytest.raises(PoolError, match="belongs to user 12345"):
        locks.open()

    assert locks.semaphore_path.stat().st_uid == 12345


def test_unlinking_removes_the_semaphores_that_there_are(locks: Locks) -> None:
    close_semaphores(open_semaphores("a test's", locks.pool_id, 3))
    locks.semaphore_path.unlink()

    lock.unlink_semaphores(locks.pool_id, 3)

    assert not list(Path("/dev/shm").glob(f"sem.shmpool-{locks.pool_id:016x}-*"))
