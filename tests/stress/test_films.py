"""Whatever a reader without a lock meets half way, it gets the right bytes, StaleRefError or a miss; and what is held it finds.

Nearly exhaustive: every store of a writer, values in halves, and every read of the reader.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from mmap import mmap
from typing import Any

import pytest

from shmpool import Policy, Pool, StaleRefError, TopicRef, reuse
from shmpool.arena import make_meta, read_record
from shmpool.layout import (
    GENERATION_SHIFT,
    MAX_GENERATION,
    META_GENERATION_SHIFT,
    META_LIVE,
    META_SIZE_MASK,
    OFFSET_MASK,
    RECORD_SIZE,
    TAG_SHIFT,
    seal,
)
from shmpool.reuse import Ledgers, ReusingStripes
from shmpool.stripe import Stripes
from tests.stress.film import Camera, Film, watch
from tests.unit.inside import ENGINES, engine_chosen, store_of
from tests.unit.processes import in_child
from tests.unit.stepping import states_at_each_instruction

MOST_CUTS = 6000
CONTROL_CUTS = 60_000  # nearly all there are: it ends with the first that is wrong, and few may be
ONE, OTHER = b"one value of thirty-odd bytes..", b"the other, which is as long as."
assert len(ONE) == len(OTHER)

Break = Callable[[], object]
Given = dict[bytes, list[TopicRef]]  # the refs that a value ever had


class WrongError(AssertionError):
    """A reader was told what is not so."""


def play(name: str, rng: random.Random, policy: Policy, sabotage: Break, most: int = MOST_CUTS) -> int:
    """Film a writer, and have a reader see cuts of it; how many. Raises WrongError."""
    camera = Camera()
    sabotage()
    with Pool.create(name, policy=policy, stripe_count=1, capacity=600, max_value_size=64, process_count=3) as writer:
        held, neighbour = same_home(writer)
        given = {value: [writer.intern(value)] for value in (neighbour, held, ONE)}
        with Pool.attach(name) as reader:
            for value in given:
                reader.lookup(value)
            pictures = camera.film(writer, lambda: turn_over(writer, given, neighbour))
            return see_cuts(reader, pictures, rng, held, given, most)


def see_cuts(
    reader: Pool, pictures: list[bytes], rng: random.Random, held: bytes, given: Given, most: int = MOST_CUTS
) -> int:
    film = Film(pictures)
    segment = store_of(reader).segment
    before = segment.words, segment.data
    watch(reader, film)
    try:
        return sum(1 for _ in cuts(reader, film, len(pictures), rng, held, given, most))
    finally:
        segment.words, segment.data = before


def turn_over(writer: Pool, given: Given, neighbour: bytes) -> None:
    """A space changes hands twice, and the table is built anew twice, so that it is where it was."""
    writer.release(given[ONE][0])
    given[OTHER] = [writer.intern(OTHER)]
    writer.release(given[OTHER][0])
    writer.release(given[neighbour][0])
    for _ in range(2):
        store_of(writer).locks[0].run(rebuild, store_of(writer).stripes)
    given[ONE].append(writer.intern(ONE))


def rebuild(stripes: Stripes) -> None:
    assert isinstance(stripes, ReusingStripes)
    stripes.recover(0)
    stripes._rebuild(0, stripes.table(0))  # noqa: SLF001


def same_home(pool: Pool) -> tuple[bytes, bytes]:
    """Two values that begin their search at one slot: the second one that is inserted is beside the first."""
    homes: dict[int, bytes] = {}
    number = 0
    while True:
        value = b"%d" % (number := number + 1)
        home = store_of(pool)._hash(value) & 511  # noqa: SLF001
        if home in homes:
            return value, homes[home]
        homes[home] = value


def cuts(
    reader: Pool, film: Film, count: int, rng: random.Random, held: bytes, given: Given, most: int
) -> Iterator[None]:
    all_cuts = [
        (value, first, then, cut)
        for value in (ONE, OTHER, held)
        for first in range(count)
        for then in range(first, count)
        for cut in range(1, 2 if first == then else reads_of(reader, film, value, first) + 2)
    ]
    for value, first, then, cut in rng.sample(all_cuts, min(most, len(all_cuts))):
        film.show(first, then, cut)
        try:
            look(reader, value, given[value], is_held=value == held)
        except WrongError as error:
            raise WrongError(f"{error}, at picture {first}, {then} from read {cut} on, of {count}") from None
        yield


def reads_of(reader: Pool, film: Film, value: bytes, number: int) -> int:
    film.show(number, number, 0)
    ref = reader.lookup(value)
    with suppress(StaleRefError):
        reader.resolve(ref or TopicRef(0))
    return film.reads


def look(reader: Pool, value: bytes, given: list[TopicRef], *, is_held: bool) -> None:
    """Look a value up, and resolve its ref, and the first that there was of it."""
    ref = reader.lookup(value)
    if ref is None and is_held:
        raise WrongError(f"{value!r} is held, and not found")
    if ref not in (None, *given):
        raise WrongError(f"{value!r} is found as {ref}, and its refs were {given}")
    for each in {ref or given[0], given[0]}:
        try:
            found = reader.resolve(each)
        except StaleRefError:
            if is_held:
                raise WrongError(f"{value!r} is held, and its ref {each} is stale") from None
            continue
        if found != value:
            raise WrongError(f"ref {each} of {value!r} resolves to {found!r}")


@pytest.mark.parametrize("policy", [Policy.refcount(), Policy.lru(max_unheld=1), Policy.ttl(seconds=1000.0)], ids=str)
def test_a_reader_is_right_at_every_store_of_a_writer_and_every_read_of_its_own(
    pool_name: str, rng: random.Random, policy: Policy
) -> None:
    assert in_child(lambda: play(pool_name, rng, policy, bool)) > 1000


@pytest.mark.skipif("compiled" not in ENGINES, reason="no compiled engine here")
def test_a_reader_is_right_at_every_instruction_of_the_compiled_engine_that_stores(pool_name: str, rng: random.Random) -> None:
    """The same with a writer in C, stopped after each machine instruction."""

    def turn_over_plainly() -> None:
        """In a child that is stepped, on its parent's row: what a process does under its lock."""
        assert isinstance(stripes, ReusingStripes)
        for offset, value in ((handle, OTHER), (handle, ONE)):
            assert stripes.drop_plainly(0, offset, holds_word)
            assert stripes.hold_plainly(value, ledgers, [], may_insert=True)

    with Pool.create(
        pool_name, policy=Policy.refcount(), stripe_count=1, capacity=600, max_value_size=64, process_count=3
    ) as writer:
        held, neighbour = same_home(writer)
        given = {value: [writer.intern(value)] for value in (neighbour, held, ONE)}
        store = store_of(writer)
        stripes, ledgers = store.stripes, Ledgers(*store.attachment.ledgers)
        assert isinstance(stripes, ReusingStripes)
        handle = given[ONE][0] - stripes.origin
        holds_word = ledgers.holds_word + stripes.column(read_record(store.segment, handle))
        next_ref = [TopicRef(given[ONE][0] + (number << GENERATION_SHIFT)) for number in (1, 2)]
        given[OTHER], given[ONE] = [next_ref[0]], [given[ONE][0], next_ref[1]]
        with engine_chosen("python"), Pool.attach(pool_name) as reader:
            for value in given:
                reader.lookup(value)
            size = store.segment.constants.geometry.total_size

            pictures = states_at_each_instruction(turn_over_plainly, lambda: os.pread(store.segment.fd, size, 0))

            assert reader.lookup(ONE) == next_ref[1], "the child did not come to its end"
            assert len(pictures) > 20
            assert see_cuts(reader, pictures, rng, held, given) > 1000


