"""Slots: an open-addressed table of 64-bit words with linear probing, one table to a stripe.

A slot is 0 (never used), TOMBSTONE (its record went) or the hash's top 24 bits << 40 | the record's arena offset | OCCUPIED. The
tag spares almost every read of a record that is not the one looked for; what decides is always a comparison of all the value's
bytes.

Storing a slot is what commits an insert, so a table alone is true at every instant. Growth builds the doubled table in
memory that nobody reads yet and publishes it with one store of the stripe's table word. Tombstones are dropped as soon as no
search needs them, and with a rebuild at the same size when they fill the table.

The functions take the segment's words and plain numbers rather than an object: they are the seam at which another engine can
replace them, and what a fault harness wraps.
"""

from mmap import mmap

import numpy as np
from numpy.typing import NDArray

from shmpool.layout import (
    GENERATION_SHIFT,
    MAX_GENERATION,
    META_GENERATION_SHIFT,
    META_LIVE,
    META_SIZE_MASK,
    OCCUPIED,
    OFFSET_MASK,
    RECORD_SIZE,
    TAG_SHIFT,
    TOMBSTONE,
    WORD_SIZE,
)


def make_slot(hash_: int, offset: int) -> int:
    """The slot of a record: `offset` is its place in the arena, a multiple of 8 below 2**40."""
    return hash_ >> TAG_SHIFT << TAG_SHIFT | offset | OCCUPIED


def find(
    words: memoryview,
    data: mmap,
    table_word: int,
    slot_mask: int,
    arena_offset: int,
    arena_limit: int,
    hash_: int,
    value: bytes,
) -> int:
    """The arena offset of the record of `value`; where there is none, a number below 0. Takes no lock.

    That number is ~index of the free slot that ended the search if every slot before it was ruled out by its tag alone. Slots
    never change once they are stored, so a table whose slot there is still free has still no such record. Otherwise (a
    tag met by chance, one search in a million; a table that is wrongly full) it is ~slot_count.

    Hot path, once for each value that is not in the cache; about 1.2 us. `words[i]` is the cheapest read of shared memory that
    Python has (30 ns; a numpy record field 450 ns) and `data[a:b]`, a slice of the mmap, the cheapest of bytes. The loop is
    bounded by the table's size: a damaged table must not spin. Offsets are held against what is committed: none can trap.

    On a CPU that reorders stores a slot can be seen before its record's bytes. Then the comparison fails and the record is
    missed, which callers must expect anyway of a record that is being inserted at this instant.
    """
    tag = hash_ >> TAG_SHIFT
    size = len(value)
    index = hash_ & slot_mask
    ruled_out = True
    for _ in range(slot_mask + 1):
        slot = words[table_word + index]
        if not slot:
            return ~index if ruled_out else ~slot_mask - 1
        if slot >> TAG_SHIFT == tag:
            offset = slot & OFFSET_MASK
            if offset + RECORD_SIZE + size <= arena_limit:
                start = arena_offset + offset
                if words[(start >> 3) + 1] & META_SIZE_MASK == size:
                    start += RECORD_SIZE
                    if data[start : start + size] == value:
                        return offset
            ruled_out = False
        index = index + 1 & slot_mask
    return ~slot_mask - 1


def find_live(
    words: memoryview,
    data: mmap,
    table_word: int,
    slot_mask: int,
    arena_offset: int,
    arena_limit: int,
    hash_: int,
    value: bytes,
) -> int:
    """`find` where records go and spaces are used again: the generation << 40 | offset of the record of `value`, or -1. No lock.

    A record is freed by storing FREE in its second word before anything else, and used again by storing its new generation there
    after everything else. So that word, read before and after the bytes and found the same and live, proves that they are
    all of that generation. (Without the second look 27 to 38 % of resolves in a race gave another topic's bytes.)
    """
    tag = hash_ >> TAG_SHIFT
    size = len(value)
    index = hash_ & slot_mask
    for _ in range(slot_mask + 1):
        slot = words[table_word + index]
        if not slot:
            return -1
        if slot >> TAG_SHIFT == tag and slot != TOMBSTONE:  # which would lead to arena offset 0, committed or not
            offset = slot & OFFSET_MASK
            if offset + RECORD_SIZE + size <= arena_limit:
                start = arena_offset + offset
                meta_word = (start >> 3) + 1
                meta = words[meta_word]
                if meta & META_SIZE_MASK == size and meta >= META_LIVE:
                    start += RECORD_SIZE
                    if data[start : start + size] == value and words[meta_word] == meta:
                        return (meta >> META_GENERATION_SHIFT & MAX_GENERATION) << GENERATION_SHIFT | offset
        index = index + 1 & slot_mask
    return -1


def free_slot(words: memoryview, table_word: int, slot_mask: int, hash_: int) -> int | None:
    """The index of the first slot on the probe path of a hash that holds no record: a tombstone's or a free one."""
    index = hash_ & slot_mask
    for _ in range(slot_mask + 1):
        if words[table_word + index] in (0, TOMBSTONE):
            return index
        index = index + 1 & slot_mask
    return None


def remove_slot(words: memoryview, table_word: int, slot_mask: int, index: int) -> int:
    """Take the record out of the slot at `index`; returns how many tombstones more there are, which may be less than none.

    Where the next slot is free no search goes on past this one: it becomes free, and so do tombstones right before it. Otherwise
    it becomes a tombstone. Each store leaves a table that is right, for readers and for survivors.
    """
    if words[table_word + (index + 1 & slot_mask)]:
        words[table_word + index] = TOMBSTONE
        return 1
    words[table_word + index] = 0
    dropped = 0
    for _ in range(slot_mask):
        index = index - 1 & slot_mask
        if words[table_word + index] != TOMBSTONE:
            break
        words[table_word + index] = 0
        dropped += 1
    return -dropped


def find_slot(words: memoryview, table_word: int, slot_mask: int, slot: int, hash_: int) -> int | None:
    """The index of the slot that equals `slot` on the probe path of its hash; `slot` 0 finds the free one at its end."""
    index = hash_ & slot_mask
    for _ in range(slot_mask + 1):
        seen = words[table_word + index]
        if seen == slot:
            return index
        if not seen:
            return None
        index = index + 1 & slot_mask
    return None


def ceiling(slot_count: int) -> int:
    """Records that a table of `slot_count` slots holds before it must grow: three quarters."""
    return slot_count * 3 // 4


def build(hashes: NDArray[np.uint64], slots: NDArray[np.uint64], slot_count: int) -> NDArray[np.uint64]:
    """A table of `slot_count` slots, shape (slot_count,), that holds `slots` with `hashes`, both of shape (n,), n < slot_count.

    Linear probing in hash order, without a loop: the i-th record in order of home slot lands at i + max(home_j - j, j <= i).
    What runs over the end wraps to the first free slots, one by one.
    """
    mask = np.uint64(slot_count - 1)
    homes = (hashes & mask).astype(np.int64)
    order = np.argsort(homes, kind="stable")
    rank = np.arange(len(order))
    places = rank + np.maximum.accumulate(homes[order] - rank)
    table = np.zeros(slot_count, np.uint64)
    fits = places < slot_count
    table[places[fits]] = slots[order[fits]]
    free = np.flatnonzero(table == 0)
    wrapped = order[~fits]
    table[free[: len(wrapped)]] = slots[wrapped]
    return table


def read_table(words: memoryview, table_word: int, slot_count: int) -> NDArray[np.uint64]:
    """A copy of a table, shape (slot_count,)."""
    return np.frombuffer(words, np.uint64, slot_count, table_word * WORD_SIZE).copy()
