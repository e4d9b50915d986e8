"""What stands under a pool's name or its semaphores' and is not what it should be, and words that are whole and wrong."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from shmpool import Pool, PoolCorruptError, PoolError, PoolExistsError, PoolNotFoundError, PoolVersionError, TopicRef
from shmpool import segment as segments
from shmpool.arena import make_chunk
from shmpool.header import encode
from shmpool.layout import (
    ARENA_LIMIT_WORD,
    COUNT,
    EPOCH_CHECKS_WORD,
    EPOCH_WORD,
    LEDGER,
    STRIPE_WORDS,
    TABLE,
    VERSION,
    WORD_SIZE,
    seal,
)
from shmpool.ledger import row_word
from shmpool.lifetime import choose_constants
from shmpool.lock import semaphore_name, unlink_semaphores
from tests.unit.inside import store_of
from tests.unit.processes import Forked, in_child

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
NOBODY = 65534
VALUES = [b"value %d" % number for number in range(100)]


@pytest.fixture
def path(pool_name: str) -> Iterator[Path]:
    """Where the pool of that name is, or what a test puts there instead."""
    path = Path(segments.path_of(pool_name))
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def pool(pool_name: str) -> Iterator[Pool]:
    """A pool with values in it, whose bytes are put back before it goes."""
    with Pool.create(pool_name, stripe_count=1, capacity=1000, max_value_size=100) as made:
        made.intern_many(VALUES)
        words = store_of(made).segment.words
        before = words[: made.constants.geometry.tables_offset // WORD_SIZE].tolist()
        yield made
        if store_of(made).segment.fd >= 0:
            for word, value in enumerate(before):
                words[word] = value


def semaphores(pool: Pool) -> list[Path]:
    count = pool.constants.geometry.stripe_count
    return [Path("/dev/shm/sem." + semaphore_name(pool.constants.pool_id, stripe)[1:]) for stripe in range(count)]


# ---- the name


@ROOT_ONLY
def test_another_users_process_is_refused_and_changes_nothing(pool: Pool, path: Path) -> None:
    before = path.stat()

    def try_all() -> list[str]:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        said = []
        for method in (Pool.attach, Pool.open, Pool.unlink, Pool.create):
            try:
                method(pool.name)
            except PoolError as error:
                said.append(type(error).__name__)
        return said

    assert in_child(try_all) == ["PoolError", "PoolError", "PoolError", "PoolExistsError"]
    assert (path.stat().st_ino, path.stat().st_mode, path.stat().st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert pool.check() == []


@ROOT_ONLY
def test_pool_of_another_user_under_the_name_is_refused_and_left(pool_name: str, path: Path) -> None:
    def squat() -> int:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with Pool.create(pool_name, persistent=True, stripe_count=1) as theirs:
            return theirs.constants.pool_id

    pool_id = in_child(squat)
    before = path.read_bytes()

    for method in (Pool.attach, Pool.open, Pool.unlink):
        with pytest.raises(PoolError, match=f"belongs to user {NOBODY}"):
            method(pool_name)
    with pytest.raises(PoolExistsError):
        Pool.create(pool_name)
    assert (path.read_bytes(), path.stat().st_uid) == (before, NOBODY)
    unlink_semaphores(pool_id, 1)


@ROOT_ONLY
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFIFO])
def test_device_socket_or_pipe_under_the_name_is_refused_and_left(pool_name: str, path: Path, kind: int) -> None:
    try:
        os.mknod(path, kind | 0o600, os.makedev(1, 3))  # of a device: /dev/null's number
    except PermissionError:
        pytest.skip("this container lets nobody make devices")

    for method in (Pool.attach, Pool.open, Pool.unlink):
        with pytest.raises(PoolError, match="It was left as it is"):
            method(pool_name)

    assert stat.S_IFMT(path.lstat().st_mode) == kind


def test_pool_of_a_creator_that_died_before_it_was_whole_has_no_name_and_the_name_is_free(pool_name: str, path: Path) -> None:
    def die_in_the_middle(_: object) -> None:
        setattr(segments.Segment, "link", lambda _: os.kill(os.getpid(), signal.SIGKILL))  # noqa: B010 - a method
        Pool.create(pool_name)

    with Forked(die_in_the_middle) as child:
        assert child.wait() == -signal.SIGKILL

    assert not path.exists()
    with pytest.raises(PoolNotFoundError):
        Pool.attach(pool_name)
    Pool.create(pool_name).close()


def test_file_of_the_right_size_whose_magic_was_never_written_is_no_pool(pool_name: str, path: Path) -> None:
    """What a creator that works otherwise, and died, could leave."""
    constants = choose_constants(
        capacity=100, arena_size=None, stripe_count=1, max_value_size=100, insert_budget=None, reserve=0, process_count=4,
        persistent=False,
    )
    page = encode(constants)
    path.touch(mode=0o600)
    path.write_bytes(bytes(WORD_SIZE) + page[WORD_SIZE:])
    os.truncate(path, constants.geometry.total_size)

    for method in (Pool.attach, Pool.open, Pool.unlink):
        with pytest.raises(PoolCorruptError, match="no pool"):
            method(pool_name)


def test_pool_of_a_later_version_is_refused_by_name_and_left(pool_name: str, path: Path) -> None:
    with Pool.create(pool_name, persistent=True, stripe_count=1) as pool:
        pass
    with path.open("r+b") as file:
        file.seek(WORD_SIZE)
        file.write((VERSION + 1).to_bytes(WORD_SIZE, "little"))

    for method in (Pool.attach, Pool.open, Pool.unlink):
        with pytest.raises(PoolVersionError, match=f"format version {VERSION + 1}.*It was left as it is"):
            method(pool_name)
    assert all(semaphore.exists() for semaphore in semaphores(pool))
    unlink_semaphores(pool.constants.pool_id, 1)


def test_file_cut_short_while_a_process_is_attached_is_refused_to_others(pool: Pool, path: Path) -> None:
    """Whoever has it mapped is trapped when it touches what is gone: no program can be kept from that."""
    size = path.stat().st_size

    def cut_and_attach() -> str:
        os.truncate(path, size // 2)
        try:
            Pool.attach(pool.name)
        except PoolCorruptError as error:
            return str(error)
        finally:
            os.truncate(path, size)
        return ""

    assert "bytes long" in in_child(cut_and_attach)
    with suppress(PoolError):
        assert pool.lookup(VALUES[0]) is None or pool.check() == []


# ---- semaphores


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: os.truncate(path, 0), lambda path: os.truncate(path, 31)])
def test_missing_or_short_semaphore_is_made_anew_by_who_attaches(pool: Pool, spoil: Callable[[Path], object]) -> None:
    pool.close()
    with Pool.create(pool.name, persistent=True, stripe_count=1) as again:
        ref = again.intern(b"x")
    spoil(semaphores(again)[0])

    with Pool.attach(pool.name) as other:
        assert other.intern(b"x") == ref
        assert other.intern(b"y")
        assert semaphores(other)[0].stat().st_size == 32


@pytest.mark.parametrize("target", ["/dev/shm/" + "x" * 23, "/nowhere"])  # the first is as long as a semaphore's file
def test_link_under_a_semaphores_name_is_replaced_and_not_followed(pool: Pool, target: str) -> None:
    semaphore = semaphores(pool)[0]
    semaphore.unlink()
    semaphore.symlink_to(target)

    with Pool.attach(pool.name) as other:
        assert other.intern(b"new")

    assert stat.S_ISREG(semaphore.lstat().st_mode)
    assert not Path(target).exists()


def test_directory_under_a_semaphores_name_is_a_clear_error_and_left(pool: Pool) -> None:
    semaphore = semaphores(pool)[0]
    semaphore.unlink()
    semaphore.mkdir()

    with pytest.raises(PoolError, match="is a directory and no semaphore"):
        Pool.attach(pool.name)
    pool.close()

    assert semaphore.is_dir()
    semaphore.rmdir()


# ---- words that are whole, and wrong


def test_origin_moved_under_a_right_seal_is_refused_and_gives_no_ref_another_meaning(pool: Pool) -> None:
    words = store_of(pool).segment.words
    epoch, origin = store_of(pool).segment.read_epoch()
    first, second = sorted(map(int, pool.lookup_many(VALUES)))[:2]
    words[EPOCH_WORD] = seal(epoch, origin - (second - first))  # the first's ref would be the second's

    with pytest.raises(PoolCorruptError, match="epoch word is damaged"):
        Pool.attach(pool.name)

    words[EPOCH_WORD] = seal(epoch, origin)
    words[EPOCH_CHECKS_WORD + epoch % 2] ^= 1
    with pytest.raises(PoolCorruptError, match="epoch word is damaged"):
        Pool.attach(pool.name)


def test_header_of_another_geometry_with_its_checksum_right_is_refused_before_anything_is_written(pool: Pool, path: Path) -> None:
    """By its constants the process table would lie over somebody's records."""
    own, refs = pool.constants, pool.lookup_many(VALUES).tolist()
    with_fewer_rows = (replace(own.geometry, process_count=rows) for rows in range(1, own.geometry.process_count))
    arenas = ((fewer, own.geometry.total_size - fewer.arena_offset) for fewer in with_fewer_rows)
    geometry = next(replace(fewer, arena_size=size) for fewer, size in arenas if size % fewer.chunk_size == 0)
    assert geometry.total_size == own.geometry.total_size
    page = encode(replace(own, geometry=geometry))
    size = EPOCH_WORD * WORD_SIZE  # the constants and their checksum
    data = store_of(pool).segment.data
    honest, data[:size] = data[:size], page[:size]
    before = path.read_bytes()

    for method in (Pool.attach, Pool.unlink):
        with pytest.raises(PoolCorruptError, match="geometry or policy that it was written beside"):
            method(pool.name)

    assert path.read_bytes() == before
    assert pool.resolve_many(refs) == VALUES
    data[:size] = honest
    with Pool.attach(pool.name) as other:
        assert other.check() == []


