"""Records: a 16-byte header and the value, appended to chunks of the arena that belong to one stripe each.

Records start at multiples of 8 and never move, so a record's offset can be its ref. Where the policy lets topics go, the space of
one that went is used again, for values of the same size class: a space never changes its size, is never divided and never merged.
So a chunk can be walked at any time, whatever is being freed or used again in it, and no churn fragments it more than the peak of
each class does. Classes are 8 bytes apart up to 128 and eight to a doubling beyond, which wastes 6 % of large spaces on average.

A chunk's word in the chunk table tells its owner and how much of it is used; it has one writer, the holder of the owner's lock.
A chunk is taken from the arena for good (until a reset), by the holder of the grow lock.
"""

from collections.abc import Callable, Iterator
from functools import cache
from struct import Struct
from typing import Final, NamedTuple

from shmpool.layout import (
    CHUNK_EPOCH_SHIFT,
    CHUNK_OWNER_MASK,
    CHUNK_USED_MASK,
    CHUNK_USED_SHIFT,
    META_GENERATION_SHIFT,
    META_LIVE,
    META_ORDINAL_MASK,
    META_ORDINAL_SHIFT,
    META_SIZE_MASK,
    RECORD_ALIGN,
    RECORD_SIZE,
    WORD_SIZE,
)
from shmpool.segment import Segment

_EVEN_SIZE: Final = 128  # up to here a class every 8 bytes


class Record(NamedTuple):
    """A record as its header tells it. `offset` and `end` (of its space) in the arena, `ordinal` within its stripe, `size` of the
    value in bytes; `live` or free."""

    offset: int
    end: int
    hash: int
    size: int
    generation: int
    ordinal: int
    live: bool


def record_size(value_size: int) -> int:
    """Bytes of arena that a value of that size takes where nothing ever goes."""
    return RECORD_SIZE + value_size + RECORD_ALIGN - 1 & -RECORD_ALIGN


def space_size(value_size: int) -> int:
    """Bytes of the space for a value of that size where spaces are used again; the last word is the stamp."""
    size = RECORD_SIZE + value_size + WORD_SIZE + 7 & -8
    if size <= _EVEN_SIZE:
        return size
    step = 1 << (size - 1).bit_length() - 4
    return -(-size // step) * step


def size_class(size: int) -> int:
    """The number of a class of spaces, from 0, of `space_size`."""
    if size <= _EVEN_SIZE:
        return size // 8
    doubling = (size - 1).bit_length()
    return _EVEN_SIZE // 8 + 8 * (doubling - 8) + (size - (1 << doubling - 1) >> doubling - 4)


def make_meta(ordinal: int, generation: int, size: int) -> int:
    """The second word of a live record."""
    return META_LIVE | ordinal << META_ORDINAL_SHIFT | generation << META_GENERATION_SHIFT | size


def make_record(hash_: int, value: bytes, ordinal: int) -> bytes:
    """A whole live record, padded with zeros, to be copied to where no slot points yet.

    (Packing into the segment itself would zero each word first, which readers of other words have seen.)
    """
    size = len(value)
    return _packer(size + 7 & -8)(hash_, META_LIVE | ordinal << META_ORDINAL_SHIFT | size, value)


@cache
def _packer(size: int) -> Callable[[int, int, bytes], bytes]:
    return Struct(f"<QQ{size}s").pack


def read_record(segment: Segment, offset: int) -> Record:
    """The header at a committed offset, as it stands."""
    geometry = segment.constants.geometry
    word = (geometry.arena_offset + offset) // WORD_SIZE
    meta = segment.words[word + 1]
    size = meta & META_SIZE_MASK
    return Record(
        offset=offset,
        end=offset + (space_size(size) if geometry.reuses else record_size(size)),
        hash=segment.words[word],
        size=size,
        generation=meta >> META_GENERATION_SHIFT & 0xFFFF,
        ordinal=meta >> META_ORDINAL_SHIFT & META_ORDINAL_MASK,
        live=meta >= META_LIVE,
    )


def read_value(segment: Segment, record: Record) -> bytes:
    """The value's bytes. The record must lie within committed memory."""
    start = segment.constants.geometry.arena_offset + record.offset + RECORD_SIZE
    return segment.data[start : start + record.size]


class Chunk(NamedTuple):
    """A chunk's word, decoded: `owner` is a stripe, or -1 for a chunk that nobody has taken since the last reset."""

    used: int
    owner: int


def chunk_word(segment: Segment, index: int) -> int:
    """The word that describes a chunk."""
    return segment.constants.geometry.chunks_offset // WORD_SIZE + index


def make_chunk(used: int, owner: int, epoch: int) -> int:
    return epoch << CHUNK_EPOCH_SHIFT | used << CHUNK_USED_SHIFT | (owner + 1)


def read_chunk(segment: Segment, index: int, epoch: int) -> Chunk:
    """A chunk that was taken: its word is committed. `used` never exceeds the chunk's size, whatever the word says."""
    state = segment.words[chunk_word(segment, index)]
    if state >> CHUNK_EPOCH_SHIFT != epoch:
        return Chunk(0, -1)
    used = min(state >> CHUNK_USED_SHIFT & CHUNK_USED_MASK, segment.constants.geometry.chunk_size)
    return Chunk(used, (state & CHUNK_OWNER_MASK) - 1)


def walk(segment: Segment, index: int, used: int) -> Iterator[Record]:
    """The records of a chunk's first `used` bytes, free ones too where spaces are used again. Ends early where the bytes make no
    sense; bounded in any case."""
    start = index * segment.constants.geometry.chunk_size
    offset, end = start, start + used
    while offset + RECORD_SIZE <= end:
        record = read_record(segment, offset)
        if not (record.live or segment.constants.geometry.reuses) or record.end > end:
            return
        yield record
        offset = record.end
