"""Locks that outlive no process: bytes of the segment's file, and a semaphore turnstile in front of a stripe's byte.

A POSIX semaphore has no owner: `kill -9` of its holder leaves it at 0 for ever, and an owner word beside it cannot close the gap
between taking the one and writing the other. So the truth is an open-file-description lock on one byte, which the kernel
drops when the holder's descriptors close, in any pid namespace. The semaphore only makes waiting fair and cheap:
nobody is admitted by it alone, a surplus token is harmless and a lost one costs a wait of TURNSTILE_S.

Guarantees:
- At most one thread of one process is inside a lock; a killed holder's lock is free once the kernel has reaped its files.
- A stopped holder (SIGSTOP) keeps its lock: nothing is ever stolen on a time-out alone.
- An exception from a signal handler, at any bytecode, leaves neither the byte nor a token behind.
- A thread that asks for a lock it holds (from a signal handler or a finalizer, through whatever attachment) is refused.
- A forked child that did not get a description of its own from the fork hooks is refused: it would share its parent's locks.

This module alone imports posix_ipc.
"""

import ctypes
import errno
import mmap
import os
import re
import signal
import stat
import struct
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from fcntl import F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, F_UNLCK, F_WRLCK, fcntl
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple

import posix_ipc

from shmpool.errors import PoolBusyError, PoolClosedError, PoolError, PoolFullError
from shmpool.segment import closer

TURNSTILE_S: Final = 0.02
ALL_SIGNALS: Final = signal.valid_signals()
_NO_WAIT: Final = (0,)
_TIMED: Final = (TURNSTILE_S,)
_SEM_DIR: Final = "/dev/shm"
_SEM_SIZE: Final = 32  # glibc's sem_t; mapping a shorter file would trap
_SEM_MODE: Final = 0o600
_SEM_FILE: Final = re.compile(r"sem\.shmpool-([0-9a-f]{16})-[0-9]{1,3}", re.ASCII)

Semaphores = list[posix_ipc.Semaphore]
Ts = TypeVarTuple("Ts")
T = TypeVar("T")

# The kernel zeroes this page in a forked child (MADV_WIPEONFORK, Linux 4.14), however it was forked. The child's fork hook marks
# it again once every attachment has a description of its own; until then, and for ever if the hook was skipped or interrupted
# by an exception, the child is refused. Reading the byte costs 30 ns; os.getpid() would cost 60 and a counter set by
# the hooks would prove nothing about forks that bypass them.
own_mark: Final = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
_MADV_WIPEONFORK: Final = 18
own_mark.madvise(_MADV_WIPEONFORK)
own_mark[0] = 1


def is_own_process() -> bool:
    """Whether this process may use the attachments it finds: it made them, or the fork hooks made them its own."""
    return bool(own_mark[0])


def adopt_process() -> None:
    """For the fork hook, in the child, once every attachment is either its own or closed."""
    own_mark[0] = 1


class Described(Protocol):
    """Whoever has the descriptor that locks are taken on; fork replaces it in the child, and closing makes it negative."""

    fd: int


class _Mutexes(dict[int, Any]):
    """The mutexes (RLocks) of one file's bytes, shared by all attachments of this process: each has descriptions of its own,
    so the kernel would let a thread wait for itself."""


_mutexes: "weakref.WeakValueDictionary[tuple[int, int], _Mutexes]" = weakref.WeakValueDictionary()


def mutexes_of(fd: int) -> _Mutexes:
    """The mutexes of the file behind `fd`."""
    state = os.fstat(fd)
    return _mutexes.setdefault((state.st_dev, state.st_ino), _Mutexes())


def forget_mutexes() -> None:
    """In a forked child that closes attachments: threads that held their mutexes are not there to release them."""
    _mutexes.clear()


