"""A full pool as bytes, laid down again and again: what mutants are made from.

The same seed gives the same values, places, key and refs. Only the pool's id is each copy's own, as it names semaphores.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from shmpool import Pool
from shmpool import segment as segments
from shmpool.header import Constants, encode
from shmpool.layout import ARENA_LIMIT_WORD, HEADER, MIN_ORIGIN, MIN_TABLE_BITS, PAGE_SIZE, WORD_SIZE, unseal
from shmpool.ledger import ledger_size, ledger_word
from shmpool.lifetime import choose_constants, create
from shmpool.lock import semaphore_name, unlink_semaphores
from shmpool.store import Store

# Stripes and values of the images, and how often each is taken. Of the first every mutant costs little, the second is about to
# grow its table, and both stripes of the third have grown.
KINDS: Final = ((2, 100, 83), (1, 382, 13), (2, 860, 4))
SMALL_KINDS: Final = ((2, 60, 90), (1, 382, 10))  # where time is short
CACHE_SIZE: Final = 4096


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


def make_image(name: str, seed: int, stripe_count: int, value_count: int) -> Image:
    """Make a pool of that name, fill it, and take its bytes while a process is attached, as if it had been killed."""
    rng = random.Random(f"image {seed}")
    constants = choose_constants(
        capacity=1200, arena_size=None, stripe_count=stripe_count, max_value_size=300, insert_budget=None, reserve=0,
        process_count=4, persistent=True,
    )
    constants = replace(constants, pool_id=rng.getrandbits(64), hash_key=rng.randbytes(16), created_ns=1)
    seat = create(name, constants)
    origin = MIN_ORIGIN + rng.randrange(1 << 38) // 8 * 8
    seat.segment.write_epoch(1, origin)
    store = Store(seat, CACHE_SIZE)
    values = list(dict.fromkeys(_values(rng, value_count - 1)))
    store.find_many(values[: value_count // 2], capacity=1200)
    with Pool.attach(name) as departed:  # its uses stand in the totals
        departed.lookup_many(values[:100])
    refs = {value: int(store.intern(value, 1200)) for value in values}
    store.flush()
    image = Image(constants, Path(segments.path_of(name)).read_bytes(), tuple(_regions(store)), refs, origin)
    store.close()
    Pool.unlink(name)
    return image


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
    yield Region("stripe rows", geometry.stripes_offset, geometry.totals_offset)
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
