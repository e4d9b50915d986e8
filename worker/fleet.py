"""What the processes of one fleet agree on: where its sockets are, how many shards it has, how topics are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from worker.bus import check_directory
from worker.errors import BusError
from worker.frames import NAMES, REFS, Codec
from worker.params import GossipSubParams
from worker.seen import SeenCache, SharedSeen
from worker.topics import BytesTopics, PoolTopics, Topics

if TYPE_CHECKING:
    from shmpool import Pool

INFO_FILE: Final = "fleet.json"
FLUSH_INTERVAL_S: Final = 1.0
SEEN_CACHE_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class FleetInfo:
    """What an application needs to reach a fleet; lies in the fleet's directory.

    `pool` names topics and is None with interning off; `seen_pool` is of message ids, and None where each shard has its own.
    """

    shard_count: int
    pool: str | None
    seen_pool: str | None = None

    def write(self, directory: Path) -> None:
        (directory / INFO_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, directory: Path) -> FleetInfo:
        """Raises `BusError` if `directory` is no fleet's, or another user can enter it."""
        try:
            check_directory(directory)
            return cls(**json.loads((directory / INFO_FILE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise BusError(f"{directory} is not the directory of a running fleet: {error}") from error


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """What the supervisor tells a shard, as one line of JSON on its standard input."""

    index: int
    info: FleetInfo
    directory: str
    listen: str  # multiaddr
    peers: tuple[str, ...]  # multiaddrs that every shard dials
    topics: tuple[str, ...]  # joined from the start by the shard that owns each
    secret: str  # of the peer's key, in hex: 32 bytes. On a pipe, as the command line and environment can be read
    seed: int | None  # of the router's random choices

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ShardConfig:
        fields = json.loads(text)
        return cls(**fields | {
            "info": FleetInfo(**fields["info"]),
            "peers": tuple(fields["peers"]),
            "topics": tuple(fields["topics"]),
        })


@dataclass(frozen=True, slots=True)
class Naming:
    """How topics are keyed in this process and on the bus. Any: the key type is decided by an option, at run time."""

    topics: Topics[Any]
    codec: Codec[Any]
    pool: Pool | None  # attached; None with interning off

    async def keep_counters_public(self) -> None:
        """Publish this process's counters of the pool every `FLUSH_INTERVAL_S`, until cancelled: a process that only finds
        what it has found before publishes nothing by itself."""
        while self.pool is not None:
            await trio.sleep(FLUSH_INTERVAL_S)
            self.pool.flush()


@contextmanager
def naming(info: FleetInfo) -> Iterator[Naming]:
    """Attach to the fleet's pool for the block, or name topics by their bytes when it has none."""
    if info.pool is None:
        yield Naming(BytesTopics(), NAMES, None)
        return
    # Imported here: with interning off a shard needs no shared memory at all.
    from shmpool import Pool

    with Pool.attach(info.pool) as pool:
        yield Naming(PoolTopics(pool), REFS, pool)


@contextmanager
def shared_seen(info: FleetInfo) -> Iterator[SharedSeen | None]:
    """What the fleet's shards have seen together, attached for the block; None where each has its own."""
    if info.seen_pool is None:
        yield None
        return
    from shmpool import Pool

    params = GossipSubParams()
    # Next to no private cache: an id is put in once and looked up when it is new.
    with Pool.attach(info.seen_pool, cache_size=SEEN_CACHE_SIZE) as pool:
        yield SharedSeen(SeenCache(params.seen_ttl_s, params.max_seen_count), pool)


def socket_path(directory: Path, index: int) -> Path:
    """Where shard `index` listens for applications and siblings."""
    return directory / f"shard-{index}.sock"
