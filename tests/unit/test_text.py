"""Claims about text from strangers: on a terminal each character stays in its place, and no text looks like another."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpool.text import printable, show_age, show_size, to_json


def is_safe(shown: str) -> bool:
    """Whether every character is printed in its own place: no control, invisible, combining or right-to-left one."""
    return all(
        character == " "
        or (
            unicodedata.category(character)[0] not in "CZM"
            and unicodedata.bidirectional(character) not in ("R", "AL", "AN")  # the marks that turn are in category C
        )
        for character in shown
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"/eth2/6a95a1a9/beacon_block/ssz_snappy", "/eth2/6a95a1a9/beacon_block/ssz_snappy"),
        ("Zürich 東京 😀", "Zürich 東京 😀"),
        ("[red]:smile:", "[red]:smile:"),
        ("\x1b[31m\x07", r"\x1b[31m\x07"),
        ("a\nb\r\tc\x00", r"a\nb\r\tc\x00"),
        (r"a\nb", r"a\\nb"),
        (b"\xff\xfe", r"\xff\xfe"),
        ("\x9b31m", r"\u009b31m"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\u200b\u2028\u00ad\ufeff", r"\u200b\u2028\u00ad\ufeff"),
        ("\u05d0\u0661", r"\u05d0\u0661"),
        ("a\u0301", r"a\u0301"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text: str | bytes, shown: str) -> None:
    assert printable(text) == shown


def test_every_character_is_shown_safely_and_as_no_other() -> None:
    shown = [printable(chr(code)) for code in range(sys.maxunicode + 1) if not 0xDC80 <= code <= 0xDCFF]

    assert is_safe("".join(shown))
    assert len(set(shown)) == len(shown)


@given(st.binary(), st.binary())
def test_different_bytes_look_different(left: bytes, right: bytes) -> None:
    assert (printable(left) == printable(right)) == (left == right)


def test_json_is_printable_ascii_and_means_the_same() -> None:
    data = {"text": "".join(map(chr, range(0x20000 // 64)))}

    written = to_json(data)

    assert json.loads(written) == data
    assert all(" " <= character <= "~" for character in written)


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (200 * 1024, "200 KiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_are_shown_in_their_unit(size: int, shown: str) -> None:
    assert show_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-5, "in the future"), (0.5, "0s"), (61, "1m 1s"), (7260, "2h 1m"), (2 * 86400, "2d 0h")]
)
def test_ages_are_shown_in_two_units(seconds: float, shown: str) -> None:
    assert show_age(seconds) == shown
