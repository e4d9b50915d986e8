"""Claims about the surface: what each call promises, every error and what is unchanged after it, and who may share a pool."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from shmpool import (
    Pool,
    PoolBusyError,
    PoolClosedError,
    PoolCorruptError,
    PoolExistsError,
    PoolFullError,
    PoolNotFoundError,
    StaleRefError,
    TopicRef,
)
from tests.model import assert_sound
from tests.unit.inside import store_of
from tests.unit.processes import DEADLINE_S, Forked, in_child, independent

VALUES = [b"", b"\0", b"\0\0", b"\xff\xfe", b"/eth2/6a95a1a9/beacon_block/ssz_snappy", b"x" * 1024]
Names = Callable[[], str]


@pytest.fixture
def pool(pool_name: str) -> Iterator[Pool]:
    with Pool.create(pool_name) as made:
        yield made


def words_of(pool: Pool) -> bytes:
    """Everything that is committed before the arena's start, counters published, and the arena as far as it is taken."""
    pool.flush()
    segment, geometry = store_of(pool).segment, pool.constants.geometry
    arena = segment.data[geometry.arena_offset : geometry.arena_offset + pool.stats().arena_committed_size]
    return segment.data[: geometry.chunks_offset] + arena


# ---- values and refs


def test_equal_bytes_have_one_ref_and_a_ref_its_bytes_whatever_they_are(pool: Pool) -> None:
    refs = {value: pool.intern(value) for value in VALUES}

    assert len(set(refs.values())) == len(VALUES)
    assert {value: pool.intern(bytes(bytearray(value))) for value in VALUES} == refs
    assert {value: pool.lookup(value) for value in VALUES} == refs
    assert_sound(pool, refs)


def test_two_attachments_in_one_process_share_refs(pool: Pool) -> None:
    with Pool.attach(pool.name) as other:
        refs = {value: pool.intern(value) for value in VALUES}

        assert {value: other.intern(value) for value in VALUES} == refs
        assert_sound(other, refs)
        other.close()
        assert_sound(pool, refs)


def test_refs_are_positive_and_fit_a_signed_column(pool: Pool) -> None:
    refs = pool.intern_many([b"%d" % number for number in range(100)]).astype(np.int64)

    assert (refs > 0).all()


def test_lookup_never_inserts(pool: Pool) -> None:
    pool.intern(b"known")
    before = list(pool)

    assert pool.lookup(b"unknown") is None
    assert b"unknown" not in pool
    assert pool.lookup(b"x" * 5000) is None
    assert pool.lookup_many([b"unknown", b"known"]).tolist() == [0, pool.lookup(b"known")]

    assert list(pool) == before
    assert len(pool) == 1


def test_batches_agree_with_single_calls_in_order_and_with_repeats(pool: Pool) -> None:
    known = pool.intern(b"b")
    values = [b"a", b"b", b"a", b"c", b"b"]

    refs = pool.intern_many(iter(values))

    assert refs.dtype == np.uint64
    assert refs.tolist() == [pool.lookup(value) for value in values]
    assert refs[1] == known
    assert pool.lookup_many(values).tolist() == refs.tolist()
    assert pool.resolve_many(refs) == values
    assert len(pool) == 3


def test_empty_batches_are_empty(pool: Pool) -> None:
    assert pool.intern_many([]).shape == pool.lookup_many([]).shape == (0,)
    assert pool.resolve_many([]) == []


def test_len_membership_iteration_and_for_each_agree(pool: Pool) -> None:
    refs = {value: pool.intern(value) for value in VALUES}
    seen: dict[bytes, TopicRef] = {}

    pool.for_each(lambda ref, value: seen.update({value: ref}))

    assert seen == refs == {value: ref for ref, value in pool}
    assert len(pool) == len(refs)
    assert all(value in pool for value in VALUES)


def test_release_changes_nothing(pool: Pool) -> None:
    ref = pool.intern(b"x")

    pool.release(ref)

    assert pool.resolve(ref) == b"x"


@pytest.mark.parametrize("ref", [0, 1, -8, 2**62, 2**63, 2**64, 2**200])
def test_numbers_that_are_no_refs_are_stale(pool: Pool, ref: int) -> None:
    pool.intern(b"x")

    with pytest.raises(StaleRefError, match="is no ref of this pool"):
        pool.resolve(TopicRef(ref))


