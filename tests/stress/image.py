"""A full pool as bytes, laid down again and again: what mutants are made from.

The same seed gives the same values, places, key and refs. Only the pool's id is each copy's own, as it names semaphores.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from shmpool import Policy, Pool, TopicRef
from shmpool import segment as segments
from shmpool.arena import size_class, space_size
from shmpool.hashing import make_hasher
from shmpool.header import Constants, encode
from shmpool.holding import HoldingStore
from shmpool.layout import (
    ARENA_LIMIT_WORD,
    FREE,
    HEADER,
    HOLDS,
    LOW_40,
    MAX_GENERATION,
    META_GENERATION_SHIFT,
    MIN_ORIGIN,
    MIN_TABLE_BITS,
    PAGE_SIZE,
    RETIRED,
    SHELF_WORDS,
    WORD_SIZE,
    unseal,
)
from shmpool.ledger import ledger_size, ledger_word
from shmpool.lifetime import choose_constants, create
from shmpool.lock import semaphore_name, unlink_semaphores
from shmpool.store import Store

CACHE_SIZE: Final = 4096
CAPACITY: Final = 1200
LRU: Final = Policy.lru(max_unheld=1000)


class Kind(NamedTuple):
    """How many stripes and values an image has, and how often it is taken."""

    stripe_count: int
    value_count: int
    weight: int
    policy: Policy = Policy.forever()


# Of the first every mutant costs little, the second is about to grow its table, both stripes of the third have grown; from the
# last topics can go.
KINDS: Final = (Kind(2, 100, 63), Kind(1, 382, 10), Kind(2, 860, 4), Kind(2, 100, 23, LRU))
SMALL_KINDS: Final = (Kind(2, 60, 65), Kind(1, 382, 7), Kind(2, 60, 28, LRU))  # where time is short


class Region(NamedTuple):
    """Committed bytes of one kind, from `start` to `end` of the file."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Image:
    """What a pool's file held at an instant, and the ref of each of its values."""

    constants: Constants
    data: bytes  # the whole file
    regions: tuple[Region, ...]
    refs: dict[bytes, int]
    origin: int
    free: tuple[int, ...] = ()  # arena offsets of free spaces

    def word(self, offset: int) -> int:
        return int.from_bytes(self.data[offset : offset + WORD_SIZE], "little")

    def with_id(self, pool_id: int) -> Image:
        constants = replace(self.constants, pool_id=pool_id)
        page = bytearray(self.data[:PAGE_SIZE])
        size = constants_size()
        page[:size] = encode(constants)[:size]
        return replace(self, constants=constants, data=bytes(page) + self.data[PAGE_SIZE:])

    @property
    def memory_size(self) -> int:
        return sum(region.end - region.start for region in self.regions)

    @property
    def limit(self) -> int:
        """Bytes of the arena that are taken."""
        content = unseal(self.word(ARENA_LIMIT_WORD * WORD_SIZE))
        assert content is not None
        return content[1]


def constants_size() -> int:
    """Bytes of the header up to the end of its checksum."""
    assert HEADER.fields is not None
    return int(HEADER.fields["checksum"][1]) + WORD_SIZE


