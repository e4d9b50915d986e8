"""What each process has counted: counters in its row, uses and holds of each topic in its ledgers; how a departed one's are kept.

Guarantees:
- A row's words and its ledger have one writer, so counting takes no lock. Readers add up the rows and the totals.
- A departed process's row is added to the totals exactly once, whoever dies while doing it: every step of `fold` is a
  redo that one store of the fold word commits, and the gate's holder finishes what a dead one began.
- A ledger's memory is committed before it is touched, and follows use: 8 bytes for each topic a process has touched.
- A column of the uses is a topic's: the words carry the generation of its record, and those of another generation do not count.
- Holds are nobody's but the row's: they are never added to the totals. Who gives them back for a killed process is in holding.py.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shmpool.errors import PoolCorruptError
from shmpool.layout import (
    COUNTERS,
    EPOCH_WORD,
    FIRST_COUNTER,
    FOLD_WORD,
    HOLDS,
    LEDGER,
    PAGE_SIZE,
    PID,
    PROCESS_WORDS,
    USES_MASK,
    USES_TAG_SHIFT,
    WORD_SIZE,
    seal,
    unseal,
)
from shmpool.segment import Segment

Words = NDArray[np.uint64]

# The fold word: a serial number << 40 | the step << 16 | the row being folded, plus 1 (0: nothing is). At an odd step
# 2 * b + 1 the scratch page holds the sum that block b of the totals is to become. Block 0 is the counters, block b > 0 is
# page b - 1 of the ledger.
_FOLD_ROW: Final = 0xFFFF
_FOLD_STEP_SHIFT: Final = 16
_FOLD_STEP_MASK: Final = 0xFFFFFF
_FOLD_SERIAL_SHIFT: Final = 40
_SNAPSHOT_TRIES: Final = 1000


def row_word(segment: Segment, row: int) -> int:
    """The word at which a process's row starts; row -1 is the totals."""
    return segment.constants.geometry.totals_offset // WORD_SIZE + (row + 1) * PROCESS_WORDS


def ledger_word(segment: Segment, row: int, field: int = LEDGER) -> int:
    """The word at which the ledger of a row starts; row -1 is the totals, which have no holds."""
    geometry = segment.constants.geometry
    if field == HOLDS:
        return (geometry.holds_offset + row * geometry.ledger_size) // WORD_SIZE
    return (geometry.ledgers_offset + (row + 1) * geometry.ledger_size) // WORD_SIZE


def ledger_size(segment: Segment, row: int, field: int = LEDGER) -> int:
    """Bytes of a row's ledger that count: committed, and since the last reset."""
    epoch, size = _read_ledger(segment, row, field)
    return size if epoch == _epoch(segment) else 0


