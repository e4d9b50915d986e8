"""`python -m worker`: run a fleet until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

import trio

from shmpool import Policy, PoolError
from worker.errors import WorkerError, leaves
from worker.supervisor import FleetOptions, run_fleet


def main() -> int:
    options = parse(sys.argv[1:])
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    status = 0
    try:
        trio.run(run, options)
    except* (WorkerError, PoolError, OSError) as errors:
        for error in leaves(errors):
            print(f"worker: {error}", file=sys.stderr)
        status = 1
    return status


def parse(arguments: list[str]) -> FleetOptions:
    """The options of a command line. Exits with status 2 and a sentence for one that will not do."""
    parser = argparse.ArgumentParser(
        prog="python -m worker",
        description="Run a fleet of gossip shards that share one intern pool, until SIGINT or SIGTERM.",
    )
    parser.add_argument("--shards", type=int, default=os.cpu_count() or 1, help="default: one per core (%(default)s)")
    parser.add_argument("--listen", default="/ip4/127.0.0.1/tcp/0", metavar="MULTIADDR",
                        help="shard i listens on port + i; port 0 takes free ones. Default %(default)s")
    parser.add_argument("--peer", action="append", default=[], dest="peers", metavar="MULTIADDR",
                        help="dialled by every shard, and again when it is lost; ends in /p2p/<peer id>; repeatable")
    parser.add_argument("--topics", type=Path, metavar="FILE", help="one topic a line, joined by the shard that owns it")
    parser.add_argument("--interning", choices=["on", "off"], default="on", help="default %(default)s")
    parser.add_argument("--policy", default="forever",
                        help="when a topic leaves the pool: forever, refcount, lru:TOPICS or ttl:SECONDS. Default %(default)s")
    parser.add_argument("--seen", choices=["shared", "private"], default="private",
                        help="shared: a shard that was restarted knows which messages were delivered. Default %(default)s")
    parser.add_argument("--pool", metavar="NAME", help="of the pool to create; default: a new one")
    parser.add_argument("--seed", type=int, help="of the shards' keys and random choices; default: fresh ones")
    options = parser.parse_args(arguments)
    try:
        topics = options.topics.read_text(encoding="utf-8").splitlines() if options.topics else []
        return FleetOptions(
            shard_count=options.shards,
            listen=options.listen,
            peers=tuple(options.peers),
            topics=tuple(dict.fromkeys(topic for topic in topics if topic)),
            interning=options.interning == "on",
            policy=Policy.parse(options.policy),
            seen=options.seen,
            pool_name=options.pool,
            seed=options.seed,
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))


async def run(options: FleetOptions) -> None:
    async with trio.open_nursery() as nursery:
        # Before anything is spawned: from here on neither signal can leave a pool or a process behind.
        nursery.start_soon(_cancel_on_signal, nursery.cancel_scope)
        async with run_fleet(options) as fleet:
            print(f"fleet {fleet.directory}" + (f", pool {fleet.info.pool}" if fleet.info.pool else ""))
            for address in fleet.addresses:
                print(f"listening on {address}")
            sys.stdout.flush()
            await trio.sleep_forever()


async def _cancel_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


if __name__ == "__main__":
    sys.exit(main())
