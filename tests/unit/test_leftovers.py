"""Claims about `gc`: it removes what nobody uses and nothing else, whoever comes, goes or is killed meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from shmpool import Policy, Pool, gc, lifetime
from shmpool import segment as segments
from shmpool.layout import GATE_BYTE
from shmpool.lock import ByteLock
from shmpool.segment import Segment
from tests.model import assert_sound
from tests.unit.faults import Faults, killed_at
from tests.unit.inside import store_of
from tests.unit.own_files import OwnFiles, abandon, own_files
from tests.unit.processes import Forked, in_child

OPTIONS: dict[str, Any] = {"stripe_count": 2, "process_count": 4}


@pytest.fixture
def files(pool_name: str) -> Iterator[OwnFiles]:
    """Only this test's pools, whose names begin with `prefix`, are seen by `gc`."""
    with own_files(pool_name) as own:
        yield own
        own.remove()


def path_of(name: str) -> str:
    return f"/dev/shm/shmpool.{name}"


# ---- what goes


def test_pool_whose_last_process_was_killed_is_removed_with_its_semaphores(files: OwnFiles) -> None:
    abandon(files.prefix, **OPTIONS)
    size = os.stat(path_of(files.prefix)).st_blocks * 512

    found = gc()

    assert [(each.path, each.kind, each.memory_size, each.removed) for each in found] == [
        (path_of(files.prefix), "pool", size, True)
    ]
    assert files.now() == []
    assert gc() == []


@pytest.mark.parametrize("persistent", [False, True])
def test_what_killed_processes_held_is_given_back_and_nothing_of_the_living(files: OwnFiles, persistent: bool) -> None:
    def hold_and_die(_: Connection) -> None:
        with Pool.attach(files.prefix) as pool:
            pool.intern_many([b"theirs", b"theirs", b"both"])
            os.kill(os.getpid(), signal.SIGKILL)

    with Pool.create(files.prefix, policy=Policy.refcount(), persistent=persistent, **OPTIONS) as pool:
        ref = pool.intern(b"both")
        with Forked(hold_and_die) as child:
            child.wait()
        if persistent:
            pool.close()

        dry, wet = gc(dry_run=True), gc()

        note = "3 holds of processes that were killed"  # whoever closes leaves none
        told = [(each.kind, each.removed, each.note, each.path) for each in dry + wet]
        assert told == [("holds", removed, note, path_of(files.prefix)) for removed in (False, True)]
        assert gc() == []
        with Pool.attach(files.prefix) as other:
            assert {value for _, value in other} == (set() if persistent else {b"both"})
            assert other.check() == []
            assert persistent or [holder.count for holder in other.holders(ref)] == [1]
    if persistent:
        Pool.unlink(files.prefix)


def test_semaphores_of_a_pool_whose_name_was_removed_by_hand_are_removed(files: OwnFiles) -> None:
    pool_id = abandon(files.prefix, **OPTIONS)
    os.unlink(path_of(files.prefix))

    found = gc()

    names = [f"/dev/shm/sem.shmpool-{pool_id:016x}-{stripe}" for stripe in range(2)]
    assert [(each.path, each.kind, each.memory_size, each.removed) for each in found] == [
        (name, "semaphore", 4096, True) for name in names
    ]
    assert files.now() == []


def test_dry_run_names_the_same_and_removes_nothing(files: OwnFiles) -> None:
    abandon(files.prefix + "-a", **OPTIONS)
    abandon(files.prefix + "-b", **OPTIONS)
    os.unlink(path_of(files.prefix + "-b"))
    before = files.now()

    found = gc(dry_run=True)

    assert len(found) == 3
    assert not any(each.removed for each in found)
    assert files.now() == before
    assert [each.path for each in gc()] == [each.path for each in found]
    assert files.now() == []


# ---- what stays


def test_pool_in_use_stays_and_serves_whoever_comes(files: OwnFiles) -> None:
    with Pool.create(files.prefix, **OPTIONS) as pool:
        ref = pool.intern(b"x")
        before = files.now()

        assert gc() == []

        assert files.now() == before
        with Pool.attach(files.prefix) as other:
            assert other.lookup(b"x") == ref


def test_pool_used_only_by_a_forked_child_stays(files: OwnFiles) -> None:
    pool = Pool.create(files.prefix, **OPTIONS)

    def use(connection: Connection) -> int:
        connection.send("attached")
        connection.recv()
        return int(pool.intern(b"x"))

    with Forked(use) as child:
        child.hear()
        pool.close()

        assert gc() == []

        child.say("go on")
        assert child.result() > 0
    assert [each.removed for each in gc()] == [True]  # that child ends without closing it


def test_persistent_pool_that_nobody_uses_stays(files: OwnFiles) -> None:
    abandon(files.prefix, persistent=True, **OPTIONS)
    before = files.now()

    assert gc() == []

    assert files.now() == before