def test_lost_table_word_is_an_error_and_the_table_is_not_started_over(pool: Pool) -> None:
    words, row = store_of(pool).segment.words, pool.constants.geometry.stripes_offset // WORD_SIZE
    before = words[row + TABLE]
    refs = pool.lookup_many(VALUES).tolist()
    words[row : row + STRIPE_WORDS] = memoryview(bytes(STRIPE_WORDS * WORD_SIZE)).cast("Q")

    with pytest.raises(PoolCorruptError, match="chunks of the arena and no table"):
        pool.intern(b"new")
    assert ["chunks of the arena and no table" in finding.what for finding in pool.check()] == [True]

    words[row + TABLE] = before
    with Pool.attach(pool.name) as other:
        assert other.lookup_many(VALUES).tolist() == refs


@pytest.mark.parametrize("region_and_bits", [0x00A, 0x109, 0x10A])
def test_table_word_that_names_memory_nobody_wrote_is_an_error_and_takes_no_memory(pool: Pool, region_and_bits: int) -> None:
    store = store_of(pool)
    row = pool.constants.geometry.stripes_offset // WORD_SIZE
    before = store.segment.memory_size
    store.segment.words[row + TABLE] = seal(store.stripes.epoch, region_and_bits)

    for use in (pool.lookup, pool.intern):
        with pytest.raises(PoolCorruptError, match="names no table"):
            use(b"new")
    assert pool.check()
    assert store.segment.memory_size == before