class ByteLock:
    """One byte of a file, locked against other processes by its description and against this one's threads by a mutex."""

    __slots__ = ("_file", "_lock", "_mutex", "_mutexes", "_unlock", "is_mine", "what")

    def __init__(self, file: Described, byte: int, what: str) -> None:
        self._file = file
        self._lock = _flock(F_WRLCK, byte)
        self._unlock = _flock(F_UNLCK, byte)
        self._mutexes = mutexes_of(file.fd)  # kept alive by those who use it
        # An RLock never waits for its own thread. Only that matters here, as re-entry is refused; and that _is_owned (there
        # since Python 3.2, for Condition) is set and cleared in the C calls that take and release it, so that no handler finds
        # the one done and the other not.
        self._mutex = self._mutexes.setdefault(byte, threading.RLock())
        # Whether the calling thread is inside, through this or another attachment of the process. No method, as some ask it of
        # all locks of a pool at once: that costs 0.1 us a lock less.
        self.is_mine: Callable[[], bool] = self._mutex._is_owned  # noqa: SLF001
        self.what = what

    def run(self, body: Callable[[*Ts], T], /, *args: *Ts) -> T:
        """Call `body` holding the lock.

        Raises PoolBusyError if this very thread holds it already, further up its stack; PoolClosedError if the file was closed
        meanwhile, or this process was forked past the hooks.
        """
        if self.is_mine():
            self.refuse_reentry()
        with self._mutex:
            if not own_mark[0] or self._file.fd < 0:
                self._refuse_closed()
            try:
                fcntl(self._file.fd, F_OFD_SETLKW, self._lock)
                return body(*args)
            finally:
                # Here and not in a method: an exception could arrive on the way into it, and the byte would stay locked.
                if self._file.fd >= 0:  # else the body closed it, and so unlocked the byte
                    fcntl(self._file.fd, F_OFD_SETLK, self._unlock)

    def refuse_reentry(self) -> None:
        raise PoolBusyError(
            f"{self.what}: a signal handler or finalizer asked for the lock that its own thread holds. Nothing was changed, and "
            "the interrupted operation goes on; ask again outside the handler."
        )

    def _refuse_closed(self) -> None:
        why = "was closed by another thread" if own_mark[0] else "was forked without Python's fork hooks and is not attached"
        raise PoolClosedError(f"{self.what}: {why}. Nothing was changed; other processes are not affected. Attach again.")

    def shut_out(self, body: Callable[[*Ts], T], /, *args: *Ts) -> T:
        """Call `body` while no other thread of this process is inside; other processes may be."""
        with self._mutex:
            return body(*args)

    def freeze(self) -> None:
        """Wait until no other thread of this process is inside, and keep it so until `thaw`."""
        self._mutex.acquire()

    def thaw(self) -> None:
        """Undo one `freeze`; harmless without one."""
        if self.is_mine():
            self._mutex.release()


