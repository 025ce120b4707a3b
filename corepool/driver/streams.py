"""The event stream's store: the protocol a driver implements, and its value types.

Purpose: say exactly what a stream on a backend promises, and nothing of how it is done.
Invariants (each has a test of the same name in the conformance kit):

- **S1** events of one stream have ids that increase, compared as strings, in append order (also across destroy and
  re-creation), and the store's timestamp.
- **S2** an event given to a sink and not acked within ``ack_wait`` is delivered again, to some live member; after an ack
  that returned True it never is. A receipt is a string: any process may ack with it.
- **S3** a member that vanished leaves nothing behind: its events are delivered again before it is forgotten, and its
  bookkeeping is gone when the next member joins, or within 3 x ack_wait.
- **S4** a stream never drops what nobody acked. A full work stream rejects (`StreamFull`); only a log drops its oldest.
- **S5** after ``destroy`` is acknowledged, no append with ``only_if_exists`` revives the stream.

M4 (nobody blocks others), M5 (outcome) and M6 (cancellation) of :mod:`corepool.driver.maps` hold here too.
Neighbours: implemented by drivers, used by ``corepool.streaming`` and ``corepool.pool``.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol, Self, TypeAlias

import msgspec

__all__ = [
    "NEWEST",
    "OLDEST",
    "After",
    "Delivery",
    "Event",
    "NewEvent",
    "Newest",
    "Oldest",
    "Reading",
    "Since",
    "SinkStore",
    "Start",
    "StreamConfig",
    "StreamKind",
    "StreamStore",
]


class NewEvent(msgspec.Struct, frozen=True, gc=False):
    """An event to append: a name, an optional topic, and a payload."""

    name: str
    payload: bytes
    topic: str = ""


class Event(msgspec.Struct, frozen=True, gc=False):
    """An event as the stream holds it.

    id: increases in append order, compared as a string (S1).
    timestamp: seconds since 1970 by the store's clock: for people, and for ``Since``.
    stamp: the revision of the map write that the event was appended with (see :class:`corepool.driver.backend.Append`).
    """

    id: str
    timestamp: float
    name: str
    payload: bytes
    topic: str = ""
    stamp: int | None = None


class StreamKind(enum.Enum):
    """WORK rejects when full (backpressure); LOG drops its oldest events, and holds its newest ``max_length``."""

    WORK = "work"
    LOG = "log"


class StreamConfig(msgspec.Struct, frozen=True, gc=False):
    """How a stream behaves when it is full. ``max_length`` None: bounded by the backend alone."""

    kind: StreamKind = StreamKind.WORK
    max_length: int | None = None


# --- where to start reading ------------------------------------------------------------------------------------------


class Oldest(msgspec.Struct, frozen=True, gc=False):
    """From the oldest event the stream still holds."""


class Newest(msgspec.Struct, frozen=True, gc=False):
    """Only what is appended after `StreamStore.sink` returned, or after the reader's first ``__anext__`` reached the store."""


class After(msgspec.Struct, frozen=True, gc=False):
    """What follows the event with this id, whether or not the stream still holds it."""

    id: str


class Since(msgspec.Struct, frozen=True, gc=False):
    """From the first event whose timestamp is at or after ``timestamp`` (seconds since 1970, the store's clock)."""

    timestamp: float


Start: TypeAlias = Oldest | Newest | After | Since
OLDEST = Oldest()
NEWEST = Newest()


class Reading(Protocol):
    """An independent reader: every event from its start on, once, in order.

    It survives lost connections, and destruction of the stream: it then waits for the stream's next life. Iteration ends
    when the reading or its backend is closed. A log that dropped events the reader had not reached makes it go on with the
    oldest that is left.
    """

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Event: ...

    async def aclose(self) -> None:
        """End the reading; a pending ``__anext__`` ends with ``StopAsyncIteration``. Idempotent."""
        ...


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """An event handed to one member of a sink. ``attempt`` is 1 on the first delivery and larger on later ones
    (2 where the backend cannot count)."""

    event: Event
    receipt: str
    attempt: int


class SinkStore(Protocol):
    """This member's end of a sink (a consumer group) on one stream."""

    async def receive(self, max_events: int = 1) -> list[Delivery]:
        """Between one and ``max_events`` deliveries; waits until there is one.

        Cancelling it loses nothing: what was fetched is handed to the next ``receive`` or redelivered (S2). If the stream is
        destroyed it waits for the next life of the stream, with the same sink re-created at its oldest event.

        Raises:
            BackendUnavailable: never for a lost connection (it reconnects); only once the sink or backend is closed.
        """
        ...

    async def ack(self, receipts: Sequence[str]) -> list[bool]:
        """Acknowledge. True: the event is done and never delivered again. False: the receipt was no longer valid (the
        event was redelivered, or is gone already), or never was one."""
        ...

    async def nack(self, receipt: str, delay: float = 0.0) -> bool:
        """Give back: delivered again, to any member, not before ``delay`` seconds. False: no longer valid."""
        ...

    async def extend(self, receipt: str) -> bool:
        """Start the ``ack_wait`` of a delivery afresh. False: no longer valid, somebody else may have it."""
        ...

    async def aclose(self) -> None:
        """Leave the sink; what is unacked is delivered to others, at the latest after ``ack_wait``. Idempotent."""
        ...


class StreamStore(Protocol):
    """One named stream on a backend. Cheap to make; holds no connection of its own."""

    @property
    def name(self) -> str: ...

    async def create(self, config: StreamConfig = StreamConfig()) -> bool:  # noqa: B008  a frozen value
        """Make the stream exist. True if this call made it; an existing stream keeps its configuration, and its seal."""
        ...

    async def exists(self) -> bool:
        """Whether the stream exists (a sealed one does)."""
        ...

    async def append(self, event: NewEvent, *, only_if_exists: bool = False) -> str | None:
        """Append; returns the event's id. An absent stream is created with the default configuration; with
        ``only_if_exists`` nothing is appended to an absent or sealed stream and None is returned (S5).

        Raises:
            StreamFull: a work stream holds ``max_length`` events already.
            StreamSealed: the stream is sealed (without ``only_if_exists``).
            PayloadTooLarge, BackendUnavailable, OutcomeUnknown
        """
        ...

    async def seal(self) -> None:
        """Take no more appends. What is there can still be read, acked and removed. An absent stream stays absent."""
        ...

    async def destroy(self) -> None:
        """Remove the stream with its events, its sinks, its configuration and its seal. Idempotent (S5)."""
        ...

    async def length(self) -> int:
        """How many events the stream holds; 0 if it does not exist. An acked event is not held by a work stream that
        has one sink."""
        ...

    async def remove(self, ids: Sequence[str]) -> int:
        """Remove events; how many were there. What is no id of this stream counts as not there."""
        ...

    def read(self, start: Start = OLDEST) -> Reading:
        """A new independent reader."""
        ...

    async def range(self, after: str = "", limit: int = 100) -> list[Event]:
        """What the stream holds now, oldest first, after the id given: at most ``limit`` events; never waits."""
        ...

    async def sink(self, name: str, *, start: Start = OLDEST, ack_wait: float = 30.0) -> SinkStore:
        """Join the sink as a new member. The first member's ``start`` counts; later ones find the sink as it is.

        ack_wait: seconds until an unacked event is delivered again. All members of a sink use the same; a member that asks
            for another one gets an `InvalidOptionError` where the backend can tell.
        """
        ...