def test_numbers_beside_a_ref_are_stale_even_inside_a_value_that_imitates_a_record(pool: Pool) -> None:
    ref = pool.intern(b"x" * 40)
    segment, offset = store_of(pool).segment, ref - store_of(pool).stripes.origin
    start = pool.constants.geometry.arena_offset + offset
    imitation = pool.intern(segment.data[start : start + 56])

    for number in range(imitation + 1, imitation + 80):
        with pytest.raises(StaleRefError):
            pool.resolve(TopicRef(number))
    assert pool.resolve(imitation).endswith(b"x" * 40)


def test_refs_of_another_pool_are_stale(new_pool_name: Names) -> None:
    with Pool.create(new_pool_name()) as one, Pool.create(new_pool_name()) as two:
        ref = one.intern(b"x")
        two.intern(b"x")

        with pytest.raises(StaleRefError):
            two.resolve(ref)


def test_damaged_value_raises_instead_of_returning_other_bytes(pool: Pool) -> None:
    ref = pool.intern(b"a value")
    segment = store_of(pool).segment
    start = pool.constants.geometry.arena_offset + ref - store_of(pool).stripes.origin + 16
    segment.data[start : start + 1] = b"A"

    with Pool.attach(pool.name) as other:
        with pytest.raises(PoolCorruptError, match="is damaged"):
            other.resolve(ref)
        assert [finding.what for finding in other.check()] == ["the value's hash is not the record's"]


# ---- values that are refused


@pytest.mark.parametrize("method", ["intern", "admit", "lookup", "intern_many", "lookup_many"])
@pytest.mark.parametrize(
    ("value", "advice"),
    [
        pytest.param("abc", "value.encode()", id="str"),
        pytest.param(bytearray(b"abc"), "bytes(value)", id="bytearray"),
        pytest.param(memoryview(bytearray(b"abc")), "bytes(value)", id="memoryview"),
        pytest.param(None, "bytes(value)", id="None"),
        pytest.param(7, "bytes(value)", id="int"),
        pytest.param([b"abc"], "bytes(value)", id="list"),
    ],
)
def test_value_that_is_not_bytes_is_refused_with_advice_and_changes_nothing(
    pool: Pool, method: str, value: object, advice: str
) -> None:
    pool.intern(b"abc")
    before = words_of(pool)

    with pytest.raises(TypeError, match=advice.replace("(", r"\(").replace(")", r"\)")):
        getattr(pool, method)([b"new", value] if method.endswith("many") else value)

    assert words_of(pool) == before
    assert b"new" not in pool


def test_subclass_of_bytes_is_its_bytes(pool: Pool) -> None:
    class Name(bytes):
        __slots__ = ()

    ref = pool.intern(Name(b"name"))

    assert type(pool.resolve(ref)) is bytes
    assert pool.lookup(b"name") == ref


@pytest.mark.parametrize("method", ["intern", "admit", "intern_many"])
def test_over_long_value_is_refused_before_anything_changes(pool_name: str, method: str) -> None:
    with Pool.create(pool_name, max_value_size=10) as pool:
        pool.intern(b"x" * 10)
        before = words_of(pool)

        with pytest.raises(ValueError, match="11 bytes, and the longest it takes is 10"):
            getattr(pool, method)([b"new", b"x" * 11] if method == "intern_many" else b"x" * 11)

        assert words_of(pool) == before
        assert b"new" not in pool


# ---- bounds


def assert_refused_and_unchanged(pool: Pool, insert: Callable[[], object], reason: str) -> None:
    refs = {value: ref for ref, value in pool}
    before = words_of(pool)

    with pytest.raises(PoolFullError, match=reason):
        insert()

    # Whoever was refused missed, and its process counts that; nothing else.
    after = words_of(pool)
    rows = slice(pool.constants.geometry.totals_offset, pool.constants.geometry.chunks_offset)
    assert before[: rows.start] + before[rows.stop :] == after[: rows.start] + after[rows.stop :]
    assert_sound(pool, refs)


