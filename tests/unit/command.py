"""The `shmpool` command in processes of its own, with pipes or a terminal; and text that no terminal should get as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from shmpool.cli import main
from tests.unit.processes import DEADLINE_S, ROOT

HOSTILE = [b"\x1b[2J\x1b[31mred", b"line\nbreak\r", b"\xff\x9b1m\x00", "\u202egpj.\u05d0".encode(), b"[bold]x[/bold]\x7f"]
PLAIN = {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "60", "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)}


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


def run_inside(capsys: pytest.CaptureFixture[str], *arguments: str) -> Ran:
    """Run the command in this process."""
    code = main(list(arguments))
    return Ran(code, *capsys.readouterr())


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS")}
    return kept | PLAIN | more


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "shmpool", *arguments]


def run_outside(*arguments: str, **more: str) -> Ran:
    """Run the command in a process of its own, its output in pipes."""
    done = subprocess.run(
        command(*arguments), env=environment(**more), stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextmanager
def on_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command in a process of its own, its output on a terminal whose other end is the descriptor."""
    ours, theirs = os.openpty()
    try:
        with subprocess.Popen(command(*arguments), env=environment(), stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            yield process, ours
            process.kill()
    finally:
        os.close(ours)


def read_until(fd: int, is_enough: Callable[[str], bool]) -> str:
    """What a terminal shows, up to when that is enough or its process has ended."""
    shown = b""
    while not is_enough(shown.decode(errors="replace")):
        try:
            shown += os.read(fd, 65536)
        except OSError:  # the process has ended
            break
    return shown.decode()
