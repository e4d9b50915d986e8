"""Processes that are killed, stopped or forked while they insert block nobody, lose nothing and leave nothing twice."""

from __future__ import annotations

import random

import pytest

from shmpool import Pool
from tests.model import assert_sound
from tests.stress.storm import BATCH, Storm, insert_for_ever, insert_some, random_pause, value_of

KILLS = 55
VICTIMS = 3
STOP_S = 0.06  # three times what a waiter waits before it looks whether the lock's holder is dead


@pytest.mark.parametrize("stripe_count", [1, 2, 4, 16])
def test_killed_stopped_and_forked_inserters_block_nobody_and_lose_nothing(
    pool_name: str, rng: random.Random, stripe_count: int
) -> None:
    with Pool.create(pool_name, capacity=1 << 20, max_value_size=64, stripe_count=stripe_count) as pool:
        with Storm(pool, rng) as storm:
            survivor = storm.start(insert_for_ever)
            victims = [storm.start(insert_for_ever) for _ in range(VICTIMS)]
            for _ in range(KILLS):
                strike(storm, victims)
            storm.wait_for_more_of(survivor)
            insert_some(storm, 0, 50)  # this process can, too
            for serial in list(storm.pids):
                storm.kill(serial)
            storm.wait_for_orphans()
            given = list(storm.acknowledged())
            assert storm.complaints_made() == ""

        refs = {number: ref for _, number, ref in given}
        assert len({(number, ref) for _, number, ref in given}) == len(refs), "a value had two refs"
        assert len(set(refs.values())) == len(refs), "two values had one ref"
        expected = {value_of(number): ref for number, ref in refs.items()}
        unacknowledged = map(value_of, range(max(refs) + 2 * BATCH + 50))
        assert_sound(pool, expected, at_most_also=unacknowledged)
        assert len(pool) - len(refs) <= BATCH * (KILLS + VICTIMS + 2)


def strike(storm: Storm, victims: list[int]) -> None:
    """Kill one victim at a random instant, now and then while another one or itself is stopped, and start the next."""
    rng = storm.rng
    random_pause(rng, 0.008)
    doomed = victims.pop(rng.randrange(len(victims)))
    if rng.random() < 0.3:
        stopped = rng.choice([doomed, *victims])
        storm.stop(stopped)
        random_pause(rng, STOP_S)
        storm.kill(doomed)
        if stopped != doomed:
            storm.go_on(stopped)
    else:
        storm.kill(doomed)
    victims.append(storm.start(insert_for_ever))

