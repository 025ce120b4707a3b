"""Independent readers of a logical stream.

Purpose: `corepool.driver.Reading` by pulling from a consumer of its own, without acknowledgements.
Invariants: events come once and in order: a new consumer begins right after the last event that was taken from the old one, and
consumer sequences are contiguous within one. A reading nobody reads holds one batch at most. Its consumer, in memory and on one
replica, disappears with it, or a minute after its process.
Neighbours: made by :mod:`corepool_nats.streams`. Knows nothing of lives: events of a next one have the same subject.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import secrets
from collections.abc import Callable
from typing import Self

import msgspec

from corepool.driver import After, Event, Newest, Oldest, Since, Start
from corepool.errors import BackendUnavailable, WireError
from corepool_nats import api
from corepool_nats.assets import Assets
from corepool_nats.events import event_of, sequence_of
from corepool_nats.link import LinkError
from corepool_nats.names import StreamSubjects
from corepool_nats.pull import Pull, PullLost
from corepool_nats.waits import unless

__all__ = ["NatsReading", "start_of"]

log = logging.getLogger("corepool.nats")

_BATCH = 128


def start_of(since: float) -> dict[str, object]:
    """A consumer's start at a time."""
    moment = datetime.datetime.fromtimestamp(max(since, 0.0), datetime.UTC)
    return {"deliver_policy": "by_start_time", "opt_start_time": moment.isoformat().replace("+00:00", "Z")}


class NatsReading:
    """See `corepool.driver.Reading`."""

    def __init__(
        self, assets: Assets, subjects: StreamSubjects, start: Start, ended: Callable[[NatsReading], None]
    ) -> None:
        self._assets = assets
        self._client = assets.client
        self._target = assets.streams
        self._subjects = subjects
        self._ended = ended
        self._since: float | None = None
        self._next: int | None = None
        """The lowest sequence not yet read; None while it is to be resolved."""
        match start:
            case Oldest():
                self._next = 1
            case After(id=event_id):
                sequence = sequence_of(event_id)
                self._next = sequence + 1 if sequence is not None else 1
            case Since(timestamp=timestamp):
                self._since, self._next = timestamp, 1
            case Newest():
                pass
        self._pull: Pull | None = None
        self._consumer = ""
        self._seen = 0
        self._closed = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            event = self._taken()
            if event is not None:
                return event
            if self._closed.is_set():
                raise StopAsyncIteration
            if self._client.closed.is_set():
                await self.aclose()
                raise StopAsyncIteration
            try:
                if self._pull is None:
                    await unless(self._open(), self._closed, self._client.closed)
                pull = self._pull
                if pull is not None:
                    await pull.wait(_BATCH)
            except (PullLost, BackendUnavailable) as error:
                log.info("a reading of %s begins again: %s", self._subjects.base, error)
                await self._drop()
                await self._rest()

    async def _rest(self) -> None:
        """A moment before the next try; not longer than the reading is open."""
        try:
            async with asyncio.timeout(0.02 + 0.1 * self._client.random.random()):
                await self._closed.wait()
        except TimeoutError:
            pass  # the moment is over: the usual case

    def _taken(self) -> Event | None:
        """The next event that has arrived, in order. No await: a cancelled caller cannot lose it."""
        pull = self._pull
        while pull is not None and pull.arrived and not self._closed.is_set():
            record = pull.arrived.popleft().record
            if record.consumer_sequence != self._seen + 1:
                log.info("a reading of %s has a gap and begins again", self._subjects.base)
                pull.arrived.clear()
                self._pull = None
                self._later(pull)
                return None
            self._seen = record.consumer_sequence
            self._next, self._since = record.sequence + 1, None
            try:
                return event_of(record)
            except WireError as error:
                log.warning("left aside: %s", error)
        return None

    def _later(self, pull: Pull) -> None:
        """Put a pull away that is of no use any more, in the background: it listens to nothing that counts."""
        task = asyncio.ensure_future(pull.close())
        _PUT_AWAY.add(task)
        task.add_done_callback(_PUT_AWAY.discard)

    async def _open(self) -> None:
        """Make a consumer that begins where this reading stands.

        Raises:
            PullLost, BackendUnavailable
        """
        deadline = self._client.deadline()
        link = await self._client.link(deadline)
        await self._assets.get(self._target, deadline)
        if self._next is None:
            info = await self._client.api(f"STREAM.INFO.{self._target.asset}", b"", api.StreamInfo, deadline)
            self._next = info.state.last_seq + 1
        start = (
            start_of(self._since)
            if self._since is not None
            else {"deliver_policy": "by_start_sequence", "opt_start_seq": self._next}
        )
        name = f"cp-r-{secrets.token_hex(10)}"
        config = {
            "name": name,
            "filter_subjects": [self._subjects.events],
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": 60_000_000_000,
            "mem_storage": True,
            "num_replicas": 1,
            **start,
        }
        body = msgspec.json.encode({"stream_name": self._target.asset, "config": config})
        info_ = await self._client.api(f"CONSUMER.CREATE.{self._target.asset}.{name}", body, api.ConsumerInfo, deadline)
        if info_.error is not None:
            if info_.error.err_code == api.NO_STREAM:
                await self._assets.refresh(self._target, deadline)
            raise PullLost(info_.error.description, gone=True)
        settings = self._client.settings
        pull = Pull(link, self._client.api_prefix, self._target.asset, name, settings.heartbeat * 2.5)
        await pull.open(self._closed, self._client.closed)
        self._pull, self._consumer, self._seen = pull, name, 0

    async def _drop(self) -> None:
        pull, self._pull = self._pull, None
        if pull is None:
            return
        await pull.close()
        if not pull.link.ended.is_set():
            try:
                await pull.link.send(
                    f"{self._client.api_prefix}.CONSUMER.DELETE.{self._target.asset}.{self._consumer}", b""
                )
            except LinkError as error:
                log.debug("the server will forget consumer %s by itself: %s", self._consumer, error)

    async def aclose(self) -> None:
        """See `corepool.driver.Reading.aclose`."""
        if not self._closed.is_set():
            self._closed.set()
            self._ended(self)
            await self._drop()


_PUT_AWAY: set[asyncio.Future[None]] = set()
