"""Mutants: one to three changes of a full pool's bytes, its size or its semaphores, each chosen by a seed and a number.

Beside blind ones (flipped bits, smears, pages zeroed, copied or random) there are changes that know what they change: every
field set to extreme values, words resealed and the header's checksum made right, so that nothing but the checks of meaning is
left in the way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import blake2b
from itertools import product
from typing import Final, NamedTuple

from shmpool.arena import make_chunk
from shmpool.header import encode
from shmpool.layout import (
    ARENA_LIMIT_WORD,
    COUNTERS,
    EPOCH_WORD,
    FIRST_COUNTER,
    FOLD_WORD,
    HEADER,
    INTENT,
    INTENT_SHIFT,
    LEDGER,
    LOW_40,
    OFFSET_MASK,
    PAGE_SIZE,
    PROCESS,
    PROCESS_WORDS,
    STRIPE,
    STRIPE_WORDS,
    TABLE,
    TAG_SHIFT,
    WORD_SIZE,
    Geometry,
    seal,
)
from tests.stress.image import Image, constants_size

_WORD: Final = (1 << 64) - 1
_BITS: Final = (0, 1, 3, 8, 15, 16, 24, 31, 32, 39, 40, 48, 56, 62, 63, 64)
EXTREMES: Final = tuple(sorted({value & _WORD for bits in _BITS for value in (1 << bits, (1 << bits) - 1)}))
SEMAPHORE_SIZE: Final = 32


class Write(NamedTuple):
    offset: int
    data: bytes


@dataclass
class Mutant:
    """What is done to a copy of the image. `semaphore` is what becomes of a turnstile's file: its bytes, or a word."""

    region: str = ""
    kind: str = ""
    writes: list[Write] = field(default_factory=list)
    size: int | None = None
    semaphore: bytes | str | None = None

    @property
    def cuts_a_file(self) -> bool:
        """Whether who has the file mapped could be trapped: that is how mappings are."""
        return self.size is not None or (self.semaphore is not None and len(self.semaphore) != SEMAPHORE_SIZE)

    def __str__(self) -> str:
        changes = ", ".join(f"{at:#x}: {data[:16].hex()}{'...' if len(data) > 16 else ''}" for at, data in self.writes[:4])
        size = "" if self.size is None else f" size {self.size}"
        semaphore = "" if self.semaphore is None else f" semaphore {self.semaphore!r}"
        return f"{self.region}, {self.kind}: {changes}{size}{semaphore}"


Maker = Callable[[Mutant, Image, random.Random], None]
Makers = tuple[tuple[Maker, int], ...]


def make_mutant(image: Image, seed: int, number: int, more: Makers = ()) -> Mutant:
    """The mutant of that number: the same for the same image and seed. `more` makers for what not every image has."""
    rng = random.Random(f"mutant {seed} {number}")
    mutant = Mutant()
    makers, weights = zip(*MAKERS, *more, strict=True)
    for maker in rng.choices(makers, weights, k=rng.choice((1, 1, 1, 2, 3))):
        maker(mutant, image, rng)
    return mutant


# ---- blind changes


def flip(mutant: Mutant, image: Image, rng: random.Random) -> None:
    region, place = somewhere(image, rng)
    mutate(mutant, region, "flipped bit", place, bytes([image.data[place] ^ 1 << rng.randrange(8)]))


def smear(mutant: Mutant, image: Image, rng: random.Random) -> None:
    region, place = somewhere(image, rng)
    size = rng.choice((1, 2, 2, 3, 4, 8, 16, 64, 300))
    data = rng.choice((rng.randbytes(size), bytes(size), b"\xff" * size))
    mutate(mutant, region, "smear", place, data[: len(image.data) - place])


def spoil_page(mutant: Mutant, image: Image, rng: random.Random) -> None:
    region, place = somewhere(image, rng)
    page = place // PAGE_SIZE * PAGE_SIZE
    if page == 0 and rng.random() < 0.9:  # the header is refused, which is soon shown
        return spoil_page(mutant, image, rng)
    other = somewhere(image, rng)[1] // PAGE_SIZE * PAGE_SIZE
    kind, data = rng.choice(
        (
            ("page zeroed", bytes(PAGE_SIZE)),
            ("page of ones", b"\xff" * PAGE_SIZE),
            ("random page", rng.randbytes(PAGE_SIZE)),
            ("page of another place", image.data[other : other + PAGE_SIZE]),
        )
    )
    return mutate(mutant, region, kind, page, data)


