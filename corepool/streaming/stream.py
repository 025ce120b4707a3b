"""A named stream of events: add to it, read it, share it out through a sink.

Purpose: the user's end of :class:`corepool.driver.StreamStore`.
Invariants: an event that `Stream.add` returned an id for is in the stream (as durable as the backend promises); a stream
that this object makes has this object's configuration, also if it was destroyed in between.
Neighbours: :mod:`corepool.streaming.reader` and :mod:`corepool.streaming.sink` read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from corepool.driver import (
    OLDEST,
    Backend,
    Event,
    Namespace,
    NewEvent,
    Start,
    StreamConfig,
    StreamStore,
    check_name,
    shorten,
)
from corepool.errors import InvalidKeyError, StreamSealed
from corepool.streaming.merge import Key
from corepool.streaming.reader import Reader
from corepool.streaming.sink import Sink
from corepool.streaming.topics import Pattern

__all__ = ["Stream"]

_DEFAULT = StreamConfig()


class Stream:
    """A stream on a backend. Cheap to make, holds no connection, needs no closing.

    config: for the stream that the first `add` or `create` makes; one that exists keeps its own.

    Raises:
        InvalidKeyError: the name or namespace is empty or too long.
    """

    def __init__(
        self, backend: Backend, name: str, *, namespace: str = "streams", config: StreamConfig = _DEFAULT
    ) -> None:
        check_name("a stream's name", name, backend.capabilities)  # here: a driver may look only when it is used
        self._backend = backend
        self._namespace = backend.namespace(namespace)
        self._store = self._namespace.stream(name)
        self._config = config

    def __repr__(self) -> str:
        return f"<Stream {self._namespace.name}/{self.name}>"

    @property
    def name(self) -> str:
        """The stream's name."""
        return self._store.name

    @property
    def namespace(self) -> Namespace:
        """Where it is kept."""
        return self._namespace

    @property
    def store(self) -> StreamStore:
        """What it stands on."""
        return self._store

    @property
    def backend(self) -> Backend:
        """The connection it uses."""
        return self._backend

    @property
    def config(self) -> StreamConfig:
        """What a stream that this object makes is made with."""
        return self._config

    @property
    def key(self) -> Key:
        """Its identity on the backend: namespace and name."""
        return (self._namespace.name, self._store.name)

    async def create(self) -> bool:
        """Make the stream exist, with the configuration of this object. True if this call made it."""
        return await self._store.create(self._config)

    async def exists(self) -> bool:
        """Whether the stream exists (a sealed one does)."""
        return await self._store.exists()

    async def add(self, name: str, payload: bytes, topic: str = "", *, only_if_exists: bool = False) -> str | None:
        """Append an event; returns its id. An absent stream is created; with ``only_if_exists`` nothing is appended to an
        absent or sealed one, and None is returned.

        Raises:
            StreamFull: wait, or raise ``max_length``. Nothing was appended.
            StreamSealed: the stream takes no more (without ``only_if_exists``).
            InvalidKeyError, PayloadTooLarge: nothing was sent.
            BackendUnavailable: certainly not appended. OutcomeUnknown: it may have been.
        """
        if not isinstance(topic, str):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
            raise InvalidKeyError(f"an event's topic is text (empty for none), not {shorten(topic)}")
        event = NewEvent(name, payload, topic)
        if only_if_exists or self._config == _DEFAULT:
            return await self._store.append(event, only_if_exists=only_if_exists)
        # A plain append would make an absent stream with the default configuration: a bounded one would be unbounded.
        was_there = False
        while True:
            event_id = await self._store.append(event, only_if_exists=True)
            if event_id is not None:
                return event_id
            if was_there and await self._store.exists():
                raise StreamSealed(f"stream {self.name!r} is sealed and takes no more events; destroy it to begin anew")
            was_there = not await self._store.create(self._config)

    async def remove(self, *ids: str) -> int:
        """Remove events by id; how many were there."""
        return await self._store.remove(ids)

    async def length(self) -> int:
        """How many events the stream holds; 0 if it does not exist."""
        return await self._store.length()

    async def range(self, after: str = "", limit: int = 100) -> list[Event]:
        """What it holds now, oldest first, after the id given; never waits."""
        return await self._store.range(after, limit)

    async def seal(self) -> None:
        """Take no more events; what is there can still be read, acked and removed."""
        await self._store.seal()

    async def destroy(self) -> None:
        """Remove the stream with its events and sinks. Readers and sinks of it live on and wait for its next life."""
        await self._store.destroy()

    async def reader(
        self,
        *,
        start: Start = OLDEST,
        topics: str | Iterable[str] = (),
        patterns: Pattern | Iterable[Pattern] = (),
        buffer: int = 64,
    ) -> Reader:
        """A reader of its own on this stream; add others with `Reader.add_stream`. See `Reader`."""
        reader = Reader(self._backend, topics=topics, patterns=patterns, buffer=buffer)
        try:
            await reader.add_stream(self, start=start)
        except BaseException:  # cancellation included: a half-open reader must not leave its pump behind
            await reader.aclose()
            raise
        return reader

    async def sink(
        self,
        name: str,
        *,
        start: Start = OLDEST,
        ack_wait: float = 30.0,
        topics: str | Iterable[str] = (),
        patterns: Pattern | Iterable[Pattern] = (),
        buffer: int = 16,
    ) -> Sink:
        """Join the sink ``name`` of this stream; add others with `Sink.add_stream`. See `Sink`."""
        sink = Sink(self._backend, name, ack_wait=ack_wait, topics=topics, patterns=patterns, buffer=buffer)
        await sink.add_stream(self, start=start)
        return sink

    async def read_now(self, after: str = "") -> Sequence[Event]:
        """Everything it holds now after the id given, oldest first: pages of `range` until one is empty."""
        events: list[Event] = []
        while page := await self.range(after):
            events.extend(page)
            after = page[-1].id
        return events
