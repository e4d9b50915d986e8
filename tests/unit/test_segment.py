"""Claims about the shared memory: what is refused is left as it is, no exit removes anything, and a full host is an error."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmpool import Pool, PoolCorruptError, PoolError, PoolExistsError, PoolVersionError, lifetime
from shmpool import segment as segments
from shmpool.header import Constants
from shmpool.layout import HEADER, PAGE_SIZE
from tests.unit.inside import store_of
from tests.unit.processes import in_child, independent

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")


@pytest.fixture
def path(pool_name: str) -> Iterator[Path]:
    """Where the pool of that name is, or what a test puts there instead."""
    path = Path(segments.path_of(pool_name))
    yield path
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)


@pytest.fixture
def persistent(pool_name: str) -> Iterator[str]:
    """A pool that nobody is attached to, which holds b"x"."""
    with Pool.create(pool_name, persistent=True) as pool:
        pool.intern(b"x")
    yield pool_name
    for semaphore in Path("/dev/shm").glob(f"sem.shmpool-{pool.constants.pool_id:016x}-*"):
        semaphore.unlink(missing_ok=True)


def small_pool() -> Constants:
    return lifetime.choose_constants(
        capacity=100, arena_size=None, stripe_count=1, max_value_size=100, insert_budget=None, reserve=0, process_count=4,
        persistent=False,
    )


def assert_refused_everywhere(name: str, error: type[PoolError], reason: str) -> None:
    for method in (Pool.attach, Pool.open, Pool.unlink):
        with pytest.raises(error, match=reason):
            method(name)


# ---- what is refused and left


def test_name_that_another_file_has_is_refused_and_the_file_left(pool_name: str, path: Path) -> None:
    path.write_bytes(b"somebody's notes")
    path.chmod(0o600)

    assert_refused_everywhere(pool_name, PoolCorruptError, "It was left as it is")
    with pytest.raises(PoolExistsError, match="was not touched"):
        Pool.create(pool_name)

    assert path.read_bytes() == b"somebody's notes"


@pytest.mark.parametrize("size", [0, 8, PAGE_SIZE, 10 * PAGE_SIZE])
def test_file_of_zeros_is_no_pool(pool_name: str, path: Path, size: int) -> None:
    path.write_bytes(bytes(size))
    path.chmod(0o600)

    assert_refused_everywhere(pool_name, PoolCorruptError, "too few for a pool|no pool")


def test_symlink_is_refused_and_what_it_leads_to_left(pool_name: str, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    path.symlink_to(target)

    assert_refused_everywhere(pool_name, PoolCorruptError, "is not a pool")
    with pytest.raises(PoolExistsError):
        Pool.create(pool_name)

    assert path.readlink() == target
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "fifo"])
def test_what_is_no_regular_file_is_refused_without_waiting(pool_name: str, path: Path, make: Callable[[Path], None]) -> None:
    make(path)

    assert_refused_everywhere(pool_name, PoolCorruptError, "is not a")

    assert path.exists()


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o606, 0o700, 0o400])
def test_pool_that_others_may_reach_is_refused_until_its_mode_is_right_again(persistent: str, path: Path, mode: int) -> None:
    path.chmod(mode)

    assert_refused_everywhere(persistent, PoolError, "has mode|another user")

    path.chmod(0o600)
    with Pool.attach(persistent) as pool:
        assert pool.lookup(b"x")
        assert pool.check() == []


@ROOT_ONLY
def test_another_users_pool_is_refused_and_left(persistent: str, path: Path) -> None:
    os.chown(path, 12345, -1)

    assert_refused_everywhere(persistent, PoolError, "belongs to user 12345")

    assert path.stat().st_uid == 12345


@pytest.mark.parametrize("change", [-PAGE_SIZE, -1, 1, PAGE_SIZE])
def test_pool_of_another_size_than_its_header_says_is_refused(persistent: str, path: Path, change: int) -> None:
    size = path.stat().st_size
    os.truncate(path, size + change)

    assert_refused_everywhere(persistent, PoolCorruptError, "bytes long")

    assert path.stat().st_size == size + change


@pytest.mark.parametrize("field", [name for name in HEADER.names or () if not name.startswith("reserved") and name != "fold"])
def test_changed_header_word_is_refused(persistent: str, path: Path, field: str) -> None:
    assert HEADER.fields is not None
    with path.open("r+b") as file:
        before = file.read(PAGE_SIZE)
        place = HEADER.fields[field][1] + (8 if field == "epoch_checks" else 0)  # of the two, the one that a new pool has
        file.seek(place)
        file.write(bytes([before[place] ^ 4]))

    if field in {"epoch", "epoch_checks", "arena_limit"}:  # no constants: judged where they are used
        with pytest.raises(PoolCorruptError):
            Pool.attach(persistent).intern(b"new")
    else:
        expected = PoolVersionError if field in {"version", "fingerprint"} else PoolCorruptError
        assert_refused_everywhere(persistent, expected, "It was left as it is")

    assert path.stat().st_nlink == 1


# ---- a name and its file


def test_segment_has_no_name_until_it_is_linked(pool_name: str, path: Path) -> None:
    segment = segments.create(pool_name, small_pool())

    assert not path.exists()
    assert not segment.is_linked()
    segment.link()
    assert path.exists()
    assert segment.is_linked()

    segment.unlink()
    segment.close()
    assert not path.exists()


def test_unlinking_leaves_a_successor_of_the_same_name(pool_name: str, path: Path) -> None:
    one, two = segments.create(pool_name, small_pool()), segments.create(pool_name, small_pool())
    one.link()
    with pytest.raises(PoolExistsError):
        two.link()
    path.unlink()
    two.link()

    one.unlink()

    assert not one.is_linked()
    assert two.is_linked()
    two.unlink()
    one.close()
    two.close()


def test_pool_is_private_whatever_the_umask(pool_name: str, path: Path) -> None:
    def mode_under(umask: int) -> int:
        os.umask(umask)
        with Pool.create(pool_name):
            return stat.S_IMODE(path.stat().st_mode)

    assert in_child(lambda: mode_under(0)) == in_child(lambda: mode_under(0o777)) == 0o600


def test_empty_default_pool_takes_little_memory_and_reserves_much(pool_name: str, path: Path) -> None:
    with Pool.create(pool_name):
        assert path.stat().st_size > 64 << 20
        assert path.stat().st_blocks * 512 <= 512 << 10


def test_committed_bytes_have_memory_behind_them_and_no_others(pool_name: str) -> None:
    segment = segments.create(pool_name, small_pool())
    before = segment.memory_size

    segment.commit(segment.constants.geometry.arena_offset + 100, 5000)

    assert segment.memory_size == before + 2 * PAGE_SIZE
    segment.close()


def test_closing_again_does_no_harm_and_keeps_no_descriptor(pool_name: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    segment = segments.create(pool_name, small_pool())

    segment.close()
    segment.close()

    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_again_closes_nobody_elses_descriptor_of_the_same_number(pool_name: str) -> None:
    segment = segments.create(pool_name, small_pool())
    number = segment.fd
    segment.close()
    spare = os.open(os.devnull, os.O_RDONLY)
    os.dup2(spare, number, inheritable=False)

    segment.close()

    assert os.fstat(number).st_rdev == os.stat(os.devnull).st_rdev
    os.close(spare)
    if number != spare:
        os.close(number)


# ---- exits of processes


@pytest.mark.parametrize("end", ["pass", "pool.close()", "import os; os._exit(0)", "raise SystemExit(0)"])
def test_exit_of_an_independent_process_that_attached_removes_nothing_and_warns_of_nothing(
    persistent: str, path: Path, end: str
) -> None:
    code = f"import sys; from shmpool import Pool; pool = Pool.attach(sys.argv[1]); assert pool.lookup(b'x'); {end}"

    for _ in range(2):
        ended = independent(code, persistent)
        assert (ended.returncode, ended.stderr) == (0, "")

    assert path.exists()
    with Pool.attach(persistent) as pool:
        assert pool.lookup(b"x")
        assert pool.check() == []


def test_failed_attach_of_an_independent_process_removes_nothing(pool_name: str, path: Path) -> None:
    path.write_bytes(bytes(PAGE_SIZE))
    path.chmod(0o600)
    code = """
