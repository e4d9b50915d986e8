"""shmpool: one canonical copy of each name per host, and the same small integer for it in every process.

General layout. A module imports only from groups above its own:

    errors       the exceptions
    layout       every byte of the segment, and where it is
    policy       when topics go

    hashing      keyed hash of a value                       Mechanisms: none knows Pool,
    header       the segment's constants, encoded, verified  each is tested alone.
    segment      the shared memory itself
    lock         byte locks and turnstiles
    ledger       what each process has counted
    attachment   process rows, liveness, fork
    _engine      find and insert, in C
    engine       whether that is used
    table        slots: find, build
    arena        records: write, read, walk
    cache        refs a process remembers, and their uses
    held         topics a process holds, and its counts
    processes    what /proc says about a process

    stripe       table + arena + intents: insert, recover    Composition.
    reuse        the same where topics go: hold, free, evict
    turnover     is that sound
    inspection   stats, top, check
    lifetime     create, join, leave, remove, reset
    store        the above, from values to refs and back
    holding      the same where topics go

    view         a private copy of a pool, read-only         Looking on: no row, no lock.
    topics       which it holds
    report       all that can be told of a view
    reading      is it sound, what is this ref, ...

    pool         Pool                                        The surface.
    leftovers    gc: remove what nobody uses any more

    text         what is safe to print                       The command.
    exchange     JSON
    facts        what a report says, in words and columns
    render       tables and bars
    markup       trees that become a page
    pictures     bars, the arena's map
    page         a report for a browser
    saving       files, whole or not at all
    live         top
    metrics      for Prometheus
    cli          errors and exit codes
    options      what commands share
    looking      ls, inspect, check, ...
    changing     load, rm, gc
    commands     all of them

Only what is named here is public.
"""

import sys

if not sys.platform.startswith("linux"):
    raise ImportError(
        f"shmpool needs Linux: its locks are open file description locks and its memory is made without a name (O_TMPFILE), and "
        f"{sys.platform} has neither. Nothing was changed."
    )

from shmpool.engine import ENGINE
from shmpool.errors import (
    NotHeldError,
    PoolBusyError,
    PoolClosedError,
    PoolCorruptError,
    PoolError,
    PoolExistsError,
    PoolFullError,
    PoolNotFoundError,
    PoolVersionError,
    StaleRefError,
)
from shmpool.holding import Holder
from shmpool.inspection import Counters, Finding, PoolStats, ProcessStats, TopicCount
from shmpool.layout import TopicRef
from shmpool.leftovers import Leftover, gc
from shmpool.policy import Policy
from shmpool.pool import Pool

__all__ = [
    "ENGINE",
    "Counters",
    "Finding",
    "Holder",
    "Leftover",
    "NotHeldError",
    "Policy",
    "Pool",
    "PoolBusyError",
    "PoolClosedError",
    "PoolCorruptError",
    "PoolError",
    "PoolExistsError",
    "PoolFullError",
    "PoolNotFoundError",
    "PoolStats",
    "PoolVersionError",
    "ProcessStats",
    "StaleRefError",
    "TopicCount",
    "TopicRef",
    "gc",
]
