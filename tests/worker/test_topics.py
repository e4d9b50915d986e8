"""The seam between router and pool: what the router relies on, of either implementation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmpool import Policy, Pool
from worker.topics import BytesTopics, PoolTopics, interned

NAMES = [b"/eth2/6a95a1a9/beacon_block/ssz_snappy", b"", b"\x00\xff not text", b"a", b"ab"]


@pytest.fixture(params=["bytes", "forever", "refcount", "lru:3", "ttl:60"])
def topics(request: pytest.FixtureRequest, pool_name: str) -> Iterator[BytesTopics | PoolTopics]:
    if request.param == "bytes":
        yield BytesTopics()
    else:
        with Pool.create(pool_name, max_value_size=64, policy=Policy.parse(request.param)) as pool:
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


def test_interning_off_forgets_what_nobody_holds() -> None:
    topics = BytesTopics()
    topics.intern(b"a")
    topics.hold(b"a")

    topics.release(b"a")
    held = topics.lookup(b"a")
    topics.release(b"a")

    assert held == b"a"
    assert topics.lookup(b"a") is topics.hold_known(b"a") is None
    with pytest.raises(KeyError):
        topics.release(b"a")


def test_a_strangers_topic_is_held_only_if_somebody_here_cares(topics: BytesTopics | PoolTopics) -> None:
    key = topics.intern(NAMES[0])

    held = [topics.hold_known(name) for name in NAMES]

    assert held == [key, None, None, None, None]
    assert topics.lookup(NAMES[1]) is None


def test_a_key_is_held_for_the_block_and_no_longer() -> None:
    topics = BytesTopics()

    def use_and_fail() -> None:
        with interned(topics, b"a") as key:
            found.append(topics.lookup(key))
            raise ZeroDivisionError

    found: list[bytes | None] = []
    with pytest.raises(ZeroDivisionError):
        use_and_fail()

    assert found == [b"a"]
    assert topics.lookup(b"a") is None
