"""Stripes: table and arena composed, so that a `kill -9` between any two stores leaves something recovery can finish.

A stripe is a part of the hash space with a lock, a table and arena chunks of its own. Its records, and the slots that point at
them, are the truth. Everything else (how much of a chunk is used, which chunk is current, the count) is set from them.

Inserts under the stripe's lock, a batch of records that fit the chunk: intent; the records at the chunk's end; their slots, each
of which commits its record; the chunk's used bytes; the count; intent cleared. `recover`, first thing under the lock, finds no
intent and is done, or looks which of the records at the intended place a slot points at: it repeats the last steps for
those. Each of its own stores can be repeated, so it may die and be run again.
"""

from collections.abc import Iterator
from operator import invert
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shmpool.arena import (
    Record,
    make_chunk,
    make_record,
    read_chunk,
    read_record,
    walk,
)
from shmpool.engine import make_engine
from shmpool.errors import PoolCorruptError, PoolFullError
from shmpool.layout import (
    ARENA_LIMIT_WORD,
    CHUNK,
    CHUNK_EPOCH_SHIFT,
    CHUNK_OWNER_MASK,
    CHUNK_USED_SHIFT,
    COUNT,
    GENERATION_SHIFT,
    GROWTHS,
    INTENT,
    INTENT_INSERT,
    INTENT_SHIFT,
    INTENT_TAKE_CHUNK,
    META_ORDINAL_MASK,
    META_ORDINAL_SHIFT,
    MIN_TABLE_BITS,
    OFFSET_MASK,
    RECORD_SIZE,
    ROLLBACKS,
    ROLLFORWARDS,
    STRIPE_WORDS,
    TABLE,
    TABLE_BITS_MASK,
    TABLE_REGION_SHIFT,
    TABLE_SERIAL_SHIFT,
    WORD_SIZE,
    TopicRef,
    seal,
    unseal,
)
from shmpool.lock import ByteLock
from shmpool.segment import Segment
from shmpool.table import build, ceiling, find, find_slot, make_slot, read_table

PLACE_MASK: Final = (1 << INTENT_SHIFT) - 1

Item = tuple[int, bytes, int]  # a value's hash, the value, and what `find` gave for it


class Table(NamedTuple):
    """Where a stripe's table is: `state` is the table word that said so, `ceiling` the records it holds before it must grow."""

    state: int
    word: int
    bits: int
    ceiling: int


_EMPTY: Final = Table(0, 0, -1, 0)


