"""Holding: a store whose policy lets topics go, so that a process holds the topics it uses.

Guarantees:
- A topic that some process holds stays, whoever dies. Holds are counted in the row of the process that has them, which nobody
  else writes while it lives; a topic's count is the sum. There is no shared counter that could leak.
- A process that is killed or closes loses exactly its own holds. Those of a killed one are given back by whoever takes its row,
  needs room, or calls `reap`.
- A ref of a topic that went is stale for ever: it carries the generation of its record's space.

A hold that is not the process's first of a topic, nor its last, is a plain store into its own row (held.py): nobody frees a topic
that has one.
"""

import platform
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import call
from typing import Final, TypeVar, TypeVarTuple

import numpy as np

from shmpool.arena import Record, read_record, read_value, space_size
from shmpool.attachment import is_live
from shmpool.errors import NotHeldError, PoolBusyError, PoolError, PoolFullError, StaleRefError
from shmpool.held import Held
from shmpool.layout import (
    GENERATION_SHIFT,
    HOLDS,
    LOW_40,
    PID,
    PROCESS_BYTES,
    RECORD_SIZE,
    USES_MASK,
    USES_TAG_SHIFT,
    TopicRef,
)
from shmpool.ledger import holding_rows, holds_of, ledger_word, read_holds, row_word
from shmpool.lifetime import Seat
from shmpool.lock import ByteLock, run_if_free
from shmpool.reuse import Clock, Ledgers, Place, ReusingStripes
from shmpool.store import BATCH, Refs, Store

Ts = TypeVarTuple("Ts")
T = TypeVar("T")

# A CPU that reorders loads or stores may show a record's second word before its bytes, and `find_live` believes it: there reads
# are done under the stripe's lock, whose system calls order everything.
READS_LOCK: Final = platform.machine() not in ("x86_64", "AMD64", "i386", "i686")
_SWEEP_SHARE: Final = 8  # topics that are too old are looked for this often in the time after which they are
_SWEEP_NS: Final = 10_000_000  # and at most this often: it costs about 50 us a stripe


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a topic how often. A row that is not live is a killed process's."""

    row: int
    pid: int
    live: bool
    count: int


