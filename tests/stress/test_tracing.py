"""The tracer itself: it stops a process before every store to shared memory and every system call, and misses none."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from uuid import uuid4

import posix_ipc
import pytest

from tests.stress.tracing import Tracee, Tracer, needs_tracing, run_to

pytestmark = needs_tracing
SIZE = 1 << 16


@pytest.fixture
def shared() -> Iterator[mmap.mmap]:
    """Shared memory as a pool has it: of a file in /dev/shm, which needs no name."""
    descriptor = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(descriptor, SIZE)
    with mmap.mmap(descriptor, SIZE) as memory:
        yield memory
    os.close(descriptor)


def stores_of(act: Callable[[], object]) -> int:
    with Tracee(lambda _: act()) as child:
        tracer = Tracer(child)
        while tracer.advance():
            pass
    return sum(step.place != 0 for step in tracer.steps)


def test_process_killed_before_a_store_has_done_those_before_it_and_no_other(shared: mmap.mmap) -> None:
    places = range(0, SIZE, SIZE // 8)

    def store(_: object) -> None:
        for place in places:
            shared[place] = 1

    for step in count(1):
        shared[:] = bytes(SIZE)
        with Tracee(store) as child:
            killed = run_to(child, step)
        done = min(step - 1, len(places))
        assert [shared[place] for place in places] == [1] * done + [0] * (len(places) - done)
        if not killed:
            break
    assert step > len(places)


def test_process_is_killed_before_a_system_call_is_done(tmp_path: Path) -> None:
    def make_folders(_: object) -> None:
        for name in "abc":
            os.mkdir(tmp_path / name)

    seen: list[int] = []
    for step in count(1):
        with Tracee(make_folders) as child:
            killed = run_to(child, step)
        seen.append(len(list(tmp_path.iterdir())))
        for folder in tmp_path.iterdir():
            folder.rmdir()
        if not killed:
            break

    assert seen[:4] == [0, 1, 2, 3]
    assert set(seen[4:]) == {3}


@pytest.mark.parametrize("size", [1000, 8192, 50_000])
def test_copy_can_be_cut_off_at_many_places(shared: mmap.mmap, size: int) -> None:
    data = (bytes(range(1, 251)) * (size // 250 + 1))[:size]

    def copy(_: object) -> None:
        shared[:size] = data

    lengths: set[int] = set()
    for step in count(1, max(1, size // 2000)):
        shared[:] = bytes(SIZE)
        with Tracee(copy) as child:
            killed = run_to(child, step)
        copied = [place for place in range(size) if shared[place]]
        assert all(shared[place] == data[place] for place in copied)
        lengths.add(len(copied))
        if not killed:
            break
    assert {0, size} <= lengths
    assert len(lengths) > 3


def test_stores_of_compiled_code_and_of_the_kernels_futexes_are_seen(shared: mmap.mmap) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    name = f"/{uuid4().hex}"
    semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, initial_value=1)
    posix_ipc.unlink_semaphore(name)

    assert stores_of(lambda: ctypes.memset(address, 1, 1)) == 1
    assert stores_of(lambda: semaphore.acquire(0)) == 1
    assert stores_of(semaphore.release) == 1
    assert stores_of(lambda: shared[0]) == 0
    semaphore.close()


def test_memory_that_is_mapped_later_is_watched_too() -> None:
    def map_and_store() -> None:
        descriptor = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
        os.ftruncate(descriptor, SIZE)
        with mmap.mmap(descriptor, SIZE) as memory:
            memory[0] = 1
            memory[4096] = 1
        os.close(descriptor)

    assert stores_of(map_and_store) == 2


def test_what_the_traced_process_raises_comes_out(shared: mmap.mmap) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    with Tracee(fail) as child, pytest.raises(Exception, match="ZeroDivisionError"):
        run_to(child, 0)
