"""Claims about the owner of a topic."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from worker.ownership import Ownership, owner_of

TOPICS = [f"/eth2/6a95a1a9/data_column_sidecar_{number}/ssz_snappy".encode() for number in range(1000)]


@pytest.mark.parametrize("shard_count", [2, 3, 8])
def test_topics_are_spread_evenly(shard_count: int) -> None:
    share = len(TOPICS) / shard_count

    owned = Counter(owner_of(topic, shard_count) for topic in TOPICS)

    assert set(owned) == set(range(shard_count))
    assert all(0.7 * share < count < 1.3 * share for count in owned.values()), owned


@pytest.mark.parametrize("shard_count", [1, 2, 3, 7])
def test_a_new_shard_only_takes_topics_and_others_never_swap(shard_count: int) -> None:
    before = [owner_of(topic, shard_count) for topic in TOPICS]

    after = [owner_of(topic, shard_count + 1) for topic in TOPICS]

    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {new for _, new in moved} == {shard_count}
    assert 0.7 * len(TOPICS) / (shard_count + 1) < len(moved) < 1.3 * len(TOPICS) / (shard_count + 1)


def test_processes_with_different_hash_seeds_agree() -> None:
    program = (
        "import sys; from worker.ownership import owner_of\n"
        "for line in sys.stdin.buffer: print(owner_of(line[:-1], 5))"
    )
    root = Path(__file__).parents[2]

    answers = [
        subprocess.run(
            [sys.executable, "-c", program],
            input=b"".join(topic + b"\n" for topic in TOPICS),
            capture_output=True,
            check=True,
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
            timeout=60,
        ).stdout.split()
        for seed in ("1", "2")
    ]

    assert answers[0] == answers[1] == [str(owner_of(topic, 5)).encode() for topic in TOPICS]


def test_the_owner_of_a_key_is_that_of_its_bytes_and_is_hashed_once() -> None:
    resolved: list[int] = []

    def resolve(ref: int) -> bytes:
        resolved.append(ref)
        return TOPICS[ref]

    ownership = Ownership(4, resolve)
    owners = [[ownership.owner(ref) for ref in range(50)] for _ in range(2)]

    assert owners[0] == owners[1] == [owner_of(topic, 4) for topic in TOPICS[:50]]
    assert resolved == list(range(50))


def test_owners_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.ownership.MAX_REMEMBERED", 10)
    resolved: list[int] = []

    def resolve(ref: int) -> bytes:
        resolved.append(ref)
        return TOPICS[ref]

    ownership = Ownership(4, resolve)
    owners = [ownership.owner(ref) for ref in (*range(20), 19, 0)]

    assert owners == [owner_of(TOPICS[ref], 4) for ref in (*range(20), 19, 0)]
    assert resolved == [*range(20), 0]  # what was remembered longest was forgotten


@pytest.mark.parametrize("shard_count", [0, -1, 1025])
def test_an_impossible_number_of_shards_is_refused(shard_count: int) -> None:
    with pytest.raises(ValueError, match=f"shard_count is {shard_count}"):
        owner_of(b"topic", shard_count)
    with pytest.raises(ValueError, match=f"shard_count is {shard_count}"):
        Ownership(shard_count, bytes)
