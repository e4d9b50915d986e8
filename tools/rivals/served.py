"""The rivals that are a server: started here on a Unix socket of its own, asked by its usual client, ended by pid."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from tools.rivals.embedded import python_version, version_of
from tools.rivals.rival import Operations, Place, Rival

STARTING_S: Final = 10.0
CHUNK: Final = 1000  # commands of one pipeline, keys of one MGET: what Redis's documentation suggests is "in the order of 1000s"


def own_refs() -> Callable[[], int]:
    """References that no other process makes: these rivals have none to give, so whoever inserts first brings one along."""
    numbers = count(os.getpid() << 32)
    return numbers.__next__


@contextmanager
def running(command: list[str | Path], is_up: Callable[[], object]) -> Iterator[int]:
    """Run a server until the end of the block; yields its pid. It goes too if this process is killed."""
    dying = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    process = subprocess.Popen([*dying, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + STARTING_S
        while not is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start")
            time.sleep(0.01)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def program_version(*command: str) -> str:
    shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return next(word.removeprefix("v=") for word in shown.split() if word.removeprefix("v=")[0].isdigit())


# multiprocessing.Manager().dict


@contextmanager
def serve_manager(place: Place) -> Iterator[Place]:
    with get_context("spawn").Manager() as manager:
        pid = manager._process.pid  # type: ignore[attr-defined]  # noqa: SLF001 - it has no name in public
        yield Place(place.folder, place.capacity, manager.dict(), (pid,))


def open_manager(place: Place, *, creating: bool) -> Operations:
    """`setdefault` is insert if absent in one message."""
    proxy, new_ref = place.reached_by, own_refs()

    def insert(value: bytes) -> int:
        ref: int = proxy.setdefault(value, new_ref())
        return ref

    def insert_many(values: list[bytes]) -> None:
        for start in range(0, len(values), CHUNK):
            proxy.update({value: new_ref() for value in values[start : start + CHUNK]})

    return Operations(insert, proxy.get, insert_many)


# Redis


@contextmanager
def serve_redis(place: Place) -> Iterator[Place]:
    import redis

    path = place.folder / "redis.sock"

    def is_up() -> bool:
        try:
            return bool(redis.Redis(unix_socket_path=str(path)).ping())
        except redis.ConnectionError:
            return False

    options: list[str | Path] = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", place.folder]
    with running(["redis-server", *options], is_up) as pid:
        yield Place(place.folder, place.capacity, str(path), (pid,))


def open_redis(place: Place, *, creating: bool) -> Operations:
    """SET NX GET is insert if absent in one round trip; pipelines and MGET for batches; the parser in C (hiredis)."""
    import redis

    client, new_ref = redis.Redis(unix_socket_path=place.reached_by), own_refs()

    def insert(value: bytes) -> int:
        ref = new_ref()
        old = client.set(value, ref, nx=True, get=True)
        return ref if old is None else int(old)

    def lookup(value: bytes) -> int | None:
        found = client.get(value)
        return None if found is None else int(found)

    def insert_many(values: list[bytes]) -> None:
        for start in range(0, len(values), CHUNK):
            pipeline = client.pipeline(transaction=False)
            for value in values[start : start + CHUNK]:
                pipeline.set(value, new_ref(), nx=True, get=True)
            pipeline.execute()

    def lookup_many(values: list[bytes]) -> list[int | None]:
        found: list[int | None] = []
        for start in range(0, len(values), CHUNK):
            found.extend(None if ref is None else int(ref) for ref in client.mget(values[start : start + CHUNK]))
        return found

    return Operations(insert, lookup, insert_many, lookup_many, client.close)


# memcached


@contextmanager
def serve_memcached(place: Place) -> Iterator[Place]:
    path = place.folder / "memcached.sock"
    user = ["-u", "root"] if os.geteuid() == 0 else []
    with running(["memcached", *user, "-s", path, "-m", "2048"], path.exists) as pid:
        yield Place(place.folder, place.capacity, str(path), (pid,))


def open_memcached(place: Place, *, creating: bool) -> Operations:
    """`add` is insert if absent, but does not say what is there; set_many and get_many for batches. Every write is confirmed."""
    from pymemcache.client.base import Client

    client: Any = Client(place.reached_by, default_noreply=False)
    new_ref = own_refs()

    def lookup(value: bytes) -> int | None:
        found = client.get(value)
        return None if found is None else int(found)

    def insert(value: bytes) -> int | None:
        ref = new_ref()
        return ref if client.add(value, b"%d" % ref) else lookup(value)

    def insert_many(values: list[bytes]) -> None:
        for start in range(0, len(values), CHUNK):
            failed = client.set_many({value: b"%d" % new_ref() for value in values[start : start + CHUNK]})
            if failed:
                raise RuntimeError(f"memcached refused {len(failed)} values")

    def lookup_many(values: list[bytes]) -> list[int | None]:
        found: list[int | None] = []
        for start in range(0, len(values), CHUNK):
            chunk = values[start : start + CHUNK]
            refs = client.get_many(chunk)
            found.extend(int(refs[value]) if value in refs else None for value in chunk)
        return found

    return Operations(insert, lookup, insert_many, lookup_many, client.close)


SERVED: Final = (
    Rival(
        "Manager().dict", open_manager, python_version, serve=serve_manager, left_out={"batch lookup": "no call for it"},
        note="setdefault with a reference that the caller has made unique; update() for batches overwrites: one inserter only",
    ),
    Rival(
        "Redis", open_redis, lambda: f"Redis {program_version('redis-server', '--version')}, {version_of('redis')()}",
        imports=("redis", "hiredis"), program="redis-server", serve=serve_redis,
        note="SET NX GET; pipelines and MGET of 1,000; hiredis; the caller makes the reference unique",
    ),
    Rival(
        "memcached", open_memcached, lambda: f"memcached {program_version('memcached', '-V')}, {version_of('pymemcache')()}",
        imports=("pymemcache",), program="memcached", serve=serve_memcached,
        note="add; set_many for batches overwrites: one inserter only; keys of at most 250 bytes without blanks; evicts if full",
    ),
)
