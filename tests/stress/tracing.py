"""Kills a process at the k-th instruction that stores to a shared file, or the k-th system call: exactly, and from outside.

The process is traced (ptrace). All its mappings of files in /dev/shm, pools and semaphores alike, are made read-only, so that
every store to them, by whatever language's machine code, is a fault that the tracer sees before anything has changed. It lets
one through by unlocking the mapping for that single instruction. Between two such steps nothing changes that another process
can see, so these are all the instants at which a SIGKILL can make a difference. One is finer than the steps: a copy by a
`rep` instruction can be cut off after any byte, and is cut here after every STRING_PIECE bytes.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

import pytest

from tests.unit.processes import DEADLINE_S, Forked

SHARED: Final = "/dev/shm/"
STRING_PIECE: Final = 512
MAX_STEPS: Final = 100_000
READ, WRITE = 1, 2
MAP_SHARED = 1
TRACEME, PEEK, SINGLESTEP, GETREGS, SETREGS, SYSCALL, SETOPTIONS, GETSIGINFO = 0, 1, 9, 12, 13, 24, 0x4200, 0x4202
TRACE_SYSGOOD, EXIT_KILL = 1, 1 << 20
SYSCALL_STOP = signal.SIGTRAP | 0x80
SYSCALL_INSTRUCTION = b"\x0f\x05"
NUMBER_OF_MMAP, NUMBER_OF_MPROTECT = 9, 10
REGISTERS = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs"

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


class Registers(ctypes.Structure):
    """`struct user_regs_struct` of x86-64."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in REGISTERS.split()]


Body = Callable[[Connection], object]


class Step(NamedTuple):
    """A store to `place` of shared memory, or with place 0 the system call of that `number`, that is about to be done."""

    place: int
    number: int = -1


class Tracee(Forked):
    """A child that runs `prepare` at once and `act` once it is traced; it stands still for ever after that."""

    def __init__(self, act: Body, prepare: Body = bool) -> None:
        super().__init__(lambda connection: _stand_between(prepare, act, connection))


def _stand_between(prepare: Body, act: Body, connection: Connection) -> None:
    prepare(connection)
    signal.alarm(int(DEADLINE_S))  # against hanging: the tracer waits for this process without end
    ptrace(TRACEME, 0)
    signal.raise_signal(signal.SIGSTOP)
    act(connection)
    signal.raise_signal(signal.SIGSTOP)


def run_to(child: Tracee, at: int) -> bool:
    """Let a child act and kill it before its at-th step, counted from 1; false if it had fewer, and was killed after them."""
    tracer = Tracer(child)
    while tracer.advance():
        if len(tracer.steps) == at:
            break
    child.kill()
    return len(tracer.steps) == at