@pytest.mark.parametrize("many", [False, True])
def test_full_capacity_raises_and_changes_nothing(pool_name: str, many: bool) -> None:
    with Pool.create(pool_name, capacity=20, stripe_count=1) as pool:
        refs = pool.intern_many([b"%d" % number for number in range(20)])

        assert_refused_and_unchanged(
            pool, (lambda: pool.intern_many([b"20", b"21"])) if many else (lambda: pool.intern(b"20")), "capacity 20"
        )
        assert pool.intern_many([b"%d" % number for number in range(20)]).tolist() == refs.tolist()


def test_batch_over_capacity_keeps_what_fits(pool_name: str) -> None:
    with Pool.create(pool_name, capacity=20, stripe_count=1) as pool:
        with pytest.raises(PoolFullError, match="capacity 20"):
            pool.intern_many([b"%d" % number for number in range(30)])

        assert len(pool) == 20
        assert pool.check() == []


def test_strangers_topics_cannot_use_up_the_reserve(pool_name: str) -> None:
    with Pool.create(pool_name, capacity=20, reserve=5, stripe_count=1) as pool:
        for number in range(15):
            pool.admit(b"%d" % number)

        assert_refused_and_unchanged(pool, lambda: pool.admit(b"15"), "may hold 15 of this kind")
        assert pool.admit(b"3") == pool.lookup(b"3")
        pool.intern_many([b"own %d" % number for number in range(5)])
        assert_refused_and_unchanged(pool, lambda: pool.intern(b"20"), "may hold 20")


def test_insert_budget_bounds_each_process_and_changes_nothing(pool_name: str) -> None:
    with Pool.create(pool_name, insert_budget=3, stripe_count=1) as pool:
        pool.intern_many([b"a", b"b", b"c", b"a"])

        assert_refused_and_unchanged(pool, lambda: pool.intern(b"d"), "all the 3 inserts of its budget")
        assert pool.intern(b"a") == pool.lookup(b"a")
        assert in_child(lambda: len({pool.intern(b"%d" % number) for number in range(3)})) == 3


def test_full_arena_raises_and_changes_nothing(pool_name: str) -> None:
    with Pool.create(pool_name, arena_size=1 << 14, stripe_count=1, max_value_size=1000) as pool:
        for number in range(16):
            pool.intern(bytes([number]) * 1000)

        assert_refused_and_unchanged(pool, lambda: pool.intern(b"\xff" * 1000), "arena_size")
        pool.intern(b"short")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("capacity", 0), ("stripe_count", 3), ("stripe_count", 512), ("process_count", 0), ("max_value_size", 65_536),
        ("arena_size", 1 << 39), ("arena_size", 1), ("insert_budget", -1), ("reserve", -1), ("reserve", 65_537),
    ],
)
def test_options_that_no_pool_can_have_are_refused_by_name_and_make_nothing(pool_name: str, option: str, value: int) -> None:
    options: dict[str, Any] = {option: value}

    with pytest.raises(ValueError, match=option):
        Pool.create(pool_name, **options)

    with pytest.raises(PoolNotFoundError):
        Pool.attach(pool_name)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 201, "\0", "é", "a\n"])
def test_names_that_no_pool_can_have_are_refused(name: str) -> None:
    for method in (Pool.create, Pool.attach, Pool.open, Pool.unlink):
        with pytest.raises(ValueError, match="a pool's name is 1 to 200"):
            method(name)
    with pytest.raises(TypeError, match="a pool's name is a str"):
        Pool.create(b"name")  # type: ignore[arg-type]


# ---- life


def test_pool_goes_with_the_last_close(pool_name: str) -> None:
    first = Pool.create(pool_name)
    second = Pool.attach(pool_name)
    first.close()
    assert len(second) == 0

    second.close()

    with pytest.raises(PoolNotFoundError):
        Pool.attach(pool_name)


def test_persistent_pool_stays_until_it_is_unlinked(pool_name: str) -> None:
    with Pool.create(pool_name, persistent=True) as pool:
        ref = pool.intern(b"x")

    with Pool.attach(pool_name) as pool:
        assert pool.resolve(ref) == b"x"
        with pytest.raises(PoolBusyError):
            Pool.unlink(pool_name)
    Pool.unlink(pool_name)

    with pytest.raises(PoolNotFoundError):
        Pool.unlink(pool_name)