def swap_words(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """Two words of one kind change places: each is honest, and in the wrong place."""
    region, one = somewhere(image, rng)
    two = next(place for name, place in iter(lambda: somewhere(image, rng), None) if name == region)
    one, two = one // WORD_SIZE * WORD_SIZE, two // WORD_SIZE * WORD_SIZE
    mutate(mutant, region, "swapped words", one, image.data[two : two + WORD_SIZE])
    mutate(mutant, region, "swapped words", two, image.data[one : one + WORD_SIZE])


def somewhere(image: Image, rng: random.Random) -> tuple[str, int]:
    """A region's name and a byte in it. Each kind of region is met as often as any other."""
    if rng.random() < 0.03:
        return "reserved memory", rng.randrange(len(image.data))
    name = rng.choice(sorted({region.name for region in image.regions}))
    region = rng.choice([region for region in image.regions if region.name == name])
    return name, rng.randrange(region.start, region.end)


def mutate(mutant: Mutant, region: str, kind: str, place: int, data: bytes) -> None:
    mutant.region, mutant.kind = mutant.region or region, mutant.kind or kind
    mutant.writes.append(Write(place, data))


def set_word(mutant: Mutant, region: str, kind: str, word: int, value: int) -> None:
    mutate(mutant, region, kind, word * WORD_SIZE, (value & _WORD).to_bytes(WORD_SIZE, "little"))


def extreme(old: int, rng: random.Random) -> int:
    near = (old + 1, old - 1, old + 8, old - 8, old + PAGE_SIZE, old * 2, old // 2, ~old, -old, rng.getrandbits(64))
    return rng.choice(EXTREMES if rng.random() < 0.6 else near) & _WORD


# ---- changes that know what they change


def header_field(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """A constant set to an extreme value, half the time with the checksum made right."""
    assert HEADER.names is not None
    assert HEADER.fields is not None
    names = [name for name in HEADER.names if int(HEADER.fields[name][1]) < constants_size()]
    name = rng.choice(names)
    dtype, offset = HEADER.fields[name][:2]
    place = int(offset) + rng.randrange(int(dtype.itemsize) // WORD_SIZE) * WORD_SIZE
    page = bytearray(image.data[:PAGE_SIZE])
    page[place : place + WORD_SIZE] = extreme(image.word(place), rng).to_bytes(WORD_SIZE, "little")
    kind = "field, checksum wrong"
    if rng.random() < 0.5 and name != "checksum":
        make_checksum_right(page)
        kind = "field, checksum right"
    size = constants_size()
    mutate(mutant, "header constants", kind, 0, bytes(page[:size]))


def make_checksum_right(page: bytearray) -> None:
    end = constants_size() - WORD_SIZE
    page[end : end + WORD_SIZE] = blake2b(page[WORD_SIZE:end], digest_size=WORD_SIZE).digest()


def other_geometry(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """Other constants that make a file of this very size, checksum right: every region is elsewhere."""
    geometry = rng.choice(_geometries_of_size(image.constants.geometry))
    constants = replace(image.constants, geometry=geometry)
    mutate(mutant, "header constants", "other geometry", 0, encode(constants)[: constants_size()])


@cache
def _geometries_of_size(like: Geometry) -> list[Geometry]:
    """Found by trying: the arena takes up what the other regions leave."""
    found = []
    for capacity, stripes, rows in product((1, 100, 600, 1100, 1199, 1201, 1500, 2000, 4000), (1, 2, 4), range(1, 12)):
        for max_value_size in (1, 300, 1000, 5000):
            with suppress(ValueError):
                trial = Geometry(capacity, 1 << 20, stripes, rows, max_value_size, like.reuses)
                arena_size = like.total_size - trial.arena_offset  # the chunk table is one page for either arena
                found.append(replace(trial, arena_size=arena_size))
    return [geometry for geometry in found if geometry.total_size == like.total_size] or [like]


def sealed_word(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """A word that whole regions hang on, resealed with values that it cannot have."""
    geometry = image.constants.geometry
    stripe, row = rng.randrange(geometry.stripe_count), rng.randrange(-1, geometry.process_count)
    table = geometry.stripes_offset // WORD_SIZE + stripe * STRIPE_WORDS + TABLE
    ledger = geometry.totals_offset // WORD_SIZE + (row + 1) * PROCESS_WORDS + LEDGER
    tables = [region << 8 | bits for region in (0, 1, 2, 255) for bits in (0, 8, 9, 10, 11, 12, 31, 63, 255)]
    chunk = geometry.chunk_size
    limit, most = image.limit, geometry.arena_size
    limits = (0, 8, chunk, limit - chunk, limit - 8, limit + chunk, most, most + chunk)
    sizes = (0, 8, PAGE_SIZE, 2 * PAGE_SIZE, geometry.ledger_size, geometry.ledger_size + 8, geometry.ledger_size - 4)
    region, word, values = rng.choice(
        (
            ("header words", ARENA_LIMIT_WORD, limits),
            ("stripe rows", table, tables),
            ("process rows", ledger, sizes),
            ("header words", EPOCH_WORD, (0, 1 << 39, image.origin - 24, image.origin + 16, image.origin + chunk)),
        )
    )
    value = rng.choice((*values, *values, *(each for each in EXTREMES if each < 1 << 40)))
    set_word(mutant, region, "resealed word", word, seal(rng.choice((0, 1, 1, 1, 1, 2, 0xFFFF)), value))


def row_word(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """Any field of a stripe's or process's row, the fold word, an intent of every shape."""
    geometry = image.constants.geometry
    which = rng.randrange(4)
    if which == 0:
        word = geometry.stripes_offset // WORD_SIZE + rng.randrange(geometry.stripe_count * STRIPE.itemsize // WORD_SIZE)
        return set_word(mutant, "stripe rows", "field", word, extreme(image.word(word * WORD_SIZE), rng))
    if which == 1:
        rows = (1 + geometry.process_count) * PROCESS.itemsize // WORD_SIZE
        word = geometry.totals_offset // WORD_SIZE + rng.randrange(rows)
        if rng.random() < 0.3:
            word = geometry.totals_offset // WORD_SIZE + FIRST_COUNTER + rng.randrange(len(COUNTERS))
        return set_word(mutant, "process rows", "field", word, extreme(image.word(word * WORD_SIZE), rng))
    if which == 2:
        fold = rng.getrandbits(24) << 40 | rng.choice((0, 1, 2, 3, 7, 255, (1 << 24) - 1)) << 16 | rng.randrange(7)
        return set_word(mutant, "header words", "field", FOLD_WORD, rng.choice((fold, fold, extreme(0, rng))))
    word = geometry.stripes_offset // WORD_SIZE + rng.randrange(geometry.stripe_count) * STRIPE_WORDS + INTENT
    place = rng.choice((rng.choice(records(image)) + rng.choice((0, 0, 8, -8, 4)), rng.randrange(64), rng.choice(EXTREMES)))
    intent = rng.choice((0, 1, 1, 1, 2, 2, 3, 4, 5, 255)) << INTENT_SHIFT | place & (1 << INTENT_SHIFT) - 1
    return set_word(mutant, "stripe rows", "intent", word, intent)


def chunk_field(mutant: Mutant, image: Image, rng: random.Random) -> None:
    geometry = image.constants.geometry
    index = rng.randrange(image.limit // geometry.chunk_size + 2)
    used = rng.choice((0, 1, 8, 15, 16, geometry.chunk_size, geometry.chunk_size - 8, geometry.chunk_size + 8, (1 << 32) - 1))
    if rng.random() < 0.4:
        used = rng.choice(records(image)) % geometry.chunk_size + rng.choice((0, 8, 5))
    word = make_chunk(used, rng.choice((-1, 0, 1, 2, 255, 0xFFFE)), rng.choice((0, 1, 1, 1, 2, 0xFFFF)))
    place = geometry.chunks_offset // WORD_SIZE + index
    set_word(mutant, "chunk table", "field", place, rng.choice((word, word, extreme(image.word(place * WORD_SIZE), rng))))


def slot_field(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """A slot with its right tag and a wild offset, another's slot, or an occupied one where there was none."""
    tables = [region for region in image.regions if region.name == "slots"]
    region = rng.choice(tables)
    words = range(region.start // WORD_SIZE, region.end // WORD_SIZE)
    taken = [word for word in words if image.word(word * WORD_SIZE)] or list(words)
    word, other = rng.choice(taken), image.word(rng.choice(taken) * WORD_SIZE)
    old = image.word(word * WORD_SIZE)
    ends = (image.limit, image.constants.geometry.arena_size, 0, OFFSET_MASK)
    offset = rng.choice((old & OFFSET_MASK, rng.choice(records(image)), *ends))
    offset = offset + rng.choice((0, 0, 8, -8, 16, -16)) & OFFSET_MASK
    wild = old >> TAG_SHIFT << TAG_SHIFT | offset | rng.choice((1, 1, 1, 0, 7))
    place = rng.choice((word, word, rng.choice(words)))
    set_word(mutant, "slots", "field", place, rng.choice((wild, wild, wild, other, 0, extreme(old, rng))))


def record_field(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """A record's hash, size, generation, ordinal or state."""
    start = (image.constants.geometry.arena_offset + rng.choice(records(image))) // WORD_SIZE
    meta = image.word((start + 1) * WORD_SIZE)
    size = rng.choice((0, 1, 7, 8, (meta & 0xFFFF) + 1, (meta & 0xFFFF) - 1, 0x7FFF, 0x8000, 0xFFFF)) & 0xFFFF
    ordinal = rng.choice((0, 1, (1 << 31) - 1, 1 << 30, 2399))
    change: Callable[[], int] = rng.choice(
        (
            lambda: meta & ~0xFFFF | size,
            lambda: meta & ~(0x7FFFFFFF << 32) | ordinal << 32,
            lambda: meta | rng.choice((1, 0x8000, 0xFFFF)) << 16,
            lambda: meta & ~(1 << 63),
            lambda: extreme(meta, rng),
        )
    )
    if rng.random() < 0.2:
        return set_word(mutant, "arena", "record's hash", start, extreme(image.word(start * WORD_SIZE), rng))
    return set_word(mutant, "arena", "record header", start + 1, change())


def records(image: Image) -> list[int]:
    """Arena offsets of the image's records."""
    return [ref - image.origin & LOW_40 for ref in image.refs.values()]


# ---- the file and the semaphores


def resize(mutant: Mutant, image: Image, rng: random.Random) -> None:
    size = len(image.data)
    mutant.region, mutant.kind = mutant.region or "file", mutant.kind or "resized"
    mutant.size = rng.choice((0, 8, PAGE_SIZE - 1, PAGE_SIZE, rng.randrange(size), size - 1, size + 1, size + PAGE_SIZE))


def spoil_semaphore(mutant: Mutant, image: Image, rng: random.Random) -> None:
    value = rng.choice((0, 2, 0x7FFFFFFE, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
    whole = value.to_bytes(4, "little") + bytes(SEMAPHORE_SIZE - 4)
    mutant.region, mutant.kind = mutant.region or "semaphores", mutant.kind or "spoiled"
    others = ("missing", "directory", "link", "dangling link")
    mutant.semaphore = rng.choice((whole, whole, rng.randbytes(SEMAPHORE_SIZE), b"", b"x", bytes(31), bytes(33), *others))


MAKERS: Final[Makers] = (
    (flip, 24),
    (smear, 14),
    (spoil_page, 6),
    (swap_words, 4),
    (header_field, 6),
    (other_geometry, 2),
    (sealed_word, 8),
    (row_word, 12),
    (chunk_field, 7),
    (slot_field, 10),
    (record_field, 8),
    (resize, 2),
    (spoil_semaphore, 3),
)


def extremes_of_every_field(image: Image) -> Iterator[Mutant]:
    """Every word of the header and of every row set to every extreme value, the header's with the checksum wrong and right."""
    end = constants_size()
    for place in range(0, end, WORD_SIZE):
        for value in EXTREMES:
            for is_right in (False, True):
                page = bytearray(image.data[:PAGE_SIZE])
                page[place : place + WORD_SIZE] = value.to_bytes(WORD_SIZE, "little")
                if is_right:
                    make_checksum_right(page)
                kind = f"field, checksum {'right' if is_right else 'wrong'}"
                yield Mutant("header constants", kind, [Write(0, bytes(page[:end]))])
    geometry = image.constants.geometry
    stripes, processes = geometry.stripes_offset // WORD_SIZE, geometry.totals_offset // WORD_SIZE
    rows = {
        "header words": [EPOCH_WORD, ARENA_LIMIT_WORD, FOLD_WORD],
        "stripe rows": range(stripes, stripes + geometry.stripe_count * STRIPE_WORDS),
        "process rows": range(processes, processes + 2 * PROCESS_WORDS),
    }
    for region, words in rows.items():
        for word, value in product(words, EXTREMES):
            mutant = Mutant()
            set_word(mutant, region, "field", word, value)
            yield mutant
