"""Six ways of building the pool wrongly, which the storms must be able to tell from the right one.

Each function breaks shmpool in the process that calls it: one of a storm's, never its leader, which judges. This module alone
knows which of the pool's parts are replaced. They are those of plain Python, so the storm must attach with that engine.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import posix_ipc

from shmpool import lock
from shmpool.layout import CHUNK_USED_SHIFT, COUNT, HEADER, INTENT, INTENT_INSERT, INTENT_SHIFT, STRIPE_BYTES, WORD_SIZE
from shmpool.lock import StripeLock
from shmpool.segment import Segment
from shmpool.stripe import Stripes, Table
from tests.unit.faults import Words

_OWNERS = HEADER.itemsize // WORD_SIZE - 256  # reserved words of the header, one for each stripe that there can be


def steal_on_time_out() -> None:
    """Whoever has waited in vain goes in: the holder may be dead. It may also be stopped."""

    def wait(self: StripeLock, admitted: list[object]) -> None:
        self.waits += 1
        if self._wait_for_token(admitted):
            fcntl.fcntl(self._file.fd, fcntl.F_OFD_SETLKW, self._lock)
        else:
            self.takeovers += 1
            admitted.append(None)

    StripeLock._wait = wait  # type: ignore[method-assign]  # noqa: SLF001


def own_by_pid() -> None:
    """A word says whose the lock is, instead of the byte lock. Whoever dies between the turnstile and the word is nobody."""

    def run(self: StripeLock, body: Callable[..., Any], /, *args: Any) -> Any:
        segment: Any = self._file
        place = _OWNERS + struct.unpack("hhqqi4x", self._lock)[2] - STRIPE_BYTES
        while not self._wait_for_token([]):
            if segment.words[place] and not _is_alive(segment.words[place]):
                self.takeovers += 1
                break
        segment.words[place] = os.getpid()
        try:
            return body(*args)
        finally:
            segment.words[place] = 0
            self._semaphore.release()

    StripeLock.run = run  # type: ignore[assignment, method-assign]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def publish_slot_first() -> None:
    """The slot, which commits, is stored before the record that it commits."""

    def publish(
        self: Stripes, row: int, table: Table, chunk: int, start: int, used: int, count: int, records: list[bytes], slots: Any
    ) -> None:
        words, place = self.segment.words, chunk * self._chunk_size + start
        words[row + INTENT] = INTENT_INSERT << INTENT_SHIFT | place
        for index, slot in slots.items():
            words[table.word + index] = slot
        self.segment.data[self._arena_offset + place : self._arena_offset + place + used - start] = b"".join(records)
        words[self._chunks_word + chunk] += used - start << CHUNK_USED_SHIFT
        words[row + COUNT] = count
        words[row + INTENT] = 0
        self.inserts += len(slots)

    Stripes._publish = publish  # type: ignore[method-assign]  # noqa: SLF001


def pack_words() -> None:
    """Words are written by struct.pack_into, which zeroes them first."""
    init, frombuffer = Segment.__init__, np.frombuffer

    def packing(self: Segment, *arguments: Any) -> None:
        init(self, *arguments)
        self.words = PackedWords(self.words, bool)  # type: ignore[assignment]

    def unwrapping(buffer: Any, *arguments: Any, **options: Any) -> Any:
        return frombuffer(buffer.base if isinstance(buffer, PackedWords) else buffer, *arguments, **options)

    Segment.__init__ = packing  # type: ignore[method-assign, assignment]
    np.frombuffer = unwrapping


class PackedWords(Words):
    """A segment's words as `pack_words` writes them. A process can be struck in the middle, where the word is zero."""

    strike_inside: Callable[[], object] = staticmethod(bool)

    def __setitem__(self, place: int, value: int) -> None:
        struct.pack_into("<Q", self.base, place * WORD_SIZE, _Slow(value))


class _Slow:
    """A number for which struct, having zeroed the word, must ask; what it does then takes long enough to be hit."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        PackedWords.strike_inside()
        return self._value


def map_lock_description() -> None:
    """Locks are taken on the description that is mapped. A forked child inherits the mapping, and with it the locks."""
    init = Segment.__init__

    def mapped(self: Segment, name: str, fd: int, constants: Any) -> None:
        init(self, name, fd, constants)
        self.replace_fd([os.dup(fd)])

    Segment.__init__ = mapped  # type: ignore[method-assign]


def retry_interrupted_waits() -> None:
    """A wait that a signal interrupts begins anew. A timer then keeps it from ever timing out.

    It waits ten times as long at a time as the right one does. A busy machine may stand still for so long that a wait has timed
    out before the timer's signal is seen, and must not do so here.
    """

    def wait_for_token(self: StripeLock, admitted: list[object]) -> bool:
        while True:
            try:
                admitted.extend(map(self._acquire, (10 * lock.TURNSTILE_S,)))
            except posix_ipc.BusyError:
                return False
            except posix_ipc.SignalError:
                continue
            return True

    StripeLock._wait_for_token = wait_for_token  # type: ignore[method-assign]  # noqa: SLF001
