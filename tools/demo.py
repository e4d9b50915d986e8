"""The main job, end to end: a fleet of shards with one intern pool, and a stock GossipSub peer that knows one of them.

Messages go both ways over real TCP, noise and yamux, on the topics of Ethereum's consensus layer. Each end recomputes
every payload that it hears. Exit status 0 if every message arrived whole and every process has the same ref for every
topic, 1 if not, 2 if it could not be run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from shmpool import Policy, PoolError
from tools.exchange import WINDOW, Exchange, ExchangeError
from tools.outside_peer import Orders
from tools.traffic import consensus_topics
from tools.verdict import Result, describe, judge, tabulate
from worker.errors import WorkerError, leaves
from worker.node import open_node
from worker.supervisor import Fleet, FleetOptions, run_fleet

MESSAGE_COUNT: Final = 4000  # each way
TOPIC_LIMIT: Final = 2000  # GossipSubParams.max_subscriptions_per_peer, with room to spare
STOP_DEADLINE_S: Final = 10.0
PLAIN_WIDTH: Final = 100  # of the table in a file or a pipe
ROOT: Final = Path(__file__).parents[1]


def main() -> int:
    options = parse(sys.argv[1:])
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    status = 2
    try:
        result = trio.run(run, options, read_topics(options.topics))
    except* (WorkerError, ExchangeError, PoolError, OSError, ValueError) as errors:
        for error in leaves(errors):
            print(f"demo: {error}", file=sys.stderr)
    except* KeyboardInterrupt:
        status = 130
    else:
        if options.json:
            print(json.dumps(asdict(result), indent=2))
        else:
            show(result)
        status = 0 if result.passed else 1
    return status


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=positive, default=os.cpu_count() or 1, help="default: one per core (%(default)s)")
    parser.add_argument("--messages", type=positive, default=MESSAGE_COUNT, help="each way; default %(default)s")
    parser.add_argument("--topics", type=Path, metavar="FILE", help="one topic a line; default: Ethereum's consensus topics")
    parser.add_argument("--interning", choices=["on", "off"], default="on", help="default %(default)s")
    parser.add_argument("--policy", default="forever", help="of the pool: forever, refcount, lru:TOPICS or ttl:SECONDS")
    parser.add_argument("--seen", choices=["shared", "private"], default="private", help="default %(default)s")
    parser.add_argument("--seed", type=int, help="of everything random; default: a new one, shown with the figures")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    return options


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def read_topics(path: Path | None) -> list[str]:
    """Distinct topics, in order. Raises `ValueError` or `OSError` in words for the user."""
    if path is None:
        return consensus_topics()
    topics = list(dict.fromkeys(path.read_text(encoding="utf-8").splitlines()))
    topics = [topic for topic in topics if topic]
    if not 1 <= len(topics) <= TOPIC_LIMIT:
        raise ValueError(f"{path} holds {len(topics)} topics; from 1 to {TOPIC_LIMIT} will do")
    return topics


async def run(options: argparse.Namespace, topics: list[str]) -> Result:
    fleet_options = FleetOptions(
        options.shards,
        interning=options.interning == "on",
        policy=Policy.parse(options.policy),
        seen=options.seen,
        seed=options.seed,
    )
    async with run_fleet(fleet_options) as fleet, open_node(fleet.directory) as node:
        for topic in topics:
            await node.subscribe(topic.encode())
        async with outside_peer(fleet, topics, options) as outside:
            exchange = Exchange(node, outside, topics, options.messages, options.seed)
            with progress_of(2 * options.messages) as progress:
                await exchange.run(progress)
            return await judge(exchange, options.shards, sum(member.restart_count for member in fleet.members))


@asynccontextmanager
async def outside_peer(fleet: Fleet, topics: list[str], options: argparse.Namespace) -> AsyncIterator[trio.Process]:
    """The stock peer, in a process of its own. It is told the address of one shard."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tools.outside_peer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
    )
    assert process.stdin is not None
    try:
        orders = Orders(fleet.addresses[0], topics, options.messages, options.seed, WINDOW)
        await process.stdin.send_all(json.dumps(asdict(orders)).encode() + b"\n")
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()  # which ends it
            with trio.move_on_after(STOP_DEADLINE_S):
                await process.wait()
            process.kill()
            await process.wait()


@contextmanager
def progress_of(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line each tenth elsewhere; on stderr, so that stdout holds only the figures."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lines_of_progress(total)
        return
    columns = (TextColumn("messages"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def lines_of_progress(total: int) -> Callable[[int], None]:
    said = 0

    def progress(done: int) -> None:
        nonlocal said
        if done * 10 // total > said:
            said = done * 10 // total
            print(f"{done:,} of {total:,} messages", file=sys.stderr, flush=True)

    return progress


def show(result: Result) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    console.print(tabulate(result))
    for line in describe(result):
        console.print(line, highlight=False, soft_wrap=True, markup=False, emoji=False)  # "lru:100:" is no pictogram


if __name__ == "__main__":
    sys.exit(main())
