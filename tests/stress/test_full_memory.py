"""Where memory, files or descriptors end: an error that says so, nothing changed, never a SIGBUS, and service goes on afterwards.

On a real 16 MiB tmpfs, with every small number of free pages in turn: see full_memory.py for what each refusal must keep.
"""

from __future__ import annotations

import json

import pytest

from tests.unit.processes import independent
from tests.unit.small_shm import in_small_shm, skip_unless_it_can_be_had

# How often each operation must have been refused, at least, before it succeeded: as often as it allocates.
REFUSED = {
    "memory": {
        "creating": 2,
        "attaching_without_semaphores": 4,
        "attaching": 0,
        "attaching_after_a_kill": 1,
        "interning_the_first": 3,
        "growing_a_table": 1,
        "taking_a_chunk": 1,
        "interning_many": 8,
        "flushing": 1,
        "resetting": 0,
    },
    "inodes": {"creating": 5, "attaching_without_semaphores": 4},
    "descriptors": {"creating": 3, "attaching_without_semaphores": 3, "attaching": 2},
}


@pytest.mark.parametrize("what_ends", REFUSED)
def test_every_allocation_that_fails_is_an_error_that_changes_nothing_and_service_goes_on(what_ends: str) -> None:
    skip_unless_it_can_be_had()

    ended = in_small_shm("-m", "tests.stress.full_memory", what_ends, mount="size=16m,nr_inodes=64")

    assert ended.returncode == 0, ended.stderr  # -7 would be SIGBUS
    refused, least = json.loads(ended.stdout), REFUSED[what_ends]
    assert refused.keys() == least.keys()
    assert {operation: refused[operation] for operation in least if refused[operation] < least[operation]} == {}
    assert [operation for operation in least if refused[operation] and not least[operation]] == []


REFUSED_HOLDS = {
    "holding_the_first": 8,
    "holding_what_another_holds": 2,
    "holding_beyond_a_page_of_the_ledgers": 2,
    "rebuilding_a_table": 1,
    "growing_a_table": 2,
    "taking_a_chunk": 4,
    "evicting": 0,
    "using_free_space": 0,
    "releasing": 0,
}


def test_holds_that_find_no_memory_change_nothing_and_to_give_them_back_takes_none() -> None:
    skip_unless_it_can_be_had()

    ended = in_small_shm("-m", "tests.stress.full_memory_holds", mount="size=16m,nr_inodes=64")

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == REFUSED_HOLDS


LIMITED = """
import os, resource, sys
from shmpool import Pool, PoolFullError
name = sys.argv[1]
with Pool.create(name, capacity=1000) as pool:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    before = set(os.listdir("/proc/self/fd"))
    try:
        Pool.create(name + "-2")
    except PoolFullError as error:
        print(error)
    assert set(os.listdir("/proc/self/fd")) == before
    assert not os.path.exists(f"/dev/shm/shmpool.{name}-2")
    with Pool.attach(name) as other:
        refs = other.intern_many([b"%d" % number for number in range(1000)])
        assert pool.resolve_many(refs) == [b"%d" % number for number in range(1000)]
    assert pool.check() == []
"""


def test_a_limit_on_file_sizes_refuses_new_pools_by_name_and_hinders_no_others(pool_name: str) -> None:
    ended = independent(LIMITED, pool_name)

    assert ended.returncode == 0, ended.stderr
    assert "may make one of 1048576 (ulimit -f)" in ended.stdout
    assert "Nothing was changed" in ended.stdout


WATCHED = """
import ctypes, os
from shmpool import Pool
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(os.O_NONBLOCK)
assert watch >= 0 and libc.inotify_add_watch(watch, b"/dev/shm", 0x100 | 0x80) >= 0  # IN_CREATE, IN_MOVED_TO
with Pool.create("seen", stripe_count=2) as pool:
    pool_id = pool.constants.pool_id
events, names = os.read(watch, 65536), []
while events:
    size = int.from_bytes(events[12:16], "little")
    names.append(events[16 : 16 + size].rstrip(b"\\0").decode())
    events = events[16 + size :]
expected = ["shmpool.seen"] + [f"sem.shmpool-{pool_id:016x}-{stripe}" for stripe in range(2)]
assert names == expected, names
"""


def test_no_file_ever_has_a_name_that_a_killed_creators_heirs_do_not_know() -> None:
    skip_unless_it_can_be_had()

    ended = in_small_shm("-c", WATCHED)

    assert ended.returncode == 0, ended.stderr
