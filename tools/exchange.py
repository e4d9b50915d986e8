"""Messages both ways between a fleet's application and the outside peer, counted at both ends.

Nothing is sent faster than it arrives: at most `WINDOW` messages are under way in each direction. That is not politeness.
Stock Pubsub drops what does not fit its queues, without a word: 32 messages for each subscription, which take what comes in
and, as it hears itself, what goes out (2 * 15 always fit), and 32 RPCs for each peer. No option changes either.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from tools.outside_peer import lines_of
from tools.traffic import INWARDS, OUTWARDS, Planned, number_of, payload, plan
from worker.errors import NodeError
from worker.node import Node

WINDOW: Final = 15
START_DEADLINE_S: Final = 60.0
STALL_S: Final = 15.0  # without one arrival: what is under way then is given up
SETTLE_S: Final = 1.0  # after the last arrival, for duplicates to show
POLL_S: Final = 0.1


class ExchangeError(Exception):
    """Messages could not be exchanged at all."""


@dataclass(slots=True)
class Direction:
    """What became of the messages of one direction."""

    planned: list[Planned]
    sent: int = 0
    delivered: set[int] = field(default_factory=set)
    duplicates: int = 0
    wrong: int = 0  # heard with other bytes or on another topic than was sent
    refused: int = 0  # not sent at all
    given_up: set[int] = field(default_factory=set)
    started: float = 0.0
    ended: float = 0.0
    changed: trio.Event = field(default_factory=trio.Event)

    @property
    def missing(self) -> set[int]:
        """Numbers of messages that did not arrive whole, sent or not."""
        return set(range(len(self.planned))) - self.delivered

    @property
    def settled(self) -> int:
        """Messages that are no longer under way."""
        return len(self.delivered | self.given_up)

    def heard(self, number: int | None) -> None:
        """Message `number` arrived; None if its bytes are not those that were sent."""
        if number is None:
            self.wrong += 1
        elif number in self.delivered:
            self.duplicates += 1
        else:
            self.delivered.add(number)
            self.ended = time.monotonic()
        self.wake()

    def give_up(self) -> None:
        """What was sent and did not arrive is lost: the rest may go on. With nothing under way, the sender is stuck: all is."""
        end = self.sent if self.sent > self.settled else len(self.planned)
        self.given_up.update(set(range(end)) - self.delivered)
        self.wake()

    def give_up_all(self) -> None:
        """Nothing more can arrive."""
        self.given_up.update(self.missing)
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Exchange:
    """One run: the application of a fleet on one side, the outside peer on the other."""

    def __init__(self, node: Node, outside: trio.Process, topics: list[str], message_count: int, seed: int) -> None:
        self.node = node
        self.outside = outside
        self.topics = topics
        self.seed = seed
        self.ready: dict[str, Any] = {}
        self.ended_early: str | None = None  # how the outside peer did
        self.outwards = Direction(plan(topics, message_count, OUTWARDS, seed))
        self.inwards = Direction(plan(topics, message_count, INWARDS, seed))
        self.became_ready = trio.Event()
        self.telling = trio.Lock()  # two tasks write to the outside peer

    async def run(self, progress: Callable[[int], None]) -> None:
        """Send everything both ways, and wait until it has arrived or stalled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.hear_outside)
            nursery.start_soon(self.hear_fleet)
            with trio.fail_after(START_DEADLINE_S):
                await self.became_ready.wait()
                await self.wait_for_meshes()
            self.outwards.started = self.inwards.started = time.monotonic()
            await self.tell_outside({"send": True})
            nursery.start_soon(self.send_outwards)
            for direction in (self.outwards, self.inwards):
                nursery.start_soon(self.watch, direction)
            total = len(self.outwards.planned) + len(self.inwards.planned)
            while (settled := self.outwards.settled + self.inwards.settled) < total:
                progress(settled)
                await trio.sleep(POLL_S)
            await trio.sleep(SETTLE_S)
            progress(total)
            nursery.cancel_scope.cancel()

    async def send_outwards(self) -> None:
        direction = self.outwards
        for message in direction.planned:
            while direction.sent - direction.settled >= WINDOW:
                await direction.changed.wait()
            try:
                await self.node.publish(message.topic.encode(), payload(message, OUTWARDS, self.seed))
            except NodeError as error:
                direction.refused += 1
                direction.given_up.add(message.number)
                print(f"message {message.number} was not sent: {error}", file=sys.stderr)
            direction.sent += 1

    async def hear_fleet(self) -> None:
        """What the outside peer sent and a shard delivered. Each arrival makes room for the next."""
        direction = self.inwards
        async for message in self.node:
            number = number_of(message.data)
            expected = direction.planned[number] if number is not None and number < len(direction.planned) else None
            right = (
                expected is not None
                and message.topic == expected.topic.encode()
                and message.data == payload(expected, INWARDS, self.seed)
            )
            direction.heard(number if right else None)
            await self.tell_outside({"arrived": direction.settled})

    async def hear_outside(self) -> None:
        """What the outside peer says: that it is ready, what it has sent, what it has heard."""
        assert self.outside.stdout is not None
        async with aclosing(lines_of(self.outside.stdout)) as lines:
            async for line in lines:
                words = json.loads(line)
                if "heard" in words:
                    self.outwards.heard(words["heard"])
                elif "sent" in words:
                    self.inwards.sent = words["sent"] + 1
                else:
                    self.ready = words["ready"]
                    self.became_ready.set()
        self.ended_early = f"the outside peer ended early ({await self.outside.wait()})"
        if not self.outwards.started:
            raise ExchangeError(self.ended_early)
        for direction in (self.outwards, self.inwards):
            direction.give_up_all()

    async def watch(self, direction: Direction) -> None:
        """Give up what does not arrive, so that a loss ends as a loss and not as a run that hangs."""
        while direction.settled < len(direction.planned):
            with trio.move_on_after(STALL_S) as scope:
                await direction.changed.wait()
            if scope.cancelled_caught:
                direction.give_up()
                if direction is self.inwards:
                    await self.tell_outside({"arrived": direction.settled})

    async def wait_for_meshes(self) -> None:
        """Until every shard has the outside peer in the mesh of every topic that it owns."""
        while sum(report["meshed"] for report in await self.node.report([])) < len(self.topics):
            await trio.sleep(POLL_S)

    async def tell_outside(self, words: dict[str, Any]) -> None:
        assert self.outside.stdin is not None
        async with self.telling:
            with suppress(trio.BrokenResourceError):  # it has ended, as `hear_outside` is about to find
                await self.outside.stdin.send_all(json.dumps(words).encode() + b"\n")
