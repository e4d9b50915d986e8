"""Claims about counting: what a departed process counted is kept, once, whoever dies while keeping it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection

import pytest

from shmpool import Policy, Pool, PoolCorruptError
from shmpool import segment as segments
from shmpool.layout import FOLD_WORD, HOLDS, seal
from shmpool.ledger import holding_rows, row_word, take_snapshot
from tests.model import assert_sound
from tests.unit.faults import Faults, killed_at
from tests.unit.inside import store_of
from tests.unit.processes import Forked, in_child

VALUES = [b"topic %d" % number for number in range(3)]
Names = Callable[[], str]


def use(pool: Pool, times: int) -> None:
    for value in VALUES:
        for _ in range(times):
            assert pool.lookup(value)


def uses_of(pool: Pool) -> dict[bytes, int]:
    return {topic.value: topic.uses for topic in pool.top(10)}


def flush_and_die(name: str, times: int) -> Callable[[Connection], None]:
    """A child's body: count, publish, and be killed."""

    def body(_: object) -> None:
        pool = Pool.attach(name)
        use(pool, times)
        pool.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    return body


def test_totals_are_exact_after_every_process_has_closed(pool_name: str) -> None:
    def count_and_close(connection: Connection) -> None:
        with Pool.attach(pool_name) as pool:
            connection.recv()
            use(pool, 50)
            pool.lookup(b"unknown")
            pool.intern(b"of process %d" % os.getpid())

    with Pool.create(pool_name) as pool:
        pool.intern_many(VALUES)
        children = [Forked(count_and_close) for _ in range(4)]
        for child in children:
            child.say("go")
        for child in children:
            child.result()

        total = pool.stats().total

        assert total.hits == 4 * 50 * len(VALUES)
        assert total.misses == len(VALUES) + 4 * 2
        assert total.inserts == len(VALUES) + 4
        assert uses_of(pool) == dict.fromkeys(VALUES, 1 + 4 * 50) | {
            value: 1 for _, value in pool if value.startswith(b"of process")
        }


def test_a_killed_process_is_counted_up_to_its_last_flush(pool_name: str) -> None:
    def body(connection: Connection) -> None:
        use(pool, 7)
        pool.flush()
        use(pool, 1)
        connection.send("done")
        connection.recv()

    with Pool.create(pool_name) as pool:
        pool.intern_many(VALUES)
        with Forked(body) as child:
            child.hear()
            child.kill()

        stats = pool.stats()

        assert stats.hits == 7 * len(VALUES)
        assert [process.live for process in stats.processes] == [True, False]
        assert uses_of(pool) == dict.fromkeys(VALUES, 8)


def test_a_dead_row_is_folded_exactly_once_whoever_is_killed_at_any_step_of_it(new_pool_name: Names) -> None:
    """One process dies having counted; the next, which folds its row to take it, is killed at each step of that."""
    for step in count(1):
        with Pool.create(name := new_pool_name(), process_count=1, stripe_count=1, persistent=True) as pool:
            pool.intern_many(VALUES)
        with Forked(flush_and_die(name, 7)) as dead:
            dead.wait()
        expected = (7 * len(VALUES), dict.fromkeys(range(len(VALUES)), 8))
        assert hits_and_uses(name) == expected

        def attach(faults: Faults, name: str = name) -> None:
            faults.arm()
            Pool.attach(name)

        killed = killed_at(step, attach)

        assert hits_and_uses(name) == expected, f"after a kill at step {step}"
        for _ in range(2):
            Pool.attach(name).close()
            assert hits_and_uses(name) == expected, f"after a kill at step {step} and a fold"
        if not killed:
            break
    assert step > 15


def hits_and_uses(name: str) -> tuple[int, dict[int, int]]:
    """What a reader without a row sees: all hits, and uses by column."""
    segment = segments.attach(name)
    snapshot = take_snapshot(segment, with_topics=True)
    segment.close()
    columns = snapshot.uses.nonzero()[0].tolist()
    return int(snapshot.counters.sum(axis=0)[0]), {column: int(snapshot.uses[column]) for column in columns}


