"""Logical streams on JetStream.

Purpose: `corepool.driver.StreamStore` on one JetStream stream for all logical streams of a namespace.
Invariants: S1 by the sequence of that stream; S4: nothing is dropped but by a log's own bound, and a bounded work stream never
holds more than its bound; S5 by the registry's guard (:mod:`corepool_nats.registry`).

**Bounded work streams.** An append needs to know the length, and no server-side limit fits (JetStream's are the same for all
subjects of a stream). So it is a compare-and-set on everything of the logical stream: read the newest sequence, *then*
the length, then append if the newest is still the same. In between events can only have been removed, so the bound
holds; and as long as nobody else appends, the length plus own appends stays an upper bound and nothing has to be read again.
Neighbours: registry, readings, sinks; commits append through `append_if_exists`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import msgspec

from corepool.driver import (
    OLDEST,
    After,
    Appended,
    Event,
    Newest,
    NewEvent,
    Reading,
    Refusal,
    Since,
    SinkStore,
    Start,
    StreamConfig,
    check_duration,
    check_name,
    check_value,
)
from corepool.errors import InvalidOptionError, StreamFull, StreamSealed, WireError
from corepool_nats import api
from corepool_nats.client import Refused, expect
from corepool_nats.events import event_headers, event_of, format_id, sequence_of
from corepool_nats.names import StreamSubjects
from corepool_nats.registry import Registry, SinkSpec
from corepool_nats.writes import after_the_fact

if TYPE_CHECKING:
    from corepool_nats.namespace import NatsNamespace

__all__ = ["Appends", "NatsStream", "Room"]

_DEFAULT = StreamConfig()


@attrs.define(slots=True)
class Room:
    """What a client knows of a bounded stream: no event was appended after ``newest``, and there are at most ``length``."""

    newest: int
    length: int
    fresh: bool


class Appends:
    """Appending, for streams and commits of one namespace."""

    def __init__(self, space: NatsNamespace) -> None:
        self._space = space
        self._client = space.client
        self._target = space.assets.streams
        self._rooms: dict[str, Room] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def forget(self) -> None:
        self._rooms.clear()

    async def append(
        self, subjects: StreamSubjects, event: NewEvent, stamp: int | None, deadline: float
    ) -> Appended | Registry | None:
        """Append if the stream is there and takes it: its id, or FULL. Else the registry that says no: a sealed stream, or one
        that does not exist; None if there is none.

        Raises:
            BackendUnavailable, OutcomeUnknown
        """
        registries = self._space.registries
        known, fresh = registries.remembered(subjects), False
        if known is None:
            known, fresh = await registries.load(subjects, deadline), True
        asset = await self._space.assets.get(self._target, deadline)
        while True:
            registry = known.registry
            if registry is None or registry.state != "open":
                if fresh:
                    return registry
            else:
                # A leader takes one guarded append of a stream at a time, so those of this process queue here; and those to a
                # bounded stream would only make each other's knowledge stale.
                alone = registry.bounded or asset.replicas > 1
                lock = self._locks.setdefault(subjects.base, asyncio.Lock()) if alone else None
                if lock is not None:
                    await lock.acquire()
                try:
                    done = await self._try(subjects, registry, known.sequence, event, stamp, deadline)
                finally:
                    if lock is not None:
                        lock.release()
                        if len(self._locks) > 4096 and not lock.locked():
                            self._locks.pop(subjects.base, None)
                if done is not None:
                    return done
            known, fresh = await registries.load(subjects, deadline), True

    async def _try(
        self,
        subjects: StreamSubjects,
        registry: Registry,
        sequence: int,
        event: NewEvent,
        stamp: int | None,
        deadline: float,
    ) -> Appended | None:
        """Append under this registry message; None if it is not the newest any more."""
        if registry.bounded:
            return await self._try_bounded(subjects, registry, sequence, event, stamp, deadline)
        headers = event_headers(event, stamp) | expect(sequence, subjects.registry)
        while True:
            try:
                stored = await self._client.publish(self._target, subjects.events, event.payload, headers, deadline)
            except Refused as refused:
                if refused.at is not None:
                    return None
                await self._client.yield_to_others(deadline)
                continue
            if registry.kind == "log" and registry.most is not None:
                with after_the_fact():
                    await self._drop_oldest(subjects, registry.most, deadline)
            return Appended(format_id(stored.sequence))

    async def _drop_oldest(self, subjects: StreamSubjects, keep: int, deadline: float) -> None:
        body = msgspec.json.encode({"filter": subjects.events, "keep": keep})
        await self._client.api(f"STREAM.PURGE.{self._target.asset}", body, api.Done, deadline)

    async def _try_bounded(
        self,
        subjects: StreamSubjects,
        registry: Registry,
        sequence: int,
        event: NewEvent,
        stamp: int | None,
        deadline: float,
    ) -> Appended | None:
        most = registry.most or 0
        room = self._rooms.get(subjects.base)
        if room is None or room.newest < sequence:
            room = await self._look(subjects, deadline)
        while True:
            if room.length >= most:
                if room.fresh:
                    return Appended(None, Refusal.FULL)
                room = await self._look(subjects, deadline)
                continue
            if room.newest < sequence:
                return None
            headers = event_headers(event, stamp) | expect(room.newest, subjects.everything)
            try:
                stored = await self._client.publish(self._target, subjects.events, event.payload, headers, deadline)
            except Refused as refused:
                at = refused.at
                if at is not None and sequence <= at < room.newest:
                    room.newest = at  # events were removed, none was appended: the length is still an upper bound
                    continue
                self._rooms.pop(subjects.base, None)
                await self._client.yield_to_others(deadline)
                known = await self._space.registries.load(subjects, deadline)
                if known.sequence != sequence:
                    return None
                room = await self._look(subjects, deadline)
                continue
            self._rooms[subjects.base] = Room(stored.sequence, room.length + 1, fresh=False)
            if len(self._rooms) > 4096:
                self._rooms.clear()
            return Appended(format_id(stored.sequence))

    async def _look(self, subjects: StreamSubjects, deadline: float) -> Room:
        """The newest sequence, and then the length: in this order (see the module's text)."""
        record = await self._space.reads.one(self._target, {"last_by_subj": subjects.everything}, deadline)
        length = await self._space.count(subjects.events, deadline)
        return Room(record.sequence if record is not None else 0, length, fresh=True)


class NatsStream:
    """See `corepool.driver.StreamStore`."""

    def __init__(self, space: NatsNamespace, name: str) -> None:
        self._space = space
        self._name = name
        self._client = space.client
        self._target = space.assets.streams

    def __repr__(self) -> str:
        return f"<NatsStream {self._name!r} of {self._space.name!r}>"

    @property
    def name(self) -> str:
        return self._name

    def _checked(self) -> StreamSubjects:
        check_name("a stream's name", self._name, self._space.capabilities)
        return self._space.space.stream(self._name)

    async def create(self, config: StreamConfig = _DEFAULT) -> bool:
        subjects = self._checked()
        if config.max_length is not None and config.max_length < 1:
            raise InvalidOptionError(f"max_length is at least 1, not {config.max_length}")
        return await self._space.registries.create(subjects, config, self._client.deadline())

    async def exists(self) -> bool:
        return (await self._space.registries.load(self._checked(), self._client.deadline())).exists

    async def append(self, event: NewEvent, *, only_if_exists: bool = False) -> str | None:
        subjects = self._checked()
        check_event(event, self._space)
        deadline = self._client.deadline()
        while True:
            done = await self._space.appends.append(subjects, event, None, deadline)
            if isinstance(done, Appended):
                if done.refusal is not None:
                    raise StreamFull(
                        f"the stream {self._name!r} holds as many events as it may; wait until some are acknowledged, or "
                        f"create it with a larger max_length"
                    )
                return done.id
            if only_if_exists:
                return None
            if done is not None and done.state == "sealed":
                raise StreamSealed(f"the stream {self._name!r} is sealed and takes no more events")
            await self._space.registries.create(subjects, StreamConfig(), deadline)

    async def seal(self) -> None:
        await self._space.registries.seal(self._checked(), self._client.deadline())

    async def destroy(self) -> None:
        await self._space.registries.destroy(self._checked(), self._client.deadline())

    async def length(self) -> int:
        subjects = self._checked()
        deadline = self._client.deadline()
        known, count = await asyncio.gather(
            self._space.registries.load(subjects, deadline), self._space.count(subjects.events, deadline)
        )
        return count if known.exists else 0

    async def remove(self, ids: Sequence[str]) -> int:
        subjects = self._checked()
        deadline = self._client.deadline()
        sequences = [sequence for sequence in map(sequence_of, dict.fromkeys(ids)) if sequence is not None]
        return sum(await asyncio.gather(*(self._remove(subjects, sequence, deadline) for sequence in sequences)))

    async def _remove(self, subjects: StreamSubjects, sequence: int, deadline: float) -> bool:
        """Ids are sequences of all logical streams: look whose this is before it is removed."""
        record = await self._space.reads.one(self._target, {"seq": sequence}, deadline)
        if record is None or record.subject != subjects.events:
            return False
        return await self._space.remove_event(sequence, deadline)

    def read(self, start: Start = OLDEST) -> Reading:
        return self._space.read(self._checked(), start)

    async def range(self, after: str = "", limit: int = 100) -> list[Event]:
        subjects = self._checked()
        if limit < 1:
            raise InvalidOptionError(f"limit is at least 1, not {limit}")
        deadline = self._client.deadline()
        if not (await self._space.registries.load(subjects, deadline)).exists:
            return []
        events: list[Event] = []
        sequence = (sequence_of(after) or 0) if after else 0
        while len(events) < limit:
            records = await self._space.reads.following(
                self._target, subjects.events, sequence, limit - len(events), deadline
            )
            if not records:
                break
            sequence = records[-1].sequence
            for record in records:
                try:
                    events.append(event_of(record))
                except WireError as error:
                    self._space.log.warning("left aside: %s", error)
        return events

    async def sink(self, name: str, *, start: Start = OLDEST, ack_wait: float = 30.0) -> SinkStore:
        subjects = self._checked()
        check_name("a sink's name", name, self._space.capabilities)
        check_duration("ack_wait", ack_wait)
        deadline = self._client.deadline()
        first, since = 1, None
        match start:
            case After(id=event_id):
                first = (sequence_of(event_id) or 0) + 1
            case Since(timestamp=timestamp):
                since = timestamp
            case Newest():
                first = await self._space.last_sequence(deadline) + 1
            case _:
                pass
        return await self._space.join(self._name, name, SinkSpec(ack_wait, first, since), subjects, deadline)


def check_event(event: NewEvent, space: NatsNamespace) -> None:
    """Raises:
    InvalidKeyError, PayloadTooLarge: nothing was sent.
    """
    check_name("an event's name", event.name, space.capabilities)
    if event.topic:
        check_name("an event's topic", event.topic, space.capabilities)
    check_value(event.payload, space.capabilities)
