"""Programs that nobody has forked: independent interpreters that are told what to do line by line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from select import select
from types import TracebackType
from typing import Any, Self

from tests.unit.processes import DEADLINE_S, ROOT


class Program:
    """An interpreter that runs `code`. It says lines on its standard output and hears them on its standard input."""

    def __init__(self, code: str, *arguments: str, prefix: Sequence[str] = (), **options: Any) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error", "-c", code, *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            **options,
        )

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")

    def hear(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        assert select([self.process.stdout], [], [], DEADLINE_S)[0], "the program says nothing"
        return str(self.process.stdout.readline()).rstrip("\n")

    def ask(self, line: str) -> str:
        self.say(line)
        return self.hear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """It ends with its input, as a program does. Where it does not, it is killed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