class Stripes:
    """The stripes of one attached pool. `find` and `records` need no lock; `find_or_insert` and `recover` need the stripe's."""

    def __init__(self, segment: Segment, grow_lock: ByteLock) -> None:
        self.segment = segment
        self.geometry = segment.constants.geometry
        self._grow_lock = grow_lock
        self.engine = make_engine(segment.words, segment.constants)
        self._stripes_word = self.geometry.stripes_offset // WORD_SIZE
        self.counts = slice(
            self._stripes_word + COUNT, self._stripes_word + self.geometry.stripe_count * STRIPE_WORDS, STRIPE_WORDS
        )
        self._chunks_word = self.geometry.chunks_offset // WORD_SIZE
        self._arena_offset = self.geometry.arena_offset
        self._chunk_size = self.geometry.chunk_size
        self.inserts = 0  # by this process since it started counting
        self.rollbacks = 0
        self.rollforwards = 0
        self.refresh()

    def refresh(self) -> None:
        """Read the epoch, after attaching and after a reset. It cannot change otherwise: a reset needs the pool to itself."""
        self.epoch, origin = self.segment.read_epoch()
        if self.engine:
            self.engine.start_epoch(self.epoch)
        self._tables = [_EMPTY] * self.geometry.stripe_count
        self._limit = (0, 0)  # the arena's limit word, and the bytes it stands for
        # Last, for whoever searches meanwhile: with the new origin before, a record from before the reset would make a new ref.
        self.origin = origin

    def unfinished(self) -> list[int]:
        """Stripes that still count what a reset dropped: its process was killed before it had emptied them. To be recovered
        before `total` is asked."""
        rows = range(self._stripes_word, self.counts.stop, STRIPE_WORDS)
        words = self.segment.words
        return [i for i, row in enumerate(rows) if words[row + COUNT] and not self.is_started(i)]

    def is_started(self, stripe: int) -> bool:
        """Whether the stripe was used since the pool was made or reset; until then it is empty and has no table."""
        return self._locate(stripe, self.state(stripe)).bits >= 0

    def find(self, stripe: int, hash_: int, value: bytes) -> int:
        """The arena offset of a value's record, or below 0; may miss one that is being inserted at this instant.

        Under the stripe's lock and after `recover` a miss is certain. `find_or_insert` takes what it gave.
        """
        words = self.segment.words
        row = self._stripes_word + stripe * STRIPE_WORDS
        while True:
            state = words[row]
            table = self._tables[stripe]
            if state != table.state:
                table = self._locate(stripe, state)
            if table.bits < 0:
                return -1
            known = self._limit
            offset = find(
                words,
                self.segment.data,
                table.word,
                (1 << table.bits) - 1,
                self._arena_offset,
                known[1] if known[0] == words[ARENA_LIMIT_WORD] else self.limit(),
                hash_,
                value,
            )
            # A table that was replaced while it was probed may lack what was inserted since.
            if offset >= 0 or words[row] == state:
                return offset

    def find_many(self, stripe: int, items: list[tuple[int, bytes]]) -> list[int]:
        """`find` for hashes and values of one stripe, without its overhead for each."""
        if self.engine:
            self._locate(stripe, self.state(stripe))  # so that the engine knows the table
            found = self.engine.find_many(items)
            if len(found) == len(items):
                return found
        words, data = self.segment.words, self.segment.data
        row = self._stripes_word + stripe * STRIPE_WORDS
        while True:
            state = words[row]
            table = self._locate(stripe, state)
            if table.bits < 0:
                return [-1] * len(items)
            mask, limit = (1 << table.bits) - 1, self.limit()
            offsets = [find(words, data, table.word, mask, self._arena_offset, limit, hash_, value) for hash_, value in items]
            if words[row] == state:
                return offsets

    def _locate(self, stripe: int, state: int) -> Table:
        table = self._tables[stripe]
        if state == table.state:
            return table
        content = unseal(state)
        if content is None:
            raise self._corrupt(f"stripe {stripe}: its table word {state:#018x} is damaged")
        epoch, place = content
        if epoch > self.epoch:
            raise self._corrupt(f"stripe {stripe}: its table word is of epoch {epoch}, and the pool's is {self.epoch}")
        if epoch != self.epoch:
            return _EMPTY  # untouched since the pool was made or reset
        bits, region = place & TABLE_BITS_MASK, place >> TABLE_REGION_SHIFT & 1
        is_first = not place >> TABLE_SERIAL_SHIFT  # of its size: there are no others where nothing goes
        if not MIN_TABLE_BITS <= bits <= self.geometry.max_table_bits or not (is_first or self.geometry.reuses):
            raise self._corrupt(f"stripe {stripe}: its table word names no table (2**{bits} slots in region {region})")
        start = self.geometry.table_offset(stripe, region, bits)
        if not self.segment.is_written(start, WORD_SIZE << bits):  # an honest one was, before its word was stored
            raise self._corrupt(f"stripe {stripe}: its table word names no table (2**{bits} slots nobody wrote, region {region})")
        most = min(ceiling(1 << bits), self.geometry.stripe_capacity)
        table = Table(state, start // WORD_SIZE, bits, most)
        self._tables[stripe] = table
        if self.engine:
            self.engine.know_table(stripe, state)
        return table

    def table(self, stripe: int) -> Table:
        """The table, for who holds the lock and has run `recover`."""
        return self._locate(stripe, self.segment.words[self._stripes_word + stripe * STRIPE_WORDS + TABLE])

    def points_at(self, record: Record) -> bool:
        """Whether a slot on the record's probe path points at it: a record that was inserted, not bytes that look like one."""
        stripe = self.geometry.stripe_of(record.hash)
        while True:
            state = self.segment.words[self._stripes_word + stripe * STRIPE_WORDS]
            table = self._locate(stripe, state)
            if table.bits < 0:
                return False
            if self._has_slot(table, record.hash, record.offset):
                return True
            if self.segment.words[self._stripes_word + stripe * STRIPE_WORDS] == state:
                return False

    def _has_slot(self, table: Table, hash_: int, offset: int) -> bool:
        slot = make_slot(hash_, offset)
        return find_slot(self.segment.words, table.word, (1 << table.bits) - 1, slot, hash_) is not None

    def count(self, stripe: int) -> int:
        """Records of one stripe."""
        return int(self.segment.words[self._stripes_word + stripe * STRIPE_WORDS + COUNT])

    def total(self) -> int:
        """Records of all stripes, exact while nobody inserts. About 0.5 us for 16 stripes."""
        return sum(self.segment.words[self.counts])

    def insert(self, value: bytes) -> int | None:
        """The compiled engine's way for one value, with room for it, under its stripe's lock: its offset, or None and nothing was
        changed. About 0.2 us."""
        offset = self.engine.insert(value) if self.engine else None
        if offset is None or offset >= 0:
            return offset
        self.inserts += 1
        return ~offset

    def find_or_insert(
        self, stripe: int, seen: int, items: list[Item], room: int
    ) -> tuple[list[int], PoolFullError | None]:
        """The arena offsets of distinct values that `find` missed, inserting those that are missing still.

        For who holds the stripe's lock; `seen` is the stripe's `state` from before the search that missed. Ends early, with
        fewer offsets than items, at the first that would be insert number `room` + 1, or, with an error, for which the stripe,
        the arena or the host's memory has no room. Those before are inserted then, and nothing else is changed.
        """
        if not self.engine:
            return self._find_or_insert(stripe, seen, items, room)
        offsets: list[int] = []
        last = self.inserts + room
        while True:
            # Damaged counts make a room that is below what fits a C integer.
            found = self.engine.insert_many(items, max(0, min(last - self.inserts, len(items))))
            made = sum(map((0).__gt__, found))
            self.inserts += made  # no call within the statement: at one, another thread's or a handler's inserts would be lost
            offsets += map(max, found, map(invert, found))
            if len(found) == len(items):
                return offsets, None
            # One that needs a table, a chunk, a recovery, or an error.
            other, error = self._find_or_insert(stripe, seen, [items[len(found)]], last - self.inserts)
            offsets += other
            items = items[len(found) + 1 :]
            if not other or not items:
                return offsets, error

    def _find_or_insert(
        self, stripe: int, seen: int, items: list[Item], room: int
    ) -> tuple[list[int], PoolFullError | None]:
        """`find_or_insert`, all in Python."""
        words = self.segment.words
        row = self._stripes_word + stripe * STRIPE_WORDS
        table = self._locate(stripe, words[row + TABLE])
        if words[row + INTENT] or table.bits < 0:
            self.recover(stripe)
            table = self.table(stripe)
        slot_count = 1 << table.bits
        chunk, start = self._end_of_records(stripe, words[row + CHUNK])
        used, count = start, words[row + COUNT]
        offsets: list[int] = []
        slots: dict[int, int] = {}  # decided on and not yet published, by index; and their records
        records: list[bytes] = []
        for hash_, value, miss in items:
            index = ~miss
            # A slot that was free in this very table and still is spares the second search of nearly every insert.
            if table.state != seen or index >= slot_count or words[table.word + index] or index in slots:
                index = self._search_again(table, hash_, value, slots)
                if index < 0:
                    offsets.append(~index)
                    continue
            if room <= 0:
                break
            room -= 1
            size = RECORD_SIZE + len(value) + 7 & -8
            if count >= table.ceiling or used + size > self._chunk_size:
                if slots:
                    self._publish(row, table, chunk, start, used, count, records, slots)
                    slots, records = {}, []
                start = used
                try:
                    if count >= table.ceiling:
                        table = self._grow(stripe, table, count)
                        slot_count = 1 << table.bits
                        index = self._free_slot(table, hash_, slots)
                    if used + size > self._chunk_size:
                        chunk, start = self._grow_lock.run(self._take_chunk, stripe), 0
                except PoolFullError as error:
                    return offsets, error
                used = start
            offset = chunk * self._chunk_size + used
            slots[index] = make_slot(hash_, offset)
            records.append(make_record(hash_, value, count))
            offsets.append(offset)
            used += size
            count += 1
        if slots:
            self._publish(row, table, chunk, start, used, count, records, slots)
        return offsets, None

    def state(self, stripe: int) -> int:
        """A word that changes whenever the stripe's table is replaced: tables only ever grow while anyone is attached."""
        return int(self.segment.words[self._stripes_word + stripe * STRIPE_WORDS])

    def _end_of_records(self, stripe: int, current: int) -> tuple[int, int]:
        """The chunk that a stripe's row says is being filled and how much of it is used; a full one where there is none."""
        return (current - 1, self._used_of(stripe, current - 1)) if current else (0, self._chunk_size)

    def _publish(
        self, row: int, table: Table, chunk: int, start: int, used: int, count: int, records: list[bytes], slots: dict[int, int]
    ) -> None:
        """Write records from `start` to `used` of a chunk, then their slots one by one, each of which commits its record."""
        words = self.segment.words
        place, size = chunk * self._chunk_size + start, used - start
        if self.segment.data[self._arena_offset + place : self._arena_offset + place + size] != bytes(size):
            self._refuse_taken(table, place, size)
        words[row + INTENT] = INTENT_INSERT << INTENT_SHIFT | place
        self.segment.data[self._arena_offset + place : self._arena_offset + place + used - start] = b"".join(records)
        for index, slot in slots.items():
            words[table.word + index] = slot
        words[self._chunks_word + chunk] += used - start << CHUNK_USED_SHIFT
        words[row + COUNT] = count
        words[row + INTENT] = 0
        made = len(slots)
        self.inserts += made  # as in `find_or_insert`

    def _refuse_taken(self, table: Table, place: int, size: int) -> None:
        """Free space is zero, or what a killed insert left there. A slot that points into it means that the chunk is used further
        than it says, and to write there would give a record's ref to another value."""
        slots = read_table(self.segment.words, table.word, 1 << table.bits)
        offsets = slots[slots != 0] & np.uint64(OFFSET_MASK)
        taken = offsets[(offsets >= place) & (offsets < place + size)]
        if len(taken):
            raise self._corrupt(f"arena offset {taken.min()} should be free and holds a record")

    def _search_again(self, table: Table, hash_: int, value: bytes, taken: dict[int, int]) -> int:
        """~offset of a value that was inserted meanwhile, or the index of a free slot for it that is not taken by a batch."""
        limit = self.limit()
        mask = (1 << table.bits) - 1
        found = find(self.segment.words, self.segment.data, table.word, mask, self._arena_offset, limit, hash_, value)
        return ~found if found >= 0 else self._free_slot(table, hash_, taken)

    def _free_slot(self, table: Table, hash_: int, taken: dict[int, int]) -> int:
        words, mask = self.segment.words, (1 << table.bits) - 1
        for index in range(hash_ & mask, (hash_ & mask) + mask + 1):
            if not words[table.word + (index & mask)] and index & mask not in taken:
                return index & mask
        raise self._corrupt("a table that should have room has no free slot")

    def _grow(self, stripe: int, table: Table, count: int) -> Table:
        """Double the table of `count` records.

        Needs no intent: until its word is published, the new table is memory that nobody reads. The region belongs to this
        stripe alone, so committing it needs no lock but the stripe's.
        """
        bits = table.bits + 1
        if count >= self.geometry.stripe_capacity or bits > self.geometry.max_table_bits:
            raise PoolFullError(
                f"pool {self.segment.pool_name!r}: stripe {stripe} holds {count} topics and takes no more. Nothing was changed. "
                "Create the pool with a larger capacity."
            )
        start = self.geometry.table_offset(stripe, 0, bits)
        self.segment.commit(start, WORD_SIZE << bits)
        slots = read_table(self.segment.words, table.word, 1 << table.bits)
        slots = slots[slots != 0]
        offsets = (slots & np.uint64(OFFSET_MASK)).astype(np.int64)
        limit = self.limit()
        if len(offsets) and int(offsets.max()) + RECORD_SIZE > limit:
            raise self._corrupt(f"stripe {stripe}: a slot points beyond the arena's {limit} committed bytes")
        records = np.frombuffer(self.segment.words, np.uint64, limit // WORD_SIZE, self._arena_offset)
        grown = build(records[offsets // WORD_SIZE], slots, 1 << bits)
        self.segment.data[start : start + grown.nbytes] = grown.tobytes()
        row = self._stripes_word + stripe * STRIPE_WORDS
        self.segment.words[row + TABLE] = seal(self.epoch, bits)  # commits
        self.segment.words[row + GROWTHS] += 1
        return self.table(stripe)

    def refuse_unstarted_owner(self, stripe: int) -> None:
        """For a stripe without a table: only one with a table takes chunks, so if it has some, its table word was lost. To start
        it over would lose the table too."""
        chunks = range(self.limit() // self._chunk_size)
        if any(read_chunk(self.segment, chunk, self.epoch).owner == stripe for chunk in chunks):
            raise self._corrupt(f"stripe {stripe}: it has chunks of the arena and no table")

    def _used_of(self, stripe: int, chunk: int) -> int:
        """How much of a chunk is used; raises PoolCorruptError unless the stripe owns it."""
        words = self.segment.words
        if chunk * self._chunk_size < self.limit():
            # Beyond an honest word's owner and epoch there is nothing left but the bytes used.
            state = words[self._chunks_word + chunk] - (self.epoch << CHUNK_EPOCH_SHIFT | (stripe + 1))
            if 0 <= state <= self._chunk_size << CHUNK_USED_SHIFT and not state & (7 << CHUNK_USED_SHIFT | CHUNK_OWNER_MASK):
                return int(state >> CHUNK_USED_SHIFT)
        raise self._corrupt(f"stripe {stripe}: its chunk {chunk} is not its own")

    def _take_chunk(self, stripe: int) -> int:
        """Under the stripe's lock and the grow lock."""
        words, geometry = self.segment.words, self.geometry
        limit = self.limit()
        chunk = limit // geometry.chunk_size
        if chunk >= geometry.chunk_count:
            raise PoolFullError(
                f"pool {self.segment.pool_name!r}: all {geometry.arena_size} bytes of its arena are taken. Nothing was changed. "
                "Create the pool with a larger arena_size."
            )
        self.segment.commit((self._chunks_word + chunk) * WORD_SIZE, WORD_SIZE)
        self.segment.commit(geometry.arena_offset + limit, geometry.chunk_size)
        if read_chunk(self.segment, chunk, self.epoch).used:  # an owner without records is a taker that died here
            raise self._corrupt(f"its arena's limit is {limit}, and chunk {chunk} beyond it is in use")
        start = geometry.arena_offset + limit
        self.segment.data[start : start + geometry.chunk_size] = bytes(geometry.chunk_size)  # of what a reset dropped
        row = self._stripes_word + stripe * STRIPE_WORDS
        words[row + INTENT] = INTENT_TAKE_CHUNK << INTENT_SHIFT | chunk
        words[self._chunks_word + chunk] = make_chunk(0, stripe, self.epoch)
        words[ARENA_LIMIT_WORD] = seal(self.epoch, limit + geometry.chunk_size)  # commits
        words[row + CHUNK] = chunk + 1
        words[row + INTENT] = 0
        return int(chunk)

    def recover(self, stripe: int) -> None:
        """Finish or undo what a killed or interrupted holder of the lock left; prepare a stripe that is new or was reset."""
        words = self.segment.words
        row = self._stripes_word + stripe * STRIPE_WORDS
        if not self.is_started(stripe):
            self._start(stripe)
        intent = words[row + INTENT]
        if not intent:
            return
        forward = self._recover(stripe, intent >> INTENT_SHIFT, intent & PLACE_MASK)
        if forward is None:
            raise self._corrupt(f"stripe {stripe}: its intent is {intent:#x}, which is none")
        words[row + (ROLLFORWARDS if forward else ROLLBACKS)] += 1
        words[row + INTENT] = 0
        self.rollforwards += forward  # no mutex: a signal handler that recovers another stripe would wait for its own thread
        self.rollbacks += not forward

    def _recover(self, stripe: int, operation: int, place: int) -> bool | None:
        """Whether an operation that was begun was finished, or else undone; None where there is no such operation."""
        if operation == INTENT_INSERT:
            return self._recover_insert(stripe, place)
        return self._recover_take_chunk(stripe, place) if operation == INTENT_TAKE_CHUNK else None

    def _start(self, stripe: int) -> None:
        """Make the stripe empty; may die anywhere and be run again, for the table word comes last."""
        self.refuse_unstarted_owner(stripe)
        row = self._stripes_word + stripe * STRIPE_WORDS
        start = self.geometry.table_offset(stripe, 0, MIN_TABLE_BITS)
        size = WORD_SIZE << MIN_TABLE_BITS
        self.segment.commit(start, size)
        self.segment.data[start : start + size] = bytes(size)
        words = self.segment.words
        words[row + INTENT] = 0
        words[row + COUNT] = 0
        words[row + CHUNK] = 0
        words[row + TABLE] = seal(self.epoch, MIN_TABLE_BITS)

    def _recover_insert(self, stripe: int, offset: int) -> bool:
        words = self.segment.words
        row = self._stripes_word + stripe * STRIPE_WORDS
        chunk = offset // self.geometry.chunk_size
        used = self._used_of(stripe, chunk)
        if offset % 8 or offset % self.geometry.chunk_size + RECORD_SIZE > self.geometry.chunk_size:
            raise self._corrupt(f"stripe {stripe}: its intent names arena offset {offset}, where no record can be")
        table, start = self.table(stripe), chunk * self._chunk_size
        end, count = offset, -1
        # Of a batch, what a slot points at was inserted, up to the first record that none does. What is written beyond that
        # means nothing: no slot leads to it, and the chunk's used bytes end before it.
        while end + RECORD_SIZE <= start + self._chunk_size:
            record = read_record(self.segment, end)
            if not record.live or record.end > start + self._chunk_size or not self._has_slot(table, record.hash, end):
                break
            end, count = record.end, record.ordinal + 1
        # An honest intent was set with the chunk filled to its place, and is cleared after it was filled to the end.
        if used not in (offset - start, end - start):
            raise self._corrupt(f"stripe {stripe}: its intent names arena offset {offset}, and chunk {chunk} is used to {used}")
        if count < 0:
            return False
        words[self._chunks_word + chunk] = make_chunk(end - start, stripe, self.epoch)
        words[row + COUNT] = count
        return True

    def _recover_take_chunk(self, stripe: int, chunk: int) -> bool:
        # The limit before the owner: a chunk that was not yet taken when its taker died may be somebody else's by now.
        words = self.segment.words
        if chunk >= self.limit() // self.geometry.chunk_size:
            return False
        if read_chunk(self.segment, chunk, self.epoch).owner != stripe:
            return False
        words[self._stripes_word + stripe * STRIPE_WORDS + CHUNK] = chunk + 1
        return True

    def records(self) -> Iterator[Record]:
        """Every record, chunk by chunk in order of arena offset; those inserted meanwhile may or may not be among them."""
        limit = self.limit()
        for chunk in range(limit // self.geometry.chunk_size):
            yield from walk(self.segment, chunk, read_chunk(self.segment, chunk, self.epoch).used)

    def ref_of(self, record: Record) -> TopicRef:
        """The ref of a live record."""
        return TopicRef(self.origin + (record.generation << GENERATION_SHIFT | record.offset))

    def is_still(self, record: Record) -> bool:
        """Whether what was read through a record's header since it was read is its own."""
        return record.live  # nothing here ever goes

    def unheld_total(self) -> int:
        """Topics that nobody holds, where that is counted."""
        return 0

    def columns(self, offsets: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The columns in a ledger of the records at arena offsets that `find` or `insert` gave, shapes (n,)."""
        words = np.frombuffer(self.segment.words, np.uint64, self.limit() // WORD_SIZE, self._arena_offset)
        places = (offsets // np.uint64(WORD_SIZE)).astype(np.int64)
        ordinals = words[places + 1] >> np.uint64(META_ORDINAL_SHIFT) & np.uint64(META_ORDINAL_MASK)
        stripe_count = self.geometry.stripe_count
        # The top bits, shifted in two steps: one stripe has none, and a shift by 64 is undefined.
        stripes = words[places] >> np.uint64(32) >> np.uint64(32 - (stripe_count.bit_length() - 1))
        columns = (ordinals * np.uint64(stripe_count) + stripes).astype(np.int64)
        return columns % self.geometry.ordinal_count  # a damaged record must not count in another process's ledger

    def limit(self) -> int:
        """Bytes of the arena that are taken and committed."""
        state = self.segment.words[ARENA_LIMIT_WORD]
        known = self._limit
        return known[1] if known[0] == state else self._read_limit(state)

    def _read_limit(self, state: int) -> int:
        epoch, limit = self.segment.read_sealed(ARENA_LIMIT_WORD, "the arena's limit")
        if epoch > self.epoch:
            raise self._corrupt(f"its arena's limit is of epoch {epoch}, and the pool's is {self.epoch}")
        if epoch != self.epoch:
            limit = 0  # from before a reset: nothing is taken
        if limit > self.geometry.arena_size or limit % self._chunk_size:
            raise self._corrupt(f"its arena's limit is {limit}")
        self._limit = (state, limit)
        return limit

    def _corrupt(self, what: str) -> PoolCorruptError:
        return PoolCorruptError(
            f"pool {self.segment.pool_name!r}: {what}. Nothing was changed; other stripes stay usable. Run Pool.check(), and "
            "make the pool anew."
        )
