"""Slots that come and go: at every store a table is a dict of what is in it, and its tombstones go as soon as they can."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from shmpool.arena import make_meta, space_size
from shmpool.layout import GENERATION_SHIFT, META_LIVE, OCCUPIED, TOMBSTONE, WORD_SIZE
from shmpool.table import build, find_live, find_slot, free_slot, make_slot, read_table, remove_slot

SLOT_COUNT = 16
MASK = SLOT_COUNT - 1
KEYS = 15  # so that one slot may be the last free one
ARENA = SLOT_COUNT * WORD_SIZE
SPACE = space_size(4)
LIMIT = KEYS * SPACE

homes = st.sampled_from((0, 0, 1, 5, MASK - 1, MASK))  # crowded, and over the table's end
hashes = st.lists(st.builds(lambda home, tag: home | tag << 40, homes, st.integers(0, 2)), min_size=KEYS, max_size=KEYS)
steps = st.lists(st.tuples(st.booleans(), st.integers(0, KEYS - 1)), max_size=60)


class Slots:
    """A table and an arena where key i's record stands at i * SPACE, of generation i; `present` is what the table should find."""

    def __init__(self, data: mmap.mmap, hashes: list[int]) -> None:
        self.data, self.words, self.hashes = data, memoryview(data).cast("Q"), hashes
        self.present: set[int] = set()
        self.tombstones = 0
        self.doubtful: set[int] = set()  # the key that is just being removed or added
        for key, hash_ in enumerate(hashes):
            word = (ARENA + key * SPACE) // WORD_SIZE
            self.words[word] = hash_
            self.words[word + 1] = make_meta(key, key, 4)
            data[(word + 2) * WORD_SIZE : (word + 2) * WORD_SIZE + 4] = b"%04d" % key

    def find(self, key: int) -> int:
        return find_live(self.words, self.data, 0, MASK, ARENA, LIMIT, self.hashes[key], b"%04d" % key)

    def assert_right(self) -> None:
        for key in set(range(KEYS)) - self.doubtful:
            assert self.find(key) == (key << GENERATION_SHIFT | key * SPACE if key in self.present else -1)

    def change(self, key: int, *, is_there: bool) -> None:
        self.doubtful = {key}
        if is_there:
            index = free_slot(self.words, 0, MASK, self.hashes[key])
            assert index is not None
            self.tombstones -= self.words[index] == TOMBSTONE
            self.words[index] = make_slot(self.hashes[key], key * SPACE)
            self.present.add(key)
        else:
            index = find_slot(self.words, 0, MASK, make_slot(self.hashes[key], key * SPACE), self.hashes[key])
            assert index is not None
            self.tombstones += remove_slot(Watched(self.words, self.assert_right), 0, MASK, index)  # type: ignore[arg-type]
            self.present.remove(key)
        self.doubtful = set()


class Watched:
    """Words of which every store is followed by a look."""

    def __init__(self, words: memoryview, look: Callable[[], object]) -> None:
        self._words, self._look = words, look

    def __getitem__(self, index: int) -> int:
        return int(self._words[index])

    def __setitem__(self, index: int, word: int) -> None:
        self._words[index] = word
        self._look()


@contextmanager
def slots_of(hashes: list[int]) -> Iterator[Slots]:
    with mmap.mmap(-1, ARENA + LIMIT) as data:
        slots = Slots(data, hashes)
        try:
            yield slots
        finally:
            slots.words.release()


@given(hashes, steps)
@example([0] * KEYS, [(True, key) for key in range(KEYS)] + [(False, key) for key in range(KEYS)])
@example([MASK] * KEYS, [(True, key) for key in range(KEYS)] + [(False, key) for key in reversed(range(KEYS))])
def test_a_table_is_a_dict_at_every_store_and_keeps_no_vain_tombstone(hashes: list[int], steps: list[tuple[bool, int]]) -> None:
    with slots_of(hashes) as slots:
        for is_there, key in steps:
            if (key in slots.present) != is_there:
                slots.change(key, is_there=is_there)
            slots.assert_right()

            table = read_table(slots.words, 0, SLOT_COUNT)
            in_vain = (table == TOMBSTONE) & (np.roll(table, -1) == 0)
            assert not in_vain.any()
            assert int((table == TOMBSTONE).sum()) == slots.tombstones
            assert int((table & np.uint64(OCCUPIED)).sum()) == len(slots.present)


@given(hashes, steps)
def test_a_table_built_of_another_without_its_tombstones_finds_the_same(hashes: list[int], steps: list[tuple[bool, int]]) -> None:
    with slots_of(hashes) as slots:
        for is_there, key in steps:
            if (key in slots.present) != is_there:
                slots.change(key, is_there=is_there)
        keys = sorted(slots.present)
        kept = np.array([make_slot(hashes[key], key * SPACE) for key in keys], np.uint64)

        built = build(np.array([hashes[key] for key in keys], np.uint64), kept, SLOT_COUNT)

        slots.data[:ARENA] = built.tobytes()
        slots.assert_right()


@given(hashes)
def test_a_table_full_of_records_and_tombstones_ends_every_search(hashes: list[int]) -> None:
    with slots_of(hashes) as slots:
        for key in range(KEYS):
            slots.change(key, is_there=True)
        slots.words[:SLOT_COUNT] = memoryview(
            bytes(np.where(read_table(slots.words, 0, SLOT_COUNT) == 0, TOMBSTONE, slots.words[:SLOT_COUNT]).astype("<u8"))
        ).cast("Q")

        slots.assert_right()

        assert free_slot(slots.words, 0, MASK, hashes[0]) is not None
        assert find_live(slots.words, slots.data, 0, MASK, ARENA, LIMIT, hashes[0], b"else") == -1


@given(hashes, st.integers(0, KEYS - 1), st.sampled_from(("free", "size", "beyond")))
def test_a_slot_is_believed_only_where_its_record_is_live_of_that_size_and_committed(
    hashes: list[int], key: int, what: str
) -> None:
    with slots_of(hashes) as slots:
        slots.change(key, is_there=True)
        meta_word = (ARENA + key * SPACE) // WORD_SIZE + 1
        if what != "beyond":
            slots.words[meta_word] ^= META_LIVE if what == "free" else 1
        limit = key * SPACE + 19 if what == "beyond" else LIMIT

        found = find_live(slots.words, slots.data, 0, MASK, ARENA, limit, hashes[key], b"%04d" % key)

        assert found == -1
