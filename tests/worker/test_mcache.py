"""The message cache: windows, gossip ids per topic, retransmission counts."""

from tests.worker.harness import OTHER_TOPIC, TOPIC, a_message
from worker.mcache import MessageCache


def test_message_is_found_by_the_id_it_was_put_under() -> None:
    cache: MessageCache[bytes] = MessageCache(5, 3)

    cache.put(b"any id the caller likes", a_message(1), TOPIC)

    assert cache.get(b"any id the caller likes") == a_message(1)
    assert cache.get(b"author" + (1).to_bytes(8, "big")) is None


def test_message_lives_for_mcache_len_windows() -> None:
    cache: MessageCache[bytes] = MessageCache(5, 3)
    cache.put(b"a", a_message(1), TOPIC)

    ages: list[int] = []
    while cache.get(b"a") is not None:
        ages.append(len(ages))
        cache.shift()

    assert len(ages) == 5
    assert len(cache) == 0


def test_gossip_ids_are_of_one_topic_and_of_the_newest_mcache_gossip_windows() -> None:
    cache: MessageCache[bytes] = MessageCache(5, 3)
    for number in range(5):
        cache.put(f"here-{number}".encode(), a_message(number), TOPIC)
        cache.put(f"there-{number}".encode(), a_message(number, OTHER_TOPIC), OTHER_TOPIC)
        cache.shift()
    cache.put(b"here-5", a_message(5), TOPIC)

    ids = cache.get_gossip_ids(TOPIC)

    assert ids == [b"here-5", b"here-4", b"here-3"]


def test_putting_an_id_again_does_not_prolong_its_life() -> None:
    cache: MessageCache[bytes] = MessageCache(2, 1)
    cache.put(b"a", a_message(1), TOPIC)
    cache.shift()

    cache.put(b"a", a_message(2), TOPIC)
    kept = cache.get(b"a")
    cache.shift()

    assert kept == a_message(1)
    assert cache.get(b"a") is None
    cache.shift()  # of the window that it would have been in twice


def test_takes_are_counted_for_each_peer_and_message() -> None:
    cache: MessageCache[bytes] = MessageCache(5, 3)
    cache.put(b"a", a_message(1), TOPIC)
    cache.put(b"b", a_message(2), TOPIC)

    takes = [cache.take_for(peer, id_) for peer, id_ in [(b"p", b"a"), (b"p", b"a"), (b"q", b"a"), (b"p", b"b")]]

    assert takes == [(a_message(1), 1), (a_message(1), 2), (a_message(1), 1), (a_message(2), 1)]
    assert cache.take_for(b"p", b"c") is None


def test_beyond_its_size_the_cache_forgets_the_oldest_first_wherever_they_are() -> None:
    cache: MessageCache[bytes] = MessageCache(5, 3, max_size=100)
    cache.put(b"oldest", a_message(1, size=40), TOPIC)
    cache.put(b"other", a_message(2, size=40), OTHER_TOPIC)
    cache.shift()

    cache.put(b"new", a_message(3, size=60), TOPIC)

    assert cache.get(b"oldest") is None
    assert cache.get_gossip_ids(TOPIC) == [b"new"]
    assert cache.get_gossip_ids(OTHER_TOPIC) == [b"other"]
    assert (len(cache), cache.size) == (2, 100)
    for _ in range(5):
        cache.shift()
    assert (len(cache), cache.size) == (0, 0)


def test_a_message_larger_than_the_cache_is_kept_while_it_is_the_newest() -> None:
    cache: MessageCache[bytes] = MessageCache(5, 3, max_size=100)

    for number in range(3):
        cache.put(b"%d" % number, a_message(number, size=200), TOPIC)

    assert cache.get_gossip_ids(TOPIC) == [b"2"]
    assert cache.size == 200
