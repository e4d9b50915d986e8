"""What /proc says about the processes of a pool, for people to read.

A row's pid counts in its own process's namespace, and pids repeat: so the start time must agree too, or nothing is said.
"""

from typing import Literal

ProcessState = Literal["running", "stopped", "dead"]


def state_of(pid: int, start_time: int, *, live: bool) -> ProcessState:
    """Of a row whose byte is held (`live`) or not; "stopped" is by a signal or a debugger."""
    if not live:
        return "dead"
    fields = _stat(pid)
    return "stopped" if fields and _started(fields) == start_time and fields[0] in (b"T", b"t") else "running"


def command_of(pid: int, start_time: int) -> str | None:
    """The command line of a process, its arguments joined by spaces, bytes that are no UTF-8 as \\xNN; None if unknown.

    Its process chose every character of it.
    """
    fields = _stat(pid)
    if not fields or _started(fields) != start_time:
        return None
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096).rstrip(b"\0").replace(b"\0", b" ").decode(errors="backslashreplace")
    except OSError:
        return None


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on, which is the third; none where it is not there."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _started(fields: list[bytes]) -> int:
    return int(fields[19])
