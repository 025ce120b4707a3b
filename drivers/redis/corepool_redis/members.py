"""One member of a sink, and what the members of one sink in one backend share.

Purpose: :class:`corepool.driver.SinkStore` for users; buffers and receipts for :mod:`corepool_redis.sinks`.
Invariants: what was fetched stays in the shared buffer until a ``receive`` that returns takes it, so a cancelled ``receive``
loses nothing (M6); what lay there for longer than ``ack_wait`` is not handed out, since others have it by now; an event is
known as ``held`` from its delivery until it is settled or its ``ack_wait`` has passed, so that recovery delivers nothing twice.
Neighbours: :mod:`corepool_redis.sinks` fills the buffer and is told who waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from corepool.driver import Delivery, check_duration
from corepool.errors import BackendUnavailable, InvalidOptionError, WireError
from corepool_redis.commit import Batch, Space, translate
from corepool_redis.keys import EventId, Receipt, StreamKeys
from corepool_redis.link import Refused
from corepool_redis.readings import read_event
from corepool_redis.resp import Reply
from corepool_redis.scripts import Script

if TYPE_CHECKING:
    from corepool_redis.sinks import SinkReader

__all__ = ["LocalSink", "RedisSink"]

_MOST_HELD = 4096  # known deliveries before expired ones are looked for and dropped


class LocalSink:
    """What the members of one sink in this backend share. ``number`` None: the stream does not exist now."""

    def __init__(self, space: Space, keys: StreamKeys, stream: str, name: str, start: bytes, ack_wait: float) -> None:
        self.space = space
        self.keys = keys
        self.stream = stream
        self.name = name
        self.start = start
        self.ack_wait = ack_wait
        self.ack_ms = max(1, round(ack_wait * 1000))
        self.number: int | None = None
        self.fresh = True
        self.members: list[RedisSink] = []
        self.held: dict[bytes, tuple[int, float]] = {}  # by raw id: delivery count, until when (monotonic seconds)
        self._ready: deque[tuple[bytes, Delivery, float]] = deque()
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._prune_at = _MOST_HELD

    @property
    def id(self) -> tuple[bytes, str]:
        """Which sink of which stream of which namespace."""
        return self.keys.base, self.name

    @property
    def group(self) -> str:
        """The server's name of the sink."""
        return f"g{self.number}"

    @property
    def demand(self) -> int:
        """How many deliveries are waited for and not there."""
        return max(0, sum(self._waiting.values()) - len(self._ready)) if self._waiting else 0

    def deliver(self, raw_id: bytes, count: int, fields: list[Reply], client: str) -> None:
        """Take a delivery of the server, unless it is known.

        Raises:
            WireError: it is no event of this driver.
        """
        now = asyncio.get_running_loop().time()
        known = self.held.get(raw_id)
        if known is not None and known[0] >= count:
            return
        if not fields:
            raise WireError("a stream holds an empty entry")
        event = read_event(raw_id, fields)
        assert self.number is not None  # only a joined sink is read
        receipt = Receipt(self.stream, self.number, EventId.parse(raw_id), client, count)
        self._remember(raw_id, count, now)
        self._ready.append((raw_id, Delivery(event, str(receipt), count), now + self.ack_wait))
        self._wake_one()

    def _remember(self, raw_id: bytes, count: int, now: float) -> None:
        self.held[raw_id] = (count, now + self.ack_wait)
        if len(self.held) > self._prune_at:
            self.held = {key: value for key, value in self.held.items() if value[1] > now}
            self._prune_at = max(_MOST_HELD, 2 * len(self.held))

    def extended(self, raw_id: bytes) -> None:
        """The delivery's ack_wait began afresh."""
        known = self.held.get(raw_id)
        if known is not None:
            self._remember(raw_id, known[0], asyncio.get_running_loop().time())

    def take(self, most: int) -> list[Delivery]:
        """Up to so many deliveries out of the buffer."""
        now = asyncio.get_running_loop().time()
        taken: list[Delivery] = []
        while self._ready and len(taken) < most:
            raw_id, delivery, until = self._ready.popleft()
            if until > now:
                taken.append(delivery)
            elif self.held.get(raw_id, (0, 0.0))[0] == delivery.attempt:
                del self.held[raw_id]
        if self._ready:
            self._wake_one()
        return taken

    def drain(self) -> list[tuple[bytes, Delivery]]:
        """Empty the buffer: for the last member, which gives it back."""
        ready, self._ready = self._ready, deque()
        return [(raw_id, delivery) for raw_id, delivery, _ in ready]

    def lost(self) -> None:
        """The stream is gone, and with it all that was delivered."""
        self.number = None
        self.held.clear()
        self._ready.clear()

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def wait(self, most: int, reader: SinkReader) -> None:
        """Wait until there is something to take, or the member should look whether it is closed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = most
        reader.want(self)
        try:
            await future
        except BaseException:  # cancelled in the very moment it was woken: pass the news on
            if future.done() and not future.cancelled() and self._ready:
                self._waiting.pop(future, None)
                self._wake_one()
            raise
        finally:
            self._waiting.pop(future, None)

    def _wake_one(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
                return

    def wake_all(self) -> None:
        """Let every waiting member look."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)


