"""Every byte of the segment, declared once.

The segment is a sequence of page-aligned regions: header, scratch page, stripe rows, shelves, process rows, chunk table, slot
tables, ledgers (of uses, of holds), arena. Sizes follow from the constants in the header alone (`Geometry`), so no offset is
ever stored. Shelves and ledgers of holds are there only in pools whose policy lets topics go (`reuses`).

All mutable state is 64-bit words that one aligned store replaces: a reader, or a survivor of a `kill -9`, sees the old word
or the new one. `words` throughout the package is the segment as a `memoryview` of such words, and `*_word` counts in them.
numpy dtypes describe the same bytes for batches and inspection; reading one of their fields is about 14 times dearer.
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Final, NewType

import numpy as np

# What a value is called by, in every process: the pool's random origin + the record's arena offset (below 2**40), and the
# record's generation << 40. Always positive and below 2**63. The origin makes a ref of another pool, or from before a reset, fall
# outside the arena, but for one chance in 2**39 / arena_size.
TopicRef = NewType("TopicRef", int)

MAGIC: Final = int.from_bytes(b"shmpool\x01", "little")
VERSION: Final = 1
PAGE_SIZE: Final = 4096
WORD_SIZE: Final = 8
LINE_SIZE: Final = 64

HEADER: Final = np.dtype(
    [
        # Constants: written by the creator before the segment has a name, never again.
        ("magic", "<u8"),  # written last
        ("version", "<u8"),
        ("fingerprint", "<u8"),  # of this module's dtypes and codes
        ("pool_id", "<u8"),  # random; names the semaphores and tells a pool from its successor
        ("hash_key", "<u8", (2,)),  # random; keys SipHash
        ("total_size", "<u8"),
        ("capacity", "<u8"),
        ("arena_size", "<u8"),
        ("stripe_count", "<u8"),
        ("process_count", "<u8"),  # rows in the process table
        ("max_value_size", "<u8"),
        ("insert_budget", "<u8"),  # inserts each process may make
        ("reserve", "<u8"),  # the last topics of capacity, for `intern` only
        ("persistent", "<u8"),
        ("created_ns", "<u8"),  # wall clock
        ("policy", "<u8"),  # see policy.py, as for its parameters
        ("max_unheld", "<u8"),
        ("ttl_ns", "<u8"),
        ("reserved_0", "<u8", (12,)),
        ("checksum", "<u8"),  # of all the above but the magic
        # Mutable words, each in a cache line of its own.
        ("epoch", "<u8"),  # sealed: the origin of refs; one store commits a reset, by the gate's holder
        # Keyed hashes of the epoch word and the geometry, of even and of odd epochs; written before it. A seal misses one damage
        # in 251, and an origin that is a little off, or a whole other geometry, would make refs mean other values.
        ("epoch_checks", "<u8", (2,)),
        ("reserved_1", "<u8", (5,)),
        ("arena_limit", "<u8"),  # sealed: bytes of arena taken and committed; by the grow lock's holder
        ("reserved_2", "<u8", (7,)),
        ("fold", "<u8"),  # the gate's intent: a dead row being added to the totals; see attachment.py
        ("reserved_3", "<u8", (7,)),
        ("reserved_4", "<u8", (456,)),
    ]
)

STRIPE: Final = np.dtype(  # one cache line; all written under the stripe's lock
    [
        ("table", "<u8"),  # sealed: count of rebuilds << 9 | which of the two regions << 8 | log2 of the slot count
        ("intent", "<u8"),  # operation << 56 | place; set before anything changes, cleared last
        ("count", "<u8"),  # live records; where nothing goes also the next ordinal. Derived by recovery
        ("chunk", "<u8"),  # index of the chunk being filled, plus 1
        ("waits", "<u8"),  # for its lock; and << 32, those that ended with taking it over from a killed holder
        ("rollbacks", "<u8"),
        ("rollforwards", "<u8"),
        ("growths", "<u8"),
    ]
)

SHELF: Final = np.dtype(  # one to a stripe, twelve cache lines; all written under the stripe's lock, all derived by recovery
    [
        ("spaces", "<u8"),  # ever appended to the arena, and the next ordinal
        ("tombstones", "<u8"),  # in the stripe's table
        ("unheld", "<u8"),  # live records that nobody holds
        ("retired", "<u8"),  # head of the list of free spaces that were of the last generation: theirs is only the ordinal
        ("reserved", "<u8", (2,)),
        # Heads of the lists of free spaces, by size class (see arena.py): arena offset | OCCUPIED of one, whose first word (of a
        # live record: its hash) is the next.
        ("free", "<u8", (90,)),
    ]
)

PROCESS: Final = np.dtype(  # two cache lines; written only by the process that holds the row's byte
    [
        ("pid", "<u8"),  # 0: the row is clean. For people: liveness is the row's byte lock
        ("start_time", "<u8"),  # of the process, in clock ticks since boot; for people
        ("attached_ns", "<u8"),  # wall clock
        ("ledger", "<u8"),  # sealed: bytes committed of the row's ledger of uses
        ("holds", "<u8"),  # sealed: bytes committed of the row's ledger of holds
        ("hits", "<u8"),
        ("misses", "<u8"),
        ("inserts", "<u8"),
        ("lock_waits", "<u8"),
        ("takeovers", "<u8"),
        ("rollbacks", "<u8"),
        ("rollforwards", "<u8"),
        ("uses_dropped", "<u8"),  # uses that found no memory for their ledger
        ("frees", "<u8"),  # topics that went with their last hold
        ("evictions", "<u8"),  # topics that nobody held and that went for their age or for room
        ("reaped", "<u8"),  # holds of killed processes that were given back
    ]
)
COUNTERS: Final = (
    "hits", "misses", "inserts", "lock_waits", "takeovers", "rollbacks", "rollforwards", "uses_dropped", "frees", "evictions",
    "reaped",
)

# Followed by the value, padded to 8 bytes. Where spaces are used again, padding goes up to the size class, and the space's last
# word is a stamp: 0 while somebody holds the record, else the time (of the pool's clock, in ns) since which nobody does.
RECORD: Final = np.dtype(
    [
        ("hash", "<u8"),  # full keyed hash: growth re-slots a record without reading its value
        ("size", "<u2"),  # of the value, in bytes
        ("generation", "<u2"),  # of this record's space and of its ordinal; always 0 while nothing is ever evicted
        ("ordinal", "<u4"),  # the record's column in the ledgers; the top bit says LIVE, and its absence FREE
    ]
)

# Word codes. A slot is the hash's top 24 bits << 40 | the record's arena offset | OCCUPIED.
LOW_40: Final = (1 << 40) - 1
OFFSET_MASK: Final = LOW_40 & ~7
OCCUPIED: Final = 1
TAG_SHIFT: Final = 40
TOMBSTONE: Final = 2  # a slot whose record went: a search goes on past it, an insert may take it
META_LIVE: Final = 1 << 63
META_SIZE_MASK: Final = 0xFFFF
META_GENERATION_SHIFT: Final = 16
MAX_GENERATION: Final = (1 << 16) - 1
GENERATION_SHIFT: Final = 40  # in a ref
META_ORDINAL_SHIFT: Final = 32
META_ORDINAL_MASK: Final = (1 << 31) - 1  # as an ordinal: none, another space has it by now
INTENT_SHIFT: Final = 56
TAKEOVERS_SHIFT: Final = 32  # in a stripe's word of waits
INTENT_INSERT: Final = 1
INTENT_TAKE_CHUNK: Final = 2
INTENT_REUSE: Final = 3
INTENT_SETTLE: Final = 4
INTENT_REBUILD: Final = 5
# A word of the ledger of uses: the record's generation << 48 | uses. Those of another generation are of a topic that went.
USES_TAG_SHIFT: Final = 48
USES_MASK: Final = (1 << 48) - 1
TABLE_BITS_MASK: Final = 0xFF
TABLE_REGION_SHIFT: Final = 8
TABLE_SERIAL_SHIFT: Final = 9
TABLE_SERIAL_MASK: Final = (1 << 31) - 1
# A chunk's word: reset count << 48 | bytes used << 16 | the owning stripe, plus 1.
CHUNK_EPOCH_SHIFT: Final = 48
CHUNK_USED_SHIFT: Final = 16
CHUNK_USED_MASK: Final = (1 << 32) - 1
CHUNK_OWNER_MASK: Final = 0xFFFF
# A sealed word: 1 + what the rest leaves when divided by 251 << 56 | epoch << 40 | value.
SEAL_MODULUS: Final = 251
SEAL_SHIFT: Final = 56
SEAL_EPOCH_SHIFT: Final = 40

MIN_TABLE_BITS: Final = 9  # 512 slots: one page
MAX_TABLE_BITS: Final = 30
MAX_VALUE_SIZE: Final = META_SIZE_MASK
MAX_ARENA_SIZE: Final = 1 << 38
MAX_STRIPE_COUNT: Final = 256
MAX_EPOCH: Final = (1 << 16) - 1
MIN_ORIGIN: Final = 1 << 39

# Bytes of the segment's file that stand for locks (nothing is read or written there for their sake).
GATE_BYTE: Final = 0
GROW_BYTE: Final = 1
STRIPE_BYTES: Final = 1 << 12
PROCESS_BYTES: Final = 1 << 13


def seal(epoch: int, value: int) -> int:
    """A word that holds a value below 2**40 of a certain epoch (1 + the count of resets), and a check of both.

    Whole regions hang on these few words; the check finds every single flipped bit. 0 is no sealed word.
    """
    body = epoch << SEAL_EPOCH_SHIFT | value
    return (body % SEAL_MODULUS + 1) << SEAL_SHIFT | body


def unseal(word: int) -> tuple[int, int] | None:
    """The epoch and value of a sealed word, (0, 0) of one never written, None of one that is damaged."""
    if not word:
        return 0, 0
    body = word & (1 << SEAL_SHIFT) - 1
    return (body >> SEAL_EPOCH_SHIFT, body & LOW_40) if word >> SEAL_SHIFT == body % SEAL_MODULUS + 1 else None


def _word_of(dtype: np.dtype[np.void], field: str) -> int:
    assert dtype.fields is not None
    return int(dtype.fields[field][1]) // WORD_SIZE


EPOCH_WORD: Final = _word_of(HEADER, "epoch")
EPOCH_CHECKS_WORD: Final = _word_of(HEADER, "epoch_checks")
ARENA_LIMIT_WORD: Final = _word_of(HEADER, "arena_limit")
FOLD_WORD: Final = _word_of(HEADER, "fold")
STRIPE_WORDS: Final = STRIPE.itemsize // WORD_SIZE
TABLE, INTENT, COUNT, CHUNK, WAITS, ROLLBACKS, ROLLFORWARDS, GROWTHS = range(STRIPE_WORDS)
SHELF_WORDS: Final = SHELF.itemsize // WORD_SIZE
SPACES, TOMBSTONES, UNHELD, RETIRED = range(4)
FREE: Final = _word_of(SHELF, "free")
PROCESS_WORDS: Final = PROCESS.itemsize // WORD_SIZE
PID: Final = _word_of(PROCESS, "pid")
START_TIME: Final = _word_of(PROCESS, "start_time")
ATTACHED: Final = _word_of(PROCESS, "attached_ns")
LEDGER: Final = _word_of(PROCESS, "ledger")
HOLDS: Final = _word_of(PROCESS, "holds")
FIRST_COUNTER: Final = _word_of(PROCESS, COUNTERS[0])
MISSES: Final = _word_of(PROCESS, "misses")
RECORD_SIZE: Final = RECORD.itemsize
RECORD_ALIGN: Final = 8


def _words_are_aligned(dtype: np.dtype[np.void]) -> bool:
    """Whether no word of the dtype straddles its natural alignment, so that none can cross a cache line."""
    assert dtype.fields is not None
    return all(offset % field.base.itemsize == 0 for field, offset, *_ in dtype.fields.values())


assert sys.byteorder == "little", "the segment's words are little-endian"
assert HEADER.itemsize == PAGE_SIZE
assert STRIPE.itemsize == LINE_SIZE
assert SHELF.itemsize == 12 * LINE_SIZE
assert PROCESS.itemsize == 2 * LINE_SIZE
assert RECORD.itemsize == 2 * WORD_SIZE
assert all(_words_are_aligned(dtype) for dtype in (HEADER, STRIPE, SHELF, PROCESS, RECORD))
assert all(word * WORD_SIZE % LINE_SIZE == 0 for word in (EPOCH_WORD, ARENA_LIMIT_WORD, FOLD_WORD))
assert [_word_of(PROCESS, name) - FIRST_COUNTER for name in COUNTERS] == list(range(len(COUNTERS)))
assert STRIPE_BYTES + MAX_STRIPE_COUNT <= PROCESS_BYTES

FINGERPRINT: Final = int.from_bytes(
    blake2b(
        repr(
            [(dtype.names, dtype.fields) for dtype in (HEADER, STRIPE, SHELF, PROCESS, RECORD)]
            + [sorted((name, value) for name, value in vars().copy().items() if name.isupper() and type(value) is int)]
        ).encode(),
        digest_size=8,
    ).digest(),
    "little",
)


@dataclass(frozen=True)  # no slots: cached_property keeps its values in the instance
class Geometry:
    """Where everything is, from a pool's constants alone. Sizes in bytes; `*_offset` from the segment's start.

    Raises ValueError, naming the option, for constants that no pool can have.
    """

    capacity: int
    arena_size: int
    stripe_count: int
    process_count: int
    max_value_size: int
    reuses: bool = False

    def __post_init__(self) -> None:
        _require(1 <= self.capacity <= 1 << 30, f"capacity must be 1 to 2**30 topics, not {self.capacity}")
        _require(
            1 <= self.stripe_count <= MAX_STRIPE_COUNT and self.stripe_count & (self.stripe_count - 1) == 0,
            f"stripe_count must be a power of two from 1 to {MAX_STRIPE_COUNT}, not {self.stripe_count}",
        )
        _require(1 <= self.process_count <= 4096, f"process_count must be 1 to 4096, not {self.process_count}")
        _require(
            1 <= self.max_value_size <= MAX_VALUE_SIZE,
            f"max_value_size must be 1 to {MAX_VALUE_SIZE} bytes, not {self.max_value_size}",
        )
        _require(
            self.chunk_size * self.stripe_count <= self.arena_size <= MAX_ARENA_SIZE
            and self.arena_size % self.chunk_size == 0,
            f"arena_size must be a multiple of {self.chunk_size} bytes from {self.chunk_size * self.stripe_count} "
            f"(a chunk for each stripe) to {MAX_ARENA_SIZE}, not {self.arena_size}",
        )

    @cached_property
    def chunk_size(self) -> int:
        """Bytes a stripe takes from the arena at a time: at least four of the largest records, and a few pages."""
        return max(4 * PAGE_SIZE, 1 << (4 * (self.max_value_size + RECORD_SIZE) - 1).bit_length())

    @cached_property
    def chunk_count(self) -> int:
        return self.arena_size // self.chunk_size

    @cached_property
    def stripe_capacity(self) -> int:
        """Records one stripe may hold: twice the even share. Hashing is keyed, so nobody can aim at one stripe."""
        return min(self.capacity, 2 * -(-self.capacity // self.stripe_count) + 64)

    @cached_property
    def max_table_bits(self) -> int:
        # Where topics go a full table is half full, so that it has room for tombstones too: with as many as it has topics between
        # two rebuilds, those cost each insert a fraction of what it costs itself.
        return max(MIN_TABLE_BITS, (self.stripe_capacity * 2 if self.reuses else self.stripe_capacity * 4 // 3).bit_length())

    @cached_property
    def ordinal_count(self) -> int:
        """Columns of a ledger. A record's ordinal is its number in its stripe, times stripe_count, plus the stripe:
        dense as long as the hash spreads, without a counter that all stripes would share."""
        return self.stripe_capacity * self.stripe_count

    @cached_property
    def scratch_offset(self) -> int:
        return HEADER.itemsize

    @cached_property
    def stripes_offset(self) -> int:
        return self.scratch_offset + PAGE_SIZE

    @cached_property
    def shelves_offset(self) -> int:
        return self.stripes_offset + _pages(self.stripe_count * STRIPE.itemsize)

    @cached_property
    def totals_offset(self) -> int:
        """The process row that departed processes are folded into; attached processes' rows follow it."""
        return self.shelves_offset + _pages(self.reuses * self.stripe_count * SHELF.itemsize)

    @cached_property
    def chunks_offset(self) -> int:
        return self.totals_offset + _pages((1 + self.process_count) * PROCESS.itemsize)

    @cached_property
    def tables_offset(self) -> int:
        return self.chunks_offset + _pages(self.chunk_count * WORD_SIZE)

    @cached_property
    def stripe_tables_size(self) -> int:
        """Two regions for every size from the smallest to the largest."""
        return 2 * WORD_SIZE * ((2 << self.max_table_bits) - (1 << MIN_TABLE_BITS))

    @cached_property
    def ledgers_offset(self) -> int:
        return self.tables_offset + self.stripe_count * self.stripe_tables_size

    @cached_property
    def ledger_size(self) -> int:
        return _pages(self.ordinal_count * WORD_SIZE)

    @cached_property
    def holds_offset(self) -> int:
        """Ledgers of holds, one for each process row."""
        return self.ledgers_offset + (1 + self.process_count) * self.ledger_size

    @cached_property
    def arena_offset(self) -> int:
        return self.holds_offset + self.reuses * self.process_count * self.ledger_size

    @cached_property
    def total_size(self) -> int:
        return self.arena_offset + self.arena_size

    def table_offset(self, stripe: int, region: int, bits: int) -> int:
        """Where the table of 2**bits slots in region 0 or 1 of a stripe starts."""
        return (
            self.tables_offset
            + stripe * self.stripe_tables_size
            + 2 * WORD_SIZE * ((1 << bits) - (1 << MIN_TABLE_BITS))
            + region * (WORD_SIZE << bits)
        )

    def stripe_of(self, hash_: int) -> int:
        """The stripe of a hash: its top bits (the low bits choose the slot)."""
        return hash_ * self.stripe_count >> 64


def _pages(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)
