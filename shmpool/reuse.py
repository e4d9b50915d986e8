"""Stripes whose topics can go: freed, evicted, and their space, slots and ordinals used again.

The truth is what it is where nothing goes: the records that slots point at. Which spaces are free, how many there are, which
slots are tombstones and who is not held follows from them, and from the holds in the processes' rows.

Everything happens under the stripe's lock but `find`, which takes none. In the order of the stores, after the intent and before
it is cleared:

    free      FREE in the record's second word (commits); its slot; onto the list of its size class
    reuse     off the list; value and hash; second word, live, of the next generation; slot (commits); hold
    append    record; slot (commits); the chunk's used bytes; hold
    settle    a hold taken or given back, then what follows from the sum of all: a stamp, its removal, or `free`
    rebuild   (the table, before the intent) the table word (commits); the count of tombstones

A topic's first hold of a process and its last are taken and given back here; so of a topic without holds, who has the lock knows
that it has none. `recover` brings each to its end or its beginning, and settles the topic: the process that was killed may or
may not have come to its own hold. Numbers that are only sums are counted anew.

A space that was freed at the last generation is retired: nobody may ever take its next topic for an old one. It gives its ordinal
to another, and is lost until the pool is reset: one space for each 65,536 topics that came and went through it.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shmpool.arena import Record, make_chunk, make_meta, read_chunk, read_record, size_class, space_size, walk
from shmpool.engine import make_turnover
from shmpool.errors import PoolFullError
from shmpool.layout import (
    CHUNK,
    CHUNK_USED_SHIFT,
    COUNT,
    FREE,
    GENERATION_SHIFT,
    GROWTHS,
    INTENT,
    INTENT_INSERT,
    INTENT_REBUILD,
    INTENT_REUSE,
    INTENT_SETTLE,
    INTENT_SHIFT,
    LOW_40,
    MAX_GENERATION,
    META_LIVE,
    META_ORDINAL_MASK,
    META_ORDINAL_SHIFT,
    META_SIZE_MASK,
    OCCUPIED,
    OFFSET_MASK,
    RECORD_SIZE,
    RETIRED,
    SHELF_WORDS,
    SPACES,
    STRIPE_WORDS,
    TABLE,
    TABLE_REGION_SHIFT,
    TABLE_SERIAL_MASK,
    TABLE_SERIAL_SHIFT,
    TOMBSTONE,
    TOMBSTONES,
    UNHELD,
    WORD_SIZE,
    seal,
    unseal,
)
from shmpool.ledger import holds_of
from shmpool.lock import ByteLock
from shmpool.segment import Segment
from shmpool.stripe import Stripes, Table
from shmpool.table import build, ceiling, find_live, find_slot, free_slot, make_slot, read_table, remove_slot

Clock = Callable[[], int]  # monotonic, in ns; the same in all processes of the pool
_NO_ORDINAL: Final = META_ORDINAL_MASK
_WORD_MASK: Final = (1 << 64) - 1
# An eighth of a table's slots may be tombstones. Beside topics that stay they gather in long runs: when they were let come up to
# the table's ceiling, a search in vain read 13 slots on average and 24 at worst, against 2. One rebuild in some 800 pairs of hold
# and release is 0.2 us of each.
_TOMBSTONE_SHIFT: Final = 3


class Ledgers(NamedTuple):
    """A process's own ledgers: the words they start at, and how many columns of them are committed."""

    holds_word: int
    holds_count: int
    uses_word: int
    uses_count: int


class Place(NamedTuple):
    """The words of a process's own ledgers that count its holds and its uses of one topic."""

    holds: int
    uses: int


