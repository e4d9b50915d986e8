"""What a pool's operations do where memory ends, tried with 0, 1, 2, ... free pages (or files) until they succeed.

    python -m tests.stress.full_memory memory | inodes | descriptors

Run in a small /dev/shm of one's own. So each of an operation's allocations in turn is the one that fails. Every refusal must
name the bytes, change nothing, and be over once there is space again. Writes how often each operation was refused, as JSON.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import resource
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shmpool import Pool, PoolFullError
from tests.unit.inside import store_of

SHM = Path("/dev/shm")
BALLAST = SHM / "ballast"
PAGE = 4096
NAME = "full"
MOST = 200  # free pages or files; no operation here needs that many


@dataclass
class Scene:
    """A pool before the operation, and what others know of it. `act` is to be refused, or to succeed with all its work done."""

    act: Callable[[], Any]
    pool: Pool | None = None
    known: dict[bytes, int] = field(default_factory=dict)
    may_add: frozenset[bytes] = frozenset()  # a batch may have come as far as memory did
    may_make: str = "nothing"  # a prefix of files that are the pool's whoever makes them

    def facts(self) -> dict[str, Any]:
        """Everything that a refusal must leave as it is."""
        files = {path.name: path.stat().st_size for path in SHM.iterdir() if not path.name.startswith(("ballast", self.may_make))}
        facts: dict[str, Any] = {"files": files, "descriptors": len(os.listdir("/proc/self/fd"))}
        if self.pool is None:
            return facts | {"used": used_pages()}
        assert self.pool.check() == []
        held = {value: int(ref) for ref, value in self.pool}
        assert len(self.pool) == len(held)
        added = held.keys() - self.known.keys()
        assert added <= self.may_add, added
        assert {value: held[value] for value in self.known} == self.known
        assert all(self.pool.resolve(ref) == value for ref, value in self.pool)
        stats = self.pool.stats()
        facts |= {"rows": len(stats.processes)}
        if not self.may_add:
            facts |= {"size": stats.size, "used": stats.arena_used_size, "committed": stats.arena_committed_size}
            facts |= {"holds": stats.holds}
        return facts


# ---- the operations


def creating(stack: ExitStack) -> Scene:
    return Scene(lambda: stack.enter_context(Pool.create(NAME, stripe_count=4)))


def attaching(stack: ExitStack) -> Scene:
    """To a sound pool: that takes no memory at all."""
    return attach_scene(stack, make(stack, stripe_count=4))


def attaching_without_semaphores(stack: ExitStack) -> Scene:
    """Whose creator was killed before they were there, or that somebody removed: they are made."""
    scene = attach_scene(stack, make(stack, stripe_count=4))
    for path in SHM.glob("sem.*"):
        path.unlink()
    scene.may_make = "sem.shmpool-"
    return scene


def attaching_after_a_kill(stack: ExitStack) -> Scene:
    """All other rows are a killed process's: what it had counted has to be added to the totals before its row is free."""
    pool = make(stack, process_count=2)
    values = names(1500)
    known = dict(zip(values, pool.intern_many(values).tolist(), strict=True))
    pid = os.fork()
    if pid == 0:
        pool.lookup_many(values)
        os._exit(0)
    os.waitpid(pid, 0)
    scene = attach_scene(stack, pool)
    scene.known = known
    return scene


def interning_the_first(stack: ExitStack) -> Scene:
    """A table, a page of the chunk table, a chunk."""
    pool = make(stack)
    return Scene(lambda: pool.intern(b"first"), pool)


def growing_a_table(stack: ExitStack) -> Scene:
    pool = make(stack, stripe_count=1, max_value_size=2000)  # chunks large enough not to end at the same time
    values = names(384)
    known = dict(zip(values, pool.intern_many(values).tolist(), strict=True))
    return Scene(lambda: pool.intern(b"one too many"), pool, known)


def taking_a_chunk(stack: ExitStack) -> Scene:
    pool = make(stack, stripe_count=1)
    known = {value: int(pool.intern(value)) for value in (b"%0800d" % number for number in range(20))}  # 816 of 16,384 bytes each
    return Scene(lambda: pool.intern(b"%0800d" % 20), pool, known)


def interning_many(stack: ExitStack) -> Scene:
    """Tables, chunks and the ledger, in turns."""
    pool = make(stack, stripe_count=2)
    values = names(900)

    def act() -> None:
        refs = pool.intern_many(values).tolist()
        assert len(set(refs)) == len(values)
        assert pool.resolve_many(refs) == values

    return Scene(act, pool, may_add=frozenset(values))