# ---- controls: each must be caught. They break shmpool in a forked child, where nothing has to be put back.


replace = pytest.MonkeyPatch().setattr


def find_without_a_second_look() -> None:
    def find_live(
        words: memoryview, data: mmap, table_word: int, slot_mask: int, arena_offset: int, limit: int, hash_: int, value: bytes
    ) -> int:
        for step in range(slot_mask + 1):
            slot = words[table_word + (hash_ + step & slot_mask)]
            if not slot:
                return -1
            start = arena_offset + (slot & OFFSET_MASK)
            bytes_start = start + RECORD_SIZE
            if slot >> TAG_SHIFT == hash_ >> TAG_SHIFT and data[bytes_start : bytes_start + len(value)] == value:
                meta = words[(start >> 3) + 1]  # once, after the bytes
                if meta & META_SIZE_MASK == len(value) and meta >= META_LIVE:
                    return (meta >> META_GENERATION_SHIFT & MAX_GENERATION) << GENERATION_SHIFT | slot & OFFSET_MASK
        return -1

    replace(reuse, "find_live", find_live)


def resolve_without_a_second_look() -> None:
    replace(ReusingStripes, "is_still", lambda *_: True)


def write_the_record_live_before_its_bytes() -> None:
    def write(self: Any, offset: int, end: int, hash_: int, value: bytes, ordinal: int, generation: int) -> None:
        words, word = self.segment.words, self._arena_word + (offset >> 3)
        words[self._arena_word + (end >> 3) - 1] = 0
        words[word + 1] = make_meta(ordinal, generation, len(value))
        words[word] = hash_
        start = self._arena_offset + offset + RECORD_SIZE
        self.segment.data[start : start + len(value)] = value

    replace(ReusingStripes, "_write", write)


def keep_the_generation() -> None:
    write = ReusingStripes._write  # noqa: SLF001

    def writing(self: Any, offset: int, end: int, hash_: int, value: bytes, ordinal: int, _: int) -> None:
        write(self, offset, end, hash_, value, ordinal, 0)

    replace(ReusingStripes, "_write", writing)


def store_the_generation_after_the_slot() -> None:
    write, take = ReusingStripes._write, ReusingStripes._reuse  # noqa: SLF001

    def writing(self: Any, offset: int, end: int, hash_: int, value: bytes, ordinal: int, generation: int) -> None:
        write(self, offset, end, hash_, value, ordinal, max(generation - 1, 0))

    def taking(self: Any, *arguments: Any) -> Any:
        offset, place = take(self, *arguments)
        self.segment.words[self._arena_word + (offset >> 3) + 1] += 1 << META_GENERATION_SHIFT
        return offset, place

    replace(ReusingStripes, "_write", writing)
    replace(ReusingStripes, "_reuse", taking)


def rebuild_without_a_serial() -> None:
    replace(reuse, "seal", lambda epoch, value: seal(epoch, value & 0x1FF))


@pytest.mark.parametrize(
    "sabotage",
    [
        find_without_a_second_look,
        resolve_without_a_second_look,
        write_the_record_live_before_its_bytes,
        keep_the_generation,
        store_the_generation_after_the_slot,
        rebuild_without_a_serial,
    ],
    ids=lambda sabotage: sabotage.__name__,
)
def test_control_that_is_built_wrongly_is_caught(pool_name: str, rng: random.Random, sabotage: Break) -> None:
    def is_caught() -> bool:
        try:
            play(pool_name, rng, Policy.refcount(), sabotage, CONTROL_CUTS)
        except WrongError:
            return True
        return False

    assert in_child(is_caught)
