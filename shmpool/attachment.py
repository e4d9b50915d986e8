"""Process rows: who is attached, what each has counted, and what fork does to both.

Guarantees:
- A process is attached exactly as long as some description of it holds its row's byte. Pids are stored for people only: they
  repeat, and collide across containers.
- A row's words have one writer, so counting takes no lock. Readers add up the rows and the totals.
- A departed process's row is added to the totals exactly once, whoever dies while doing it: every step of `fold` is a
  redo that one store of the fold word commits, and the gate's holder finishes what a dead one began.
- A forked child has a row of its own from its first instruction, or finds the pool closed; it never shares its parent's.

This code assumes that Python's fork hooks run; a fork made inside C code bypasses them and must not use the pool.
"""

import itertools
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shmpool.errors import PoolError, PoolFullError
from shmpool.layout import (
    ATTACHED,
    COUNTERS,
    EPOCH_WORD,
    FIRST_COUNTER,
    FOLD_WORD,
    LEDGER,
    LOW_40,
    PAGE_SIZE,
    PID,
    PROCESS_BYTES,
    PROCESS_WORDS,
    START_TIME,
    TAG_SHIFT,
    WORD_SIZE,
)
from shmpool.lock import ByteLock, others_hold, try_lock, unlock
from shmpool.segment import Segment, reopen

Words = NDArray[np.uint64]

# The fold word: a serial number << 40 | the step << 16 | the row being folded, plus 1 (0: nothing is). At an odd step
# 2 * b + 1 the scratch page holds the sum that block b of the totals is to become. Block 0 is the counters, block b > 0 is
# page b - 1 of the ledger.
_FOLD_ROW: Final = 0xFFFF
_FOLD_STEP_SHIFT: Final = 16
_FOLD_STEP_MASK: Final = 0xFFFFFF
_FOLD_SERIAL_SHIFT: Final = 40
_SNAPSHOT_TRIES: Final = 1000


class Attachment:
    """This process's row in one pool. `row_word` is where it starts; `row` counts rows from 0."""

    def __init__(self, segment: Segment, row: int, gate: ByteLock) -> None:
        self.segment = segment
        self.gate = gate
        self.locks: Sequence[ByteLock] = ()  # what fork must find free; set by whoever makes the locks
        self.on_fork_in_child: Callable[[], None] = _nothing
        self.is_seated = True  # False in a forked child for whom there was no row
        self.serial = next(_serials)
        self._settle(row)
        _attachments.add(self)

    def _settle(self, row: int) -> None:
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

    def count_uses(self, columns: NDArray[np.int64], uses: Words) -> None:
        """Add `uses[i]` to this process's ledger at `columns[i]`, shapes (n,); a column may come more than once.

        Raises PoolFullError, with nothing counted, where the ledger's next pages find no memory.
        """
        if len(columns) == 0:
            return
        count = int(columns.max()) + 1
        if count * WORD_SIZE > self._ledger_committed:
            self._ledger_committed = commit_ledger(self.segment, self.row, count * WORD_SIZE)
        np.add.at(np.frombuffer(self.segment.words, np.uint64, count, self._ledger_word * WORD_SIZE), columns, uses)

    def forget_ledger(self) -> None:
        """After a reset by this process: start the row's ledger over."""
        self._adopt_ledger()

    def leave(self) -> None:
        """Fold the row and free it. Only for the holder of the gate.

        Where the totals' ledger finds no memory the row stays as a killed process's would, for a later attach to fold.
        """
        _attachments.discard(self)
        try:
            fold(self.segment, self.row)
        except PoolFullError:
            pass
        unlock(self.segment.fd, PROCESS_BYTES + self.row)


def take_row(segment: Segment, fd: int) -> int:
    """Lock the byte of a free row on the description behind `fd` and return the row, clean. Only for the gate's holder.

    Raises PoolFullError when every row is held by a live process.
    """
    finish_fold(segment)
    row = _take_clean_row(segment, fd)
    if row is not None:
        return row
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
    words = segment.words
    for row in range(segment.constants.geometry.process_count):
        if words[row_word(segment, row) + PID] == 0 and try_lock(fd, PROCESS_BYTES + row):
            if words[row_word(segment, row) + PID] == 0:
                return row
            unlock(fd, PROCESS_BYTES + row)
    return None


def is_live(segment: Segment, row: int, own_row: int) -> bool:
    """Whether a process holds the row."""
    return row == own_row or others_hold(segment.fd, PROCESS_BYTES + row)


