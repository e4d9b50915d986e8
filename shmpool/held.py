"""Held: the topics that a process holds, so that to hold one again, or to give back what is not the last hold, takes no lock.

Guarantees:
- No count is lost between threads and signal handlers, and no hold is added to a topic whose last one just went: an entry goes
  before the last hold does, and from the look-up of an entry to the last store of a count nobody else runs. In C that is the GIL.
  In Python there is no call and no jump backwards in between, and only there does CPython switch threads or run handlers
  (3.11 to 3.13; a test looks at the byte code).
- In a child that C code forked past the hooks they do nothing: the words are its parent's.
"""

from typing import Final, Protocol

from shmpool import engine
from shmpool.engine import Entry
from shmpool.layout import TopicRef
from shmpool.lock import own_mark


class Hot(Protocol):
    """What is done many thousand times a second; None and False are for the caller to do it under the stripe's lock."""

    def take(self, value: bytes, /) -> TopicRef | None:
        """Hold a value once more, and count a use; its ref, or None and nothing was changed."""

    def give(self, ref: TopicRef, /) -> bool:
        """Give a hold back that is not the last; False, and nothing was changed, if it may be."""

    def use(self, value: bytes, /) -> TopicRef | None:
        """Count a use; the ref, or None and nothing was changed."""


class Held:
    """Entries by value and by ref, at most `size`: with one more all are forgotten, to be found again when they are needed."""

    def __init__(self, words: memoryview, size: int) -> None:
        self._words: Final = words
        self._size = max(1, size)
        self.by_value: dict[bytes, Entry] = {}
        self.by_ref: dict[TopicRef, Entry] = {}

    def hot(self) -> Hot:
        """The compiled engine's way, or this very object."""
        return engine.make_hot(self._words, self.by_value, self.by_ref, own_mark) or self

    def add(self, entry: Entry) -> None:
        if len(self.by_value) >= self._size:
            self.clear()
        self.by_ref[entry[0]] = entry
        self.by_value[entry[3]] = entry

    def drop(self, ref: TopicRef, value: bytes) -> Entry | None:
        """Forget an entry, and give it, if there was one. From then on its count changes only under the stripe's lock.

        By both keys, whatever the other says: a thread that adds while another is in the midst of `clear` leaves its entry in
        `by_value` alone, and a hold that is then taken through it would be of a topic that went.
        """
        by_value, by_ref = self.by_value.pop(value, None), self.by_ref.pop(ref, None)
        entry = by_ref or by_value
        return entry if entry and entry[0] == ref else None  # of a damaged record, the value may be another's

    def clear(self) -> None:
        self.by_value.clear()
        self.by_ref.clear()

    def take(self, value: bytes, /) -> TopicRef | None:
        try:
            ref, holds, uses, _ = self.by_value[value]
            if own_mark[0]:
                words = self._words
                words[uses] += 1
                words[holds] += 1
                return ref
        except (KeyError, TypeError, ValueError):  # the latter two of what is no bytes; or a damaged count that is full
            pass
        return None

    def give(self, ref: TopicRef, /) -> bool:
        try:
            holds = self.by_ref[ref][1]
        except (KeyError, TypeError, ValueError):
            return False
        words = self._words
        count = words[holds]
        if count > 1 and own_mark[0]:
            words[holds] = count - 1
            return True
        return False

    def use(self, value: bytes, /) -> TopicRef | None:
        try:
            ref, _, uses, _ = self.by_value[value]
            if own_mark[0]:
                self._words[uses] += 1
                return ref
        except (KeyError, TypeError, ValueError):
            pass
        return None
