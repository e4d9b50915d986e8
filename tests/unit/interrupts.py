"""Strikes at every point of a call where CPython would run a signal handler.

Between two bytecodes CPython looks for signals only after a call of a C function, at a function's start and at a loop's
jump back. Tracing opcodes stops at exactly those points, so that what a random timer hits once in a million is tried for certain.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import shmpool
from shmpool.hashing import make_hasher

_PACKAGE = str(Path(shmpool.__file__).parent)


class _Tracer:
    def __init__(self, at: int, strike: Callable[[], object]) -> None:
        self._at, self._strike = at, strike
        self.count = 0
        self._previous: tuple[FrameType, str] | None = None

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            if not frame.f_code.co_filename.startswith(_PACKAGE):
                return None
            frame.f_trace_opcodes = True
        previous, self._previous = self._previous, None
        if event == "opcode":
            self._previous = frame, _names(frame.f_code)[frame.f_lasti]
            if previous is not None and previous[0] is frame and _is_check_point(previous[1]):
                self.count += 1
                if self.count == self._at:
                    self._strike()
        return self


def interrupted_at(point: int, strike: Callable[[], object], call: Callable[[], object]) -> bool:
    """Run `call`, and `strike` at its point-th check point, counted from 1; False if it has fewer.

    What `strike` raises goes through `call`, and whatever `call` then raises comes out here.
    """
    tracer = _Tracer(point, strike)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        call()
    finally:
        sys.settrace(before)
    return tracer.count >= point


def _is_check_point(name: str) -> bool:
    return name.startswith("CALL") or name in {"RESUME", "JUMP_BACKWARD"}


@cache
def _names(code: CodeType) -> dict[int, str]:
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


def _can_trace() -> bool:
    """Whether opcodes are traced at all: Python 3.13.0 ignores `f_trace_opcodes` set on the call event."""
    return interrupted_at(1, bool, lambda: make_hasher(bytes(16)))


needs_opcode_tracing = pytest.mark.skipif(not _can_trace(), reason="this Python does not trace opcodes from the call event on")
