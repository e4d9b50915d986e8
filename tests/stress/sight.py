"""What the kernel and the pool tell of a process that stands still: which locks it holds, and whether it is in mid-write."""

from __future__ import annotations

import os
from dataclasses import dataclass

from shmpool import Pool
from shmpool.layout import GATE_BYTE, GROW_BYTE, INTENT, PROCESS_BYTES, STRIPE_BYTES, STRIPE_WORDS, WORD_SIZE
from tests.unit.inside import store_of


@dataclass
class Sight:
    """`writing`: between the first and the last store of an insert, in a stripe whose lock it holds."""

    stripe: bool
    writing: bool
    growth: bool
    gate: bool


def look_at(pool: Pool, pid: int) -> Sight:
    segment = store_of(pool).segment
    held = locks_of(pid, os.fstat(segment.fd).st_ino)
    stripes = [byte - STRIPE_BYTES for byte in held if STRIPE_BYTES <= byte < PROCESS_BYTES]
    row = segment.constants.geometry.stripes_offset // WORD_SIZE + INTENT
    writing = any(segment.words[row + stripe * STRIPE_WORDS] for stripe in stripes)
    return Sight(bool(stripes), writing, GROW_BYTE in held, GATE_BYTE in held)


def locks_of(pid: int, inode: int) -> set[int]:
    """The bytes of a file that a process has locked. The kernel lists the locks of a description in its fdinfo."""
    held = set()
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as file:
            for line in file:
                if line.startswith(b"lock:"):
                    *_, place, first, _last = line.split()
                    if int(place.rpartition(b":")[2]) == inode:
                        held.add(int(first))
    return held


def state_of(pid: int) -> bytes:
    """The letter that the kernel gives a process's state, or nothing for one that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return b""
