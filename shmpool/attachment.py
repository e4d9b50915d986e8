"""Process rows: who is attached, and what fork does about it.

Guarantees:
- A process is attached exactly as long as some description of it holds its row's byte. Pids are stored for people only: they
  repeat, and collide across containers.
- A forked child has a row of its own from its first instruction, or finds the pool closed; it never shares its parent's.
  That holds when a signal handler forks inside an operation, when one raises inside the hooks, and (see lock.py) when C code
  forks past them. In this last case the child keeps its parent's row alive until it ends or executes another program.
"""

import itertools
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from shmpool.errors import PoolError, PoolFullError
from shmpool.layout import ATTACHED, HOLDS, PID, PROCESS_BYTES, START_TIME, USES_MASK, WORD_SIZE
from shmpool.ledger import Words, clear_stale_ledger, finish_fold, fold, ledger_word, prepare_ledger, row_word
from shmpool.lock import ALL_SIGNALS, ByteLock, adopt_process, forget_mutexes, is_own_process, others_hold, try_lock, unlock
from shmpool.segment import Segment, all_segments, closer, reopen


class Attachment:
    """This process's row in one pool. `row_word` is where it starts; `row` counts rows from 0."""

    def __init__(self, segment: Segment, row: int, gate: ByteLock) -> None:
        self.segment = segment
        self.gate = gate
        self.locks: Sequence[ByteLock] = ()  # what fork must find free; set by whoever makes the locks
        self.on_fork_in_child: Callable[[], None] = _nothing
        self.is_seated = True  # False in a forked child for whom there was no row
        self.serial = next(_serials)
        self.settle(row)
        _attachments.add(self)

    def settle(self, row: int) -> None:
        """Move into a clean row whose byte this process holds: at the start, and in a forked child."""
        words = self.segment.words
        self.row = row
        self.row_word = row_word(self.segment, row)
        words[self.row_word + START_TIME] = _start_time()
        words[self.row_word + ATTACHED] = time.time_ns()
        words[self.row_word + PID] = os.getpid()
        self._adopt_ledger()

    def _adopt_ledger(self) -> None:
        self._ledger_word = ledger_word(self.segment, self.row)
        self._ledger_committed = clear_stale_ledger(self.segment, self.row)
        self.holds_word = ledger_word(self.segment, self.row, HOLDS)
        self._holds_committed = clear_stale_ledger(self.segment, self.row, HOLDS)

    def commit_column(self, column: int) -> tuple[int, int]:
        """The words of this process's ledgers that count its holds and its uses of a column's topic, to be touched from now on.

        Raises PoolFullError where there is no memory for them.
        """
        size = (column + 1) * WORD_SIZE
        if size > self._holds_committed:
            self._commit_holds(size)
        return self.holds_word + column, self.commit_use(column)

    def commit_use(self, column: int) -> int:
        """The same for its uses alone: a process that only looks topics up needs no memory for holds."""
        size = (column + 1) * WORD_SIZE
        if size > self._ledger_committed:
            self._commit_uses(size)
        return self._ledger_word + column

    @property
    def ledgers(self) -> tuple[int, int, int, int]:
        """The words at which this process's ledgers of holds and of uses start, each with how many columns are committed."""
        return (
            self.holds_word, self._holds_committed // WORD_SIZE, self._ledger_word, self._ledger_committed // WORD_SIZE
        )

    # Threads, and signal handlers, may commit more while one commits less: what was published must not shrink, or nobody would
    # see the holds beyond it, and their topics would be freed. Between the look at how far it is and the stores Python calls
    # nothing, so that nobody comes between (see held.py).

    def _commit_holds(self, size: int) -> None:
        words = self.segment.words
        committed, word, content = prepare_ledger(self.segment, self.row, size, HOLDS)
        if committed > self._holds_committed:
            words[word] = content
            self._holds_committed = committed

    def _commit_uses(self, size: int) -> None:
        words = self.segment.words
        committed, word, content = prepare_ledger(self.segment, self.row, size)
        if committed > self._ledger_committed:
            words[word] = content
            self._ledger_committed = committed

    def holds_at(self, column: int) -> int:
        """How often this process holds a column's topic."""
        return int(self.segment.words[self.holds_word + column]) if (column + 1) * WORD_SIZE <= self._holds_committed else 0

    def uses_total(self) -> int:
        """Uses in this process's ledger, whatever their generations."""
        words = np.frombuffer(self.segment.words, np.uint64, self._ledger_committed // WORD_SIZE, self._ledger_word * WORD_SIZE)
        return int((words & np.uint64(USES_MASK)).sum())

    def count_uses(self, columns: NDArray[np.int64], uses: Words) -> None:
        """Add `uses[i]` to this process's ledger at `columns[i]`, shapes (n,); a column may come more than once.

        Raises PoolFullError, with nothing counted, where the ledger's next pages find no memory.
        """
        if len(columns) == 0:
            return
        count = int(columns.max()) + 1
        if count * WORD_SIZE > self._ledger_committed:
            self._commit_uses(count * WORD_SIZE)
        np.add.at(np.frombuffer(self.segment.words, np.uint64, count, self._ledger_word * WORD_SIZE), columns, uses)

    def forget_ledger(self) -> None:
        """After a reset by this process: start the row's ledger over."""
        self._adopt_ledger()

    def leave(self) -> None:
        """Fold the row; closing the segment then frees it. Only for the holder of the gate; again is harmless.

        Where the totals' ledger finds no memory the row stays as a killed process's would, for a later attach to fold.
        """
        with suppress(PoolFullError):
            fold(self.segment, self.row)

    def retire(self) -> None:
        """Once the segment is closed: forks need not prepare for this attachment any more."""
        _attachments.discard(self)

    def locks_in_order(self) -> list[ByteLock]:
        """All locks of the pool in the order of locking: the gate, the stripes ascending, growth."""
        return [self.gate, *self.locks]


def take_row(segment: Segment, fd: int) -> int:
    """Lock the byte of a free row on the description behind `fd` and return the row, clean. Only for the gate's holder.

    It is the first free row, a killed process's or not: so the rows in use, and the ledgers that have memory, are as many as
    processes were attached at once, however many of them come and are killed.
    Raises PoolFullError when every row is held by a live process.
    """
    finish_fold(segment)
    refused: PoolFullError | None = None
    for row in range(segment.constants.geometry.process_count):
        if try_lock(fd, PROCESS_BYTES + row):
            try:
                fold(segment, row)
            except PoolFullError as error:
                refused = error
                unlock(fd, PROCESS_BYTES + row)
            else:
                return row
    raise refused or PoolFullError(
        f"pool {segment.pool_name!r}: {segment.constants.geometry.process_count} processes are attached, and it was created for "
        "no more. Nothing was changed. Close one, or create the pool with a larger process_count."
    )


def _take_clean_row(segment: Segment, fd: int) -> int | None:
    """The same without the gate, or None where the first free row is a killed process's."""
    for row in range(segment.constants.geometry.process_count):
        if try_lock(fd, PROCESS_BYTES + row):
            if segment.words[row_word(segment, row) + PID] == 0:
                return row
            unlock(fd, PROCESS_BYTES + row)
            return None
    return None


def is_live(segment: Segment, row: int, own_row: int) -> bool:
    """Whether a process holds the row."""
    return row == own_row or others_hold(segment.fd, PROCESS_BYTES + row)


def _start_time() -> int:
    """This process's start in clock ticks since boot (field 22 of /proc/self/stat), 0 where /proc does not say."""
    try:
        with open("/proc/self/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def _nothing() -> None:
    pass


# ---- fork


class _Fork:
    """What the hook before a fork prepared for one attachment: a locked row on a description that only the child keeps."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        self.opened: list[int] = []
        self.closing = closer(self.opened)
        self.row = -1
        self.is_ready = False

    def prepare(self) -> None:
        segment, gate = self.attachment.segment, self.attachment.gate
        try:
            reopen(segment.fd, self.opened)
            row = _take_clean_row(segment, self.opened[0])
            self.row = gate.run(take_row, segment, self.opened[0]) if row is None else row
        except (OSError, ValueError, PoolError):
            return  # no descriptor or no row to be had, or closed meanwhile: the child will find the pool closed
        self.is_ready = True

    def finish_in_child(self) -> None:
        attachment, segment = self.attachment, self.attachment.segment
        try:
            if self.is_ready and all(lock.is_mine() for lock in attachment.locks_in_order()):
                segment.replace_fd(self.opened)
                attachment.settle(self.row)
            elif segment.fd >= 0:
                forget_mutexes()
                segment.make_private()
                attachment.is_seated = False
                attachment.retire()
                any(self.closing)
        finally:
            attachment.on_fork_in_child()


class _Forking(threading.local):
    """What the hooks of one thread's fork hand to each other. Any of them may have been cut short by a signal handler's
    exception, which Python reports and then goes on forking: so each takes what it finds."""

    def __init__(self) -> None:
        self.mask: set[int | signal.Signals] | None = None
        self.forks: list[_Fork] = []
        self.frozen: list[ByteLock] = []


_serials = itertools.count()
_attachments: "weakref.WeakSet[Attachment]" = weakref.WeakSet()
_forking = _Forking()


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    attachments = sorted(_attachments, key=lambda attachment: attachment.serial)
    # Where this thread is inside an operation, forked by a signal handler, it must not go on with it in the child.
    inside = [attachment for attachment in attachments if any(lock.is_mine() for lock in attachment.locks_in_order())]
    for attachment in attachments:
        _forking.forks.append(_Fork(attachment))
        if attachment not in inside:
            _forking.forks[-1].prepare()
    for attachment in attachments:
        if attachment not in inside:
            for lock in attachment.locks_in_order():
                _forking.frozen.append(lock)  # first: to thaw once too often is harmless
                lock.freeze()


def _leave_to_child() -> None:
    while _forking.forks:
        any(_forking.forks[-1].closing)
        _forking.forks.pop()


def _adopt() -> None:
    if not is_own_process():
        prepared = {id(fork.attachment): fork for fork in _forking.forks}
        for attachment in list(_attachments):
            prepared.get(id(attachment), _Fork(attachment)).finish_in_child()
        adopted = {id(attachment.segment) for attachment in _attachments}
        for segment in all_segments():
            if id(segment) not in adopted:
                segment.disown()
        adopt_process()
    _forking.forks.clear()


def _thaw() -> None:
    try:
        while _forking.frozen:
            _forking.frozen[-1].thaw()
            _forking.frozen.pop()
    finally:
        mask, _forking.mask = _forking.mask, None
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# Signals are blocked between the hooks, but where another thread takes one its handler runs here all the same, and its exception
# may cut a hook short even before its first line. So each comes twice, and the second finds what the first has left.
os.register_at_fork(before=_before_fork)
os.register_at_fork(after_in_parent=_leave_to_child, after_in_child=_adopt)
os.register_at_fork(after_in_parent=_leave_to_child, after_in_child=_adopt)
os.register_at_fork(after_in_parent=_thaw, after_in_child=_thaw)
os.register_at_fork(after_in_parent=_thaw, after_in_child=_thaw)
