"""Spaces wear out: each is used for 65,536 topics and then never again, so that no ref ever comes twice."""

from __future__ import annotations

import random

import numpy as np

from shmpool import Policy, Pool, PoolFullError, TopicRef
from shmpool.layout import GENERATION_SHIFT, LOW_40, MAX_GENERATION, META_GENERATION_SHIFT, WORD_SIZE
from tests.model import refuses
from tests.unit.inside import store_of

VALUES = [b"/one", b"/two"]
GENERATIONS = MAX_GENERATION + 1


def offset_of(pool: Pool, ref: TopicRef) -> int:
    return ref - store_of(pool).stripes.origin & LOW_40


def generation_of(pool: Pool, ref: TopicRef) -> int:
    return ref - store_of(pool).stripes.origin >> GENERATION_SHIFT


def age(pool: Pool, offset: int, generation: int) -> None:
    """Have the free space there be of a later generation, as if it had been used so often."""
    segment = store_of(pool).segment
    word = (segment.constants.geometry.arena_offset + offset) // WORD_SIZE + 1
    assert segment.words[word] >> 63 == 0, "it is in use"
    segment.words[word] = segment.words[word] & ~(MAX_GENERATION << META_GENERATION_SHIFT) | generation << META_GENERATION_SHIFT


def test_a_space_used_for_every_generation_is_retired_and_its_refs_stay_stale_for_ever(pool_name: str, seed: int) -> None:
    refs = np.zeros(GENERATIONS, np.uint64)
    with Pool.create(pool_name, policy=Policy.refcount(), stripe_count=1, capacity=64) as pool:
        for number in range(GENERATIONS):
            refs[number] = ref = pool.intern(VALUES[number % 2])
            pool.release(ref)
        used_size = pool.stats().arena_used_size

        after = [pool.intern(VALUES[number % 2]) for number in range(2)]

        assert len(np.unique(refs)) == GENERATIONS
        assert generation_of(pool, TopicRef(int(refs[-1]))) == MAX_GENERATION
        assert {offset_of(pool, TopicRef(ref)) for ref in refs.tolist()}.isdisjoint(offset_of(pool, ref) for ref in after)
        assert not set(after) & set(refs.tolist())
        sample = random.Random(seed).sample(refs.tolist(), 2000) + refs[:3].tolist() + refs[-3:].tolist()
        assert all(refuses(pool, ref) for ref in sample)
        assert [pool.resolve(ref) for ref in after] == VALUES
        assert used_size == 32
        assert pool.stats().arena_used_size == 3 * 32
        assert pool.check() == []


def test_worn_out_spaces_cost_their_memory_and_no_topic(pool_name: str) -> None:
    """However many are retired, the pool holds as many topics as before; and a full arena is an error that loses nothing."""
    capacity, retired = 40, 0
    with Pool.create(
        pool_name, policy=Policy.refcount(), stripe_count=1, capacity=capacity, reserve=0, max_value_size=64, arena_size=16_384
    ) as pool:
        held = {b"held %d" % number: pool.intern(b"held %d" % number) for number in range(capacity - 1)}
        stale = []
        while True:
            try:
                ref = pool.intern(b"comes and goes")
            except PoolFullError:
                break
            stale.append(ref)
            pool.release(ref)
            age(pool, offset_of(pool, ref), MAX_GENERATION - 1)
            stale.append(pool.intern(b"comes and goes"))
            assert generation_of(pool, stale[-1]) == MAX_GENERATION
            pool.release(stale[-1])
            retired += 1
            assert pool.stats().arena_used_size == 32 * (capacity - 1) + 40 * retired
            assert retired < 1000, "the arena never fills"

        assert retired > 300
        assert len(stale) == len(set(stale))
        assert all(refuses(pool, ref) for ref in stale)
        assert {value: pool.lookup(value) for value in held} == held
        assert {pool.resolve(ref) for ref in held.values()} == set(held)
        pool.release(held.pop(b"held 1"))
        held[b"back %d" % 1] = pool.intern(b"back %d" % 1)
        assert pool.check() == []


def test_no_ref_comes_again_while_worn_out_spaces_hand_their_ordinals_on(pool_name: str, rng: random.Random) -> None:
    """Few ordinals, spaces of several sizes, and generations near their end: what is held is counted right."""
    values = [b"%d" % number + b"x" * (number % 4 * 16) for number in range(40)]
    seen: dict[TopicRef, bytes] = {}
    with Pool.create(pool_name, policy=Policy.refcount(), stripe_count=1, capacity=8, reserve=0, max_value_size=64) as pool:
        held: dict[bytes, TopicRef] = {}
        for _ in range(2000):
            if held and (len(held) == 6 or rng.random() < 0.5):
                value = rng.choice(list(held))
                ref = held.pop(value)
                pool.release(ref)
                if rng.random() < 0.1 and generation_of(pool, ref) < MAX_GENERATION:
                    age(pool, offset_of(pool, ref), max(generation_of(pool, ref), MAX_GENERATION - rng.randrange(1, 4)))
            else:
                value = rng.choice([each for each in values if each not in held])
                ref = held[value] = pool.intern(value)
                assert ref not in seen, "a ref came again"
                seen[ref] = value

        assert pool.check() == []
        assert {pool.resolve(ref) for ref in held.values()} == set(held)
        for ref, value in seen.items():
            if held.get(value) != ref:
                with_stale = refuses(pool, ref)
                assert with_stale, f"{ref} of {value!r}, which went, names something"
        assert {topic.value: topic.holds for topic in pool.top(8, by="holds")} == dict.fromkeys(held, 1)
