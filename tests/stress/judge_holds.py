"""Holds a pool whose topics go against what the processes of a storm have said: those that live hold it, and nobody else."""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import groupby
from operator import itemgetter
from typing import Final

import numpy as np

from shmpool import Pool, PoolError, TopicRef
from tests.stress.judge import Verdict
from tests.stress.member import number_of, value_of
from tests.stress.traces import ALSO, HELD, KEPT, Acks

Kept = dict[tuple[int, int], tuple[int, int]]  # of a process and a number: the ref, and how often it is held
_TTL_PATIENCE: Final = 2  # times the time after which what nobody holds is gone


def judge_living(pool: Pool, acks: Acks, verdict: Verdict, living: set[int]) -> None:
    """Add what is wrong while those that live stand still, and nobody else uses the pool."""
    check_refs_for_ever(acks, verdict)
    check_held_together(acks, verdict)
    kept: Kept = {
        (int(ack["pid"]), int(ack["number"])): (int(ack["ref"]), int(ack["ended_ns"]))
        for ack in acks[acks["kind"] == KEPT]
        if int(ack["pid"]) in living
    }
    try:
        pool.reap()
        check_kept(pool, kept, verdict)
        check_only_kept(pool, kept, verdict)
    except Exception as error:  # noqa: BLE001 - whatever a damaged pool does to its reader
        verdict.add("corrupt", repr(error))


def judge_deserted(pool: Pool, verdict: Verdict) -> None:
    """Add what is wrong once everybody was killed: their holds come back, and nothing else is left of them."""
    try:
        pool.reap()
        check_only_kept(pool, {}, verdict)
    except Exception as error:  # noqa: BLE001
        verdict.add("corrupt", repr(error))


def check_refs_for_ever(acks: Acks, verdict: Verdict) -> None:
    """A ref is of one number, however many topics have gone since."""
    given = acks[acks["kind"] <= ALSO]
    pairs = np.unique(given[["ref", "number"]])
    refs, counts = np.unique(pairs["ref"], return_counts=True)
    for ref in refs[counts > 1][:3]:
        verdict.add("duplicate", f"ref {ref} was given for values {pairs['number'][pairs['ref'] == ref][:3]}")
    verdict.add("duplicate", "and more", max(int((counts > 1).sum()) - 3, 0))


def check_held_together(acks: Acks, verdict: Verdict) -> None:
    """Two processes that hold one number at one instant hold it by one ref."""
    held = np.sort(acks[acks["kind"] == HELD], order=["number", "began_ns"])
    spans = held[["number", "ref", "began_ns", "ended_ns"]].tolist()
    for number, group in groupby(spans, itemgetter(0)):
        ends: dict[int, int] = {}  # of a ref: until when somebody held it
        for _, ref, began, ended in group:
            ends = {other: end for other, end in ends.items() if end > began}
            if ends.keys() - {ref}:
                verdict.add("duplicate", f"value {number} was held as {ref} and as {sorted(ends.keys() - {ref})} at one instant")
            ends[ref] = max(ended, ends.get(ref, 0))


def check_kept(pool: Pool, kept: Kept, verdict: Verdict) -> None:
    """What a living process holds is there, by the ref and with the bytes that it was given, and held as often as it says."""
    for (pid, number), (ref, count) in kept.items():
        value = value_of(number)
        try:
            found, bytes_found = pool.lookup(value), pool.resolve(TopicRef(ref))
            counts = [holder.count for holder in pool.holders(TopicRef(ref)) if (holder.pid, holder.live) == (pid, True)]
        except PoolError as error:
            verdict.add("lost", f"value {number}, held by {pid} as {ref}: {error}")
            continue
        if found != ref or bytes_found != value:
            verdict.add("lost", f"value {number}, held by {pid} as {ref}, is found as {found}, and its bytes as {bytes_found!r}")
        if counts != [count]:
            verdict.add("lost", f"value {number} is held {count} times by {pid}, and the pool says {counts}")


def check_only_kept(pool: Pool, kept: Kept, verdict: Verdict) -> None:
    """Nothing else is held; what nobody holds is there only as far as the policy keeps it; and nothing is there twice."""
    if pool.policy.ttl_ns:
        time.sleep(_TTL_PATIENCE * pool.policy.ttl_ns / 1e9)
    for finding in pool.check():
        verdict.add("corrupt", finding)
    holds, expected = pool.stats().holds, sum(count for _, count in kept.values())
    if holds != expected:
        verdict.add("corrupt", f"{holds} holds, and the living have {expected}")
    refs_of: defaultdict[bytes, list[int]] = defaultdict(list)
    for ref, value in pool:
        refs_of[value].append(int(ref))
    for value, refs in refs_of.items():
        if len(refs) > 1:
            verdict.add("duplicate", f"{value!r} is there as {refs}")
    left = refs_of.keys() - {value_of(number) for _, number in kept}
    may_be_left = pool.policy.max_unheld if pool.policy.name == "lru" else 0
    if len(left) > may_be_left:
        note = f"nobody holds {len(left)} topics that are there, like {sorted(left)[:3]}"
        verdict.add("corrupt", note, len(left) - may_be_left)
    strange = [value for value in refs_of if number_of(value) is None]
    if strange:
        verdict.add("corrupt", f"nobody interned {strange[:3]}", len(strange))
