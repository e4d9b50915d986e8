"""Exceptions of signal handlers inside what takes holds and gives them back, at every point where one could come."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from shmpool import Policy, Pool, TopicRef
from shmpool.lock import others_hold, run_if_free
from tests.unit.inside import ENGINES, engine_chosen
from tests.unit.interrupts import interrupted_at
from tests.unit.processes import in_child

BYTE = 7


def strike() -> None:
    raise KeyboardInterrupt


def at_every_point(call: Callable[[], object], judge: Callable[[int], object]) -> int:
    """Interrupt `call` at each of its check points and `judge` what is left; how many there were."""
    for point in count(1):
        try:
            struck = interrupted_at(point, strike, call)
        except KeyboardInterrupt:
            struck = True
        judge(point)
        if not struck:
            return point
    raise AssertionError


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("is_held_by_another", [False, True])
@pytest.mark.parametrize("policy", [Policy.refcount(), Policy.lru(max_unheld=5)], ids=str)
def test_an_interrupted_intern_holds_nothing(pool_name: str, engine: str, policy: Policy, is_held_by_another: bool) -> None:
    def try_all() -> int:
        made = partial(Pool.create, pool_name, policy=policy, stripe_count=1)
        with engine_chosen(engine), made() as pool, Pool.attach(pool_name) as other:
            others = int(is_held_by_another and other.intern(b"topic") > 0)
            given: list[TopicRef] = []

            def judge(point: int) -> None:
                assert pool.check() == []
                held = pool.stats().holds
                assert held == others + len(given), f"after an interrupt at point {point}"
                pool.release_many(given)
                given.clear()
                pool.release(pool.intern(b"topic"))

            return at_every_point(lambda: given.extend(map(pool.intern, (b"topic",))), judge)

    assert in_child(try_all) > 20


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupted_batch_holds_nothing(pool_name: str, engine: str) -> None:
    def try_all() -> int:
        with engine_chosen(engine), Pool.create(pool_name, policy=Policy.refcount(), stripe_count=1) as pool:
            values = [b"one", b"two"]
            given: list[TopicRef] = []

            def judge(point: int) -> None:
                assert pool.stats().holds == len(given), f"after an interrupt at point {point}"
                pool.release_many(given)
                given.clear()
                assert len(pool) == 0
                assert pool.check() == []

            return at_every_point(lambda: given.extend(map(TopicRef, pool.intern_many(values).tolist())), judge)

    assert in_child(try_all) > 40


@pytest.mark.parametrize("act", ["reap", "flush", "release"])
def test_after_an_interrupt_the_thread_is_not_shut_out(pool_name: str, act: str) -> None:
    def try_all() -> int:
        with Pool.create(pool_name, policy=Policy.ttl(seconds=60), stripe_count=1) as pool:
            pool.intern(b"held")
            call = (lambda: pool.release(pool.intern(b"x"))) if act == "release" else getattr(pool, act)

            def judge(_: int) -> None:
                pool.release(pool.intern(b"y"))
                assert pool.reap() == 0
                assert pool.check() == []

            return at_every_point(call, judge)

    assert in_child(try_all) > 5


def test_an_interrupt_leaves_no_row_locked(tmp_path: Path) -> None:
    def try_all() -> int:
        path = tmp_path / "file"
        path.touch()
        mine, others = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)

        def judge(point: int) -> None:
            assert not others_hold(others, BYTE), f"after an interrupt at point {point}"

        return at_every_point(lambda: run_if_free(mine, BYTE, lambda: os.fstat(mine)), judge)

    assert in_child(try_all) > 3


def test_a_row_that_another_holds_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    mine, others = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    try:
        assert run_if_free(others, BYTE, lambda: run_if_free(mine, BYTE, lambda: True)) is None
        assert run_if_free(mine, BYTE, lambda: True)
    finally:
        os.close(mine)
        os.close(others)
