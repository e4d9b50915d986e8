"""How a storm strikes: at random instants, and at those that matter and that a random instant seldom hits."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from tests.stress.sight import Sight, look_at
from tests.stress.storm import Storm
from tests.stress.traces import ATTACH, CALM, COMPILED, INSERT

STOP_S: Final = 0.06  # three times what a waiter waits before it looks whether the lock's holder is dead
_TRIES: Final = 30

Strike = Callable[[Storm, list[int]], None]


def anywhere(storm: Storm, victims: list[int]) -> None:
    """Kill them running, one by one at random instants."""
    for pid in victims:
        pause(storm.rng, 0.006)
        storm.kill(pid)


def all_at_once(storm: Storm, victims: list[int]) -> None:
    """Stop all at one instant, holder and waiters alike, and kill them as they stand."""
    pause(storm.rng, 0.004)
    storm.stop(*victims)
    for pid in victims:
        storm.kill(pid)


def holder(storm: Storm, victims: list[int]) -> None:
    """Kill one that holds a stripe's lock."""
    storm.kill(aim(storm, victims, INSERT, lambda sight: sight.stripe))


def writer(storm: Storm, victims: list[int]) -> None:
    """Kill one between the first and the last store of an insert: some microseconds in plain Python, which few strikes at random
    would hit, and a tenth of one in C."""
    plain = [pid for pid in victims if not storm.traces.cell(pid)[COMPILED]]
    storm.kill(aim(storm, plain or victims, INSERT, lambda sight: sight.writing))


def gatekeeper(storm: Storm, victims: list[int]) -> None:
    """Kill one that is just attaching or leaving."""
    storm.kill(aim(storm, victims, ATTACH, lambda sight: sight.gate))


def while_stopped(storm: Storm, victims: list[int]) -> None:
    """Stop one, inside a lock most likely, while others wait for it and are killed; it goes on, or is killed as it stands."""
    stopped = aim(storm, victims, INSERT, lambda sight: sight.stripe)
    pause(storm.rng, STOP_S)
    for pid in victims:
        if pid != stopped:
            storm.kill(pid)
    if storm.rng.random() < 0.5:
        storm.go_on(stopped)
        pause(storm.rng, 0.004)
    storm.kill(stopped)


STRIKES: Final[tuple[Strike, ...]] = (anywhere, all_at_once, holder, holder, writer, writer, gatekeeper, while_stopped)


def strike(storm: Storm, victims: list[int]) -> None:
    storm.rng.choice(STRIKES)(storm, victims)


def aim(storm: Storm, victims: list[int], mode: int, is_wanted: Callable[[Sight], bool]) -> int:
    """Stop all at random instants until one stands where it is wanted, and leave it so; or any, if none ever does."""
    storm.traces.mode = mode
    for _ in range(_TRIES):
        pause(storm.rng, 0.002)
        storm.stop(*victims)
        wanted = [pid for pid in victims if is_wanted(look_at(storm.pool, pid))]
        chosen = (wanted or victims)[0]
        for pid in victims:
            if pid != chosen or not wanted:
                storm.go_on(pid)
        if wanted:
            break
    else:
        storm.stop(chosen)
    storm.traces.mode = CALM
    return chosen


def pause(rng: random.Random, most_s: float) -> None:
    """Let the others run: what comes next is to meet them at a random instant. Nothing depends on how long it is."""
    time.sleep(rng.uniform(0, most_s))
