"""Controls that must fail: the storms tell a pool that is built wrongly from the right one, or they would prove nothing.

Each wrong pool undergoes what the right one does, and is caught at one of the steps of a single insert. None has to be lucky.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from signal import SIGKILL, SIGSTOP, Signals

import pytest

from tests.stress import breaks
from tests.stress.directed import Ordeal, undergo

LEAST_STEPS = 10  # of an insert: the turnstile, the byte, intent, record, slot, used bytes, count, intent, the byte again

# A wrong pool blocks for ever, or is robbed as soon as somebody's wait times out: long enough for that, and no test waits longer.
PATIENCE_S = 1.5
STOP_S = 1.0

# An insert that happens to take a new chunk has other steps than the one before: one in hundreds. Then the step that matters may
# be passed over.
PASSES = 3


@pytest.mark.parametrize("strike", [SIGKILL, SIGSTOP])
def test_an_insert_struck_at_any_step_blocks_nobody_and_loses_nothing(
    pool_name: str, rng: random.Random, strike: Signals
) -> None:
    verdict, steps = undergo(pool_name, rng, Ordeal(strike))

    assert not verdict.total, "\n".join(verdict.notes)
    assert steps >= LEAST_STEPS


@pytest.mark.parametrize(
    ("sabotage", "strike", "symptom"),
    [
        (breaks.steal_on_time_out, SIGSTOP, {"lost", "duplicate", "corrupt", "ended"}),
        (breaks.own_by_pid, SIGKILL, {"blocked"}),
        (breaks.publish_slot_first, SIGKILL, {"corrupt"}),
        (breaks.pack_words, SIGKILL, {"ended", "corrupt"}),
        (breaks.map_lock_description, SIGKILL, {"blocked"}),
        (breaks.retry_interrupted_waits, SIGKILL, {"blocked"}),
    ],
    ids=lambda parameter: getattr(parameter, "__name__", ""),
)
def test_a_pool_built_wrongly_is_caught(
    pool_name: str, rng: random.Random, sabotage: Callable[[], None], strike: Signals, symptom: set[str]
) -> None:
    for _ in range(PASSES):
        verdict, _ = undergo(pool_name, rng, Ordeal(strike, sabotage, PATIENCE_S, STOP_S))
        if verdict.total:
            break

    assert verdict.kinds() & symptom, "\n".join(verdict.notes) or "it was not caught"
