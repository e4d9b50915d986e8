"""Rivals rigged to be wrong or slow, for the benchmark to notice. Their processes are spawned, so they are found by name."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from tools.rivals.embedded import open_dict
from tools.rivals.rival import Operations, Place

SLEEP_S = 0.001
BALLAST = 8 << 20


def open_forgetful(place: Place, *, creating: bool) -> Operations:
    """Loses one value of a batch."""
    honest = open_dict(place, creating=creating)
    insert_many = honest.insert_many
    assert insert_many

    return replace(honest, insert_many=lambda values: insert_many(values[1:]))


def open_boastful(place: Place, *, creating: bool) -> Operations:
    """Finds whatever it is asked for."""
    honest = open_dict(place, creating=creating)
    return replace(honest, lookup=honest.insert)


def open_confused(place: Place, *, creating: bool) -> Operations:
    """Finds everything in every process, under references of the process's own."""

    def lookup(value: bytes) -> int | None:
        return hash((os.getpid(), value)) if b"/00000000/" not in value else None

    return Operations(lookup, lookup, lambda values: list(map(lookup, values)), lambda values: list(map(lookup, values)))


def open_monotonous(place: Place, *, creating: bool) -> Operations:
    """Gives every new value the same reference."""
    honest = open_dict(place, creating=creating)

    def insert(value: bytes) -> int:
        honest.insert(value)
        return 1

    return replace(honest, insert=insert)


def open_slow(place: Place, *, creating: bool) -> Operations:
    """A dict that takes a nap in every single call."""
    honest = open_dict(place, creating=creating)
    find = honest.lookup
    assert find

    def lookup(value: bytes) -> int | None:
        time.sleep(SLEEP_S)
        found: int | None = find(value)
        return found

    return replace(honest, lookup=lookup)


def open_fat(place: Place, *, creating: bool) -> Operations:
    """A dict that takes so much more memory once it is given something."""
    honest = open_dict(place, creating=creating)
    ballast: list[bytes] = []

    def insert_many(values: list[bytes]) -> None:
        if not ballast:
            ballast.append(os.urandom(BALLAST))
        assert honest.insert_many
        honest.insert_many(values)

    return replace(honest, insert_many=insert_many)
