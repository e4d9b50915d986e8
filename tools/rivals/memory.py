"""Real memory of processes, servers and files: each page once, whoever has it mapped.

A process counts with its anonymous memory (`Pss_Anon` of /proc/PID/smaps_rollup: what forked processes share is divided). What it
has mapped of /dev/shm counts with the files there, by the blocks they take; programs and libraries do not count: they are
there anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tools.rivals.crew import Crew
from tools.rivals.rival import Place, Rival, placed


def process_memory(pid: int) -> int:
    """Bytes."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Pss_Anon"].split()[0]) * 1024


def total_memory(rival: Rival, place: Place, pids: Iterable[int]) -> int:
    """Bytes of the processes, the rival's servers and its files."""
    files = sum(path.stat().st_blocks * 512 for path in rival.files(place))
    return files + sum(map(process_memory, (*pids, *place.pids)))


def measure_memory(rival: Rival, size: int, counts: Iterable[int], seed: int) -> dict[int, int]:
    """Bytes that it takes until so many processes know `size` values, by the number of processes.

    They know them when they can tell each one's reference: what a client of a server keeps of it in its own memory is nothing.
    Everything is as large as those values need.
    """
    counts, totals, done = sorted(counts), {}, 0
    with placed(rival, size) as place, Crew(rival, place, seed) as crew:
        crew.hire(max(counts))
        crew.ask("warm_up", *range(max(counts)))
        before = total_memory(rival, place, crew.pids)
        for count in counts:
            for member in range(done, count):
                crew.ask("learn" if member == 0 or not rival.is_shared else "know", member, count=size)
            done = count
            totals[count] = total_memory(rival, place, crew.pids) - before
    return totals