class ReusingStripes(Stripes):
    """The stripes of a pool whose policy lets topics go.

    What `find` gives, a handle, is the record's generation << 40 | its offset: with the pool's origin added, the ref.
    """

    def __init__(self, segment: Segment, grow_lock: ByteLock, clock: Clock) -> None:
        self.policy = segment.constants.policy
        self.clock = clock
        self.frees = 0  # by this process since it started counting
        self.evictions = 0
        self._shelves_word = segment.constants.geometry.shelves_offset // WORD_SIZE
        self._arena_word = segment.constants.geometry.arena_offset // WORD_SIZE
        self.unheld_counts = slice(
            self._shelves_word + UNHELD, self._shelves_word + segment.constants.geometry.stripe_count * SHELF_WORDS, SHELF_WORDS
        )
        super().__init__(segment, grow_lock)
        self._turnover = make_turnover(self.engine, self.geometry)

    # ---- without a lock

    def find(self, stripe: int, hash_: int, value: bytes) -> int:
        """The handle of a value's record, or -1; may miss one that is being inserted at this instant. One that is too old is
        missed."""
        known = self._turnover.find(value, self._oldest()) if self._turnover else None
        if known is not None:
            return known
        handle = self._find(stripe, hash_, value)
        return -1 if handle >= 0 and self.is_expired(handle & LOW_40) else handle

    def _find(self, stripe: int, hash_: int, value: bytes) -> int:
        words = self.segment.words
        row = self._stripes_word + stripe * STRIPE_WORDS
        while True:
            state = words[row]
            table = self._locate(stripe, state)
            if table.bits < 0:
                return -1
            handle = find_live(
                words, self.segment.data, table.word, (1 << table.bits) - 1, self._arena_offset, self.limit(), hash_, value
            )
            # The misses of a table that was replaced meanwhile mean nothing; its word never comes again (see `_rebuild`).
            if handle >= 0 or words[row] == state:
                return handle

    def find_many(self, stripe: int, items: list[tuple[int, bytes]]) -> list[int]:
        return [self.find(stripe, hash_, value) for hash_, value in items]

    def is_still(self, record: Record) -> bool:
        return record.live and read_record(self.segment, record.offset) == record

    def _oldest(self) -> int:
        """The time such that who is not held since then, or before, is too old; 0 where nobody is."""
        return max(self.clock() - self.policy.ttl_ns, 0) if self.policy.ttl_ns else 0

    def is_expired(self, offset: int) -> bool:
        """Whether nobody has held the record for longer than the policy keeps it."""
        if not self.policy.ttl_ns:
            return False
        stamp = self.stamp_of(offset)
        return stamp != 0 and stamp + self.policy.ttl_ns <= self.clock()

    def stamp_of(self, offset: int) -> int:
        """The time since when nobody holds a record, of the pool's clock in ns; 0 while somebody does."""
        return int(self.segment.words[self._stamp_word(offset)])

    def _stamp_word(self, offset: int) -> int:
        size = self.segment.words[self._arena_word + (offset >> 3) + 1] & META_SIZE_MASK
        end = offset + space_size(size)
        if end > self.limit():
            raise self._corrupt(f"the record at arena offset {offset} goes beyond the arena's {self.limit()} committed bytes")
        return self._arena_word + (end >> 3) - 1

    def column(self, record: Record) -> int:
        """A record's column in the ledgers."""
        return self._column(self.geometry.stripe_of(record.hash), record.ordinal)

    def _column(self, stripe: int, ordinal: int) -> int:
        # Beyond the last column there are other processes' ledgers, and the arena.
        if ordinal >= self.geometry.stripe_capacity:
            raise self._corrupt(f"stripe {stripe}: a record has ordinal {ordinal}, which there cannot be")
        return ordinal * self.geometry.stripe_count + stripe

    def records(self) -> Iterator[Record]:
        """Every live record, chunk by chunk in order of arena offset."""
        return (record for record in super().records() if record.live)

    def unheld_total(self) -> int:
        """Topics that nobody holds. About 0.5 us for 16 stripes."""
        return sum(self.segment.words[self.unheld_counts])

    def unheld(self, stripe: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Stamps and arena offsets of a stripe's topics that nobody holds, shapes (n,): a hint, for whoever has no lock."""
        offsets = self._live_offsets(stripe)
        if not self.segment.words[self.shelf(stripe) + UNHELD] or not len(offsets):
            return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        stamps = self._stamps(offsets)
        is_unheld = stamps != 0
        return stamps[is_unheld], offsets[is_unheld]

    def _live_offsets(self, stripe: int) -> NDArray[np.uint64]:
        """Arena offsets that a stripe's slots point at, shape (n,)."""
        table = self._locate(stripe, self.state(stripe))
        if table.bits < 0:
            return np.zeros(0, np.uint64)
        slots = read_table(self.segment.words, table.word, 1 << table.bits)
        offsets: NDArray[np.uint64] = slots[slots & np.uint64(OCCUPIED) != 0] & np.uint64(OFFSET_MASK)
        if len(offsets) and int(offsets.max()) + RECORD_SIZE > self.limit():
            raise self._corrupt(f"stripe {stripe}: a slot points beyond the arena's {self.limit()} committed bytes")
        return offsets

    def _stamps(self, offsets: NDArray[np.uint64]) -> NDArray[np.uint64]:
        arena = np.frombuffer(self.segment.words, np.uint64, self.limit() // WORD_SIZE, self._arena_offset)
        words = (offsets >> np.uint64(3)).astype(np.int64)
        sizes = arena[words + 1] & np.uint64(META_SIZE_MASK)
        distinct, which = np.unique(sizes, return_inverse=True)
        spaces = np.array([space_size(size) for size in distinct.tolist()], np.int64)[which]
        stamps: NDArray[np.uint64] = arena[np.minimum(words + spaces // WORD_SIZE, len(arena)) - 1]
        return stamps

    # ---- under the stripe's lock, after `recover`

    # What takes a hold puts the handle into `taken` at once, before a signal handler can run: whoever is interrupted on the way
    # out knows what to give back.

    def hold_plainly(
        self, value: bytes, ledgers: Ledgers, taken: list[int], *, may_insert: bool
    ) -> tuple[int, Place] | None:
        """The compiled engine's `hold` and `insert_held`, also before `recover`; None, and nothing was changed, where it is not
        in use or there is more to be done than it does."""
        held = self._turnover.hold(value, *ledgers, self._oldest(), may_insert, taken) if self._turnover else None
        if held is None:
            return None
        self.inserts += held[3]
        return held[0], Place(held[1], held[2])

    def drop_plainly(self, stripe: int, handle: int, holds_word: int) -> bool:
        """The compiled engine's `give_back` of this process's only hold; False, and nothing was changed, as in `hold_plainly`."""
        if not self._turnover:
            return False
        now = max(self.clock(), 1) if self.policy.keeps_unheld else 0
        is_gone = self._turnover.drop(stripe, handle & LOW_40, holds_word, now, self.policy.keeps_unheld)
        if is_gone is None:
            return False
        self.frees += is_gone
        return True

    def hold(
        self, stripe: int, hash_: int, value: bytes, place_of: Callable[[int], Place], taken: list[int]
    ) -> tuple[int, Place] | None:
        """Take a hold of a value's record: its handle, and the words that `place_of` gave for its column; None if there is no
        record. One that is too old goes first. Raises PoolFullError where the ledgers find no memory."""
        handle = self._find(stripe, hash_, value)
        if handle < 0:
            return None
        offset = handle & LOW_40
        if self.is_expired(offset) and self.evict(stripe, offset, 0):
            return None
        record = read_record(self.segment, offset)
        place = place_of(self.column(record))
        words = self.segment.words
        if words[place.holds] == _WORD_MASK:
            raise self._corrupt(f"stripe {stripe}: the holds of the record at arena offset {offset} are more than there can be")
        stamp_word = self._stamp_word(offset)
        row = self._stripes_word + stripe * STRIPE_WORDS
        if not words[stamp_word]:
            words[place.holds] += 1
            taken.append(handle)
            return handle, place
        words[row + INTENT] = INTENT_SETTLE << INTENT_SHIFT | offset
        words[place.holds] += 1
        taken.append(handle)
        words[stamp_word] = 0
        self._add(self.shelf(stripe) + UNHELD, -1)
        words[row + INTENT] = 0
        return handle, place

    def insert_held(
        self, stripe: int, hash_: int, value: bytes, place_of: Callable[[int], Place], taken: list[int]
    ) -> tuple[int, Place]:
        """Insert a value that `hold` did not find, held once. Returns what `hold` does.

        Raises PoolFullError, with nothing changed, where the stripe, the arena or the host's memory has no room.
        """
        words = self.segment.words
        row, shelf = self._stripes_word + stripe * STRIPE_WORDS, self.shelf(stripe)
        table = self.table(stripe)
        if words[row + COUNT] >= self.geometry.stripe_capacity:
            raise PoolFullError(
                f"pool {self.segment.pool_name!r}: stripe {stripe} holds {words[row + COUNT]} topics and takes no more. Nothing "
                "was changed. Create the pool with a larger capacity."
            )
        tombstones = words[shelf + TOMBSTONES]
        # By the slots alone: a stripe that is full but for the topic that was just evicted would rebuild for each tombstone.
        if tombstones << _TOMBSTONE_SHIFT >> table.bits or words[row + COUNT] + tombstones >= ceiling(1 << table.bits):
            table = self._rebuild(stripe, table)
        size = space_size(len(value))
        head = self._free_list(stripe, size_class(size))
        index = free_slot(words, table.word, (1 << table.bits) - 1, hash_)
        if index is None:
            raise self._corrupt(f"stripe {stripe}: a table that should have room has no free slot")
        is_tombstone = words[table.word + index] == TOMBSTONE
        if words[head]:
            offset, place = self._reuse(stripe, head, hash_, value, table.word + index, place_of)
        else:
            offset, place = self._append(stripe, size, hash_, value, table.word + index, place_of)
        handle = read_record(self.segment, offset).generation << GENERATION_SHIFT | offset
        words[place.holds] = 1
        taken.append(handle)
        words[row + COUNT] += 1
        self._add(shelf + TOMBSTONES, -is_tombstone)
        words[row + INTENT] = 0
        self.inserts += 1
        return handle, place

    def _reuse(
        self, stripe: int, head: int, hash_: int, value: bytes, slot_word: int, place_of: Callable[[int], Place]
    ) -> tuple[int, Place]:
        words = self.segment.words
        offset = words[head] & OFFSET_MASK
        free = self._read_free(stripe, offset, len(value))
        ordinal, generation = free.ordinal, free.generation + 1
        if ordinal == _NO_ORDINAL:
            ordinal, generation = self._find_ordinal(stripe, generation)
        place = place_of(self._column(stripe, ordinal))
        words[self._stripes_word + stripe * STRIPE_WORDS + INTENT] = INTENT_REUSE << INTENT_SHIFT | offset
        words[head] = free.hash  # the next
        self._write(free.offset, free.end, hash_, value, ordinal, generation)
        words[slot_word] = make_slot(hash_, offset)  # commits
        if free.ordinal != ordinal:
            self._give_up_ordinal(stripe, ordinal)
        return offset, place

    def _append(
        self, stripe: int, size: int, hash_: int, value: bytes, slot_word: int, place_of: Callable[[int], Place]
    ) -> tuple[int, Place]:
        words = self.segment.words
        row, shelf = self._stripes_word + stripe * STRIPE_WORDS, self.shelf(stripe)
        ordinal, generation = words[shelf + SPACES], 0
        is_fresh = ordinal < self.geometry.stripe_capacity
        if not is_fresh:
            ordinal, generation = self._find_ordinal(stripe, 0)
        place = place_of(self._column(stripe, ordinal))
        chunk, used = self._end_of_records(stripe, words[row + CHUNK])
        if used + size > self._chunk_size:
            chunk, used = self._grow_lock.run(self._take_chunk, stripe), 0
        offset = chunk * self._chunk_size + used
        if self.segment.data[self._arena_offset + offset : self._arena_offset + offset + size] != bytes(size):
            self._refuse_taken(self.table(stripe), offset, size)
        words[row + INTENT] = INTENT_INSERT << INTENT_SHIFT | offset
        self._write(offset, offset + size, hash_, value, ordinal, generation)
        words[slot_word] = make_slot(hash_, offset)  # commits
        words[self._chunks_word + chunk] += size << CHUNK_USED_SHIFT
        if is_fresh:
            words[shelf + SPACES] = ordinal + 1
        else:
            self._give_up_ordinal(stripe, ordinal)
        return offset, place

    def _write(self, offset: int, end: int, hash_: int, value: bytes, ordinal: int, generation: int) -> None:
        """A whole record, its second word last: until then it is free."""
        words = self.segment.words
        word = self._arena_word + (offset >> 3)
        words[self._arena_word + (end >> 3) - 1] = 0
        words[word] = hash_
        start = self._arena_offset + offset + RECORD_SIZE
        self.segment.data[start : start + len(value)] = value
        words[word + 1] = make_meta(ordinal, generation, len(value))

    def give_back(self, stripe: int, handle: int, place: Place) -> bool:
        """Give one of this process's holds back; False, and nothing was changed, if it has none."""
        words = self.segment.words
        count = words[place.holds]
        if count > 1:
            words[place.holds] = count - 1
        elif count:
            self.drop(stripe, handle & LOW_40, place.holds)
        return count > 0

    def drop(self, stripe: int, offset: int, holds_word: int) -> None:
        """Take all holds of one process from a record, and do what follows."""
        words = self.segment.words
        row = self._stripes_word + stripe * STRIPE_WORDS
        words[row + INTENT] = INTENT_SETTLE << INTENT_SHIFT | offset
        words[holds_word] = 0
        self._settle(stripe, offset)
        words[row + INTENT] = 0

    def drop_row(self, stripe: int, ledger_word: int, columns: NDArray[np.int64]) -> None:
        """`drop` for columns of this stripe in a row whose process is gone, or is going."""
        offsets = self._live_offsets(stripe)
        arena = np.frombuffer(self.segment.words, np.uint64, self.limit() // WORD_SIZE, self._arena_offset)
        metas = arena[(offsets >> np.uint64(3)).astype(np.int64) + 1]
        # With no intent, one that is free and has a slot is damaged: to settle it would hide that from `check`.
        offsets, metas = offsets[metas >= META_LIVE], metas[metas >= META_LIVE]
        ordinals = metas >> np.uint64(META_ORDINAL_SHIFT) & np.uint64(META_ORDINAL_MASK)
        found = (ordinals * np.uint64(self.geometry.stripe_count) + np.uint64(stripe)).tolist()
        place = dict(zip(found, offsets.tolist(), strict=True))
        for column in columns.tolist():
            if column in place:
                self.drop(stripe, place[column], ledger_word + column)
            else:
                self.segment.words[ledger_word + column] = 0  # of no topic: only damage can have put it there

    def evict(self, stripe: int, offset: int, stamp: int) -> bool:
        """Free a record that nobody holds. With a stamp, only if it is unheld since then. False if it is held, or gone."""
        if self._turnover and self._turnover.evict(stripe, offset, stamp):
            self.evictions += 1
            return True
        words = self.segment.words
        record = read_record(self.segment, offset)
        if not record.live or self.geometry.stripe_of(record.hash) != stripe:
            return False
        if not self._has_slot(self.table(stripe), record.hash, offset):
            return False
        stamp_word = self._stamp_word(offset)
        if not words[stamp_word] or (stamp and words[stamp_word] != stamp):
            return False
        if holds_of(self.segment, self.column(record), self.epoch):
            return False
        row = self._stripes_word + stripe * STRIPE_WORDS
        words[row + INTENT] = INTENT_SETTLE << INTENT_SHIFT | offset
        self._free(stripe, offset)
        words[row + INTENT] = 0
        self.evictions += 1
        return True

    def _settle(self, stripe: int, offset: int) -> None:
        """Do what follows from the holds of a record; may be run again at any time. A free one is on its list afterwards."""
        words = self.segment.words
        record = read_record(self.segment, offset)
        if not record.live:
            self._finish_free(stripe, offset)
            return
        stamp_word = self._stamp_word(offset)
        shelf = self.shelf(stripe)
        if holds_of(self.segment, self.column(record), self.epoch):
            if words[stamp_word]:
                words[stamp_word] = 0
                self._add(shelf + UNHELD, -1)
        elif not self.policy.keeps_unheld:
            self._free(stripe, offset)
            self.frees += 1
        elif not words[stamp_word]:
            words[stamp_word] = max(self.clock(), 1)
            self._add(shelf + UNHELD, 1)

    def _free(self, stripe: int, offset: int) -> None:
        words = self.segment.words
        words[self._arena_word + (offset >> 3) + 1] &= ~META_LIVE  # commits
        self._finish_free(stripe, offset)

    def _finish_free(self, stripe: int, offset: int) -> None:
        """Take a free record's slot, and put its space onto its list; what of that was done is not done again."""
        words = self.segment.words
        row, shelf = self._stripes_word + stripe * STRIPE_WORDS, self.shelf(stripe)
        record = read_record(self.segment, offset)
        table = self.table(stripe)
        mask = (1 << table.bits) - 1
        stamp_word = self._stamp_word(offset)
        if words[stamp_word]:
            words[stamp_word] = 0
            self._add(shelf + UNHELD, -1)
        # Once it is on the list its hash is gone, and its slot before that.
        index = find_slot(words, table.word, mask, make_slot(record.hash, offset), record.hash)
        if index is not None:
            self._add(shelf + TOMBSTONES, remove_slot(words, table.word, mask, index))
            self._add(row + COUNT, -1)
        self._shelve(stripe, record)

    def _shelve(self, stripe: int, record: Record) -> None:
        words = self.segment.words
        if record.generation == MAX_GENERATION:
            head = self.shelf(stripe) + RETIRED
        else:
            head = self._free_list(stripe, size_class(record.end - record.offset))
        if words[head] != record.offset | OCCUPIED:
            words[self._arena_word + (record.offset >> 3)] = words[head]
            words[head] = record.offset | OCCUPIED

    def _add(self, word: int, count: int) -> None:
        """Add to a word that is only a sum. One that is damaged stays what a word can be: `check` tells, a recovery counts anew,
        and the operation comes to its end."""
        self.segment.words[word] = min(max(self.segment.words[word] + count, 0), _WORD_MASK)

    def shelf(self, stripe: int) -> int:
        """The word at which a stripe's shelf starts."""
        return self._shelves_word + stripe * SHELF_WORDS

    def _free_list(self, stripe: int, number: int) -> int:
        return self.shelf(stripe) + FREE + number

    def _read_free(self, stripe: int, offset: int, size: int) -> Record:
        """The free record that a list of this stripe begins with, for a value of `size` bytes. Raises PoolCorruptError."""
        if offset + RECORD_SIZE <= self.limit():
            record = read_record(self.segment, offset)
            chunk = read_chunk(self.segment, offset // self._chunk_size, self.epoch)
            if (
                not record.live
                and record.generation < MAX_GENERATION  # or its ref would begin anew, and a stale one be another topic's
                and record.end - offset == space_size(size)
                and chunk.owner == stripe
                and record.end <= offset // self._chunk_size * self._chunk_size + chunk.used
            ):
                return record
        raise self._corrupt(f"stripe {stripe}: the list of its free spaces leads to arena offset {offset}, which is none")

    # ---- ordinals, once there are as many spaces as a stripe may have topics

    # A space keeps its ordinal while it is free. Where sizes drift that leaves none for a new space, and it takes one from a
    # free space, which must ask for another when its turn comes. Rare; so free spaces are searched, not listed.

    def _all_free_spaces(self, stripe: int) -> Iterator[Record]:
        shelf = self.shelf(stripe)
        for head in (*range(shelf + FREE, shelf + SHELF_WORDS), shelf + RETIRED):
            yield from self.free_spaces(head)

    def free_spaces(self, head: int) -> Iterator[Record]:
        """The free spaces of a list, by its head's word; bounded, whatever the bytes say. Raises PoolCorruptError."""
        state = self.segment.words[head]
        for _ in range(self.limit() // RECORD_SIZE):
            if not state:
                return
            offset = state & OFFSET_MASK
            if offset + RECORD_SIZE > self.limit():
                raise self._corrupt(f"a list of free spaces leads to arena offset {offset}, which is none")
            record = read_record(self.segment, offset)
            yield record
            state = record.hash

    def _find_ordinal(self, stripe: int, generation: int) -> tuple[int, int]:
        """An ordinal that a free space of the stripe has, and the generation for a record that takes it into a space whose own
        next is `generation`: later than both, so that uses of neither's old topics count (but for a retired one's)."""
        for record in self._all_free_spaces(stripe):
            if record.ordinal != _NO_ORDINAL:
                is_retired = record.generation == MAX_GENERATION
                return record.ordinal, generation if is_retired else max(generation, record.generation + 1)
        raise self._corrupt(f"stripe {stripe}: it has free spaces for more topics than it holds, and no ordinal for them")

    def _give_up_ordinal(self, stripe: int, ordinal: int) -> bool:
        """Leave a free space that has this ordinal without one; whether there was such a space."""
        words = self.segment.words
        for record in self._all_free_spaces(stripe):
            if record.ordinal == ordinal:
                words[self._arena_word + (record.offset >> 3) + 1] |= _NO_ORDINAL << META_ORDINAL_SHIFT
                return True
        return False

    # ---- tables

    def _rebuild(self, stripe: int, table: Table) -> Table:
        """A table without tombstones: of the same size, in the other region, or of the next where half the slots are in use.

        Readers of the table so far see by the changed word that their misses mean nothing. The word counts rebuilds: were it the
        same again after two, a reader that was slow would trust what it read of a table that was being written.
        """
        words = self.segment.words
        row = self._stripes_word + stripe * STRIPE_WORDS
        content = unseal(table.state)
        assert content is not None  # it was checked when the table was found
        place = content[1]
        bits = table.bits
        region = ~place >> TABLE_REGION_SHIFT & 1
        if words[row + COUNT] * 2 > 1 << bits and bits < self.geometry.max_table_bits:
            bits, region = bits + 1, 0
        start = self.geometry.table_offset(stripe, region, bits)
        self.segment.commit(start, WORD_SIZE << bits)
        slots = read_table(words, table.word, 1 << table.bits)
        slots = slots[slots & np.uint64(OCCUPIED) != 0]
        places = ((slots & np.uint64(OFFSET_MASK)) >> np.uint64(3)).astype(np.int64)
        if len(places) and int(places.max()) * WORD_SIZE + RECORD_SIZE > self.limit():
            raise self._corrupt(f"stripe {stripe}: a slot points beyond the arena's {self.limit()} committed bytes")
        arena = np.frombuffer(words, np.uint64, self.limit() // WORD_SIZE, self._arena_offset)
        built = build(arena[places], slots, 1 << bits)
        self.segment.data[start : start + built.nbytes] = built.tobytes()
        serial = (place >> TABLE_SERIAL_SHIFT) + 1 & TABLE_SERIAL_MASK
        words[row + INTENT] = INTENT_REBUILD << INTENT_SHIFT | serial
        words[row + TABLE] = seal(self.epoch, serial << TABLE_SERIAL_SHIFT | region << TABLE_REGION_SHIFT | bits)  # commits
        words[self.shelf(stripe) + TOMBSTONES] = 0
        words[row + GROWTHS] += bits > table.bits
        words[row + INTENT] = 0
        return self.table(stripe)

    def _serial(self, stripe: int) -> int:
        """How often the stripe's table was replaced."""
        content = unseal(self.table(stripe).state)
        assert content is not None  # it was checked when the table was found
        return content[1] >> TABLE_SERIAL_SHIFT

    # ---- what a killed holder left

    def _start(self, stripe: int) -> None:
        self.refuse_unstarted_owner(stripe)
        start = self.shelf(stripe) * WORD_SIZE
        self.segment.data[start : start + SHELF_WORDS * WORD_SIZE] = bytes(SHELF_WORDS * WORD_SIZE)
        super()._start(stripe)

    def _recover(self, stripe: int, operation: int, place: int) -> bool | None:
        if operation == INTENT_INSERT:
            forward = self._recover_insert(stripe, place)
        elif operation in (INTENT_REUSE, INTENT_SETTLE):
            # Every record up to there is looked at, which may take some ms: in the middle of one a value would be written over.
            chunk = place // self._chunk_size
            if all(record.offset != place for record in walk(self.segment, chunk, self._used_of(stripe, chunk))):
                raise self._corrupt(f"stripe {stripe}: its intent names arena offset {place}, where no record is")
            forward = operation == INTENT_SETTLE or self._recover_reuse(stripe, place)
        elif operation == INTENT_REBUILD:
            self._count(stripe)
            return self._serial(stripe) == place
        else:
            return super()._recover(stripe, operation, place)
        # Before it is settled, which goes on from there: a count that still lacks the record would fall below 0.
        self._count(stripe)
        if forward:
            # What an insert had to do is done. Were this one killed while it frees the record, the next would take it for one
            # that never was inserted.
            self.segment.words[self._stripes_word + stripe * STRIPE_WORDS + INTENT] = INTENT_SETTLE << INTENT_SHIFT | place
            self._settle(stripe, place)
        return forward

    def _recover_insert(self, stripe: int, offset: int) -> bool:
        words = self.segment.words
        chunk, start = offset // self._chunk_size, offset % self._chunk_size
        used = self._used_of(stripe, chunk)
        record = read_record(self.segment, offset) if not offset % 8 and start + RECORD_SIZE <= self._chunk_size else None
        end = record.end - offset + start if record else -1
        if record is None or used not in (start, end):
            raise self._corrupt(f"stripe {stripe}: its intent names arena offset {offset}, and chunk {chunk} is used to {used}")
        if not record.live or end > self._chunk_size or not self._has_slot(self.table(stripe), record.hash, offset):
            return False
        words[self._chunks_word + chunk] = make_chunk(end, stripe, self.epoch)
        spaces_word = self.shelf(stripe) + SPACES
        if words[spaces_word] == self.geometry.stripe_capacity:
            self._give_up_ordinal(stripe, record.ordinal)
        words[spaces_word] = max(words[spaces_word], record.ordinal + 1)
        return True

    def _recover_reuse(self, stripe: int, offset: int) -> bool:
        words = self.segment.words
        record = read_record(self.segment, offset)
        is_full = words[self.shelf(stripe) + SPACES] == self.geometry.stripe_capacity
        if record.live and self._has_slot(self.table(stripe), record.hash, offset):
            if is_full:
                self._give_up_ordinal(stripe, record.ordinal)
            return True
        if record.live:
            meta_word = self._arena_word + (offset >> 3) + 1
            is_taken = is_full and any(free.ordinal == record.ordinal for free in self._all_free_spaces(stripe))
            words[meta_word] = words[meta_word] & ~META_LIVE | (_NO_ORDINAL << META_ORDINAL_SHIFT if is_taken else 0)
        self._shelve(stripe, read_record(self.segment, offset))
        return False

    def _count(self, stripe: int) -> None:
        """Set what is only a sum."""
        words = self.segment.words
        row, shelf = self._stripes_word + stripe * STRIPE_WORDS, self.shelf(stripe)
        table = self.table(stripe)
        offsets = self._live_offsets(stripe)
        words[row + COUNT] = len(offsets)
        words[shelf + TOMBSTONES] = int((read_table(words, table.word, 1 << table.bits) == TOMBSTONE).sum())
        words[shelf + UNHELD] = int((self._stamps(offsets) != 0).sum()) if len(offsets) else 0


def make_stripes(segment: Segment, grow_lock: ByteLock, clock: Clock = time.monotonic_ns) -> Stripes:
    """The stripes of a pool, whatever its policy."""
    return ReusingStripes(segment, grow_lock, clock) if segment.constants.geometry.reuses else Stripes(segment, grow_lock)
