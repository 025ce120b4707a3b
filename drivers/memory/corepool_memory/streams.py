"""Streams: the client side of :mod:`corepool.driver.streams` on a `Transport`.

Purpose: checks before anything is sent, one request per call, and feeds that cannot grow without bound.
Invariants:

- a reading holds at most ``READ_WINDOW`` events: its feed ends after so many and is opened again, from the reading's own
  position, once they are read (M4); so nothing is lost or doubled by a new feed either;
- a sink member asks for deliveries only while somebody receives; what came too late for one that was cancelled waits here
  for the next ``receive``, and is given back if none comes before its ``ack_wait`` has passed.

Neighbours: `MemoryNamespace` makes the stores; `StreamSpace` gives the requests their meaning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Self

from corepool.driver import (
    OLDEST,
    After,
    Capabilities,
    Delivery,
    Event,
    Newest,
    NewEvent,
    Start,
    StreamConfig,
    check_duration,
    check_name,
    check_value,
)
from corepool.errors import BackendUnavailable, InvalidOptionError
from corepool_memory.feeds import Feed, Feeds
from corepool_memory.server import Server
from corepool_memory.server_streams import Batch
from corepool_memory.transport import Attach

__all__ = ["READ_WINDOW", "MemoryReading", "MemorySink", "MemoryStream", "check_event"]

_DEFAULT_CONFIG = StreamConfig()

READ_WINDOW = 256
"""Events a reading is sent before it must ask for more."""


def check_event(event: NewEvent, capabilities: Capabilities) -> None:
    """Raises:
    InvalidKeyError, PayloadTooLarge
    """
    check_name("an event's name", event.name, capabilities)
    if event.topic:
        check_name("a topic", event.topic, capabilities)
    check_value(event.payload, capabilities)


class MemoryReading:
    """An independent reader (see `corepool.driver.Reading`). Where it starts is decided when it is made."""

    def __init__(self, feeds: Feeds, namespace: str, stream: str, start: Start) -> None:
        self._namespace = namespace
        self._stream = stream
        self._start = start
        self._left = 0  # how many more events the feed sends
        self._events: deque[Event] = deque()
        self._feed: Feed[Batch] = Feed(feeds, f"read {stream}", attach=self._attach, receive=self._receive)
        self._feed.open()

    def _attach(self) -> Attach[Batch]:
        namespace, stream, start = self._namespace, self._stream, self._start
        self._left = READ_WINDOW
        return lambda server, push: server.streams(namespace).read(stream, start, READ_WINDOW, push)

    def _receive(self, batch: Batch) -> None:
        self._events.extend(batch.events)
        if batch.position is not None:
            self._start = After(batch.position)
        self._left -= len(batch.events)
        if self._left <= 0:
            self._feed.drop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._feed.closed:
            if self._events:
                return self._events.popleft()
            await self._feed.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._feed.close()
        self._events.clear()


class MemorySink:
    """One member of a sink (see `corepool.driver.SinkStore`)."""

    def __init__(self, feeds: Feeds, namespace: str, stream: str, name: str, start: Start, ack_wait: float) -> None:
        self._transport = feeds.transport
        self._namespace = namespace
        self._stream = stream
        self._name = name
        self._id = f"{feeds.transport.random.getrandbits(64):016x}"
        self._member = (
            ""  # another one for each feed: requests of an old connection may still arrive, and mean the old one
        )
        self._attachments = 0
        # The sink was made by join, at its start, if the stream existed. If it has to be made again, then in a later
        # life of the stream, of which nothing may be missed.
        self._start = OLDEST if isinstance(start, Newest) else start
        self._ack_wait = ack_wait
        self._wanted = 0  # what the server was asked for and has not answered
        self._buffer: deque[tuple[float, Delivery]] = deque()  # with the time after which a delivery is void
        self._feed: Feed[tuple[Delivery, ...]] = Feed(
            feeds, f"sink {name} of {stream}", attach=self._attach, receive=self._receive, opened=self._ask_again
        )
        self._feed.open()

    def _attach(self) -> Attach[tuple[Delivery, ...]]:
        self._attachments += 1
        self._member = f"{self._id}.{self._attachments}"
        namespace, stream, name, member = self._namespace, self._stream, self._name, self._member
        start, ack_wait = self._start, self._ack_wait
        return lambda server, push: server.streams(namespace).attach(stream, name, member, start, ack_wait, push)

    def _receive(self, batch: tuple[Delivery, ...]) -> None:
        self._wanted = 0
        void = self._transport.clock.monotonic() + self._ack_wait
        self._buffer.extend((void, delivery) for delivery in batch)

    def _ask(self, count: int) -> None:
        namespace, stream, name, member = self._namespace, self._stream, self._name, self._member
        self._wanted = count
        self._transport.send("want", lambda server: server.streams(namespace).want(stream, name, member, count))

    def _ask_again(self) -> None:
        if self._wanted:
            self._ask(self._wanted)

    def _take(self, count: int) -> list[Delivery]:
        """Deliveries that came and are not void: those went to somebody else in the meantime."""
        if not self._buffer:
            return []
        now = self._transport.clock.monotonic()
        taken: list[Delivery] = []
        while self._buffer and len(taken) < count:
            void, delivery = self._buffer.popleft()
            if void > now:
                taken.append(delivery)
        return taken

    async def receive(self, max_events: int = 1) -> list[Delivery]:
        if max_events < 1:
            raise InvalidOptionError(f"receive(max_events={max_events}): ask for at least one event")
        while not self._feed.closed:
            if taken := self._take(max_events):
                return taken
            self._feed.open()
            self._ask(max(max_events, self._wanted))
            if self._buffer:  # the answer came at once
                continue
            try:
                await self._feed.wait()
            finally:
                if not self._feed.waited_for and not self._buffer:  # cancelled (or lost): nobody waits any more
                    self._ask(0)
        raise BackendUnavailable(f"sink {self._name!r} of stream {self._stream!r} is closed")

    async def ack(self, receipts: Sequence[str]) -> list[bool]:
        wanted = tuple(receipts)
        namespace, stream, name = self._namespace, self._stream, self._name
        return await self._transport.call(
            "ack", lambda server: server.streams(namespace).ack(stream, name, wanted), write=True
        )

    async def nack(self, receipt: str, delay: float = 0.0) -> bool:
        check_duration("nack's delay", delay, zero=True)
        namespace, stream, name = self._namespace, self._stream, self._name
        return await self._transport.call(
            "nack", lambda server: server.streams(namespace).nack(stream, name, receipt, delay), write=True
        )

    async def extend(self, receipt: str) -> bool:
        namespace, stream, name = self._namespace, self._stream, self._name
        return await self._transport.call(
            "extend", lambda server: server.streams(namespace).extend(stream, name, receipt), write=True
        )

    async def aclose(self) -> None:
        """Leave. What nobody received yet goes to others at once; what was received, after its ``ack_wait``."""
        if self._feed.closed:
            return
        self._feed.close()
        unread = tuple(delivery.receipt for _, delivery in self._buffer)
        self._buffer.clear()
        if unread:
            namespace, stream, name = self._namespace, self._stream, self._name

            def give_back(server: Server) -> None:
                for receipt in unread:
                    server.streams(namespace).nack(stream, name, receipt, 0.0)

            self._transport.send("give back", give_back)


class MemoryStream:
    """One stream (see `corepool.driver.StreamStore`)."""

    def __init__(self, feeds: Feeds, capabilities: Capabilities, namespace: str, name: str) -> None:
        self._feeds = feeds
        self._call = feeds.transport.call
        self._capabilities = capabilities
        self._namespace = namespace
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    async def create(self, config: StreamConfig = _DEFAULT_CONFIG) -> bool:
        if config.max_length is not None and config.max_length < 1:
            raise InvalidOptionError(f"max_length is {config.max_length}; it must be at least 1, or None for no limit")
        namespace, name = self._namespace, self._name
        return await self._call("create", lambda server: server.streams(namespace).create(name, config), write=True)

    async def exists(self) -> bool:
        namespace, name = self._namespace, self._name
        return await self._call("exists", lambda server: server.streams(namespace).exists(name), write=False)

    async def append(self, event: NewEvent, *, only_if_exists: bool = False) -> str | None:
        check_event(event, self._capabilities)
        namespace, name = self._namespace, self._name
        return await self._call(
            "append", lambda server: server.streams(namespace).append(name, event, only_if_exists), write=True
        )

    async def seal(self) -> None:
        namespace, name = self._namespace, self._name
        await self._call("seal", lambda server: server.streams(namespace).seal(name), write=True)

    async def destroy(self) -> None:
        namespace, name = self._namespace, self._name
        await self._call("destroy stream", lambda server: server.streams(namespace).destroy(name), write=True)

    async def length(self) -> int:
        namespace, name = self._namespace, self._name
        return await self._call("length", lambda server: server.streams(namespace).length(name), write=False)

    async def remove(self, ids: Sequence[str]) -> int:
        wanted = tuple(ids)
        namespace, name = self._namespace, self._name
        return await self._call("remove", lambda server: server.streams(namespace).remove(name, wanted), write=True)

    def read(self, start: Start = OLDEST) -> MemoryReading:
        return MemoryReading(self._feeds, self._namespace, self._name, start)

    async def range(self, after: str = "", limit: int = 100) -> list[Event]:
        if limit < 0:
            raise InvalidOptionError(f"range(limit={limit}): it cannot be negative")
        namespace, name = self._namespace, self._name
        return await self._call(
            "range", lambda server: server.streams(namespace).range(name, after, limit), write=False
        )

    async def sink(self, name: str, *, start: Start = OLDEST, ack_wait: float = 30.0) -> MemorySink:
        check_name("a sink's name", name, self._capabilities)
        check_duration("ack_wait", ack_wait)
        namespace, stream = self._namespace, self._name
        await self._call(
            "sink", lambda server: server.streams(namespace).join(stream, name, start, ack_wait), write=True
        )
        return MemorySink(self._feeds, namespace, stream, name, start, ack_wait)