class StripeLock(ByteLock):
    """A byte lock behind a semaphore turnstile. `waits` and `takeovers` count this process's since it started counting.

    `after_wait` is called under the lock after each wait, with 1 if it ended in a takeover and 0 otherwise.
    """

    __slots__ = ("_acquire", "_after_wait", "_semaphore", "takeovers", "waits")

    def __init__(
        self,
        file: Described,
        byte: int,
        what: str,
        semaphore: posix_ipc.Semaphore,
        after_wait: Callable[[int], object] = int,
    ) -> None:
        super().__init__(file, byte, what)
        self._semaphore = semaphore
        self._acquire = semaphore.acquire
        self._after_wait = after_wait
        self.waits = 0
        self.takeovers = 0

    def run(self, body: Callable[[*Ts], T], /, *args: *Ts) -> T:
        # About 2 us of an uncontended insert. The shape of the `try` is what interrupts demand: an exception can arrive
        # after any call returns, so the token must be stored by the same C call that takes it (extend over map), inside
        # the `try`, and every step of giving back is in a `finally` of its own. `t = acquire()` before the `try` lost the
        # token in 61 % of interrupts that hit there.
        if self._mutex._is_owned():  # noqa: SLF001 - as is_mine, spared a call
            self.refuse_reentry()
        with self._mutex:
            if not own_mark[0] or self._file.fd < 0:
                self._refuse_closed()
            admitted: list[object] = []
            try:
                try:
                    admitted.extend(map(self._acquire, _NO_WAIT))
                except posix_ipc.BusyError:
                    self._wait(admitted)
                else:
                    fcntl(self._file.fd, F_OFD_SETLKW, self._lock)
                return body(*args)
            finally:
                try:
                    fcntl(self._file.fd, F_OFD_SETLK, self._unlock)
                finally:
                    # Posting only at 0 also drains the surplus tokens that takeovers leave.
                    if admitted and self._semaphore.value == 0:
                        self._semaphore.release()

    def _wait(self, admitted: list[object]) -> None:
        """Wait for a token and then the byte, or for the byte of a holder that was killed."""
        self.waits += 1
        while True:
            if self._wait_for_token(admitted):
                fcntl(self._file.fd, F_OFD_SETLKW, self._lock)
                self._after_wait(0)
                return
            try:
                fcntl(self._file.fd, F_OFD_SETLK, self._lock)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                continue  # a live holder
            self.takeovers += 1
            admitted.append(None)  # in the token's stead: the killed holder took it along
            self._after_wait(1)
            return

    def _wait_for_token(self, admitted: list[object]) -> bool:
        # posix_ipc does not resume an interrupted wait, and a timer that interrupts and restarts it more often than every
        # TURNSTILE_S would disable takeover: so no handler runs during the wait.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
            admitted.extend(map(self._acquire, _TIMED))
        except posix_ipc.BusyError:
            return False
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return True


def try_lock(fd: int, byte: int) -> bool:
    """Lock a byte on the description behind `fd` without waiting; False if another description has it."""
    try:
        fcntl(fd, F_OFD_SETLK, _flock(F_WRLCK, byte))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def run_if_free(fd: int, byte: int, body: Callable[[*Ts], T], /, *args: *Ts) -> T | None:
    """Call `body` with a byte locked on the description behind `fd`, without waiting; None if another description has it."""
    unlocked = _flock(F_UNLCK, byte)
    try:
        return body(*args) if try_lock(fd, byte) else None
    finally:
        fcntl(fd, F_OFD_SETLK, unlocked)  # not by `unlock`: an exception could arrive on the way into it


def unlock(fd: int, byte: int) -> None:
    """Unlock a byte; one that is not locked is no error."""
    fcntl(fd, F_OFD_SETLK, _flock(F_UNLCK, byte))


def unlock_all(fd: int) -> None:
    """Unlock every byte."""
    fcntl(fd, F_OFD_SETLK, _flock(F_UNLCK, 0, 0))


def others_hold(fd: int, first_byte: int, count: int = 1) -> bool:
    """Whether any other description has a lock on some of `count` bytes (a description's own locks do not show)."""
    answer = fcntl(fd, F_OFD_GETLK, _flock(F_WRLCK, first_byte, count))
    return int(struct.unpack_from("h", answer)[0]) != F_UNLCK


