"""Claims about the hash: keyed, the same in every process, spread over all 64 bits."""

from __future__ import annotations

import pytest

from shmpool.hashing import make_hasher
from tests.unit.processes import independent

KEY = bytes(range(16))


def test_hash_depends_on_the_key_and_the_value_alone() -> None:
    code = "from shmpool.hashing import make_hasher; print(make_hasher(bytes(range(16)))(b'topic'))"

    assert int(independent(code).stdout) == make_hasher(KEY)(b"topic")
    assert make_hasher(KEY)(b"topic") != make_hasher(KEY[::-1])(b"topic")
    assert make_hasher(KEY)(b"") != make_hasher(KEY)(b"\0")


def test_hashes_are_unsigned_and_use_every_bit() -> None:
    hashes = [make_hasher(KEY)(b"%d" % number) for number in range(1000)]

    assert all(0 <= hash_ < 1 << 64 for hash_ in hashes)
    assert all(400 < sum(hash_ >> bit & 1 for hash_ in hashes) < 600 for bit in range(64))


@pytest.mark.parametrize("size", [0, 15, 17])
def test_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        make_hasher(bytes(size))
