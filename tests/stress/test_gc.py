"""`gc` beside others: it runs at every step of a create and of an attach, and is stopped at every step of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

import pytest

from shmpool import Pool, gc
from tests.model import assert_sound
from tests.stress.kill_points import deadline
from tests.stress.tracing import Tracee, Tracer, needs_tracing
from tests.unit.own_files import OwnFiles, abandon, own_files
from tests.unit.processes import DEADLINE_S, Forked

pytestmark = needs_tracing
OPTIONS: dict[str, Any] = {"stripe_count": 2, "process_count": 4}
AT_MOST_S = 0.05  # for somebody who may be waiting for the one that is stopped
FILES = 1 + 2


@pytest.fixture
def files(pool_name: str) -> Iterator[OwnFiles]:
    with own_files(pool_name) as own, deadline(DEADLINE_S):
        yield own


def open_and_say(name: str, kept: list[Pool], connection: Connection) -> None:
    kept.append(Pool.open(name, **OPTIONS))
    connection.send((kept[0].constants.pool_id, int(kept[0].intern(b"x"))))


def open_when_told(name: str, connection: Connection) -> None:
    kept: list[Pool] = []
    connection.recv()
    open_and_say(name, kept, connection)
    connection.recv()
    kept[0].close()


def assert_whole(files: OwnFiles, pool_id: int, ref: int) -> None:
    """The name leads to that very pool, and its semaphores are there (attaching would make anew those that are not)."""
    assert len(files.now()) == FILES
    with Pool.attach(files.prefix) as pool:
        assert pool.constants.pool_id == pool_id
        assert_sound(pool, {b"x": ref})


def test_gc_at_any_step_of_a_create_takes_nothing_from_it(files: OwnFiles) -> None:
    kept: list[Pool] = []
    with Tracee(partial(open_and_say, files.prefix, kept)) as child:
        tracer = Tracer(child)
        while tracer.advance():
            assert gc() == []

        assert_whole(files, *child.hear())
    assert len(tracer.steps) > 50
    assert [each.removed for each in gc()] == [True]


def test_gc_at_any_step_of_an_attach_leaves_it_a_whole_pool(files: OwnFiles) -> None:
    """It may remove the pool before that has taken its row; another pool is made then."""
    removed = 0
    for step in count(1):
        kept: list[Pool] = []
        abandon(files.prefix, **OPTIONS)
        with Tracee(partial(open_and_say, files.prefix, kept)) as child:
            tracer = Tracer(child)
            while tracer.advance():
                if len(tracer.steps) == step:
                    removed += len(gc())

            assert_whole(files, *child.hear())
        gc()
        assert files.now() == []
        if len(tracer.steps) < step:
            break
    assert step > removed > 0


@pytest.mark.parametrize("is_there", [True, False])
def test_gc_stopped_at_any_step_leaves_who_opens_the_pool_meanwhile_a_whole_one(files: OwnFiles, is_there: bool) -> None:
    for step in count(1, 2):
        if is_there:
            abandon(files.prefix, **OPTIONS)
        with Tracee(lambda _: gc()) as collector, Forked(partial(open_when_told, files.prefix)) as opener:
            tracer = Tracer(collector)
            going = True
            while going and len(tracer.steps) < step:
                going = tracer.advance()
            opener.say("open")
            opener.has_spoken_within(AT_MOST_S)
            while going:
                going = tracer.advance()

            assert_whole(files, *opener.hear())
            opener.say("close")
            opener.result()
        assert files.now() == []
        if len(tracer.steps) < step:
            break
    assert step > 10
