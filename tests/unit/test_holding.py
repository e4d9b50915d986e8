"""Claims about holding: what each call promises, which errors it raises, and that nothing is changed after one."""

from __future__ import annotations

import struct

import pytest

from shmpool import Policy, Pool, StaleRefError, TopicRef
from shmpool.arena import make_meta
from shmpool.layout import RECORD_SIZE

HOLDING = [Policy.refcount(), Policy.lru(max_unheld=2), Policy.ttl(seconds=1)]


@pytest.mark.parametrize("policy", HOLDING, ids=str)
def test_a_ref_into_a_value_that_imitates_a_record_is_refused_and_frees_nothing(pool_name: str, policy: Policy) -> None:
    imitation = struct.pack("<QQ", 12345, make_meta(ordinal=0, generation=0, size=4)) + b"abcd" + bytes(20)
    with Pool.create(pool_name, policy=policy, stripe_count=1) as pool:
        victim = pool.intern(b"of ordinal 0")
        ref = pool.intern(imitation)
        forged = TopicRef(ref + RECORD_SIZE)

        for refused in (pool.release, pool.holders, pool.resolve):
            with pytest.raises(StaleRefError):
                refused(forged)

        assert pool.check() == []
        assert pool.resolve(ref) == imitation
        assert [holder.count for holder in pool.holders(victim)] == [1]