def test_pool_whose_last_process_was_killed_stays_sound_until_someone_attaches(pool_name: str) -> None:
    def make_and_wait(connection: Connection) -> None:
        pool = Pool.create(pool_name)
        connection.send(int(pool.intern(b"x")))
        connection.recv()

    with Forked(make_and_wait) as child:
        ref = child.hear()
        child.kill()

    with Pool.attach(pool_name) as pool:
        assert_sound(pool, {b"x": ref})
    with pytest.raises(PoolNotFoundError):
        Pool.attach(pool_name)


def test_open_creates_or_attaches_and_an_existing_pool_keeps_its_options(pool_name: str) -> None:
    with Pool.open(pool_name, capacity=100) as first, Pool.open(pool_name, capacity=200) as second:
        assert first.intern(b"x") == second.intern(b"x")
        assert second.stats().capacity == 100


def test_taken_name_is_refused_and_the_pool_untouched(pool: Pool) -> None:
    ref = pool.intern(b"x")

    with pytest.raises(PoolExistsError, match="was not touched") as caught:
        Pool.create(pool.name)

    assert isinstance(caught.value, FileExistsError)
    with Pool.attach(pool.name) as other:
        assert other.resolve(ref) == b"x"


def test_missing_pool_is_a_file_not_found(pool_name: str) -> None:
    with pytest.raises(FileNotFoundError, match="Create it"):
        Pool.attach(pool_name)


