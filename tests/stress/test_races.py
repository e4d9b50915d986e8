"""However create, attach, close, unlink and death meet: one live pool to a name, no attached orphan, no stranger's file lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shmpool import lifetime
from shmpool.attachment import take_row
from shmpool.lock import ByteLock, Semaphores, open_semaphores
from shmpool.segment import Segment
from tests.stress.races import ViolationError, race

PROCESSES = 4
ROUNDS = 400


def test_one_name_never_has_two_live_pools_or_an_attached_orphan_and_no_strangers_file_is_touched(
    pool_name: str, seed: int
) -> None:
    tally = race(pool_name, processes=PROCESSES, rounds=ROUNDS, seed=seed)

    assert {"open", "attach", "create", "unlink", "squat", "killed", "in company"} <= tally.keys(), tally
    assert not Path(f"/dev/shm/shmpool.{pool_name}").exists()


# ---- controls: each must be caught


def join_without_looking_again(segment: Segment, gate: ByteLock, semaphores: Semaphores) -> lifetime.Seat:
    row = take_row(segment, segment.fd)
    return lifetime.Seat(segment, gate, row, open_semaphores(segment.pool_name, segment.constants.pool_id, 1, semaphores))


def unlink_whoever_is_attached(segment: Segment) -> None:
    lifetime.remove(segment)


def remove_whatever_has_the_name(name: str) -> None:
    Path(f"/dev/shm/shmpool.{name}").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("function", "broken"),
    [
        pytest.param("_join", join_without_looking_again, id="attach-without-looking-again"),
        pytest.param("_unlink", unlink_whoever_is_attached, id="unlink-though-in-use"),
        pytest.param("unlink", remove_whatever_has_the_name, id="unlink-by-name-alone"),
    ],
)
def test_control_that_skips_a_check_is_caught(
    pool_name: str, seed: int, monkeypatch: pytest.MonkeyPatch, function: str, broken: Callable[..., object]
) -> None:
    monkeypatch.setattr(lifetime, function, broken)

    with pytest.raises(ViolationError, match=r"orphan|two live pools|another's file|attached twice"):
        race(pool_name, processes=PROCESSES, rounds=20 * ROUNDS, seed=seed)

    Path(f"/dev/shm/shmpool.{pool_name}").unlink(missing_ok=True)
