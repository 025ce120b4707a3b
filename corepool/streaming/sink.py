"""Share events out: each goes to one member of a sink, and comes again until it is acknowledged.

Purpose: `Sink`: this process's membership in a consumer group, on one stream or several, with acknowledgements.
Invariants:

- An event is done only after an ack. Not acked within ``ack_wait`` it is delivered again, to some live member (S2): handlers
  must bear to see one twice.
- What was fetched ahead is never handed out stale: a delivery that waited here for half of ``ack_wait`` is extended first, and
  dropped if it is no longer ours.
- Closing or removing a stream gives back what was fetched and not handed out. Cancelling `receive` loses nothing.
- **Events of unwanted topics are acknowledged**, else they would be redelivered for ever, so they are gone for the whole sink:
  all members of one sink must want the same topics.

Neighbours: made by `Stream.sink`; pumps :class:`corepool.driver.SinkStore` through :mod:`corepool.streaming.merge`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

import attrs

from corepool.driver import OLDEST, Ack, Backend, Delivery, SinkStore, Start, check_duration
from corepool.errors import BackendUnavailable, CorepoolError, InvalidOptionError
from corepool.streaming.merge import Key, Merge, Source
from corepool.streaming.reader import Message
from corepool.streaming.topics import Pattern, TopicFilter

if TYPE_CHECKING:
    from corepool.streaming.stream import Stream

__all__ = ["Keeping", "Received", "Sink"]

logger = logging.getLogger("corepool.streaming")

_CLOSE_TIMEOUT = 5.0
"""Seconds for giving back on close. What could not be given back is delivered to others after ``ack_wait``."""


@attrs.frozen(slots=True)
class Received(Message):
    """An event handed to this member.

    receipt: text by which any process may ack.
    attempt: 1 on the first delivery, larger on later ones (2 where the backend cannot count).
    """

    receipt: str
    attempt: int


@attrs.define(slots=True)
class Keeping:
    """What `Sink.keep` knows. ``lost``: the delivery is no longer ours, somebody else may be working on it."""

    lost: bool = False


@attrs.frozen(slots=True)
class _Fetched:
    received: Received
    at: float


@attrs.define(slots=True)
class _Membership:
    """One stream of the sink; ``member`` is None while joining."""

    stream: Stream
    member: SinkStore | None = None


class Sink:
    """A member of the sink ``name``: ``async for received in sink: ...; await sink.ack(received)``.

    Several tasks may receive at once. ``buffer`` is how many events of each stream are fetched ahead; other members cannot
    have those meanwhile, so keep it small where events take long.
    """

    def __init__(
        self,
        backend: Backend,
        name: str,
        *,
        ack_wait: float = 30.0,
        topics: str | Iterable[str] = (),
        patterns: Pattern | Iterable[Pattern] = (),
        buffer: int = 16,
    ) -> None:
        if buffer < 1:
            raise InvalidOptionError(f"a sink's buffer holds at least 1 event, not {buffer}")
        check_duration("ack_wait", ack_wait)
        self._name = name
        self._ack_wait = ack_wait
        self._clock = backend.clock
        self._filter = TopicFilter(topics, patterns)
        self._merge: Merge[_Fetched] = Merge(buffer, backend.random)
        self._streams: dict[Key, _Membership] = {}
        self._left: dict[Key, Stream] = {}
        self._leaving: list[asyncio.Task[None]] = []
        self._closing: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The sink's name: all members on the same streams share the events."""
        return self._name

    @property
    def streams(self) -> list[Key]:
        """Namespace and name of the streams it receives from."""
        return [key for key, membership in self._streams.items() if membership.member is not None]

    # --- streams ------------------------------------------------------------------------------------------------------

    async def add_stream(self, stream: Stream, *, start: Start = OLDEST) -> bool:
        """Join the sink on this stream too. ``start`` counts if this makes the sink there. False: it is a member already.

        Raises:
            BackendUnavailable: this sink is closed, or the backend cannot be reached.
            InvalidKeyError: the sink's name. InvalidOptionError: other members use another ``ack_wait``.
        """
        if self._closing is not None:
            raise BackendUnavailable(f"sink {self._name!r} is closed; open another one")
        if stream.key in self._streams:
            return False
        membership = self._streams[stream.key] = _Membership(stream)  # reserved: two calls at once must not join twice
        try:
            member = await stream.store.sink(self._name, start=start, ack_wait=self._ack_wait)
        except BaseException:  # cancellation included: the reservation must not stay
            if self._streams.get(stream.key) is membership:
                del self._streams[stream.key]
            raise
        if self._streams.get(stream.key) is not membership:  # removed, or all closed, while joining
            await member.aclose()
            if self._closing is not None:
                raise BackendUnavailable(f"sink {self._name!r} was closed while it joined {stream.name!r}")
            return False
        membership.member = member
        self._left.pop(stream.key, None)
        self._merge.add(stream.key, lambda source: self._pump(source, stream, member))
        return True

    async def remove_stream(self, stream: Stream) -> bool:
        """Leave this stream; what was fetched and not handed out is given back. False: it was no member there.

        What was handed out can still be acked; it can no longer be extended, so it may be delivered to others.
        """
        membership = self._streams.pop(stream.key, None)
        if membership is None:
            return False
        self._left[stream.key] = membership.stream
        if membership.member is not None:
            # A task of its own: half a departure would leave a member that fetches and hands out nothing.
            leaving = asyncio.get_running_loop().create_task(
                self._leave(stream.key, membership.member), name="corepool sink leave"
            )
            self._leaving.append(leaving)
            leaving.add_done_callback(self._leaving.remove)
            await asyncio.shield(leaving)
        return True

    async def _leave(self, key: Key, member: SinkStore) -> None:
        leftover = await self._merge.remove(key)
        await self._give_back(member, leftover)

    async def _give_back(self, member: SinkStore, leftover: Sequence[_Fetched]) -> None:
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                for fetched in leftover:
                    await member.nack(fetched.received.receipt)
        except Exception as error:  # noqa: BLE001  whatever a driver raises, the member and the other streams are still left
            logger.info("sink %s: %d events come again after ack_wait: %s", self._name, len(leftover), error)
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await member.aclose()
        except Exception as error:  # noqa: BLE001  as above
            logger.warning("sink %s: its member could not leave in order: %s", self._name, error)

    # --- receiving ----------------------------------------------------------------------------------------------------

    async def _pump(self, source: Source[_Fetched], stream: Stream, member: SinkStore) -> None:
        namespace, name = stream.key
        while True:
            room = await source.room()
            try:
                deliveries = await member.receive(room)
            except BackendUnavailable:  # only once the member or the backend is closed
                return
            at = self._clock.monotonic()
            wanted: list[_Fetched] = []
            unwanted: list[Delivery] = []
            for delivery in deliveries:
                if self._filter.wants(delivery.event.topic):
                    it = Received(namespace, name, delivery.event, delivery.receipt, delivery.attempt)
                    wanted.append(_Fetched(it, at))
                else:
                    unwanted.append(delivery)
            source.put(wanted)  # no await since they were received: a cancellation cannot come between
            if unwanted:
                try:
                    await member.ack([delivery.receipt for delivery in unwanted])
                except CorepoolError as error:
                    logger.info("sink %s: unwanted events come again and are acked then: %s", self._name, error)

    async def receive(self) -> Received | None:
        """The next event; None once the sink or its backend is closed. Cancelling it loses nothing."""
        while True:
            taken = await self._merge.take()
            if taken is None:
                return None
            source, fetched = taken
            if self._clock.monotonic() - fetched.at < self._ack_wait / 2:
                return fetched.received
            if await self._refresh(source, fetched):
                return fetched.received

    async def _refresh(self, source: Source[_Fetched], fetched: _Fetched) -> bool:
        """Whether a delivery that waited long is still ours, with its ``ack_wait`` started afresh."""
        try:
            return await self.extend(fetched.received)
        except CorepoolError as error:
            logger.info("sink %s: dropped an event that waited long; it comes again: %s", self._name, error)
            return False
        except BaseException:  # a cancelled receive: the next one gets it
            source.put_back(fetched)
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received:
        received = await self.receive()
        if received is None:
            raise StopAsyncIteration
        return received

    # --- acknowledging ------------------------------------------------------------------------------------------------

    async def ack(self, what: Received | str, *, stream: Stream | None = None) -> bool:
        """Done: never delivered again. False: too late, it was delivered again meanwhile, or is gone already.

        what: an event, or its receipt; with a receipt also say ``stream``, if this sink has several.
        """
        return (await self.ack_many([what], stream=stream))[0]

    async def ack_many(self, what: Sequence[Received | str], *, stream: Stream | None = None) -> list[bool]:
        """As `ack`, for several events: one round trip per stream."""
        results = [False] * len(what)
        by_stream: dict[Key, list[int]] = {}
        for index, each in enumerate(what):
            by_stream.setdefault(self._key_of(each, stream), []).append(index)
        for key, indexes in by_stream.items():
            receipts = [_receipt(what[index]) for index in indexes]
            for index, done in zip(indexes, await self._ack(key, receipts), strict=True):
                results[index] = done
        return results

    async def _ack(self, key: Key, receipts: list[str]) -> list[bool]:
        membership = self._streams.get(key)
        if membership is not None and membership.member is not None:
            return await membership.member.ack(receipts)
        left = self._left.get(key)
        if left is None:
            return [False] * len(receipts)
        results: list[bool] = []
        most = left.backend.capabilities.max_commit_ops
        for at in range(0, len(receipts), most):  # no member any more, and none needed: any process may ack
            done = await left.namespace.commit([Ack(receipt) for receipt in receipts[at : at + most]])
            results.extend(result is True for result in done.results)
        return results

    async def nack(self, what: Received | str, *, delay: float = 0.0, stream: Stream | None = None) -> bool:
        """Give back: delivered again, to any member, not before ``delay`` seconds. False: no longer valid."""
        check_duration("delay", delay, zero=True)
        member = self._member(self._key_of(what, stream))
        return member is not None and await member.nack(_receipt(what), delay)

    async def extend(self, what: Received | str, *, stream: Stream | None = None) -> bool:
        """Start ``ack_wait`` afresh. False: no longer valid, somebody else may be working on it."""
        member = self._member(self._key_of(what, stream))
        return member is not None and await member.extend(_receipt(what))

    @asynccontextmanager
    async def keep(self, received: Received) -> AsyncGenerator[Keeping]:
        """Extend every third of ``ack_wait`` for the length of an ``async with`` block; acking stays the caller's.

        Look at ``lost`` before an effect that should not happen twice; it is no fence (only the backend's ack decides), and
        after an ack it means nothing.
        """
        keeping = Keeping()
        task = asyncio.get_running_loop().create_task(self._extend_while(received, keeping), name="corepool sink keep")
        try:
            yield keeping
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _extend_while(self, received: Received, keeping: Keeping) -> None:
        while not keeping.lost:
            await asyncio.sleep(self._ack_wait / 3)
            try:
                keeping.lost = not await self.extend(received)
            except Exception as error:  # noqa: BLE001  the next turn may succeed; if none does, the event comes again
                logger.info("sink %s: extending %s failed: %s", self._name, received.id, error)

    def _member(self, key: Key) -> SinkStore | None:
        membership = self._streams.get(key)
        return membership.member if membership else None

    def _key_of(self, what: Received | str, stream: Stream | None) -> Key:
        if isinstance(what, Received):
            return (what.namespace, what.stream)
        if stream is not None:
            return stream.key
        known = [*self._streams, *self._left]
        if len(known) != 1:
            raise InvalidOptionError(
                f"sink {self._name!r} has {len(known)} streams: say which one the receipt is of (stream=…)"
            )
        return known[0]

    # --- leaving ------------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Leave all streams; what was fetched and not handed out is given back. Bounded in time, idempotent, and safe to call
        concurrently. What was handed out and is not acked is delivered to others after ``ack_wait``."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="corepool sink close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        memberships, self._streams = self._streams, {}
        self._left.update((key, membership.stream) for key, membership in memberships.items())
        leftover: dict[Key, list[_Fetched]] = {}
        for key, fetched in await self._merge.aclose():
            leftover.setdefault(key, []).append(fetched)
        for key, membership in memberships.items():
            if membership.member is not None:
                await self._give_back(membership.member, leftover.get(key, ()))
        if self._leaving:
            await asyncio.wait(list(self._leaving))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _receipt(what: Received | str) -> str:
    return what.receipt if isinstance(what, Received) else what
