"""Turns with more than one death: holds of processes that were killed before, and recovery that is killed in its turn."""

from __future__ import annotations

import os
import signal
from itertools import count
from multiprocessing.connection import Connection

from shmpool import Policy
from shmpool.layout import INTENT, PAGE_SIZE, STRIPE_WORDS, WORD_SIZE
from tests.stress.kill_points import Scene, kill
from tests.stress.lifecycles import Act, Turn, interns, stripes_of
from tests.unit.own_files import OwnFiles
from tests.unit.processes import Forked, wait_for_exit

OTHER = b"other"


def hold_until_killed(scene: Scene, connection: Connection, values: list[bytes]) -> None:
    connection.send({value: scene.open().intern(value) for value in values})
    connection.recv()


class AfterADeath(Turn):
    """Another process, which held `gone`, was killed: the operation gives its holds back, at its end if not before."""

    def __init__(
        self, name: str, act: Act, gone: list[bytes], changes: dict[bytes, int], *, takes_row: bool, held: list[bytes]
    ) -> None:
        super().__init__(name, Policy.refcount(), act, changes, held=held)
        self.gone, self.takes_row = gone, takes_row

    def arrange(self, scene: Scene) -> None:
        super().arrange(scene)
        child = Forked(lambda connection: hold_until_killed(scene, connection, self.gone))
        scene.children.append(child)
        scene.given |= {ref: value for value, ref in child.hear().items()}
        if self.takes_row:
            child.kill()

    def prepare(self, scene: Scene, connection: Connection) -> None:
        if not self.takes_row:  # this process has another row, as that one was living when it was forked
            os.kill(scene.children[0].pid, signal.SIGKILL)
            wait_for_exit(scene.children[0].pid)
        super().prepare(scene, connection)

    def settle(self, scene: Scene) -> None:
        if not self.takes_row:
            scene.children[0].wait()
        most = 0 if len(scene.acknowledgements) == 2 else 1
        super().settle(scene)
        for value in self.gone:
            low, high = scene.dead.get(value, (0, 0))
            scene.dead[value] = (low, high + most)


class Close(Turn):
    """Detaches with holds."""

    def __init__(self) -> None:
        values = [b"mine 1", b"mine 2", b"shared"]
        changes = dict.fromkeys(values, -1)
        super().__init__("close with holds", Policy.refcount(), closes, changes, held=[b"shared", b"held"], mine=values)


def closes(scene: Scene) -> dict[bytes, int]:
    scene.open().close()
    return {}


class Reset(Turn):
    """Drops every topic of a pool that nobody else uses, and with them its own holds."""

    slack = 2 * PAGE_SIZE + (16 << 10)  # where the topics were there still, what comes next may need another chunk

    def __init__(self) -> None:
        values = [b"mine %d" % number for number in range(40)]
        super().__init__("reset", Policy.refcount(), resets, dict.fromkeys(values, -1), mine=values, stripe_count=4)
        self.makes_room = True  # the survivor takes the dead one's row, and gives back what it finds there

    def arrange(self, scene: Scene) -> None:
        """The pool is the victim's own."""

    def prepare(self, scene: Scene, connection: Connection) -> None:
        scene.pool = scene.create()
        super().prepare(scene, connection)


def resets(scene: Scene) -> dict[bytes, int]:
    scene.open().reset()
    return {}


class Recover(Turn):
    """Interns another value, the first to want the lock after a process was killed before the `first`-th step of `base`."""

    def __init__(self, base: Turn, first: int) -> None:
        policy: Policy = base.options["policy"]
        super().__init__("", policy, interns(OTHER), {OTHER: 1})
        self.name = f"recovery from {base.name}, killed at step {first}"
        self.base, self.first = base, first
        self.options, self.clock = base.options, base.clock
        self.held, self.unheld, self.stays = base.held, base.unheld, base.stays
        self.makes_room = base.makes_room

    def arrange(self, scene: Scene) -> None:
        self.base.arrange(scene)
        kill(scene, self.base.prepare, self.base.act, self.first)
        self.base.settle(scene)
        # The next process takes the killed one's row, and may give back what it finds there.
        scene.dead = {value: (0, most) for value, (_, most) in scene.dead.items()}


def recoveries(base: Turn, files: OwnFiles) -> list[Recover]:
    """One for each kill of `base` that leaves an intent."""
    found: list[Recover] = []
    for first in count(1):
        with Scene(f"{files.prefix}-first", base.options) as scene:
            base.arrange(scene)
            if kill(scene, base.prepare, base.act, first) is None:
                return found
            stripes = stripes_of(scene.open())
            first_row = stripes.geometry.stripes_offset // WORD_SIZE
            rows = range(first_row, first_row + stripes.geometry.stripe_count * STRIPE_WORDS, STRIPE_WORDS)
            if any(stripes.segment.words[row + INTENT] for row in rows):
                found.append(Recover(base, first))
    raise AssertionError
