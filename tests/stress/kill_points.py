"""Every kill point of an operation: a real process does it and is killed before its k-th step, for every k until it completes.

After each kill another process goes on at once, and finds everything that was acknowledged and nothing twice; what was half
done is wholly there or wholly gone, no memory is lost, and in the end no file is left.
"""

from __future__ import annotations

import signal
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Self

from shmpool import Pool, PoolNotFoundError, gc
from shmpool.layout import PAGE_SIZE
from tests.model import assert_sound
from tests.stress.tracing import Step, Tracee, Tracer
from tests.unit.own_files import OwnFiles
from tests.unit.processes import ChildDiedError, Forked

SURVIVOR_LIMIT_S: Final = 0.1  # from the dead process's reaping to the end of another's operation
DEADLINE_S: Final = 10.0  # against hanging
TRIES: Final = 4  # of a point whose survivor was slow: on a busy machine it may have waited for a core
SURVIVOR: Final = b"what the survivor interns"


@dataclass
class Scene:
    """One pool and one death. `pool` is the attachment of the surviving process, if it has one before the kill."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    pool: Pool | None = None
    expected: dict[bytes, int] = field(default_factory=dict)  # what was acknowledged, and its refs
    doubtful: list[bytes] = field(default_factory=list)  # what the killed process was inserting
    holds: Counter[bytes] = field(default_factory=Counter)  # the survivor's
    given: dict[int, bytes] = field(default_factory=dict)  # every ref that anyone was ever given
    dead: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # how many holds the killed may have: the fewest, the most
    acknowledgements: list[Any] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)  # in the victim, against an early finalizer
    children: list[Forked] = field(default_factory=list)  # who else is there
    survivor_s: float = 0.0
    memory_size: int = 0
    rollbacks: int = 0
    rollforwards: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for child in self.children:
            child.__exit__(None, None, None)
        if self.pool is not None:
            self.pool.close()
        with suppress(PoolNotFoundError):
            Pool.unlink(self.name)
        gc()

    def create(self, **more: Any) -> Pool:
        return Pool.create(self.name, **self.options | more)

    def open(self) -> Pool:
        """The survivor's pool, attached to or made if it has none."""
        if self.pool is None:
            self.pool = Pool.open(self.name, **self.options)
        return self.pool

    def know(self, pool: Pool, values: list[bytes]) -> None:
        self.expected |= zip(values, pool.intern_many(values).tolist(), strict=True)


class Operation:
    """Something that a process does to a pool. `arrange` and what follows a kill run here, `prepare` and `act` in the victim.

    What a victim sends after `act` did something is an acknowledgement: that must be true whenever it was killed.
    """

    # Bytes of memory that a pool may take beyond what it takes when nobody is killed: the page of the dead one's ledger, until
    # somebody takes its row.
    slack = PAGE_SIZE

    def __init__(self, name: str, **options: Any) -> None:
        self.name = name
        self.options = {"stripe_count": 1, "capacity": 4096, "max_value_size": 100, "process_count": 8} | options

    def arrange(self, scene: Scene) -> None:
        """Make the pool as it is before the operation."""

    def prepare(self, scene: Scene, connection: Connection) -> None:
        """What the victim does before it can be killed."""

    def act(self, scene: Scene, connection: Connection) -> None:
        """The operation."""
        raise NotImplementedError

    def survive(self, scene: Scene) -> None:
        """What the survivor does first, against the clock."""
        scene.expected[SURVIVOR] = scene.open().intern(SURVIVOR)

    def judge(self, scene: Scene) -> None:
        """Look at everything, from a new attachment, which has nothing in its cache; then finish what was half done."""
        for acknowledged in scene.acknowledgements:
            scene.expected |= acknowledged
        pool = scene.open()
        with Pool.attach(scene.name) as fresh:
            assert_sound(fresh, scene.expected, at_most_also=scene.doubtful)
        again = dict(zip(scene.doubtful, pool.intern_many(scene.doubtful).tolist(), strict=True))
        assert all(again.get(value, ref) == ref for value, ref in scene.expected.items()), "an acknowledged ref has changed"
        scene.expected |= again
        with Pool.attach(scene.name) as fresh:
            assert_sound(fresh, scene.expected)

    def clean_up(self, scene: Scene) -> None:
        """Remove the pool, as its users would."""
        scene.open().close()


