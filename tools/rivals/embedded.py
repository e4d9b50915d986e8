"""The rivals without a server: each process has the data mapped, or has data of its own."""

from __future__ import annotations

import platform
import sqlite3
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from tools.rivals.rival import SHM, Operations, Place, Rival

ONE_PROCESS: Final = "one process's own: no other process sees it"
SQL_CHUNK: Final = 1000  # values of one SELECT ... IN (...)


def version_of(package: str) -> Callable[[], str]:
    return lambda: f"{package} {metadata.version(package)}"


# dict, sys.intern


def open_dict(_: Place, *, creating: bool) -> Operations:
    table: dict[bytes, int] = {}

    def intern(value: bytes) -> int:
        ref = table.get(value)
        if ref is None:
            ref = table[value] = len(table) + 1
        return ref

    def intern_many(values: list[bytes]) -> list[int]:
        return [table.setdefault(value, len(table) + 1) for value in values]

    def lookup_many(values: list[bytes]) -> list[int | None]:
        return list(map(table.get, values))

    return Operations(intern, table.get, intern_many, lookup_many)


def open_intern(_: Place, *, creating: bool) -> Operations:
    """Interned strings die with their last user, so a list keeps them."""
    kept: list[str] = []

    def insert_many(values: list[str]) -> None:
        kept.extend(map(sys.intern, values))

    def lookup_many(values: list[str]) -> list[str]:
        return list(map(sys.intern, values))

    def insert(value: str) -> str:
        kept.append(sys.intern(value))
        return value

    return Operations(insert, sys.intern, insert_many, lookup_many, from_bytes=bytes.decode)


# LMDB


def open_lmdb(place: Place, *, creating: bool) -> Operations:
    """As for a cache: no sync, a writable map; put(overwrite=False) is insert if absent; one transaction for a batch."""
    import lmdb  # of the extra `bench`

    folder = str(place.folder / "lmdb")
    environment = lmdb.open(folder, map_size=4 << 30, sync=False, metasync=False, writemap=True, max_readers=64)

    def insert(value: bytes) -> int:
        with environment.begin(write=True) as transaction:
            ref: int = transaction.stat()["entries"] + 1
            if transaction.put(value, ref.to_bytes(8, "little"), overwrite=False):
                return ref
            return int.from_bytes(transaction.get(value, b""), "little")

    def lookup(value: bytes) -> int | None:
        with environment.begin() as transaction:
            found = transaction.get(value)
        return None if found is None else int.from_bytes(found, "little")

    def insert_many(values: list[bytes]) -> None:
        with environment.begin(write=True) as transaction:
            first = transaction.stat()["entries"] + 1
            pairs = [(value, ref.to_bytes(8, "little")) for ref, value in enumerate(values, first)]
            transaction.cursor().putmulti(pairs, overwrite=False)

    def lookup_many(values: list[bytes]) -> list[int | None]:
        with environment.begin() as transaction:
            return [None if ref is None else int.from_bytes(ref, "little") for ref in map(transaction.get, values)]

    return Operations(insert, lookup, insert_many, lookup_many, environment.close)


def lmdb_version() -> str:
    import lmdb

    return f"py-lmdb {metadata.version('lmdb')}, LMDB {'.'.join(map(str, lmdb.version()))}"


# SQLite


def open_sqlite(place: Place, *, creating: bool) -> Operations:
    """WAL, no sync, prepared statements from the module's own cache; executemany in one transaction for a batch."""
    database = sqlite3.connect(place.folder / "topics.db", isolation_level=None, timeout=60)
    if creating:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE topics (ref INTEGER PRIMARY KEY, value BLOB NOT NULL UNIQUE)")
    database.execute("PRAGMA synchronous=OFF")
    database.execute("PRAGMA mmap_size=4294967296")
    adding = "INSERT INTO topics (value) VALUES (?) ON CONFLICT DO NOTHING"

    def lookup(value: bytes) -> int | None:
        row = database.execute("SELECT ref FROM topics WHERE value = ?", (value,)).fetchone()
        return None if row is None else row[0]

    def insert(value: bytes) -> int | None:
        row = database.execute(f"{adding} RETURNING ref", (value,)).fetchone()
        return lookup(value) if row is None else row[0]

    def insert_many(values: list[bytes]) -> None:
        database.execute("BEGIN IMMEDIATE")
        database.executemany(adding, zip(values))
        database.execute("COMMIT")

    def lookup_many(values: list[bytes]) -> Sequence[int | None]:
        refs: dict[bytes, int] = {}
        for start in range(0, len(values), SQL_CHUNK):
            chunk = values[start : start + SQL_CHUNK]
            marks = ",".join("?" * len(chunk))
            refs.update(database.execute(f"SELECT value, ref FROM topics WHERE value IN ({marks})", chunk))
        return list(map(refs.get, values))

    return Operations(insert, lookup, insert_many, lookup_many, database.close)


# UltraDict


def open_ultradict(place: Place, *, creating: bool) -> Operations:
    """`shared_lock`, which its documentation asks of processes that write independently; the buffer is never full."""
    from UltraDict import UltraDict

    buffer_size = place.capacity * 128
    shared = UltraDict(name=f"{place.name}-dict", create=creating, buffer_size=buffer_size, shared_lock=True)

    def lookup(value: bytes) -> int | None:
        try:
            ref: int = shared[value]
        except KeyError:
            return None
        return ref

    def insert(value: bytes) -> int:
        with shared.lock:
            ref = lookup(value)
            if ref is None:
                ref = shared[value] = len(shared) + 1
        return ref

    def insert_many(values: list[bytes]) -> None:
        with shared.lock:
            shared.update({value: ref for ref, value in enumerate(values, len(shared) + 1)})

    return Operations(insert, lookup, insert_many, None, shared.unlink if creating else shared.close)


def ultradict_files(place: Place) -> list[Path]:
    return list(SHM.glob(f"{place.name}-dict*"))


def python_version() -> str:
    return f"CPython {platform.python_version()}"


ALONE: Final = dict.fromkeys(("first lookup", "attach", "lookup beside a writer", "insert beside readers"), ONE_PROCESS)

EMBEDDED: Final = (
    Rival("dict", open_dict, python_version, is_shared=False, files=lambda _: [], left_out=ALONE, note=ONE_PROCESS),
    Rival(
        "sys.intern", open_intern, python_version, is_shared=False, tells_absent=False, files=lambda _: [], left_out=ALONE,
        note=f"{ONE_PROCESS}; str only, whose hash is made anew each time; there is no asking without inserting",
    ),
    Rival("LMDB", open_lmdb, lmdb_version, imports=("lmdb",), note="sync=False, writemap=True; keys of at most 511 bytes"),
    Rival("SQLite", open_sqlite, lambda: f"SQLite {sqlite3.sqlite_version}", note="WAL in /dev/shm, synchronous=OFF"),
    Rival(
        "UltraDict", open_ultradict, version_of("UltraDict"), imports=("UltraDict", "atomics"), files=ultradict_files,
        left_out={"batch lookup": "no call for it"},
        note="shared_lock=True; every process keeps a dict of its own and reads the others' changes from a stream",
    ),
)
