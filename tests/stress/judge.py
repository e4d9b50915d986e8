"""Holds a pool against all that was acknowledged while a storm went over it, and measures how long anyone was kept waiting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shmpool import Pool, PoolError, TopicRef
from shmpool.arena import record_size
from tests.stress.member import number_of, value_of
from tests.stress.traces import ALSO, INTERNED, Acks

Spans = list[tuple[int, int]]

NOTES: Final = 20
SAMPLE: Final = 5000
KINDS: Final = ("lost", "duplicate", "corrupt", "blocked", "ended")


@dataclass
class Verdict:
    """Violations by kind, and what they were. A sound pool has none.

    lost: acknowledged, and not there. duplicate: a value with two refs, a ref with two values. corrupt: what `check` finds, a ref
    that does not resolve, bytes that nobody wrote. blocked: a living process that did not go on. ended: one that ended by itself.
    """

    lost: int = 0
    duplicate: int = 0
    corrupt: int = 0
    blocked: int = 0
    ended: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, note: object, count: int = 1) -> None:
        setattr(self, kind, getattr(self, kind) + count)
        if count and len(self.notes) < NOTES:
            self.notes.append(f"{kind}: {note}")

    def kinds(self) -> set[str]:
        return {kind for kind in KINDS if getattr(self, kind)}

    @property
    def total(self) -> int:
        return sum(getattr(self, kind) for kind in KINDS)


def judge(pool: Pool, acks: Acks, verdict: Verdict, most_unacknowledged: int) -> None:
    """Add what is wrong with a pool that nobody else uses any more."""
    refs = check_identity(acks[acks["kind"] <= ALSO], verdict)
    try:
        check_contents(pool, refs, verdict, most_unacknowledged)
        check_refs(pool, refs, verdict)
    except Exception as error:  # noqa: BLE001 - whatever a damaged pool does to its reader
        verdict.add("corrupt", repr(error))


def check_contents(pool: Pool, refs: dict[int, int], verdict: Verdict, most_unacknowledged: int) -> None:
    """The pool contradicts itself nowhere, and holds what was acknowledged and little else."""
    for finding in pool.check():
        verdict.add("corrupt", finding)
    held = {value: int(ref) for ref, value in pool}
    topic_count, used_size = len(pool), pool.stats().arena_used_size
    for number, ref in refs.items():
        if held.get(value_of(number)) != ref:
            verdict.add("lost", f"value {number} has ref {ref}, and the pool holds {held.get(value_of(number))}")
    strange = [value for value in held if number_of(value) is None]
    if strange:
        verdict.add("corrupt", f"nobody interned {strange[:3]}", len(strange))
    if topic_count != len(held):
        verdict.add("corrupt", f"the pool says that it holds {topic_count} topics, and holds {len(held)}")
    if used_size != sum(record_size(len(value)) for value in held):
        verdict.add("corrupt", f"{used_size} bytes of the arena are used, and its records do not explain them")
    if len(held) > len(refs) + most_unacknowledged:
        verdict.add("corrupt", f"{len(held)} values, {len(refs)} acknowledged: the killed cannot have had all the others in hand")


def check_identity(acks: Acks, verdict: Verdict) -> dict[int, int]:
    """One ref for each number and one number for each ref. Returns refs by number."""
    numbers, first, inverse = np.unique(acks["number"], return_index=True, return_inverse=True)
    refs = acks["ref"][first]
    differs = acks["ref"] != refs[inverse]
    for ack in acks[differs][:3]:
        verdict.add("duplicate", f"value {ack['number']} has ref {ack['ref']} and another")
    verdict.add("duplicate", "and more", max(int(differs.sum()) - 3, 0))
    shared = len(refs) - len(np.unique(refs))
    verdict.add("duplicate", f"{shared} refs have more than one value", shared)
    return dict(zip(numbers.tolist(), refs.tolist(), strict=True))


def check_refs(pool: Pool, refs: dict[int, int], verdict: Verdict) -> None:
    """Values are found by their bytes and by their refs: all, or an even sample of many (whose bytes have been read above)."""
    for number, ref in list(refs.items())[:: 1 + len(refs) // SAMPLE]:
        value = value_of(number)
        try:
            if pool.lookup(value) != ref:
                verdict.add("lost", f"value {number} with ref {ref} is not found")
            elif pool.resolve(TopicRef(ref)) != value:
                verdict.add("corrupt", f"ref {ref} of value {number} resolves to other bytes")
        except PoolError as error:
            verdict.add("corrupt", error)


def stalls_ns(acks: Acks, stopped: Spans, kind: int = INTERNED) -> NDArray[np.int64]:
    """How long operations took that were completed, less the time for which anybody was stopped on purpose meanwhile: the
    operation's own process, or the holder of the lock that it waited for."""
    acks = acks[acks["kind"] == kind]
    began, ended = acks["began_ns"].astype(np.int64), acks["ended_ns"].astype(np.int64)
    if not stopped:
        return ended - began
    edges = np.array(stopped, np.float64).reshape(-1)
    elapsed = np.cumsum(np.diff(edges, prepend=edges[0]) * (np.arange(len(edges)) % 2))
    base = float(began.min(initial=0))

    def stopped_before(times: NDArray[np.int64]) -> NDArray[np.float64]:
        before: NDArray[np.float64] = np.interp(times - base, edges - base, elapsed)
        return before

    return (ended - began - (stopped_before(ended) - stopped_before(began))).astype(np.int64)
