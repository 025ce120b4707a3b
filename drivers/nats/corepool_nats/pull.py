"""Pulling from a consumer, so that nothing is lost when a caller gives up waiting.

Purpose: one outstanding request at a time; what arrives is kept until somebody takes it.
Invariants:

- Messages come only for a request of ours, at most as many as it asked for: an unread pull holds no more (M4).
- A cancelled `wait` leaves the request open and its messages in `arrived` (M6). (nats-py's ``fetch`` drops them: 15 to 79 of
  2,000 were lost until ``ack_wait``.)
- The end of the link or of the consumer, and silence of a request beyond its heartbeats, raise `PullLost` in `wait`.

Neighbours: readings and sinks; each makes a new pull, and a new consumer if it must, when one is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import attrs

from corepool.errors import WireError
from corepool_nats.link import Link, LinkError, Message
from corepool_nats.records import Record, from_push

__all__ = ["Arrived", "Pull", "PullLost"]

log = logging.getLogger("corepool.nats")

EXPIRES = 30.0


class PullLost(Exception):
    """This pull brings nothing more. Never leaves the driver. ``gone``: the consumer does not exist any more."""

    def __init__(self, reason: str, *, gone: bool = False) -> None:
        super().__init__(reason)
        self.gone = gone


@attrs.frozen(slots=True)
class Arrived:
    """A message, the subject to answer it on, and when it came by the loop's clock."""

    record: Record
    reply: str
    at: float


class Pull:
    """Requests to one consumer on one link."""

    def __init__(self, link: Link, prefix: str, asset: str, consumer: str, heartbeat: float) -> None:
        self.link = link
        self.arrived: deque[Arrived] = deque()
        self._subject = f"{prefix}.CONSUMER.MSG.NEXT.{asset}.{consumer}"
        self._heartbeat = min(heartbeat, EXPIRES / 3)
        self._stop: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._stops: tuple[asyncio.Event, ...] = ()
        self._watching: asyncio.Task[None] | None = None
        self._inbox = link.new_inbox()
        self._number = 0
        self._due = 0
        """How many messages the open request may still bring; 0: none is open."""
        self._heard = 0.0
        self._progress = asyncio.Event()
        self._lost: PullLost | None = None
        self._refused = False

    async def open(self, *stops: asyncio.Event) -> None:
        """Listen. Once one of the events is set, nobody waits here any more.

        Raises:
            PullLost
        """
        self._stops = stops
        try:
            self._stop = await self.link.subscribe(f"{self._inbox}.*", self._take)
        except LinkError as error:
            raise PullLost(str(error)) from None
        self._watching = asyncio.create_task(self._watch(), name="corepool-nats-pull")

    async def _watch(self) -> None:
        """Wake whoever waits when an event is set or the link ends. One task for the life of the pull: `wait` needs none."""
        waits = [asyncio.ensure_future(event.wait()) for event in (*self._stops, self.link.ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
            self._progress.set()

    async def wait(self, most: int) -> None:
        """Return once something has arrived, or one of the events of `open` is set.

        most: how many messages to ask for, if a request has to be made.

        Raises:
            PullLost
        """
        loop = asyncio.get_running_loop()
        while not (self.arrived or any(stop.is_set() for stop in self._stops)):
            if self.link.ended.is_set():
                raise PullLost(f"the connection ended: {self.link.reason}")
            if self._lost is not None:
                raise self._lost
            if self._due == 0:
                if self._refused:  # an election, or too many others wait: not again at once
                    self._refused = False
                    await asyncio.sleep(0.05)
                    continue
                self._ask(most)
            silent = loop.time() - self._heard
            if silent > 2.5 * self._heartbeat:
                raise PullLost(f"nothing was heard for {silent:.1f} s")
            self._progress.clear()
            alarm = loop.call_later(2.5 * self._heartbeat - silent + 0.01, self._progress.set)
            try:
                await self._progress.wait()
            finally:
                alarm.cancel()

    def _ask(self, most: int) -> None:
        self._number += 1
        body = b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (most, EXPIRES * 1e9, self._heartbeat * 1e9)
        self._due = most
        self._heard = asyncio.get_running_loop().time()
        try:
            self.link.post(self._subject, body, reply=f"{self._inbox}.{self._number}")
        except LinkError as error:
            raise PullLost(str(error)) from None

    async def close(self) -> None:
        """Stop listening: the server keeps what it would have sent. Never raises for a lost link."""
        if self._watching is not None:
            self._watching.cancel()
        if self._stop is not None:
            stop, self._stop = self._stop, None
            await stop()

    def _take(self, message: Message) -> None:
        self._heard = asyncio.get_running_loop().time()
        if message.status:
            if message.status != "100" and message.subject.endswith(f".{self._number}"):
                self._over(message)
            return
        try:
            record = from_push(message)
        except WireError as error:
            log.warning("a delivery is left aside: %s", error)
            return
        self._due = max(0, self._due - 1)
        self.arrived.append(Arrived(record, message.reply, self._heard))
        self._progress.set()

    def _over(self, message: Message) -> None:
        """The server ended the open request."""
        self._due = 0
        self._refused = message.status == "409"
        text = message.headers.get("Description", "")
        if message.status == "503":
            self._lost = PullLost("nobody serves the consumer", gone=True)
        elif message.status == "409" and "consumer deleted" in text.lower():
            self._lost = PullLost("the consumer was deleted", gone=True)
        elif message.status not in ("404", "408", "409"):
            self._lost = PullLost(f"the server refuses the request: {message.status} {text}")
        elif message.status == "409" and "exceed" in text.lower():
            log.warning("a pull request was refused: %s", text)
        self._progress.set()
