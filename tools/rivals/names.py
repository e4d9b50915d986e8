"""The values: the real topic names of Ethereum's consensus layer, and as many more of their kind as are wanted."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Final

from tools.traffic import FORK_DIGEST, consensus_topics

KINDS: Final = tuple(topic.split("/")[3].encode() for topic in consensus_topics())
FORKS: Final = 1 << 32  # there are as many fork digests


class Names:
    """Distinct names by number, the same for the same seed: number 0 and on are today's real ones, then those of other forks."""

    def __init__(self, seed: int) -> None:
        self._step = Random(seed).getrandbits(32) | 1  # odd: multiples of it stay distinct under a power of two

    def span(self, start: int, count: int) -> list[bytes]:
        """The names of numbers `start` to `start + count`, as fresh objects."""
        return self.pick(range(start, start + count))

    def pick(self, numbers: Iterable[int]) -> list[bytes]:
        kinds, first, step = len(KINDS), int(FORK_DIGEST, 16), self._step
        return [
            b"/eth2/%08x/%b/ssz_snappy" % (first ^ number // kinds * step % FORKS, KINDS[number % kinds]) for number in numbers
        ]
