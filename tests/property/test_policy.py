"""Policies are what they are written as, and what cannot be one is refused in words."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpool import Policy, Pool, PoolCorruptError
from shmpool.header import decode, encode
from shmpool.lifetime import choose_constants
from shmpool.policy import FOREVER, LRU, REFCOUNT, TTL

MOST_UNHELD = 1 << 31
MOST_NS = (1 << 32) * 10**9
BAD_TEXTS = [
    "", ":", "lru", "lru:", "lru:0", "lru:-1", "lru:1.5", "lru:x", "lru:1e3", f"lru:{MOST_UNHELD + 1}", "lru:" + "9" * 5000,
    "lru:1:2", "ttl", "ttl:", "ttl:0", "ttl:-1", "ttl:nan", "ttl:inf", "ttl:-inf", "ttl:snan", "ttl:1e-10", "ttl:1e999999",
    "ttl:1e-999999", "ttl:x", "ttl:1:2", "ttl:5000000000", "forever:", "refcount:1", "Forever", " refcount", "lifo:3",
]  # fmt: skip

policies = st.one_of(
    st.just(Policy.forever()),
    st.just(Policy.refcount()),
    st.integers(1, MOST_UNHELD).map(lambda count: Policy.lru(max_unheld=count)),
    st.integers(1, MOST_NS).map(lambda ns: Policy(kind=TTL, max_unheld=MOST_UNHELD, ttl_ns=ns)),
)
words = st.integers(0, 2**64 - 1) | st.sampled_from((0, 1, 2, 3, MOST_UNHELD, MOST_UNHELD + 1, MOST_NS, MOST_NS + 1))


@given(policies)
def test_a_policy_is_what_it_is_written_as(policy: Policy) -> None:
    assert Policy.parse(str(policy)) == policy


@given(st.floats(1e-9, 2.0**32))
def test_seconds_are_kept_to_the_nanosecond(seconds: float) -> None:
    policy = Policy.ttl(seconds=seconds)

    assert math.isclose(policy.ttl_ns, seconds * 1e9, rel_tol=1e-15, abs_tol=1)
    assert Policy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (Policy.forever(), "forever"),
        (Policy.refcount(), "refcount"),
        (Policy.lru(max_unheld=1000), "lru:1000"),
        (Policy.ttl(seconds=60.0), "ttl:60"),
        (Policy.ttl(seconds=4.35), "ttl:4.35"),
        (Policy.ttl(seconds=1234567.5), "ttl:1234567.5"),
        (Policy.ttl(seconds=1e-9), "ttl:0.000000001"),
    ],
    ids=str,
)
def test_policies_are_written_as_people_would(policy: Policy, text: str) -> None:
    assert str(policy) == text


@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda text: text[:12])
def test_what_is_no_policy_is_refused_by_its_own_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no policy: (write 'forever'|.* must be |Exceeds)") as caught:
        Policy.parse(text)

    assert repr(text) in str(caught.value)


@given(st.text(max_size=12) | st.builds("{}:{}".format, st.sampled_from(("lru", "ttl", "refcount")), st.text(max_size=6)))
def test_any_text_is_a_policy_or_a_value_error(text: str) -> None:
    try:
        policy = Policy.parse(text)
    except ValueError:
        with pytest.raises(ValueError, match="is no policy"):
            Policy.parse(text)
    else:
        assert Policy.parse(str(policy)) == policy


@pytest.mark.parametrize("count", [0, -1, 1.5, math.nan, math.inf, MOST_UNHELD + 1, 10**400])
def test_numbers_of_topics_that_cannot_be_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="max_unheld must be 1 to"):
        Policy.lru(max_unheld=count)


@pytest.mark.parametrize("seconds", [0, -1.0, 9e-10, math.nan, math.inf, -math.inf, 2.0**32 + 1, 10**400])
def test_times_that_cannot_be_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds must be a nanosecond to"):
        Policy.ttl(seconds=seconds)


def is_possible(kind: int, max_unheld: int, ttl_ns: int) -> bool:
    return {
        FOREVER: max_unheld == ttl_ns == 0,
        REFCOUNT: max_unheld == ttl_ns == 0,
        LRU: 1 <= max_unheld <= MOST_UNHELD and ttl_ns == 0,
        TTL: max_unheld == MOST_UNHELD and 1 <= ttl_ns <= MOST_NS,
    }.get(kind, False)


def forged(kind: int, max_unheld: int, ttl_ns: int) -> Policy:
    """A policy that nothing has looked at, as another program would write it."""
    policy = object.__new__(Policy)
    for field, value in (("kind", kind), ("max_unheld", max_unheld), ("ttl_ns", ttl_ns)):
        object.__setattr__(policy, field, value)
    return policy


@given(kind=words, max_unheld=words, ttl_ns=words)
def test_a_header_with_a_policy_that_cannot_be_is_refused(kind: int, max_unheld: int, ttl_ns: int) -> None:
    constants = choose_constants(
        capacity=100,
        arena_size=None,
        stripe_count=1,
        max_value_size=100,
        insert_budget=None,
        reserve=None,
        process_count=4,
        persistent=False,
        policy=forged(kind, max_unheld, ttl_ns),
    )
    page, size = encode(constants), constants.geometry.total_size

    if is_possible(kind, max_unheld, ttl_ns):
        assert decode(page, size, "here").policy == Policy(kind, max_unheld, ttl_ns)
    else:
        with pytest.raises(PoolCorruptError, match="there is no policy of kind"):
            decode(page, size, "here")
        with pytest.raises(ValueError, match="there is no policy of kind"):
            Policy(kind, max_unheld, ttl_ns)


def test_a_pool_keeps_its_policy_for_all_who_attach(new_pool_name: Callable[[], str]) -> None:
    for policy in (Policy.forever(), Policy.refcount(), Policy.lru(max_unheld=7), Policy.ttl(seconds=0.25)):
        name = new_pool_name()
        with Pool.create(name, policy=policy) as pool, Pool.attach(name) as other:
            assert pool.policy == other.policy == policy
            assert type(pool) is type(other)