import sys
from shmpool import Pool, PoolCorruptError
try:
    Pool.attach(sys.argv[1])
except PoolCorruptError:
    print("ok")
"""

    ended = independent(code, pool_name)

    assert (ended.stdout, ended.stderr) == ("ok\n", "")
    assert path.exists()


def test_no_resource_tracker_is_started(pool_name: str) -> None:
    code = """
import sys
from multiprocessing import resource_tracker
from shmpool import Pool
with Pool.create(sys.argv[1]) as pool:
    pool.intern(b"x")
print(resource_tracker._resource_tracker._pid)
"""

    assert independent(code, pool_name).stdout == "None\n"


@pytest.mark.parametrize("error", [TimeoutError("a handler's"), OSError(errno.EIO, "a disk's")])
def test_what_a_handler_raises_while_a_table_is_looked_for_is_not_taken_for_a_closed_pool(
    pool_name: str, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def interrupted(*_: object) -> int:
        raise error

    with Pool.create(pool_name) as pool:
        segment = store_of(pool).segment
        with monkeypatch.context() as patch:
            patch.setattr(os, "lseek", interrupted)
            with pytest.raises(type(error), match="a "):
                segment.is_written(0, 8)
        assert segment.is_written(0, 8)

    with pytest.raises(ValueError, match="closed"):
        segment.is_written(0, 8)
