"""What a run of the demo shows: figures taken at both ends and from every process, and the verdict on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from shmpool import Pool
from tools.exchange import Direction, Exchange
from tools.traffic import payload_size

NAMED_PROBLEMS: Final = 5  # of one sort; the rest are counted


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction. `lost` did not arrive whole, whatever the reason; bytes are of payloads that did."""

    sent: int
    delivered: int
    duplicates: int
    wrong: int
    lost: int
    delivered_size: int
    duration_s: float
    messages_per_s: float


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """The pool at the end. `uses` are names that came by as bytes, in a call or in a message, and became a ref."""

    policy: str
    topics: int
    holds: int
    hits: int
    misses: int
    inserts: int
    names_size: int  # of all topics, each once
    process_count: int  # attached: each would hold its own copy
    uses: int
    uses_size: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class Result:
    """`problems` says in words what failed; empty means passed. `pool` is None with interning off."""

    passed: bool
    problems: list[str]
    seed: int
    shards: int
    interning: bool
    seen: str
    topics: int
    outside_dialled: int
    outside_connected: int
    outwards: Flow
    inwards: Flow
    processes_compared: int
    refs_equal: bool | None
    pool: PoolFigures | None
    drops: dict[str, int]
    restarts: int


async def judge(exchange: Exchange, shard_count: int, restarts: int) -> Result:
    """Ask every process what it knows, compare, and sum up."""
    names = [topic.encode() for topic in exchange.topics]
    reports = await exchange.node.report(names)
    interning = exchange.node.pool is not None
    problems = [*_exchange_problems(exchange), *_ownership_problems(exchange, reports)]
    problems += [exchange.ended_early] if exchange.ended_early else []
    dialled = exchange.ready["dialled"]
    problems += [f"the outside peer dialled {dialled} addresses, not one"] if dialled != 1 else []
    differing = _differing(exchange, names, reports) if interning else []
    problems += _shortened("process computed another ref for", differing)
    connected = set(exchange.ready["peers"])
    missing = {report["peer_id"] for report in reports if report["joined"]} - connected
    problems += _shortened("the outside peer is not connected to shard", sorted(missing))
    drops = _drops(exchange, reports)
    problems += [f"{count} dropped: {where}" for where, count in drops.items() if count]
    return Result(
        passed=not problems,
        problems=problems,
        seed=exchange.seed,
        shards=shard_count,
        interning=interning,
        seen="private" if exchange.node.info.seen_pool is None else "shared",
        topics=len(names),
        outside_dialled=dialled,
        outside_connected=len(connected),
        outwards=_flow(exchange.outwards),
        inwards=_flow(exchange.inwards),
        processes_compared=len(reports) + 1,
        refs_equal=not differing if interning else None,
        pool=_pool_figures(exchange.node.pool) if exchange.node.pool is not None else None,
        drops=drops,
        restarts=restarts,
    )


