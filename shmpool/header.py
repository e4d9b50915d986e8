"""The header's constants: encoded once by a pool's creator, verified by everyone who attaches.

Nothing in a segment is believed before its magic, version, fingerprint and checksum are; what fails is refused, never mended.
"""

from dataclasses import astuple, dataclass
from hashlib import blake2b

import numpy as np

from shmpool.errors import PoolCorruptError, PoolVersionError
from shmpool.hashing import make_hasher
from shmpool.layout import (
    EPOCH_CHECKS_WORD,
    EPOCH_WORD,
    FINGERPRINT,
    HEADER,
    MAGIC,
    SEAL_EPOCH_SHIFT,
    VERSION,
    WORD_SIZE,
    Geometry,
)
from shmpool.policy import Policy

_CONSTANTS_SIZE = int(HEADER.fields["checksum"][1]) if HEADER.fields else 0


@dataclass(frozen=True, slots=True)
class Constants:
    """What a pool's creator chose. Sizes in bytes, counts in topics; `created_ns` is wall-clock time."""

    pool_id: int
    hash_key: bytes
    geometry: Geometry
    insert_budget: int
    reserve: int
    persistent: bool
    created_ns: int
    policy: Policy


def encode(constants: Constants) -> bytes:
    """The header page, magic included. The caller stores the first word (the magic) last."""
    geometry = constants.geometry
    page = np.zeros(1, HEADER)
    page["version"] = VERSION
    page["fingerprint"] = FINGERPRINT
    page["pool_id"] = constants.pool_id
    page["hash_key"] = np.frombuffer(constants.hash_key, "<u8")
    page["total_size"] = geometry.total_size
    page["capacity"] = geometry.capacity
    page["arena_size"] = geometry.arena_size
    page["stripe_count"] = geometry.stripe_count
    page["process_count"] = geometry.process_count
    page["max_value_size"] = geometry.max_value_size
    page["insert_budget"] = constants.insert_budget
    page["reserve"] = constants.reserve
    page["persistent"] = constants.persistent
    page["created_ns"] = constants.created_ns
    page["policy"] = constants.policy.kind
    page["max_unheld"] = constants.policy.max_unheld
    page["ttl_ns"] = constants.policy.ttl_ns
    page["checksum"] = _checksum(page.tobytes())
    page["magic"] = MAGIC
    return page.tobytes()


def decode(page: bytes, file_size: int, where: str) -> Constants:
    """The constants of a header page read from a file of `file_size` bytes; `where` names it in errors.

    Raises PoolVersionError for another version or layout of shmpool, PoolCorruptError for everything else that is wrong.
    """
    kept = "It was left as it is."
    if len(page) < HEADER.itemsize:
        raise PoolCorruptError(f"{where}: {len(page)} bytes are too few for a pool. {kept}")
    header = np.frombuffer(page, HEADER, 1)[0]
    if header["magic"] != MAGIC:
        raise PoolCorruptError(f"{where}: no pool (its first 8 bytes are {page[:WORD_SIZE].hex()}). {kept}")
    if header["version"] != VERSION:
        raise PoolVersionError(
            f"{where}: format version {header['version']}, and this shmpool reads version {VERSION}. {kept} "
            "Use one version of shmpool on a host, or remove the pool with the version that made it."
        )
    if header["fingerprint"] != FINGERPRINT:
        raise PoolVersionError(
            f"{where}: layout {int(header['fingerprint']):016x}, and this shmpool's is {FINGERPRINT:016x}. {kept} "
            "Use one build of shmpool on a host."
        )
    if header["checksum"] != _checksum(page):
        raise PoolCorruptError(f"{where}: the header's checksum does not match its constants. {kept}")
    try:
        constants = read_constants(page)
    except ValueError as error:
        raise PoolCorruptError(f"{where}: {error}. {kept}") from None
    if not constants.geometry.total_size == header["total_size"] == file_size:
        raise PoolCorruptError(
            f"{where}: {file_size} bytes long, {header['total_size']} by its header and {constants.geometry.total_size} by its "
            f"options. {kept}"
        )
    return constants


def read_constants(page: bytes) -> Constants:
    """What a header page says, believed as it stands: for who has verified it, or only wants to show it.

    Raises ValueError for constants that no pool can have.
    """
    header = np.frombuffer(page, HEADER, 1)[0]
    policy = Policy(kind=int(header["policy"]), max_unheld=int(header["max_unheld"]), ttl_ns=int(header["ttl_ns"]))
    return Constants(
        pool_id=int(header["pool_id"]),
        hash_key=header["hash_key"].tobytes(),
        geometry=Geometry(
            capacity=int(header["capacity"]),
            arena_size=int(header["arena_size"]),
            stripe_count=int(header["stripe_count"]),
            process_count=int(header["process_count"]),
            max_value_size=int(header["max_value_size"]),
            reuses=policy.counts_holds,
        ),
        insert_budget=int(header["insert_budget"]),
        reserve=int(header["reserve"]),
        persistent=bool(header["persistent"]),
        created_ns=int(header["created_ns"]),
        policy=policy,
    )


def epoch_check(constants: Constants, word: int) -> int:
    """The keyed check of an epoch word and the geometry and policy it was written beside: none is believed with another's."""
    numbers = np.array([word, *astuple(constants.geometry), *astuple(constants.policy)], "<u8")
    return make_hasher(constants.hash_key)(numbers.tobytes())


def verify_epoch(page: bytes, constants: Constants, where: str) -> None:
    """Raises PoolCorruptError unless the header page's epoch word was written beside this geometry and policy.

    For who is about to write to the segment: by a geometry that is not its own, a row of the process table lies over somebody's
    records, and one can be as well formed, checksum and all, as another pool's. By another policy topics go that should stay.
    """
    words = np.frombuffer(page, np.uint64)
    word = int(words[EPOCH_WORD])
    if words[EPOCH_CHECKS_WORD + (word >> SEAL_EPOCH_SHIFT & 1)] != epoch_check(constants, word):
        raise PoolCorruptError(
            f"{where}: the epoch word is damaged, or the geometry or policy that it was written beside is ({word:#018x}). It was "
            "left as it is."
        )


def _checksum(page: bytes) -> int:
    constants = page[WORD_SIZE:_CONSTANTS_SIZE]
    return int.from_bytes(blake2b(constants, digest_size=WORD_SIZE).digest(), "little")
