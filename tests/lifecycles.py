"""What a pool whose topics can go promises, as a dict with holds and a clock: the model that tests hold a Pool against.

It cannot foresee a ref, nor which of several topics goes first that were last held at the same instant: it is told each, and
holds it against the rules. Attachments are numbers, never used again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shmpool import Policy, TopicRef

COUNTED = ("hits", "misses", "inserts", "frees", "evictions", "reaped")


@dataclass(slots=True)
class Topic:
    """`ref` is 0 until it is told; `unheld_since` is None while somebody holds it."""

    ref: int = 0
    holds: Counter[int] = field(default_factory=Counter)
    unheld_since: int | None = None
    uses: int = 0


class Lifecycles:
    """Every operation tells whether it must succeed, and changes what it must; `settle` is told what is there afterwards."""

    def __init__(self, policy: Policy, budget: int, clock: Callable[[], int]) -> None:
        self.policy, self.budget, self.clock = policy, budget, clock
        self.topics: dict[bytes, Topic] = {}
        self.refs: dict[int, bytes] = {}  # every ref that was ever given, and of what
        self.stale: set[int] = set()
        self.counters: dict[int, Counter[str]] = {}
        self.published: dict[int, Counter[str]] = {}  # as of each attachment's last flush
        self.rows: dict[int, int] = {}  # of attachments that nobody has taken over
        self.killed: set[int] = set()
        self.untold: dict[int, int] = {}  # holds of killed processes whose rows were taken, until `reap` tells of them
        self.due = 0  # evictions that must have been done, of topics yet to be told
        self.room = 0  # or the limit below which topics had to go, whatever their age

    # ---- what is there

    def find(self, value: bytes) -> Topic | None:
        topic = self.topics.get(value)
        return None if topic is None or self.is_expired(topic) else topic

    def is_expired(self, topic: Topic) -> bool:
        since = topic.unheld_since
        return bool(self.policy.ttl_ns) and since is not None and since + self.policy.ttl_ns <= self.clock()

    def find_ref(self, ref: int) -> Topic | None:
        """The live topic of a ref."""
        value = self.refs.get(ref)
        topic = None if value is None else self.find(value)
        return topic if topic and topic.ref == ref and (topic.holds or self.policy.keeps_unheld) else None

    def is_kept_though_old(self, ref: int) -> bool:
        topic = self.topics.get(self.refs.get(ref, b""))
        return topic is not None and topic.ref == ref and self.is_expired(topic)

    def held(self) -> list[Topic]:
        return [topic for topic in self.topics.values() if topic.holds]

    def unheld_count(self) -> int:
        return len(self.topics) - len(self.held()) - self.due

    def total(self) -> int:
        return len(self.topics) - self.due if self.policy.keeps_unheld else len(self.held())

    def holds_of(self, who: int) -> int:
        return sum(topic.holds[who] for topic in self.topics.values())

    # ---- values and refs

    def intern(self, who: int, value: bytes, limit: int) -> bool:
        topic = self.find(value)
        if topic is None:
            if value in self.topics:
                self._goes(who, value, "evictions")
            if not self._make_room(who, limit):
                return False
            topic = self.topics[value] = Topic()
            self.counters[who] += Counter(misses=1, inserts=1)
        else:
            self.counters[who]["hits"] += 1
        topic.holds[who] += 1
        topic.unheld_since = None
        topic.uses += 1
        return True

    def _make_room(self, who: int, limit: int) -> bool:
        if self.counters[who]["inserts"] >= self.budget:
            return False
        if self.total() < limit:
            return True
        self.reap(who)
        if len(self.held()) >= limit:
            return False
        self.room = limit
        if not self.policy.ttl_ns:
            self.due += max(0, self.total() - limit + 1)
        return True

    def told(self, value: bytes, ref: int) -> None:
        """The pool gave `ref` for a value that is in it."""
        topic = self.topics[value]
        assert 0 < ref < 2**63
        if not topic.ref:
            assert ref not in self.refs, f"{ref} was the ref of {self.refs[ref]!r} and is that of {value!r}"
            topic.ref = ref
            self.refs[ref] = value
        assert topic.ref == ref

    def lookup(self, who: int, value: bytes) -> TopicRef | None:
        topic = self.find(value)
        self.counters[who]["hits" if topic else "misses"] += 1
        if topic:
            topic.uses += 1
        return TopicRef(topic.ref) if topic else None

    def release(self, who: int, ref: int) -> str:
        """What must happen: "ok", or the name of an error."""
        topic = self.find_ref(ref)
        if topic is None:
            return "stale"
        if not topic.holds[who]:
            return "not held"
        self._give_back(topic, who, 1)
        self._trim()
        return "ok"

    def give_back(self, who: int, value: bytes) -> None:
        """A release by value, of what was held in a batch that failed."""
        self._give_back(self.topics[value], who, 1)
        self._trim()

    def _give_back(self, topic: Topic, who: int, count: int) -> None:
        topic.holds.subtract({who: count})
        topic.holds += Counter()
        if not topic.holds:
            topic.unheld_since = self.clock()

    def _give_back_all(self, who: int) -> int:
        total = self.holds_of(who)
        for topic in self.topics.values():
            if topic.holds[who]:
                self._give_back(topic, who, topic.holds[who])
        self._trim()
        return total

    def _trim(self) -> None:
        if self.policy.keeps_unheld:
            self.due += max(0, self.unheld_count() - self.policy.max_unheld)

    # ---- processes

    def attach(self, who: int, row: int) -> None:
        """Who takes a killed process's row gives back what it held."""
        self.counters[who], self.published[who] = Counter(), Counter()
        for other in [other for other, its in self.rows.items() if its == row]:
            assert other in self.killed
            del self.rows[other]
            self.killed.discard(other)
            self.untold[who] = self._give_back_all(other)
            self.counters[who]["reaped"] += self.untold[who]
        self.rows[who] = row

    def close(self, who: int) -> None:
        self._give_back_all(who)
        del self.rows[who]

    def flush(self, who: int) -> None:
        self.published[who] = self.counters[who].copy()

    def total_published(self) -> dict[str, int]:
        return {name: sum(counters[name] for counters in self.published.values()) for name in COUNTED}

    def published_by(self, who: int) -> dict[str, int]:
        return {name: self.published[who][name] for name in COUNTED}

    def kill(self, who: int) -> None:
        self.killed.add(who)
        self.counters[who] = self.published[who].copy()

    def reap(self, who: int) -> int:
        count = sum(map(self._give_back_all, sorted(self.killed)))
        self.counters[who]["reaped"] += count
        return count + self.untold.pop(who, 0)

    def reset(self) -> None:
        self.stale |= {topic.ref for topic in self.topics.values()}
        self.topics.clear()

    # ---- what went

    def settle(self, who: int, present: Mapping[int, bytes]) -> None:
        """After an operation of `who`: `present` are the refs and values of all that is in the pool, too old or not."""
        for ref, value in present.items():
            if value in self.topics and not self.topics[value].ref:
                self.told(value, ref)  # an insert of a batch that failed
        gone = {value: topic for value, topic in self.topics.items() if topic.ref not in present}
        kept = [topic for topic in self.topics.values() if topic.ref in present and not topic.holds]
        assert not any(topic.holds for topic in gone.values()), f"topics went that are held: {gone}"
        if not self.policy.keeps_unheld:
            assert not kept, f"topics that nobody holds have not gone: {kept}"
        elif not self.policy.ttl_ns:
            assert len(gone) == self.due, f"{self.due} topics had to go, and {len(gone)} went"
        elif not all(map(self.is_expired, gone.values())):
            assert len(present) == self.room, f"topics went that were neither old nor in the way: {gone}"
        if self.policy.keeps_unheld and gone:
            last = max(topic.unheld_since or 0 for topic in gone.values())
            assert all((topic.unheld_since or 0) >= last for topic in kept), "a topic went before one unheld for longer"
        for value in gone:
            self._goes(who, value, "evictions" if self.policy.keeps_unheld else "frees")
        assert present == {topic.ref: value for value, topic in self.topics.items()}
        self.due = self.room = 0

    def _goes(self, who: int, value: bytes, how: str) -> None:
        self.stale.add(self.topics.pop(value).ref)
        self.counters[who][how] += 1
