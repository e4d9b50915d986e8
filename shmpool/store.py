"""Store: one attached segment, from values to refs and back, with its locks, its private cache and its counters.

Guarantees:
- Two racing inserts of one value make one record: a miss is confirmed under the stripe's lock before anything is written.
- Capacity is passed by at most stripe_count - 1 topics, and only by inserts that were under way at the same instant.
- Closing waits for the threads that are inside an operation, and may be interrupted and done again until it is complete.

What a Pool checks of its arguments is not checked again here.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from math import isqrt
from multiprocessing import parent_process, util
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shmpool import lifetime
from shmpool.arena import read_record, read_value
from shmpool.attachment import Attachment
from shmpool.cache import Cache
from shmpool.errors import PoolClosedError, PoolCorruptError, PoolError, PoolFullError, StaleRefError
from shmpool.hashing import make_hasher
from shmpool.inspection import Finding, TopicCount, check_chunks, check_rows, count_topics, recover_and_check
from shmpool.layout import (
    FIRST_COUNTER,
    GROW_BYTE,
    RECORD_SIZE,
    STRIPE_BYTES,
    STRIPE_WORDS,
    TAKEOVERS_SHIFT,
    WAITS,
    WORD_SIZE,
    TopicRef,
)
from shmpool.lifetime import Seat
from shmpool.lock import ByteLock, StripeLock, close_semaphores, is_own_process, unlock_all
from shmpool.stripe import Item, Stripes

Refs = NDArray[np.uint64]

BATCH: Final = 256  # inserts under one hold of a lock, so that a batch makes nobody wait long
_UNSEEN: Final = -1  # no stripe's state: whoever searched did not look at it
FLUSH_EVERY: Final = 2048  # refs newly cached; a flush costs up to 0.3 ms with a full cache, so this is 0.15 us each


class Store:
    """What a process does with its seat. Threads may share it."""

    def __init__(self, seat: Seat, cache_size: int) -> None:
        segment = seat.segment
        self.seat = seat
        self.segment = segment
        self.constants = segment.constants
        self.name = segment.pool_name
        self.closed = ""  # or why it is
        self.cache = Cache(cache_size)
        self._flush_every = max(1, min(FLUSH_EVERY, cache_size))
        grow_lock = ByteLock(segment, GROW_BYTE, f"pool {self.name!r}, growth")
        rows_word = segment.constants.geometry.stripes_offset // WORD_SIZE
        self.locks = [
            StripeLock(
                segment, STRIPE_BYTES + stripe, f"pool {self.name!r}, stripe {stripe}", semaphore,
                partial(_count_wait, segment.words, rows_word + stripe * STRIPE_WORDS),
            )
            for stripe, semaphore in enumerate(seat.semaphores)
        ]
        self.stripes = self._make_stripes(grow_lock)
        engine = self.stripes.engine
        self._hash = engine.hash if engine else make_hasher(self.constants.hash_key)
        self._find: Callable[[bytes], int | None] = engine.find if engine else _ask_python
        self._stripe_count = self.constants.geometry.stripe_count
        self._insert_budget = self.constants.insert_budget
        # A stripe this far below its even share of what `admit` may fill (12 standard deviations: one chance in 10**31) proves
        # that the pool is not full, which spares adding up all stripes at every insert.
        share = (self.constants.geometry.capacity - self.constants.reserve) // self._stripe_count
        self._sparse_count = share - 12 * isqrt(share) - BATCH
        self._start_counting()
        for stripe in self.stripes.unfinished():
            self.locks[stripe].run(self.stripes.recover, stripe)
        self.attachment = Attachment(segment, seat.row, seat.gate)
        self.attachment.locks = (*self.locks, grow_lock)
        self.attachment.on_fork_in_child = self._after_fork
        _stores.add(self)

    def _make_stripes(self, grow_lock: ByteLock) -> Stripes:
        return Stripes(self.segment, grow_lock)

    def check_open(self) -> None:
        """Raises PoolClosedError unless this process is attached."""
        if self.closed or not is_own_process():
            why = self.closed or "was forked without Python's fork hooks, so it is not attached"
            raise PoolClosedError(f"pool {self.name!r} {why} in this process; other processes are not affected. Attach again.")

    # ---- values and refs

    # A ref is the origin plus an offset found since the origin was read; a reset by another thread in between shows in the
    # origin being another afterwards.

    def lookup(self, value: bytes) -> TopicRef:
        """The ref of a value, or 0. May miss one that is being inserted at this instant."""
        origin = self.stripes.origin
        offset = self._find(value)
        if offset is None:
            hash_ = self._hash(value)
            offset = self.stripes.find(hash_ * self._stripe_count >> 64, hash_, value)
        if origin != self.stripes.origin:
            return self.lookup(value)
        if offset >= 0:
            return self._remember(value, origin, offset)
        self.misses += 1
        return TopicRef(0)

    def intern(self, value: bytes, capacity: int) -> TopicRef:
        """The ref of a value, inserted if the pool holds fewer than `capacity` topics. Raises PoolFullError."""
        origin = self.stripes.origin
        offset = self._find(value)
        if offset is None or offset < 0:
            offset = self._find_or_insert(value, capacity)
        if origin != self.stripes.origin:
            return self.intern(value, capacity)
        return self._remember(value, origin, offset)

    def _find_or_insert(self, value: bytes, capacity: int) -> int:
        """The offset of a value that was missed, found or inserted under its stripe's lock."""
        if self.stripes.engine:
            stripe = self.stripes.engine.stripe(value)
            return self.locks[stripe].run(self._insert_one, stripe, value, capacity)
        hash_ = self._hash(value)
        stripe = hash_ * self._stripe_count >> 64
        seen = self.stripes.state(stripe)
        miss = self.stripes.find(stripe, hash_, value)
        if miss >= 0:
            return miss
        offsets, error = self._insert(stripe, seen, [(hash_, value, miss)], capacity)
        if error:
            raise error
        return offsets[0]

    def _insert_one(self, stripe: int, value: bytes, capacity: int) -> int:
        stripes = self.stripes
        # Nearly always both bounds are far away. Otherwise `find_or_insert` is told how far.
        if stripes.inserts < self._insert_budget and stripes.count(stripe) <= self._sparse_count:
            offset = stripes.insert(value)
            if offset is not None:
                return offset
        room = self._room(stripe, capacity)
        offsets, error = stripes.find_or_insert(stripe, _UNSEEN, [(self._hash(value), value, -1)], room)
        if not offsets:
            raise error or self._full(capacity)
        return offsets[0]

    def _remember(self, value: bytes, origin: int, offset: int) -> TopicRef:
        """Cache a ref and count this use of it."""
        ref: TopicRef = origin + offset  # type: ignore[assignment]  # calling a NewType is a call, 0.15 us of every miss
        with self._flushing:
            count = self.cache.add(value, ref)
            if count % self._flush_every == 0:
                if count < self.cache.size:
                    self.flush()
                else:
                    self.empty_cache()
            if origin != self.stripes.origin:
                self.empty_cache()  # a reset may have emptied it just before this stale ref came in
        return ref

    def _insert(
        self, stripe: int, seen: int, items: list[Item], capacity: int
    ) -> tuple[list[int], PoolFullError | None]:
        """Offsets of items that were missed, found or inserted under the lock; with an error where they are fewer than items."""
        offsets, error = self.locks[stripe].run(self._insert_under_lock, stripe, seen, items, capacity)
        if len(offsets) < len(items) and not error:
            error = self._full(capacity)
        return offsets, error

    def _insert_under_lock(
        self, stripe: int, seen: int, items: list[Item], capacity: int
    ) -> tuple[list[int], PoolFullError | None]:
        return self.stripes.find_or_insert(stripe, seen, items, self._room(stripe, capacity))

    def _room(self, stripe: int, capacity: int) -> int:
        """How many more may be inserted, by this process's budget and the pool's capacity."""
        room = self._insert_budget - self.stripes.inserts
        if self.stripes.count(stripe) > self._sparse_count:
            room = min(room, capacity - self.stripes.total())
        return room

    def _full(self, capacity: int) -> PoolFullError:
        if self.stripes.inserts >= self._insert_budget:
            return PoolFullError(
                f"pool {self.name!r}: this process has made all the {self._insert_budget} inserts of its budget. Nothing was "
                "changed. Find out why it makes so many names, or create the pool with a larger insert_budget."
            )
        return PoolFullError(
            f"pool {self.name!r}: holds {self.stripes.total()} topics, and may hold {capacity} of this kind (capacity "
            f"{self.constants.geometry.capacity}, reserve {self.constants.reserve}). Nothing was changed and every topic in it "
            "stays usable. Create the pool with a larger capacity."
        )

    def find_many(self, values: list[bytes], *, capacity: int | None) -> tuple[Refs, PoolFullError | None]:
        """The refs of n distinct values, shape (n,): 0 for those missing, or with a capacity, all, inserted where missing.

        Takes a stripe's lock once for up to BATCH inserts. With an error some that could not be inserted are 0 as well.
        """
        hash_value, stripe_count = self._hash, self._stripe_count
        places: list[list[int]] = [[] for _ in range(stripe_count)]
        groups: list[list[tuple[int, bytes]]] = [[] for _ in range(stripe_count)]
        for place, value in enumerate(values):
            hash_ = hash_value(value)
            stripe = hash_ * stripe_count >> 64
            places[stripe].append(place)
            groups[stripe].append((hash_, value))
        origin, error = self.stripes.origin, None
        refs = np.zeros(len(values), np.uint64)
        for stripe, items in enumerate(groups):
            seen = self.stripes.state(stripe)
            offsets = np.array(self.stripes.find_many(stripe, items), np.int64)
            missing = np.flatnonzero(offsets < 0).tolist()
            if missing and capacity is not None and not error:
                misses = [(*items[i], miss) for i, miss in zip(missing, offsets[missing].tolist(), strict=True)]
                inserted, error = self._insert_many(stripe, seen, misses, capacity)
                offsets[missing[: len(inserted)]] = inserted
            refs[places[stripe]] = np.where(offsets < 0, 0, offsets + origin)
        if origin != self.stripes.origin:
            return self.find_many(values, capacity=capacity)
        return refs, error

    def _insert_many(
        self, stripe: int, seen: int, items: list[Item], capacity: int
    ) -> tuple[list[int], PoolFullError | None]:
        offsets: list[int] = []
        error: PoolFullError | None = None
        while len(offsets) < len(items) and not error:
            # Far from capacity many at a time, so few that even if every stripe's holder does so they do not pass it.
            far = self.stripes.total() + self._stripe_count * BATCH < capacity
            start = len(offsets)
            part, error = self._insert(stripe, seen, items[start : start + (BATCH if far else 1)], capacity)
            offsets += part
        return offsets, error

    def resolve(self, ref: int) -> bytes:
        """The value of a ref. Raises StaleRefError for what is no ref of this pool, PoolCorruptError for a damaged value.

        What a ref names must look like a record, lie in committed memory, be pointed at by a slot on its probe path (which
        bytes inside a value that imitate a record are not), and have the hash that its header says.
        """
        offset = ref - self.stripes.origin
        if not 0 <= offset <= self.stripes.limit() - RECORD_SIZE or offset % 8:
            raise self._stale(ref)
        record = read_record(self.segment, offset)
        chunk_size = self.constants.geometry.chunk_size
        if not record.live or record.generation or offset % chunk_size + record.end - offset > chunk_size:
            raise self._stale(ref)
        value = read_value(self.segment, record)
        if not self.stripes.points_at(record):
            raise self._stale(ref)
        if self._hash(value) != record.hash:
            raise self._damaged(ref)
        return value

    def _damaged(self, ref: int) -> PoolCorruptError:
        return PoolCorruptError(
            f"pool {self.name!r}: the value of ref {ref} is damaged (its hash does not match). Nothing was changed. Run "
            "Pool.check(), and make the pool anew."
        )

    def _stale(self, ref: int) -> StaleRefError:
        return StaleRefError(
            f"pool {self.name!r}: {ref} is no ref of this pool: it is from another pool or from before a reset. Nothing was "
            "changed; intern the value again."
        )

    def items(self) -> Iterator[tuple[TopicRef, bytes]]:
        """Every ref and value, in order of arena offset; of those inserted meanwhile some, none or all."""
        origin = self.stripes.origin
        for record in self.stripes.records():
            value = read_value(self.segment, record)
            if self._hash(value) != record.hash:
                raise self._damaged(origin + record.offset)
            if self.stripes.points_at(record):  # else whole, but where no insert put it
                yield TopicRef(origin + record.offset), value

    # ---- counting

    def _start_counting(self) -> None:
        """Count from zero: at the start, and in a forked child."""
        self._flushing = threading.RLock()
        self._is_flushing = False
        self._closing = threading.RLock()
        self.uses = self.misses = self.uses_dropped = 0
        self.stripes.inserts = self.stripes.rollbacks = self.stripes.rollforwards = 0
        for lock in self.locks:
            lock.waits = lock.takeovers = 0

    def flush(self) -> None:
        """Publish this process's counters. A flush inside a flush (a signal handler's) does nothing.

        An exception that a signal handler raises inside it may have the uses of this flush counted twice.
        """
        self.check_open()
        with self._flushing:
            if self._is_flushing:
                return
            self._is_flushing = True
            try:
                refs, uses, lefts = self.cache.pending()
                with suppress(PoolFullError):  # they stay in their cells until there is memory for the ledger
                    self._count_uses(refs, uses)
                    self.cache.settle(lefts)
                self._publish_counters()
            finally:
                self._is_flushing = False

    def count_batch(self, refs: Refs, *, is_lookup: bool) -> None:
        """Count uses that went past the cache: `refs`, shape (n,), 0 for a miss."""
        hits = refs[refs != 0]
        with self._flushing:
            if is_lookup:
                self.misses += len(refs) - len(hits)
            try:
                self._count_uses(hits, np.ones(len(hits), np.uint64))
            except PoolFullError:
                self.uses_dropped += len(hits)
            self.flush()

    def _count_uses(self, refs: Refs, uses: NDArray[np.uint64]) -> None:
        offsets = refs - np.uint64(self.stripes.origin)
        known = offsets < self.stripes.limit()  # refs from before a reset have no column any more
        self.attachment.count_uses(self.stripes.columns(offsets[known]), uses[known])
        self.uses += int(uses.sum())

    def _publish_counters(self) -> None:
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
            *self._turnover(),
        )
        start = self.attachment.row_word + FIRST_COUNTER
        for counter, count in enumerate(counts):
            self.segment.words[start + counter] = count

    def _turnover(self) -> tuple[int, int, int]:
        """Frees, evictions and reaped holds by this process."""
        return 0, 0, 0

    def _forget(self) -> None:
        """Drop what is remembered of the pool: it belongs to a parent process, or to before a reset."""
        self.cache.clear()

    def empty_cache(self) -> None:
        """Forget every ref; the uses are counted first, those that other threads make meanwhile included."""
        with self._flushing:
            self.cache.close_cells()
            if self._is_flushing:
                return  # in a signal handler, inside a flush that goes on with the cells: the next emptying drops them
            self.flush()
            dropped = self.cache.clear()
            if dropped:
                self.uses_dropped += dropped
                self._publish_counters()

    # ---- the whole pool

    def top(self, k: int, by: str) -> list[TopicCount]:
        """The k topics most used by all processes, as of each one's last flush, or most held."""
        return count_topics(self.stripes, k, by, self._hash)

    def check(self) -> list[Finding]:
        """Everything that contradicts something else; empty means sound. Locks one stripe at a time."""
        findings = [
            finding
            for stripe, lock in enumerate(self.locks)
            for finding in lock.run(recover_and_check, self.stripes, stripe, self._hash)
        ]
        return findings + check_chunks(self.stripes) + check_rows(self.segment)

    def reset(self) -> None:
        """Drop every topic. Raises PoolBusyError while anyone else is attached."""
        self.check_open()
        with self._flushing:
            if self._is_flushing:  # this is a signal handler inside a flush, whose refs it would make stale
                self.seat.gate.refuse_reentry()
        self.empty_cache()
        self.seat.gate.run(self._lock_all_and_reset, 0)

    def _lock_all_and_reset(self, stripe: int) -> None:
        if stripe < len(self.locks):
            self.locks[stripe].run(self._lock_all_and_reset, stripe + 1)
            return
        with self._flushing:
            epoch, uses = self.stripes.epoch, self.attachment.uses_total()
            try:
                lifetime.reset(self.attachment)
            finally:
                # Even if that was interrupted: the segment tells what holds now.
                self.stripes.refresh()
                if self.stripes.epoch != epoch:  # else it was refused, and the ledgers go on
                    self._start_over(uses)
                self._forget()
                for unfinished in self.stripes.unfinished():
                    self.stripes.recover(unfinished)

    def _start_over(self, uses: int) -> None:
        """After a reset: the ledgers are empty, and had so many uses."""

    # ---- the end

    def close(self) -> None:
        """Flush and detach; the pool goes with its last process, unless persistent. Again is harmless.

        Raises PoolBusyError from a signal handler or finalizer inside an operation on this very pool.
        """
        inside = self._closing._is_owned() or self._flushing._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001
        if inside or any(lock.is_mine() for lock in (self.seat.gate, *self.locks)):
            self.seat.gate.refuse_reentry()
        with self._closing:
            if self.segment.fd >= 0:
                if not self.closed:
                    self.empty_cache()
                    self.closed = "is being closed"
                self._give_back_all()
                self.seat.gate.run(self._leave, 0)
            self.segment.close()  # what an interrupted close has left of it
            self.closed = "was closed"
            self.attachment.retire()
            _stores.discard(self)

    def _give_back_all(self) -> None:
        """Where holds are counted: the end of those that are left."""

    def _leave(self, stripe: int) -> None:
        if stripe < len(self.locks):
            self.locks[stripe].shut_out(self._leave, stripe + 1)
            return
        lifetime.leave(self.attachment)
        close_semaphores(self.seat.semaphores)
        # Closing would unlock the row and the gate too, but not if a child that C code forked past the hooks shares the
        # description: then nobody could pass the gate as long as it lives. Closed first, lest an interrupt leaves again what
        # may be another's row by then.
        fd, self.segment.fd = self.segment.fd, -1
        try:
            unlock_all(fd)
        finally:
            self.segment.close()

    def close_quietly(self) -> None:
        """Close without raising; where that is not possible now, let the row go as a killed process does."""
        try:
            self.close()
        except (PoolError, OSError, ValueError):
            self.closed = self.closed or "could not be closed in order; its row is free all the same"
            self.attachment.retire()
            self.segment.close()

    def _after_fork(self) -> None:
        """In a forked child: nothing counted or remembered yet, and no row at all if none could be had."""
        self._forget()
        self._start_counting()
        if not self.attachment.is_seated:
            self.closed = "was forked inside one of its own operations, or found no free row, and is closed"
            _stores.discard(self)
            self.segment.close()


def _count_wait(words: memoryview, row_word: int, takeovers: int) -> None:
    """Count a wait for a stripe's lock in its row, for who has it now. A damaged count must not keep anyone out: it wraps."""
    words[row_word + WAITS] = words[row_word + WAITS] + (takeovers << TAKEOVERS_SHIFT | 1) & (1 << 64) - 1


def _ask_python(_: bytes) -> None:
    """The search of an engine that is not there."""


_stores: "weakref.WeakSet[Store]" = weakref.WeakSet()


def _close_all() -> None:
    for store in list(_stores):
        store.close_quietly()


def _close_all_at_end_of_child(_: Any = None) -> None:
    """multiprocessing's children end without atexit handlers (before 3.13), but run these."""
    util.Finalize(None, _close_all, exitpriority=0)


util.register_after_fork(_close_all_at_end_of_child, _close_all_at_end_of_child)
if parent_process() is not None:
    _close_all_at_end_of_child()  # imported in such a child, which was forked without us
