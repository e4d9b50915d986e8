"""The operations that change a pool, as something to be killed in."""

from __future__ import annotations

import os
import signal
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

from shmpool import Pool, gc
from shmpool.layout import PAGE_SIZE
from tests.model import assert_sound, refuses
from tests.stress.kill_points import SURVIVOR, Operation, Scene, kill
from tests.unit.inside import store_of
from tests.unit.own_files import OwnFiles, abandon
from tests.unit.processes import Forked

LONG_SIZE = 100
IN_A_CHUNK = 136  # values of LONG_SIZE that fit into one chunk of 16 KiB
IN_A_TABLE = 384  # records of a table of 512 slots, which grows at the next
OTHER = b"other"
KNOWN = [b"known %d" % number for number in range(3)]


def numbered(count: int, size: int = 0) -> list[bytes]:
    return [(b"%d" % number).rjust(size) for number in range(count)]


class Insert(Operation):
    """Inserts `values`, one by one or as a batch, into a pool that has `known`."""

    def __init__(self, name: str, known: list[bytes], values: list[bytes], *, batch: bool = False, **options: Any) -> None:
        super().__init__(name, **options)
        self.known = known
        self.values = values
        self.batch = batch

    def arrange(self, scene: Scene) -> None:
        scene.know(scene.open(), self.known)
        scene.doubtful = self.values

    def act(self, scene: Scene, connection: Connection) -> None:
        pool = scene.open()
        if self.batch:
            connection.send(dict(zip(self.values, pool.intern_many(self.values).tolist(), strict=True)))
        else:
            for value in self.values:
                connection.send({value: pool.intern(value)})


class Recover(Insert):
    """Inserts another value, the first to want the lock after a process was killed before the `first`-th step of `base`."""

    def __init__(self, base: Insert, first: int) -> None:
        super().__init__(f"recovery from {base.name}, killed at step {first}", base.known, [OTHER], **base.options)
        self.base = base
        self.first = first

    def arrange(self, scene: Scene) -> None:
        super().arrange(scene)
        scene.doubtful = [*self.base.values, OTHER]
        kill(scene, self.base.prepare, self.base.act, self.first)


def recoveries(base: Insert, files: OwnFiles) -> list[Recover]:
    """One for each kill of `base` that leaves a stripe's token taken and its lock to be taken over."""
    found: list[Recover] = []
    for first in count(1):
        with Scene(f"{files.prefix}-first", base.options) as scene:
            base.arrange(scene)
            if kill(scene, base.prepare, base.act, first) is None:
                return found
            if any(semaphore.value == 0 for semaphore in store_of(scene.open()).seat.semaphores):
                found.append(Recover(base, first))
    raise AssertionError


class Create(Operation):
    def act(self, scene: Scene, connection: Connection) -> None:
        scene.kept.append(scene.create())


class CreateThenGc(Create):
    """The dead creator's name is wanted by nobody: gc removes whatever there is."""

    def survive(self, scene: Scene) -> None:
        gc()

    def judge(self, scene: Scene) -> None:
        assert gc() == []
        scene.expected = {}
        super().judge(scene)


class Attach(Operation):
    """Attaches to a pool that others use."""

    def arrange(self, scene: Scene) -> None:
        scene.know(scene.open(), KNOWN)

    def act(self, scene: Scene, connection: Connection) -> None:
        scene.kept.append(Pool.attach(scene.name))


class AttachToAbandoned(Operation):
    """Attaches to a pool whose last processes were killed and have left no clean row: so it folds one's counts."""

    def arrange(self, scene: Scene) -> None:
        with Forked(lambda connection: insert_and_die(scene, connection)) as child:
            scene.expected = child.hear()
            child.wait()

    def act(self, scene: Scene, connection: Connection) -> None:
        scene.kept.append(Pool.attach(scene.name))

    def judge(self, scene: Scene) -> None:
        pool = scene.open()
        total = pool.stats().total
        assert (total.inserts, total.hits) == (len(KNOWN) + 1, 2 * len(KNOWN)), f"counted {total}"
        assert [topic.uses for topic in pool.top(9)] == [3] * len(KNOWN) + [1]
        super().judge(scene)


def insert_and_die(scene: Scene, connection: Connection) -> None:
    pool = scene.create()
    other = Pool.attach(scene.name)
    scene.know(pool, KNOWN)
    for value in KNOWN * 2:
        pool.intern(value)
    pool.flush()
    other.flush()
    connection.send(scene.expected)
    os.kill(os.getpid(), signal.SIGKILL)


class Flush(Operation):
    """Publishes what it has counted, into a ledger that has no memory yet."""

    def arrange(self, scene: Scene) -> None:
        scene.know(scene.open(), KNOWN)

    def prepare(self, scene: Scene, connection: Connection) -> None:
        for value in KNOWN:
            scene.open().intern(value)

    def act(self, scene: Scene, connection: Connection) -> None:
        scene.open().flush()
        connection.send({})

    def judge(self, scene: Scene) -> None:
        pool = scene.open()
        uses = [topic.uses for topic in pool.top(9) if topic.value != SURVIVOR]
        total = pool.stats().total
        assert set(uses) <= ({2} if scene.acknowledgements else {1, 2}), f"counted {uses}"
        assert total.hits == len(KNOWN) or (total.hits == 0 and not scene.acknowledgements), f"counted {total}"
        super().judge(scene)


