"""Who does not know a pool's key cannot choose values that make its probes long, and the measure would show it if he could."""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from shmpool.hashing import make_hasher
from shmpool.table import build
from tools.families import FAMILIES, KNOWN_KEY, LOW, TRIED, family
from tools.probes import COUNT, KNOWN, Probes, measure, summarise

Hasher = Callable[[bytes], int]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_makes_probes_long_or_stripes_uneven(name: str, rng: Random) -> None:
    probes = measure(name, [family(name, COUNT, rng)])

    assert probes.is_bounded, probes
    assert 0.5 < probes.load < 0.7


def test_values_that_collide_under_a_known_key_do_so_only_in_a_pool_of_that_key(rng: Random) -> None:
    values = family(KNOWN, COUNT, rng)

    theirs = measure("the known key", [values], KNOWN_KEY)
    ours = measure("the pool's own", [values])

    assert {make_hasher(KNOWN_KEY)(value) & TRIED for value in values} == {0}
    assert not theirs.is_bounded
    assert theirs.mean > 10 * ours.mean


# ---- weak hashes, laid out as the pool lays out its own: each must be caught, by the family made for it


def laid_out(values: list[bytes], hash_value: Hasher) -> Probes:
    homes = np.array([hash_value(value) & LOW for value in values], np.uint64)
    parts = [homes[start::4] for start in range(4)]  # however well the stripes are chosen
    tables = [build(part, part + np.uint64(1), LOW + 1).astype(np.int64) - 1 for part in parts]
    return summarise("laid out", tables)


def fnv_1a(value: bytes) -> int:
    state = 0xCBF29CE484222325
    for byte in value:
        state = (state ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return state


def python_int_hash(value: bytes) -> int:
    return hash(int.from_bytes(value, "little"))


@pytest.mark.parametrize(
    ("name", "hash_value"),
    [
        pytest.param("equal low CRC-32", zlib.crc32, id="crc32"),
        pytest.param("equal low FNV-1a", fnv_1a, id="fnv"),
        pytest.param("one Python int hash", python_int_hash, id="int-hash"),
        pytest.param("equal low SipHash, zero key", make_hasher(bytes(16)), id="siphash-zero-key"),
    ],
)
def test_control_weak_hash_is_caught_by_the_family_made_for_it(name: str, hash_value: Hasher, rng: Random) -> None:
    values = family(name, COUNT, rng)

    assert not laid_out(values, hash_value).is_bounded
    assert laid_out(values, make_hasher(secrets.token_bytes(16))).is_bounded

