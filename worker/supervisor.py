"""The parent of a fleet: creates the pool, spawns the shards, restarts one that dies, and leaves nothing behind.

Guarantees:
- Shards are separate processes, spawned (never forked): no thread, loop or lock of the supervisor is in them.
- A shard that dies is started again with its own key and port; the others do not notice but for their bus connection.
- What a process that was killed held in a pool is given back: at once for a shard, within `REAP_INTERVAL_S` for others.
- When the block ends, however it ends, every shard has ended, and the pool and the socket directory are gone (the pool
  as soon as applications that are still attached to it have closed it).
- When the supervisor itself is killed, the shards see the end of their standard input and end as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import trio

from shmpool import Policy, Pool, PoolError
from worker.errors import FleetError
from worker.fleet import FleetInfo, ShardConfig
from worker.ownership import MAX_SHARD_COUNT
from worker.params import GossipSubParams
from worker.seen import MAX_ID_SIZE

log = logging.getLogger(__name__)

START_DEADLINE_S: Final = 60.0
STOP_DEADLINE_S: Final = 10.0
FIRST_RESTART_S: Final = 0.1
LAST_RESTART_S: Final = 5.0
FAILED_START_LIMIT: Final = 3  # of a shard that has never been ready

LAST_PORT: Final = 65535

REAP_INTERVAL_S: Final = 10.0
SEEN_STRIPES: Final = 4  # a shard locks one for some 30 us a message: more would stand idle
SEEN_COUNT: Final = 1 << 17  # ids shared at once: those of 2 minutes at 1,000 messages a second, 16 MB of shared memory

_TCP_PORT: Final = re.compile(r"/tcp/(\d+)")
_PEER_ADDRESS: Final = re.compile(r"/.+/tcp/\d+/p2p/\w+")


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """`listen` is a multiaddr with a TCP port: shard i takes port + i, or any free one for port 0."""

    shard_count: int
    listen: str = "/ip4/127.0.0.1/tcp/0"
    peers: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    interning: bool = True
    policy: Policy = field(default_factory=Policy.forever)  # of the pool: when a topic leaves it
    seen: str = "private"  # or "shared": whether a shard remembers messages that another, or the one before it, has settled
    pool_name: str | None = None  # of the pool to create, and the start of its seen pool's; by default a new name
    seed: int | None = None  # of keys and of the routers' random choices; None takes fresh ones

    def __post_init__(self) -> None:
        """Raises `ValueError` for what no fleet can be made of."""
        if not 1 <= self.shard_count <= MAX_SHARD_COUNT:
            raise ValueError(f"{self.shard_count} shards; from 1 to {MAX_SHARD_COUNT} will do")
        if self.seen not in ("private", "shared"):
            raise ValueError(f"seen={self.seen!r} is neither 'private' nor 'shared'")
        if not self.interning and self.policy != Policy.forever():
            raise ValueError(f"the policy {self.policy} is one of the pool, and with interning off there is none")
        match = _TCP_PORT.search(self.listen)
        if match is None or int(match[1]) + self.shard_count > LAST_PORT + 1:
            raise ValueError(f"{self.listen}: need a multiaddr with a TCP port for each shard, such as /ip4/127.0.0.1/tcp/4001")
        for peer in self.peers:
            if not _PEER_ADDRESS.fullmatch(peer):
                raise ValueError(f"{peer}: need the multiaddr of a peer, such as /ip4/192.0.2.1/tcp/4001/p2p/16Uiu2...")

    def listen_of(self, index: int) -> str:
        """The multiaddr of shard `index`."""
        return _TCP_PORT.sub(lambda match: f"/tcp/{int(match[1]) + index if int(match[1]) else 0}", self.listen, count=1)


@dataclass(slots=True)
class Member:
    """One shard as its supervisor sees it. `addresses` is empty while it is not ready."""

    config: ShardConfig
    process: trio.Process | None = None
    addresses: list[str] = field(default_factory=list)
    restart_count: int = 0
    changed: trio.Event = field(default_factory=trio.Event)  # set and replaced when `addresses` changes

    def set_addresses(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self.changed.set()
        self.changed = trio.Event()


class Fleet:
    """A running fleet; made by `run_fleet`."""

    def __init__(self, directory: Path, info: FleetInfo, options: FleetOptions, pools: Sequence[Pool]) -> None:
        self.directory = directory
        self.info = info
        self._pools = pools
        self.members = [Member(_shard_config(index, directory, info, options)) for index in range(info.shard_count)]

    @property
    def addresses(self) -> list[str]:
        """Multiaddrs of all shards that are ready, in order of their index. Dialling any one of them is enough."""
        return [address for member in self.members for address in member.addresses]

    async def wait_ready(self) -> None:
        """Until every shard is ready (again)."""
        for member in self.members:
            while not member.addresses:
                await member.changed.wait()

    async def keep(self, member: Member) -> None:
        """Run a shard again and again until cancelled. Raises `FleetError` if it never becomes ready.

        One that was ready before is tried for ever, whatever keeps it from starting again: the others need not end for it.
        """
        failed_starts = 0
        was_ready = False
        while True:
            status = await self._run_once(member)
            was_ready = was_ready or bool(member.addresses)
            failed_starts = 0 if member.addresses else failed_starts + 1
            member.set_addresses([])
            if failed_starts >= FAILED_START_LIMIT and not was_ready:
                raise FleetError(f"shard {member.config.index} ended {failed_starts} times before it was ready ({status})")
            delay = min(FIRST_RESTART_S * 2**failed_starts, LAST_RESTART_S)
            log.warning("shard %d ended (%s); starting it again in %.1f s", member.config.index, status, delay)
            await trio.sleep(delay)
            member.restart_count += 1

    async def keep_reaped(self) -> None:
        """Until cancelled: nobody waits for an application that was killed, and what it held stays until somebody looks."""
        while True:
            await trio.sleep(REAP_INTERVAL_S)
            self.reap()

    def reap(self) -> None:
        """Give back what killed processes held. A pool that is too damaged for that is no reason to end the fleet."""
        for pool in self._pools:
            try:
                pool.reap()
            except PoolError as error:
                log.warning("what killed processes held in pool %s was not given back: %s", pool.name, error)

    async def _run_once(self, member: Member) -> str:
        """Returns how the process ended. Cancelled, stops it first."""
        process = await _spawn()
        member.process = process
        try:
            assert process.stdin is not None
            with _ignored_if_gone():
                await process.stdin.send_all(member.config.to_json().encode() + b"\n")
            addresses = []
            with trio.move_on_after(START_DEADLINE_S):
                addresses = await _read_ready(process)
            if addresses:
                # Its port from now on, so that peers and siblings find it after a restart where it was.
                member.config = replace(member.config, listen=addresses[0].partition("/p2p/")[0])
                member.set_addresses(addresses)
                await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                await _stop(process)
            self.reap()
        return _describe(process.returncode)


@asynccontextmanager
async def run_fleet(options: FleetOptions) -> AsyncIterator[Fleet]:
    """A fleet whose shards are all ready, for the block. Exceptions come in a group: `FleetError`, and as the pool does."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="fleet-", dir=os.environ.get("XDG_RUNTIME_DIR")))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        pool, seen = _create_pools(stack, options)
        info = FleetInfo(
            options.shard_count,
            pool=None if pool is None else pool.name,  # not `if pool`: an empty one is falsy
            seen_pool=None if seen is None else seen.name,
        )
        info.write(directory)
        fleet = Fleet(directory, info, options, [made for made in (pool, seen) if made is not None])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.keep_reaped)
            for member in fleet.members:
                nursery.start_soon(fleet.keep, member)
            try:
                with trio.fail_after(START_DEADLINE_S):
                    await fleet.wait_ready()
            except trio.TooSlowError:
                raise FleetError(f"the shards were not ready within {START_DEADLINE_S:g} s") from None
            yield fleet
            nursery.cancel_scope.cancel()


