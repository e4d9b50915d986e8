"""The processes of one measurement, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Final, Self

from tools.rivals.member import FAILED, Opening, WrongAnswerError, serve
from tools.rivals.rival import Place, Rival

ANSWER_S: Final = 300.0
ENDING_S: Final = 10.0


class Crew:
    """Members 0 to n - 1, started afresh (nothing is shared by fork). Member 0 creates what the others attach to.

    `opened_ns` is what opening took each of them, what has to be imported for it left out.
    """

    def __init__(self, rival: Rival, place: Place, seed: int) -> None:
        self.opened_ns: list[int] = []
        self.pids: list[int] = []
        self._told = (Opening(rival.open, rival.imports), place, seed)
        self._context = get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []

    def hire(self, count: int) -> None:
        """Start more members and wait until each has opened the rival."""
        known = len(self._pipes)
        for number in range(known, known + count):
            pipe, theirs = self._context.Pipe()
            role = {"creating": number == 0}
            process = self._context.Process(target=serve, args=(theirs, *self._told), kwargs=role, daemon=True)
            self._pipes.append(pipe)
            self._processes.append(process)
            process.start()
            theirs.close()
            self.pids.append(process.pid or 0)
            if number == 0:
                self.opened_ns.append(self._answer(0))
        self.opened_ns.extend(self._answer(number) for number in range(max(1, known), known + count))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the members, who created last."""
        for pipe, process in zip(reversed(self._pipes), reversed(self._processes), strict=True):
            pipe.close()
            if process.pid is None:  # was never started
                continue
            process.join(ENDING_S)
            if process.exitcode is None:
                process.kill()
                process.join()

    def ask(self, task: str, *members: int, **arguments: Any) -> list[Any]:
        """The answers of the members, who all do the same at the same time."""
        return self.ask_each(dict.fromkeys(members, (task, arguments)))

    def ask_each(self, tasks: Mapping[int, tuple[str, dict[str, Any]]]) -> list[Any]:
        """Each makes ready; when all are, they start."""
        for member, told in tasks.items():
            self._pipes[member].send(told)
        for member in tasks:
            self._answer(member)
        for member in tasks:
            self._pipes[member].send("go")
        return [self._answer(member) for member in tasks]

    def _answer(self, member: int) -> Any:
        with suppress(EOFError):
            if not self._pipes[member].poll(ANSWER_S):
                raise TimeoutError(f"member {member} has not answered for {ANSWER_S:g} s")
            kind, answer = self._pipes[member].recv()
            if kind == FAILED:
                raise WrongAnswerError(answer) if "WrongAnswerError" in answer else RuntimeError(answer)
            return answer
        raise RuntimeError(f"member {member} has ended")
