"""What pools that let topics go do where memory ends: see full_memory.py, in whose way each is tried.

    python -m tests.stress.full_memory_holds

To give back takes no memory: it must succeed where there is none at all.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack

from shmpool import Policy, Pool, TopicRef
from tests.stress.full_memory import NAME, Scene, make, names, refuse
from tests.stress.turns import fill_with_tombstones

REFCOUNT = Policy.refcount()
FILL_OF_A_CHUNK = 16 << 10


def know(pool: Pool, values: list[bytes]) -> dict[bytes, int]:
    return dict(zip(values, pool.intern_many(values).tolist(), strict=True))


def holding_the_first(stack: ExitStack) -> Scene:
    """A table, a page of the chunk table, a chunk, a ledger of holds and one of uses."""
    pool = make(stack, policy=REFCOUNT)
    return Scene(lambda: pool.intern(b"first"), pool)


def holding_what_another_holds(stack: ExitStack) -> Scene:
    """The two ledgers."""
    pool = make(stack, policy=REFCOUNT)
    known = know(pool, names(5))
    other = stack.enter_context(Pool.attach(NAME))
    return Scene(lambda: other.intern(names(5)[0]), pool, known)


def holding_beyond_a_page_of_the_ledgers(stack: ExitStack) -> Scene:
    pool = make(stack, policy=REFCOUNT, stripe_count=1, max_value_size=2000)
    known = know(pool, names(512))
    return Scene(lambda: pool.intern(b"one too many"), pool, known)


def rebuilding_a_table(stack: ExitStack) -> Scene:
    """Into the other region of its size."""
    pool = make(stack, policy=REFCOUNT, stripe_count=1)
    known = know(pool, names(60))
    fill_with_tombstones(pool)
    return Scene(lambda: pool.intern(b"new"), pool, known)


def growing_a_table(stack: ExitStack) -> Scene:
    pool = make(stack, policy=REFCOUNT, stripe_count=1, max_value_size=2000)
    known = know(pool, names(384))
    return Scene(lambda: pool.intern(b"new"), pool, known)


def taking_a_chunk(stack: ExitStack) -> Scene:
    """Nothing that is free is of the right size."""
    pool = make(stack, policy=REFCOUNT, stripe_count=1, max_value_size=1000)
    pool.release_many(pool.intern_many(names(5)))
    known = know(pool, [b"%0800d" % number for number in range(19)])  # spaces of 832 bytes each
    return Scene(lambda: pool.intern(b"%0800d" % 20), pool, known)


def evicting(stack: ExitStack) -> Scene:
    """What nobody holds makes room where there is none left."""
    pool = make(stack, policy=Policy.lru(max_unheld=1000), stripe_count=1, arena_size=FILL_OF_A_CHUNK, max_value_size=1000)
    pool.release_many(pool.intern_many([b"%0800d" % number for number in range(19)]))
    may_add = frozenset(b"%0800d" % number for number in range(40))
    return Scene(lambda: pool.intern(b"%0800d" % 30), pool, may_add=may_add)


def using_free_space(stack: ExitStack) -> Scene:
    pool = make(stack, policy=REFCOUNT, stripe_count=1)
    known = know(pool, names(5))
    pool.release(pool.intern(names(6)[5]))
    return Scene(lambda: pool.intern(names(7)[6]), pool, known)


def releasing(stack: ExitStack) -> Scene:
    """The last of many holds of many, and those of a process that was killed."""
    pool = make(stack, policy=REFCOUNT, stripe_count=2)
    values = names(600)
    pid = os.fork()
    if pid == 0:
        pool.intern_many(values[100:] + names(900)[600:])
        os._exit(0)
    os.waitpid(pid, 0)
    refs = pool.intern_many(values)

    def act() -> None:
        assert pool.stats().holds == 600 + 800
        pool.release_many(map(TopicRef, refs.tolist()))
        assert pool.reap() == 800
        assert len(pool) == pool.stats().holds == 0

    return Scene(act, pool, may_add=frozenset(names(900)))


OPERATIONS = (
    holding_the_first, holding_what_another_holds, holding_beyond_a_page_of_the_ledgers, rebuilding_a_table, growing_a_table,
    taking_a_chunk, evicting, using_free_space, releasing,
)

if __name__ == "__main__":
    json.dump({each.__name__: refuse(each, "memory") for each in OPERATIONS}, sys.stdout)
