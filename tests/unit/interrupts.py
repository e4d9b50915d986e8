"""Strikes at every point of a call where CPython would run a signal handler.

CPython looks for signals after a call of anything but a Python function, at a function's start and at a loop's jump back, and
an exception of the handler is raised there: by the call, so to say, and not by what follows it. Stopping at exactly those
points tries for certain what a random timer hits once in a million. From Python 3.12 on sys.monitoring tells of each of them.
Before, profiling tells of calls of built-in functions, and tracing of the rest, one instruction late: so there a call of a class
that ends a `try` is left out, for the strike would come outside.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import shmpool

_PACKAGE: Final = str(Path(shmpool.__file__).parent)
_TOOL: Final = 4  # of sys.monitoring's six; debuggers, coverage and profilers have others


class _Strikes:
    """Counts check points, and calls `strike` at the `at`-th, counted from 1."""

    def __init__(self, at: int, strike: Callable[[], object]) -> None:
        self.at, self._strike = at, strike
        self.count = 0

    def check_point(self) -> None:
        self.count += 1
        if self.count == self.at:
            self._strike()


def interrupted_at(point: int, strike: Callable[[], object], call: Callable[[], object]) -> bool:
    """Run `call`, and `strike` at its point-th check point, counted from 1; False if it has fewer.

    What `strike` raises goes through `call`, and whatever `call` then raises comes out here.
    """
    strikes = _Strikes(point, strike)
    with _watched(strikes):
        call()
    return strikes.count >= point


def count_check_points(call: Callable[[], object]) -> int:
    """Run `call` and count where a strike could come."""
    strikes = _Strikes(sys.maxsize, bool)
    with _watched(strikes):
        call()
    return strikes.count


if sys.version_info >= (3, 12):

    @contextmanager
    def _watched(strikes: _Strikes) -> Iterator[None]:
        monitoring, events = sys.monitoring, sys.monitoring.events

        def check_point(code: CodeType, *_: object) -> Any:
            return strikes.check_point() if _is_ours(code) else monitoring.DISABLE

        def step(code: CodeType, offset: int) -> Any:
            nonlocal has_jumped
            if not _is_ours(code):
                return monitoring.DISABLE
            had_jumped, has_jumped = has_jumped, _names(code)[offset] == "JUMP_BACKWARD"
            return strikes.check_point() if had_jumped else None

        def ended(code: CodeType, *_: object) -> None:  # this event knows no DISABLE
            if _is_ours(code):
                strikes.check_point()

        has_jumped = False
        # Not events.JUMP: Python 3.12 and 3.13 forget where they are when its callback raises, and no `finally` of the function
        # runs. So the instruction jumped to raises.
        callbacks = {events.PY_START: check_point, events.C_RETURN: ended, events.INSTRUCTION: step}
        monitoring.use_tool_id(_TOOL, "shmpool's interrupts")
        try:
            for event, callback in callbacks.items():
                monitoring.register_callback(_TOOL, event, callback)
            monitoring.set_events(_TOOL, events.PY_START | events.CALL | events.INSTRUCTION)  # CALL stands for C_RETURN too
            yield
        finally:
            monitoring.set_events(_TOOL, events.NO_EVENTS)
            for event in callbacks:
                monitoring.register_callback(_TOOL, event, None)
            monitoring.free_tool_id(_TOOL)

else:

    @contextmanager
    def _watched(strikes: _Strikes) -> Iterator[None]:
        # A frame's address, and the instruction: a frame kept here would keep alive what an interrupted call had opened.
        previous = (0, 0)

        def profile(frame: FrameType, event: str, _: object) -> None:
            nonlocal previous
            if strikes.count >= strikes.at:
                sys.setprofile(None)  # what comes after the strike is not slowed down
            elif event == "c_return" and _is_ours(frame.f_code):
                previous = (0, 0)
                strikes.check_point()

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal previous
            if strikes.count >= strikes.at:
                sys.settrace(None)
            elif event == "call":
                if not _is_ours(frame.f_code):
                    return None
                frame.f_trace_opcodes = True
                previous = (0, 0)
                strikes.check_point()
            elif event == "opcode":
                (frame_id, before), previous = previous, (id(frame), frame.f_lasti)
                if frame_id == id(frame) and _was_check_point(frame.f_code, before, frame.f_lasti):
                    strikes.check_point()
            return trace

        tracing, profiling = sys.gettrace(), sys.getprofile()
        sys.setprofile(profile)
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(tracing)
            sys.setprofile(profiling)


@cache
def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(_PACKAGE)


def _was_check_point(code: CodeType, before: int, now: int) -> bool:
    name = _names(code)[before]
    return name == "JUMP_BACKWARD" or (name.startswith("CALL") and _handler(code, before) == _handler(code, now))


@cache
def _names(code: CodeType) -> dict[int, str]:
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


@cache
def _handler(code: CodeType, offset: int) -> int:
    """Where an exception that the instruction at `offset` raises is handled; -1: nowhere in this function."""
    entries: list[Any] = dis._parse_exception_table(code)  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public way
    return next((entry.target for entry in entries if entry.start <= offset < entry.end), -1)
