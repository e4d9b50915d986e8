"""What the processes of a storm leave behind: memory that they all share, and that a kill cannot take back.

An acknowledgement is a record of fixed size, appended to a memory file by one write: a kill leaves it out or leaves it whole. (A
log of lines of any length would be cut in the middle, and report losses that were none.) A cell says what a process is doing.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

ACK = np.dtype(
    [
        ("pid", "<u8"),
        ("number", "<u8"),  # of the value
        ("ref", "<u8"),
        ("began_ns", "<u8"),  # of the operation, on the clock that all processes share
        ("ended_ns", "<u8"),
        ("kind", "<u8"),
        ("reserved", "<u8", (2,)),
    ]
)
assert 4096 % ACK.itemsize == 0, "a record that crosses a page could be cut there"
make_ack: Final = Struct("<6Q16x").pack
# Kinds; ALSO is what a batch interned beside its first. Where topics go, GIVEN is a release; HELD tells from when to when a
# process was sure to hold a topic; KEPT what it holds in the end, with the count of its holds for the end of the operation.
INTERNED, ALSO, ATTACHED, GIVEN, HELD, KEPT = range(6)

CELL_WORDS = 8  # a cache line for each process, so that they do not slow each other down
SINCE, DONE, FORKS, ATTACHES, TAKEOVERS, WAITS, COMPILED, QUIET = range(8)
CALM, INSERT, ATTACH, REST, HALT = range(5)  # what all are to do


Acks = NDArray[np.void]


class Traces:
    """Acknowledgements, complaints (what processes raised) and a cell for each process, found by its pid."""

    def __enter__(self) -> Self:
        pid_count = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
        self._memory = mmap.mmap(-1, pid_count * CELL_WORDS * 8)  # shared, and as sparse as pids are
        self._words = memoryview(self._memory).cast("Q")
        self._acks = os.memfd_create("acks")
        self._complaints = os.memfd_create("complaints")
        self._born = os.memfd_create("born")
        # Appending needs no position, which all who inherit a description share.
        self._acks_end, self._complaints_end, self._born_end = map(end_of, (self._acks, self._complaints, self._born))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for fd in (self._acks, self._complaints, self._born, self._acks_end, self._complaints_end, self._born_end):
            os.close(fd)
        # The memory goes with the last view of it.

    def acknowledge(self, acks: list[bytes]) -> None:
        os.write(self._acks_end, b"".join(acks))

    def acknowledged(self) -> Acks:
        data = os.pread(self._acks, os.fstat(self._acks).st_size, 0)
        return np.frombuffer(data, ACK)

    def complain(self, what: str) -> None:
        os.write(self._complaints_end, f"process {os.getpid()}: {what}\n".encode())

    def complaints(self) -> str:
        return os.pread(self._complaints, os.fstat(self._complaints).st_size, 0).decode()

    def has_complaints(self) -> bool:
        return os.fstat(self._complaints).st_size > 0

    def register(self) -> None:
        """First thing in a forked child, so that none is overlooked in the end."""
        os.write(self._born_end, os.getpid().to_bytes(8, "little"))

    def registered(self) -> list[int]:
        return list(memoryview(os.pread(self._born, os.fstat(self._born).st_size, 0)).cast("Q"))

    @property
    def mode(self) -> int:
        """What the processes are to do: somebody may be waiting to hit them at it."""
        return int(self._words[0])  # there is no process 0

    @mode.setter
    def mode(self, mode: int) -> None:
        self._words[0] = mode

    def cell(self, pid: int) -> memoryview:
        """The cell of a process, which alone writes it; it can be read when the process is gone."""
        return self._words[pid * CELL_WORDS : (pid + 1) * CELL_WORDS]


def end_of(fd: int) -> int:
    """Another description of a file, that appends."""
    return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND)
