"""Changes that know what they change, where topics go: shelves, free spaces and their lists, stamps, holds, tombstones."""

from __future__ import annotations

import random
from typing import Final

from shmpool.layout import (
    FREE,
    HOLDS,
    META_GENERATION_SHIFT,
    META_LIVE,
    META_ORDINAL_SHIFT,
    OCCUPIED,
    PAGE_SIZE,
    PROCESS_WORDS,
    RETIRED,
    SHELF_WORDS,
    TOMBSTONE,
    WORD_SIZE,
    seal,
)
from tests.stress.damage import Makers, Mutant, extreme, records, set_word
from tests.stress.image import Image


def shelf_field(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """A sum that is wrong; a list that begins elsewhere: in another's, in a topic, in the middle of one, beyond all."""
    geometry = image.constants.geometry
    shelf = geometry.shelves_offset // WORD_SIZE + rng.randrange(geometry.stripe_count) * SHELF_WORDS
    heads = [word for word in range(shelf + FREE, shelf + SHELF_WORDS) if image.word(word * WORD_SIZE)]
    if rng.random() < 0.4:
        word = shelf + rng.randrange(RETIRED)
        return set_word(mutant, "shelves", "sum", word, extreme(image.word(word * WORD_SIZE), rng))
    word = rng.choice((shelf + RETIRED, *heads, *heads, rng.randrange(shelf + FREE, shelf + SHELF_WORDS)))
    return set_word(mutant, "shelves", "head", word, somewhere_else(image, rng, image.word(word * WORD_SIZE)))


def link(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """The next of a free space: itself, which is a circle, another, a topic, the middle of one."""
    start = (image.constants.geometry.arena_offset + rng.choice(image.free)) // WORD_SIZE
    own = start * WORD_SIZE - image.constants.geometry.arena_offset | OCCUPIED
    old = image.word(start * WORD_SIZE)
    set_word(mutant, "arena", "link of a free space", start, rng.choice((own, somewhere_else(image, rng, old))))


def somewhere_else(image: Image, rng: random.Random, old: int) -> int:
    free, live = rng.choice(image.free), rng.choice(records(image))
    places = (free, free, live, live + 8 * rng.randrange(1, 6), image.limit, image.limit - 8, rng.randrange(image.limit))
    return rng.choice((rng.choice(places) | OCCUPIED, rng.choice(places) | OCCUPIED, 0, extreme(old, rng)))


def free_space(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """A free space's size, generation, ordinal or state."""
    word = (image.constants.geometry.arena_offset + rng.choice(image.free)) // WORD_SIZE + 1
    meta = image.word(word * WORD_SIZE)
    size = rng.choice((0, 1, 8, 100, 300, 0xFFFF, (meta & 0xFFFF) + 8)) & 0xFFFF
    ordinal = rng.choice((0, 1, 2, 663, 664, (1 << 31) - 1))
    changes = (
        meta & ~0xFFFF | size,
        meta & ~(0xFFFF << META_GENERATION_SHIFT) | rng.choice((0, 1, 0xFFFE, 0xFFFF)) << META_GENERATION_SHIFT,
        meta & ~(0x7FFFFFFF << META_ORDINAL_SHIFT) | ordinal << META_ORDINAL_SHIFT,
        meta | META_LIVE,
        extreme(meta, rng),
    )
    set_word(mutant, "arena", "free space", word, rng.choice(changes))


def stamp(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """The time since when nobody holds a topic; or, where it is guessed wrong, a byte or the padding of a value."""
    words = range((image.constants.geometry.arena_offset + rng.choice(records(image))) // WORD_SIZE + 2, 1 << 62)
    word = words[rng.randrange(1, 8)]
    set_word(mutant, "arena", "stamp", word, rng.choice((0, 1, 1 << 40, (1 << 64) - 1)))


def hold(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """A count of holds, or how many of them have memory."""
    geometry = image.constants.geometry
    row = rng.randrange(geometry.process_count)
    if rng.random() < 0.3:
        sizes = (0, 8, PAGE_SIZE, 2 * PAGE_SIZE, geometry.ledger_size, geometry.ledger_size + 8, 1 << 39)
        word = geometry.totals_offset // WORD_SIZE + (row + 1) * PROCESS_WORDS + HOLDS
        return set_word(mutant, "process rows", "resealed word", word, seal(rng.choice((0, 1, 1, 1, 2)), rng.choice(sizes)))
    regions = [region for region in image.regions if region.name == "holds"]
    region = rng.choice(regions)
    word = rng.randrange(region.start // WORD_SIZE, region.start // WORD_SIZE + 200)
    return set_word(mutant, "holds", "count", word, rng.choice((0, 1, 1, 7, (1 << 64) - 1)))


def tombstone(mutant: Mutant, image: Image, rng: random.Random) -> None:
    """In a topic's slot, or in one that was never used."""
    region = rng.choice([region for region in image.regions if region.name == "slots"])
    words = range(region.start // WORD_SIZE, region.end // WORD_SIZE)
    taken = [word for word in words if image.word(word * WORD_SIZE)]
    word = rng.choice((rng.choice(taken), rng.choice(words)))
    set_word(mutant, "slots", "tombstone", word, rng.choice((TOMBSTONE, TOMBSTONE, 0)))


TURNOVER_MAKERS: Final[Makers] = ((shelf_field, 18), (link, 14), (free_space, 10), (stamp, 6), (hold, 8), (tombstone, 5))


def makers_of(image: Image) -> Makers:
    """Those that an image has something for."""
    return TURNOVER_MAKERS if image.constants.geometry.reuses else ()
