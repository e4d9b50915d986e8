"""Families of values as somebody would choose them who wants a table's probes to be long, and does not know the pool's key."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Final

import numpy as np

from shmpool.hashing import make_hasher

LOW_BITS: Final = 10  # in which the crafted values collide: all the slot bits of a table of 1024 slots
LOW: Final = (1 << LOW_BITS) - 1
TRIED: Final = 0xFF  # the low bits in which values are made to collide by trying, 256 for each; four homes in such a table
KNOWN_KEY: Final = bytes(range(16))
MAX_VALUE_SIZE: Final = 2000

Maker = Callable[[int, Random], Iterator[bytes]]


def random_values(_: int, rng: Random) -> Iterator[bytes]:
    while True:
        yield rng.randbytes(24)


def sequential_names(_count: int, _rng: Random) -> Iterator[bytes]:
    return (b"/eth2/6a95a1a9/beacon_attestation_%d/ssz_snappy" % number for number in itertools.count())


def shared_prefixes(_count: int, _rng: Random) -> Iterator[bytes]:
    return (b"x" * 400 + b"%d" % number for number in itertools.count())


def shared_suffixes(_count: int, _rng: Random) -> Iterator[bytes]:
    return (b"%d" % number + b"x" * 400 for number in itertools.count())


def single_byte_changes(_: int, rng: Random) -> Iterator[bytes]:
    base = rng.randbytes(47)
    return (base[:at] + bytes([byte]) + base[at + 1 :] for at in range(47) for byte in range(256))


def single_bit_changes(count: int, rng: Random) -> Iterator[bytes]:
    base = int.from_bytes(rng.randbytes(count // 8 + 1), "little")
    return ((base ^ 1 << bit).to_bytes(count // 8 + 1, "little") for bit in range(count))


def extended_by_nuls(_: int, rng: Random) -> Iterator[bytes]:
    return (rng.randbytes(4) + bytes(size) for size in itertools.cycle(range(1500)))


def only_nuls_and_permutations(_count: int, _rng: Random) -> Iterator[bytes]:
    return itertools.chain((bytes(size) for size in range(1000)), map(bytes, itertools.permutations(b"abcdefgh")))


def same_python_hash(_count: int, _rng: Random) -> Iterator[bytes]:
    """Multiples of 2**61 - 1, all of which Python's int hash makes 0."""
    return ((number * ((1 << 61) - 1)).to_bytes(16, "little") for number in itertools.count())


def same_low_fnv(_: int, rng: Random) -> Iterator[bytes]:
    """Equal low bits under FNV-1a: of each prefix, the two-byte ends that lead there are found by trying all."""
    prime, ends = 0x100000001B3 & LOW, np.arange(1 << 16)
    while True:
        prefix, state = rng.randbytes(8), 0xCBF29CE484222325 & LOW
        for byte in prefix:
            state = (state ^ byte) * prime & LOW
        states = (((state ^ ends & 0xFF) * prime) & LOW ^ ends >> 8) * prime & LOW
        for end in np.flatnonzero(states == 0)[:20].tolist():
            yield prefix + end.to_bytes(2, "little")


def same_low_crc(_: int, rng: Random) -> Iterator[bytes]:
    """Equal low bits of the CRC-32, by four bytes at the end that steer it to any number wanted."""
    tops = {zlib_table()[byte] >> 24: byte for byte in range(256)}
    while True:
        prefix, wanted = rng.randbytes(12), rng.getrandbits(32 - LOW_BITS) << LOW_BITS
        state = wanted ^ 0xFFFFFFFF
        for _ in range(4):
            byte = tops[state >> 24]
            state = (state ^ zlib_table()[byte]) << 8 & 0xFFFFFFFF | byte
        value = prefix + (state ^ zlib.crc32(prefix) ^ 0xFFFFFFFF).to_bytes(4, "little")
        yield value


@cache
def zlib_table() -> list[int]:
    """CRC-32's table of bytes."""
    table = []
    for byte in range(256):
        state = byte
        for _ in range(8):
            state = state >> 1 ^ (0xEDB88320 if state & 1 else 0)
        table.append(state)
    return table


def same_low_siphash(key: bytes) -> Maker:
    """Equal low bits under the pool's own hash function with another key, found by trying."""

    def values(_: int, rng: Random) -> Iterator[bytes]:
        hash_value = make_hasher(key)
        return (value for value in random_values(0, rng) if hash_value(value) & TRIED == 0)

    return values


FAMILIES: Final[dict[str, Maker]] = {
    "random values": random_values,
    "sequential names": sequential_names,
    "shared prefixes": shared_prefixes,
    "shared suffixes": shared_suffixes,
    "single-byte changes": single_byte_changes,
    "single-bit changes": single_bit_changes,
    "extended by NULs": extended_by_nuls,
    "NULs and permutations": only_nuls_and_permutations,
    "one Python int hash": same_python_hash,
    "equal low FNV-1a": same_low_fnv,
    "equal low CRC-32": same_low_crc,
    "equal low SipHash, zero key": same_low_siphash(bytes(16)),
    "equal low SipHash, another pool's key": same_low_siphash(KNOWN_KEY),
}


def family(name: str, count: int, rng: Random) -> list[bytes]:
    """`count` distinct values of a family."""
    values: dict[bytes, None] = {}
    for value in FAMILIES[name](count, rng):
        values[value] = None
        if len(values) == count:
            return list(values)
    raise ValueError(f"{name}: there are only {len(values)} values, not {count}")
