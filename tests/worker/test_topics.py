"""The seam between router and pool: what the router relies on, of either implementation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmpool import Pool
from worker.topics import BytesTopics, PoolTopics

NAMES = [b"/eth2/6a95a1a9/beacon_block/ssz_snappy", b"", b"\x00\xff not text", b"a", b"ab"]


@pytest.fixture(params=["bytes", "pool"])
def topics(request: pytest.FixtureRequest, pool_name: str) -> Iterator[BytesTopics | PoolTopics]:
    if request.param == "bytes":
        yield BytesTopics()
    else:
        with Pool.create(pool_name, max_value_size=64) as pool:
            yield PoolTopics(pool)


def test_keys_are_equal_exactly_when_topics_are_and_lead_back(topics: BytesTopics | PoolTopics) -> None:
    keys = [topics.intern(name) for name in NAMES]
    again = [topics.intern(bytes(bytearray(name))) for name in NAMES]
    resolved = [topics.resolve(key) for key in keys]  # type: ignore[arg-type]  # a key goes back where it came from

    assert keys == again
    assert len(set(keys)) == len(NAMES)
    assert resolved == NAMES


def test_lookup_finds_what_was_interned_and_adds_nothing(topics: BytesTopics | PoolTopics) -> None:
    key = topics.intern(NAMES[0])

    found = [topics.lookup(name) for name in NAMES]
    again = [topics.lookup(name) for name in NAMES]

    assert found == again == [key, None, None, None, None]


def test_lookup_of_what_no_pool_could_hold_is_none(topics: BytesTopics | PoolTopics) -> None:
    assert topics.lookup(b"t" * 1_000_000) is None


def test_two_attachments_of_a_pool_give_the_same_keys(pool_name: str) -> None:
    with Pool.create(pool_name) as one, Pool.attach(pool_name) as other:
        keys = [PoolTopics(one).intern(name) for name in NAMES]

        assert [PoolTopics(other).lookup(name) for name in NAMES] == keys
