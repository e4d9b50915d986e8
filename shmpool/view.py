"""View: a pool's bytes as they were read, for who wants to look and must not touch.

Guarantees:
- The file is opened read-only and read with `pread`, never mapped: no store can reach it, no hole becomes memory, and a file that
  was cut short is no SIGBUS. No row, no lock and no turnstile is taken and nothing is counted, so it waits for nobody and works
  on a pool whose every process is dead or stopped in the middle of whatever it did.
- What is read lands in private memory of this process, laid out as the segment is. So all that reads a segment reads a view,
  and what recovery would do to a stripe can be done to the copy.

A copy of a pool in use is not of one instant. Rows are read before tables and tables before records, and both only ever grow:
so whatever the rows speak of is there. Who needs one stripe as it was at one instant uses `View.reload_stripe`.
"""

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from shmpool import segment as segments
from shmpool.errors import PoolCorruptError, PoolError, PoolNotFoundError, PoolVersionError
from shmpool.header import Constants, decode, read_constants
from shmpool.layout import (
    CHUNK_EPOCH_SHIFT,
    CHUNK_OWNER_MASK,
    EPOCH_WORD,
    HEADER,
    INTENT,
    MAGIC,
    PAGE_SIZE,
    STRIPE_WORDS,
    WORD_SIZE,
)
from shmpool.segment import Segment, closer

