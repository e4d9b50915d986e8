"""Controls that must fail: a storm tells a pool that counts holds wrongly from the right one, or it would prove nothing."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable

import pytest

from shmpool import Policy, TopicRef, reuse
from shmpool.attachment import Attachment
from shmpool.held import Held
from shmpool.holding import HoldingStore
from shmpool.layout import PID
from shmpool.ledger import holds_of, row_word
from shmpool.segment import Segment
from tests.stress.rounds import Plan, run_round

ROUNDS = 4
KILLS = 30
PATIENCE_S = 5.0

replace = pytest.MonkeyPatch().setattr  # in the storm's processes only, where nothing has to be put back


def settle_by_ones_own_row() -> None:
    """A topic goes with the last hold of the process that gives it back, whoever else has one."""

    def own_holds_of(segment: Segment, column: int, epoch: int) -> list[tuple[int, int]]:
        words, own = segment.words, os.getpid()
        return [(row, count) for row, count in holds_of(segment, column, epoch) if words[row_word(segment, row) + PID] == own]

    replace(reuse, "holds_of", own_holds_of)


def give_the_last_hold_back_without_the_lock() -> None:
    def release(self: HoldingStore, ref: TopicRef) -> None:
        record = self._record_of(ref)
        self._give_back(self.constants.geometry.stripe_of(record.hash), ref)

    replace(HoldingStore, "_release", release)


def remember_across_a_fork() -> None:
    """A child goes on adding to what its parent held."""
    forget, settle = HoldingStore._forget, Attachment.settle  # noqa: SLF001
    forked_by = os.getpid()

    def keeping(self: HoldingStore) -> None:
        if os.getpid() == forked_by:
            forget(self)

    def settling(self: Attachment, row: int) -> None:
        settle(self, row)

    replace(HoldingStore, "_forget", keeping)
    replace(Attachment, "settle", settling)


def forget_what_is_given_back_by_its_ref_alone() -> None:
    """Through the entry that is left a hold is taken of a topic that went."""
    replace(Held, "drop", lambda self, ref, _: self.by_ref.pop(ref, None))


def reap_who_lives() -> None:
    def reap_row(self: HoldingStore, row: int) -> int:
        return 0 if row == self.attachment.row else self._reap_row(row)

    replace(HoldingStore, "_reap_if_gone", reap_row)


def take_over_the_dead_ones_holds() -> None:
    """Who gets a killed process's row does not give back what that one held."""

    def keep(self: HoldingStore) -> None:
        self._row_is_clean = True

    replace(HoldingStore, "_reap_own_row", keep)


@pytest.mark.parametrize(
    "sabotage",
    [
        settle_by_ones_own_row,
        give_the_last_hold_back_without_the_lock,
        remember_across_a_fork,
        forget_what_is_given_back_by_its_ref_alone,
        reap_who_lives,
        take_over_the_dead_ones_holds,
    ],
    ids=lambda sabotage: sabotage.__name__,
)
def test_a_storm_catches_holds_that_are_counted_wrongly(
    new_pool_name: Callable[[], str], rng: random.Random, sabotage: Callable[[], None]
) -> None:
    for _ in range(ROUNDS):
        plan = Plan(1, KILLS, patience_s=PATIENCE_S, sabotage=sabotage, policy=Policy.refcount())
        verdict = run_round(new_pool_name(), rng, plan).verdict
        if verdict.total:
            break

    assert verdict.total, "it was not caught"
    assert not re.search("TypeError|AttributeError|NameError", "".join(verdict.notes)), "the control itself is broken"
