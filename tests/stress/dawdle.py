"""Slows a process down where it holds a stripe's lock, and nowhere else: so that a kill hits it there more often than not.

The code that runs is the pool's own; what it does between two of its lines takes longer.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Final

from shmpool.holding import HoldingStore
from shmpool.reuse import ReusingStripes
from shmpool.store import Store
from shmpool.stripe import Stripes

# What runs under the lock, and how long each of its lines takes in addition, in turns of an empty loop.
_UNDER_LOCK: Final = {
    function.__code__: turns
    for function, turns in (
        (Store._insert_one, 1000),  # noqa: SLF001 - around what the compiled engine does
        (Stripes._find_or_insert, 60),  # noqa: SLF001 - which plain Python does
        (Stripes._publish, 1000),  # noqa: SLF001 - between the first and the last store of an insert
        (Stripes._take_chunk, 600),  # noqa: SLF001
        (Stripes._grow, 600),  # noqa: SLF001
        (Stripes.recover, 300),
        (HoldingStore._hold, 300),  # noqa: SLF001 - and where topics go
        (HoldingStore._give_back, 300),  # noqa: SLF001
        (ReusingStripes.hold, 300),
        (ReusingStripes.insert_held, 300),
        (ReusingStripes._reuse, 600),  # noqa: SLF001
        (ReusingStripes._append, 600),  # noqa: SLF001
        (ReusingStripes._write, 600),  # noqa: SLF001
        (ReusingStripes._rebuild, 600),  # noqa: SLF001
        (ReusingStripes.drop, 600),
        (ReusingStripes._settle, 300),  # noqa: SLF001
        (ReusingStripes._finish_free, 600),  # noqa: SLF001
        (ReusingStripes._shelve, 600),  # noqa: SLF001
    )
}


def dawdle(*, on: bool) -> None:
    sys.settrace(_trace if on else None)


def _trace(frame: FrameType, event: str, _: Any) -> Any:
    turns = _UNDER_LOCK.get(frame.f_code)
    if turns is None:
        return None
    for _ in range(turns):
        pass
    return _trace
