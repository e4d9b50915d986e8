"""Real processes for tests: forked children that talk over a pipe, and independent interpreters. None outlives its test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from select import select
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0  # against hanging; nothing here takes a hundredth of it


@dataclass(frozen=True)
class _Returned:
    value: Any


@dataclass(frozen=True)
class _Raised:
    trace: str


class ChildFailedError(Exception):
    """What the child's body raised, as text."""


class ChildDiedError(Exception):
    """The child was killed, with its status."""


class Forked:
    """A forked child that runs `body(connection)` and then ends without any of Python's exit handlers."""

    def __init__(self, body: Callable[[Connection], object]) -> None:
        self._here, there = Pipe()
        self.pid = os.fork()
        self.status: int | None = None  # of waitpid, once it has ended
        if self.pid == 0:
            self._here.close()
            _run(body, there)
        there.close()

    def say(self, message: object) -> None:
        self._here.send(message)

    def hear(self, patience_s: float = DEADLINE_S) -> Any:
        """The child's next message. Raises ChildFailedError if its body raised, ChildDiedError if it was killed."""
        if not self._here.poll(patience_s):
            raise TimeoutError(f"child {self.pid} said nothing in {patience_s} s")
        try:
            message = self._here.recv()
        except EOFError:
            raise ChildDiedError(f"child {self.pid} ended with status {self.wait()}, saying nothing") from None
        if isinstance(message, _Raised):
            raise ChildFailedError(message.trace)
        return message

    def has_spoken_within(self, seconds: float) -> bool:
        """Wait that long at most for the child's next message."""
        return self._here.poll(seconds)

    def result(self) -> Any:
        """What the body returned."""
        message = self.hear()
        assert isinstance(message, _Returned), f"another message comes first: {message!r}"
        self.wait()
        return message.value

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, number)
        if number is signal.SIGKILL:
            self.wait()

    def wait(self) -> int:
        """Wait for the end; the exit status, or minus the signal that killed it."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(_wait(self.pid))
        return self.status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self._here.close()


def _run(body: Callable[[Connection], object], connection: Connection) -> None:
    try:
        try:
            message: object = _Returned(body(connection))
        except BaseException:  # noqa: BLE001 - it goes to the parent
            message = _Raised(traceback.format_exc())
        connection.send(message)
    finally:
        os._exit(0)


def _wait(pid: int) -> int:
    if not wait_for_exit(pid):
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def wait_for_exit(pid: int) -> bool:
    """Wait until a process, which may be nobody's child by now, has ended and let go of all it held."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select([fd], [], [], DEADLINE_S)[0])
    finally:
        os.close(fd)


def in_child(body: Callable[[], Any]) -> Any:
    """What `body` returns in a forked child."""
    with Forked(lambda _: body()) as child:
        return child.result()


def independent(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `code` in an interpreter that is no child of multiprocessing, with warnings as errors."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("environment", {})
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        **options,
    )