def make_image(name: str, seed: int, kind: Kind) -> Image:
    """Make a pool of that name, fill it, and take its bytes while a process is attached, as if it had been killed."""
    rng = random.Random(f"image {seed}")
    constants = choose_constants(
        capacity=CAPACITY, arena_size=None, stripe_count=kind.stripe_count, max_value_size=300, insert_budget=None, reserve=0,
        process_count=4, persistent=True, policy=kind.policy,
    )
    constants = replace(constants, pool_id=rng.getrandbits(64), hash_key=rng.randbytes(16), created_ns=1)
    seat = create(name, constants)
    origin = MIN_ORIGIN + rng.randrange(1 << 38) // 8 * 8
    seat.segment.write_epoch(1, origin)
    store = HoldingStore(seat, CACHE_SIZE, time.monotonic_ns) if kind.policy.counts_holds else Store(seat, CACHE_SIZE)
    values = list(dict.fromkeys(_values(rng, kind.value_count - 1)))
    for value in values[: kind.value_count // 2]:
        store.intern(value, CAPACITY)
    free = tuple(_turn_over(store, origin)) if isinstance(store, HoldingStore) else ()
    with Pool.attach(name) as departed:  # its uses stand in the totals
        departed.lookup_many(values[:100])
    refs = {value: int(store.intern(value, CAPACITY)) for value in values}
    if isinstance(store, HoldingStore):
        for value in values[::3]:
            for _ in range(store.count_of(refs[value])):
                store.release(TopicRef(refs[value]))
    store.flush()
    image = Image(constants, Path(segments.path_of(name)).read_bytes(), tuple(_regions(store)), refs, origin, free)
    store.close()
    Pool.unlink(name)
    return image


def _turn_over(store: HoldingStore, origin: int) -> Iterator[int]:
    """Leave free spaces of many sizes, tombstones, and some that are retired; give the spaces' arena offsets."""
    stripes = store.stripes
    sizes = (5, 5, 20, 20, 20, 47, 120, 250)
    for size in (*sizes, *sizes):
        value = b"%d" % size * (size // len(b"%d" % size))
        _evict(store, origin, [value + b"%d" % number for number in range(6)])
    words, arena = store.segment.words, store.constants.geometry.arena_offset
    heads = [
        stripes.shelf(stripe) + FREE + size_class(space_size(6)) for stripe in range(store.constants.geometry.stripe_count)
    ]
    for head in heads:
        for record in stripes.free_spaces(head):
            word = (arena + record.offset) // WORD_SIZE + 1
            words[word] += (MAX_GENERATION - 1 - record.generation) << META_GENERATION_SHIFT
    _evict(store, origin, [b"old %d" % number for number in range(6)])  # of the last generation: retired
    for stripe in range(store.constants.geometry.stripe_count):
        for head in (RETIRED, *range(FREE, SHELF_WORDS)):
            yield from (record.offset for record in stripes.free_spaces(stripes.shelf(stripe) + head))


def _evict(store: HoldingStore, origin: int, values: list[bytes]) -> None:
    refs = [store.intern(value, CAPACITY) for value in values]
    for value, ref in zip(values, refs, strict=True):
        store.release(ref)
        stripe = store.constants.geometry.stripe_of(make_hasher(store.constants.hash_key)(value))
        assert store.locks[stripe].run(store.stripes.evict, stripe, ref - origin & LOW_40, 0)


def _values(rng: random.Random, count: int) -> Iterator[bytes]:
    yield b""
    for number in range(count):
        if number % 3:
            yield b"/eth2/%08x/beacon_attestation_%d/ssz_snappy" % (number // 64, number)
        else:
            yield rng.randbytes(rng.choice((1, 7, 8, 9, 40, 90, 290))) + bytes(number % 2) + b"%d" % number


def _regions(store: Store) -> Iterator[Region]:
    geometry, segment = store.constants.geometry, store.segment
    yield Region("header constants", 0, constants_size())
    yield Region("header words", constants_size(), PAGE_SIZE)
    yield Region("scratch page", geometry.scratch_offset, geometry.stripes_offset)
    yield Region("stripe rows", geometry.stripes_offset, geometry.shelves_offset)
    if geometry.reuses:
        yield Region("shelves", geometry.shelves_offset, geometry.totals_offset)
    yield Region("process rows", geometry.totals_offset, geometry.chunks_offset)
    yield Region("chunk table", geometry.chunks_offset, geometry.tables_offset)
    for stripe in range(geometry.stripe_count):
        for bits in range(MIN_TABLE_BITS, store.stripes.table(stripe).bits + 1):
            start = geometry.table_offset(stripe, 0, bits)
            yield Region("slots", start, start + (WORD_SIZE << bits))
    for row in range(-1, geometry.process_count):
        start = ledger_word(segment, row) * WORD_SIZE
        if size := ledger_size(segment, row):
            yield Region("ledgers", start, start + size)
        if geometry.reuses and row >= 0 and (size := ledger_size(segment, row, HOLDS)):
            start = ledger_word(segment, row, HOLDS) * WORD_SIZE
            yield Region("holds", start, start + size)
    yield Region("arena", geometry.arena_offset, geometry.arena_offset + store.stripes.limit())


class Copy:
    """A file in /dev/shm that holds an image, and that is made so again after each thing done to it."""

    def __init__(self, name: str, image: Image) -> None:
        self.name = name
        self.path = segments.path_of(name)
        self.image = image
        self._pieces = [(each.start, image.data[each.start : each.end]) for each in image.regions]
        self.fd = -1
        with suppress(FileNotFoundError):  # what a child that was killed has left
            self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def restore(self) -> None:
        """The image's bytes and nothing else: memory that was committed since goes back."""
        if self.fd < 0 or not self._is_named():
            self.remove()
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(self.fd, 0)
        os.ftruncate(self.fd, len(self.image.data))
        for start, piece in self._pieces:
            os.pwrite(self.fd, piece, start)

    def _is_named(self) -> bool:
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return named.st_ino == os.fstat(self.fd).st_ino

    @property
    def memory_size(self) -> int:
        return os.fstat(self.fd).st_blocks * 512

    def semaphore_path(self, stripe: int) -> Path:
        return Path("/dev/shm/sem." + semaphore_name(self.image.constants.pool_id, stripe)[1:])

    def remove_semaphores(self) -> None:
        """Those of this pool, and of the one that the file says it is now."""
        path = self.semaphore_path(0)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        assert HEADER.fields is not None
        said = os.pread(self.fd, WORD_SIZE, int(HEADER.fields["pool_id"][1])) if self.fd >= 0 else b""
        unlink_semaphores(self.image.constants.pool_id, 8)  # a geometry of more does not fit the file's size
        if int.from_bytes(said, "little") != self.image.constants.pool_id:
            unlink_semaphores(int.from_bytes(said, "little"), 8)

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
