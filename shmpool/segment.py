"""Segment: the pool's shared memory, made without a name, committed before it is touched, unlinked by nobody's exit.

Guarantees:
- A segment has a name only once it is whole: it is made with O_TMPFILE and linked to its name at the end.
- No page is touched before `commit` reserved it. A full /dev/shm is then a PoolFullError here, not a SIGBUS at some store.
- The standard library's resource tracker never hears of it. `SharedMemory.__init__` would register every attachment, and
  then any process that merely attached unlinks the segment when it exits (CPython issue 82300, before 3.13); a failed attach
  can unlink even with `track=False` (issue 153279). So it is not called, and `unlink` is not inherited either.

This module alone knows SharedMemory and the names in /dev/shm.
"""

import ctypes
import errno
import mmap
import os
import re
import resource
import stat
import weakref
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from typing import Final, NoReturn

from shmpool.errors import PoolCorruptError, PoolError, PoolExistsError, PoolFullError, PoolNotFoundError
from shmpool.header import Constants, decode, encode, epoch_check, verify_epoch
from shmpool.layout import EPOCH_CHECKS_WORD, EPOCH_WORD, MAGIC, PAGE_SIZE, seal, unseal

SHM_DIR: Final = "/dev/shm"
PREFIX: Final = "shmpool."
_MAP_FIXED: Final = 0x10
MODE: Final = 0o600
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,200}", re.ASCII)
_NO_MEMORY: Final = frozenset((errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG))


