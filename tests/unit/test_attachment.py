"""Claims about process rows and fork: who is attached, what a child has of its own, what a dead parent leaves."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pytest

from shmpool import Pool, PoolBusyError, PoolClosedError, PoolFullError, PoolNotFoundError, PoolStats, lifetime, stripe, table
from shmpool import segment as segments
from shmpool.attachment import is_live, take_row
from shmpool.layout import PROCESS_BYTES, STRIPE_BYTES
from shmpool.lock import others_hold
from tests.model import assert_sound
from tests.unit.inside import store_of
from tests.unit.processes import DEADLINE_S, Forked, in_child, independent, wait_for_exit

VALUES = [b"topic %d" % number for number in range(20)]


def rows_of(stats: PoolStats, pid: int) -> list[int]:
    return [process.row for process in stats.processes if process.pid == pid and process.live]


# ---- rows


def test_every_attachment_has_a_row_of_its_own_for_as_long_as_it_is_attached(pool_name: str) -> None:
    with Pool.create(pool_name) as pool:
        with Pool.attach(pool_name), Pool.attach(pool_name):
            rows = rows_of(pool.stats(), os.getpid())
            assert len(set(rows)) == 3

        assert len(rows_of(pool.stats(), os.getpid())) == 1


def test_rows_tell_people_who_is_attached_and_since_when(pool_name: str) -> None:
    with Pool.create(pool_name) as pool:
        [process] = pool.stats().processes

        assert process.pid == os.getpid()
        assert process.attached_ns >= pool.constants.created_ns
        with open("/proc/self/stat") as file:
            assert process.start_time == int(file.read().rpartition(")")[2].split()[19])


def test_full_process_table_raises_and_changes_nothing(pool_name: str) -> None:
    with Pool.create(pool_name, process_count=2) as pool, Pool.attach(pool_name) as other:
        before = pool.stats()

        with pytest.raises(PoolFullError, match="2 processes are attached"):
            Pool.attach(pool_name)

        assert pool.stats() == before
        other.close()
        Pool.attach(pool_name).close()


def test_a_killed_processes_row_is_seen_as_dead_at_once_and_is_used_again(pool_name: str) -> None:
    def attach_and_wait(connection: Connection) -> None:
        pool.intern(b"the child's")
        pool.flush()
        connection.send("attached")
        connection.recv()

    with Pool.create(pool_name, process_count=2) as pool:
        for _ in range(3):
            with Forked(attach_and_wait) as child:
                child.hear()
                assert len(rows_of(pool.stats(), child.pid)) == 1
                child.kill()
                assert rows_of(pool.stats(), child.pid) == []

        assert len(pool.stats().processes) == 2
        assert pool.stats().inserts == 1


@pytest.mark.parametrize("attaches", [True, False], ids=["attached", "forked"])
def test_rows_and_their_memory_are_no_more_than_processes_at_once_however_many_are_killed(pool_name: str, attaches: bool) -> None:
    def use_and_wait(connection: Connection) -> None:
        used = Pool.attach(pool_name) if attaches else pool
        used.intern_many(VALUES)  # takes a page for its ledger
        connection.send("used")
        connection.recv()

    with Pool.create(pool_name) as pool:
        sizes = []
        for _ in range(8):
            with Forked(use_and_wait) as child:
                child.hear()
                child.kill()
            sizes.append(pool.stats().memory_size)

        assert len(pool.stats().processes) <= 3  # this one's, and the child's: what it inherited and what it attached
        assert sizes[1:] == sizes[1:2] * 7


def test_a_row_is_live_while_any_process_holds_its_byte_whatever_its_pid_says(pool_name: str) -> None:
    with Pool.create(pool_name) as pool:
        segment = segments.attach(pool_name)
        row = take_row(segment, segment.fd)

        [own] = pool.stats().processes  # no pid yet, so no process to show
        assert row != own.row
        assert not is_live(segment, row + 1, row)
        assert is_live(segment, row, row)
        assert is_live(segment, own.row, row)
        segment.close()


# ---- fork


def test_a_forked_child_has_a_row_of_its_own_from_the_start(pool_name: str) -> None:
    with Pool.create(pool_name) as pool:
        mine = rows_of(pool.stats(), os.getpid())

        child_pid, childs, parents = in_child(
            lambda: (os.getpid(), rows_of(pool.stats(), os.getpid()), rows_of(pool.stats(), os.getppid()))
        )

        assert child_pid != os.getpid()
        assert parents == mine
        assert len(childs) == 1
        assert childs != mine


def test_parent_and_child_get_the_same_refs_and_insert_for_each_other(pool_name: str) -> None:
    def work(connection: Connection) -> dict[bytes, int]:
        connection.recv()
        return {value: int(pool.intern(value)) for value in reversed(VALUES)}

    with Pool.create(pool_name) as pool, Forked(work) as child:
        child.say("go")
        mine = {value: int(pool.intern(value)) for value in VALUES}

        assert child.result() == mine
        assert_sound(pool, mine)


def test_a_child_outlives_its_parent_and_keeps_the_pool_alive(pool_name: str) -> None:
    def parent(connection: Connection) -> None:
        pool = Pool.create(pool_name)
        pool.intern_many(VALUES)
        if os.fork() == 0:
            connection.recv()  # until the parent has gone
            pool.intern(b"after my parent's death")
            connection.send((os.getpid(), {value: int(ref) for ref, value in pool}))
            connection.recv()
            pool.close()
            os._exit(0)
        pool.close()

    with Forked(parent) as family:
        assert family.result() is None
        family.say("your parent has ended")
        grandchild_pid, refs = family.hear()
        with Pool.attach(pool_name) as pool:
            assert_sound(pool, refs)
            assert len(pool.stats().processes) == 2
        family.say("close")
        assert wait_for_exit(grandchild_pid)
    with pytest.raises(PoolNotFoundError):
        Pool.attach(pool_name)


def test_a_killed_parents_row_and_locks_are_free_though_its_child_lives(pool_name: str) -> None:
    """A mapping would pin the description that locks are on, and a child keeps its parent's mappings."""

    def parent(connection: Connection) -> None:
        pool = Pool.attach(pool_name)
        pool.intern(b"parent's")

        child = os.fork()
        if child == 0:
            connection.recv()
            os._exit(0)

        def inside() -> None:
            connection.send((os.getpid(), child))
            connection.recv()

        store_of(pool).locks[0].run(inside)

    with Pool.create(pool_name, stripe_count=1) as pool, Forked(parent) as holder:
        holder_pid, grandchild_pid = holder.hear()
        assert others_hold(store_of(pool).segment.fd, STRIPE_BYTES)
        holder.kill()

        pool.intern(b"not blocked")

        assert store_of(pool).locks[0].takeovers == 1
        assert rows_of(pool.stats(), holder_pid) == []
        assert len(rows_of(pool.stats(), grandchild_pid)) == 2  # its copies of both pools
        holder.say("end")
        assert wait_for_exit(grandchild_pid)


