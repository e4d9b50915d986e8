"""One round of a storm: a fresh pool, a number of kills, and the judgement."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shmpool import Policy, Pool
from shmpool.layout import GROWTHS, ROLLBACKS, ROLLFORWARDS, STRIPE_WORDS, WORD_SIZE
from tests.stress.holder import Holder
from tests.stress.judge import Verdict, judge, stalls_ns
from tests.stress.judge_holds import judge_deserted, judge_living
from tests.stress.member import BATCH, Member
from tests.stress.storm import PATIENCE_S, BlockedError, EndedError, Kills, Storm
from tests.stress.strikes import Strike, strike
from tests.stress.traces import ALSO, ATTACHED, ATTACHES, CALM, GIVEN, KEPT, REST, TAKEOVERS, WAITS, Acks
from tests.unit.inside import store_of

FORKED, AFRESH = 0.3, 0.7  # shares of new processes that another one forks, and that attach by themselves
FOREVER = Policy.forever()
RESTING = 0.8  # of the times that processes start, when the others rest meanwhile: that is faster


@dataclass(frozen=True)
class Plan:
    """What a round is to be."""

    stripe_count: int
    kills: int
    processes: int = 4
    strike: Strike = strike
    patience_s: float = PATIENCE_S
    sabotage: Callable[[], None] | None = None
    policy: Policy = FOREVER


@dataclass
class Outcome:
    """What became of it. Stalls in nanoseconds, one for each operation that was completed."""

    verdict: Verdict = field(default_factory=Verdict)
    kills: Kills = field(default_factory=Kills)
    stops: int = 0
    forks: int = 0
    attaches: int = 0
    acknowledged: int = 0
    given: int = 0
    kept: int = 0
    topics: int = 0
    waits: int = 0
    takeovers: int = 0
    rollbacks: int = 0
    rollforwards: int = 0
    growths: int = 0
    stalls: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    give_stalls: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    attach_stalls: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def run_round(name: str, rng: random.Random, plan: Plan, on_kills: Callable[[int], object] = bool) -> Outcome:
    """Let a storm go over a new pool; `on_kills` hears how many there were since it last did."""
    outcome = Outcome()
    kind: type[Member] = Holder if plan.policy.counts_holds else Member
    with (
        Pool.create(name, capacity=1 << 20, max_value_size=64, stripe_count=plan.stripe_count, policy=plan.policy) as pool,
        Storm(pool, rng, plan.patience_s, plan.sabotage, kind) as storm,
    ):
        try:
            rage(storm, plan, on_kills)
            if plan.policy.counts_holds:
                storm.halt()
        except BlockedError as error:
            outcome.verdict.add("blocked", error)
        except EndedError as error:
            outcome.verdict.add("ended", error)
        else:
            if plan.policy.counts_holds:
                judge_living(pool, storm.traces.acknowledged(), outcome.verdict, set(storm.members))
        storm.end()
        if storm.traces.has_complaints():
            outcome.verdict.add("ended", storm.traces.complaints())
        acks = storm.traces.acknowledged()
        if plan.policy.counts_holds:
            judge_deserted(pool, outcome.verdict)
        else:
            judge(pool, acks, outcome.verdict, BATCH * len(storm.pids))
        outcome.stalls = stalls_ns(acks, storm.stopped_ns)
        outcome.attach_stalls = stalls_ns(acks, storm.stopped_ns, ATTACHED)
        outcome.give_stalls = stalls_ns(acks, storm.stopped_ns, GIVEN)
        count(outcome, storm, acks)
    return outcome


def rage(storm: Storm, plan: Plan, on_kills: Callable[[int], object]) -> None:
    """One process survives to the end; the others are killed again and again."""
    survivor = storm.start()
    storm.wait_for_announcements(1)
    while storm.kills.total < plan.kills:
        before = storm.kills.total
        fill(storm, plan.processes)
        plan.strike(storm, [pid for pid in storm.members if pid != survivor])
        on_kills(storm.kills.total - before)
    for pid in storm.members:
        storm.wait_for_more_of(pid)


def fill(storm: Storm, processes: int) -> None:
    missing = processes - len(storm.members)
    storm.traces.mode = REST if storm.rng.random() < RESTING else CALM
    for _ in range(missing):
        if storm.rng.random() < FORKED:
            storm.permit_fork()
        else:
            storm.start(afresh=storm.rng.random() < AFRESH)
    storm.wait_for_announcements(missing)
    storm.traces.mode = CALM


def count(outcome: Outcome, storm: Storm, acks: Acks) -> None:
    segment = store_of(storm.pool).segment
    geometry = segment.constants.geometry
    row = geometry.stripes_offset // WORD_SIZE

    def of_stripes(field: int) -> int:
        return sum(segment.words[row + field : row + geometry.stripe_count * STRIPE_WORDS : STRIPE_WORDS])

    outcome.kills, outcome.stops, outcome.forks = storm.kills, storm.stops, storm.forks
    outcome.attaches, outcome.waits, outcome.takeovers = map(storm.sum_of, (ATTACHES, WAITS, TAKEOVERS))
    outcome.rollbacks, outcome.rollforwards, outcome.growths = map(of_stripes, (ROLLBACKS, ROLLFORWARDS, GROWTHS))
    kinds = acks["kind"]
    outcome.acknowledged = int((kinds <= ALSO).sum())
    outcome.given, outcome.kept = int((kinds == GIVEN).sum()), int((kinds == KEPT).sum())
    outcome.topics = len(np.unique(acks["ref"][kinds <= ALSO])) if storm.pool.policy.counts_holds else len(storm.pool)