class Tracer:
    """Steps through what a child does. `steps` are those it has come to; the last of them is not done yet."""

    def __init__(self, child: Tracee) -> None:
        self.child = child
        self.pid = child.pid
        self.steps: list[Step] = []
        self.mappings: list[tuple[int, int]] = []
        stop = self.wait()
        assert stop == signal.SIGSTOP, f"the child got signal {stop} before it began"
        ptrace(SETOPTIONS, self.pid, TRACE_SYSGOOD | EXIT_KILL)
        self.gate = self.registers().rip - len(SYSCALL_INSTRUCTION)  # it stands behind the system call that stopped it
        assert self.read(self.gate, len(SYSCALL_INSTRUCTION)) == SYSCALL_INSTRUCTION
        self.protect_new()

    def advance(self) -> bool:
        """Let the child do its last step and come to the next; false if it has come to its end instead."""
        assert len(self.steps) < MAX_STEPS, "it does not come to an end"
        if self.steps:
            self.perform(self.steps[-1])
        stop = self.resume(SYSCALL)
        if stop == signal.SIGSTOP:
            return False
        if stop == signal.SIGSEGV:
            place = self.fault_place()
            assert self.mapping_of(place), f"the child crashed at address {place:#x}"
            self.steps.append(Step(place))
        else:
            assert stop == SYSCALL_STOP, f"the child got signal {stop}"
            self.steps.append(Step(0, self.registers().orig_rax))
        return True

    def perform(self, step: Step) -> None:
        if step.place:
            self.store(step.place)
            return
        is_mapping = step.number == NUMBER_OF_MMAP and self.registers().r10 & MAP_SHARED
        stop = self.resume(SYSCALL)
        assert stop == SYSCALL_STOP, f"inside system call {step.number} the child got signal {stop}"
        if is_mapping:
            self.protect_new()

    def store(self, place: int) -> None:
        """Let the one instruction that wants to store to `place` do so."""
        (start, end), = self.mapping_of(place)
        self.call(NUMBER_OF_MPROTECT, start, end - start, READ | WRITE)
        if not self.copy_piece():
            stop = self.resume(SINGLESTEP)
            assert stop == signal.SIGTRAP, f"a single store got signal {stop}"
        self.call(NUMBER_OF_MPROTECT, start, end - start, READ)

    def mapping_of(self, place: int) -> list[tuple[int, int]]:
        return [(start, end) for start, end in self.mappings if start <= place < end]

    def copy_piece(self) -> bool:
        """Where a `rep movs` or `rep stos` of bytes or words stands, do its next piece in its stead."""
        now = self.registers()
        code = self.read(now.rip, 3)
        wide = code[1] == 0x48
        operation = code[1 + wide]
        if code[0] != 0xF3 or operation not in (0xA4, 0xA5, 0xAA, 0xAB):
            return False
        unit = (8 if wide else 4) if operation & 1 else 1
        count = min(now.rcx, STRING_PIECE // unit)
        size = count * unit
        is_copy = operation < 0xA6
        data = self.read(now.rsi, size) if is_copy else (now.rax & (1 << 8 * unit) - 1).to_bytes(unit, "little") * count
        self.write(now.rdi, data)
        now.rdi += size
        now.rsi += size if is_copy else 0
        now.rcx -= count
        now.rip += 0 if now.rcx else 2 + wide
        ptrace(SETREGS, self.pid, ctypes.addressof(now))
        return True

    def protect_new(self) -> None:
        """Make read-only what is mapped of shared files and may be written."""
        with open(f"/proc/{self.pid}/maps", encoding="utf-8") as file:
            lines = [line.split(maxsplit=5) for line in file if SHARED in line]
        self.mappings = []
        for extent, access, *_, path in lines:
            start, end = (int(part, 16) for part in extent.split("-"))
            if access[3] == "s" and path.startswith(SHARED):
                self.mappings.append((start, end))
                if access[1] == "w":
                    self.call(NUMBER_OF_MPROTECT, start, end - start, READ)

    def call(self, number: int, *arguments: int) -> None:
        """Have the process make a system call, of which it will know nothing."""
        before, made = self.registers(), self.registers()
        made.rip, made.rax, made.orig_rax = self.gate, number, (1 << 64) - 1
        made.rdi, made.rsi, made.rdx = arguments
        ptrace(SETREGS, self.pid, ctypes.addressof(made))
        stopped = self.resume(SINGLESTEP)
        assert stopped == signal.SIGTRAP, f"a call made for the process got signal {stopped}"
        assert self.registers().rax == 0, f"system call {number}{arguments} failed"
        ptrace(SETREGS, self.pid, ctypes.addressof(before))

    def registers(self) -> Registers:
        now = Registers()
        ptrace(GETREGS, self.pid, ctypes.addressof(now))
        return now

    def read(self, place: int, size: int) -> bytes:
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), size, place)

    def write(self, place: int, data: bytes) -> None:
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            assert os.pwrite(memory.fileno(), data, place) == len(data)

    def fault_place(self) -> int:
        info = (ctypes.c_ulonglong * 16)()
        ptrace(GETSIGINFO, self.pid, ctypes.addressof(info))
        return info[2]  # si_addr

    def resume(self, how: int) -> int:
        """Let it go on to its next stop; the signal that it stops with."""
        stop: int = signal.SIGINT
        while stop == signal.SIGINT:  # the terminal's, for all in the foreground; it is meant for the tracer alone
            ptrace(how, self.pid)
            stop = self.wait()
        return stop

    def wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        if not os.WIFSTOPPED(status):
            self.child.status = os.waitstatus_to_exitcode(status)
            self.child.result()  # raises what its body raised
            raise AssertionError(f"the child ended with status {self.child.status}")
        return os.WSTOPSIG(status)


def ptrace(request: int, pid: int, data: int = 0) -> None:
    if libc.ptrace(request, pid, None, data) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace request {request:#x}: {os.strerror(ctypes.get_errno())}")


def is_possible() -> bool:
    """Whether this machine lets us trace our own children (a container's seccomp profile may not), and is an x86-64."""
    if platform.machine() != "x86_64":
        return False
    with Tracee(bool) as child:
        try:
            return not run_to(child, 0)
        except OSError:
            return False


needs_tracing = pytest.mark.skipif(not is_possible(), reason="no x86-64, or a machine that lets nobody trace its own children")