def test_close_killed_at_any_step_counts_once(new_pool_name: Names) -> None:
    for step in count(1):
        with Pool.create(name := new_pool_name(), stripe_count=1) as pool:
            pool.intern_many(VALUES)

            def count_and_close(faults: Faults, name: str = name) -> None:
                pool = Pool.attach(name)
                use(pool, 7)
                pool.flush()
                faults.arm()
                pool.close()

            killed = killed_at(step, count_and_close)

            for _ in range(2):
                assert pool.stats().hits == 7 * len(VALUES), f"after a kill at step {step}"
                assert uses_of(pool) == dict.fromkeys(VALUES, 8), f"after a kill at step {step}"
                Pool.attach(name).close()
        if not killed:
            break
    assert step > 15


def test_readers_never_see_a_count_twice_or_not_at_all_while_rows_are_folded(pool_name: str) -> None:
    """Counts only ever grow, and what was flushed is there, at every instant of many folds."""

    def come_and_go(connection: Connection) -> None:
        for number in range(60):
            with Pool.attach(pool_name) as pool:
                use(pool, 1)
                pool.flush()
                connection.send(number)
        connection.send("end")

    with Pool.create(pool_name, stripe_count=1) as pool:
        pool.intern_many(VALUES)
        with Forked(come_and_go) as child:
            seen = 0
            while (said := child.hear()) != "end":
                hits = pool.stats().hits
                uses = sum(uses_of(pool).values()) - len(VALUES)
                assert (said + 1) * len(VALUES) <= hits <= 60 * len(VALUES)
                assert seen <= hits <= uses <= 60 * len(VALUES)
                seen = hits

        assert pool.stats().hits == 60 * len(VALUES)


def test_a_reset_drops_uses_and_keeps_counters(pool_name: str) -> None:
    with Pool.create(pool_name) as pool:
        pool.intern_many(VALUES)
        use(pool, 3)
        before = pool.stats()

        pool.reset()

        assert pool.stats().hits == before.hits
        assert pool.top(10) == []
        refs = {value: int(pool.intern(value)) for value in VALUES}
        assert uses_of(pool) == dict.fromkeys(VALUES, 1)
        assert_sound(pool, refs)


def test_uses_of_departed_processes_from_before_a_reset_do_not_come_back(pool_name: str) -> None:
    with Pool.create(pool_name) as pool:
        pool.intern_many(VALUES)
        with Pool.attach(pool_name) as other:
            use(other, 3)
        with Forked(flush_and_die(pool_name, 5)) as dead:
            dead.wait()
        pool.reset()
        pool.intern_many(VALUES)

        for _ in range(2):
            assert uses_of(pool) == dict.fromkeys(VALUES, 1)
            Pool.attach(pool_name).close()


def test_a_ledger_takes_eight_bytes_for_each_topic_that_the_process_has_touched(pool_name: str) -> None:
    with Pool.create(pool_name, capacity=60_000) as pool:
        refs = pool.intern_many([b"%d" % number for number in range(20_000)])
        before = pool.stats().memory_size

        def touch(connection: Connection) -> int:
            with Pool.attach(pool_name) as other:
                other.lookup_many([value for _, value in pool])
                grown = other.stats().memory_size - before
                connection.send(grown)
                connection.recv()
            return 0

        with Forked(touch) as child:
            grown = child.hear()
            child.say("close")
            child.result()

        assert len(refs) * 8 <= grown <= len(refs) * 8 * 1.5


@pytest.mark.parametrize("kept", [0, 1])
def test_forked_children_count_from_zero(pool_name: str, kept: int) -> None:
    with Pool.create(pool_name, cache_size=kept) as pool:
        pool.intern_many(VALUES)
        use(pool, 5)
        before = pool.stats().hits

        def count_in_child() -> list[int]:
            use(pool, 2)
            mine = [p.counters.hits for p in pool.stats().processes if p.pid == os.getpid()]
            pool.close()
            return mine

        assert in_child(count_in_child) == [2 * len(VALUES)]
        assert pool.stats().hits == before + 2 * len(VALUES)


