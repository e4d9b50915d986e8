"""Store: one attached segment, from values to refs and back, under its locks; no private cache and no checks of arguments.

Guarantees:
- Two racing inserts of one value make one record: a miss is confirmed under the stripe's lock before anything is written.
- Capacity is passed by at most stripe_count - 1 topics, and only by inserts that were under way at the same instant.
"""

from collections.abc import Callable, Iterator, Sequence
from math import isqrt
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from shmpool import lifetime
from shmpool.arena import read_record, read_value, record_size
from shmpool.attachment import Attachment
from shmpool.errors import PoolCorruptError, PoolFullError, StaleRefError
from shmpool.hashing import make_hasher
from shmpool.inspection import Finding, check_chunks, check_stripe
from shmpool.layout import EPOCH_WORD, FIRST_COUNTER, GROW_BYTE, LOW_40, MISSES, STRIPE_BYTES, TopicRef
from shmpool.lifetime import Seat
from shmpool.lock import ByteLock, StripeLock, close_semaphores
from shmpool.stripe import Item, Stripes

Refs = NDArray[np.uint64]

BATCH: Final = 256  # inserts under one hold of a lock, so that a batch makes nobody wait long


class Store:
    """What a process does with its seat. Threads may share it; `on_fork_in_child` runs in a forked child."""

    def __init__(self, seat: Seat, on_fork_in_child: Callable[[], None]) -> None:
        segment = seat.segment
        self.seat = seat
        self.segment = segment
        self.constants = segment.constants
        self.name = segment.pool_name
        grow_lock = ByteLock(segment, GROW_BYTE, f"pool {self.name!r}, growth")
        self.locks = [
            StripeLock(segment, STRIPE_BYTES + stripe, f"pool {self.name!r}, stripe {stripe}", semaphore)
            for stripe, semaphore in enumerate(seat.semaphores)
        ]
        self.stripes = Stripes(segment, grow_lock)
        self.attachment = Attachment(segment, seat.row, seat.gate)
        self.attachment.locks = (*self.locks, grow_lock)
        self.attachment.on_fork_in_child = on_fork_in_child
        self._hash = make_hasher(self.constants.hash_key)
        self._stripe_count = self.constants.geometry.stripe_count
        self._insert_budget = self.constants.insert_budget
        # A stripe this far below its even share of what `admit` may fill (12 standard deviations: one chance in 10**31) proves
        # that the pool is not full, which spares adding up all stripes at every insert.
        share = (self.constants.geometry.capacity - self.constants.reserve) // self._stripe_count
        self._sparse_count = share - 12 * isqrt(share) - BATCH
        self.start_counting()
        self._read_origin()
        for stripe in self.stripes.unfinished():
            self.locks[stripe].run(self.stripes.recover, stripe)

    def _read_origin(self) -> None:
        self.origin = int(self.segment.words[EPOCH_WORD] & LOW_40)

    # ---- values and refs

    def lookup(self, value: bytes) -> TopicRef:
        """The ref of a value, or 0. May miss one that is being inserted at this instant; counts the miss, not the use."""
        hash_ = self._hash(value)
        offset = self.stripes.find(hash_ * self._stripe_count >> 64, hash_, value)
        if offset >= 0:
            return TopicRef(self.origin + offset)
        self.misses += 1
        self.segment.words[self.attachment.row_word + MISSES] = self.misses + self.stripes.inserts
        return TopicRef(0)

    def intern(self, value: bytes, capacity: int) -> TopicRef:
        """The ref of a value, inserted if the pool holds fewer than `capacity` topics. Raises PoolFullError."""
        hash_ = self._hash(value)
        stripe = hash_ * self._stripe_count >> 64
        seen = self.stripes.state(stripe)
        offset = self.stripes.find(stripe, hash_, value)
        if offset < 0:
            offset = self._insert(stripe, seen, ((hash_, value, offset),), capacity)[0]
        return TopicRef(self.origin + offset)

    def _insert(self, stripe: int, seen: int, items: Sequence[Item], capacity: int) -> list[int]:
        offsets = self.locks[stripe].run(self._find_or_insert, stripe, seen, items, capacity)
        if len(offsets) < len(items):
            self._refuse_insert(capacity)
        return offsets

    def _find_or_insert(self, stripe: int, seen: int, items: Sequence[Item], capacity: int) -> list[int]:
        room = self._insert_budget - self.stripes.inserts
        if self.stripes.count(stripe) > self._sparse_count:
            room = min(room, capacity - self.stripes.total())
        return self.stripes.find_or_insert(stripe, seen, items, room)

    def _refuse_insert(self, capacity: int) -> NoReturn:
        if self.stripes.inserts >= self._insert_budget:
            raise PoolFullError(
                f"pool {self.name!r}: this process has made all the {self._insert_budget} inserts of its budget. Nothing was "
                "changed. Find out why it makes so many names, or create the pool with a larger insert_budget."
            )
        raise PoolFullError(
            f"pool {self.name!r}: holds {self.stripes.total()} topics, and may hold {capacity} of this kind (capacity "
            f"{self.constants.geometry.capacity}, reserve {self.constants.reserve}). Nothing was changed and every topic in it "
            "stays usable. Create the pool with a larger capacity."
        )

    def find_many(self, values: list[bytes], *, capacity: int | None) -> Refs:
        """The refs of n distinct values, shape (n,): 0 for those missing, or with a capacity, all, inserted where missing.

        Takes a stripe's lock once for up to BATCH inserts. Raises PoolFullError; what was inserted before stays.
        """
        hash_value, stripe_count = self._hash, self._stripe_count
        places: list[list[int]] = [[] for _ in range(stripe_count)]
        groups: list[list[tuple[int, bytes]]] = [[] for _ in range(stripe_count)]
        for place, value in enumerate(values):
            hash_ = hash_value(value)
            stripe = hash_ * stripe_count >> 64
            places[stripe].append(place)
            groups[stripe].append((hash_, value))
        refs = np.zeros(len(values), np.uint64)
        for stripe, items in enumerate(groups):
            seen = self.stripes.state(stripe)
            offsets = np.array(self.stripes.find_many(stripe, items), np.int64)
            missing = np.flatnonzero(offsets < 0).tolist()
            if missing and capacity is not None:
                misses = offsets[missing].tolist()
                offsets[missing] = self._insert_many(
                    stripe, seen, [(*items[i], miss) for i, miss in zip(missing, misses, strict=True)], capacity
                )
            refs[places[stripe]] = np.where(offsets < 0, 0, offsets + self.origin)
        return refs

    def _insert_many(self, stripe: int, seen: int, items: list[Item], capacity: int) -> list[int]:
        offsets: list[int] = []
        while len(offsets) < len(items):
            # Far from capacity many at a time, so few that even if every stripe's holder does so they do not pass it.
            far = self.stripes.total() + self._stripe_count * BATCH < capacity
            start = len(offsets)
            offsets += self._insert(stripe, seen, items[start : start + (BATCH if far else 1)], capacity)
        return offsets

    def resolve(self, ref: int) -> bytes:
        """The value of a ref. Raises StaleRefError for what is no ref of this pool, PoolCorruptError for a damaged value.

        What a ref names must look like a record, lie in committed memory, be pointed at by a slot on its probe path (which
        bytes inside a value that imitate a record are not), and have the hash that its header says.
        """
        offset = ref - self.origin
        if not 0 <= offset < self.stripes.limit() or offset % 8:
            raise self._stale(ref)
        record = read_record(self.segment, offset)
        chunk_size = self.constants.geometry.chunk_size
        if not record.live or record.generation or offset % chunk_size + record_size(record.size) > chunk_size:
            raise self._stale(ref)
        value = read_value(self.segment, record)
        if not self.stripes.points_at(record):
            raise self._stale(ref)
        if self._hash(value) != record.hash:
            raise PoolCorruptError(
                f"pool {self.name!r}: the value of ref {ref} is damaged (its hash does not match). Nothing was changed. Run "
                "Pool.check(), and make the pool anew."
            )
        return value

    def _stale(self, ref: int) -> StaleRefError:
        return StaleRefError(
            f"pool {self.name!r}: {ref} is no ref of this pool: it is from another pool or from before a reset. Nothing was "
            "changed; intern the value again."
        )

    def items(self) -> Iterator[tuple[TopicRef, bytes]]:
        """Every ref and value, in order of arena offset; of those inserted meanwhile some, none or all."""
        for record in self.stripes.records():
            yield TopicRef(self.origin + record.offset), read_value(self.segment, record)

    # ---- counting

    def start_counting(self) -> None:
        """Count from zero: at the start, and in a forked child."""
        self.uses = self.misses = self.uses_dropped = 0
        self.stripes.inserts = self.stripes.rollbacks = self.stripes.rollforwards = 0
        for lock in self.locks:
            lock.waits = lock.takeovers = 0

    def count_uses(self, refs: Refs, uses: NDArray[np.uint64]) -> None:
        """Add `uses[i]` of `refs[i]` to this process's ledger, shapes (n,). Raises PoolFullError, with nothing counted."""
        self.attachment.count_uses(self.stripes.columns(refs - np.uint64(self.origin)), uses)
        self.uses += int(uses.sum())

    def publish_counters(self) -> None:
        """Store this process's counters in its row. Every use that was no insert was a hit, every insert a miss."""
        stripes = self.stripes
        counts = (
            max(self.uses + self.uses_dropped - stripes.inserts, 0),
            self.misses + stripes.inserts,
            stripes.inserts,
            sum(lock.waits for lock in self.locks),
            sum(lock.takeovers for lock in self.locks),
            stripes.rollbacks,
            stripes.rollforwards,
            self.uses_dropped,
        )
        start = self.attachment.row_word + FIRST_COUNTER
        for counter, count in enumerate(counts):
            self.segment.words[start + counter] = count

    # ---- the whole pool

    def check(self) -> list[Finding]:
        """Everything that contradicts something else; empty means sound. Locks one stripe at a time."""
        findings = [
            finding for stripe, lock in enumerate(self.locks) for finding in lock.run(self._recover_and_check, stripe)
        ]
        return findings + check_chunks(self.stripes)

    def _recover_and_check(self, stripe: int) -> list[Finding]:
        try:
            self.stripes.recover(stripe)
        except PoolCorruptError as error:
            return [Finding(str(error), f"stripe {stripe}", "Make the pool anew.")]
        return check_stripe(self.stripes, stripe, self._hash)

    def reset(self) -> None:
        """Drop every topic. Raises PoolBusyError while anyone else is attached."""
        self.seat.gate.run(self._lock_all_and_reset, 0)

    def _lock_all_and_reset(self, stripe: int) -> None:
        if stripe < len(self.locks):
            self.locks[stripe].run(self._lock_all_and_reset, stripe + 1)
            return
        try:
            lifetime.reset(self.attachment)
        finally:
            # Even if that was interrupted: the segment tells what holds now.
            self.stripes.refresh()
            self._read_origin()
            for unfinished in self.stripes.unfinished():
                self.stripes.recover(unfinished)

    def leave(self) -> None:
        """Detach in order; the pool goes with its last process, unless persistent. `release` must follow."""
        self.seat.gate.run(lifetime.leave, self.attachment)

    def release(self) -> None:
        """Let go of the mapping, the descriptors and with them the row. Again is harmless."""
        semaphores, self.seat.semaphores[:] = list(self.seat.semaphores), ()
        close_semaphores(semaphores)
        self.segment.close()
