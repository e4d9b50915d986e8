"""The keyed hash of a value: SipHash-1-3 under the pool's random key.

Values come from strangers, who must not be able to choose names that collide; CPython and Rust use this hash for the same
reason. Python's own `hash()` is keyed per process and so differs between the processes of one pool.
"""

from collections.abc import Callable

from siphash24 import siphash13

_UNSIGNED = (1 << 64) - 1


def make_hasher(key: bytes) -> Callable[[bytes], int]:
    """A function from a value to its hash in [0, 2**64) under a 16-byte key.

    Raises ValueError for a key of another size.
    """
    if len(key) != 16:
        raise ValueError(f"the hash key is 16 bytes, not {len(key)}")

    def hash_value(value: bytes) -> int:
        # intdigest() is signed, and 1.4 times faster than int.from_bytes(digest()).
        hash_: int = siphash13(value, key=key).intdigest() & _UNSIGNED
        return hash_

    return hash_value
