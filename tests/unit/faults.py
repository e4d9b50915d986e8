"""Ends a process at the k-th step of what it does to a pool: a store to shared memory, or a system call that others see.

Installed in a forked child only, where nothing has to be put back: shared memory is wrapped when a segment is mapped, and the
system calls are replaced where modules look them up.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from fcntl import fcntl
from typing import Any

import numpy as np
import posix_ipc

from shmpool import engine, lock
from shmpool.segment import Segment
from tests.unit.processes import ChildDiedError, Forked


class Faults:
    """Counts steps once armed, and calls `strike` at the `at`-th, counted from 1, before it is done."""

    def __init__(self, at: int, strike: Callable[[], object]) -> None:
        self._at, self._strike = at, strike
        self._armed = False
        self.count = 0

    def arm(self) -> None:
        self._armed = True

    def step(self) -> None:
        if self._armed:
            self.count += 1
            if self.count == self._at:
                self._strike()


def killed_at(step: int, act: Callable[[Faults], object]) -> bool:
    """Run `act(faults)` in a forked child that is killed with SIGKILL at the step-th step from where `act` arms the faults;
    False if it had fewer steps and came to its end."""

    def body(_: object) -> None:
        act(install(Faults(step, lambda: os.kill(os.getpid(), signal.SIGKILL))))

    with Forked(body) as child:
        try:
            child.result()
        except ChildDiedError:
            assert child.wait() == -signal.SIGKILL, f"the child ended with status {child.status}"
            return True
        return False


def install(faults: Faults) -> Faults:
    """Watch every pool that this process attaches from now on, in plain Python: what C stores is not seen from here."""
    engine.ENGINE = "python"
    _wrap_segments(faults)
    for name in ("posix_fallocate", "ftruncate", "link", "unlink", "chmod"):
        setattr(os, name, _counted(getattr(os, name), faults.step))
    setattr(lock, "fcntl", _counted(fcntl, faults.step))  # noqa: B010 - a name that it imports
    make = _counted(posix_ipc.Semaphore, faults.step)
    posix_ipc.Semaphore = lambda *arguments, **options: Semaphore(make(*arguments, **options), faults.step)
    posix_ipc.unlink_semaphore = _counted(posix_ipc.unlink_semaphore, faults.step)
    return faults


class Words:
    """A segment's words, counting stores."""

    def __init__(self, words: memoryview, step: Callable[[], object]) -> None:
        self.base, self._step = words, step

    def __getitem__(self, place: Any) -> Any:
        return self.base[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        self._step()
        self.base[place] = value

    def release(self) -> None:
        self.base.release()


class Bytes(Words):
    """A segment's bytes, counting stores. One that is not a word can be cut off in its middle."""

    def __setitem__(self, place: slice, value: bytes) -> None:
        half = len(value) // 2
        self._step()
        self.base[place.start : place.start + half] = value[:half]
        self._step()
        self.base[place] = value


class Semaphore:
    """A turnstile, counting what is done to it."""

    def __init__(self, semaphore: Any, step: Callable[[], object]) -> None:
        self._semaphore = semaphore
        self.acquire = _counted(semaphore.acquire, step)
        self.release = _counted(semaphore.release, step)
        self.close = semaphore.close

    @property
    def value(self) -> int:
        return int(self._semaphore.value)


def _wrap_segments(faults: Faults) -> None:
    init, frombuffer = Segment.__init__, np.frombuffer

    def wrapping(self: Segment, *arguments: Any) -> None:
        init(self, *arguments)
        self.words = Words(self.words, faults.step)  # type: ignore[assignment]
        self.data = Bytes(self.data, faults.step)  # type: ignore[arg-type, assignment]

    def unwrapping(buffer: Any, *arguments: Any, **options: Any) -> Any:
        return frombuffer(buffer.base if isinstance(buffer, Words) else buffer, *arguments, **options)

    Segment.__init__ = wrapping  # type: ignore[method-assign, assignment]
    np.frombuffer = unwrapping


def _counted(function: Callable[..., Any], step: Callable[[], object]) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        step()
        return function(*arguments, **options)

    return counted