def test_closing_in_the_child_leaves_the_parent_attached_and_the_other_way_round(pool_name: str) -> None:
    def close_only(connection: Connection) -> None:
        pool.close()
        connection.send("closed")
        connection.recv()

    def stay(connection: Connection) -> int:
        connection.send("ready")
        connection.recv()
        pool.intern(b"still here")
        with Pool.attach(pool_name) as other:
            return len(other)

    pool = Pool.create(pool_name)
    with Forked(close_only) as closer, Forked(stay) as stayer:
        assert (closer.hear(), stayer.hear()) == ("closed", "ready")
        pool.intern(b"parent's")
        assert len(rows_of(pool.stats(), stayer.pid)) == 1

        pool.close()

        stayer.say("go")
        assert stayer.result() == 2
        closer.say("end")
    Pool.unlink(pool_name)  # the child ended without closing


def test_a_fork_of_a_fork_has_a_row_of_its_own_too(pool_name: str) -> None:
    def generation(depth: int) -> list[list[int]]:
        rows = [rows_of(pool.stats(), os.getpid())]
        pool.intern(b"generation %d" % depth)
        return rows + (in_child(lambda: generation(depth - 1)) if depth else [])

    with Pool.create(pool_name) as pool:
        rows = generation(3)

        assert all(len(row) == 1 for row in rows)
        assert len({row[0] for row in rows}) == 4
        assert sorted(value for _, value in pool) == [b"generation %d" % depth for depth in range(4)]


def test_a_child_for_whom_there_is_no_row_finds_the_pool_closed(pool_name: str) -> None:
    def use() -> str:
        with pytest.raises(PoolClosedError, match="no free row") as caught:
            pool.intern(b"x")
        pool.close()
        return str(caught.value)

    with Pool.create(pool_name, process_count=1) as pool:
        assert "other processes are not affected" in in_child(use)

        pool.intern(b"the parent's")
        assert pool.check() == []