def _flock(kind: int, first_byte: int, count: int = 1) -> bytes:
    """A `struct flock` of 64-bit Linux; OFD locks want its pid 0."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, first_byte, count, 0)


def semaphore_name(pool_id: int, stripe: int) -> str:
    return f"/shmpool-{pool_id:016x}-{stripe}"


def open_semaphores(
    pool_name: str, pool_id: int, count: int, opened: Semaphores | None = None, *, refill: bool = False
) -> Semaphores:
    """The turnstiles of a pool, made where missing. Only for the holder of the gate.

    They go into `opened` if that is given: a semaphore that is merely dropped stays mapped for ever, so who must not leave any
    behind when an interrupt comes on the way back has the list already, and closes what is in it. With `refill`, for who knows
    that nobody is inside a lock, the tokens that killed holders took along are put back.

    A missing or damaged one (its file too short to be mapped) is made anew: whoever still has the old one only waits less
    fairly, for the byte is what excludes. Raises PoolFullError where there is no memory for one.
    """
    semaphores: Semaphores = [] if opened is None else opened
    try:
        for stripe in range(count):
            _open_semaphore(semaphore_name(pool_id, stripe), semaphores)
            if refill and semaphores[-1].value == 0:
                semaphores[-1].release()
    except BaseException as error:
        close_semaphores(semaphores)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM):
            state = os.statvfs(_SEM_DIR)
            what = "1 file" if state.f_files and not state.f_favail else "4096 bytes"
            free = state.f_favail if what == "1 file" else state.f_bavail * state.f_frsize
            raise PoolFullError(
                f"pool {pool_name!r}: {_SEM_DIR} has no room for semaphore {len(semaphores)} of {count}: needs {what} more, and "
                f"{free} are free. The pool and its topics are untouched. Free memory or remove files there, then try again."
            ) from None
        raise
    return semaphores


def _open_semaphore(name: str, opened: Semaphores) -> None:
    # One C call opens it and puts it into the list, as with descriptors (see segment.py).
    path = _SEM_DIR + "/sem." + name[1:]
    try:
        state = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        pass
    else:
        if state.st_uid != os.geteuid():
            raise PoolError(f"{path} belongs to user {state.st_uid}, not to {os.geteuid()}. It was left as it is.")
        if stat.S_ISREG(state.st_mode) and state.st_size == _SEM_SIZE:
            opened.extend(map(posix_ipc.Semaphore, (name,)))
            return
        try:
            os.unlink(path)
        except IsADirectoryError:
            raise PoolError(f"{path} is a directory and no semaphore. It was left as it is; remove it.") from None
    _make_semaphore(path)
    opened.extend(map(posix_ipc.Semaphore, (name,)))


def _make_semaphore(path: str) -> None:
    # Without a name until it is whole. sem_open(O_CREAT) writes it under a random name, sem.XXXXXX, and links that to its own: a
    # creator killed in between leaves a file of which nobody could tell whose it was.
    semaphore = ctypes.create_string_buffer(_SEM_SIZE)
    if ctypes.CDLL(None).sem_init(semaphore, 1, 1):  # shared by processes, with one token
        raise PoolError(f"{path}: the C library makes no semaphores that processes share")
    opened: list[int] = []
    closing = closer(opened)
    try:
        opened.extend(map(os.open, (_SEM_DIR,), (os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC,), (_SEM_MODE,)))
        os.fchmod(opened[0], _SEM_MODE)  # whatever the process's umask made of it
        os.write(opened[0], semaphore)
        os.link(f"/proc/self/fd/{opened[0]}", path, src_dir_fd=opened[0], follow_symlinks=True)
    finally:
        any(closing)


def semaphore_files() -> list[tuple[str, int]]:
    """Paths of this user's turnstiles, of whatever pool, and their pools' ids."""
    files: list[tuple[str, int]] = []
    with os.scandir(_SEM_DIR) as entries:
        for entry in entries:
            named = _SEM_FILE.fullmatch(entry.name)
            with suppress(FileNotFoundError):  # it went meanwhile
                if named and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    files.append((entry.path, int(named[1], 16)))
    return sorted(files)


def close_semaphores(semaphores: Semaphores) -> None:
    """Close semaphores and empty the list; after an interrupt it can be done again."""
    while semaphores:
        with suppress(posix_ipc.ExistentialError):  # closed already
            semaphores[-1].close()
        semaphores.pop()


def unlink_semaphores(pool_id: int, count: int) -> None:
    """Remove a pool's turnstiles, those that there are. Only for the holder of the gate, before the pool's name goes.

    What is somebody else's under such a name, another user's file or a directory, is left.
    """
    for stripe in range(count):
        try:
            posix_ipc.unlink_semaphore(semaphore_name(pool_id, stripe))
        except (posix_ipc.ExistentialError, posix_ipc.PermissionsError, IsADirectoryError):
            continue
