"""Claims about slots: what was built is found, a search always ends, and no offset beyond what is committed is touched."""

from __future__ import annotations

import mmap
import random

import numpy as np
import pytest

from shmpool.arena import make_record, record_size
from shmpool.table import build, ceiling, find, find_slot, make_slot

SLOTS = 512


def table_of(hashes: list[int]) -> memoryview:
    slots = [make_slot(hash_, 8 * number) for number, hash_ in enumerate(hashes)]
    return memoryview(build(np.array(hashes, np.uint64), np.array(slots, np.uint64), SLOTS).tobytes()).cast("Q")


@pytest.mark.parametrize("kind", ["random", "one home", "at the end"])
def test_every_record_of_a_built_table_is_on_its_probe_path(rng: random.Random, kind: str) -> None:
    homes = {"random": range(SLOTS), "one home": [7], "at the end": range(SLOTS - 3, SLOTS)}[kind]
    hashes = [rng.getrandbits(55) << 9 | rng.choice(homes) for _ in range(ceiling(SLOTS))]

    words = table_of(hashes)

    assert sum(word != 0 for word in words.tolist()) == len(hashes)
    for number, hash_ in enumerate(hashes):
        assert find_slot(words, 0, SLOTS - 1, make_slot(hash_, 8 * number), hash_) is not None
    assert find_slot(words, 0, SLOTS - 1, make_slot(hashes[0], 8 * 5000), hashes[0]) is None


def test_search_of_a_full_table_ends() -> None:
    words = memoryview(np.full(SLOTS, 1, np.uint64).tobytes()).cast("Q")

    assert find_slot(words, 0, SLOTS - 1, 0, 5) is None
    assert find(words, mmap.mmap(-1, 4096), 0, SLOTS - 1, 0, 0, 5 | 1 << 50, b"x") == ~SLOTS


def test_record_is_found_by_all_its_bytes_and_only_within_what_is_committed() -> None:
    data = mmap.mmap(-1, 2 * 8 * SLOTS)
    arena, hash_ = 8 * SLOTS, 3 | 9 << 50
    data[arena : arena + record_size(5)] = make_record(hash_, b"value", 0)
    words = memoryview(data).cast("Q")
    words[3] = make_slot(hash_, 0)

    def search(value: bytes, limit: int) -> int:
        return find(words, data, 0, SLOTS - 1, arena, limit, hash_, value)

    assert search(b"value", 4096) == 0
    assert search(b"valuf", 4096) == ~SLOTS
    assert search(b"valu", 4096) == ~SLOTS
    assert search(b"value", 20) == ~SLOTS
    assert find(words, data, 0, SLOTS - 1, arena, 4096, 3 | 8 << 50, b"other") == ~4
    words.release()
