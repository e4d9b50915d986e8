"""Where a scene is played: its operation is interrupted again and again.

A shot prepares the operation, interrupts it somewhere, sees that no lock is left behind, does it again to the end, lets a thread
and another process use the pool, and counts descriptors and mappings: they must be as before. So must the files be in the end,
which is for whoever runs it to see: other processes make some as well.
"""

from __future__ import annotations

import gc
import os
import signal
import struct
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from shmpool import Pool
from shmpool.layout import PROCESS_BYTES
from shmpool.lock import others_hold, semaphore_name
from shmpool.segment import path_of
from tests.stress.interrupting import Scene
from tests.unit.processes import Forked

SHM: Final = Path("/dev/shm")
PATIENCE_S: Final = 20.0  # against hanging: everybody needs a few milliseconds
RENEW_EVERY: Final = 40  # shots: a small pool is checked fast


class Holdings(NamedTuple):
    """What an operation could leak."""

    descriptors: int
    mappings: int
    blocked: frozenset[int]

    @classmethod
    def now(cls) -> Self:
        return cls(
            len(os.listdir("/proc/self/fd")),
            Path("/proc/self/maps").read_text().count(f"{SHM}/"),
            frozenset(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        )


class Stage:
    """Plays one scene, shot by shot. Any claim that does not hold is an AssertionError."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.shots = 0
        self.about = ""  # the next shot, for whoever reads that it failed

    def __enter__(self) -> Self:
        self.witness = Forked(testify)
        self.scene.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.scene.close()
        self.witness.__exit__(kind, error, trace)

    def shoot(self, interrupt: Callable[[Callable[[], object]], object]) -> None:
        """Have `interrupt` call the scene's operation, and see that all is well afterwards."""
        try:
            self._shoot(interrupt)
        except BaseException as error:
            error.add_note(f"shot {self.shots}, {self.about}")
            raise

    def _shoot(self, interrupt: Callable[[Callable[[], object]], object]) -> None:
        scene = self.scene
        if self.shots % RENEW_EVERY == 0 and scene.persists:
            scene.pool.reset()
        self.shots += 1
        before = Holdings.now()
        scene.prepare()
        interrupt(scene.act)
        self._wait_for_children()
        self._assert_unlocked()
        scene.repeat()
        self._wait_for_children()
        self._assert_others_go_on()
        scene.finish()
        if Holdings.now() != before:
            gc.collect()
            assert Holdings.now() == before, f"{before} became {Holdings.now()}"

    def _wait_for_children(self) -> None:
        """Of forks that were interrupted, too, before they said their pid."""
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
        for pid in map(int, children):
            if pid != self.witness.pid:
                os.waitpid(pid, 0)

    def _assert_unlocked(self) -> None:
        """No byte of the file is locked but those of rows, and no turnstile lacks its token."""
        try:
            fd = os.open(path_of(self.scene.name), os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            assert not others_hold(fd, 0, PROCESS_BYTES), "a lock is held"
        finally:
            os.close(fd)
        if self.scene.made:
            constants = self.scene.pool.constants
            names = [semaphore_name(constants.pool_id, stripe)[1:] for stripe in range(constants.geometry.stripe_count)]
            paths = [SHM / f"sem.{name}" for name in names]
            tokens = [struct.unpack("<I28x", path.read_bytes())[0] for path in paths if path.exists()]
            assert set(tokens) <= {1}, f"the turnstiles have {tokens} tokens"

    def _assert_others_go_on(self) -> None:
        """Another process and another thread of this one can attach, insert and leave."""
        if not os.path.exists(path_of(self.scene.name)):
            return
        self.witness.say((self.scene.name, self.shots))
        assert self.witness.hear(PATIENCE_S) == []
        said: list[object] = []
        thread = threading.Thread(target=lambda: said.append(use(self.scene.name, -self.shots)), daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert said == [[]], f"another thread said {said}"


def testify(connection: Connection) -> None:
    """The other process: use whatever pool it is told to, and say what is wrong with it."""
    while True:
        connection.send(use(*connection.recv()))


def use(name: str, number: int) -> list[str]:
    with Pool.attach(name) as pool:
        value = b"witness %d" % number
        ref = pool.intern(value)
        assert pool.resolve(ref) == value
        return [str(finding) for finding in pool.check()]