def test_limit_that_went_down_lets_no_record_be_written_over(pool: Pool) -> None:
    store, geometry = store_of(pool), pool.constants.geometry
    refs = pool.lookup_many(VALUES).tolist()
    store.segment.words[ARENA_LIMIT_WORD] = seal(store.stripes.epoch, 0)

    with Pool.attach(pool.name) as other:
        for number in range(3):
            with pytest.raises(PoolCorruptError):
                other.intern(b"new %d" % number)
        assert other.check()

    store.segment.words[ARENA_LIMIT_WORD] = seal(store.stripes.epoch, geometry.chunk_size)
    with Pool.attach(pool.name) as other:
        assert other.resolve_many(refs) == VALUES


def test_chunk_beyond_a_limit_that_went_down_is_not_taken_from_its_owner(pool_name: str) -> None:
    with Pool.create(pool_name, stripe_count=2, capacity=1000, max_value_size=1000) as pool:
        store, geometry = store_of(pool), pool.constants.geometry
        pool.intern_many(VALUES)
        refs = {value: int(ref) for ref, value in pool}
        words, last = store.segment.words, geometry.chunks_offset // WORD_SIZE + 1
        limit, owner = words[ARENA_LIMIT_WORD], words[last]
        words[ARENA_LIMIT_WORD] = seal(store.stripes.epoch, geometry.chunk_size)

        for number in range(40):  # of either stripe: one finds its chunk gone, the other needs its next one
            with suppress(PoolCorruptError):
                pool.intern(b"%d" % number * 500)

        assert words[last] == owner
        words[ARENA_LIMIT_WORD] = limit
        assert {value: pool.lookup(value) for value in VALUES} == refs


