"""Policies: when a topic leaves the pool. Chosen when the pool is created, written in its header, never changed.

Under every policy but `forever` a topic stays as long as any process holds it. What nobody holds goes at once (`refcount`), stays
until more than so many are not held (`lru`), or until it was not held for so long (`ttl`).
"""

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final, Self

FOREVER: Final = 0
REFCOUNT: Final = 1
LRU: Final = 2
TTL: Final = 3
_NAMES: Final = {FOREVER: "forever", REFCOUNT: "refcount", LRU: "lru", TTL: "ttl"}
_MAX_UNHELD: Final = 1 << 31
_NS: Final = 1_000_000_000
_SHORTEST_TTL_S: Final = Decimal("1e-9")
_MAX_TTL_S: Final = 1 << 32  # a century


@dataclass(frozen=True, slots=True)
class Policy:
    """Made by `forever`, `refcount`, `lru`, `ttl` or `parse`; `str` gives what `parse` takes.

    `max_unheld`: topics that nobody holds and that stay all the same. `ttl_ns`: how long, in nanoseconds; 0 is for ever.
    """

    kind: int
    max_unheld: int
    ttl_ns: int

    def __post_init__(self) -> None:
        parameters = (self.max_unheld, self.ttl_ns)
        if (
            (self.kind in (FOREVER, REFCOUNT) and parameters == (0, 0))
            or (self.kind == LRU and 1 <= self.max_unheld <= _MAX_UNHELD and not self.ttl_ns)
            or (self.kind == TTL and self.max_unheld == _MAX_UNHELD and 1 <= self.ttl_ns <= _MAX_TTL_S * _NS)
        ):
            return
        raise ValueError(f"there is no policy of kind {self.kind} with {self.max_unheld} topics not held and {self.ttl_ns} ns")

    @classmethod
    def forever(cls) -> Self:
        """Nothing ever goes but by `reset`. Holds are not counted."""
        return cls(FOREVER, 0, 0)

    @classmethod
    def refcount(cls) -> Self:
        """A topic goes when the last process that holds it gives its last hold back, or is gone."""
        return cls(REFCOUNT, 0, 0)

    @classmethod
    def lru(cls, *, max_unheld: int) -> Self:
        """At most `max_unheld` topics that nobody holds are kept; then, or when room is needed, the longest unheld goes."""
        if not 1 <= max_unheld <= _MAX_UNHELD or max_unheld != int(max_unheld):
            raise ValueError(f"max_unheld must be 1 to {_MAX_UNHELD} topics, not {max_unheld} (none at all is 'refcount')")
        return cls(LRU, int(max_unheld), 0)

    @classmethod
    def ttl(cls, *, seconds: float | Decimal) -> Self:
        """A topic goes once nobody has held it for `seconds`; when room is needed, the longest unheld goes before."""
        # As it is written, not as binary floating point has it: so `parse` inverts `str` to the nanosecond.
        exact = Decimal(str(seconds))
        if not (exact.is_finite() and _SHORTEST_TTL_S <= exact <= _MAX_TTL_S):
            raise ValueError(f"seconds must be a nanosecond to {_MAX_TTL_S} s, not {seconds}")
        return cls(TTL, _MAX_UNHELD, int(exact * _NS))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The policy of a word: "forever", "refcount", "lru:1000" (topics) or "ttl:60" (seconds). Raises ValueError."""
        name, _, parameter = text.partition(":")
        try:
            if name == "lru" and parameter.isdecimal():
                return cls.lru(max_unheld=int(parameter))
            if name == "ttl" and parameter:
                return cls.ttl(seconds=Decimal(parameter))
            if text in ("forever", "refcount"):
                return cls(FOREVER if text == "forever" else REFCOUNT, 0, 0)
        except InvalidOperation:
            pass
        except ValueError as error:
            raise ValueError(f"{text!r} is no policy: {error}") from None
        raise ValueError(f"{text!r} is no policy: write 'forever', 'refcount', 'lru:TOPICS' or 'ttl:SECONDS'")

    @property
    def name(self) -> str:
        return _NAMES[self.kind]

    @property
    def counts_holds(self) -> bool:
        """Whether holds are counted, and with them topics freed and their space used again."""
        return self.kind != FOREVER

    @property
    def keeps_unheld(self) -> bool:
        """Whether a topic may stay that nobody holds."""
        return self.max_unheld > 0

    def __str__(self) -> str:
        if self.kind == LRU:
            return f"lru:{self.max_unheld}"
        return f"ttl:{(Decimal(self.ttl_ns) / _NS).normalize():f}" if self.kind == TTL else self.name
