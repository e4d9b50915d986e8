"""Interrupts by a real timer at random instants: what the strikes at check points cannot reach, inside system calls."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from types import FrameType, TracebackType
from typing import Any, Final, Self

import shmpool
from shmpool import PoolError
from tests.stress.interrupting import Scene

_PACKAGE: Final = str(Path(shmpool.__file__).parent)
RAISES: Final = (KeyboardInterrupt, SystemExit, TimeoutError, None)  # None: the handler returns, and the operation goes on
PATIENCE_S: Final = 10.0
RAISED: Final = (KeyboardInterrupt, SystemExit, TimeoutError)


@dataclass
class Tally:
    """What became of the shots: `inside` came while code of the pool ran, `raised` of them ended the operation, in `used` the
    handler itself used the pool, and `swallowed` were raised in a finalizer or a hook, where Python reports and goes on."""

    shots: int = 0
    inside: int = 0
    raised: int = 0
    used: int = 0
    swallowed: int = 0


class Alarm:
    """Calls a function and interrupts it; for the main thread of a process of its own."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self.scene, self.rng = scene, rng
        self.tally = Tally()
        self._took_s = 0.0
        self._raises: type[BaseException] | None = None
        self._uses = self._came = False

    def __enter__(self) -> Self:
        signal.signal(signal.SIGALRM, self._handle)
        sys.unraisablehook = self._swallow
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = sys.__unraisablehook__

    def measure(self, act: Callable[[], object]) -> None:
        """Call it once without an interrupt, to know how long it takes."""
        start = perf_counter()
        act()
        self._took_s = min(perf_counter() - start, self._took_s or 1.0)

    def interrupt(self, act: Callable[[], object]) -> None:
        self._raises = self.rng.choice(RAISES)
        self._uses = self.rng.random() < 0.3
        self._came = False
        delay_s = max(self.rng.uniform(0, 1.2) * self._took_s, 2e-6)
        self.tally.shots += 1
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, delay_s)
                act()
            finally:
                # The timer fires only once. Where it did, its handler is waited for, inside the outer `try`: the kernel may have
                # given the signal to a thread that is just ending.
                left_s, _ = signal.setitimer(signal.ITIMER_REAL, 0)
                deadline = perf_counter() + PATIENCE_S
                while left_s == 0 and not self._came and perf_counter() < deadline:
                    sleep(1e-4)
        except RAISED:
            self.tally.raised += 1

    def _handle(self, _: int, frame: FrameType | None) -> None:
        self._came = True
        while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
            frame = frame.f_back
        self.tally.inside += frame is not None
        if self._uses and self.scene.made:
            self.tally.used += 1
            with suppress(PoolError):  # busy, when this interrupts an operation, or closed
                self.scene.pool.intern(b"the handler's")
        if self._raises is not None:
            raise self._raises

    def _swallow(self, what: Any) -> None:
        if not isinstance(what.exc_value, RAISED):
            sys.__unraisablehook__(what)
        self.tally.swallowed += 1