class Segment(SharedMemory):
    """One mapped segment.

    `words` is the whole of it as 64-bit words and `data` the same as an mmap (whose slices are bytes, and cheaper than a
    memoryview's). `fd` is a second open file description of the same file that is never mapped: locks are taken on it,
    because a mapping would pin its description, and a forked child would keep a dead parent's locks for ever.
    """

    words: memoryview
    data: mmap.mmap

    def __init__(self, name: str, fd: int, constants: Constants) -> None:  # `fd` stays the caller's
        self.pool_name = name
        self.constants = constants
        self.fd = -1
        opened: list[int] = []
        self._closing = closer(opened)
        _segments.add(self)
        # The fields that SharedMemory's own methods (buf, name, size, close, __repr__) use.
        self._name = "/" + PREFIX + name
        self._fd = -1
        self._size = constants.geometry.total_size
        try:
            reopen(fd, opened)
            self.fd = opened[0]
            self._mmap = self.data = mmap.mmap(fd, self._size)
            self._buf = memoryview(self.data)
            self.words = self._buf.cast("Q")
        except BaseException:
            self._close_fd()
            raise

    def __del__(self) -> None:
        if hasattr(self, "words"):  # else __init__ raised, and closed what it had opened
            self.close()

    @property
    def path(self) -> str:
        return path_of(self.pool_name)

    def commit(self, offset: int, size: int) -> None:
        """Make sure that memory stands behind the bytes from `offset` on, so that touching them cannot fail.

        Raises PoolFullError, with nothing changed, where the host has none left.
        """
        start = offset & -PAGE_SIZE
        try:
            os.posix_fallocate(self.fd, start, offset + size - start)
        except OSError as error:
            if error.errno not in _NO_MEMORY:
                raise
            self._raise_full(offset + size - start, error)

    def is_written(self, offset: int, size: int) -> bool:
        """Whether every page there was written to: to read one that has no memory takes some, or traps where there is none left.
        Costs a system call, about 1 us. Committed pages that nobody has written yet count as not written."""
        try:
            return os.lseek(self.fd, offset, os.SEEK_HOLE) >= offset + size
        except OSError as error:
            if error.errno == errno.ENXIO:  # beyond the file's end
                return False
            if error.errno == errno.EBADF:
                raise ValueError(f"pool {self.pool_name!r} was closed") from None  # as reading its words says
            raise  # a signal handler's, say a TimeoutError

    def _raise_full(self, needed: int, error: OSError) -> NoReturn:
        state = os.fstatvfs(self.fd)
        raise PoolFullError(
            f"pool {self.pool_name!r}: needs {needed} more bytes of {SHM_DIR}, which has {state.f_bavail * state.f_frsize} "
            f"free ({error.strerror}). Nothing was changed and everything in the pool stays usable. Free memory there or "
            "give the host (or container: --shm-size) more, then try again."
        ) from None

    def read_sealed(self, word: int, what: str) -> tuple[int, int]:
        """The epoch and value of a sealed word; `what` names it in the PoolCorruptError that a damaged one raises."""
        state = self.words[word]
        content = unseal(state)
        if content is None:
            self._raise_damaged(what, state)
        return content

    def _raise_damaged(self, what: str, state: int) -> NoReturn:
        raise PoolCorruptError(
            f"pool {self.pool_name!r}: {what} is damaged ({state:#018x}). Nothing was changed. Make the pool anew."
        )

    def read_epoch(self) -> tuple[int, int]:
        """1 + the count of resets, and the origin of refs. Raises PoolCorruptError unless they are what was written."""
        epoch, origin = self.read_sealed(EPOCH_WORD, "the epoch word")
        if self.words[EPOCH_CHECKS_WORD + epoch % 2] != epoch_check(self.constants, self.words[EPOCH_WORD]):
            self._raise_damaged("the epoch word", self.words[EPOCH_WORD])
        return epoch, origin

    def write_epoch(self, epoch: int, origin: int) -> None:
        """Commit a new epoch by one store; the check that it needs was stored before, and the one before it keeps its own."""
        word = seal(epoch, origin)
        self.words[EPOCH_CHECKS_WORD + epoch % 2] = epoch_check(self.constants, word)
        self.words[EPOCH_WORD] = word

    def link(self) -> None:
        """Give the finished segment its name. Raises PoolExistsError where the name is taken, whoever took it."""
        try:
            # src_dir_fd, otherwise unused, is what makes os.link follow /proc's link (linkat with AT_SYMLINK_FOLLOW).
            os.link(f"/proc/self/fd/{self.fd}", self.path, src_dir_fd=self.fd, follow_symlinks=True)
        except FileExistsError:
            raise PoolExistsError(
                f"pool {self.pool_name!r}: {self.path} exists already and was not touched. Attach to it, choose another "
                "name, or unlink it first."
            ) from None

    def is_linked(self) -> bool:
        """Whether the name still leads to this segment. True means something only under the gate."""
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        own = os.fstat(self.fd)
        return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)

    def unlink(self) -> None:
        """Remove the name if it still leads to this segment. Only for the holder of the gate."""
        if self.is_linked():
            os.unlink(self.path)

    @property
    def memory_size(self) -> int:
        """Bytes of real memory behind the segment."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        """Unmap and close; again is harmless. A batch still running in another thread keeps the mapping."""
        self._close_fd()
        try:
            self.words.release()
            super().close()
        except BufferError:
            return  # the last view unmaps it

    def _close_fd(self) -> None:
        self.fd = -1
        any(self._closing)

    def disown(self) -> None:
        """In a forked child, for a segment that some thread of the parent was just attaching: the locks on its description are
        the parent's, and must not last as long as the child."""
        self._close_fd()

    def replace_fd(self, opened: list[int]) -> None:
        """Lock on another description from now on, the one in `opened`, and close the one so far. Again is harmless."""
        if self.fd != opened[0]:
            self._closing, before = closer(opened), self._closing
            self.fd = opened[0]
            any(before)

    def make_private(self) -> None:
        """Turn the mapping into a copy that only this process sees, in place: whoever still holds a view of it can neither
        change the pool nor crash. For a forked child that was inside an operation, and will go on with it."""
        anchor = ctypes.c_char.from_buffer(self.data)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        address, access = ctypes.addressof(anchor), mmap.PROT_READ | mmap.PROT_WRITE
        if libc.mmap(address, self._size, access, mmap.MAP_PRIVATE | _MAP_FIXED, self.fd, 0) != address:
            os._exit(70)  # EX_SOFTWARE: it would go on writing without the lock

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Segment is not picklable; pickle the Pool, which attaches again")


def all_segments() -> list[Segment]:
    """Every segment that there is in this process, those half made included."""
    return list(_segments)


_segments: "weakref.WeakSet[Segment]" = weakref.WeakSet()


def create(name: str, constants: Constants) -> Segment:
    """A new segment without a name, its header and tables of rows committed and zero but for the constants.

    Raises PoolFullError where memory for those is missing, ValueError for a name that cannot be one.
    """
    validate_name(name)
    opened: list[int] = []
    closing = closer(opened)
    try:
        _open(SHM_DIR, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, opened)
        os.fchmod(opened[0], MODE)  # whatever the process's umask made of it
        os.ftruncate(opened[0], constants.geometry.total_size)
        segment = Segment(name, opened[0], constants)
    except OSError as error:
        if error.errno not in _NO_MEMORY:
            raise
        _raise_no_file(name, constants.geometry.total_size, error)
    finally:
        any(closing)
    try:
        segment.commit(0, constants.geometry.chunks_offset)
        page = encode(constants)
        segment.data[8 : len(page)] = page[8:]
        segment.words[0] = MAGIC
    except BaseException:
        segment.close()
        raise
    return segment