USES: dict[str, Callable[[Pool], object]] = {
    "intern": lambda pool: pool.intern(b"x"),
    "admit": lambda pool: pool.admit(b"x"),
    "lookup": lambda pool: pool.lookup(b"x"),
    "resolve": lambda pool: pool.resolve(TopicRef(8)),
    "intern_many": lambda pool: pool.intern_many([b"x"]),
    "lookup_many": lambda pool: pool.lookup_many([b"x"]),
    "resolve_many": lambda pool: pool.resolve_many([TopicRef(8)]),
    "len": len,
    "in": lambda pool: b"x" in pool,
    "iteration": list,
    "for_each": lambda pool: pool.for_each(print),
    "stats": lambda pool: pool.stats(),
    "top": lambda pool: pool.top(1),
    "check": lambda pool: pool.check(),
    "flush": lambda pool: pool.flush(),
    "reset": lambda pool: pool.reset(),
    "with": lambda pool: pool.__enter__(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_closed_pool_refuses_every_use_and_may_be_closed_again(pool_name: str, use: Callable[[Pool], object]) -> None:
    pool = Pool.create(pool_name)
    pool.intern(b"x")
    pool.close()

    with pytest.raises(PoolClosedError, match="was closed in this process; other processes are not affected"):
        use(pool)

    pool.close()
    assert "closed" in repr(pool)


def test_pool_that_is_dropped_is_closed(pool_name: str) -> None:
    Pool.create(pool_name).intern(b"x")

    with pytest.raises(PoolNotFoundError):
        Pool.attach(pool_name)


def test_reset_empties_the_pool_and_makes_every_ref_stale(pool: Pool) -> None:
    refs = pool.intern_many([b"%d" % number for number in range(1000)]).tolist()

    pool.reset()

    assert len(pool) == 0
    assert list(pool) == []
    for ref in refs:
        with pytest.raises(StaleRefError):
            pool.resolve(ref)
    assert pool.lookup(b"5") is None
    assert_sound(pool, {value: pool.intern(value) for value in VALUES})


def test_reset_is_refused_while_another_is_attached_and_changes_nothing(pool: Pool) -> None:
    ref = pool.intern(b"x")

    with Pool.attach(pool.name) as other:
        with pytest.raises(PoolBusyError, match="others are attached"):
            pool.reset()
        assert_sound(other, {b"x": ref})
    with Forked(lambda connection: connection.recv()) as child:
        with pytest.raises(PoolBusyError, match="others are attached"):
            pool.reset()
        child.kill()
    pool.reset()
    assert len(pool) == 0


# ---- processes and threads


def intern_in_child(pool: Pool, results: Any) -> None:
    results.put([int(ref) for ref in pool.intern_many([b"parent's", b"child's"])])
    pool.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_pool_can_be_sent_to_a_child_process(pool: Pool, method: str) -> None:
    ref = pool.intern(b"parent's")
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    child = context.Process(target=intern_in_child, args=(pool, results))  # type: ignore[attr-defined]

    child.start()
    refs = results.get()
    child.join(DEADLINE_S)

    assert child.exitcode == 0
    assert refs == [ref, pool.lookup(b"child's")]
    assert_sound(pool, {b"parent's": ref, b"child's": refs[1]})
    assert len(pool.stats().processes) == 1


def test_pickled_pool_does_not_become_another_of_the_same_name(pool_name: str) -> None:
    with Pool.create(pool_name) as pool:
        pickled = pickle.dumps(pool)
        with pickle.loads(pickled) as again:
            assert again.intern(b"x") == pool.intern(b"x")

    with pytest.raises(PoolNotFoundError):
        pickle.loads(pickled)
    with Pool.create(pool_name) as successor:
        with pytest.raises(PoolNotFoundError, match="another has its name"):
            pickle.loads(pickled)
        assert len(successor.stats().processes) == 1


def test_independent_process_gets_the_same_refs_and_its_exit_removes_nothing(pool: Pool) -> None:
    ref = pool.intern(b"ours")
    code = """
import sys
from shmpool import Pool
pool = Pool.attach(sys.argv[1])
print(pool.intern(b"ours"), pool.intern(b"theirs"))
"""

    ended = independent(code, pool.name)

    assert ended.stderr == ""
    assert [int(word) for word in ended.stdout.split()] == [ref, pool.lookup(b"theirs")]
    with Pool.attach(pool.name) as other:
        assert_sound(other, {value: int(ref) for ref, value in pool})


@pytest.fixture
def eager_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switches")
def test_threads_share_a_pool_and_every_use_is_counted_once(pool_name: str) -> None:
    values = [b"%d" % number for number in range(300)]
    start = threading.Barrier(4)

    with Pool.create(pool_name, stripe_count=2) as pool:

        def intern_all(_: int) -> list[TopicRef]:
            start.wait(DEADLINE_S)
            return [pool.intern(value) for value in values for _ in range(3)]

        with ThreadPoolExecutor(4) as threads:
            first, *rest = threads.map(intern_all, range(4))

        assert all(refs == first for refs in rest)
        assert {topic.uses for topic in pool.top(300)} == {12}
        assert (pool.stats().hits, pool.stats().inserts, pool.stats().misses) == (11 * 300, 300, 300)
        assert_sound(pool, dict(zip(values, first[::3], strict=True)))


# ---- counts


@pytest.mark.parametrize("cache_size", [0, 1, 4096])
def test_stats_and_top_are_exact_whatever_is_cached(pool_name: str, cache_size: int) -> None:
    with Pool.create(pool_name, cache_size=cache_size) as pool:
        pool.intern(b"a")
        for _ in range(4):
            pool.intern(b"b")
        pool.lookup(b"a")
        pool.lookup(b"none")
        pool.intern_many([b"a", b"b", b"c", b"b"])
        pool.lookup_many([b"b", b"none", b"none"])

        stats = pool.stats()
        assert (stats.size, stats.inserts, stats.hits, stats.misses) == (3, 3, 8, 6)
        assert stats.processes[0].counters == stats.total
        assert [(topic.value, topic.uses) for topic in pool.top(9)] == [(b"b", 7), (b"a", 3), (b"c", 1)]
        assert [topic.value for topic in pool.top(1)] == [b"b"]
        assert all(pool.resolve(topic.ref) == topic.value for topic in pool.top(9))


def test_another_processs_counts_show_after_its_flush(pool: Pool) -> None:
    pool.intern(b"x")

    with Pool.attach(pool.name) as other:
        other.lookup(b"x")
        assert pool.stats().hits == 0
        other.flush()
        assert pool.stats().hits == 1
        other.lookup(b"x")
    assert pool.stats().hits == 2


def test_top_by_holds_is_refused_where_nothing_is_held(pool: Pool) -> None:
    with pytest.raises(ValueError, match="counts only 'uses'"):
        pool.top(1, by="holds")


def test_stats_tell_sizes(pool: Pool) -> None:
    pool.intern(b"x" * 100)

    stats = pool.stats()

    assert (stats.name, stats.size, stats.capacity) == (pool.name, 1, 65_536)
    assert stats.arena_used_size == 16 + 104
    assert 0 < stats.arena_committed_size <= stats.arena_size
    assert stats.memory_size <= 512 * 1024
    assert [(process.pid, process.live) for process in stats.processes] == [(os.getpid(), True)]
