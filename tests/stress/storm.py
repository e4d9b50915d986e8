"""A storm: processes that insert into one pool until they are killed, and acknowledge every ref they were given.

An acknowledgement is a record of fixed size, appended to a memory file by one write: a kill leaves it out or leaves it whole.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from select import select
from types import TracebackType
from typing import NoReturn, Self

from shmpool import Pool
from shmpool.layout import INTENT, STRIPE_WORDS, WORD_SIZE
from tests.unit.inside import store_of

DEADLINE_S = 60.0  # against hanging; nothing here takes a hundredth of it
BATCH = 16
ACK = struct.Struct("<QQQQ")  # the process's serial, the value's number, its ref and 0; a power of two, so none crosses a page


def value_of(number: int) -> bytes:
    """Of sizes from 0 on, all different."""
    return number.to_bytes(4, "little") * (number % 7) + b"%d" % number if number else b""


@dataclass
class Storm:
    """Processes are known by serials that are never used again."""

    pool: Pool
    rng: random.Random
    pids: dict[int, int] = field(default_factory=dict)  # by serial
    started: int = 0
    killed: int = 0
    opened: list[int] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.acks = os.memfd_create("acks")
        self.complaints = os.memfd_create("complaints")
        self._ready, self._say_ready = os.pipe()
        self._ended, self._alive = os.pipe()  # nobody writes to it: it ends with the last process of the storm
        self.opened = [self.acks, self.complaints, self._ready, self._say_ready, self._ended, self._alive]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for serial in list(self.pids):
            os.kill(self.pids[serial], signal.SIGKILL)
            os.waitpid(self.pids.pop(serial), 0)
        for fd in self.opened:
            os.close(fd)

    # ---- from the test

    def start(self, body: Callable[[Storm, int], None]) -> int:
        """Fork a process that runs `body(storm, serial)`; returns its serial once it has said that it is ready."""
        self.started += 1
        serial = self.started
        seed = self.rng.getrandbits(32)
        pid = os.fork()
        if pid == 0:
            self._run(body, serial, seed)
        self.pids[serial] = pid
        self._wait_until_ready(serial)
        return serial

    def _wait_until_ready(self, serial: int) -> None:
        ended = os.pidfd_open(self.pids[serial])
        try:
            says = select([self._ready, ended], [], [], DEADLINE_S)[0]
        finally:
            os.close(ended)
        assert says, f"process {serial} could not insert in {DEADLINE_S} s\n{self.complaints_made()}"
        assert self._ready in says, f"process {serial} ended early\n{self.complaints_made()}"
        assert int.from_bytes(os.read(self._ready, 8), "little") == serial

    def kill(self, serial: int) -> None:
        """SIGKILL, whatever it is doing; it must not have ended by itself."""
        pid = self.pids.pop(serial)
        os.kill(pid, signal.SIGKILL)
        self.killed += 1
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == -signal.SIGKILL, f"process {serial} ended by itself, with {status}\n{self.complaints_made()}"

    def stop(self, serial: int) -> None:
        os.kill(self.pids[serial], signal.SIGSTOP)

    def go_on(self, serial: int) -> None:
        os.kill(self.pids[serial], signal.SIGCONT)

    def wait_for_more_of(self, serial: int) -> None:
        """Wait until a process has inserted more than it has by now."""
        before = self._acknowledged_by(serial)
        deadline = time.monotonic() + DEADLINE_S
        while self._acknowledged_by(serial) == before:
            assert time.monotonic() < deadline, f"process {serial} is blocked\n{self.complaints_made()}"
            time.sleep(0.01)

    def _acknowledged_by(self, serial: int) -> int:
        return sum(each == serial for each, _, _ in self.acknowledged())

    def wait_for_orphans(self) -> None:
        """Wait until the children of killed processes have ended too. Those the test started must have been killed."""
        assert not self.pids
        os.close(self._alive)
        self.opened.remove(self._alive)
        assert select([self._ended], [], [], DEADLINE_S)[0], "a forked child of a killed process never ended"

    def complaints_made(self) -> str:
        return os.pread(self.complaints, os.fstat(self.complaints).st_size, 0).decode()

    def acknowledged(self) -> Iterator[tuple[int, int, int]]:
        """Serials, numbers of values and their refs."""
        data = os.pread(self.acks, os.fstat(self.acks).st_size, 0)
        assert len(data) % ACK.size == 0
        return ((serial, number, ref) for serial, number, ref, _ in ACK.iter_unpack(data))

    # ---- in the processes

    def _run(self, body: Callable[[Storm, int], None], serial: int, seed: int) -> NoReturn:
        try:
            self.rng = random.Random(seed)
            body(self, serial)
        except BaseException:  # noqa: BLE001 - it goes to the test
            append(self.complaints, f"process {serial}:\n{traceback.format_exc()}\n".encode())
            os._exit(1)
        os._exit(0)

    def say_ready(self, serial: int) -> None:
        os.write(self._say_ready, serial.to_bytes(8, "little"))

    def acknowledge(self, serial: int, given: list[tuple[int, int]]) -> None:
        append(self.acks, b"".join(ACK.pack(serial, number, ref, 0) for number, ref in given))


def append(fd: int, data: bytes) -> None:
    """Through an append-only description of its own: the one that is inherited shares its position with everybody."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(own, data)
    finally:
        os.close(own)


# What the processes do


def insert_for_ever(storm: Storm, serial: int) -> None:
    """Insert what others insert at the same time, one by one, in batches and from forked children."""
    insert_some(storm, serial, 4)  # under every lock, most likely: whoever waits for a dead process does so here
    storm.say_ready(serial)
    while True:
        insert_some(storm, serial, 40)
        if storm.rng.random() < 0.02 and os.fork() == 0:
            insert_some(storm, serial, 3)
            os._exit(0)
        reap()


def insert_some(storm: Storm, serial: int, rounds: int) -> None:
    pool, rng = storm.pool, storm.rng
    for _ in range(rounds):
        frontier = len(pool)  # new values are at most a few numbers beyond it, so that everybody wants the same ones
        numbers = [frontier + rng.randrange(-5, 25) for _ in range(BATCH if rng.random() < 0.1 else 1)]
        numbers = [max(number, 0) for number in numbers]
        if len(numbers) == 1:
            refs = [int(pool.intern(value_of(numbers[0])))]
        else:
            refs = pool.intern_many(map(value_of, numbers)).tolist()
        storm.acknowledge(serial, list(zip(numbers, refs, strict=True)))


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def is_writing(pool: Pool) -> bool:
    """Whether a stripe's intent is set: somebody is between the first and the last store of an insert, or was killed there."""
    segment = store_of(pool).segment
    geometry = segment.constants.geometry
    start = geometry.stripes_offset // WORD_SIZE
    return any(segment.words[start + INTENT : start + geometry.stripe_count * STRIPE_WORDS : STRIPE_WORDS])


def random_pause(rng: random.Random, most_s: float) -> None:
    """Let the others run: what comes next is to meet them at a random instant. Nothing depends on how long it is."""
    time.sleep(rng.uniform(0, most_s))