def flushing(stack: ExitStack) -> Scene:
    """Refused or not, no use may be lost: those that find no memory stay in the process until there is some."""
    pool = make(stack)
    known = {value: int(pool.intern(value)) for value in names(1200)}
    other = stack.enter_context(Pool.attach(NAME, cache_size=2000))

    def act() -> None:
        for value in known:
            other.lookup(value)
        other.flush()
        counted = sum(topic.uses for topic in pool.top(5000))
        if counted != expected[0]:
            expected[0] += len(known)  # those that the retry makes
            raise PoolFullError(f"needs 1 more bytes: {counted} uses are counted, 0 free. Nothing was changed")

    expected = [2 * len(known)]
    return Scene(act, pool, known)


def resetting(stack: ExitStack) -> Scene:
    """Takes no memory, and neither does a first name in memory that was used before."""
    pool = make(stack, stripe_count=1)
    pool.intern_many(names(100))

    def act() -> None:
        pool.reset()
        assert len(pool) == 0
        assert pool.resolve(pool.intern(b"anew")) == b"anew"

    return Scene(act, pool, may_add=frozenset([b"anew", *names(100)]))


def make(stack: ExitStack, **options: Any) -> Pool:
    return stack.enter_context(Pool.create(NAME, **options))


def attach_scene(stack: ExitStack, pool: Pool) -> Scene:
    return Scene(lambda: stack.enter_context(Pool.attach(NAME)).check(), pool)


def names(count: int) -> list[bytes]:
    return [b"/eth2/topic/%d" % number for number in range(count)]


# ---- what ends


def fill_memory(free_pages: int) -> None:
    with BALLAST.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (os.statvfs(SHM).f_bfree - free_pages) * PAGE)


def used_pages() -> int:
    state = os.statvfs(SHM)
    ballast = BALLAST.stat().st_blocks * 512 // PAGE if BALLAST.exists() else 0
    return state.f_blocks - state.f_bfree - ballast


def fill_inodes(free: int) -> None:
    for number in range(os.statvfs(SHM).f_ffree - free):
        (SHM / f"ballast-{number}").touch()


def empty() -> None:
    for path in SHM.glob("ballast*"):
        path.unlink()


def fill_descriptors(free: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, HARD_NOFILE))
    with suppress(OSError):
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    for _ in range(free):
        os.close(opened.pop())


def empty_descriptors() -> None:
    while opened:
        os.close(opened.pop())


opened: list[int] = []
_, HARD_NOFILE = resource.getrlimit(resource.RLIMIT_NOFILE)


def is_told(error: Exception, resource_: str) -> bool:
    """Whether the error says what is missing and that nothing was changed."""
    if resource_ == "descriptors":
        return getattr(error, "errno", None) == errno.EMFILE or "maximum number of files" in str(error)
    bytes_or_files = re.search(r"needs (\d+) .*?(\d+) (?:are )?free", str(error))
    if not isinstance(error, PoolFullError) or bytes_or_files is None:
        return False
    needed, free = map(int, bytes_or_files.groups())
    return needed > free and re.search(r"Nothing was changed|untouched", str(error)) is not None


MAKERS = (creating, attaching_without_semaphores)
EATERS = (attaching_after_a_kill, interning_the_first, growing_a_table, taking_a_chunk, interning_many, flushing)
ENDS: dict[str, tuple[Callable[[int], None], Callable[[], None], tuple[Callable[[ExitStack], Scene], ...]]] = {
    "memory": (fill_memory, empty, (*MAKERS, attaching, *EATERS, resetting)),
    "inodes": (fill_inodes, empty, MAKERS),
    "descriptors": (fill_descriptors, empty_descriptors, (*MAKERS, attaching)),
}


def refuse(operation: Callable[[ExitStack], Scene], what_ends: str) -> int:
    """Try it with 0, 1, 2, ... left of what ends; returns with how little of it succeeded."""
    fill, give_back, _ = ENDS[what_ends]
    for left in range(MOST):
        tried = f"{operation.__name__} with {left} left"
        with ExitStack() as stack:
            scene = operation(stack)
            gc.collect()
            before = scene.facts()
            fill(left)
            try:
                scene.act()
            except (PoolFullError, OSError) as error:
                said = error
            else:
                give_back()
                return left
            if what_ends != "descriptors":  # to look takes one
                assert scene.facts() == before, f"{tried}: {before} became {scene.facts()}"
            assert is_told(said, what_ends), f"{tried}: {type(said).__name__}: {said}"
            give_back()
            assert scene.facts() == before, f"{tried}, then more: {before} became {scene.facts()}"
            scene.act()  # service goes on
            if scene.pool is not None:
                assert store_of(scene.pool).check() == []
        left_behind = sorted(path.name for path in SHM.iterdir())
        assert left_behind == [], left_behind
    raise AssertionError(f"{operation.__name__} was still refused with {MOST} left")


if __name__ == "__main__":
    json.dump({each.__name__: refuse(each, sys.argv[1]) for each in ENDS[sys.argv[1]][2]}, sys.stdout)
