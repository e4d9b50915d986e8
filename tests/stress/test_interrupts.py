"""An interrupted operation leaves no lock, token, descriptor, mapping, row or file behind, and can be done again.

Here at some instants of each operation, chosen at random; `tools/interrupts.py` tries every check point and thousands of signals.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict

import pytest

from tests.stress.alarms import Alarm
from tests.stress.interrupting_holds import SCENES
from tests.stress.stage import Stage
from tests.unit.interrupts import count_check_points, interrupted_at
from tests.unit.processes import in_child

POINTS = 8
SIGNALS = 12  # that come while code of the pool runs; of all that are sent, those that miss it prove nothing
TRIES = 400


def strike() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("operation", SCENES)
def test_operation_interrupted_at_a_check_point_leaves_nothing_behind(pool_name: str, rng: random.Random, operation: str) -> None:
    def play() -> int:
        with Stage(SCENES[operation](pool_name)) as stage:
            counted: list[int] = []
            stage.shoot(lambda act: counted.append(count_check_points(act)))
            for point in rng.sample(range(1, counted[0] + 1), min(POINTS, counted[0])):
                stage.about = f"interrupted at check point {point} of {counted[0]}"
                stage.shoot(lambda act, point=point: strike_at(point, act))  # type: ignore[misc]
            return counted[0]

    assert in_child(play) > 5


def strike_at(point: int, act: Callable[[], object]) -> None:
    try:
        interrupted_at(point, strike, act)
    except KeyboardInterrupt:
        return


@pytest.mark.parametrize("operation", SCENES)
def test_operation_interrupted_by_signals_leaves_nothing_behind(pool_name: str, rng: random.Random, operation: str) -> None:
    def play() -> dict[str, int]:
        scene = SCENES[operation](pool_name)
        with Stage(scene) as stage, Alarm(scene, rng) as alarm:
            for _ in range(3):
                stage.shoot(alarm.measure)
            while alarm.tally.inside < SIGNALS and alarm.tally.shots < TRIES:
                stage.about = f"interrupted by signal {alarm.tally.shots}"
                stage.shoot(alarm.interrupt)
            return asdict(alarm.tally)

    tally = in_child(play)

    assert tally["inside"] == SIGNALS, tally
