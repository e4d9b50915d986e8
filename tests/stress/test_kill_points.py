"""Killed before any store or system call of its own, a process blocks nobody, loses nothing and leaves nothing for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmpool.layout import MIN_TABLE_BITS, PAGE_SIZE, TABLE, WORD_SIZE
from tests.stress import deaths, lifecycles, operations, turns
from tests.stress.kill_points import SURVIVOR_LIMIT_S, KillPoints, Operation, Scene, Tally, kill
from tests.stress.lifecycles import stripes_of
from tests.stress.operations import Insert
from tests.stress.tracing import Tracee, Tracer, needs_tracing
from tests.unit.inside import ENGINES, engine_chosen
from tests.unit.own_files import OwnFiles, own_files

pytestmark = needs_tracing
# Every n-th step of these is tried here, and all by tools/kill_points.py.
SPARSELY = {
    "create, then gc": 2,
    "attach, folding a dead row": 2,
    "insert that grows a table": 2,
    "batch that grows and takes a chunk": 7,
    "reset": 7,
    "gc": 3,
    "hold of what nobody held (lru)": 1,
    "first insert (refcount)": 19,
    "growth of a table (refcount)": 9,
    "rebuild of a table full of tombstones (refcount)": 7,
    "eviction where capacity ends (lru)": 7,
    "eviction where the arena ends (lru)": 9,
    "close with holds (refcount)": 17,
    "first operation in a dead row (refcount)": 5,
    "reset (refcount)": 37,
}


@pytest.fixture
def files(pool_name: str) -> Iterator[OwnFiles]:
    with own_files(pool_name, b"any key of bytes") as own:
        yield own


def kill_everywhere(files: OwnFiles, operation: Operation, stride: int = 1) -> Tally:
    tally = Tally()
    for _ in KillPoints(files, fail).each(operation, tally, stride):
        pass
    assert files.now() == []
    return tally


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("operation", operations.OPERATIONS, ids=lambda operation: operation.name)
def test_operation_killed_at_any_step_harms_nobody(files: OwnFiles, operation: Operation) -> None:
    tally = kill_everywhere(files, operation, SPARSELY.get(operation.name, 1))

    assert tally.points > 10
    assert tally.median_s < SURVIVOR_LIMIT_S


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("operation", turns.TURNS, ids=lambda operation: operation.name)
def test_turn_killed_at_any_step_harms_nobody(files: OwnFiles, operation: Operation, engine: str) -> None:
    with engine_chosen(engine):
        tally = kill_everywhere(files, operation, SPARSELY.get(operation.name, 3))

    assert tally.points > 4
    assert tally.median_s < SURVIVOR_LIMIT_S


@pytest.mark.parametrize("base", [operations.INSERT, operations.TAKE_CHUNK], ids=lambda base: base.name)
def test_recovery_killed_at_any_step_harms_nobody(files: OwnFiles, base: Insert) -> None:
    found = operations.recoveries(base, files)
    firsts = [found[2], found[-3]]  # next to nothing is there; nearly all

    tallies = [kill_everywhere(files, recovery, 2) for recovery in firsts]

    assert min(tally.points for tally in tallies) > 5
    assert sum(tally.rollbacks for tally in tallies) > 0
    assert sum(tally.rollforwards for tally in tallies) > 0


@pytest.mark.parametrize("base", [turns.FREE_LAST, turns.BORROW, turns.LEND, turns.REBUILD], ids=lambda base: base.name)
def test_recovery_from_a_turn_killed_at_any_step_harms_nobody(files: OwnFiles, base: lifecycles.Turn) -> None:
    found = deaths.recoveries(base, files)

    tallies = [kill_everywhere(files, recovery, 3) for recovery in (found[len(found) // 2], found[-2])]

    assert min(tally.points for tally in tallies) > 4
    assert sum(tally.rollbacks + tally.rollforwards for tally in tallies) > 0


def test_many_killed_at_one_point_take_no_more_memory_than_one_in_each_row(files: OwnFiles) -> None:
    flush = operations.Flush("flush", process_count=4)
    with Scene(files.prefix, flush.options) as scene:
        flush.arrange(scene)
        sizes = []
        for _ in range(12):
            kill(scene, flush.prepare, flush.act, 8)
            sizes.append(scene.open().stats().memory_size)

        assert sizes[-1] == sizes[3]
        assert sizes[-1] <= sizes[0] + 3 * PAGE_SIZE


def test_killed_between_a_new_table_and_its_count_of_tombstones_leaves_the_count_right(files: OwnFiles) -> None:
    with Scene(files.prefix, turns.GROW.options) as scene:
        turns.GROW.arrange(scene)
        pool = scene.open()
        table_word = pool.constants.geometry.stripes_offset + TABLE * WORD_SIZE
        with Tracee(lambda _: scene.open().intern(turns.NEW)) as child:
            tracer = Tracer(child)
            while tracer.advance():
                place = tracer.steps[-1].place
                if any(place - start == table_word for start, _ in tracer.mapping_of(place)):
                    break
            tracer.advance()  # does it, and stands before the next store
            child.kill()

        assert pool.check() == []
        assert stripes_of(pool).table(0).bits > MIN_TABLE_BITS