@pytest.mark.parametrize("used", [0, 8, 48, 100, 1000])
def test_chunk_that_went_down_lets_no_ref_get_another_value(pool: Pool, used: int) -> None:
    store = store_of(pool)
    refs = pool.lookup_many(VALUES).tolist()
    chunk = pool.constants.geometry.chunks_offset // WORD_SIZE
    store.segment.words[chunk] = make_chunk(used, 0, store.stripes.epoch)

    with suppress(PoolCorruptError):
        pool.intern_many([b"of another size, new %d" % number for number in range(50)])

    with Pool.attach(pool.name) as other:
        for ref, value in zip(refs, VALUES, strict=True):
            with suppress(PoolError):
                assert other.resolve(TopicRef(ref)) == value
        assert other.check()


def test_chunk_used_to_where_no_record_can_end_takes_no_insert(pool: Pool) -> None:
    store = store_of(pool)
    words, chunk = store.segment.words, pool.constants.geometry.chunks_offset // WORD_SIZE
    before = words[chunk]
    words[chunk] += 5 << 16

    with pytest.raises(PoolCorruptError, match="is not its own"):
        pool.intern(b"new")

    words[chunk] = before
    assert pool.check() == []


def test_count_beyond_reason_is_an_error_of_ours(pool: Pool) -> None:
    row = pool.constants.geometry.stripes_offset // WORD_SIZE
    store_of(pool).segment.words[row + COUNT] = (1 << 64) - 1

    with pytest.raises(PoolCorruptError, match="more than it can hold"):
        len(pool)
    assert pool.check()


def test_top_and_iteration_hand_out_no_damaged_value(pool: Pool) -> None:
    store, ref = store_of(pool), pool.intern(VALUES[7])
    place = pool.constants.geometry.arena_offset + ref - store.stripes.origin + 16
    store.segment.data[place : place + 1] = b"V"

    with pytest.raises(PoolCorruptError, match="damaged"):
        pool.top(1000)
    with pytest.raises(PoolCorruptError, match="damaged"):
        list(pool)


def test_ledger_word_that_is_damaged_is_reported(pool: Pool) -> None:
    segment = store_of(pool).segment
    row = row_word(segment, -1) + LEDGER
    segment.words[row] = 7

    assert [finding.where for finding in pool.check()] == ["the totals"]