@dataclass
class Tally:
    """What was tried of an operation: `survivors_s` has the survivor's time of each kill point, at its last try."""

    survivors_s: list[float] = field(default_factory=list)
    stores: int = 0
    calls: int = 0
    rollbacks: int = 0
    rollforwards: int = 0
    retried: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def points(self) -> int:
        return len(self.survivors_s)

    @property
    def median_s(self) -> float:
        return statistics.median(self.survivors_s)

    @property
    def worst_s(self) -> float:
        return max(self.survivors_s)


class KillPoints:
    """Tries operations on pools of names that nobody else has; `report` hears of every violation, and may raise it."""

    def __init__(self, files: OwnFiles, report: Callable[[Exception], None]) -> None:
        self._files = files
        self._report = report
        self._serial = count()

    def each(self, operation: Operation, tally: Tally, stride: int = 1) -> Iterator[None]:
        """Kill the operation at every step (or every `stride`-th), at last after all. Gives control back after each kill."""
        memory_size = self._try(operation, 0, Tally())[1]  # when nobody is killed before the end
        for at in count(1, stride):
            try:
                step, size = self._try(operation, at, tally)
                most = memory_size + operation.slack
                assert size <= most, f"takes {size} bytes of memory, and {memory_size} if nobody is killed"
            except Exception as error:  # noqa: BLE001 - whatever it is, the survivor met it
                error.add_note(f"{operation.name}, killed before step {at}")
                tally.violations.append(f"{operation.name}, step {at}: {error}")
                self._files.remove()  # or the next step would be blamed for them
                self._report(error)
                step = Step(0)
            yield
            if step is None:
                return
            tally.stores += step.place != 0
            tally.calls += step.place == 0

    def _try(self, operation: Operation, at: int, tally: Tally) -> tuple[Step | None, int]:
        """The step before which the process was killed, if it had that many, and the memory the pool has at the end."""
        for attempt in range(TRIES):
            tally.retried += attempt > 0
            with Scene(f"{self._files.prefix}-{next(self._serial)}", operation.options) as scene:
                step = self._kill_and_judge(operation, scene, at)
            if scene.survivor_s <= SURVIVOR_LIMIT_S:
                break
        tally.survivors_s.append(scene.survivor_s)
        tally.rollbacks += scene.rollbacks
        tally.rollforwards += scene.rollforwards
        assert scene.survivor_s <= SURVIVOR_LIMIT_S, f"the survivor took {scene.survivor_s:.3f} s, {TRIES} times"
        return step, scene.memory_size

    def _kill_and_judge(self, operation: Operation, scene: Scene, at: int) -> Step | None:
        operation.arrange(scene)
        step = kill(scene, operation.prepare, operation.act, at)
        with deadline():
            start = perf_counter()
            operation.survive(scene)
            scene.survivor_s = perf_counter() - start
            operation.judge(scene)
        stats = scene.open().stats()
        scene.memory_size, scene.rollbacks, scene.rollforwards = (
            stats.memory_size, stats.total.rollbacks, stats.total.rollforwards
        )
        operation.clean_up(scene)
        left = self._files.now()
        assert not left, f"left behind: {left}"
        return step


@contextmanager
def deadline(seconds: float = DEADLINE_S) -> Iterator[None]:
    """Raises TimeoutError where this process waits for a lock for ever: a signal's handler can, for no wait masks it for good."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"blocked for {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def kill(
    scene: Scene, prepare: Callable[[Scene, Connection], object], act: Callable[[Scene, Connection], object], at: int
) -> Step | None:
    """Fork a process that acts, and kill it before its at-th step; the step, or None if it was killed after the last."""
    with Tracee(lambda connection: act(scene, connection), lambda connection: prepare(scene, connection)) as child:
        tracer = Tracer(child)
        while tracer.advance() and len(tracer.steps) != at:
            pass
        child.kill()
        with suppress(ChildDiedError):
            while True:
                scene.acknowledgements.append(child.hear())
        return tracer.steps[-1] if len(tracer.steps) == at else None
