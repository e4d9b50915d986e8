"""How long probes are for values that somebody chose who does not know the pool's key.

    python -m tools.probes [--pools N] [--seed S] [--json] [--save]

Every family goes into pools of their own, each with a new random key, and the tables that came of it are read: a hit's probes
are the slots from a record's home to its own, a miss's those from a home to the next free slot. Beside them stands what
linear probing costs at that load when hashes are random (Knuth, The Art of Computer Programming, volume 3, section 6.4). The
last rows show what the same measure says where the attacker does know the key. Exit status 1 if a family passes a bound.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from shmpool.layout import OFFSET_MASK, WORD_SIZE
from shmpool.lifetime import choose_constants, create
from shmpool.store import Store
from shmpool.table import read_table
from tools.bench_intern import machine
from tools.families import FAMILIES, KNOWN_KEY, MAX_VALUE_SIZE, family

RESULTS: Final = Path(__file__).parent / "results"
STRIPES: Final = 4
COUNT: Final = 2500  # six tenths of the 4 * 1024 slots: no stripe comes near three quarters, where its table would grow
KNOWN: Final = "equal low SipHash, another pool's key"

# Of 3,000 such pools of random hashes, with 2,700 values, the mean was 1.72 to 2.29, the longest probe 76 and the fullest stripe
# held 757. These bounds are so far away that chance does not come there, and values that collide are further by far.
MOST_MEAN: Final = 4.0
MOST_LONGEST: Final = 400
MOST_IN_STRIPE: Final = 900


@dataclass(frozen=True, slots=True)
class Probes:
    """Of one family: hits' probes, a miss's mean, the load, and how many records the fullest stripe holds."""

    family: str
    mean: float
    p50: float
    p99: float
    longest: int
    miss_mean: float
    load: float
    fullest_stripe: int

    @property
    def expected(self) -> float:
        return (1 + 1 / (1 - self.load)) / 2

    @property
    def expected_miss(self) -> float:
        return (1 + 1 / (1 - self.load) ** 2) / 2

    @property
    def is_bounded(self) -> bool:
        return self.mean <= MOST_MEAN and self.longest <= MOST_LONGEST and self.fullest_stripe <= MOST_IN_STRIPE


def measure(title: str, pools: list[list[bytes]], key: bytes | None = None) -> Probes:
    """Intern each list of values in a pool of its own, with a random key or that one, and read the tables."""
    tables = [homes for values in pools for homes in tables_of(values, key or secrets.token_bytes(16))]
    return summarise(title, tables)


def summarise(title: str, tables: list[NDArray[np.int64]]) -> Probes:
    """`tables[i]` is the home of the record in each slot, -1 where there is none, shape (slots,)."""
    hits = np.concatenate([(np.flatnonzero(homes >= 0) - homes[homes >= 0]) % len(homes) + 1 for homes in tables])
    misses = np.concatenate([miss_probes(homes) for homes in tables])
    return Probes(
        family=title,
        mean=round(float(hits.mean()), 3),
        p50=float(np.percentile(hits, 50)),
        p99=float(np.percentile(hits, 99)),
        longest=int(hits.max()),
        miss_mean=round(float(misses.mean()), 3),
        load=round(len(hits) / len(misses), 4),
        fullest_stripe=max(int((homes >= 0).sum()) for homes in tables),
    )


def miss_probes(homes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Slots that are read from each home on until a free one is met, that one included, shape (slots,)."""
    free = np.flatnonzero(homes < 0)
    slots = np.arange(len(homes))
    following = np.append(free, free[0] + len(homes))[np.searchsorted(free, slots)]
    return following - slots + 1


def tables_of(values: list[bytes], key: bytes) -> Iterator[NDArray[np.int64]]:
    """The home of the record in each slot of each stripe's table, -1 where there is none."""
    constants = choose_constants(
        capacity=4 * len(values), arena_size=None, stripe_count=STRIPES, max_value_size=MAX_VALUE_SIZE, insert_budget=None,
        reserve=0, process_count=2, persistent=False,
    )
    store = Store(create(f"probes-{os.getpid()}", replace(constants, hash_key=key)), 1)
    try:
        _, error = store.find_many(values, capacity=4 * len(values))
        if error:
            raise error
        for stripe in range(STRIPES):
            table = store.stripes.table(stripe)
            slots = read_table(store.segment.words, table.word, 1 << table.bits)
            words = np.frombuffer(store.segment.words, np.uint64, offset=constants.geometry.arena_offset)
            hashes = words[(slots & np.uint64(OFFSET_MASK)).astype(np.int64) // WORD_SIZE]
            homes = (hashes & np.uint64(len(slots) - 1)).astype(np.int64)
            del words
            yield np.where(slots == 0, -1, homes)
    finally:
        store.close()


def main() -> int:
    options = parse(sys.argv[1:])
    rng = Random(options.seed)
    console = Console(stderr=True)
    names = track(FAMILIES, "families", console=console, disable=not console.is_terminal)
    try:
        results = [measure(name, [family(name, COUNT, rng) for _ in range(options.pools)]) for name in names]
    except KeyboardInterrupt:
        return 130
    known = measure("the key is known", [family(KNOWN, COUNT, rng)], KNOWN_KEY)
    record = {
        "command": " ".join(["python -m tools.probes", *sys.argv[1:]]),
        **machine(),
        "date": time.strftime("%Y-%m-%d"),
        "seed": options.seed,
        "values": COUNT,
        "pools": options.pools,
        "families": [as_record(probes) for probes in results],
        "control": as_record(known),
    }
    if options.save:
        (RESULTS / "probes.json").write_text(json.dumps(record, indent=2) + "\n")
        subprocess.run([sys.executable, Path(__file__).with_name("plot_probes.py")], check=True)
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        show(results, known)
    return 0 if all(probes.is_bounded for probes in results) and not known.is_bounded else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="probes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pools", type=int, default=10, help="of each family, each with a key of its own; default %(default)s")
    parser.add_argument("--seed", type=int, help="of the values (not of the keys); default: a new one, shown with the figures")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--save", action="store_true", help="keep them in tools/results/probes.json too, and draw them")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    return options


def as_record(probes: Probes) -> dict[str, Any]:
    expected = {"expected_mean": round(probes.expected, 3), "expected_miss_mean": round(probes.expected_miss, 3)}
    return asdict(probes) | expected


def show(results: list[Probes], known: Probes) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=130)
    table = Table(box=SIMPLE_HEAD, title=f"probes at a load of {results[0].load}, {COUNT:,} values in {STRIPES} stripes a pool")
    table.add_column("family")
    for column in ("mean", "expected", "p50", "p99", "longest", "miss mean", "expected", "fullest stripe"):
        table.add_column(column, justify="right")
    for probes in (*results, known):
        figures = (probes.mean, probes.expected, probes.p50, probes.p99, probes.longest, probes.miss_mean, probes.expected_miss)
        style = "" if probes.is_bounded else "red"
        table.add_row(probes.family, *(f"{figure:.4g}" for figure in figures), f"{probes.fullest_stripe}", style=style)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
