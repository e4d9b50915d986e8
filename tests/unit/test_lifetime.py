"""Claims about coming and going: never two live pools of one name, nothing left behind, whoever races, raises or is killed."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from shmpool import Pool, PoolBusyError, PoolExistsError, PoolNotFoundError, lifetime
from shmpool.layout import MIN_ORIGIN
from tests.conftest import pool_files
from tests.model import assert_sound
from tests.unit.faults import Faults, killed_at
from tests.unit.inside import store_of
from tests.unit.processes import Forked, in_child

Names = Callable[[], str]


def files_of(pool_id: int, name: str) -> list[str]:
    """What stands in /dev/shm of one pool."""
    return sorted(file for file in pool_files() if file == f"shmpool.{name}" or file.startswith(f"sem.shmpool-{pool_id:016x}-"))


@pytest.fixture
def pool_id(monkeypatch: pytest.MonkeyPatch) -> int:
    """The id of every pool that the test makes, so that it can tell its files even of those that it never got to see."""
    chosen = secrets.randbits(64)
    monkeypatch.setattr(secrets, "randbits", lambda _: chosen)
    return chosen


# ---- races


def test_of_many_processes_that_create_one_name_at_once_one_succeeds(new_pool_name: Names) -> None:
    names = [new_pool_name() for _ in range(20)]

    def race(connection: Connection) -> list[int]:
        kept = []
        connection.recv()
        for number, name in enumerate(names):
            with suppress(PoolExistsError):
                kept.append((number, Pool.create(name)))
        connection.send([number for number, _ in kept])
        connection.recv()
        return []

    children = [Forked(race) for _ in range(3)]
    for child in children:
        child.say("go")
    created = sorted(number for child in children for number in child.hear())
    for child in children:
        child.say("end")
        child.result()

    assert created == list(range(20))


def test_processes_that_open_and_close_one_name_at_random_never_have_two_pools_of_it(pool_name: str) -> None:
    """Whoever is attached knows the pool by its id; two ids held at one instant would be two live pools."""

    def come_and_go(connection: Connection) -> None:
        for number in range(150):
            with Pool.open(pool_name, stripe_count=1, process_count=8) as mine:
                ref = mine.intern(b"%d" % number)
                with Pool.attach(pool_name) as seen:  # mine is alive, so the name must lead to it
                    assert seen.constants.pool_id == mine.constants.pool_id
                    assert seen.lookup(b"%d" % number) == ref
        connection.send("done")

    children = [Forked(come_and_go) for _ in range(4)]
    for child in children:
        assert child.hear() == "done"
        child.result()

    with pytest.raises(PoolNotFoundError):
        Pool.attach(pool_name)
    assert not Path(f"/dev/shm/shmpool.{pool_name}").exists()


def test_attaching_while_the_last_one_closes_joins_a_live_pool_or_finds_none(pool_name: str) -> None:
    def attach_all(connection: Connection) -> int:
        found = 0
        connection.send("ready")
        while not connection.poll():
            with suppress(PoolNotFoundError), Pool.attach(pool_name) as pool, Pool.attach(pool_name) as again:
                assert pool.constants.pool_id == again.constants.pool_id
                found += 1
        return found

    with Forked(attach_all) as child:
        child.hear()
        for _ in range(150):
            with suppress(PoolExistsError):
                Pool.create(pool_name, stripe_count=1, process_count=4).close()
        child.say("stop")
        child.result()

    assert not Path(f"/dev/shm/shmpool.{pool_name}").exists()


def test_unlinking_races_with_attaching_and_cuts_nobody_off(pool_name: str) -> None:
    def unlink_all(connection: Connection) -> int:
        removed = 0
        connection.send("ready")
        while not connection.poll():
            with suppress(PoolNotFoundError, PoolBusyError):
                Pool.unlink(pool_name)
                removed += 1
        return removed

    with Forked(unlink_all) as child:
        child.hear()
        for number in range(150):
            with Pool.open(pool_name, persistent=True, stripe_count=1) as pool, Pool.attach(pool_name) as again:
                assert again.constants.pool_id == pool.constants.pool_id
            if number % 10 == 0:
                time.sleep(0.002)  # so that the other one gets its turn, on the busiest host too
        child.say("stop")
        assert child.result() > 0


# ---- kills


def test_create_killed_at_any_step_leaves_no_pool_or_a_sound_one(new_pool_name: Names, pool_id: int) -> None:
    for step in count(1):
        name = new_pool_name()

        def create(faults: Faults, name: str = name) -> None:
            faults.arm()
            Pool.create(name, stripe_count=2)

        killed = killed_at(step, create)

        with Pool.open(name, stripe_count=2) as pool:
            assert_sound(pool, {b"x": pool.intern(b"x")})
            assert pool.stats().lock_waits == 0
        assert files_of(pool_id, name) == []
        if not killed:
            break
    assert step > 15


def test_close_killed_at_any_step_leaves_no_name_or_a_sound_pool(new_pool_name: Names, pool_id: int) -> None:
    for step in count(1):
        name = new_pool_name()

        def close(faults: Faults, name: str = name) -> None:
            pool = Pool.create(name, stripe_count=2, max_value_size=100)
            pool.intern(b"x")
            faults.arm()
            pool.close()

        killed = killed_at(step, close)

        with Pool.open(name, stripe_count=2) as pool:
            assert_sound(pool, {}, at_most_also=[b"x"])
            pool.intern(b"y")
            assert pool.check() == []
        assert files_of(pool_id, name) == []
        if not killed:
            break
    assert step > 15


# ---- finalizers


def test_pool_in_a_cycle_is_collected_under_its_own_gate_without_a_hang(pool_name: str) -> None:
    def collect() -> int:
        gc.disable()
        with Pool.create(pool_name, stripe_count=2) as pool:

            def attach_inside() -> int:
                gc.collect()
                return len(pool)

            for _ in range(3):
                cycle: list[object] = [Pool.attach(pool_name)]
                cycle.append(cycle)
                del cycle
                assert store_of(pool).seat.gate.run(attach_inside) == 0
            gc.collect()
            Pool.attach(pool_name).close()
            return len([process for process in pool.stats().processes if process.live])

    assert in_child(collect) == 1


def test_pool_in_a_cycle_goes_when_it_is_collected(pool_name: str) -> None:
    gc.collect()
    cycle: list[object] = [Pool.create(pool_name, stripe_count=1)]
    cycle.append(cycle)

    del cycle
    gc.collect()

    assert not Path(f"/dev/shm/shmpool.{pool_name}").exists()


# ---- names and semaphores


def test_name_removed_by_hand_leaves_no_semaphores_behind_when_the_pool_closes(pool_name: str) -> None:
    pool = Pool.create(pool_name, stripe_count=4)
    Path(f"/dev/shm/shmpool.{pool_name}").unlink()

    with Pool.create(pool_name, stripe_count=4) as successor:
        pool.close()

        assert files_of(pool.constants.pool_id, "") == []
        assert len(files_of(successor.constants.pool_id, pool_name)) == 5
        successor.intern(b"x")
        assert successor.stats().lock_waits == 0


def test_pool_has_a_semaphore_for_each_stripe_and_leaves_none(pool_name: str) -> None:
    with Pool.create(pool_name, stripe_count=4) as pool:
        assert len(files_of(pool.constants.pool_id, pool_name)) == 5

    assert files_of(pool.constants.pool_id, pool_name) == []


def test_semaphore_removed_by_hand_is_made_anew_by_who_attaches(pool_name: str) -> None:
    with Pool.create(pool_name, stripe_count=1) as pool:
        Path(f"/dev/shm/sem.shmpool-{pool.constants.pool_id:016x}-0").unlink()

        with Pool.attach(pool_name) as other:
            assert other.intern(b"x") == pool.intern(b"x")
            assert pool.check() == []
            assert len(files_of(pool.constants.pool_id, pool_name)) == 2


def test_first_to_attach_after_all_tokens_were_lost_puts_them_back(pool_name: str) -> None:
    """As a process does that is killed in `reset`; each would cost the next one in a wait."""

    def take_all_and_die(_: Connection) -> None:
        pool = Pool.create(pool_name, stripe_count=16)
        for semaphore in store_of(pool).seat.semaphores:
            semaphore.acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    with Forked(take_all_and_die) as child:
        child.wait()

    with Pool.attach(pool_name) as pool:
        pool.intern_many([b"%d" % number for number in range(200)])
        assert pool.stats().lock_waits == 0
        assert {semaphore.value for semaphore in store_of(pool).seat.semaphores} == {1}


def test_attaching_adds_no_token_while_others_are_attached(pool_name: str) -> None:
    with Pool.create(pool_name, stripe_count=1) as pool:

        def attach() -> int:
            with Pool.attach(pool_name) as other:
                return int(store_of(other).seat.semaphores[0].value)

        assert store_of(pool).locks[0].run(lambda: in_child(attach)) == 0


# ---- origins


def test_no_ref_from_before_a_reset_falls_inside_the_arena_after_it() -> None:
    geometry = lifetime.choose_constants(
        capacity=100, arena_size=1 << 37, stripe_count=1, max_value_size=100, insert_budget=None, reserve=0, process_count=4,
        persistent=False,
    ).geometry
    previous = 0

    for _ in range(300):
        origin = lifetime.choose_origin(geometry, previous)

        assert abs(origin - previous) >= geometry.arena_size
        assert origin % 8 == 0
        assert origin >= MIN_ORIGIN
        assert origin + geometry.arena_size <= 2 * MIN_ORIGIN
        previous = origin