_MAP_NORESERVE: Final = 0x4000  # the copy is as sparse as the segment, and may be larger than the host's memory
_STEP: Final = 1 << 20  # bytes of one pread
_ODD_OPEN_ERRORS: Final = {errno.ELOOP: "a symbolic link", errno.ENXIO: "no regular file", errno.EISDIR: "a directory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What can be said of a pool's file whatever it holds. Sizes in bytes.

    `version` and `fingerprint` are as the file says, None where it is no pool at all. `constants` are None where they cannot
    be believed. `is_readable`: laid out as this shmpool lays pools out. `problems` say what is wrong, in sentences.
    """

    name: str
    path: str
    uid: int
    mode: int
    file_size: int
    memory_size: int
    version: int | None
    fingerprint: int | None
    constants: Constants | None
    is_readable: bool
    problems: tuple[str, ...]


class View(Segment):
    """A private copy of a segment, zero until it is loaded. `fd` is a read-only description: no lock can be taken on it, and
    those of others can be asked for."""

    def __init__(self, name: str, fd: int, constants: Constants) -> None:  # `fd` stays the caller's
        self.pool_name = name
        self.constants = constants
        self.fd = fd
        self._closing = closer([])
        self._name = "/" + segments.PREFIX + name
        self._fd = -1
        self._size = constants.geometry.total_size
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._mmap = self.data = mmap.mmap(-1, self._size, flags=flags)
        except OSError as error:
            raise PoolError(
                f"pool {name!r}: no {self._size} bytes of address space for a copy ({error.strerror}). Nothing was changed."
            ) from None
        self._buf = memoryview(self.data)
        self.words = self._buf.cast("Q")

    def commit(self, offset: int, size: int) -> None:
        """Nothing to be done: private memory is there when it is touched."""

    def load(self, start: int, end: int) -> None:
        """Copy what the file has between two offsets. Holes, and what is beyond its end, stay as they are in the copy: zero."""
        while start < end:
            try:
                start = max(start, os.lseek(self.fd, start, os.SEEK_DATA) & -PAGE_SIZE)
                hole = min(os.lseek(self.fd, start, os.SEEK_HOLE), end)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # nothing but a hole up to the end
                raise
            start = self._copy(start, hole)

    def _copy(self, start: int, end: int) -> int:
        while start < end:
            count = os.preadv(self.fd, [self._buf[start : min(start + _STEP, end)]], start)
            if not count:
                return end  # it was cut short meanwhile
            start += count
        return start

    def load_rows(self) -> None:
        """Header, stripe rows, process rows and chunk table: all that `ls` needs."""
        self.load(0, self.constants.geometry.tables_offset)

    def load_topics(self) -> None:
        """Tables and records; after the rows."""
        geometry = self.constants.geometry
        self.load(geometry.tables_offset, geometry.ledgers_offset)
        self.load(geometry.arena_offset, geometry.total_size)

    def load_holds(self) -> None:
        """Ledgers of holds, where there are any; after the rows."""
        self.load(self.constants.geometry.holds_offset, self.constants.geometry.arena_offset)

    def load_ledgers(self) -> None:
        """Ledgers of uses and holds; after the rows."""
        self.load(self.constants.geometry.ledgers_offset, self.constants.geometry.arena_offset)

    def reload_stripe(self, stripe: int, epoch: int) -> bool:
        """Copy one stripe anew: its row, the chunk table, its tables and its records. False if it changed meanwhile, or somebody
        is or died in the middle of an insert: then the copy may be of no one instant."""
        geometry = self.constants.geometry
        row = geometry.stripes_offset + stripe * STRIPE_WORDS * WORD_SIZE
        self.load(0, geometry.totals_offset)
        before = (self.words[EPOCH_WORD], self.data[row : row + STRIPE_WORDS * WORD_SIZE])
        tables = geometry.tables_offset + stripe * geometry.stripe_tables_size
        self.load(geometry.chunks_offset, geometry.tables_offset)
        self.load(tables, tables + geometry.stripe_tables_size)
        if geometry.reuses:
            self.load(geometry.totals_offset, geometry.chunks_offset)
            self.load(geometry.holds_offset, geometry.arena_offset)
        states = np.frombuffer(self.words, np.uint64, geometry.chunk_count, geometry.chunks_offset)
        owned = (states >> np.uint64(CHUNK_EPOCH_SHIFT) == epoch) & (states & np.uint64(CHUNK_OWNER_MASK) == stripe + 1)
        for chunk in np.flatnonzero(owned).tolist():
            start = geometry.arena_offset + chunk * geometry.chunk_size
            self.load(start, start + geometry.chunk_size)
        after = (os.pread(self.fd, WORD_SIZE, EPOCH_WORD * WORD_SIZE), os.pread(self.fd, STRIPE_WORDS * WORD_SIZE, row))
        intent = self.words[row // WORD_SIZE + INTENT]
        return not intent and before == (int.from_bytes(after[0], "little"), after[1])


@contextmanager
def open_view(name: str) -> Iterator[tuple[Header, View | None]]:
    """The header of the pool of that name, and a view of the rest unless its layout is another shmpool's or cannot be known.

    Raises PoolNotFoundError; PoolError for what is no file or may not be read; ValueError for a name that cannot be a pool's.
    """
    opened: list[int] = []
    closing = closer(opened)
    try:
        _open(name, opened)
        header = _read_header(name, opened[0])
        view = View(name, opened[0], header.constants) if header.constants and header.is_readable else None
        try:
            yield header, view
        finally:
            if view:
                view.close()
    finally:
        any(closing)


def _open(name: str, opened: list[int]) -> None:
    path = segments.path_of(name)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            opened.append(os.open(path, flags | os.O_NOATIME))
        except PermissionError:  # O_NOATIME is for the owner
            opened.append(os.open(path, flags))
    except FileNotFoundError:
        raise PoolNotFoundError(f"pool {name!r}: there is no {path}.") from None
    except PermissionError:
        raise PoolError(f"pool {name!r}: {path} is another user's and may not be read.") from None
    except OSError as error:
        if error.errno not in _ODD_OPEN_ERRORS:
            raise
        raise PoolError(f"pool {name!r}: {path} is {_ODD_OPEN_ERRORS[error.errno]} and no pool.") from None
    if not stat.S_ISREG(os.fstat(opened[0]).st_mode):
        raise PoolError(f"pool {name!r}: {path} is no regular file and no pool.")


def _read_header(name: str, fd: int) -> Header:
    state = os.fstat(fd)
    page = os.pread(fd, PAGE_SIZE, 0)
    problems = []
    if stat.S_IMODE(state.st_mode) != segments.MODE:
        problems.append(
            f"mode {stat.S_IMODE(state.st_mode):04o}, and a pool's is {segments.MODE:04o}: others may have written to it, and no "
            "process can attach"
        )
    constants, is_readable = None, True
    try:
        constants = decode(page, state.st_size, f"pool {name!r}")
    except PoolVersionError as error:
        problems.append(str(error))
        is_readable = False
    except PoolCorruptError as error:
        problems.append(str(error))
    page += bytes(PAGE_SIZE - len(page))
    words = np.frombuffer(page, HEADER, 1)[0]
    is_pool = words["magic"] == MAGIC
    return Header(
        name=name,
        path=segments.path_of(name),
        uid=state.st_uid,
        mode=stat.S_IMODE(state.st_mode),
        file_size=state.st_size,
        memory_size=state.st_blocks * 512,
        version=int(words["version"]) if is_pool else None,
        fingerprint=int(words["fingerprint"]) if is_pool else None,
        constants=constants or _credible_constants(page),
        is_readable=is_readable,
        problems=tuple(problems),
    )


def _credible_constants(page: bytes) -> Constants | None:
    """The constants of a header that failed verification, if they still agree with each other.

    Every option that places anything goes into the total size, which the header states too: so one damaged word among them, or a
    header of another layout, does not pass.
    """
    try:
        constants = read_constants(page)
    except ValueError:
        return None
    said = int(np.frombuffer(page, HEADER, 1)[0]["total_size"])
    return constants if constants.geometry.total_size == said else None
