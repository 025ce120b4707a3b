"""Sinks: one blocking XREADGROUP, and one round of upkeep, for all consumer groups a backend is a member of.

Purpose: :class:`corepool.driver.SinkStore` for the members of this backend.
Invariants:

- A stream is in the call only while one of its members waits in ``receive``: nobody hoards what others could work on.
- What the server gave but the client never got is found in the own pending list after a reconnect, and after a lost round (S2).
- Every round of upkeep says "I am here", takes what is due again, and buries members that said nothing for two ``ack_wait``:
  what they held is freed first, in the same script (S3). All times are the server's own.
- A receipt names client and delivery count, and every script that honours one compares both: a member that was given up can
  neither acknowledge, extend nor give back what others have by now.
- Sinks are numbered per stream (``g0``, ``g1``, …), so that one call serves the first sink of every stream. Second sinks of
  streams take turns with them, blocking for a moment each.

Neighbours: :mod:`corepool_redis.streams` joins, :mod:`corepool_redis.members` is what users hold.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from corepool.errors import CorepoolError, InvalidOptionError, OutcomeUnknown, WireError
from corepool_redis.commit import Space
from corepool_redis.connection import ConnectionLost
from corepool_redis.feeds import Waker, split_reply
from corepool_redis.keys import Receipt, StreamKeys, wake_key
from corepool_redis.link import Link, Refused
from corepool_redis.members import LocalSink, RedisSink
from corepool_redis.resp import Arg, Reply
from corepool_redis.scripts import Script

__all__ = ["RedisSink", "SinkReader"]

log = logging.getLogger("corepool.redis")

_TURN = 0.05
_LIFE_POLL = 0.25  # seconds between two looks for the next life of a destroyed stream
_LONGEST_ROUND = 5.0
_PAGE = 500


class SinkReader:
    """The reader and upkeep tasks, and the sinks they serve. Nothing runs before the first join."""

    def __init__(self, command: Link, reader: Link, interval: float, rng: random.Random) -> None:
        self._command = command
        self._reader = reader
        self._interval = interval
        self._random = rng
        self._sinks: dict[tuple[bytes, str], LocalSink] = {}
        self._waker = Waker(command, b"")
        self._round_due = asyncio.Event()
        self._next_due: float | None = None
        self._keeping = asyncio.Lock()
        self._generation = 0
        self._turn = 0
        self._alone = True
        self._tasks: list[asyncio.Task[None]] = []
        self._asides: set[asyncio.Task[None]] = set()
        self._closed = False

    # --- joining and leaving ------------------------------------------------------------------------------------------

    async def join(self, space: Space, stream: str, name: str, start: bytes, ack_wait: float) -> RedisSink:
        """A new member of a sink.

        Raises:
            InvalidOptionError: the sink has another ack_wait.
            BackendUnavailable: the server does not answer.
        """
        keys = StreamKeys.of(space.scope, stream)
        sink = self._sinks.get((keys.base, name))
        if sink is None:
            fresh = LocalSink(space, keys, stream, name, start, ack_wait)
            await self._join(fresh)
            sink = self._sinks.setdefault((keys.base, name), fresh)  # another member may have joined meanwhile
        if sink.ack_wait != ack_wait:
            raise InvalidOptionError(
                f"sink {name!r} has ack_wait {sink.ack_wait:g} s, not {ack_wait:g} s; use the same"
            )
        member = RedisSink(self, sink)
        sink.members.append(member)
        if self._closed:
            member.end()
        elif not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(self._forever(self._read_round, 0.05), name="corepool-redis-sinks"),
                loop.create_task(self._forever(self._upkeep_round, 0.2), name="corepool-redis-upkeep"),
            ]
        return member

    async def _join(self, sink: LocalSink) -> None:
        wake = wake_key(sink.space.scope, self._command.client, "g")
        keys = (sink.keys.events, sink.keys.config, sink.keys.base, wake)
        args = (sink.name, sink.start, sink.ack_ms, self._command.client)
        reply = await self._command.run(Script.named("sink-join"), keys, args, repeat=True)
        match reply:
            case [1, int() as number]:
                sink.number = number
            case [2, bytes() as held]:
                raise InvalidOptionError(
                    f"sink {sink.name!r} has ack_wait {int(held) / 1000:g} s, not {sink.ack_wait:g} s; use the same"
                )
            case _:
                sink.lost()  # no such stream: wait for its next life, and take it from its beginning
                sink.start = b"0-0"

    async def leave(self, member: RedisSink) -> None:
        """A member left. The last one of a sink frees what it has not handed out."""
        sink = member.sink
        if member in sink.members:
            sink.members.remove(member)
        if sink.members or self._sinks.get(sink.id) is not sink:
            return
        del self._sinks[sink.id]
        self._waker.wake()  # so that the blocked call lets go of the stream
        await self._free(sink, [raw_id for raw_id, _ in sink.drain()])

    async def _free(self, sink: LocalSink, ids: Sequence[bytes]) -> None:
        if sink.number is None:
            return
        keys = (sink.keys.events, sink.keys.members(sink.number), sink.keys.returned(sink.number))
        args: tuple[Arg, ...] = (sink.group, self._command.client, sink.space.scope, *ids)
        try:
            async with self._keeping, asyncio.timeout(1.0):
                await self._command.run(Script.named("sink-leave"), keys, args, repeat=True)
        except (CorepoolError, Refused, TimeoutError) as error:  # others take it over when its ack_wait has passed
            log.info("a sink could not be left in order: %s", error)

    async def close(self) -> None:
        """End all members; bounded in time."""
        self._closed = True
        self._reader.close()
        for task in (*self._tasks, *self._asides):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._asides, return_exceptions=True)
        sinks = list(self._sinks.values())
        for member in [member for sink in sinks for member in sink.members]:
            member.end()
        await asyncio.gather(*(self._free(sink, [raw_id for raw_id, _ in sink.drain()]) for sink in sinks))
        self._sinks.clear()
        await self._waker.close()

    # --- what members tell --------------------------------------------------------------------------------------------

    def want(self, sink: LocalSink) -> None:
        """A member waits for deliveries."""
        if sink.fresh:
            sink.fresh = False
            self._round_due.set()
        self._waker.wake()

    def settled(self, scope: bytes, receipt: Receipt) -> None:
        """A delivery is done with, or given back."""
        for sink in self._sinks.values():
            if sink.stream == receipt.stream and sink.number == receipt.sink and sink.space.scope == scope:
                sink.held.pop(receipt.id.raw, None)

    def returned(self, due: float) -> None:
        """A delivery was given back and is due in so many seconds."""
        at = asyncio.get_running_loop().time() + due
        if self._next_due is None or at < self._next_due:
            self._next_due = at
            self._round_due.set()

    # --- the tasks ----------------------------------------------------------------------------------------------------

    async def _forever(self, what: Callable[[], Coroutine[Any, Any, None]], pause: float) -> None:
        said = ""
        while not self._closed:
            try:
                await what()
                continue
            except (ConnectionLost, CorepoolError) as error:
                log.debug("the sinks were interrupted: %s", error)
            except Refused as refused:
                if (
                    not refused.passing and str(refused) != said
                ):  # it will be refused again and again, until somebody acts
                    log.warning("the server refuses to serve the sinks: %s", refused)
                said = str(refused)
                await asyncio.sleep(0.05 if refused.passing else 0.5)
            except Exception:  # whatever it is must not end the members; it is reported in full
                log.exception("the reader of the sinks failed; it goes on")
            await asyncio.sleep(pause * (0.5 + self._random.random()))

    async def _read_round(self) -> None:
        await self._reader.ready()
        if self._reader.generation != self._generation:
            generation = self._reader.generation
            await self._recover(self._reader, self._sinks.values())
            self._generation = generation
        self._waker.rearm()
        self._waker.blocked = True
        try:
            sinks = self._choose()
            if not sinks:
                self._waker.blocked = False
                await self._waker.wait()
                return
            reply = await self._read(sinks)
        finally:
            self._waker.blocked = False
        if reply is not None:
            self._deliver_all(sinks, reply)
            for _ in range(3):  # let members come back with their next receive before the call is made without them
                await asyncio.sleep(0)

    def _choose(self) -> list[LocalSink]:
        """The sinks of the next call: those with a waiting member, of one number; numbers take turns."""
        wanted = [sink for sink in self._sinks.values() if sink.number is not None and sink.demand > 0]
        numbers = sorted({sink.number for sink in wanted if sink.number is not None})
        self._alone = len(numbers) < 2
        if self._alone:
            return wanted
        self._turn += 1
        return [sink for sink in wanted if sink.number == numbers[self._turn % len(numbers)]]

    async def _read(self, sinks: list[LocalSink]) -> Reply:
        block = self._interval if self._alone else min(self._interval, _TURN)
        wakes = sorted({wake_key(sink.space.scope, self._command.client, "g") for sink in sinks})
        self._waker.key = wakes[0]
        streams = [*wakes, *(sink.keys.events for sink in sinks)]
        try:
            return await self._reader.blocking(
                *("XREADGROUP", "GROUP", sinks[0].group, self._command.client),
                *("COUNT", min(sink.demand for sink in sinks), "BLOCK", max(1, int(block * 1000)), "STREAMS"),
                *streams,
                *([">"] * len(streams)),
                block=block,
            )
        except Refused as refused:
            if refused.code not in ("NOGROUP", "UNBLOCKED", "ERR"):
                raise
        for (
            sink
        ) in sinks:  # one of them is gone and has failed the call for all: joining tells which, and mends the others
            await self._join(sink)
        self._round_due.set()
        return None

    def _deliver_all(self, sinks: list[LocalSink], reply: Reply) -> None:
        by_key = {sink.keys.events: sink for sink in sinks}
        for key, entries in split_reply(reply):
            sink = by_key.get(key)
            if sink is None:
                if any(b"tend" in fields for _, fields in entries):
                    self._round_due.set()
                self._aside(self._acknowledge(key, sinks[0].group, [raw_id for raw_id, _ in entries]))
            elif self._sinks.get(sink.id) is not sink:  # left while the call was blocked: give it back at once
                self._aside(self._free(sink, [raw_id for raw_id, _ in entries]))
            else:
                for raw_id, fields in entries:
                    self._deliver(sink, raw_id, 1, fields)

    def _deliver(self, sink: LocalSink, raw_id: bytes, count: int, fields: list[Reply]) -> None:
        try:
            sink.deliver(raw_id, count, fields, self._command.client)
        except WireError as error:  # set aside: it must not come back for ever, nor block the ones behind it
            log.warning("%s (%s of stream %r); it is acknowledged unseen", error, raw_id.decode(), sink.stream)
            self._aside(self._acknowledge(sink.keys.events, sink.group, [raw_id]))

    async def _acknowledge(self, key: bytes, group: str, ids: list[bytes]) -> None:
        try:
            await self._command.command("XACK", key, group, *ids)
        except (CorepoolError, Refused) as error:  # it stays pending, and harms nobody
            log.debug("an entry could not be acknowledged: %s", error)

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that nobody waits for."""
        task = asyncio.get_running_loop().create_task(work, name="corepool-redis-aside")
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    # --- upkeep -------------------------------------------------------------------------------------------------------

    async def _upkeep_round(self) -> None:
        loop = asyncio.get_running_loop()
        gone = any(sink.number is None for sink in self._sinks.values())
        waits = [min(max(sink.ack_wait / 4, 0.02), _LONGEST_ROUND) for sink in self._sinks.values()]
        pause = min([*waits, _LIFE_POLL if gone else _LONGEST_ROUND]) * (0.9 + 0.1 * self._random.random())
        if self._next_due is not None:
            pause = min(pause, max(0.0, self._next_due - loop.time()))
        try:
            async with asyncio.timeout(pause):
                await self._round_due.wait()
        except TimeoutError:
            pass  # the usual case: the round is due by time
        self._round_due.clear()
        self._next_due = None
        for sink in tuple(self._sinks.values()):
            if sink.number is None:
                await self._join(sink)
                if sink.number is not None:
                    self._waker.wake()
        live = [sink for sink in self._sinks.values() if sink.number is not None]
        for scope in sorted({sink.space.scope for sink in live}):
            await self._tend(scope, [sink for sink in live if sink.space.scope == scope])

    async def _tend(self, scope: bytes, sinks: list[LocalSink]) -> None:
        keys = [wake_key(scope, self._command.client, "g")]
        args: list[Arg] = [self._command.client]
        async with self._keeping:
            sinks = [sink for sink in sinks if sink.number is not None and self._sinks.get(sink.id) is sink]
            if not sinks:
                return
            for sink in sinks:
                assert sink.number is not None  # filtered above
                keys += (sink.keys.events, sink.keys.members(sink.number), sink.keys.returned(sink.number))
                args += (sink.number, sink.ack_ms, sink.demand)
            try:
                answers = await self._command.run(Script.named("sink-tend"), keys, args)
            except OutcomeUnknown:  # it may have taken events for us: look for them
                await self._recover(self._command, sinks)
                return
            if not isinstance(answers, list):
                raise WireError("the server's answer to a round has an unknown form")
            for sink, answer in zip(sinks, answers, strict=True):
                self._take(sink, answer)

    def _take(self, sink: LocalSink, answer: Reply) -> None:
        match answer:
            case [0]:
                sink.lost()
            case [1, int() as due, *deliveries]:
                if due >= 0 and sink.demand > 0:
                    self.returned(max(due, 5) / 1000)
                self._take_deliveries(sink, deliveries)
            case _:
                raise WireError("the server's answer to a round has an unknown form")

    def _take_deliveries(self, sink: LocalSink, flat: Sequence[Reply]) -> None:
        for raw_id, count, fields in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
            if isinstance(raw_id, bytes) and isinstance(count, int) and isinstance(fields, list):
                self._deliver(sink, raw_id, count, fields)

    async def _recover(self, link: Link, sinks: Iterable[LocalSink]) -> None:
        """Deliver what the server believes this client to hold and the client never got."""
        script = Script.named("sink-pending")
        for sink in tuple(sinks):
            after, more = b"-", sink.number is not None
            while more:
                head = (sink.group, self._command.client)
                reply = await link.run(script, (sink.keys.events,), (*head, "list", after), repeat=True)
                flat = reply if isinstance(reply, list) else []
                ids = [raw_id for raw_id in flat[::2] if isinstance(raw_id, bytes)]
                # known, but with a smaller count: it was delivered again, and that is what never arrived
                unknown = [
                    raw_id
                    for raw_id, count in zip(ids, flat[1::2], strict=True)
                    if isinstance(count, int) and sink.held.get(raw_id, (0, 0.0))[0] < count
                ]
                if unknown:
                    reply = await link.run(script, (sink.keys.events,), (*head, "fetch", *unknown), repeat=True)
                    self._take_deliveries(sink, reply if isinstance(reply, list) else [])
                more = len(ids) >= _PAGE
                after = b"(" + ids[-1] if ids else after
