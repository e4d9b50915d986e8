"""How a storm strikes: at random instants, and at those that matter and that a random instant seldom hits."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from tests.stress.storm import Sight, Storm

STOP_S: Final = 0.06  # three times what a waiter waits before it looks whether the lock's holder is dead
_TRIES: Final = 60

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
    aim(storm, victims, lambda sight: bool(sight.stripes))


def writer(storm: Storm, victims: list[int]) -> None:
    """Kill one between the first and the last store of an insert: some microseconds, of which few are hit at random."""
    aim(storm, victims, lambda sight: sight.writing)


def while_stopped(storm: Storm, victims: list[int]) -> None:
    """Stop one, inside a lock most likely, while others wait for it and are killed; it goes on, or is killed as it stands."""
    stopped = aim_stop(storm, victims, lambda sight: bool(sight.stripes))
    pause(storm.rng, STOP_S)
    for pid in victims:
        if pid != stopped:
            storm.kill(pid)
    if storm.rng.random() < 0.5:
        storm.go_on(stopped)
        pause(storm.rng, 0.004)
    storm.kill(stopped)


STRIKES: Final[tuple[Strike, ...]] = (anywhere, all_at_once, holder, holder, writer, writer, while_stopped)


def strike(storm: Storm, victims: list[int]) -> None:
    storm.rng.choice(STRIKES)(storm, victims)


def aim(storm: Storm, victims: list[int], is_wanted: Callable[[Sight], bool]) -> None:
    storm.kill(aim_stop(storm, victims, is_wanted))


def aim_stop(storm: Storm, victims: list[int], is_wanted: Callable[[Sight], bool]) -> int:
    """Stop all at random instants until one stands where it is wanted, and leave it so; or any, if none ever does."""
    storm.traces.press(on=True)
    for _ in range(_TRIES):
        pause(storm.rng, 0.0005)
        storm.stop(*victims)
        wanted = [pid for pid in victims if is_wanted(storm.look_at(pid))]
        chosen = (wanted or victims)[0]
        for pid in victims:
            if pid != chosen or not wanted:
                storm.go_on(pid)
        if wanted:
            break
    else:
        storm.stop(chosen)
    storm.traces.press(on=False)
    return chosen


def pause(rng: random.Random, most_s: float) -> None:
    """Let the others run: what comes next is to meet them at a random instant. Nothing depends on how long it is."""
    time.sleep(rng.uniform(0, most_s))