def test_a_fold_that_a_killed_process_began_is_finished_by_who_closes_next(new_pool_name: Names) -> None:
    for step in count(1):
        pool = Pool.create(name := new_pool_name(), stripe_count=1, persistent=True)
        pool.intern_many(VALUES)
        killed = killed_at(step, count_and_close(name))

        pool.close()

        expected = (7 * len(VALUES), dict.fromkeys(range(len(VALUES)), 8))
        assert hits_and_uses(name) == expected, f"after a kill at step {step}"
        Pool.attach(name).close()
        assert hits_and_uses(name) == expected, f"after a kill at step {step} and a fold"
        if not killed:
            break
    assert step > 15


def count_and_close(name: str) -> Callable[[Faults], None]:
    """Attach and count, and only then count the steps of closing."""

    def act(faults: Faults) -> None:
        pool = Pool.attach(name)
        use(pool, 7)
        pool.flush()
        faults.arm()
        pool.close()

    return act


def test_a_fork_never_takes_a_row_that_a_killed_process_was_folding(new_pool_name: Names) -> None:
    """A fork takes a clean row without the gate, so it must not take one that a fold has yet to let go of."""

    def use_and_close(pool: Pool) -> Callable[[Connection], None]:
        def body(connection: Connection) -> None:
            use(pool, 5)
            pool.flush()
            connection.send("counted")
            connection.recv()
            pool.close()

        return body

    for step in count(1):
        with Pool.create(name := new_pool_name(), stripe_count=1) as pool:
            pool.intern_many(VALUES)
            killed = killed_at(step, count_and_close(name))

            with Forked(use_and_close(pool)) as child:
                child.hear()
                Pool.attach(name).close()  # finishes the fold
                assert {child.pid, os.getpid()} <= {process.pid for process in pool.stats().processes}
                child.say("close")
                child.result()

            assert pool.stats().hits == 12 * len(VALUES), f"after a kill at step {step}"
            assert uses_of(pool) == dict.fromkeys(VALUES, 13), f"after a kill at step {step}"
        if not killed:
            break
    assert step > 15


@pytest.mark.parametrize("bit", range(16))
def test_a_flipped_bit_of_the_fold_word_loses_no_topic(pool_name: str, bit: int) -> None:
    with Pool.create(pool_name, process_count=16, stripe_count=2) as pool:
        refs = {value: int(pool.intern(value)) for value in VALUES}
        store_of(pool).segment.words[FOLD_WORD] ^= 1 << bit

        with suppress(PoolCorruptError):  # where it names no row
            Pool.attach(pool_name).close()
        store_of(pool).segment.words[FOLD_WORD] = 0

        assert_sound(pool, refs)


def test_rows_that_hold_are_told_while_others_have_their_first_hold(pool_name: str) -> None:
    with Pool.create(pool_name, policy=Policy.refcount(), process_count=64) as pool:
        segment = store_of(pool).segment
        words = [row_word(segment, row) + HOLDS for row in range(8, 64)]

        def begin_and_end(connection: Connection) -> None:
            connection.send("begun")
            while True:
                for content in (1, 0):
                    for word in words:
                        segment.words[word] = content

        pool.intern(b"held")
        with Forked(begin_and_end) as other:
            assert other.hear() == "begun"
            found = [holding_rows(segment) for _ in range(50_000)]
            other.kill()

        assert all(rows[0] == 0 for rows in found)
        assert any(len(rows) > 1 for rows in found)
        for word in words:
            segment.words[word] = 0


def test_a_word_of_holds_in_a_pool_that_counts_none_leads_nowhere(pool_name: str) -> None:
    """There the ledgers of holds have no room: what would be the first of them is the arena."""
    values = [b"%d" % number * 50 for number in range(10, 70)]  # beyond a page of the arena, the size of a ledger here
    with Pool.create(pool_name, capacity=64, stripe_count=1) as pool:
        pool.reset()
        refs = {value: pool.intern(value) for value in values}
        segment = store_of(pool).segment
        segment.words[row_word(segment, 1) + HOLDS] = seal(1, 4096)  # of before the reset: who takes the row would clear it

        with Pool.attach(pool_name) as other:
            assert_sound(other, refs)
        assert pool.stats().holds == 0
