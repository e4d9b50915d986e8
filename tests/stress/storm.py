"""A storm: processes that intern in one pool while whoever leads it kills and stops them.

The leader starts processes, and permits some to fork; it becomes their orphans' parent, so that none escapes it. It looks at one
that stands still (the kernel tells which locks it holds), and counts what it was doing when it was killed.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from select import select
from types import TracebackType
from typing import Final, NoReturn, Self

from shmpool import Pool
from tests.stress.member import ENGINES, Member
from tests.stress.sight import Sight, look_at, state_of
from tests.stress.traces import COMPILED, DONE, FORKS, HALT, QUIET, SINCE, Traces

PATIENCE_S: Final = 60.0  # against hanging; nothing here takes a hundredth of it
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
_libc = ctypes.CDLL(None, use_errno=True)

Body = Callable[[Member], None]


class BlockedError(Exception):
    """A living process did not go on."""


class EndedError(Exception):
    """A process ended by itself."""


@dataclass
class Kills:
    """How many, and what they hit. A process that is killed running shows only whether it was inside an operation."""

    total: int = 0
    inside: int = 0
    seen: int = 0  # stood still, so that the kernel could be asked for its locks
    holding: int = 0  # a stripe's lock
    writing: int = 0
    growing: int = 0
    gate: int = 0
    compiled: int = 0  # of all, those with the compiled engine


@dataclass
class Storm:
    pool: Pool
    rng: random.Random
    patience_s: float = PATIENCE_S
    sabotage: Callable[[], None] | None = None  # breaks the pool in every process of the storm, but not in its leader
    kind: type[Member] = Member
    members: dict[int, int] = field(default_factory=dict)  # a pidfd for each pid
    kills: Kills = field(default_factory=Kills)
    stops: int = 0
    stopped_ns: list[tuple[int, int]] = field(default_factory=list)  # spans of time in which somebody was stopped on purpose
    pids: set[int] = field(default_factory=set)  # of all that ever were
    _stopped: set[int] = field(default_factory=set)
    _unreaped: set[int] = field(default_factory=set)

    def __enter__(self) -> Self:
        self.traces = Traces().__enter__()
        self._ready, self._say_ready = os.pipe()
        self._permits, self._permit = os.pipe2(os.O_NONBLOCK)
        self.led, self._lead = os.pipe()  # only the leader keeps `_lead`: the storm's processes see it go
        self._ended, self._alive = os.pipe()  # only the leader does not keep `_alive`: it sees the last of them go
        was_reaper = ctypes.c_int()
        _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(was_reaper))
        self._was_reaper = was_reaper.value
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, self._was_reaper)
        for fd in (self._ready, self._say_ready, self._permits, self._permit, self.led, self._lead, self._ended):
            os.close(fd)
        self.traces.__exit__(kind, error, trace)

    # ---- processes come

    def start(self, body: Body | None = None, *, afresh: bool = False) -> int:
        """Fork a process, which inserts a little, announces itself and runs `body`, or lives as its kind does."""
        seed = self.rng.getrandbits(32)
        # Ctrl-C in a child that does not ignore it yet would send it up its leader's stack.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pid = os.fork()
            if pid == 0:
                self._run(body, seed, before, afresh=afresh)
            self._add(pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid

    def permit_fork(self) -> None:
        """Let one of the processes have a child, which announces itself."""
        os.write(self._permit, b"1")

    def wait_for_announcements(self, count: int) -> list[int]:
        """Wait until that many have announced themselves. Whoever waits for a dead process's lock does not."""
        pids = []
        for _ in range(count):
            deadline = time.monotonic() + self.patience_s
            while not select([self._ready], [], [], 0.2)[0]:
                self._check_nobody_ended()
                if time.monotonic() > deadline:
                    raise BlockedError(f"a new process could not insert in {self.patience_s} s")
            pids.append(int.from_bytes(os.read(self._ready, 8), "little"))
            self._add(pids[-1])
        return pids

    def is_announced(self) -> bool:
        """Whether one more has announced itself by now."""
        if select([self._ready], [], [], 0)[0]:
            return bool(os.read(self._ready, 8))
        return False

    def _add(self, pid: int) -> None:
        if pid not in self.members:
            self.pids.add(pid)
            self.members[pid] = os.pidfd_open(pid)

    def _run(self, body: Body | None, seed: int, mask: set[int | signal.Signals], *, afresh: bool) -> NoReturn:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self.traces.register()
            os.close(self._lead)
            os.close(self._ended)
            member = self.kind(self, self.pool, random.Random(seed))
            if self.sabotage:
                self.sabotage()
                member.attach_afresh("python")
            elif afresh:
                member.attach_afresh(member.rng.choice(ENGINES))
            member.begin()
            (body or self.kind.live)(member)
            status = 0
        except BaseException:  # noqa: BLE001 - it goes to the leader
            self.traces.complain(traceback.format_exc())
        finally:
            os._exit(status)

    # ---- what they ask of the storm

    def announce(self) -> None:
        os.write(self._say_ready, os.getpid().to_bytes(8, "little"))

    def may_fork(self) -> bool:
        try:
            return bool(os.read(self._permits, 1))
        except BlockingIOError:
            return False

    # ---- processes go

    def kill(self, pid: int) -> None:
        """SIGKILL, whatever it is doing."""
        if pid in self._stopped:
            self._count(look_at(self.pool, pid))
        self._end_stop(pid)
        self._kill(pid)
        self.kills.total += 1
        self.kills.inside += self.traces.cell(pid)[SINCE] != 0
        self.kills.compiled += self.traces.cell(pid)[COMPILED]

    def _kill(self, pid: int) -> None:
        fd = self.members.pop(pid)
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            if not select([fd], [], [], PATIENCE_S)[0]:
                raise BlockedError(f"process {pid} did not die")
        except ProcessLookupError:
            raise EndedError(f"process {pid} has ended by itself") from None
        finally:
            os.close(fd)
            self._unreaped.add(pid)
            self._reap()

    def _reap(self) -> None:
        """Those that are our children: others are their parents', until these end too and leave them to us."""
        for pid in list(self._unreaped):
            try:
                gone, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
            if gone:
                self._unreaped.discard(pid)
                self.check_was_killed(pid, status)

    def check_was_killed(self, pid: int, status: int) -> None:
        """A crash, too, is an end that nobody ordered."""
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            self.traces.complain(f"found that process {pid} had ended by itself, with {os.waitstatus_to_exitcode(status)}")

    def _count(self, sight: Sight) -> None:
        self.kills.seen += 1
        self.kills.holding += sight.stripe
        self.kills.writing += sight.writing
        self.kills.growing += sight.growth
        self.kills.gate += sight.gate

    def end(self) -> None:
        """Kill whoever is left; these do not count. Nobody is left then, not even those that nobody has announced."""
        for pid in list(self.members):
            self._end_stop(pid)
            try:
                self._kill(pid)
            except EndedError:
                continue
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1
        while not select([self._ended], [], [], 0.01)[0]:
            self._kill_registered()
        self._kill_registered()
        self._unreaped.clear()

    def _kill_registered(self) -> None:
        for pid in self.traces.registered():
            with suppress(ChildProcessError):  # reaped, by its parent or by us
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)

    # ---- stops

    def stop(self, *pids: int) -> None:
        """SIGSTOP, and wait until they stand."""
        if not self._stopped:
            self.stopped_ns.append((time.monotonic_ns(), 1 << 62))
        self._stopped.update(pids)
        self.stops += len(pids)
        for pid in pids:
            signal.pidfd_send_signal(self.members[pid], signal.SIGSTOP)
        for pid in pids:
            self.wait_for_stop(pid)

    def wait_for_stop(self, pid: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while state_of(pid) != b"T":
            if state_of(pid) in (b"Z", b"X", b""):
                raise EndedError(f"process {pid} has ended by itself")
            if time.monotonic() > deadline:
                raise BlockedError(f"process {pid} did not stop")
            time.sleep(0.0001)

    def go_on(self, pid: int) -> None:
        self._end_stop(pid)
        signal.pidfd_send_signal(self.members[pid], signal.SIGCONT)

    def _end_stop(self, pid: int) -> None:
        if pid in self._stopped:
            self._stopped.discard(pid)
            if not self._stopped:
                self.stopped_ns[-1] = (self.stopped_ns[-1][0], time.monotonic_ns())

    # ---- whether all is well

    def wait_for_more_of(self, pid: int, count: int = 2, patience_s: float | None = None) -> None:
        """Wait until a process has completed more operations than it has by now. Raises BlockedError."""
        cell = self.traces.cell(pid)
        before, patience_s = cell[DONE], patience_s or self.patience_s
        deadline = time.monotonic() + patience_s
        while cell[DONE] < before + count:
            self._check_nobody_ended()
            if time.monotonic() > deadline:
                raise BlockedError(f"process {pid} is alive and did nothing for {patience_s} s")
            time.sleep(0.0005)

    def halt(self) -> None:
        """Wait until every process has said what it holds, and stands still."""
        self.traces.mode = HALT
        deadline = time.monotonic() + self.patience_s
        while not all(self.traces.cell(pid)[QUIET] for pid in self.members):
            self._check_nobody_ended()
            if time.monotonic() > deadline:
                raise BlockedError(f"a process is alive and did not come to a halt in {self.patience_s} s")
            time.sleep(0.0005)

    def _check_nobody_ended(self) -> None:
        if self.traces.has_complaints():
            raise EndedError("a process has ended by itself")

    def sum_of(self, word: int) -> int:
        """A counter of all processes, those that are gone included."""
        return sum(self.traces.cell(pid)[word] for pid in self.pids)

    @property
    def forks(self) -> int:
        return self.sum_of(FORKS)
