"""Claims about looking on: it changes, takes, commits and counts nothing, waits for nobody, and tells what it can of any file."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from shmpool import Policy, Pool, PoolError, PoolNotFoundError, PoolVersionError, reading, report
from shmpool import segment as segments
from shmpool.layout import EPOCH_WORD, LEDGER, PAGE_SIZE, STRIPE_WORDS, WAITS, WORD_SIZE
from shmpool.report import Report
from shmpool.view import View, open_view
from tests.unit.faults import Faults, killed_at
from tests.unit.inside import store_of
from tests.unit.looks import SMALL, VALUES, at_rest, damage, field, flip, footprint, hold_every_lock, locks_on, sample_pool
from tests.unit.processes import Forked, in_child


@pytest.fixture
def pool(pool_name: str) -> Iterator[Pool]:
    with sample_pool(pool_name) as made:
        yield made


@pytest.fixture
def resting(pool: Pool) -> Iterator[str]:
    with at_rest(pool) as name:
        yield name


def everything(name: str) -> Report:
    """Ask all that can be asked of a view."""
    reading.check(name)
    reading.resolve(name, [1, 2**40])
    reading.lookup(name, [VALUES[0], b"missing"])
    with reading.all_topics(name) as (topics, _):
        assert len(list(topics)) == len(VALUES)
    report.summarize(name)
    return report.inspect(name, with_topics=True)


def own_descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


# ---- nothing is left, taken or counted


def test_looking_leaves_bytes_memory_times_and_locks_as_they_were(pool: Pool) -> None:
    before, counted, descriptors = footprint(pool.name), pool.stats(), own_descriptors()

    seen = everything(pool.name)

    assert seen.problems == []
    assert footprint(pool.name) == before
    assert pool.stats() == counted
    assert own_descriptors() == descriptors


def test_reading_does_not_even_leave_a_time_of_access(resting: str) -> None:
    path = segments.path_of(resting)
    os.utime(path, ns=(1, 2))  # older than the last change, so that an ordinary read would be noted

    everything(resting)

    assert os.stat(path).st_atime_ns == 1


def test_a_view_is_open_for_reading_only_unmapped_and_holds_no_lock(pool: Pool) -> None:
    locks, maps = locks_on(pool.name), maps_of(pool.name)

    with open_view(pool.name) as (_, view):
        assert view is not None
        view.load_rows()
        view.load_topics()
        view.load_ledgers()

        assert os.get_blocking(view.fd) is False
        assert flags_of(view.fd) & os.O_ACCMODE == os.O_RDONLY
        assert locks_on(pool.name) == locks
        assert maps_of(pool.name) == maps


def maps_of(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(segments.path_of(name))


def flags_of(fd: int) -> int:
    return int(Path(f"/proc/self/fdinfo/{fd}").read_text().split("flags:")[1].split()[0], 8)


def test_what_is_done_to_a_view_does_not_reach_the_pool(pool: Pool) -> None:
    before = footprint(pool.name)

    with open_view(pool.name) as (_, view):
        assert view is not None
        view.load_rows()
        view.data[:PAGE_SIZE] = bytes(PAGE_SIZE)

    assert footprint(pool.name) == before


def test_a_large_empty_pool_costs_neither_time_nor_memory_to_copy(new_pool_name: Callable[[], str]) -> None:
    with Pool.create(new_pool_name(), arena_size=1 << 31) as pool, open_view(pool.name) as (_, view):
        assert view is not None
        before = resident_size()

        view.load_rows()
        view.load_topics()
        view.load_ledgers()

        assert resident_size() - before < 64 << 20
        assert pool.stats().memory_size < 1 << 20


def resident_size() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE


# ---- what is seen


def test_a_report_tells_what_the_pool_itself_tells(pool: Pool) -> None:
    stats = pool.stats()

    seen = report.inspect(pool.name, top=3, with_topics=True)

    assert seen.state == "in use"
    assert seen.fill is not None
    assert seen.fill[:5] == (
        stats.size, stats.capacity, stats.arena_used_size, stats.arena_committed_size, stats.arena_size
    )
    assert seen.total == stats.total
    assert [(each.pid, each.state, each.counters) for each in seen.processes] == [
        (os.getpid(), "running", stats.processes[0].counters)
    ]
    assert seen.top == pool.top(3)
    assert {(topic.ref, topic.value) for topic in seen.topics or []} == set(pool)
    assert sum(seen.probe_lengths) == sum(stripe.topics for stripe in seen.stripes) == len(VALUES)


def test_a_stripe_tells_of_the_waits_for_its_lock_and_of_the_killed_holders_it_was_taken_over_from(pool: Pool) -> None:
    lock = store_of(pool).locks[1]

    def die_inside(connection: Connection) -> None:
        with Pool.attach(pool.name) as other:
            store_of(other).locks[1].run(os.kill, os.getpid(), signal.SIGKILL)

    for _ in range(2):
        with Forked(die_inside) as child:
            child.wait()
        lock.run(int)
    lock.run(int)

    told = [(stripe.waits, stripe.takeovers) for stripe in report.inspect(pool.name).stripes]
    assert told == [(0, 0), (2, 2), (0, 0), (0, 0)]


def test_a_damaged_count_of_waits_keeps_nobody_out_of_a_stripe(pool: Pool) -> None:
    store = store_of(pool)
    row = store.constants.geometry.stripes_offset // WORD_SIZE + STRIPE_WORDS
    store.segment.words[row + WAITS] = (1 << 64) - 1

    def die_inside(_: Connection) -> None:
        with Pool.attach(pool.name) as other:
            store_of(other).locks[1].run(os.kill, os.getpid(), signal.SIGKILL)

    with Forked(die_inside) as child:
        child.wait()

    store.locks[1].run(int)


def test_probe_lengths_are_the_slots_that_a_search_reads(pool: Pool) -> None:
    stripes = store_of(pool).stripes
    expected = []
    for record in stripes.records():
        table = stripes.table(stripes.geometry.stripe_of(record.hash))
        index, length = record.hash & (1 << table.bits) - 1, 1
        while stripes.segment.words[table.word + index] & (1 << 40) - 8 != record.offset:
            index, length = index + 1 & (1 << table.bits) - 1, length + 1
        expected.append(length)

    lengths = report.inspect(pool.name).probe_lengths

    assert lengths == [expected.count(length) for length in range(1, max(expected) + 1)]


def test_refs_and_values_are_found_as_the_pool_finds_them(pool: Pool) -> None:
    refs = [pool.intern(value) for value in VALUES[:5]]

    assert reading.resolve(pool.name, [*refs, refs[0] + 8, refs[0] + 1, 0, -1, 1 << 62]) == [*VALUES[:5]] + [None] * 5
    assert reading.lookup(pool.name, [*VALUES[:5], b"", b"missing"]) == [*refs, None, None]


def test_topics_of_before_a_reset_are_gone(pool: Pool) -> None:
    ref = pool.intern(VALUES[0])
    pool.reset()
    pool.intern(b"after")

    seen = report.inspect(pool.name, with_topics=True)

    assert [topic.value for topic in seen.topics or []] == [b"after"]
    assert (seen.resets, seen.fill and seen.fill.topics) == (1, 1)
    assert reading.resolve(pool.name, [ref]) == [None]
    assert reading.check(pool.name) == []


# ---- whatever its processes are doing


def test_a_pool_whose_every_lock_a_stopped_process_holds_is_seen_whole(resting: str) -> None:
    with Forked(hold_every_lock(resting)) as holder:
        assert holder.hear() == "inside"
        holder.kill(signal.SIGSTOP)
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
        before = footprint(resting)

        seen = in_child(lambda: everything(resting))  # which fails if it takes a minute

        assert seen.gate_locked
        assert seen.grow_locked
        assert [stripe.locked for stripe in seen.stripes] == [True] * 4
        assert [process.state for process in seen.processes if process.pid == holder.pid] == ["stopped"]
        assert len(seen.topics) == len(VALUES)
        assert seen.problems == []
        assert in_child(lambda: reading.check(resting)) == []
        assert footprint(resting) == before


def test_a_pool_of_killed_processes_is_seen_with_their_rows(new_pool_name: Callable[[], str]) -> None:
    name = new_pool_name()

    def use(connection: Connection) -> None:
        pool = Pool.create(name, **SMALL)
        pool.intern_many(VALUES)
        connection.send("done")
        signal.pause()

    with Forked(use) as user:
        assert user.hear() == "done"
        user.kill()
        before = footprint(name)

        seen = everything(name)

        assert seen.state == "abandoned"
        assert [(each.pid, each.state, each.command, each.counters.inserts) for each in seen.processes] == [
            (user.pid, "dead", None, len(VALUES))
        ]
        assert footprint(name) == before


def test_what_a_process_died_doing_is_told_and_left_and_is_sound(new_pool_name: Callable[[], str]) -> None:
    died_in = []
    for step in range(1, 12):
        name = new_pool_name()
        killed_at(step, lambda faults, name=name: insert_one(name, faults))  # type: ignore[misc]
        before = footprint(name)

        findings, seen = reading.check(name), report.inspect(name, with_topics=True)

        assert findings == []
        assert footprint(name) == before
        assert {topic.value for topic in seen.topics or []} >= set(VALUES[:20])
        died_in.append(seen.stripes[0].intent)
    assert {"insert", ""} <= set(died_in)


def insert_one(name: str, faults: Faults) -> None:
    pool = Pool.create(name, persistent=True, **SMALL | {"stripe_count": 1})
    pool.intern_many(VALUES[:20])
    pool.flush()
    faults.arm()
    pool.intern(b"last")


def test_inserts_that_are_half_seen_are_no_findings(pool_name: str) -> None:
    def insert(connection: Connection) -> None:
        with Pool.create(pool_name, stripe_count=1) as pool:
            connection.send("begun")
            for number in range(20_000):
                pool.intern(b"%d" % number)
                if number % 20 == 0:
                    time.sleep(0.002)  # so that the looks, which take longer the more there is, meet many inserts
                    if connection.poll():
                        break
            connection.recv()

    with Forked(insert) as writer:
        assert writer.hear() == "begun"

        looks = [(reading.check(pool_name), report.inspect(pool_name, top=3).problems) for _ in range(12)]

        writer.say("stop")
        writer.result()
    assert looks == [([], [])] * 12


@pytest.mark.parametrize("ask", ["check", "inspect"])
@pytest.mark.parametrize("at", range(1, 9))
def test_an_insert_at_any_point_of_a_look_is_no_finding(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, at: int, ask: str
) -> None:
    load, loads = View.load, count(1)

    def load_after_inserts(view: View, start: int, end: int) -> None:
        if next(loads) == at:
            pool.intern_many([b"new %d" % number for number in range(64)])  # of which every stripe gets some
        load(view, start, end)

    monkeypatch.setattr(View, "load", load_after_inserts)

    if ask == "check":
        assert reading.check(pool.name) == []
    else:
        seen = report.inspect(pool.name, with_topics=True)
        assert seen.problems == []
        assert {topic.value for topic in seen.topics or []} >= set(VALUES)


# ---- damage


def place_of(pool: Pool, what: str) -> int:
    geometry = pool.constants.geometry
    return {
        "constants": field("created_ns"),
        "magic": field("magic"),
        "epoch": EPOCH_WORD * WORD_SIZE,
        "arena limit": field("arena_limit"),
        "table word": geometry.stripes_offset,
        "count": geometry.stripes_offset + STRIPE_WORDS * WORD_SIZE + 2 * WORD_SIZE + 4,
        "ledger word": geometry.totals_offset + LEDGER * WORD_SIZE,
        "value": geometry.arena_offset + 20,
    }[what]


@pytest.mark.parametrize(
    ("what", "told", "topics"),
    [
        pytest.param("constants", "checksum", 300, id="constants"),
        pytest.param("magic", "no pool", 300, id="magic"),
        pytest.param("epoch", "the epoch word is damaged", None, id="epoch"),
        pytest.param("arena limit", "arena's limit is damaged", 0, id="arena limit"),
        pytest.param("table word", "stripe 0: its table word", 300, id="table word"),
        pytest.param("count", "stripe 1: it counts", 300, id="count"),
        pytest.param("ledger word", "the ledger word of process row -1", 300, id="ledger word"),
        pytest.param("value", "1 topics are damaged", 299, id="value"),
    ],
)
def test_of_a_damaged_pool_the_rest_is_told(pool: Pool, resting: str, what: str, told: str, topics: int | None) -> None:
    flip(resting, place_of(pool, what))
    before = footprint(resting)

    seen, findings = report.inspect(resting, with_topics=True), reading.check(resting)

    assert seen.state == "damaged"
    assert any(told in problem for problem in seen.problems), seen.problems
    assert len(seen.topics or []) == (topics or 0)
    assert seen.total is not None
    assert findings
    assert all(finding.what and finding.where and finding.advice for finding in findings)
    assert footprint(resting) == before


def test_check_finds_what_the_pool_itself_finds(pool: Pool) -> None:
    geometry = pool.constants.geometry
    flip(pool.name, geometry.arena_offset + 20)
    flip(pool.name, geometry.chunks_offset + 3)

    findings = reading.check(pool.name)

    assert findings
    assert findings == pool.check()


@pytest.mark.parametrize("keep", [0, 100, PAGE_SIZE, 3 * PAGE_SIZE, "half"])
def test_a_file_that_was_cut_short_is_no_sigbus(pool: Pool, resting: str, keep: Any) -> None:
    size = pool.constants.geometry.arena_offset + 2000 if keep == "half" else keep
    os.truncate(segments.path_of(resting), size)

    seen, findings = in_child(lambda: (report.inspect(resting, with_topics=True), reading.check(resting)))

    assert seen.state == ("damaged" if size else "no pool")
    assert f"{size} bytes" in seen.problems[0]
    assert findings
    assert len(seen.topics or []) == 0 if keep != "half" else len(seen.topics) > 10


def test_a_file_that_is_cut_short_while_it_is_read_is_no_sigbus(resting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_and_cut() -> int:
        lseek = os.lseek

        def cut(fd: int, place: int, how: int) -> int:
            found = lseek(fd, place, how)
            if how == os.SEEK_HOLE:
                os.truncate(segments.path_of(resting), PAGE_SIZE)
            return found

        monkeypatch.setattr(os, "lseek", cut)
        return len(report.inspect(resting).stripes)

    assert in_child(read_and_cut) == 4


@pytest.mark.parametrize("what", ["version", "fingerprint"])
def test_of_another_versions_pool_the_header_is_told(resting: str, what: str) -> None:
    damage(resting, field(what), (99).to_bytes(8, "little"))

    seen, shown = report.inspect(resting), report.summarize(resting)

    assert seen.state == shown.state == "other version"
    assert getattr(seen.header, what) == 99
    assert seen.stripes == []
    assert seen.processes == []
    for ask in (reading.check, lambda name: reading.resolve(name, [1]), lambda name: reading.lookup(name, [b"x"])):
        with pytest.raises(PoolVersionError):
            ask(resting)


def test_what_is_no_pool_is_told_without_waiting_for_it(new_pool_name: Callable[[], str], tmp_path: Path) -> None:
    notes, fifo, link, missing = (new_pool_name() for _ in range(4))
    paths = [Path(segments.path_of(name)) for name in (notes, fifo, link)]
    try:
        paths[0].write_bytes(b"somebody's notes")
        os.mkfifo(paths[1])
        paths[2].symlink_to(tmp_path)

        assert report.summarize(notes).state == "no pool"
        for name in (fifo, link):
            assert report.summarize(name).state == "unreadable"
            with pytest.raises(PoolError, match="no pool"):
                report.inspect(name)
        with pytest.raises(PoolNotFoundError):
            report.inspect(missing)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_pool_is_told_to_be_that(pool: Pool) -> None:
    def look() -> str:
        os.setuid(65534)
        return report.summarize(pool.name).problems[0]

    assert "another user's" in in_child(look)


def test_check_finds_no_fault_with_a_topic_that_comes_into_anothers_space_meanwhile(
    pool_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pool.create(pool_name, policy=Policy.refcount(), stripe_count=1) as pool:
        pool.intern_many(VALUES)
        leaving = pool.intern(b"one of them")
        arena, load = pool.constants.geometry.arena_offset, View.load
        turned: list[int] = []

        def load_and_turn(self: View, start: int, end: int) -> None:
            if start >= arena and not turned:  # its table was read, its records are not yet
                turned.append(start)
                pool.release(leaving)
                pool.intern(b"another one")
            load(self, start, end)

        monkeypatch.setattr(View, "load", load_and_turn)

        assert reading.check(pool_name) == []
        assert turned
