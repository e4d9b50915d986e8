"""Strikes at every step of an insert, one after the other: what a random instant hits once in a thousand is hit for certain.

In each episode one process inserts by itself, so that its steps are always the same, and is struck at one of them. It has a
child, which outlives it. Then another, whom a timer interrupts all the time, inserts into the same stripe.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Final

import numpy as np

from shmpool import Pool
from tests.stress.breaks import PackedWords
from tests.stress.judge import Verdict, judge
from tests.stress.member import BATCH, NUMBERS, Member
from tests.stress.sight import state_of
from tests.stress.storm import PATIENCE_S, BlockedError, EndedError, Storm
from tests.stress.strikes import STOP_S
from tests.stress.traces import INSERT, Acks
from tests.unit.faults import Faults, install

TIMER_S: Final = 0.002  # a tenth of what a waiter waits before it looks whether the lock's holder is dead
STRUCK: Final = (b"T", b"Z", b"X", b"")  # stopped, or dead


@dataclass(frozen=True)
class Ordeal:
    """How to strike, SIGKILL or SIGSTOP, and whom. With SIGSTOP the struck process goes on when others did, or after `stop_s`."""

    strike: signal.Signals
    sabotage: Callable[[], None] | None = None
    patience_s: float = PATIENCE_S
    stop_s: float = STOP_S


def undergo(name: str, rng: random.Random, ordeal: Ordeal) -> tuple[Verdict, int]:
    """Strike at every step until an insert has no more, or something is wrong. Returns the verdict and the steps struck at."""
    verdict = Verdict()
    acks: list[Acks] = []
    with Pool.create(name, capacity=1 << 16, max_value_size=64, stripe_count=1) as pool:
        for step in count(1):
            with Storm(pool, rng, ordeal.patience_s, ordeal.sabotage) as storm:
                struck = go_through(storm, step, ordeal, verdict)
                acks.append(storm.traces.acknowledged())
            if not verdict.total:  # else the pool may be locked for good
                judge(pool, np.concatenate(acks), verdict, 2 * BATCH * step)
            if verdict.total or not struck:
                return verdict, step - 1
    raise AssertionError


def go_through(storm: Storm, step: int, ordeal: Ordeal, verdict: Verdict) -> bool:
    struck = True
    try:
        struck = strike_at(storm, step, ordeal)
    except BlockedError as error:
        verdict.add("blocked", f"struck at step {step}: {error}")
    except EndedError as error:
        verdict.add("ended", f"struck at step {step}: {error}")
    storm.end()
    if storm.traces.has_complaints():
        verdict.add("ended", storm.traces.complaints())
    return struck


def strike_at(storm: Storm, step: int, ordeal: Ordeal) -> bool:
    """One episode; False if the insert had fewer steps."""
    survivor = storm.start(insert_among_signals)
    storm.wait_for_announcements(1)
    victim = storm.start(lambda member: insert_once(member, step, ordeal.strike))
    storm.wait_for_announcements(2)  # of the victim and its child
    struck = wait_for_strike(storm, victim)
    storm.traces.mode = INSERT
    if struck and ordeal.strike == signal.SIGSTOP:
        let_others_try(storm, victim, survivor, ordeal)
    elif struck:
        storm.kill(victim)  # it is dead, and only to be buried
    storm.wait_for_more_of(survivor)
    return struck


def let_others_try(storm: Storm, stopped: int, survivor: int, ordeal: Ordeal) -> None:
    with suppress(BlockedError):
        storm.wait_for_more_of(survivor, 1, ordeal.stop_s)
    storm.go_on(stopped)
    if wait_for_strike(storm, stopped):
        raise EndedError(f"process {stopped} went on and came to no end")


def wait_for_strike(storm: Storm, pid: int) -> bool:
    """Wait until a process was struck (True) or has completed its insert (False)."""
    deadline = time.monotonic() + storm.patience_s
    while time.monotonic() < deadline:
        if storm.is_announced():
            return False
        if state_of(pid) in STRUCK:
            return True
        time.sleep(0.0005)
    raise BlockedError(f"process {pid} is alive and did not insert for {storm.patience_s} s")


# What the processes do


def insert_among_signals(member: Member) -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, TIMER_S, TIMER_S)
    while not member.is_abandoned(0.0005):
        if member.storm.traces.mode == INSERT:
            member.intern([fresh_number(member)])


def insert_once(member: Member, step: int, strike: signal.Signals) -> None:
    faults = install(Faults(step, lambda: os.kill(os.getpid(), strike)))
    PackedWords.strike_inside = faults.step
    member.attach_afresh()
    if os.fork() == 0:
        member.storm.traces.register()
        member.storm.announce()
        member.is_abandoned()
        os._exit(0)
    faults.arm()
    member.intern([fresh_number(member)])
    member.storm.announce()
    member.is_abandoned()


def fresh_number(member: Member) -> int:
    return member.rng.randrange(1 << 20, NUMBERS)