def test_a_child_for_whom_there_is_no_descriptor_finds_the_pool_closed(pool_name: str) -> None:
    def run_out(_: object) -> str:
        pool = Pool.create(pool_name)
        read, write = os.pipe()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        pid = os.fork()
        if pid == 0:
            try:
                pool.intern(b"x")
            except PoolClosedError:
                os.write(write, b"closed")
            finally:
                os._exit(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        os.waitpid(pid, 0)
        pool.intern(b"the parent's")
        pool.close()
        return os.read(read, 100).decode()

    with Forked(run_out) as child:
        assert child.result() == "closed"


def test_a_child_forked_inside_an_operation_finds_the_pool_closed_and_the_parent_goes_on(pool_name: str) -> None:
    def fork_inside(_: object) -> str:
        with Pool.create(pool_name, stripe_count=1) as pool:
            read, write = os.pipe()
            pid = os.getpid()

            def handler() -> int:
                child = os.fork()
                if child == 0:
                    try:
                        pool.intern(b"the child's")
                    except PoolClosedError as error:
                        os.write(write, str(error).encode())
                    finally:
                        os._exit(0)
                os.waitpid(child, 0)
                return child

            store_of(pool).locks[0].run(handler)
            assert os.getpid() == pid
            pool.intern(b"the parent's")
            assert pool.check() == []
            assert store_of(pool).locks[0].waits == 0
            return os.read(read, 1000).decode()

    with Forked(fork_inside) as child:
        assert "forked inside one of its own operations" in child.result()


def test_a_fork_waits_for_the_operations_of_other_threads(pool_name: str) -> None:
    """A child made in the middle of another thread's insert would have its lock held by nobody."""
    with Pool.create(pool_name, stripe_count=1) as pool:
        stop = threading.Event()

        def insert() -> None:
            number = 0
            while not stop.is_set():
                pool.intern(b"%d" % (number := number + 1))

        threads = [threading.Thread(target=insert) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for number in range(40):
                value = b"child %d" % number
                ref = in_child(partial(pool.intern, value))
                assert pool.lookup(value) == ref
        finally:
            stop.set()
            for thread in threads:
                thread.join(DEADLINE_S)
        assert_sound(pool, {value: int(ref) for ref, value in pool})


def test_a_fork_leaves_the_signal_mask_as_it_was_on_both_sides(pool_name: str) -> None:
    with Pool.create(pool_name):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        try:
            in_parent = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            assert in_child(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ())) == in_parent
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == in_parent
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_fork_leaves_no_descriptor_behind_in_the_parent(pool_name: str) -> None:
    with Pool.create(pool_name), Pool.attach(pool_name):
        before = len(os.listdir("/proc/self/fd"))

        for _ in range(5):
            in_child(os.getpid)

        assert len(os.listdir("/proc/self/fd")) == before


def test_an_executed_program_inherits_no_descriptor(pool_name: str) -> None:
    with Pool.create(pool_name):
        code = "import os\nfor fd in os.scandir('/proc/self/fd'): print(os.path.realpath(fd.path))"
        listing = independent(code, close_fds=False)

        assert listing.returncode == 0
        assert "shmpool" not in listing.stdout


def test_two_pools_are_both_usable_in_a_child(new_pool_name: Callable[[], str]) -> None:
    with Pool.create(new_pool_name()) as one, Pool.create(new_pool_name()) as two, Pool.attach(one.name) as again:
        refs = in_child(lambda: (int(one.intern(b"x")), int(two.intern(b"x")), int(again.intern(b"x"))))

        assert refs == (one.lookup(b"x"), two.lookup(b"x"), again.lookup(b"x"))
        assert refs[0] == refs[2] != refs[1]


def test_row_bytes_are_those_that_the_layout_names(pool_name: str) -> None:
    with Pool.create(pool_name, process_count=3) as pool:
        [row] = rows_of(pool.stats(), os.getpid())
        segment = segments.attach(pool_name)

        assert [others_hold(segment.fd, PROCESS_BYTES + number) for number in range(3)] == [number == row for number in range(3)]
        segment.close()


def test_a_fork_during_another_threads_reset_deadlocks_neither(pool_name: str) -> None:
    def try_it() -> str:
        with Pool.create(pool_name) as pool:
            stop = threading.Event()

            def reset() -> None:
                while not stop.is_set():
                    with suppress(PoolBusyError):  # the child is attached
                        pool.reset()

            thread = threading.Thread(target=reset)
            thread.start()
            for _ in range(60):
                in_child(os.getpid)
            stop.set()
            thread.join(DEADLINE_S)
            return "done"

    assert in_child(try_it) == "done"


def test_a_fork_after_an_interrupted_close_leaves_no_signal_blocked(
    pool_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with Pool.create(pool_name) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(lifetime, "leave", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.close()

        assert in_child(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ())) == signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_child_forked_by_a_handler_inside_growth_cannot_touch_the_pool_that_it_goes_on_with(pool_name: str) -> None:
    """The child returns from the handler into the insert that its parent is in, without the parent's lock."""

    def fork_inside(connection: Connection) -> None:
        build, parent = table.build, os.getpid()

        def fork_and_build(*arguments: Any) -> Any:
            if os.fork() == 0:
                connection.recv()  # until the parent has grown, and inserted more
            return build(*arguments)

        setattr(stripe, "build", fork_and_build)  # noqa: B010 - a name that it imports
        try:
            pool.intern(b"grows")
        finally:
            if os.getpid() != parent:
                connection.send(os.getpid())
                os._exit(0)

    with Pool.create(pool_name, stripe_count=1) as pool:
        refs = {value: int(pool.intern(value)) for value in (b"%d" % number for number in range(384))}
        with Forked(fork_inside) as family:
            assert family.result() is None
            refs |= {value: int(pool.intern(value)) for value in (b"grows", *(b"after %d" % number for number in range(300)))}

            family.say("go on")
            assert wait_for_exit(family.hear())

        assert_sound(pool, refs)
        pool.intern_many([b"more %d" % number for number in range(500)])
        assert pool.check() == []
