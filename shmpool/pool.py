"""Pool: one canonical copy of each value per host, and the same small integer for it in every process.

Guarantees:
- Equal bytes give equal refs, in any two processes, for as long as the pool lives; two racing interns make one record.
- `resolve` returns the bytes that were interned under the ref, or raises.
- A process may be killed at any instant: the others go on, and lose nothing that was ever returned to anyone.
- After an error nothing is half done.
"""

import atexit
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import util
from operator import index
from threading import RLock
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import numpy as np

from shmpool import lifetime
from shmpool.cache import Cache
from shmpool.errors import (
    PoolBusyError,
    PoolClosedError,
    PoolError,
    PoolExistsError,
    PoolFullError,
    PoolNotFoundError,
)
from shmpool.inspection import Finding, PoolStats, TopicCount, count_topics, read_stats
from shmpool.layout import TopicRef
from shmpool.lifetime import Seat
from shmpool.store import Refs, Store

DEFAULT_CACHE_SIZE: Final = 4096
_RACE_TRIES: Final = 100
_FLUSH_EVERY: Final = 1024  # a flush costs up to 0.3 ms with a full cache, so this is 0.3 us each


class Pool:
    """One attachment to a pool. Make it with `Pool.create`, `Pool.attach` or `Pool.open`; threads may share it.

    Use it as a context manager, or call `close`. A pool lives while a process is attached: when the last one closes it goes,
    unless it was created `persistent`; when the last one is killed it stays, sound, until someone attaches again or unlinks it.
    It can be sent to spawned processes by pickle, and a forked child has it attached already.
    """

    # ---- life

    @classmethod
    def create(
        cls,
        name: str,
        *,
        capacity: int = 65_536,
        arena_size: int | None = None,
        stripe_count: int = 16,
        max_value_size: int = 1024,
        insert_budget: int | None = None,
        reserve: int | None = None,
        process_count: int = 256,
        persistent: bool = False,
        cache_size: int = DEFAULT_CACHE_SIZE,
    ) -> Self:
        """Make a new pool and attach to it.

        capacity: topics it holds. Memory follows use, so ask for what could come.
        arena_size: bytes reserved (not taken) for values; by default enough for `capacity` values of the largest size.
        stripe_count: locks, a power of two; as many processes can insert at once.
        max_value_size: bytes of the longest value, at most 65,535.
        insert_budget: inserts that each process may make; by default no bound.
        reserve: topics at the end of capacity that `intern` may take and `admit` may not; by default a sixteenth.
        process_count: processes that can be attached at once.
        persistent: whether it stays when the last process closes it.
        cache_size: topics that this process remembers privately (see `intern`).

        Raises PoolExistsError, PoolFullError (no shared memory), ValueError for options that no pool can have.
        """
        constants = lifetime.choose_constants(
            capacity=capacity,
            arena_size=arena_size,
            stripe_count=stripe_count,
            max_value_size=max_value_size,
            insert_budget=insert_budget,
            reserve=reserve,
            process_count=process_count,
            persistent=persistent,
        )
        return cls(lifetime.create(name, constants), cache_size)

    @classmethod
    def attach(cls, name: str, *, cache_size: int = DEFAULT_CACHE_SIZE) -> Self:
        """Attach to the pool of that name.

        Raises PoolNotFoundError; PoolCorruptError, PoolVersionError or PoolError for what is no pool of this user and version;
        PoolFullError where the process table or the host's memory is full. Whatever is refused is left as it is.
        """
        return cls(lifetime.attach(name), cache_size)

    @classmethod
    def open(cls, name: str, **options: Any) -> Self:
        """Attach to the pool of that name, or create it with `options`, those of `create`, where there is none.

        An existing pool keeps its own options. Raises what `attach` and `create` do.
        """
        for _ in range(_RACE_TRIES):
            try:
                return cls.attach(name, cache_size=options.get("cache_size", DEFAULT_CACHE_SIZE))
            except PoolNotFoundError:
                pass
            try:
                return cls.create(name, **options)
            except PoolExistsError:
                continue
        raise PoolBusyError(f"pool {name!r} came and went {_RACE_TRIES} times while it was being opened. Try again.")

    @staticmethod
    def unlink(name: str) -> None:
        """Remove a pool that nobody is attached to: one that is persistent, or whose last process was killed.

        Raises PoolNotFoundError, PoolBusyError while a process is attached, and whatever `attach` refuses with.
        """
        lifetime.unlink(name)

    def __init__(self, seat: Seat, cache_size: int) -> None:
        """Not for users: see `create`, `attach` and `open`."""
        self.name = seat.segment.pool_name
        self.constants = seat.segment.constants
        self._store = Store(seat, _call_weakly(weakref.WeakMethod(self._after_fork)))
        self._capacity = self.constants.geometry.capacity
        self._max_value_size = self.constants.geometry.max_value_size
        self._cache = Cache(cache_size)
        self._cells = self._cache.cells  # both stay the same for good: the cache only empties its dicts
        self._values = self._cache.values
        self._unflushed = 0
        self._flushing = RLock()
        self._is_flushing = False
        self._closed = ""
        _pools.add(self)

    def close(self) -> None:
        """Flush the counters and detach; the pool goes with its last process, unless persistent. Again is harmless.

        Raises PoolBusyError from a signal handler or finalizer that interrupted an operation on this very pool.
        """
        if self._closed:
            return
        self._drop_cache()
        self._closed = "is being closed"
        try:
            self._store.leave()
        except PoolBusyError:
            self._closed = ""
            raise
        except BaseException:
            self._release("was closed, though not in order; its row is free all the same")
            raise
        self._release("was closed")

    def _release(self, why: str) -> None:
        self._closed = why
        _pools.discard(self)
        self._cache.clear()
        self._store.release()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):
            self._close_quietly()

    def _close_quietly(self) -> None:
        try:
            self.close()
        except (PoolError, OSError):
            self._release("could not be closed in order; its row is free all the same")

    def __reduce__(self) -> tuple[Callable[..., "Pool"], tuple[str, int, int]]:
        return _attach_again, (self.name, self.constants.pool_id, self._cache.size)

    def __repr__(self) -> str:
        return f"<Pool {self.name!r}{f' ({self._closed})' if self._closed else ''}>"

    # ---- values and refs

    def intern(self, value: bytes) -> TopicRef:
        """The ref of a value, inserting it if it is new. For names this host subscribes to, publishes or allow-lists.

        Raises TypeError for anything but bytes, ValueError for too long a value, PoolFullError when capacity, the insert
        budget, the arena or the host's memory is used up; nothing is changed then.
        """
        # Hot path: next() of a cell gives the ref and counts the use (see Cache), at the price of a plain dict function
        # (tools/bench_intern.py). Nothing shared is written, no clock is read. A miss pays 0.3 us for its exception;
        # `get` with a default would spare that and make every hit 1.4 times as dear.
        try:
            return next(self._cells[value])
        except KeyError:
            pass
        except TypeError:
            self._refuse_type(value)
        return self._intern(value, self._capacity)

    def admit(self, value: bytes) -> TopicRef:
        """`intern` for a name that a stranger chose and an allow-list let in: it may not use up the reserve.

        Raises what `intern` does, and PoolFullError when only the reserve is left.
        """
        try:
            return next(self._cells[value])
        except KeyError:
            pass
        except TypeError:
            self._refuse_type(value)
        return self._intern(value, self._capacity - self.constants.reserve)

    def lookup(self, value: bytes) -> TopicRef | None:
        """The ref of a value, or None. Never inserts and never waits: it is for whatever a peer sends.

        It may miss a value that another process is inserting at this instant. Raises TypeError for anything but bytes.
        """
        try:
            return next(self._cells[value])
        except KeyError:
            pass
        except TypeError:
            self._refuse_type(value)
        if self._closed or type(value) is not bytes:
            value = self._check_value(value, None)
        ref = self._store.lookup(value)
        if ref:
            self._remember(value, ref)
            return ref
        return None

    def resolve(self, ref: TopicRef) -> bytes:
        """The value of a ref.

        Raises StaleRefError for a ref of another pool or from before a reset, or a number that is no ref; PoolCorruptError for
        a record whose bytes are damaged.
        """
        try:
            return self._values[ref]
        except (KeyError, TypeError):
            pass
        self._check_open()
        value = self._store.resolve(index(ref))
        self._cache.add_value(ref, value)
        return value

    def release(self, ref: TopicRef) -> None:
        """Does nothing: this pool never evicts, so there is nothing to give back."""

    def __contains__(self, value: bytes) -> bool:
        return self.lookup(value) is not None

    def __len__(self) -> int:
        """Topics in the pool, by all processes."""
        self._check_open()
        return self._store.stripes.total()

    def __iter__(self) -> Iterator[tuple[TopicRef, bytes]]:
        """Each topic's ref and value, in no particular order; of those inserted meanwhile some, none or all."""
        self._check_open()
        yield from self._store.items()

    def for_each(self, callback: Callable[[TopicRef, bytes], object]) -> None:
        """Call `callback(ref, value)` for each topic, as iteration would give them."""
        for ref, value in self:
            callback(ref, value)

    # ---- batches

    def intern_many(self, values: Iterable[bytes]) -> Refs:
        """The refs of n values, shape (n,), inserting those that are new.

        Raises what `intern` does. The types and sizes of all are checked before anything changes; where memory or a bound
        ends in the middle, what was inserted before stays.
        """
        return self._refs_of(list(values), self._capacity)

    def lookup_many(self, values: Iterable[bytes]) -> Refs:
        """The refs of n values, shape (n,), 0 for those not in the pool. Otherwise as `lookup`."""
        return self._refs_of(list(values), None)

    def resolve_many(self, refs: "Refs | Iterable[TopicRef]") -> list[bytes]:
        """The values of n refs. Raises what `resolve` does."""
        return [self.resolve(TopicRef(int(ref))) for ref in refs]

    # ---- facts

    def stats(self) -> PoolStats:
        """What the pool holds and what its processes have counted, after a flush of this one's counters."""
        self.flush()
        return read_stats(self._store.stripes, self._store.attachment.row)

    def top(self, k: int, by: str = "uses") -> list[TopicCount]:
        """The k topics most often interned or looked up, by all processes, most used first. About 2 us for each topic held.

        Raises ValueError for another order; this pool has no holds to go by.
        """
        if by != "uses":
            raise ValueError(f"pool {self.name!r}: top(by={by!r}) is not known; this pool never evicts and counts only 'uses'")
        self.flush()
        return count_topics(self._store.stripes, k, self._store.origin)

    def check(self) -> list[Finding]:
        """Everything in the segment that contradicts something else; empty means sound. Locks one stripe at a time."""
        self._check_open()
        return self._store.check()

    def flush(self) -> None:
        """Publish this process's counters: hits, misses, waits, and uses of each topic.

        Happens by itself in `stats`, `top`, `close`, every batch that misses the private cache, and every 1024th single
        operation that does. Until then others see the counts of the last flush; a process that only hits should call it now
        and then, as a heartbeat does.
        """
        self._check_open()
        with self._flushing:
            if self._is_flushing:
                return  # a signal handler's or finalizer's, inside another
            self._is_flushing = True
            try:
                self._unflushed = 0
                refs, uses, lefts = self._cache.pending()
                with suppress(PoolFullError):  # they stay in their cells until there is memory for the ledger
                    self._store.count_uses(refs, uses)
                    self._cache.settle(lefts)
                self._store.publish_counters()
            finally:
                self._is_flushing = False

    def reset(self) -> None:
        """Drop every topic at once. Refs from before raise StaleRefError from then on.

        Raises PoolBusyError while another process (or another Pool of this one) is attached.
        """
        self._drop_cache()
        try:
            self._store.reset()
        finally:
            self._cache.clear()

    # ---- the slow path

    def _intern(self, value: bytes, capacity: int) -> TopicRef:
        if self._closed or type(value) is not bytes or len(value) > self._max_value_size:
            value = self._check_value(value, self._max_value_size)
        ref = self._store.intern(value, capacity)
        self._remember(value, ref)
        return ref

    def _check_value(self, value: object, limit: int | None) -> bytes:
        self._check_open()
        if type(value) is not bytes:
            if not isinstance(value, bytes):
                self._refuse_type(value)
            value = bytes(memoryview(value))  # of a subclass
        if limit is not None and len(value) > limit:
            raise ValueError(
                f"pool {self.name!r}: a value of {len(value)} bytes, and the longest it takes is {limit} (max_value_size at "
                "create). Nothing was changed."
            )
        return value

    def _refuse_type(self, value: object) -> NoReturn:
        hint = "encode it first: value.encode()" if isinstance(value, str) else "convert it first: bytes(value)"
        raise TypeError(f"pool {self.name!r}: values are bytes, not {type(value).__name__}; {hint}") from None

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosedError(
                f"pool {self.name!r} {self._closed} in this process; other processes are not affected. Attach again."
            )

    def _remember(self, value: bytes, ref: TopicRef) -> None:
        """Cache a ref and count this use of it."""
        if len(self._cells) >= self._cache.size:
            self._drop_cache()
        self._cache.add(value, ref)
        self._unflushed += 1
        if self._unflushed >= _FLUSH_EVERY:
            self.flush()

    def _drop_cache(self) -> None:
        with self._flushing:
            self.flush()
            dropped = self._cache.clear()
            if dropped:
                self._store.uses_dropped += dropped
                self.flush()

    def _refs_of(self, values: list[bytes], capacity: int | None) -> Refs:
        """The refs of n values, shape (n,); without a capacity nothing is inserted and 0 stands for what is missing."""
        try:
            cells: list[Iterator[TopicRef] | None] = list(map(self._cells.get, values))
        except TypeError:
            cells = [None] * len(values)  # something unhashable, which is not bytes: the check below names it
        self._check_open()
        if None not in cells:
            return np.fromiter(map(next, cells), np.uint64, len(cells))  # type: ignore[arg-type]
        values = [self._check_value(value, None) if type(value) is not bytes else value for value in values]
        if capacity is not None:
            self._check_value(max(values, key=len), self._max_value_size)
        missed = [value for value, cell in zip(values, cells, strict=True) if cell is None]
        distinct = list(dict.fromkeys(missed))
        found = self._store.find_many(distinct, capacity=capacity)
        if len(distinct) < len(missed):
            places = {value: place for place, value in enumerate(distinct)}
            found = found[[places[value] for value in missed]]
        self._count_batch(found, capacity)
        rest = iter(found.tolist())
        return np.fromiter((next(rest if cell is None else cell) for cell in cells), np.uint64, len(cells))

    def _count_batch(self, refs: Refs, capacity: int | None) -> None:
        """Count uses that went past the cache: `refs`, shape (n,), 0 for a miss."""
        hits = refs[refs != 0]
        if capacity is None:
            self._store.misses += len(refs) - len(hits)
        try:
            self._store.count_uses(hits, np.ones(len(hits), np.uint64))
        except PoolFullError:
            self._store.uses_dropped += len(hits)
        self.flush()

    def _after_fork(self) -> None:
        """In a forked child: nothing counted or remembered yet, and no row at all if none could be had."""
        self._cache.clear()
        self._store.start_counting()
        self._flushing = RLock()
        self._is_flushing = False
        if not self._store.attachment.is_seated:
            self._release("was forked inside one of its own operations, or found no free row, and is closed")


def _call_weakly(method: "weakref.WeakMethod[Callable[[], None]]") -> Callable[[], None]:
    """A call of a method that does not keep its object alive."""

    def call() -> None:
        bound = method()
        if bound is not None:
            bound()

    return call


def _attach_again(name: str, pool_id: int, cache_size: int) -> Pool:
    """What a pickled Pool becomes."""
    pool = Pool.attach(name, cache_size=cache_size)
    if pool.constants.pool_id != pool_id:
        pool.close()
        raise PoolNotFoundError(
            f"pool {name!r}: the pool that was pickled is gone, and another has its name. Nothing was changed."
        )
    return pool


# ---- exits

_pools: "weakref.WeakSet[Pool]" = weakref.WeakSet()


def _close_all() -> None:
    for pool in list(_pools):
        pool._close_quietly()  # noqa: SLF001 - this module's own


def _close_all_in_child(_: object) -> None:
    """A forked multiprocessing child runs no atexit handlers (before 3.13), but these."""
    util.Finalize(None, _close_all, exitpriority=0)


atexit.register(_close_all)
util.register_after_fork(_close_all_in_child, _close_all_in_child)
