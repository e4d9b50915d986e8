"""The backoff table: ends, slack, bound."""

from tests.worker.harness import OTHER_TOPIC, TOPIC
from worker.backoff import BackoffTable


def test_backoff_is_of_one_peer_in_one_topic() -> None:
    table: BackoffTable[bytes] = BackoffTable(10, slack_s=0.0)

    table.add(TOPIC, b"p", 60.0)

    assert table.remaining_s(TOPIC, b"p", 20.0) == 40.0
    assert table.remaining_s(OTHER_TOPIC, b"p", 20.0) == 0.0
    assert table.remaining_s(TOPIC, b"q", 20.0) == 0.0


def test_peer_may_graft_us_at_the_end_and_we_it_a_slack_later() -> None:
    table: BackoffTable[bytes] = BackoffTable(10, slack_s=2.0)
    table.add(TOPIC, b"p", 60.0)

    peer_may = [table.remaining_s(TOPIC, b"p", now) == 0.0 for now in (59.9, 60.0, 61.9, 62.0)]
    we_may = [table.may_graft(TOPIC, b"p", now) for now in (59.9, 60.0, 61.9, 62.0)]

    assert peer_may == [False, True, True, True]
    assert we_may == [False, False, False, True]


def test_adding_extends_and_never_shortens() -> None:
    table: BackoffTable[bytes] = BackoffTable(10, slack_s=0.0)
    table.add(TOPIC, b"p", 60.0)

    table.add(TOPIC, b"p", 30.0)
    after_shorter = table.remaining_s(TOPIC, b"p", 0.0)
    table.add(TOPIC, b"p", 90.0)

    assert after_shorter == 60.0
    assert table.remaining_s(TOPIC, b"p", 0.0) == 90.0


def test_ended_entries_are_forgotten_and_others_kept() -> None:
    table: BackoffTable[bytes] = BackoffTable(10, slack_s=2.0)
    table.add(TOPIC, b"p", 10.0)
    table.add(TOPIC, b"q", 20.0)

    table.forget_ended(11.9)
    with_slack = len(table)
    table.forget_ended(12.0)

    assert with_slack == 2
    assert len(table) == 1
    assert table.remaining_s(TOPIC, b"q", 12.0) == 8.0


def test_extending_in_a_full_table_loses_nothing() -> None:
    table: BackoffTable[bytes] = BackoffTable(2, slack_s=0.0)
    table.add(TOPIC, b"p", 10.0)
    table.add(TOPIC, b"q", 10.0)

    table.add(TOPIC, b"q", 20.0)

    assert [table.remaining_s(TOPIC, peer, 0.0) for peer in (b"p", b"q")] == [10.0, 20.0]


def test_full_table_loses_the_entry_made_longest_ago() -> None:
    table: BackoffTable[bytes] = BackoffTable(3, slack_s=0.0)

    for number in range(5):
        table.add(TOPIC, bytes([number]), 100.0 - number)

    assert len(table) == 3
    assert [table.remaining_s(TOPIC, bytes([number]), 0.0) > 0 for number in range(5)] == [
        False, False, True, True, True,
    ]
