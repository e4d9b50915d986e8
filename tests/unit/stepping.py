"""Stops a process after each machine instruction: what shared memory holds at each of them is what a `kill -9` there leaves."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_TRACEME: Final = 0
_SINGLESTEP: Final = 9
MOST_STEPS: Final = 2_000_000


def states_at_each_instruction(act: Callable[[], object], look: Callable[[], T]) -> list[T]:
    """What `look` gives here while a forked child does `act`, after each of its instructions; only those that differ from the one
    before. The child is killed in the end."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.restype = ctypes.c_long
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    pid = os.fork()
    if pid == 0:
        try:
            ptrace(_TRACEME, 0, None, None)
            signal.raise_signal(signal.SIGSTOP)
            act()
            signal.raise_signal(signal.SIGSTOP)
        finally:
            os._exit(0)
    try:
        assert _stopped_by(pid) == signal.SIGSTOP
        states = [look()]
        for _ in range(MOST_STEPS):
            assert ptrace(_SINGLESTEP, pid, None, None) == 0
            if _stopped_by(pid) == signal.SIGSTOP:
                return states
            state = look()
            if state != states[-1]:
                states.append(state)
        raise AssertionError(f"not done after {MOST_STEPS} instructions")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _stopped_by(pid: int) -> int:
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSTOPPED(status), f"the child ended with status {status}"
    return os.WSTOPSIG(status)