def _raise_no_file(name: str, size: int, error: OSError) -> NoReturn:
    if error.errno == errno.ENOSPC:
        free = os.statvfs(SHM_DIR).f_favail
        why = f"it needs 1 more file in {SHM_DIR}, where {free} are free. Nothing was changed. Remove some"
    elif error.errno == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        why = f"it needs a file of {size} bytes (reserved, not taken), and this process may make one of {limit} (ulimit -f)"
        why += ". Nothing was changed. Raise that limit, or ask for a smaller capacity or arena_size"
    else:
        why = f"its {size} bytes (reserved, not taken) could not be mapped: {error.strerror}. Nothing was changed. Ask for fewer"
    raise PoolFullError(f"pool {name!r}: {why}.") from None


def attach(name: str) -> Segment:
    """The segment of that name, verified. Reads with `pread` until everything is, so that nothing is committed or trapped.

    Raises PoolNotFoundError, PoolCorruptError, PoolVersionError; the file is never changed.
    """
    opened: list[int] = []
    closing = closer(opened)
    try:
        _open_named(name, opened)
        page, size = os.pread(opened[0], PAGE_SIZE, 0), os.fstat(opened[0]).st_size
        constants = decode(page, size, f"pool {name!r}")
        verify_epoch(page, constants, f"pool {name!r}")
        return Segment(name, opened[0], constants)
    finally:
        any(closing)


def _open_named(name: str, opened: list[int]) -> None:
    """Open the file of that name, and check that it is a private regular file of this user."""
    path = path_of(name)
    try:
        _open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, opened)
    except FileNotFoundError:
        raise PoolNotFoundError(f"pool {name!r}: there is no {path}. Create it, or open it with Pool.open.") from None
    except PermissionError:
        raise PoolError(f"pool {name!r}: {path} belongs to another user. It was left as it is.") from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, None):  # None: a signal handler's TimeoutError
            raise
        raise PoolCorruptError(f"pool {name!r}: {path} is not a pool ({error.strerror}). It was left as it is.") from None
    _check_file(name, path, os.fstat(opened[0]))


def _check_file(name: str, path: str, state: os.stat_result) -> None:
    kept = "It was left as it is."
    if not stat.S_ISREG(state.st_mode):
        raise PoolCorruptError(f"pool {name!r}: {path} is not a regular file. {kept}")
    if state.st_uid != os.geteuid():
        raise PoolError(f"pool {name!r}: {path} belongs to user {state.st_uid}, not to {os.geteuid()}. {kept}")
    if stat.S_IMODE(state.st_mode) != MODE:
        raise PoolCorruptError(
            f"pool {name!r}: {path} has mode {stat.S_IMODE(state.st_mode):04o}, and a pool's is {MODE:04o}: others may have "
            f"written to it. {kept}"
        )


def reopen(fd: int, opened: list[int]) -> None:
    """Append to `opened` a new open file description of the same file, which may have no name."""
    _open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC, opened)


# A signal handler's exception can arrive after any call returns, and on the way into any function. A descriptor that is a mere
# number then would be lost. So one C call opens it and puts it into a list, and one C call closes it: any() of what `closer`
# made beforehand.


def _open(path: str, flags: int, opened: list[int]) -> None:
    opened.extend(map(os.open, (path,), (flags,), (MODE,)))


def closer(opened: list[int]) -> Iterator[None]:
    """What closes, once it is run through, the descriptors that are in the list by then. To be run through again is harmless: it
    has come to its end, and nobody else's descriptor of the same number is closed."""
    return map(os.close, opened)


def own_names() -> list[str]:
    """Names of this user's files that are named as pools are, whatever they hold."""
    return [name for name, uid in all_names() if uid == os.geteuid() and _NAME.fullmatch(name)]


def all_names() -> list[tuple[str, int]]:
    """Names and owners of everybody's files that begin as a pool's does. The rest of a name may be anything: peers chose it."""
    names: list[tuple[str, int]] = []
    with os.scandir(SHM_DIR) as entries:
        for entry in entries:
            name = entry.name.removeprefix(PREFIX)
            if name != entry.name:
                with suppress(FileNotFoundError):  # it went meanwhile
                    names.append((name, entry.stat(follow_symlinks=False).st_uid))
    return sorted(names)


def path_of(name: str) -> str:
    """Where the segment of that pool is. Raises ValueError for a name that cannot be one."""
    validate_name(name)
    return f"{SHM_DIR}/{PREFIX}{name}"


def validate_name(name: str) -> None:
    """Raises ValueError (TypeError for another type) unless `name` can be a pool's."""
    if not isinstance(name, str):
        raise TypeError(f"a pool's name is a str, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(f"a pool's name is 1 to 200 of the characters A-Z a-z 0-9 _ . -, not {name!r}")
