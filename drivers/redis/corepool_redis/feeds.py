"""One blocking XREAD for everything a backend follows: the change logs of its maps and the events of its readings.

Purpose: deliver what the server appends, whatever happens to the connection (M3), without anybody waiting for anybody (M4).
Invariants:

- The position of every feed is a real id, resolved once, never ``$`` again: nothing is missed between two reads.
- After each reconnect, on the new socket itself, and every few seconds over the command link, each log is checked: a failover,
  an expiry, DEL and FLUSHALL emit no entry, and reading on from an id that the server no longer knows would skip silently.
- A reading that is not read leaves the call until its buffer is drained; a watch drops to a snapshot instead.
- At most 64 keys per call. With more, the calls take turns and block for a moment each.
- A blocked call is woken by an entry in a stream of its own, which needs no right that appending does not need.

Neighbours: :mod:`corepool_redis.watch` and :mod:`corepool_redis.readings` are fed; :mod:`corepool_redis.link` connects.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator
from typing import Protocol

import attrs

from corepool.errors import CorepoolError, WireError
from corepool_redis.commit import Space
from corepool_redis.connection import ConnectionLost
from corepool_redis.keys import EventId, MapKeys, wake_key
from corepool_redis.link import Link, Refused
from corepool_redis.resp import Reply
from corepool_redis.scripts import Script
from corepool_redis.watch import LOG_LIFE_MS, LogEntry, RedisWatch

__all__ = ["FeedReader", "Reads", "Waker", "split_reply"]

log = logging.getLogger("corepool.redis")

_KEYS_PER_CALL = 64
_COUNT = 128
_TURN = 0.05  # seconds that one of several calls may block


class Reads(Protocol):
    """A reading, as the reader sees it."""

    @property
    def key(self) -> bytes: ...

    @property
    def position(self) -> EventId | None:
        """After which id it wants events; None if it wants none now."""
        ...

    def offer(self, since: EventId, raw_id: bytes, fields: list[Reply]) -> None: ...

    def end(self) -> None: ...


@attrs.define(slots=True, eq=False)
class _MapFeed:
    """A followed log, shared by all watches of the map. ``position`` None: no watch has taken its snapshot yet."""

    keys: MapKeys
    position: EventId | None = None
    watches: list[RedisWatch] = attrs.field(factory=list[RedisWatch])
    behind: EventId | None = None


class Waker:
    """Interrupts a blocked read with an entry in a stream of this client's own, at most once per block."""

    def __init__(self, link: Link, key: bytes) -> None:
        self.key = key
        self.blocked = False
        self._link = link
        self._woken = asyncio.Event()
        self._sent = False
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Make the reader look again, soon."""
        self._woken.set()
        if self.blocked and not self._sent:
            self._sent = True
            task = asyncio.get_running_loop().create_task(self._send(), name="corepool-redis-wake")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self) -> None:
        try:
            await asyncio.gather(
                self._link.command("XADD", self.key, "MAXLEN", "~", 64, "*", "w", ""),
                self._link.command("PEXPIRE", self.key, LOG_LIFE_MS),
            )
        except (CorepoolError, Refused) as error:  # the block ends by itself a little later
            log.debug("a blocked read could not be woken: %s", error)

    def rearm(self) -> None:
        """The reader is about to look; what comes from now on must wake it again."""
        self._woken.clear()
        self._sent = False

    async def wait(self) -> None:
        """Wait for :meth:`wake` without asking the server anything."""
        await self._woken.wait()

    async def close(self) -> None:
        """Let go of the tasks."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class FeedReader:
    """The reader task and what it feeds. Nothing runs before the first watch or reading.

    interval: seconds between two looks at the server when nothing happens: the block of a call, and the period of the check.
    """

    def __init__(self, command: Link, reader: Link, scope: bytes, interval: float) -> None:
        self._command = command
        self._reader = reader
        self._interval = interval
        self._maps: dict[bytes, _MapFeed] = {}
        self._readings: dict[bytes, list[Reads]] = {}
        self._watches: list[RedisWatch] = []
        self._wake_at = EventId(0, 0)
        self._waker = Waker(command, wake_key(scope, command.client, "r"))
        self._task: asyncio.Task[None] | None = None
        self._generation = 0
        self._checked = 0.0
        self._turn = itertools.count()
        self._closed = False

    # --- what is fed --------------------------------------------------------------------------------------------------

    def watch(self, space: Space, keys: MapKeys) -> RedisWatch:
        """A new watch. It listens from its first snapshot on."""
        watch = RedisWatch(self, space, keys)
        if self._closed:
            watch.end()
        else:
            self._watches.append(watch)
        return watch

    def listen(self, watch: RedisWatch) -> None:
        """Offer the watch whatever comes from now on."""
        feed = self._maps.setdefault(watch.keys.log, _MapFeed(watch.keys))
        if watch not in feed.watches:
            feed.watches.append(watch)
        self._start()

    def follow(self, watch: RedisWatch, stand: EventId) -> None:
        """The watch has its snapshot: follow the log from there, unless it is followed already."""
        feed = self._maps[watch.keys.log]
        if feed.position is None:
            feed.position = stand
            self._waker.wake()

    def forget(self, watch: RedisWatch) -> None:
        """The watch is closed."""
        if watch in self._watches:
            self._watches.remove(watch)
        feed = self._maps.get(watch.keys.log)
        if feed is not None and watch in feed.watches:
            feed.watches.remove(watch)
            if not feed.watches:
                del self._maps[watch.keys.log]

    def add(self, reading: Reads) -> None:
        """Feed a reading."""
        if self._closed:
            reading.end()
            return
        self._readings.setdefault(reading.key, []).append(reading)
        self._start()
        self._waker.wake()

    def remove(self, reading: Reads) -> None:
        """The reading is closed."""
        readings = self._readings.get(reading.key, [])
        if reading in readings:
            readings.remove(reading)
            if not readings:
                del self._readings[reading.key]

    def wake(self) -> None:
        """Somebody wants events again."""
        self._waker.wake()

    def _start(self) -> None:
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="corepool-redis-feeds")

    async def close(self) -> None:
        """End everything that is fed."""
        self._closed = True
        for watch in self._watches:
            watch.end()
        for reading in [reading for readings in self._readings.values() for reading in readings]:
            reading.end()
        self._reader.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._waker.close()

    # --- the reader ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        said = ""
        while not self._closed:
            try:
                await self._round()
                continue
            except (ConnectionLost, CorepoolError) as error:
                log.debug("the feeds were interrupted: %s", error)
            except Refused as refused:
                if (
                    not refused.passing and str(refused) != said
                ):  # it will be refused again and again, until somebody acts
                    log.warning("the server refuses to feed the watches and readings: %s", refused)
                said = str(refused)
                await asyncio.sleep(0.05 if refused.passing else 0.5)
            except Exception:  # whatever it is must end neither the watches nor the readings; it is reported in full
                log.exception("the reader of the feeds failed; it goes on")
            await asyncio.sleep(0.05)

    async def _round(self) -> None:
        await self._reader.ready()
        self._waker.rearm()
        now = asyncio.get_running_loop().time()
        if self._reader.generation != self._generation:
            generation = self._reader.generation
            await self._check(self._reader)
            self._generation, self._checked = generation, now
        elif now - self._checked >= self._interval:
            await self._check(self._command)
            self._checked = now
        self._waker.blocked = True
        try:
            targets = dict(self._targets())
            if not targets:
                self._waker.blocked = False
                await self._waker.wait()
                return
            reply = await self._read(targets)
        finally:
            self._waker.blocked = False
        for key, entries in split_reply(reply):
            self._deliver(key, targets.get(key, self._wake_at), entries)

    def _targets(self) -> Iterator[tuple[bytes, EventId]]:
        for key, feed in self._maps.items():
            if feed.position is not None:
                yield key, feed.position
        for key, readings in self._readings.items():
            positions = [reading.position for reading in readings]
            wanted = [position for position in positions if position is not None]
            if wanted:
                yield key, min(wanted)

    async def _read(self, targets: dict[bytes, EventId]) -> Reply:
        keys = list(targets)
        calls = -(-len(keys) // (_KEYS_PER_CALL - 1))
        block = self._interval
        if calls > 1:
            turn = next(self._turn) % calls
            keys = keys[turn::calls]
            block = min(block, _TURN)
        ids = [targets[key].raw for key in keys]
        return await self._reader.blocking(
            *("XREAD", "COUNT", _COUNT, "BLOCK", max(1, int(block * 1000)), "STREAMS"),
            *(self._waker.key, *keys, self._wake_at.raw, *ids),
            block=block,
        )

    def _deliver(self, key: bytes, since: EventId, entries: list[tuple[bytes, list[Reply]]]) -> None:
        if key == self._waker.key:
            if entries:
                self._wake_at = EventId.parse(entries[-1][0])
            return
        for reading in tuple(self._readings.get(key, ())):
            for raw_id, fields in entries:
                reading.offer(since, raw_id, fields)
        feed = self._maps.get(key)
        if feed is None or feed.position is None or not entries:
            return
        try:
            parsed = [LogEntry.parse(raw_id, fields) for raw_id, fields in entries]
        except WireError as error:
            log.warning("%s: its watches take a new snapshot", error)
            self._lose(feed, other_history=False)
            return
        for entry in parsed:
            for watch in feed.watches:
                watch.offer(entry)
        feed.position = parsed[-1].id

    # --- the check ----------------------------------------------------------------------------------------------------

    async def _check(self, link: Link) -> None:
        """Make sure that each log still leads on from where its watches stand."""
        feeds = [(feed, feed.position) for feed in self._maps.values() if feed.position is not None]
        for start in range(0, len(feeds), _KEYS_PER_CALL):
            part = feeds[start : start + _KEYS_PER_CALL]
            keys = [key for feed, _ in part for key in (feed.keys.data, feed.keys.log)]
            stands = [stand.raw for _, stand in part]
            verdicts = await link.run(Script.named("check"), keys, (LOG_LIFE_MS, *stands), repeat=True)
            if not isinstance(verdicts, list):
                raise WireError("the server's answer to a check has an unknown form")
            for (feed, stand), verdict in zip(part, verdicts, strict=True):
                self._judge(feed, stand, verdict)

    def _judge(self, feed: _MapFeed, stand: EventId, verdict: Reply) -> None:
        if verdict in (1, 2):
            self._lose(feed, other_history=verdict == 2)
        elif verdict == 3 and feed.behind == stand:
            # a whole interval ago there was more to read already, and nothing came: this socket leads to a server that was
            # left behind (a primary cut off from its Sentinels)
            feed.behind = None
            self._reader.drop("the server no longer gets what is written")
        else:
            feed.behind = stand if verdict == 3 else None

    def _lose(self, feed: _MapFeed, *, other_history: bool) -> None:
        feed.position = feed.behind = None
        for watch in feed.watches:
            watch.lose(other_history=other_history)


def split_reply(reply: Reply) -> Iterator[tuple[bytes, list[tuple[bytes, list[Reply]]]]]:
    """The answer of XREAD or XREADGROUP: for each key its entries. An entry that was deleted meanwhile has no fields."""
    if reply is None:
        return
    if not isinstance(reply, list):
        raise WireError("the server's answer to a read has an unknown form")
    for row in reply:
        match row:
            case [bytes() as key, [*entries]]:
                found: list[tuple[bytes, list[Reply]]] = []
                for entry in entries:
                    match entry:
                        case [bytes() as raw_id, [*fields]]:
                            found.append((raw_id, fields))
                        case [bytes() as raw_id, None]:
                            found.append((raw_id, []))
                        case _:
                            raise WireError("an entry of a stream has an unknown form")
                yield key, found
            case _:
                raise WireError("the server's answer to a read has an unknown form")