def row_word(segment: Segment, row: int) -> int:
    """The word at which a process's row starts; row -1 is the totals."""
    return segment.constants.geometry.totals_offset // WORD_SIZE + (row + 1) * PROCESS_WORDS


def ledger_word(segment: Segment, row: int) -> int:
    """The word at which the ledger of a row starts; row -1 is the totals."""
    geometry = segment.constants.geometry
    return (geometry.ledgers_offset + (row + 1) * geometry.ledger_size) // WORD_SIZE


def ledger_size(segment: Segment, row: int) -> int:
    """Bytes of a row's ledger that count: committed, and since the last reset."""
    state = int(segment.words[row_word(segment, row) + LEDGER])
    if state >> TAG_SHIFT != segment.words[EPOCH_WORD] >> TAG_SHIFT:
        return 0
    return min(state & LOW_40, segment.constants.geometry.ledger_size)


def commit_ledger(segment: Segment, row: int, size: int) -> int:
    """Commit a row's ledger to at least `size` bytes and publish how far; returns that. Raises PoolFullError."""
    size = -(-size // PAGE_SIZE) * PAGE_SIZE
    segment.commit(ledger_word(segment, row) * WORD_SIZE, size)
    epoch = segment.words[EPOCH_WORD] >> TAG_SHIFT
    segment.words[row_word(segment, row) + LEDGER] = epoch << TAG_SHIFT | size
    return size


def clear_stale_ledger(segment: Segment, row: int) -> int:
    """Zero a row's ledger if it is from before the last reset; returns its committed bytes."""
    place = row_word(segment, row) + LEDGER
    epoch = segment.words[EPOCH_WORD] >> TAG_SHIFT
    state = segment.words[place]
    size = min(state & LOW_40, segment.constants.geometry.ledger_size)
    if state >> TAG_SHIFT != epoch:
        start = ledger_word(segment, row) * WORD_SIZE
        segment.data[start : start + size] = bytes(size)
        segment.words[place] = epoch << TAG_SHIFT | size
    return int(size)


def fold(segment: Segment, row: int) -> None:
    """Add a row to the totals and clean it. For who holds the gate and the row's byte.

    Raises PoolFullError, with nothing changed, where the totals' ledger finds no memory.
    """
    words = segment.words
    if words[row_word(segment, row) + PID] == 0:
        return
    size = ledger_size(segment, row)
    if clear_stale_ledger(segment, -1) < size:
        commit_ledger(segment, -1, size)
    serial = (words[FOLD_WORD] >> _FOLD_SERIAL_SHIFT) + 1 & 0xFFFFFF
    words[FOLD_WORD] = serial << _FOLD_SERIAL_SHIFT | (row + 1)
    finish_fold(segment)


def finish_fold(segment: Segment) -> None:
    """Carry on a fold from its last committed step to its end, if one was begun. For who holds the gate."""
    words, data = segment.words, segment.data
    state = words[FOLD_WORD]
    if state & _FOLD_ROW == 0:
        return
    row = (state & _FOLD_ROW) - 1
    serial = state >> _FOLD_SERIAL_SHIFT << _FOLD_SERIAL_SHIFT
    step = state >> _FOLD_STEP_SHIFT & _FOLD_STEP_MASK
    scratch = segment.constants.geometry.scratch_offset
    while step < 2 * _block_count(segment, row):
        total, source, size = _block(segment, -1, step // 2), _block(segment, row, step // 2), _block_size(step // 2)
        if step % 2 == 0:
            data[scratch : scratch + size] = (_words(segment, total, size) + _words(segment, source, size)).tobytes()
        else:
            data[total : total + size] = data[scratch : scratch + size]
            data[source : source + size] = bytes(size)
        step += 1
        words[FOLD_WORD] = serial | step << _FOLD_STEP_SHIFT | (row + 1)
    words[row_word(segment, row) + PID] = 0
    words[FOLD_WORD] = serial


def _block_count(segment: Segment, row: int) -> int:
    return 1 + ledger_size(segment, row) // PAGE_SIZE


def _block(segment: Segment, row: int, block: int) -> int:
    if block == 0:
        return (row_word(segment, row) + FIRST_COUNTER) * WORD_SIZE
    return ledger_word(segment, row) * WORD_SIZE + (block - 1) * PAGE_SIZE


def _block_size(block: int) -> int:
    return PAGE_SIZE if block else len(COUNTERS) * WORD_SIZE


def _words(segment: Segment, offset: int, size: int) -> Words:
    return np.frombuffer(segment.data[offset : offset + size], np.uint64)


@dataclass(slots=True)
class Snapshot:
    """All rows at one instant: `counters[i]` of process row `i - 1` (0: the totals), shape (rows + 1, len(COUNTERS));
    `uses[ordinal]` summed over all of them."""

    counters: Words
    uses: Words = field(default_factory=lambda: np.zeros(0, np.uint64))


def take_snapshot(segment: Segment, *, with_uses: bool) -> Snapshot:
    """Read every row while others count and fold. A fold moves counts from one row to another, so it is re-read if one went on
    meanwhile; one that a dead process left half done is read as its redo would finish it."""
    for _ in range(_SNAPSHOT_TRIES):
        before = segment.words[FOLD_WORD]
        snapshot = _read_rows(segment, before, with_uses)
        if segment.words[FOLD_WORD] == before:
            break
    return snapshot


def _read_rows(segment: Segment, fold_state: int, with_uses: bool) -> Snapshot:
    rows = range(-1, segment.constants.geometry.process_count)
    folding = (fold_state & _FOLD_ROW) - 1
    step = fold_state >> _FOLD_STEP_SHIFT & _FOLD_STEP_MASK
    redo = step // 2 if folding >= 0 and step % 2 == 1 else None

    def read(row: int, block: int) -> Words:
        size = _block_size(block)
        if block == redo and row == -1:
            return _words(segment, segment.constants.geometry.scratch_offset, size)
        if block == redo and row == folding:
            return np.zeros(size // WORD_SIZE, np.uint64)
        return _words(segment, _block(segment, row, block), size)

    snapshot = Snapshot(np.stack([read(row, 0) for row in rows]))
    if with_uses:
        sizes = [ledger_size(segment, row) for row in rows]
        snapshot.uses = np.zeros(max(sizes) // WORD_SIZE, np.uint64)
        for row, size in zip(rows, sizes, strict=True):
            for block in range(size // PAGE_SIZE):
                start = block * PAGE_SIZE // WORD_SIZE
                snapshot.uses[start : start + PAGE_SIZE // WORD_SIZE] += read(row, block + 1)
    return snapshot


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


@dataclass(slots=True)
class _Fork:
    """What the hook before a fork prepared for one attachment: a locked row on a description that only the child keeps."""

    attachment: Attachment
    frozen: list[ByteLock]
    fd: int = -1
    row: int = -1

    def prepare(self) -> None:
        segment, gate = self.attachment.segment, self.attachment.gate
        row = None
        try:
            self.fd = reopen(segment.fd)
            row = _take_clean_row(segment, self.fd)
            if row is None:
                row = gate.run(take_row, segment, self.fd)
        except (OSError, PoolError):
            pass  # no descriptor or no row to be had: the child will find the pool closed
        for lock in (*self.attachment.locks, gate):
            if not lock.freeze():
                return  # forked by a signal handler inside an operation, which must not go on in the child
            self.frozen.append(lock)
        self.row = -1 if row is None else row

    def finish_in_parent(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self._thaw()

    def finish_in_child(self) -> None:
        segment = self.attachment.segment
        inherited, segment.fd = segment.fd, self.fd
        os.close(inherited)
        if self.row >= 0:
            self.attachment._settle(self.row)
        else:
            self.attachment.is_seated = False
            _attachments.discard(self.attachment)
        self._thaw()
        self.attachment.on_fork_in_child()

    def _thaw(self) -> None:
        for lock in self.frozen:
            lock.thaw()


_serials = itertools.count()
_attachments: "weakref.WeakSet[Attachment]" = weakref.WeakSet()
_fork_mutex = threading.RLock()
_forks: list[tuple[list[_Fork], set[int | signal.Signals]]] = []


def _before_fork() -> None:
    _fork_mutex.acquire()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    forks: list[_Fork] = []
    nested = bool(_forks)
    _forks.append((forks, mask))
    for attachment in sorted(_attachments, key=lambda one: one.serial):
        fork = _Fork(attachment, [])
        forks.append(fork)
        if not nested:
            fork.prepare()


def _after_fork_in_parent() -> None:
    forks, mask = _forks.pop()
    for fork in forks:
        fork.finish_in_parent()
    _fork_mutex.release()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    global _fork_mutex  # noqa: PLW0603 - the parent's other threads, who might wait for it, are gone
    forks, mask = _forks.pop()
    _fork_mutex = threading.RLock()
    for fork in forks:
        fork.finish_in_child()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
