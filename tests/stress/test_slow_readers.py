"""A reader that has seen a slot and is slow meets the space of a topic that went, at each store of the one that comes into it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shmpool import Policy, Pool, StaleRefError
from shmpool.hashing import make_hasher
from shmpool.layout import MIN_TABLE_BITS, WORD_SIZE
from shmpool.table import find_live
from tests.stress.lifecycles import stripes_of
from tests.stress.tracing import Tracee, Tracer, needs_tracing
from tests.unit.inside import ENGINES, engine_chosen, store_of

pytestmark = needs_tracing
OLD, NEW = b"the old topic", b"the new topic"  # of one size


def slow_reader(pool: Pool) -> Callable[[bytes], int]:
    """Searches the table as it is now, whatever becomes of it."""
    segment, geometry = store_of(pool).segment, pool.constants.geometry
    table, size = stripes_of(pool).table(0), WORD_SIZE << MIN_TABLE_BITS
    start = table.word * WORD_SIZE
    segment.data[geometry.scratch_offset : geometry.scratch_offset + size] = segment.data[start : start + size]
    hash_value, mask = make_hasher(pool.constants.hash_key), (1 << MIN_TABLE_BITS) - 1

    def read(value: bytes) -> int:
        return find_live(
            segment.words, segment.data, geometry.scratch_offset // WORD_SIZE, mask, geometry.arena_offset,
            stripes_of(pool).limit(), hash_value(value), value,
        )

    return read


def at_each_store(prepare: Callable[[], object], act: Callable[[], object], look: Callable[[], object]) -> int:
    with Tracee(lambda _: act(), lambda _: prepare()) as child:
        tracer = Tracer(child)
        while tracer.advance():
            look()
        look()
        return len(tracer.steps)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_comes_into_a_space_is_never_taken_for_what_was_there(pool_name: str, engine: str) -> None:
    with engine_chosen(engine), Pool.create(pool_name, policy=Policy.refcount(), stripe_count=1, max_value_size=100) as pool:
        ref = pool.intern(OLD)
        read = slow_reader(pool)
        assert read(OLD) == ref - stripes_of(pool).origin
        with Pool.attach(pool_name) as other:
            pool.release(ref)

            def look() -> None:
                assert read(OLD) == -1
                with pytest.raises(StaleRefError):
                    pool.resolve(ref)

            # With memory for its ledgers it is the compiled engine that does it, where that is chosen.
            stores = at_each_store(lambda: store_of(other).attachment.commit_column(0), lambda: other.intern(NEW), look)

        assert stores > 10