def prepare_ledger(segment: Segment, row: int, size: int, field: int = LEDGER) -> tuple[int, int, int]:
    """Commit a row's ledger to at least `size` bytes; returns how far, and the word and the content that publish it. Raises
    PoolFullError."""
    size = -(-size // PAGE_SIZE) * PAGE_SIZE
    segment.commit(ledger_word(segment, row, field) * WORD_SIZE, size)
    return size, row_word(segment, row) + field, seal(_epoch(segment), size)


def clear_stale_ledger(segment: Segment, row: int, field: int = LEDGER) -> int:
    """Zero a row's ledger if it is from before the last reset; returns its committed bytes."""
    epoch, size = _read_ledger(segment, row, field)
    if size and epoch != _epoch(segment):
        start = ledger_word(segment, row, field) * WORD_SIZE
        segment.data[start : start + size] = bytes(size)
        segment.words[row_word(segment, row) + field] = seal(_epoch(segment), size)
    return size


def _epoch(segment: Segment) -> int:
    return segment.read_sealed(EPOCH_WORD, "the epoch word")[0]


def _read_ledger(segment: Segment, row: int, field: int) -> tuple[int, int]:
    geometry = segment.constants.geometry
    what = "holds" if field == HOLDS else "ledger"
    epoch, size = segment.read_sealed(row_word(segment, row) + field, f"the {what} word of process row {row}")
    # Where holds are not counted there are no ledgers of them, and the arena is where they would be.
    most = geometry.ledger_size if field == LEDGER or geometry.reuses else 0
    return epoch, min(size, most) // WORD_SIZE * WORD_SIZE


# ---- holds


def read_holds(segment: Segment, row: int) -> Words:
    """A copy of a row's ledger of holds, shape (n,): holds by column. Empty where the policy counts none."""
    if not segment.constants.geometry.reuses:
        return np.zeros(0, np.uint64)
    return _words(segment, ledger_word(segment, row, HOLDS) * WORD_SIZE, ledger_size(segment, row, HOLDS))


def sum_holds(segment: Segment) -> Words:
    """Holds by column, shape (n,), of all rows."""
    ledgers = [read_holds(segment, row) for row in (holding_rows(segment) if segment.constants.geometry.reuses else ())]
    total = np.zeros(max(map(len, ledgers), default=0), np.uint64)
    for ledger in ledgers:
        total[: len(ledger)] += ledger
    return total


def holding_rows(segment: Segment) -> list[int]:
    """The rows that ever had a hold, whoever they belong to. About 2 us."""
    geometry = segment.constants.geometry
    rows = np.frombuffer(segment.words, np.uint64, geometry.process_count * PROCESS_WORDS, row_word(segment, 0) * WORD_SIZE)
    # Of a copy: numpy counts first and collects then, and raises where another process has its first hold in between.
    found: list[int] = rows[HOLDS::PROCESS_WORDS].copy().nonzero()[0].tolist()
    return found


def holds_of(segment: Segment, column: int, epoch: int) -> list[tuple[int, int]]:
    """The rows that hold a column's topic, and how often each. Exact for who holds its stripe's lock. About 2 us and 1 us a row.

    A damaged word of a row is an error: a topic that might be held must not be freed.
    """
    found = []
    for row in holding_rows(segment):
        content = unseal(segment.words[row_word(segment, row) + HOLDS])
        if content is None:
            _read_ledger(segment, row, HOLDS)
            continue
        if content[0] == epoch and (column + 1) * WORD_SIZE <= min(content[1], segment.constants.geometry.ledger_size):
            count = segment.words[ledger_word(segment, row, HOLDS) + column]
            if count:
                found.append((row, count))
    return found


# ---- departed processes


def fold(segment: Segment, row: int) -> None:
    """Add a row to the totals and clean it. For who holds the gate and the row's byte.

    Raises PoolFullError, with nothing changed, where the totals' ledger finds no memory.
    """
    words = segment.words
    finish_fold(segment)  # one that somebody was killed in; its word must not be overwritten
    if words[row_word(segment, row) + PID] == 0:
        return
    size = ledger_size(segment, row)
    if clear_stale_ledger(segment, -1) < size:
        _, word, content = prepare_ledger(segment, -1, size)
        words[word] = content
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
    if row >= segment.constants.geometry.process_count:
        raise PoolCorruptError(
            f"pool {segment.pool_name!r}: its fold word ({state:#x}) names no row. Nothing was changed. Make the pool anew."
        )
    serial = state >> _FOLD_SERIAL_SHIFT << _FOLD_SERIAL_SHIFT
    step = state >> _FOLD_STEP_SHIFT & _FOLD_STEP_MASK
    scratch = segment.constants.geometry.scratch_offset
    while step < 2 * _block_count(segment, row):
        total, source, size = _block(segment, -1, step // 2), _block(segment, row, step // 2), _block_size(step // 2)
        if step % 2 == 0:
            add = _add_uses if step // 2 else np.add
            data[scratch : scratch + size] = add(_words(segment, total, size), _words(segment, source, size)).tobytes()
        else:
            data[total : total + size] = data[scratch : scratch + size]
            data[source : source + size] = bytes(size)
        step += 1
        words[FOLD_WORD] = serial | step << _FOLD_STEP_SHIFT | (row + 1)
    # In this order: a row with pid 0 may be taken by a fork, which does not hold the gate. Folding zeros again is harmless.
    words[FOLD_WORD] = serial
    words[row_word(segment, row) + PID] = 0


def _block_count(segment: Segment, row: int) -> int:
    return 1 + ledger_size(segment, row) // PAGE_SIZE


def _block(segment: Segment, row: int, block: int) -> int:
    if block == 0:
        return (row_word(segment, row) + FIRST_COUNTER) * WORD_SIZE
    return ledger_word(segment, row) * WORD_SIZE + (block - 1) * PAGE_SIZE


def _block_size(block: int) -> int:
    return PAGE_SIZE if block else len(COUNTERS) * WORD_SIZE


def _add_uses(left: Words, right: Words) -> Words:
    """The sum of two rows' uses, shapes (n,). Where generations differ the older is of a topic that went."""
    tag = np.uint64(USES_TAG_SHIFT)
    same = left >> tag == right >> tag
    return np.where(same, left + (right & np.uint64(USES_MASK)), np.maximum(left, right))


def _words(segment: Segment, offset: int, size: int) -> Words:
    return np.frombuffer(segment.data[offset : offset + size], np.uint64)


@dataclass(slots=True)
class Snapshot:
    """All rows at one instant: `counters[i]` of process row `i - 1` (0: the totals), shape (rows + 1, len(COUNTERS));
    `uses[column]` summed over all of them, with their generations, and `holds[column]`."""

    counters: Words = field(default_factory=lambda: np.zeros((0, len(COUNTERS)), np.uint64))
    uses: Words = field(default_factory=lambda: np.zeros(0, np.uint64))
    holds: Words = field(default_factory=lambda: np.zeros(0, np.uint64))

    def uses_of(self, column: int, generation: int) -> int:
        """The uses of a column's topic; none where they are of another generation."""
        word = int(self.uses[column]) if column < len(self.uses) else 0
        return word & USES_MASK if word >> USES_TAG_SHIFT == generation else 0

    def holds_of(self, column: int) -> int:
        """The holds of a column's topic, by all processes."""
        return int(self.holds[column]) if column < len(self.holds) else 0


def take_snapshot(segment: Segment, *, with_topics: bool) -> Snapshot:
    """Read every row while others count and fold. A fold moves counts from one row to another, so it is re-read if one went on
    meanwhile; one that a dead process left half done is read as its redo would finish it."""
    for _ in range(_SNAPSHOT_TRIES):
        before = segment.words[FOLD_WORD]
        snapshot = _read_rows(segment, before, with_topics=with_topics)
        if segment.words[FOLD_WORD] == before:
            break
    return snapshot


def _read_rows(segment: Segment, fold_state: int, *, with_topics: bool) -> Snapshot:
    rows = range(-1, segment.constants.geometry.process_count)
    folding = (fold_state & _FOLD_ROW) - 1  # of a damaged word, a row that no loop below meets
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
    if with_topics:
        sizes = [ledger_size(segment, row) for row in rows]
        snapshot.uses = np.zeros(max(sizes) // WORD_SIZE, np.uint64)
        for row, size in zip(rows, sizes, strict=True):
            for block in range(size // PAGE_SIZE):
                start = block * PAGE_SIZE // WORD_SIZE
                page = slice(start, start + PAGE_SIZE // WORD_SIZE)
                snapshot.uses[page] = _add_uses(snapshot.uses[page], read(row, block + 1))
        snapshot.holds = sum_holds(segment)
    return snapshot