class Close(Operation):
    """Detaches from a pool that others use."""

    def arrange(self, scene: Scene) -> None:
        scene.know(scene.open(), KNOWN)

    def prepare(self, scene: Scene, connection: Connection) -> None:
        connection.send({b"mine": scene.open().intern(b"mine")})

    def act(self, scene: Scene, connection: Connection) -> None:
        scene.open().close()
        connection.send({})

    def judge(self, scene: Scene) -> None:
        inserts = scene.open().stats().total.inserts - len(KNOWN) - 1
        assert inserts in ((1,) if len(scene.acknowledgements) == 2 else (0, 1)), f"counted {inserts} inserts of the dead"
        super().judge(scene)


class Alone(Operation):
    """Something that a process does to a pool that nobody else uses, which may then be gone or empty."""

    values = KNOWN

    def prepare(self, scene: Scene, connection: Connection) -> None:
        pool = scene.create()
        scene.pool = pool
        scene.know(pool, self.values)
        connection.send(scene.expected)

    def act(self, scene: Scene, connection: Connection) -> None:
        self.drop(scene)
        connection.send(None)

    def drop(self, scene: Scene) -> None:
        """Drop every topic of the pool."""
        raise NotImplementedError

    def judge(self, scene: Scene) -> None:
        before, dropped = scene.acknowledgements[0], len(scene.acknowledgements) == 2
        scene.acknowledgements = []
        pool = scene.open()
        if dropped or pool.lookup(self.values[0]) is None:
            assert all(refuses(pool, ref) for ref in before.values())
            assert_sound(pool, scene.expected)
        else:
            scene.expected |= before
        super().judge(scene)


class CloseLast(Alone):
    """Detaches as the last one."""

    def drop(self, scene: Scene) -> None:
        scene.open().close()


class Reset(Alone):
    values = numbered(100)  # in all stripes
    slack = PAGE_SIZE + (16 << 10)  # where the topics are there still, what comes next may need another chunk

    def drop(self, scene: Scene) -> None:
        scene.open().reset()


class Unlink(Alone):
    """Removes a persistent pool that nobody uses."""

    def __init__(self, name: str) -> None:
        super().__init__(name, persistent=True)

    def arrange(self, scene: Scene) -> None:
        with scene.create() as pool:
            scene.know(pool, KNOWN)
        scene.acknowledgements.append(scene.expected)
        scene.expected = {}

    def prepare(self, scene: Scene, connection: Connection) -> None:
        """The pool is there already."""

    def drop(self, scene: Scene) -> None:
        Pool.unlink(scene.name)

    def clean_up(self, scene: Scene) -> None:
        super().clean_up(scene)
        Pool.unlink(scene.name)


class Gc(Operation):
    """Removes an abandoned pool and semaphores without one, beside a pool in use and a persistent one in none."""

    def arrange(self, scene: Scene) -> None:
        scene.know(scene.open(), KNOWN)
        with Pool.create(f"{scene.name}-kept", persistent=True, **self.options) as pool:
            pool.intern(b"kept")
        abandon(f"{scene.name}-abandoned", **self.options)
        abandon(f"{scene.name}-nameless", **self.options)
        os.unlink(f"/dev/shm/shmpool.{scene.name}-nameless")

    def act(self, scene: Scene, connection: Connection) -> None:
        gc()
        connection.send({})

    def judge(self, scene: Scene) -> None:
        assert not (gc() and scene.acknowledgements), "an acknowledged gc had left something"
        assert gc() == []
        super().judge(scene)

    def clean_up(self, scene: Scene) -> None:
        super().clean_up(scene)
        with Pool.attach(f"{scene.name}-kept") as pool:
            assert_sound(pool, {b"kept": pool.intern(b"kept")})
        Pool.unlink(f"{scene.name}-kept")


INSERT = Insert("insert", KNOWN, [b"new"])
FIRST = Insert("first insert", [], [b"new"])
TAKE_CHUNK = Insert("insert that takes a chunk", numbered(IN_A_CHUNK, LONG_SIZE), [b"new".rjust(LONG_SIZE)])
GROW = Insert("insert that grows a table", numbered(IN_A_TABLE), [b"new"])
BATCH = Insert("batch", KNOWN, numbered(5), batch=True)
LONG_BATCH = Insert("batch that grows and takes a chunk", numbered(380, 24), numbered(14, LONG_SIZE), batch=True)
STRIPES = Insert("batch over four stripes", [], numbered(40), batch=True, stripe_count=4)
INSERTS = [INSERT, FIRST, TAKE_CHUNK, GROW, BATCH, LONG_BATCH]

OPERATIONS: list[Operation] = [
    Create("create", stripe_count=2),
    CreateThenGc("create, then gc", stripe_count=2),
    Attach("attach"),
    AttachToAbandoned("attach, folding a dead row", process_count=2),
    *INSERTS,
    Flush("flush"),
    Close("close"),
    CloseLast("close as the last one"),
    Reset("reset", stripe_count=16),
    Unlink("unlink"),
    Gc("gc"),
]
