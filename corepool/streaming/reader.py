"""Read events independently of everybody else, from one stream or from several at once.

Purpose: `Reader`: every wanted event once, each stream in its own order.
Invariants: reading holds up nobody (M4); a slow consumer fills a bounded buffer per stream and then stops the reading of that
stream; events of other topics are skipped here, on the client.
Neighbours: made by `Stream.reader`; pumps :class:`corepool.driver.Reading` through :mod:`corepool.streaming.merge`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

import attrs

from corepool.driver import OLDEST, After, Backend, Event, Reading, Start
from corepool.errors import BackendUnavailable, InvalidOptionError
from corepool.streaming.merge import Key, Merge, Source
from corepool.streaming.topics import Pattern, TopicFilter

if TYPE_CHECKING:
    from corepool.streaming.stream import Stream

__all__ = ["Message", "Reader"]


@attrs.frozen(slots=True)
class Message:
    """An event, with the stream it came from."""

    namespace: str
    stream: str
    event: Event

    @property
    def id(self) -> str:
        """The event's id: increases within its stream, compared as text."""
        return self.event.id

    @property
    def name(self) -> str:
        """The event's name."""
        return self.event.name

    @property
    def topic(self) -> str:
        """The event's topic, ``""`` if it has none."""
        return self.event.topic

    @property
    def payload(self) -> bytes:
        """The event's payload."""
        return self.event.payload

    @property
    def timestamp(self) -> float:
        """Seconds since 1970, by the store's clock."""
        return self.event.timestamp


class Reader:
    """Merges streams: ``async for message in reader``. Several tasks may iterate; each message goes to one of them.

    topics, patterns: which topics are wanted (see `TopicFilter`); none given: all.
    buffer: how many messages of each stream are fetched ahead.

    Iteration ends when the reader or its backend is closed. Start positions are those of :mod:`corepool.driver.streams`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        topics: str | Iterable[str] = (),
        patterns: Pattern | Iterable[Pattern] = (),
        buffer: int = 64,
    ) -> None:
        if buffer < 1:
            raise InvalidOptionError(f"a reader's buffer holds at least 1 message, not {buffer}")
        self._filter = TopicFilter(topics, patterns)
        self._merge: Merge[Message] = Merge(buffer, backend.random)
        self._closing: asyncio.Task[None] | None = None

    @property
    def streams(self) -> list[Key]:
        """Namespace and name of the streams it reads."""
        return self._merge.keys

    async def add_stream(self, stream: Stream, *, start: Start = OLDEST) -> bool:
        """Read this stream too, from ``start``. False: it is being read already, and goes on as it was.

        Raises:
            BackendUnavailable: the reader is closed.
        """
        if self._merge.closed:
            raise BackendUnavailable("the reader is closed; open another one")
        if stream.key in self._merge.keys:
            return False
        self._merge.add(stream.key, _Pump(stream, start, self._filter))
        await asyncio.sleep(0)  # the pump's first read is under way when this returns: it is what fixes NEWEST
        return True

    async def remove_stream(self, stream: Stream) -> bool:
        """Stop reading this stream; what was fetched and not taken is dropped. False: it was not being read."""
        known = stream.key in self._merge.keys
        await self._merge.remove(stream.key)
        return known

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        taken = await self._merge.take()
        if taken is None:
            raise StopAsyncIteration
        return taken[1]

    async def aclose(self) -> None:
        """Stop reading; iterations end. Idempotent, and safe to call concurrently."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="corepool reader close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._merge.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _Pump:
    """Fetches one stream into its source. Called again after a failure, it goes on after the last event it saw."""

    def __init__(self, stream: Stream, start: Start, topics: TopicFilter) -> None:
        self._stream = stream
        self._start = start
        self._topics = topics
        self._reading: Reading = stream.store.read(start)  # here, so that a bad position is the caller's error at once
        self._fresh = True

    async def __call__(self, source: Source[Message]) -> None:
        if not self._fresh:
            self._reading = self._stream.store.read(self._start)
        self._fresh = False
        namespace, name = self._stream.key
        try:
            while True:
                await source.room()
                try:
                    event = await anext(self._reading)
                except StopAsyncIteration:
                    return
                self._start = After(event.id)
                if self._topics.wants(event.topic):
                    source.put((Message(namespace, name, event),))
        finally:
            await self._reading.aclose()