class HoldingStore(Store):
    """What a process does with its seat in a pool that counts holds. Threads may share it."""

    stripes: ReusingStripes

    def __init__(self, seat: Seat, cache_size: int, clock: Clock) -> None:
        self._clock = clock
        self.held = Held(seat.segment.words, cache_size)
        super().__init__(seat, cache_size)
        # At once: a process that only looks topics up would keep a killed one's from going for as long as it lives, and their
        # holds would seem its own. Where the pool is damaged, the first operation that needs it tells.
        with suppress(PoolError):
            self._clean_row()

    def _make_stripes(self, grow_lock: ByteLock) -> ReusingStripes:
        return ReusingStripes(self.segment, grow_lock, self._clock)

    def _start_counting(self) -> None:
        super()._start_counting()
        self.stripes.frees = self.stripes.evictions = self.reaped = 0
        self._uses_gone = 0  # that this process counted of topics that went
        self._unreleased: deque[TopicRef] = deque()  # given back where the lock could not be waited for
        self._oldest: deque[tuple[int, int, int]] = deque()  # stamp, stripe, arena offset of who was unheld longest at a look
        self._next_sweep = 0
        self._reaping = threading.RLock()
        self._are_mine = [lock.is_mine for lock in self.locks]
        self._row_is_clean = False
        self._reaped_own = 0  # that nobody was told of

    # ---- values and refs

    def intern(self, value: bytes, capacity: int) -> TopicRef:
        """The ref of a value, held once more by this process. Raises PoolFullError, PoolBusyError."""
        if self._is_inside():
            self.seat.gate.refuse_reentry()
        self._catch_up()
        engine = self.stripes.engine
        stripe = engine.stripe(value) if engine else self._hash(value) * self._stripe_count >> 64
        taken: list[int] = []
        try:
            while True:
                try:
                    return self.locks[stripe].run(self._hold, stripe, value, capacity, taken)
                except PoolFullError:
                    if not self._make_room(stripe, value, capacity):
                        raise
        except BaseException:
            # A signal handler's, on the way out: nobody got the ref, so nobody would ever give the hold back.
            for handle in taken:
                with suppress(PoolError, ValueError):  # went with a reset, or the pool was closed, by another thread
                    self._release(TopicRef(self.stripes.origin + handle))
            raise

    def _hold(self, stripe: int, value: bytes, capacity: int, taken: list[int]) -> TopicRef:
        """Hold a value, or insert it held; its handle comes into `taken` with the hold, before any signal handler can run."""
        if self.closed:
            self.check_open()
        stripes = self.stripes
        may_insert = self._room(stripe, capacity) > 0
        held = stripes.hold_plainly(value, Ledgers(*self.attachment.ledgers), taken, may_insert=may_insert)
        handle, place = held or self._hold_or_insert(stripe, self._hash(value), value, capacity, taken)
        ref: TopicRef = stripes.origin + handle  # type: ignore[assignment]
        self._count_use(place.uses, handle >> GENERATION_SHIFT)
        self.held.add((ref, place.holds, place.uses, value))
        return ref

    def _hold_or_insert(self, stripe: int, hash_: int, value: bytes, capacity: int, taken: list[int]) -> tuple[int, Place]:
        self.stripes.recover(stripe)
        held = self.stripes.hold(stripe, hash_, value, self._place_of, taken)
        if held:
            return held
        if self._room(stripe, capacity) <= 0:
            raise self._full(capacity)
        return self.stripes.insert_held(stripe, hash_, value, self._place_of, taken)

    def _place_of(self, column: int) -> Place:
        return Place(*self.attachment.commit_column(column))

    def _count_use(self, word: int, generation: int) -> None:
        words = self.segment.words
        uses = words[word]
        if uses >> USES_TAG_SHIFT == generation and uses & USES_MASK < USES_MASK:  # beyond that begins the generation
            words[word] = uses + 1
        else:
            words[word] = generation << USES_TAG_SHIFT | 1
            self._uses_gone += uses & USES_MASK

    def lookup(self, value: bytes) -> TopicRef:
        """The ref of a value, or 0; it is not held. May miss one that is being inserted at this instant."""
        if not self._row_is_clean:  # once in a forked child
            with suppress(PoolBusyError):
                self._clean_row()
        hash_ = self._hash(value)
        stripe = hash_ * self._stripe_count >> 64
        while True:
            origin = self.stripes.origin
            handle = self._read(stripe, self.stripes.find, stripe, hash_, value)
            if origin == self.stripes.origin:
                break
        if handle < 0:
            self.misses += 1
            return TopicRef(0)
        record = read_record(self.segment, handle & LOW_40)
        try:
            if record.live and record.generation == handle >> GENERATION_SHIFT:
                self._count_use(self.attachment.commit_use(self.stripes.column(record)), record.generation)
            else:
                self.uses_dropped += 1  # it went just now
        except PoolFullError:
            self.uses_dropped += 1
        return TopicRef(origin + handle)

    def _read(self, stripe: int, body: "Callable[[*Ts], T]", *args: *Ts) -> T:
        if not READS_LOCK:
            return body(*args)
        if self._is_inside():
            self.seat.gate.refuse_reentry()
        return self.locks[stripe].run(body, *args)

    def resolve(self, ref: int) -> bytes:
        """The value of a ref, held or not. Raises StaleRefError, PoolCorruptError for a damaged value."""
        record = self._record_of(ref)
        return self._read(self.constants.geometry.stripe_of(record.hash), self._resolve, ref, record)

    def _resolve(self, ref: int, record: Record) -> bytes:
        value = read_value(self.segment, record)
        is_pointed_at = self.stripes.points_at(record)
        if not is_pointed_at or self.stripes.is_expired(record.offset) or not self.stripes.is_still(record):
            raise self._stale(ref)
        if self._hash(value) != record.hash:
            raise self._damaged(ref)
        return value

    def _record_of(self, ref: int) -> Record:
        """The record that a ref names, as it stands. Raises StaleRefError unless it is live and of the ref's generation."""
        handle = ref - self.stripes.origin
        offset = handle & LOW_40
        if handle < 0 or offset > self.stripes.limit() - RECORD_SIZE or offset % 8:
            raise self._stale(ref)
        record = read_record(self.segment, offset)
        chunk_size = self.constants.geometry.chunk_size
        if (
            not record.live
            or record.generation != handle >> GENERATION_SHIFT
            or record.ordinal >= self.constants.geometry.stripe_capacity
            or offset % chunk_size + record.end - offset > chunk_size
        ):
            raise self._stale(ref)
        return record

    def _stale(self, ref: int) -> StaleRefError:
        return StaleRefError(
            f"pool {self.name!r}: {ref} names no topic any more: nobody held it and it went, or it is of another pool or from "
            "before a reset. Nothing was changed; intern the value again, and hold it as long as its ref is used."
        )

    def items(self) -> Iterator[tuple[TopicRef, bytes]]:
        for record in self.stripes.records():
            ref = self.stripes.ref_of(record)
            try:
                value = self._read(self.constants.geometry.stripe_of(record.hash), self._resolve, ref, record)
            except StaleRefError:
                continue  # it went meanwhile
            yield ref, value

    # ---- giving back

    def release(self, ref: TopicRef) -> None:
        """Give one hold of this process back. Raises NotHeldError, StaleRefError; nothing was changed then."""
        if self._is_inside():
            if self.count_of(ref) <= self._unreleased.count(ref):
                raise self._not_held(ref)
            self._unreleased.append(ref)  # for the next operation
            return
        self._catch_up()
        self._release(ref)
        self._trim()

    def _is_inside(self) -> bool:
        """Whether this is a signal handler or finalizer inside an operation of its own thread, which may have any stripe's lock.

        It must not wait for another: two processes whose finalizers give back what is in each other's stripe would wait for ever.
        """
        return self._reaping._is_owned() or any(map(call, self._are_mine))  # type: ignore[attr-defined]  # noqa: SLF001

    def _release(self, ref: TopicRef) -> None:
        record = self._record_of(ref)
        stripe = self.constants.geometry.stripe_of(record.hash)
        self.locks[stripe].run(self._give_back, stripe, ref)

    def _give_back(self, stripe: int, ref: TopicRef) -> None:
        entry = self.held.drop(ref, read_value(self.segment, self._record_of(ref)))
        if entry and self.stripes.drop_plainly(stripe, ref - self.stripes.origin, entry[1]):
            return
        self.stripes.recover(stripe)
        record = self._record_of(ref)
        column = self.stripes.column(record)
        if not entry and not self.stripes.points_at(record):
            raise self._stale(ref)  # bytes inside a value that imitate a record, and may name the column of what is held
        if not entry and not self.attachment.holds_at(column):
            raise self._not_held(ref)
        if not self.stripes.give_back(stripe, ref - self.stripes.origin, self._place_of(column)):
            raise self._not_held(ref)

    def _not_held(self, ref: int) -> NotHeldError:
        return NotHeldError(
            f"pool {self.name!r}: this process does not hold {ref} (any more): there is nothing to give back. Nothing was "
            "changed. Release each ref as often as it was interned, by the process that interned it; forked children hold none."
        )

    def count_of(self, ref: int) -> int:
        """How often this process holds a ref. Raises StaleRefError."""
        return self.attachment.holds_at(self.stripes.column(self._record_of(ref)))

    def holders(self, ref: int) -> tuple[Holder, ...]:
        """Who holds a ref, and how often. Raises StaleRefError."""
        words, own_row = self.segment.words, self.attachment.row
        record = self._record_of(ref)
        if not self.stripes.points_at(record):
            raise self._stale(ref)
        return tuple(
            Holder(row, words[row_word(self.segment, row) + PID], is_live(self.segment, row, own_row), count)
            for row, count in holds_of(self.segment, self.stripes.column(record), self.stripes.epoch)
        )

    def _catch_up(self) -> None:
        """What is due before the next operation, nearly always nothing."""
        if not self._row_is_clean:
            self._clean_row()
        for _ in range(len(self._unreleased)):
            with suppress(IndexError, NotHeldError, StaleRefError):  # another thread's by now; of a reset since
                self._release(self._unreleased.popleft())
        if self.constants.policy.ttl_ns:
            self._sweep()

    # ---- killed processes

    def _clean_row(self) -> None:
        """Give back what the process before held whose row this is, before this one has any: once, or a second thread, or a
        signal handler, would take this process's own first holds for that one's."""
        if self._is_inside():
            self.seat.gate.refuse_reentry()
        with self._reaping:
            self._reap_own_row()
        self._trim()

    def _reap_own_row(self) -> None:
        if not self._row_is_clean:
            self._reaped_own = self._reap_row(self.attachment.row)
            self._row_is_clean = True
            self.reaped += self._reaped_own

    def reap(self) -> int:
        """Give back the holds of processes that are gone; returns how many, with those that this process found in its own row.
        Never waits for another reaper."""
        self.check_open()
        if self._is_inside():
            return 0
        taken: list[bool] = []
        try:
            # One C call takes it and says so. An exception between the two would leave it taken: this thread would seem to be
            # inside for ever.
            taken.extend(map(self._reaping.acquire, (False,)))
            if not taken[0]:
                return 0
            self._reap_own_row()
            own, self._reaped_own = self._reaped_own, 0
            count = own + sum(map(self._reap_if_gone, holding_rows(self.segment)))
            self._trim()  # what they held is kept by nobody now; and one may have been killed before it came to this
            return count
        finally:
            if taken and taken[0]:
                self._reaping.release()

    def _reap_if_gone(self, row: int) -> int:
        # Whoever holds the row's byte may write to it; nobody can take the row meanwhile.
        if row == self.attachment.row or not read_holds(self.segment, row).any():
            return 0
        count = run_if_free(self.segment.fd, PROCESS_BYTES + row, self._reap_row, row) or 0
        self.reaped += count
        return count

    def _reap_row(self, row: int) -> int:
        holds = read_holds(self.segment, row)
        columns = np.flatnonzero(holds)
        start = ledger_word(self.segment, row, HOLDS)
        for stripe in np.unique(columns % self._stripe_count).tolist():
            own = columns[columns % self._stripe_count == stripe]
            for first in range(0, len(own), BATCH):
                self.locks[stripe].run(self._drop_row, stripe, start, own[first : first + BATCH])
        return int(holds.sum())

    def _drop_row(self, stripe: int, ledger: int, columns: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> None:
        self.stripes.recover(stripe)
        self.stripes.drop_row(stripe, ledger, columns)

    # ---- topics that nobody holds

    def _make_room(self, stripe: int, value: bytes, capacity: int) -> bool:
        """After a PoolFullError: whether something was done that may help."""
        if self.stripes.inserts >= self._insert_budget:
            return False
        if self.reap():
            return True
        if not self.constants.policy.keeps_unheld:
            return False
        if self.stripes.total() >= capacity:
            # To evict helps only if all that is needed can go: an `admit` that fails must not cost what nobody holds now.
            return self.stripes.total() - self.stripes.unheld_total() < capacity and self._evict_oldest()
        # It is this stripe that is full, or there is no more memory: then only a space of the same class helps.
        is_full = self.stripes.count(stripe) >= self.constants.geometry.stripe_capacity
        stamps, offsets = self.stripes.unheld(stripe)
        for stamp, offset in sorted(zip(stamps.tolist(), offsets.tolist(), strict=True)):
            record = read_record(self.segment, offset)
            if (is_full or record.end - offset == space_size(len(value))) and self._evict(stripe, offset, stamp):
                return True
        return False

    def _trim(self) -> None:
        """Evict what is kept beyond what the policy allows."""
        policy = self.constants.policy
        if policy.keeps_unheld and not policy.ttl_ns:
            while self.stripes.unheld_total() > policy.max_unheld and self._evict_oldest():
                pass

    def _evict_oldest(self) -> bool:
        """Evict the topic that was not held for longest; whether there was one."""
        for is_fresh in (False, True):
            if is_fresh:
                self._oldest = self._look_for_oldest()
            with suppress(IndexError):
                while True:
                    # Whoever is not held since later comes later, so those that were oldest then are still; but they may be held
                    # by now, or gone, which `_evict` looks at.
                    stamp, stripe, offset = self._oldest.popleft()
                    if self._evict(stripe, offset, stamp):
                        return True
        return False

    def _look_for_oldest(self) -> "deque[tuple[int, int, int]]":
        found: list[tuple[int, int, int]] = []
        for stripe in range(self._stripe_count):
            stamps, offsets = self.stripes.unheld(stripe)
            found += zip(stamps.tolist(), [stripe] * len(stamps), offsets.tolist(), strict=True)
        found.sort()
        return deque(found[: max(64, len(found) // 8)])  # a look costs about 2 ms for 65,536 topics

    def _evict(self, stripe: int, offset: int, stamp: int) -> bool:
        return self.locks[stripe].run(self._evict_many, stripe, [(offset, stamp)]) > 0

    def _evict_many(self, stripe: int, items: list[tuple[int, int]]) -> int:
        self.stripes.recover(stripe)
        return sum(self.stripes.evict(stripe, offset, stamp) for offset, stamp in items)

    def _sweep(self) -> None:
        """Evict what is too old, now and then: it is not found any more, but takes room."""
        ttl, now = self.constants.policy.ttl_ns, self._clock()
        if now < self._next_sweep:
            return
        self._next_sweep = now + max(ttl // _SWEEP_SHARE, _SWEEP_NS)
        for stripe in range(self._stripe_count):
            stamps, offsets = self.stripes.unheld(stripe)
            old = stamps.astype(np.int64) <= now - ttl
            items = list(zip(offsets[old].tolist(), stamps[old].tolist(), strict=True))
            for first in range(0, len(items), BATCH):
                self.locks[stripe].run(self._evict_many, stripe, items[first : first + BATCH])

    # ---- counting

    def flush(self) -> None:
        """Publish this process's counters; do what is due. Uses and holds are published by themselves."""
        self.check_open()
        if self._flushing._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - a signal handler's, inside a flush
            return
        if not self._is_inside():
            self._catch_up()
        with self._flushing:
            self.uses = self._uses_gone + self.attachment.uses_total()
            self._publish_counters()

    def count_batch(self, refs: Refs, *, is_lookup: bool) -> None:
        """Nothing: each was counted."""

    def _turnover(self) -> tuple[int, int, int]:
        return self.stripes.frees, self.stripes.evictions, self.reaped

    def _forget(self) -> None:
        self.held.clear()

    def empty_cache(self) -> None:
        self._forget()
        self.flush()

    # ---- the whole pool

    def _lock_all_and_reset(self, stripe: int) -> None:
        if stripe == len(self.locks):
            # Nobody can remember a topic any more; and who did would take its hold, which needs no lock, of a column of the new
            # ledger, where it is of no topic, or of one that is another's.
            self.held.clear()
        super()._lock_all_and_reset(stripe)

    def _start_over(self, uses: int) -> None:
        self._uses_gone += uses
        self._unreleased.clear()
        self._oldest.clear()

    def _give_back_all(self) -> None:
        for lock in self.locks:
            lock.shut_out(bool)  # threads that are inside come to an end, and with `closed` set no other takes a hold
        self._forget()
        with suppress(PoolError):  # of a damaged pool they stay, as a killed process's do
            self._reap_row(self.attachment.row)
            self._trim()
        self._publish_counters()  # what went with these holds, too, was freed by this process