def tabulate(result: Result) -> Table:
    """The figures for people."""
    table = Table(title=_title(result), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("", "sent", "delivered", "duplicates", "lost", "MB", "seconds", "msg/s"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, flow in (("to outside peer", result.outwards), ("from outside peer", result.inwards)):
        table.add_row(
            name, f"{flow.sent:,}", f"{flow.delivered:,}", f"{flow.duplicates:,}", f"{flow.lost:,}",
            f"{flow.delivered_size / 1e6:.1f}", f"{flow.duration_s:.1f}", f"{flow.messages_per_s:,.0f}",
        )
    return table


def describe(result: Result) -> list[str]:
    """What the table has no column for, one fact a line; the verdict last."""
    connected = f"{result.outside_connected} of {result.shards} shards"
    lines = [f"The outside peer dialled {result.outside_dialled} address and is connected to {connected}."]
    if result.pool is None:
        lines.append(
            f"Interning is off: no refs exist to compare. By name, {result.processes_compared} processes agree on "
            f"{result.topics} topics and their owners."
        )
    else:
        pool = result.pool
        same = "the same ref" if result.refs_equal else "DIFFERENT REFS"
        lines += [
            f"{result.processes_compared} processes computed {same} for {result.topics} topics.",
            (f"Pool, {pool.policy}: {pool.topics} topics, {pool.holds:,} holds, {pool.hits:,} hits, {pool.misses:,} misses, "
            f"{pool.inserts:,} inserts."),
            (f"Names: {pool.names_size:,} bytes held once, instead of a copy in each of {pool.process_count} processes: "
            f"{pool.process_count * pool.names_size:,}."),
            f"{pool.uses:,} names came by as bytes, {pool.uses_size:,} bytes in all, and became refs.",
        ]
    return [*lines, *(f"FAILED: {problem}" for problem in result.problems), "passed" if result.passed else "failed"]


def _exchange_problems(exchange: Exchange) -> list[str]:
    problems = []
    for name, direction in (("fleet to outside peer", exchange.outwards), ("outside peer to fleet", exchange.inwards)):
        lost = [direction.planned[number] for number in sorted(direction.missing)]
        problems += _shortened(f"{name}: lost", [f"message {message.number} ({message.topic})" for message in lost])
        if direction.wrong:
            problems.append(f"{name}: {direction.wrong} messages arrived with other bytes than were sent")
    return problems


def _ownership_problems(exchange: Exchange, reports: list[dict[str, Any]]) -> list[str]:
    """Every topic must be joined by the shard that this process computes as its owner, and by no other."""
    joined = sorted((topic, report["shard"]) for report in reports for topic in report["joined"])
    expected = sorted((topic, exchange.node.owner(topic.encode())) for topic in exchange.topics)
    wrong = sorted(set(joined) ^ set(expected))
    return _shortened("owner not agreed on", [f"{topic} (shard {shard})" for topic, shard in wrong])


def _differing(exchange: Exchange, names: list[bytes], reports: list[dict[str, Any]]) -> list[str]:
    own = [exchange.node.ref(name) for name in names]
    return [
        f"shard {report['shard']}: {name.decode()}"
        for report in reports
        for name, ours, theirs in zip(names, own, report["refs"], strict=True)
        if ours is None or ours != theirs
    ]


def _drops(exchange: Exchange, reports: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "by shards, to peers": sum(report["host"]["dropped"] for report in reports),
        "by shards, on the bus": sum(report["bus"]["dropped"] for report in reports),
        "by the application": exchange.node.dropped,
        "refused by shards": exchange.outwards.refused,
    }


def _pool_figures(pool: Pool) -> PoolFigures:
    stats = pool.stats()
    topics = pool.top(stats.size)
    return PoolFigures(
        policy=str(pool.policy),
        topics=stats.size,
        holds=stats.holds,
        hits=stats.hits,
        misses=stats.misses,
        inserts=stats.inserts,
        names_size=sum(len(topic.value) for topic in topics),
        process_count=len({process.pid for process in stats.processes if process.live}),
        uses=sum(topic.uses for topic in topics),
        uses_size=sum(topic.uses * len(topic.value) for topic in topics),
        memory_size=stats.memory_size,
    )


def _flow(direction: Direction) -> Flow:
    duration_s = max(direction.ended - direction.started, 0.0)
    return Flow(
        sent=direction.sent - direction.refused,
        delivered=len(direction.delivered),
        duplicates=direction.duplicates,
        wrong=direction.wrong,
        lost=len(direction.missing),
        delivered_size=sum(payload_size(direction.planned[number]) for number in direction.delivered),
        duration_s=round(duration_s, 3),
        messages_per_s=round(len(direction.delivered) / duration_s, 1) if duration_s else 0.0,
    )


def _shortened(what: str, items: list[str]) -> list[str]:
    more = [f"{what} {len(items) - NAMED_PROBLEMS} more"] if len(items) > NAMED_PROBLEMS else []
    return [f"{what} {item}" for item in items[:NAMED_PROBLEMS]] + more


def _title(result: Result) -> str:
    interning = "on" if result.interning else "off"
    return f"{result.shards} shards, {result.topics} topics, interning {interning}, seen {result.seen}, seed {result.seed}"
