"""Text for people and for programs. What peers chose is never trusted by a terminal: see `printable`.

JSON is written in ASCII, so that it is as safe to look at.
"""

import json
import unicodedata
from typing import Any

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
_TURNING = ("R", "AL", "AN")  # written from right to left: beside them a terminal may move what is not theirs


def printable(text: str | bytes) -> str:
    """Text of which each character takes its own place and does nothing else; the rest as escapes that Python would read.

    Escaped are control characters, line ends, invisible and combining ones, all that changes or has another direction of writing,
    bytes that are no UTF-8, and the backslash itself, so that no text looks like another.
    """
    if isinstance(text, bytes):
        text = text.decode(errors="surrogateescape")
    return "".join(map(_show, text))


def _show(character: str) -> str:
    if "\x20" <= character <= "\x7e" and character != "\\":
        return character
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte that is no UTF-8
    is_plain = (
        character.isprintable()
        and not unicodedata.category(character).startswith("M")
        and unicodedata.bidirectional(character) not in _TURNING
    )
    if is_plain:
        return character
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


def to_json(data: Any, indent: int | None = None) -> str:
    """JSON in printable ASCII."""
    return json.dumps(data, indent=indent).replace("\x7f", "\\u007f")


def show_size(size: float) -> str:
    """Bytes, in the unit that leaves one to four digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def show_age(seconds: float) -> str:
    """A duration in its one or two largest units."""
    if seconds < 0:
        return "in the future"
    whole = int(seconds)
    for unit, length, part, shorter in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= length:
            return f"{whole // length}{unit} {whole % length // shorter}{part}"
    return f"{whole}s"
