"""Processes that are killed, stopped or forked while they insert block nobody, lose nothing and leave nothing twice."""

from __future__ import annotations

import random

import pytest

from shmpool import Pool
from tests.model import assert_sound
from tests.stress.storm import BATCH, Storm, insert_for_ever, insert_some, is_writing, random_pause, value_of

KILLS = 60
VICTIMS = 3
STOP_S = 0.06  # three times what a waiter waits before it looks whether the lock's holder is dead
TRIES = 100


@pytest.mark.parametrize("stripe_count", [1, 2, 4, 16])
def test_killed_stopped_and_forked_inserters_block_nobody_and_lose_nothing(
    pool_name: str, rng: random.Random, stripe_count: int
) -> None:
    with Pool.create(pool_name, capacity=1 << 20, max_value_size=64, stripe_count=stripe_count) as pool:
        with Storm(pool, rng) as storm:
            survivor = storm.start(insert_for_ever)
            while storm.killed < KILLS:
                victims = [storm.start(insert_for_ever) for _ in range(VICTIMS)]
                rng.choice((strike_anywhere, strike_while_stopped, strike_in_the_middle))(storm, victims)
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
        assert len(pool) - len(refs) <= BATCH * storm.killed, "more was inserted than the killed can have had in hand"


def strike_anywhere(storm: Storm, victims: list[int]) -> None:
    """Kill them one by one at random instants."""
    for serial in victims:
        random_pause(storm.rng, 0.008)
        storm.kill(serial)


def strike_while_stopped(storm: Storm, victims: list[int]) -> None:
    """Stop one, perhaps inside a lock, while the others wait for it; kill them; it goes on, or is killed as it stands."""
    random_pause(storm.rng, 0.004)
    stopped = storm.rng.choice(victims)
    storm.stop(stopped)
    random_pause(storm.rng, STOP_S)
    for serial in victims:
        if serial != stopped:
            storm.kill(serial)
    if storm.rng.random() < 0.5:
        storm.go_on(stopped)
        random_pause(storm.rng, 0.004)
    storm.kill(stopped)


def strike_in_the_middle(storm: Storm, victims: list[int]) -> None:
    """Stop all at random instants until one stands between the first and the last store of an insert; kill them there.

    A kill at any instant hits these few microseconds once in a hundred times.
    """
    for _ in range(TRIES):
        random_pause(storm.rng, 0.0005)
        for serial in victims:
            storm.stop(serial)
        random_pause(storm.rng, 0.0005)  # the survivor finishes what it is in the middle of
        if is_writing(storm.pool):
            break
        for serial in victims:
            storm.go_on(serial)
    for serial in victims:
        storm.kill(serial)