class RedisSink:
    """See :class:`corepool.driver.SinkStore`."""

    def __init__(self, reader: SinkReader, sink: LocalSink) -> None:
        self.sink = sink
        self._reader = reader
        self._closed = False

    def __repr__(self) -> str:
        return f"<RedisSink {self.sink.name!r} on {self.sink.stream!r}>"

    async def receive(self, max_events: int = 1) -> list[Delivery]:
        if max_events < 1:
            raise InvalidOptionError(f"max_events is at least 1, not {max_events}")
        while not self._closed:
            taken = self.sink.take(max_events)
            if taken:
                return taken
            await self.sink.wait(max_events, self._reader)
        raise BackendUnavailable("the sink or its backend is closed")

    async def ack(self, receipts: Sequence[str]) -> list[bool]:
        self._check_open()
        done: list[bool] = []
        most = self.sink.space.capabilities.max_commit_ops
        for start in range(0, len(receipts), most):
            part = receipts[start : start + most]
            batch = Batch(self.sink.space)
            for receipt in part:
                batch.ack(receipt)
            _, results = await batch.run()
            for receipt, result in zip(part, results, strict=True):
                done.append(result == 1)
                found = Receipt.parse(receipt)
                if result == 1 and found is not None:
                    self._reader.settled(self.sink.space.scope, found)
        return done

    async def nack(self, receipt: str, delay: float = 0.0) -> bool:
        check_duration("delay", delay, zero=True)
        found = Receipt.parse(receipt)
        if found is None or not await self._settle("nack", found, delay):
            return False
        self._reader.settled(self.sink.space.scope, found)
        self._reader.returned(delay)
        return True

    async def extend(self, receipt: str) -> bool:
        found = Receipt.parse(receipt)
        if found is None or not await self._settle("extend", found, 0.0):
            return False
        if found.stream == self.sink.stream:
            self.sink.extended(found.id.raw)
        return True

    async def _settle(self, action: str, receipt: Receipt, delay: float) -> bool:
        self._check_open()
        space = self.sink.space
        keys = StreamKeys.of(space.scope, receipt.stream)
        try:
            reply = await space.link.run(
                Script.named("sink-settle"),
                (keys.events, keys.members(receipt.sink), keys.returned(receipt.sink)),
                (
                    *(action, f"g{receipt.sink}", receipt.id.raw, receipt.count, receipt.consumer),
                    *(round(delay * 1000), space.link.client, space.scope),
                ),
                scope=space.scope,
            )
        except Refused as refused:
            raise translate(refused, write=True) from None
        return reply == 1

    def _check_open(self) -> None:
        if self._closed:
            raise BackendUnavailable("the sink or its backend is closed; any other member can settle the delivery")

    async def aclose(self) -> None:
        if not self._closed:
            self.end()
            await self._reader.leave(self)

    def end(self) -> None:
        """Stop receiving; whoever waits is told."""
        self._closed = True
        self.sink.wake_all()
