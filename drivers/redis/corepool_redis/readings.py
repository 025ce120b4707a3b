"""One independent reader of a stream.

Purpose: :class:`corepool.driver.Reading` as a bounded buffer that a :class:`~corepool_redis.feeds.FeedReader` fills.
Invariants: ids only grow, so each event is handed out once and in order, also over a destruction of the stream (ids of its
next life begin past the old ones); with a full buffer it asks for nothing, so it holds a bounded amount and blocks nobody (M4).
Neighbours: :mod:`corepool_redis.feeds` feeds it, :mod:`corepool_redis.streams` makes it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import Self

from corepool.driver import After, Event, Newest, Oldest, Since, Start, shorten
from corepool.errors import BackendUnavailable, CorepoolError, InvalidOptionError, WireError
from corepool_redis.feeds import FeedReader
from corepool_redis.keys import EventId, decode_id, encode_id
from corepool_redis.link import Link, Refused
from corepool_redis.resp import Reply

__all__ = ["RedisReading", "newest_id", "read_event", "start_id"]

log = logging.getLogger("corepool.redis")

_MOST_EVENTS = 256
_MOST_SEQ = 2**64 - 1


def start_id(start: Start) -> EventId | None:
    """After which id to begin; None for the newest, which only the server knows.

    Raises:
        InvalidOptionError: the id or timestamp is none.
    """
    match start:
        case Oldest():
            return EventId(0, 0)
        case Newest():
            return None
        case After(id=""):
            return EventId(0, 0)
        case After(id=event_id):
            found = decode_id(event_id)
            if found is None:
                raise InvalidOptionError(f"{shorten(event_id)} is not the id of an event of this driver")
            return found
        case Since(timestamp=timestamp):
            if not math.isfinite(timestamp) or abs(timestamp) > 1e12:
                raise InvalidOptionError(f"a timestamp is a finite number of seconds, not {timestamp}")
            ms = math.ceil(round(timestamp * 1000, 3))  # rounded first: 1.001 * 1000 is a little more than 1001
            return EventId(ms - 1, _MOST_SEQ) if ms > 0 else EventId(0, 0)


async def newest_id(link: Link, key: bytes) -> EventId:
    """The id of the newest event that a stream ever had; of one that does not exist, one before all."""
    try:
        reply = await link.command("XINFO", "STREAM", key)
    except Refused as refused:
        if "no such key" in str(refused):
            return EventId(0, 0)
        raise BackendUnavailable(f"cannot find the stream's newest event: {refused}") from None
    facts = reply if isinstance(reply, list) else []
    for name, value in zip(facts[::2], facts[1::2], strict=False):
        if name == b"last-generated-id" and isinstance(value, bytes):
            return EventId.parse(value)
    raise WireError("the server does not tell a stream's newest id")


def read_event(raw_id: bytes, fields: list[Reply]) -> Event:
    """An entry of a stream as an event.

    Raises:
        WireError: no event of this driver.
    """
    found: dict[Reply, Reply] = {}
    for i in range(0, len(fields) - 1, 2):
        name = fields[i]
        if isinstance(name, bytes):
            found[name] = fields[i + 1]
    name, payload, topic, stamp = found.get(b"n"), found.get(b"p"), found.get(b"t", b""), found.get(b"s", b"")
    if not (
        isinstance(name, bytes) and isinstance(payload, bytes) and isinstance(topic, bytes) and isinstance(stamp, bytes)
    ):
        raise WireError("a stream holds an entry of another program")
    try:
        return Event(
            encode_id(raw_id),
            EventId.parse(raw_id).ms / 1000,
            name.decode(),
            payload,
            topic.decode(),
            int(stamp) if stamp else None,
        )
    except ValueError:
        raise WireError("a stream holds an entry of another program") from None


class RedisReading:
    """See :class:`corepool.driver.Reading`."""

    def __init__(self, feeds: FeedReader, link: Link, key: bytes, start: Start) -> None:
        self._feeds = feeds
        self._link = link
        self._key = key
        self._at = start_id(start)
        self._events: deque[Event] = deque()
        self._woken = asyncio.Event()
        self._paused = False
        self._closed = False
        self._resolving = asyncio.get_running_loop().create_task(self._begin(), name="corepool-redis-reading")

    async def _begin(self) -> None:
        while not self._closed:
            try:
                if self._at is None:
                    self._at = await newest_id(self._link, self._key)
                self._feeds.add(self)
                return
            except CorepoolError as error:  # iteration never raises for a lost server
                log.debug("a reading cannot begin yet: %s", error)
                await asyncio.sleep(0.1)

    # --- fed by the reader --------------------------------------------------------------------------------------------

    @property
    def key(self) -> bytes:
        return self._key

    @property
    def position(self) -> EventId | None:
        self._paused = len(self._events) >= _MOST_EVENTS
        return None if self._paused else self._at

    def offer(self, since: EventId, raw_id: bytes, fields: list[Reply]) -> None:
        """The next entry of a call that read from ``since`` on, perhaps for another reading of the same stream: one that
        stands before ``since`` (it was full when the call was made, and has room again) would skip what lies between."""
        found = EventId.parse(raw_id)
        if self._at is None or since > self._at or found <= self._at or len(self._events) >= 2 * _MOST_EVENTS:
            return
        self._at = found
        if not fields:
            return
        try:
            self._events.append(read_event(raw_id, fields))
        except WireError as error:  # set aside: it must not block the ones behind it
            log.warning("%s (%s); it is passed over", error, raw_id.decode())
            return
        self._woken.set()

    def end(self) -> None:
        """Stop: whoever waits wakes up. Idempotent."""
        self._closed = True
        self._resolving.cancel()
        self._woken.set()

    # --- iteration ----------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._closed:
            if self._events:
                event = self._events.popleft()
                if self._paused and len(self._events) < _MOST_EVENTS // 2:
                    self._paused = False
                    self._feeds.wake()
                return event
            self._woken.clear()
            await self._woken.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.end()
        self._feeds.remove(self)