def _create_pools(stack: ExitStack, options: FleetOptions) -> tuple[Pool | None, Pool | None]:
    """Of topics and of message ids, as far as there are to be any."""
    name = options.pool_name or f"fleet-{os.getpid()}-{secrets.token_hex(4)}"
    pool = seen = None
    # Closed after the shards have ended: as the last to close them, the supervisor removes them.
    if options.interning:
        pool = stack.enter_context(Pool.create(name, policy=options.policy))
    if options.seen == "shared":
        seen = stack.enter_context(create_seen_pool(f"{name}-seen"))
    return pool, seen


def create_seen_pool(name: str) -> Pool:
    """A pool of message ids for `SharedSeen`, bounded in time, number and bytes."""
    return Pool.create(
        name,
        capacity=SEEN_COUNT,
        max_value_size=MAX_ID_SIZE,
        reserve=0,
        stripe_count=SEEN_STRIPES,
        policy=Policy.ttl(seconds=GossipSubParams().seen_ttl_s),
        cache_size=0,
    )


def _shard_config(index: int, directory: Path, info: FleetInfo, options: FleetOptions) -> ShardConfig:
    return ShardConfig(
        index=index,
        info=info,
        directory=os.fspath(directory),
        listen=options.listen_of(index),
        peers=options.peers,
        topics=options.topics,
        secret=_secret(options.seed, index).hex(),
        seed=None if options.seed is None else options.seed + index,
    )


def _secret(seed: int | None, index: int) -> bytes:
    if seed is None:
        return secrets.token_bytes(32)
    return hashlib.blake2b(f"shard {index} of seed {seed}".encode(), digest_size=32).digest()


async def _spawn() -> trio.Process:
    # The shard must import the same `worker` as this process, whatever its directory.
    path = os.pathsep.join(filter(None, [os.fspath(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return await trio.lowlevel.open_process(
        [sys.executable, "-m", "worker.shard"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


async def _read_ready(process: trio.Process) -> list[str]:
    """The addresses that a shard prints once it is ready; empty if it ended before."""
    assert process.stdout is not None
    data = b""
    while not data.endswith(b"\n"):
        more = await process.stdout.receive_some()
        if not more:
            return []
        data += more
    return [str(address) for address in json.loads(data)["addresses"]]


async def _stop(process: trio.Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with _ignored_if_gone():
        await process.stdin.send_all(b"stop\n")
    with trio.move_on_after(STOP_DEADLINE_S):
        await process.wait()
    if process.returncode is None:
        log.warning("a shard (pid %d) did not stop within %g s: killed", process.pid, STOP_DEADLINE_S)
        process.kill()
        await process.wait()
    await process.stdin.aclose()
    await process.stdout.aclose()


def _ignored_if_gone() -> contextlib.suppress:
    return contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError)


def _describe(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"
