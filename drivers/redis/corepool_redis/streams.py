"""The stream store: events in a stream, configuration and bookkeeping beside it.

Purpose: :class:`corepool.driver.StreamStore` on a server.
Invariants: the stream exists if and only if its configuration does, and every append decides on that in its script (S5); ids
begin past everything the namespace ever destroyed (S1); a work stream is never trimmed (S4), it refuses.
Neighbours: :mod:`corepool_redis.commit` appends, :mod:`corepool_redis.readings` and :mod:`corepool_redis.sinks` deliver.
"""

from __future__ import annotations

from collections.abc import Sequence

from corepool.driver import (
    OLDEST,
    Event,
    NewEvent,
    Start,
    StreamConfig,
    check_duration,
    check_name,
    shorten,
)
from corepool.errors import InvalidOptionError, StreamFull, StreamSealed, WireError
from corepool_redis.commit import Batch, Space, translate
from corepool_redis.feeds import FeedReader
from corepool_redis.keys import StreamKeys, decode_id, encode_id, mark_key
from corepool_redis.link import Refused
from corepool_redis.readings import RedisReading, newest_id, read_event, start_id
from corepool_redis.resp import Arg, Reply
from corepool_redis.scripts import Script
from corepool_redis.sinks import RedisSink, SinkReader

__all__ = ["RedisStream"]


class RedisStream:
    """One named stream. See :class:`corepool.driver.StreamStore` for what each call promises."""

    def __init__(self, space: Space, feeds: FeedReader, sinks: SinkReader, name: str) -> None:
        self._space = space
        self._feeds = feeds
        self._sinks = sinks
        self._name = name
        self._keys = StreamKeys.of(space.scope, name)

    def __repr__(self) -> str:
        return f"<RedisStream {self._name!r}>"

    @property
    def name(self) -> str:
        return self._name

    async def _read(self, *args: Arg) -> Reply:
        try:
            return await self._space.link.command(*args)
        except Refused as refused:
            raise translate(refused, write=False) from None

    async def _write(self, script: str, keys: Sequence[bytes], args: Sequence[Arg]) -> Reply:
        scope = self._space.scope
        try:
            return await self._space.link.run(Script.named(script), (mark_key(scope), *keys), args, scope=scope)
        except Refused as refused:
            raise translate(refused, write=True) from None

    async def create(self, config: StreamConfig = StreamConfig()) -> bool:  # noqa: B008  a frozen value
        if config.max_length is not None and config.max_length < 1:
            raise InvalidOptionError(f"max_length is at least 1, not {shorten(config.max_length)}")
        most = "" if config.max_length is None else config.max_length
        return (
            await self._write("stream-create", (self._keys.events, self._keys.config), (config.kind.value, most)) == 1
        )

    async def exists(self) -> bool:
        return await self._read("HEXISTS", self._keys.config, "k") == 1

    async def append(self, event: NewEvent, *, only_if_exists: bool = False) -> str | None:
        batch = Batch(self._space)
        batch.append(self._name, event, optional=True, create=not only_if_exists)
        _, results = await batch.run()
        match results[0]:
            case b"!full":
                raise StreamFull(
                    f"stream {self._name!r} holds as many events as it may; wait until some are acked, "
                    f"or create it with a larger max_length"
                )
            case b"!missing":
                return None
            case b"!sealed":
                if only_if_exists:
                    return None
                raise StreamSealed(f"stream {self._name!r} is sealed; it takes no more events")
            case bytes() as raw_id:
                return encode_id(raw_id)
            case _:
                raise WireError("the server's answer to an append has an unknown form")

    async def _administer(self, action: str, ids: Sequence[bytes] = ()) -> Reply:
        return await self._write(
            "stream-admin", (self._keys.events, self._keys.config, self._keys.base), (action, *ids)
        )

    async def seal(self) -> None:
        await self._administer("seal")

    async def destroy(self) -> None:
        await self._administer("destroy")

    async def length(self) -> int:
        reply = await self._read("XLEN", self._keys.events)
        return reply if isinstance(reply, int) else 0

    async def remove(self, ids: Sequence[str]) -> int:
        raw = [found.raw for event_id in ids if (found := decode_id(event_id)) is not None]
        removed = 0
        for start in range(0, len(raw), 500):
            reply = await self._administer("remove", raw[start : start + 500])
            removed += reply if isinstance(reply, int) else 0
        return removed

    def read(self, start: Start = OLDEST) -> RedisReading:
        return RedisReading(self._feeds, self._space.link, self._keys.events, start)

    async def range(self, after: str = "", limit: int = 100) -> list[Event]:
        if limit < 1:
            return []
        begin = b"-"
        if after:
            found = decode_id(after)
            if found is None:
                raise InvalidOptionError(f"{shorten(after)} is not the id of an event of this driver")
            begin = b"(" + found.raw
        reply = await self._read("XRANGE", self._keys.events, begin, "+", "COUNT", limit)
        events: list[Event] = []
        for row in reply if isinstance(reply, list) else []:
            match row:
                case [bytes() as raw_id, [*fields]]:
                    events.append(read_event(raw_id, fields))
                case _:
                    raise WireError("the server's answer to XRANGE has an unknown form")
        return events

    async def sink(self, name: str, *, start: Start = OLDEST, ack_wait: float = 30.0) -> RedisSink:
        check_name("a sink's name", name, self._space.capabilities)
        check_duration("ack_wait", ack_wait)
        after = start_id(start)
        if after is None:  # resolved here and not by the server, so that a repeated join means the same
            after = await newest_id(self._space.link, self._keys.events)
        return await self._sinks.join(self._space, self._name, name, after.raw, ack_wait)
