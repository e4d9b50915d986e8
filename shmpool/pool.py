"""Pool: one canonical copy of each value per host, and the same small integer for it in every process.

Guarantees:
- Equal bytes give equal refs, in any two processes, for as long as the pool lives; two racing interns make one record.
- `resolve` returns the bytes that were interned under the ref, or raises.
- A process may be killed at any instant: the others go on, and lose nothing that was ever returned to anyone.
- A topic stays as long as anyone holds it (under `forever`: always), and its ref never names another.
- After an error nothing is half done.
"""

import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import index
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import numpy as np

from shmpool import lifetime
from shmpool.errors import PoolBusyError, PoolCorruptError, PoolExistsError, PoolNotFoundError
from shmpool.holding import Holder, HoldingStore
from shmpool.inspection import Finding, PoolStats, TopicCount, read_stats
from shmpool.layout import TopicRef
from shmpool.lock import Semaphores
from shmpool.policy import Policy
from shmpool.reuse import Clock
from shmpool.segment import Segment
from shmpool.store import Refs, Store

DEFAULT_CACHE_SIZE: Final = 4096
_RACE_TRIES: Final = 100


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
        policy: Policy | None = None,
        cache_size: int = DEFAULT_CACHE_SIZE,
        clock: Clock = time.monotonic_ns,
    ) -> "Pool":
        """Make a new pool and attach to it.

        capacity: topics it holds. Memory follows use, so ask for what could come.
        arena_size: bytes reserved (not taken) for values; by default enough for `capacity` values of the largest size.
        stripe_count: locks, a power of two; as many processes can insert at once.
        max_value_size: bytes of the longest value, at most 65,535.
        insert_budget: inserts that each process may make; by default no bound.
        reserve: topics at the end of capacity that `intern` may take and `admit` may not; by default a sixteenth.
        process_count: processes that can be attached at once.
        persistent: whether it stays when the last process closes it.
        policy: when topics go; by default never.
        cache_size: topics that this process remembers privately (see `intern`).
        clock: gives monotonic nanoseconds, for topics that nobody holds; the same in all processes, so inject it in tests only.

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
            policy=policy,
        )
        return cls._settle(lambda: lifetime.create(name, constants), cache_size, clock, lifetime.undo_create)

    @classmethod
    def attach(cls, name: str, *, cache_size: int = DEFAULT_CACHE_SIZE, clock: Clock = time.monotonic_ns) -> "Pool":
        """Attach to the pool of that name.

        Raises PoolNotFoundError; PoolCorruptError, PoolVersionError or PoolError for what is no pool of this user and version;
        PoolFullError where the process table or the host's memory is full. Whatever is refused is left as it is.
        """
        return cls._settle(lambda: lifetime.attach(name), cache_size, clock, lifetime.undo_attach)

    @classmethod
    def open(cls, name: str, **options: Any) -> "Pool":
        """Attach to the pool of that name, or create it with `options`, those of `create`, where there is none.

        An existing pool keeps its own options. Raises what `attach` and `create` do.
        """
        for _ in range(_RACE_TRIES):
            try:
                return cls.attach(name, **{key: options[key] for key in ("cache_size", "clock") if key in options})
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

    @classmethod
    def _settle(
        cls, take_seat: Callable[[], lifetime.Seat], cache_size: int, clock: Clock, undo: Callable[[Segment, Semaphores], None]
    ) -> "Pool":
        seat = take_seat()  # no exception of a signal handler fits between this call's return and the `try`
        try:
            if seat.segment.constants.policy.counts_holds:
                return HoldingPool(HoldingStore(seat, cache_size, clock))
            return cls(Store(seat, cache_size))
        except BaseException:
            undo(seat.segment, seat.semaphores)
            raise

    def __init__(self, store: Store) -> None:
        """Not for users: see `create`, `attach` and `open`."""
        self.name = store.name
        self.constants = store.constants
        self.policy = store.constants.policy
        self._store = store
        self._capacity = self.constants.geometry.capacity
        self._max_value_size = self.constants.geometry.max_value_size
        self._cells = store.cache.cells  # both stay the same for good: the cache only empties its dicts
        self._values = store.cache.values
        # Runs when the pool is dropped or the interpreter ends. A __del__ would come too late for a pool in a reference
        # cycle, after its parts' own.
        weakref.finalize(self, store.close_quietly)

    def close(self) -> None:
        """Flush the counters and detach; the pool goes with its last process, unless persistent. Again is harmless.

        Other threads' operations under way are waited for. Raises PoolBusyError from a signal handler or finalizer that
        interrupted an operation on this very pool.
        """
        self._store.close()

    def __enter__(self) -> Self:
        self._store.check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., "Pool"], tuple[str, int, int]]:
        return _attach_again, (self.name, self.constants.pool_id, self._store.cache.size)

    def __repr__(self) -> str:
        return f"<Pool {self.name!r}{f' ({self._store.closed})' if self._store.closed else ''}>"

    # ---- values and refs

    def intern(self, value: bytes) -> TopicRef:
        """The ref of a value, inserting it if it is new. For names this host subscribes to, publishes or allow-lists.

        Unless the policy is `forever`, each call takes a hold, to be given back with `release`: until then the topic stays. A
        process that ends, however it does, loses its holds; a forked child has none.

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
        except (TypeError, ValueError):  # not hashable; the latter from a writable memoryview
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
        except (TypeError, ValueError):  # not hashable; the latter from a writable memoryview
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
        except (TypeError, ValueError):  # not hashable; the latter from a writable memoryview
            self._refuse_type(value)
        store = self._store
        if store.closed or type(value) is not bytes:
            value = self._check_value(value, None)
        try:
            return store.lookup(value) or None
        except ValueError:
            store.check_open()  # closed meanwhile by another thread
            raise

    def resolve(self, ref: TopicRef) -> bytes:
        """The value of a ref.

        Raises StaleRefError for a ref of another pool or from before a reset, or a number that is no ref; PoolCorruptError for
        a record whose bytes are damaged.
        """
        try:
            return self._values[ref]
        except (KeyError, TypeError):
            pass
        store = self._store
        store.check_open()
        try:
            value = store.resolve(index(ref))
        except ValueError:
            store.check_open()
            raise
        store.cache.add_value(ref, value)
        return value

    def release(self, ref: TopicRef) -> None:
        """Give back one hold that `intern` took. Under `forever` there are none: it does nothing, whatever the ref.

        Raises NotHeldError, and nothing was changed, if this process does not hold the ref; StaleRefError if its topic went. In a
        finalizer or signal handler that interrupted an operation of its own thread it is done by that thread's next operation.
        """

    def release_many(self, refs: "Refs | Iterable[TopicRef]") -> None:
        """`release` for n refs. Raises at the first that cannot be given back; those before it were."""
        for ref in refs:
            self.release(TopicRef(int(ref)))

    @contextmanager
    def hold(self, value: bytes) -> Iterator[TopicRef]:
        """Hold a value for the length of a `with` block, and give its ref. Raises what `intern` does."""
        ref = self.intern(value)
        try:
            yield ref
        finally:
            self.release(ref)

    def holders(self, ref: TopicRef) -> tuple[Holder, ...]:
        """The processes that hold a ref, and how often; under `forever` none. Raises StaleRefError."""
        self.resolve(ref)
        return ()

    def reap(self) -> int:
        """Give back what killed processes held, and return how many holds that was.

        Happens by itself when room is needed and when a killed process's row is taken, and `shmpool.gc()` does it.
        """
        self._store.check_open()
        return 0

    def __contains__(self, value: bytes) -> bool:
        return self.lookup(value) is not None

    def __len__(self) -> int:
        """Topics in the pool, by all processes."""
        self._store.check_open()
        count = self._store.stripes.total()
        if count > self.constants.geometry.ordinal_count:  # len() would answer a damaged count with an OverflowError
            raise PoolCorruptError(
                f"pool {self.name!r}: counts {count} topics, more than it can hold. Nothing was changed. Run Pool.check(), and "
                "make the pool anew."
            )
        return count

    def __iter__(self) -> Iterator[tuple[TopicRef, bytes]]:
        """Each topic's ref and value, in no particular order; of those inserted meanwhile some, none or all."""
        self._store.check_open()
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
        self._store.flush()
        return read_stats(self._store.stripes, self._store.attachment.row)

    def top(self, k: int, by: str = "uses") -> list[TopicCount]:
        """The k topics most often interned or looked up by all processes ("uses"), or held by most ("holds"), most first. About
        2 us for each topic in the pool.

        Raises ValueError for another order, and for "holds" where the policy is `forever`, which counts none.
        """
        if by != "uses" and not (by == "holds" and self.policy.counts_holds):
            counted = "'uses' and 'holds'" if self.policy.counts_holds else "only 'uses'"
            raise ValueError(f"pool {self.name!r}: top(by={by!r}) is not known; under {self.policy} it counts {counted}")
        self._store.flush()
        return self._store.top(k, by)

    def check(self) -> list[Finding]:
        """Everything in the segment that contradicts something else; empty means sound. Locks one stripe at a time."""
        self._store.check_open()
        return self._store.check()

    def flush(self) -> None:
        """Publish this process's counters: hits, misses, waits, and uses of each topic.

        Happens by itself in `stats`, `top`, `close`, every batch that misses the private cache, and every 2048th time that a
        single operation adds to it; where holds are counted only in the first three, but there uses and holds publish themselves.
        Until then others see the counts of the last flush; a process that only hits should call it now and then, as a heartbeat
        does.
        """
        self._store.flush()

    def reset(self) -> None:
        """Drop every topic at once. Refs from before raise StaleRefError from then on.

        Raises PoolBusyError while another process (or another Pool of this one) is attached.
        """
        self._store.reset()

    # ---- what misses the cache

    def _intern(self, value: bytes, capacity: int) -> TopicRef:
        store = self._store
        if store.closed or type(value) is not bytes or len(value) > self._max_value_size:
            value = self._check_value(value, self._max_value_size)
        try:
            return store.intern(value, capacity)
        except ValueError:
            store.check_open()  # closed meanwhile by another thread
            raise

    def _check_value(self, value: object, limit: int | None) -> bytes:
        self._store.check_open()
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

    def _refs_of(self, values: list[bytes], capacity: int | None) -> Refs:
        """The refs of n values, shape (n,); without a capacity nothing is inserted and 0 stands for what is missing."""
        self._store.check_open()
        try:
            cells: list[Iterator[TopicRef] | None] = list(map(self._cells.get, values))
        except (TypeError, ValueError):
            cells = [None] * len(values)  # something unhashable, which is not bytes: the check below names it
        if None not in cells:
            return np.fromiter(map(next, cells), np.uint64, len(cells))  # type: ignore[arg-type]
        values = [self._check_value(value, None) if type(value) is not bytes else value for value in values]
        if capacity is not None:
            self._check_value(max(values, key=len), self._max_value_size)
        missed = [value for value, cell in zip(values, cells, strict=True) if cell is None]
        distinct = list(dict.fromkeys(missed))
        found, error = self._store.find_many(distinct, capacity=capacity)
        if len(distinct) < len(missed):
            places = {value: place for place, value in enumerate(distinct)}
            found = found[[places[value] for value in missed]]
        self._store.count_batch(found, is_lookup=capacity is None)
        if error:
            raise error
        rest = iter(found.tolist())
        return np.fromiter((next(rest if cell is None else cell) for cell in cells), np.uint64, len(cells))


