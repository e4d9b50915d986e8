"""The seen cache: once, for a time, in bounds."""

from worker.seen import SeenCache


def test_id_is_new_once_until_its_ttl_is_over() -> None:
    seen = SeenCache(ttl_s=10.0, max_count=100)

    news = [seen.add(b"a", now) for now in (0.0, 5.0, 9.9, 10.0, 19.9, 20.0)]

    assert news == [True, False, False, True, False, True]


def test_id_that_comes_back_lives_its_whole_ttl_again() -> None:
    seen = SeenCache(ttl_s=10.0, max_count=100)
    seen.add(b"a", 0.0)
    seen.add(b"b", 5.0)
    seen.add(b"a", 10.0)

    seen.forget_expired(15.0)

    assert seen.has(b"a", 15.0)
    assert len(seen) == 1


def test_expired_ids_are_forgotten_and_others_kept() -> None:
    seen = SeenCache(ttl_s=10.0, max_count=100)
    for number in range(20):
        seen.add(bytes([number]), float(number))

    seen.forget_expired(15.0)

    assert len(seen) == 14
    assert [seen.has(bytes([number]), 15.0) for number in (5, 6, 19)] == [False, True, True]


def test_full_cache_forgets_the_oldest_id() -> None:
    seen = SeenCache(ttl_s=10.0, max_count=3)

    for number in range(5):
        seen.add(bytes([number]), 0.0)

    assert len(seen) == 3
    assert [seen.has(bytes([number]), 1.0) for number in range(5)] == [False, False, True, True, True]
