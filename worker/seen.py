"""The `seen` cache: message ids observed in the last `seen_ttl`, so that nothing is processed or asked for twice.

`SeenCache` is a process's own. `SharedSeen` adds one that all shards of a host share and that outlives each of them, so that
a shard restarted after a crash, or a topic's new owner, neither delivers nor verifies again what this host has seen already.

What this host has seen is what it has *settled*: delivered, refused or published, not merely received. A message is settled
as the last thing before its bytes go into the socket of the first application that hears it. So delivery is at most once, over
crashes too: a shard killed
- before that (while the message is at validation, or waits in the application's queue) has not settled it: it is taken for new
  again, and comes by gossip if a peer still has it;
- between that and the end of the system call, or while an application that does not read blocks the write of its batch (at
  most 64 KiB), has settled it without delivering it: it is lost to that application, as gossip is to any peer that is away;
- after that has delivered it: the kernel keeps what was written. Other applications that hear the topic lose what waited in
  their queues.
At least once (settling after the write) was rejected: a message is written and not yet settled for as long as other tasks of
the shard run, milliseconds under load, so each crash would deliver some twice, which no application could tell from two
messages; while losses are few, and part of what gossip promises anyway.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Final, Protocol

from shmpool import PoolError
from worker.messages import MessageId

if TYPE_CHECKING:
    from shmpool import Pool

log = logging.getLogger(__name__)

MAX_ID_SIZE: Final = 64  # bytes of an id as it is shared: a longer one is shared as its digest, of just this size


class Seen(Protocol):
    """What the router remembers of message ids."""

    def add(self, message_id: MessageId, now: float) -> bool:
        """This process has received (or published) it. True if it had not before; then it is remembered for the ttl."""

    def has(self, message_id: MessageId, now: float) -> bool:
        """Whether this process has received it. Cheap: for whatever a peer names."""

    def is_settled(self, message_id: MessageId) -> bool:
        """Whether another process of this host has settled it, as far as is known here. To be asked only of what `has` denies."""

    def settle(self, message_id: MessageId) -> None:
        """What becomes of it on this host is decided: nobody here need look at it again. Again is harmless; never raises."""

    def forget_expired(self, now: float) -> None: ...

    def __len__(self) -> int: ...


class SeenCache:
    """Ids expire by when they were *first* seen (being seen again does not extend them), so they leave in the order they came
    and forgetting costs nothing per message. At `max_count` the oldest goes early: that can cost a duplicate, never memory."""

    def __init__(self, ttl_s: float, max_count: int) -> None:
        self._ttl_s = ttl_s
        self._max_count = max_count
        self._expiries: dict[MessageId, float] = {}  # in order of expiry, because insertion order is

    def add(self, message_id: MessageId, now: float) -> bool:
        if self.has(message_id, now):
            return False
        self._expiries.pop(message_id, None)  # an expired one must move to the end
        if len(self._expiries) >= self._max_count:
            del self._expiries[next(iter(self._expiries))]
        self._expiries[message_id] = now + self._ttl_s
        return True

    def has(self, message_id: MessageId, now: float) -> bool:
        expiry = self._expiries.get(message_id)
        return expiry is not None and expiry > now

    def is_settled(self, message_id: MessageId) -> bool:
        return False

    def settle(self, message_id: MessageId) -> None:
        """Nobody else is to know."""

    def forget_expired(self, now: float) -> None:
        while self._expiries:
            oldest = next(iter(self._expiries))
            if self._expiries[oldest] > now:
                return
            del self._expiries[oldest]

    def __len__(self) -> int:
        return len(self._expiries)


class SharedSeen:
    """A `SeenCache` in front of a pool of the settled ids of all shards.

    The pool's policy is `ttl`, by which ids go that nobody has held for so long, and its capacity bounds them: where room is
    needed the oldest go, as in a `SeenCache`. Each id is held only while it is put in. Where it cannot be (no memory), that is
    counted in `unsettled_count`, and can cost a duplicate after a crash.
    """

    def __init__(self, own: SeenCache, pool: Pool) -> None:
        self.settled_count = 0
        self.unsettled_count = 0
        self._own = own
        self._pool = pool

    def add(self, message_id: MessageId, now: float) -> bool:
        return self._own.add(message_id, now)

    def has(self, message_id: MessageId, now: float) -> bool:
        return self._own.has(message_id, now)

    def is_settled(self, message_id: MessageId) -> bool:
        return self._pool.lookup(_shared(message_id)) is not None

    def settle(self, message_id: MessageId) -> None:
        try:
            self._pool.release(self._pool.intern(_shared(message_id)))
        except PoolError as error:
            self.unsettled_count += 1
            if self.unsettled_count & (self.unsettled_count - 1) == 0:  # the 1st, 2nd, 4th, ...
                log.warning("%d message ids could not be shared so far: %s", self.unsettled_count, error)
        else:
            self.settled_count += 1

    def forget_expired(self, now: float) -> None:
        self._own.forget_expired(now)

    def __len__(self) -> int:
        return len(self._own)


def _shared(message_id: MessageId) -> bytes:
    # Ids come from strangers. Lengths keep them apart: nothing that is shared as it is has a digest's.
    return message_id if len(message_id) < MAX_ID_SIZE else hashlib.blake2b(message_id, digest_size=MAX_ID_SIZE).digest()
