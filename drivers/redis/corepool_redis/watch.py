"""One watch: a snapshot, then every change, in order and without a gap.

Purpose: :class:`corepool.driver.Watch` as a state machine; a :class:`~corepool_redis.feeds.FeedReader` feeds it with the
entries of the log.
Invariants:

- An entry is accepted only if it is the successor of where the watch stands: revision + 1, or the first entry of a map that
  began after exactly this revision. Anything else is a gap, and a gap leads to a snapshot (M3).
- Entries offered while a snapshot is on its way are kept; those up to the snapshot's revision are then dropped, since the
  snapshot was taken after the watch began to listen.
- A watch that nobody reads holds at most ``MOST_EVENTS`` events and ``MOST_BYTES``; past that it drops them and owes a
  snapshot (M4).
- ``generation`` grows when the store is found to have another history than the watch has seen (R13).

Neighbours: made by :mod:`corepool_redis.feeds`; takes its snapshots over the command link.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Self

import attrs

from corepool.driver import Change, Cleared, Entry, Snapshot, WatchEvent
from corepool.errors import CorepoolError, WireError
from corepool_redis.commit import Space, read_entries
from corepool_redis.keys import EventId, MapKeys
from corepool_redis.link import Refused
from corepool_redis.resp import Reply
from corepool_redis.scripts import Script

if TYPE_CHECKING:
    from corepool_redis.feeds import FeedReader

__all__ = ["LOG_LIFE_MS", "MOST_BYTES", "MOST_EVENTS", "LogEntry", "RedisWatch"]

log = logging.getLogger("corepool.redis")

MOST_EVENTS = 1024
MOST_BYTES = 16 * 1024 * 1024
LOG_LIFE_MS = 3_600_000
"""A log that no watch looked after for so long expires. A watch looks every few seconds."""

NOWHERE = EventId(0, 1)
"""Where a map stands that never held anything: the id of the mark its log begins with."""


@attrs.frozen(slots=True)
class LogEntry:
    """An entry of a change log. ``before``: set on the first entry of a map's life, the revision that its log ended with."""

    id: EventId
    kind: bytes
    key: str
    value: bytes
    before: int | None

    @classmethod
    def parse(cls, raw_id: bytes, fields: list[Reply]) -> LogEntry:
        """Raises:
        WireError: no entry of this driver.
        """
        try:
            match fields:
                case [bytes() as field, bytes() as value]:
                    return cls(EventId.parse(raw_id), field[:1], field[1:].decode(), value, None)
                case [bytes() as field, bytes() as value, b"p", bytes() as before]:
                    return cls(EventId.parse(raw_id), field[:1], field[1:].decode(), value, int(before))
                case _:
                    raise WireError("a change log holds an entry of another program")
        except ValueError:
            raise WireError("a change log holds an entry of another program") from None


class RedisWatch:
    """See :class:`corepool.driver.Watch`."""

    def __init__(self, feeds: FeedReader, space: Space, keys: MapKeys) -> None:
        self.keys = keys
        self._feeds = feeds
        self._space = space
        self._stand: EventId = NOWHERE
        self._birth: int = 0
        self._generation = 0
        self._began = False
        self._owes_snapshot = True
        self._taking = False
        self._other_history = False
        self._kept: deque[LogEntry] = deque()
        self._kept_overflow = False
        self._events: deque[WatchEvent] = deque()
        self._bytes = 0
        self._woken = asyncio.Event()
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent:
        while not self._closed:
            if self._owes_snapshot:
                snapshot = await self._snapshot()
                if snapshot is not None:
                    return snapshot
            elif self._events:
                event = self._events.popleft()
                self._bytes -= _size(event)
                return event
            else:
                self._woken.clear()
                await self._woken.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.end()
        self._feeds.forget(self)

    def end(self) -> None:
        """Stop: whoever waits wakes up. Idempotent."""
        self._closed = True
        self._woken.set()

    # --- fed by the reader --------------------------------------------------------------------------------------------

    def offer(self, entry: LogEntry) -> None:
        """The next entry of the log, as far as the reader can tell."""
        if not self._owes_snapshot:
            self._accept(entry)
        elif not self._taking:
            pass  # the snapshot that is owed will contain it
        elif len(self._kept) < MOST_EVENTS:
            self._kept.append(entry)
        else:
            self._kept_overflow = True

    def lose(self, *, other_history: bool = False) -> None:
        """The log cannot be followed any further: the next event is a snapshot."""
        self._other_history |= other_history
        self._owes_snapshot = True
        self._events.clear()
        self._bytes = 0
        self._woken.set()

    def _accept(self, entry: LogEntry) -> None:
        revision, stand = entry.id.ms, self._stand.ms
        if revision <= stand:
            return
        if entry.before != stand and (entry.before is not None or revision != stand + 1):
            self.lose()
            return
        event: WatchEvent | None = None
        if entry.kind in (b"s", b"d"):
            event = Change(revision, entry.key, entry.value if entry.kind == b"s" else None)
        elif entry.kind in (b"c", b"x"):
            event = Cleared(revision)
        elif entry.kind != b"y":
            self.lose()
            return
        self._stand = entry.id
        if entry.before is not None:
            self._birth = revision
        elif entry.kind in (b"x", b"y"):  # the end of a life of the map; the next one has another birth
            self._birth = 0
        if event is None:
            return
        self._events.append(event)
        self._bytes += _size(event)
        if len(self._events) > MOST_EVENTS or self._bytes > MOST_BYTES:
            self.lose()  # nobody reads: keep nothing but the debt (M4)
        self._woken.set()

    # --- snapshots ----------------------------------------------------------------------------------------------------

    async def _snapshot(self) -> Snapshot | None:
        """Take a snapshot and go live from it; None if it has to be tried again."""
        self._kept.clear()  # offered before the snapshot is taken: it will contain them
        self._kept_overflow = False
        self._feeds.listen(self)
        self._taking = True
        try:
            reply = await self._space.link.run(
                Script.named("snapshot"), (self.keys.data, self.keys.log), (LOG_LIFE_MS,), repeat=True
            )
            stand, birth, entries = _read_snapshot(reply)
        except (
            CorepoolError,
            Refused,
        ) as error:  # iteration never raises for a lost server: it goes on when there is one
            if not self._closed:
                log.warning("a watch cannot take its snapshot yet: %s", error)
                await asyncio.sleep(0.05 + 0.2 * self._space.random.random())
            return None
        finally:
            self._taking = False
        if self._closed:
            return None
        if self._began and (
            self._other_history
            or stand.ms < self._stand.ms
            or (stand.ms == self._stand.ms and stand != self._stand)
            or (self._birth != 0 and birth not in (0, self._birth))
        ):
            self._generation += 1
        self._began, self._other_history = True, False
        self._stand, self._birth, self._owes_snapshot = stand, birth, self._kept_overflow
        self._feeds.follow(self, stand)
        kept, self._kept = self._kept, deque()
        for entry in kept:
            self.offer(entry)
        return Snapshot(stand.ms, entries, self._generation)


def _read_snapshot(reply: Reply) -> tuple[EventId, int, tuple[Entry, ...]]:
    match reply:
        case [bytes() as stand, bytes() as birth, [*flat]] if birth.isdigit():
            return EventId.parse(stand), int(birth), tuple(read_entries(flat))
        case _:
            raise WireError("the server's answer to a snapshot has an unknown form")


def _size(event: WatchEvent) -> int:
    return len(event.value) if isinstance(event, Change) and event.value is not None else 0