class HoldingPool(Pool):
    """A Pool whose policy lets topics go, so that holds are counted. `Pool.create`, `attach` and `open` give it."""

    _store: HoldingStore

    def __init__(self, store: HoldingStore) -> None:
        super().__init__(store)
        hot = store.held.hot()
        self._take, self._give, self._use = hot.take, hot.give, hot.use
        self._by_ref = store.held.by_ref  # stays the same for good

    def intern(self, value: bytes) -> TopicRef:
        ref = self._take(value)
        return self._intern(value, self._capacity) if ref is None else ref

    def admit(self, value: bytes) -> TopicRef:
        ref = self._take(value)
        return self._intern(value, self._capacity - self.constants.reserve) if ref is None else ref

    def release(self, ref: TopicRef) -> None:
        if self._give(ref):
            return
        store = self._store
        store.check_open()
        try:
            store.release(TopicRef(index(ref)))
        except ValueError:
            store.check_open()
            raise

    def lookup(self, value: bytes) -> TopicRef | None:
        ref = self._use(value)
        return super().lookup(value) if ref is None else ref

    def resolve(self, ref: TopicRef) -> bytes:
        try:
            return self._by_ref[ref][3]
        except (KeyError, TypeError, ValueError):  # the latter two of what is no ref
            pass
        store = self._store
        store.check_open()
        try:
            return store.resolve(index(ref))
        except ValueError:
            store.check_open()
            raise

    def holders(self, ref: TopicRef) -> tuple[Holder, ...]:
        self._store.check_open()
        return self._store.holders(index(ref))

    def reap(self) -> int:
        return self._store.reap()

    def _refs_of(self, values: list[bytes], capacity: int | None) -> Refs:
        self._store.check_open()
        values = [self._check_value(value, None if capacity is None else self._max_value_size) for value in values]
        if capacity is None:
            return np.array([self.lookup(value) or 0 for value in values], np.uint64)
        held: list[TopicRef] = []
        try:
            held.extend(map(self.intern, values))
            return np.array(held, np.uint64)
        except BaseException:
            self.release_many(held)
            raise


def _attach_again(name: str, pool_id: int, cache_size: int) -> Pool:
    """What a pickled Pool becomes."""
    pool = Pool.attach(name, cache_size=cache_size)
    if pool.constants.pool_id != pool_id:
        pool.close()
        raise PoolNotFoundError(
            f"pool {name!r}: the pool that was pickled is gone, and another has its name. Nothing was changed."
        )
    return pool