@pytest.mark.parametrize("byte", [0, 8, 16, 24, 100, 248])
def test_damaged_pool_is_reported_and_kept_with_all_semaphores_that_might_be_its(files: OwnFiles, byte: int) -> None:
    abandon(files.prefix, **OPTIONS)
    with open(path_of(files.prefix), "r+b") as file:
        kept = os.pread(file.fileno(), 1, byte)
        os.pwrite(file.fileno(), bytes([kept[0] ^ 1]), byte)
    before = files.now()

    found = gc()

    assert [each.kind for each in found] == ["pool", "semaphore", "semaphore"]
    assert not any(each.removed for each in found)
    assert all("left as it is" in each.note for each in found)
    assert files.now() == before


def test_file_that_is_no_pool_is_reported_and_kept(files: OwnFiles) -> None:
    path = Path(path_of(files.prefix))
    path.touch(0o600)

    found = gc()

    assert [(each.path, each.removed) for each in found] == [(str(path), False)]
    assert path.exists()


def test_symlink_named_as_a_pool_is_reported_and_what_it_leads_to_is_kept(files: OwnFiles, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch(0o600)
    os.symlink(target, path_of(files.prefix))

    found = gc()

    assert [(each.path, each.removed) for each in found] == [(path_of(files.prefix), False)]
    assert target.exists()
    assert os.path.islink(path_of(files.prefix))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_files_of_another_user_are_not_even_reported(files: OwnFiles) -> None:
    abandon(files.prefix + "-a", **OPTIONS)
    abandon(files.prefix + "-b", **OPTIONS)
    os.unlink(path_of(files.prefix + "-b"))
    before = files.now()
    for name in before:
        os.chown(f"/dev/shm/{name}", 65534, 65534)

    assert gc() == []

    assert files.now() == before


# ---- races


def test_gc_waits_for_nobody_who_stands_at_a_gate(files: OwnFiles) -> None:
    abandon(files.prefix, **OPTIONS)

    def stand_at_the_gate(connection: Connection) -> None:
        def wait_there() -> None:
            connection.send("there")
            connection.recv()

        segment = segments.attach(files.prefix)
        ByteLock(segment, GATE_BYTE, "the gate").run(wait_there)

    with Forked(stand_at_the_gate) as child:
        child.hear()

        assert in_child(gc) == []

        child.say("go")
        child.result()
    assert [each.removed for each in gc()] == [True]


def test_gc_under_a_gate_that_its_own_thread_holds_passes_that_pool_by(files: OwnFiles) -> None:
    with Pool.create(files.prefix, **OPTIONS) as pool:
        assert store_of(pool).seat.gate.run(gc) == []


def test_gc_leaves_a_pool_that_somebody_joined_while_it_waited_for_the_gate(
    files: OwnFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandon(files.prefix, **OPTIONS)
    joined: list[Pool] = []
    is_in_use = lifetime._is_in_use  # noqa: SLF001 - the look before the gate

    def look_and_join(segment: Segment) -> bool:
        monkeypatch.undo()
        used = is_in_use(segment)
        joined.append(Pool.attach(files.prefix))
        return used

    monkeypatch.setattr(lifetime, "_is_in_use", look_and_join)

    assert gc() == []

    with joined[0] as pool, Pool.attach(files.prefix) as other:
        assert_sound(other, {b"x": pool.intern(b"x")})


def test_gc_leaves_the_successor_of_a_pool_that_went_while_it_looked(
    files: OwnFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandon(files.prefix, **OPTIONS)
    made: list[Pool] = []
    is_in_use = lifetime._is_in_use  # noqa: SLF001 - the look before the gate

    def look_and_replace(segment: Segment) -> bool:
        monkeypatch.undo()
        used = is_in_use(segment)
        Pool.unlink(files.prefix)
        made.append(Pool.create(files.prefix, **OPTIONS))
        return used

    monkeypatch.setattr(lifetime, "_is_in_use", look_and_replace)

    assert gc() == []

    with made[0] as pool, Pool.attach(files.prefix) as other:
        assert_sound(other, {b"x": pool.intern(b"x")})
        assert len(files.now()) == 1 + OPTIONS["stripe_count"]


def test_gc_gives_back_what_a_killed_process_held_and_says_how_much(files: OwnFiles) -> None:
    with Pool.create(files.prefix, policy=Policy.refcount(), **OPTIONS) as pool:
        pool.intern(b"held")

        def body(connection: Connection) -> None:
            connection.send(len(pool.intern_many([b"held", b"theirs"])))
            connection.recv()

        with Forked(body) as child:
            child.hear()
            child.kill()

        told = [(found.removed, found.note) for dry_run in (True, False) for found in gc(dry_run=dry_run)]

        assert told == [(False, "2 holds of processes that were killed"), (True, "2 holds of processes that were killed")]
        assert (pool.stats().holds, len(pool)) == (1, 1)
        assert gc() == []


def test_gc_killed_at_any_step_leaves_what_the_next_one_removes(files: OwnFiles) -> None:
    for step in count(1):
        abandon(files.prefix + "-a", **OPTIONS)
        abandon(files.prefix + "-b", **OPTIONS)
        os.unlink(path_of(files.prefix + "-b"))

        def collect(faults: Faults) -> None:
            faults.arm()
            gc()

        killed = killed_at(step, collect)
        gc()

        assert files.now() == []
        if not killed:
            break
    assert step > 5
