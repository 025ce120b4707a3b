"""An ordered feed: everything a JetStream stream holds and gets on some subjects, in order, with no gap that goes unnoticed.

Purpose: a push consumer of our own on an inbox of our own, for the life of one link.
Invariants: records reach the handler in the order of their sequences, and consumer sequences are contiguous; a gap, a heartbeat
that tells of a message we did not get, silence for 2.5 heartbeats, the end of the link or of the consumer all end the feed with
`FeedLost`. Flow control is answered at once: handlers do not block. A consumer whose reader vanished is removed by the server
after ten seconds.
Neighbours: :mod:`corepool_nats.mapfeed` builds maps of it. nats-py's own ordered consumer is not used: it was measured to take
19 s to recover.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from corepool.errors import WireError
from corepool_nats import api
from corepool_nats.link import Link, LinkError, Message
from corepool_nats.records import Record, from_push

__all__ = ["Feed", "FeedLost"]

log = logging.getLogger("corepool.nats")


class FeedLost(Exception):
    """The feed ended; a new one is needed. Never leaves the driver."""


class Feed:
    """One consumer on one link. `open`, then `wait`; `close` whatever happened."""

    def __init__(
        self, link: Link, prefix: str, asset: str, heartbeat: float, handler: Callable[[Record], None]
    ) -> None:
        self._link = link
        self._api = prefix
        self._asset = asset
        self._heartbeat = heartbeat
        self._handler = handler
        self._name = f"cp-w-{secrets.token_hex(10)}"
        self._stop: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._seen = 0
        self._heard = 0.0
        self._recorded = 0.0
        self._lost = asyncio.Event()
        self._reason = ""
        self._created = False

    async def open(self, filters: Sequence[str], start: Mapping[str, object]) -> None:
        """Create the consumer; records may come before this returns.

        start: the consumer's ``deliver_policy`` and what belongs to it.

        Raises:
            FeedLost
        """
        inbox = self._link.new_inbox()
        config: dict[str, object] = {
            "name": self._name,
            "deliver_subject": inbox,
            "filter_subjects": list(filters),
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "flow_control": True,
            "idle_heartbeat": int(self._heartbeat * 1e9),
            "inactive_threshold": 10_000_000_000,
            "mem_storage": True,
            "num_replicas": 1,
            **start,
        }
        body = msgspec.json.encode({"stream_name": self._asset, "config": config})
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        try:
            self._stop = await self._link.subscribe(inbox, self._take)
            reply = await self._link.request(
                f"{self._api}.CONSUMER.CREATE.{self._asset}.{self._name}", body, timeout=max(5.0, self._heartbeat)
            )
            info = api.decode(reply.data, api.ConsumerInfo)
        except (LinkError, WireError) as error:
            raise FeedLost(str(error)) from None
        if info.error is not None:
            raise FeedLost(f"no consumer on {self._asset}: {info.error.description}")
        self._created = True

    async def wait(self, event: asyncio.Event | None = None, *, stall: float = math.inf) -> None:
        """Wait until the event is set; without one, until the feed is lost.

        stall: for how many seconds no record may come.

        Raises:
            FeedLost
        """
        loop = asyncio.get_running_loop()
        limit, began = 2.5 * self._heartbeat, loop.time()
        waits = [
            asyncio.ensure_future(each.wait()) for each in (self._lost, self._link.ended, event) if each is not None
        ]
        try:
            while True:
                if self._lost.is_set():
                    raise FeedLost(self._reason)
                if self._link.ended.is_set():
                    raise FeedLost(f"the connection ended: {self._link.reason}")
                if event is not None and event.is_set():
                    return
                left = limit - (loop.time() - self._heard)
                if left <= 0:
                    raise FeedLost(f"nothing was heard for {limit:g} s")
                moving = stall - (loop.time() - max(self._recorded, began))
                if moving <= 0:
                    raise FeedLost(f"the consumer stands still for {stall:g} s")
                left = min(left, moving)
                await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    async def close(self) -> None:
        """Stop listening and let the server forget the consumer. Never raises for a lost link."""
        if self._stop is not None:
            stop, self._stop = self._stop, None
            await stop()
        if self._created and not self._link.ended.is_set():
            self._created = False
            try:
                await self._link.send(f"{self._api}.CONSUMER.DELETE.{self._asset}.{self._name}", b"")
            except LinkError as error:
                log.debug("the server will forget consumer %s by itself: %s", self._name, error)

    def _end(self, reason: str) -> None:
        if not self._lost.is_set():
            self._reason = reason
            self._lost.set()

    def _take(self, message: Message) -> None:
        self._heard = asyncio.get_running_loop().time()
        if self._lost.is_set():
            return
        if message.status:
            self._control(message)
            return
        try:
            record = from_push(message)
            if record.consumer_sequence != self._seen + 1:
                self._end(f"delivery {record.consumer_sequence} came after {self._seen}")
                return
            self._seen = record.consumer_sequence
            self._recorded = self._heard
            self._handler(record)
        except FeedLost as error:
            self._end(str(error))
        except Exception as error:  # a handler's fault must end this feed, which else would miss a record
            log.exception("a record of %s could not be taken", self._asset)
            self._end(f"{type(error).__name__}: {error}")

    def _control(self, message: Message) -> None:
        if message.status != "100":
            self._end(f"the server ended the consumer: {message.status} {message.headers.get('Description', '')}")
            return
        last = message.headers.get("Nats-Last-Consumer")
        if last is not None and last != str(self._seen):
            self._end(f"the server delivered {last}, {self._seen} arrived")
            return
        answer = message.reply or message.headers.get("Nats-Consumer-Stalled")
        if answer:
            try:
                self._link.post(answer, b"")
            except LinkError as error:
                self._end(str(error))
