"""A map as its feed tells it: a complete snapshot, then every change in order.

Purpose: apply the rules of :mod:`corepool_nats.held` to records in order, and know when the snapshot is complete.

**The double fence.** A consumer that delivers the newest message of every subject is not a snapshot: while it delivers, a clear
may purge what it was about to send, and its marker comes much later (waiting for "nothing pending" showed half a clear in 34 of
2,091 joins). So the feed publishes a fence on a subject of its own, waits until it arrives (all of the initial delivery is then
here), publishes a second one and waits for that: whatever was purged during the delivery had its marker stored before
the purge, so before the second fence. Only then the state is shown.

Invariants: `state` equals the map at `revision` once `open` has returned; changes reach ``on_change`` in strictly increasing
revision; a lag of more than half the tombstones' grace ends the feed (a tombstone might be swept before we see it).
Neighbours: watches and scans.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

from corepool.driver import Change, Cleared, Entry
from corepool.errors import WireError
from corepool_nats.assets import Assets
from corepool_nats.client import Target
from corepool_nats.feed import Feed, FeedLost
from corepool_nats.held import Cache, Held, held_of
from corepool_nats.link import Link, LinkError
from corepool_nats.names import MapSubjects
from corepool_nats.records import Record

__all__ = ["MapFeed"]

log = logging.getLogger("corepool.nats")


class MapFeed:
    """A map's state on one link."""

    def __init__(
        self,
        assets: Assets,
        link: Link,
        subjects: MapSubjects,
        cache: Cache,
        on_change: Callable[[Change | Cleared], None] | None = None,
    ) -> None:
        client = assets.client
        self._target: Target = assets.maps
        self._link = link
        self._subjects = subjects
        self._cache = cache
        self._on_change = on_change
        self._patience = client.settings.timeout
        self._fence = f"cp.{assets.space.token}.mw.{secrets.token_hex(10)}"
        self._awaited = ""
        self._arrived = asyncio.Event()
        self._complete = False
        self._most_lag = client.settings.tombstone_grace / 2
        self._caught_up = asyncio.get_running_loop().time()
        self._feed = Feed(link, client.api_prefix, self._target.asset, client.settings.heartbeat, self._take)
        self.entries: dict[str, Entry] = {}
        self.graves: dict[str, int] = {}
        """Tombstones met in the snapshot: their sequences by subject."""
        self.cleared = 0
        """The marker whose purge is still to come: the snapshot met entries below it."""
        self.marker = 0
        self.revision = 0

    async def open(self, attempt: int = 0) -> None:
        """Build the snapshot.

        attempt: how many times in a row it has failed; each waits longer.

        Raises:
            FeedLost
        """
        # A consumer that was about to deliver what is purged meanwhile goes on by one message per new message only
        # (seen on 2.11 and 2.15: a fence came after two minutes). A new consumer does not have what was purged in its plan.
        stall = min(0.25 * 2**attempt, 5.0)
        await self._feed.open([self._subjects.everything, self._fence], {"deliver_policy": "last_per_subject"})
        for number in ("1", "2"):
            self._awaited = number
            self._arrived.clear()
            try:
                # The fences go away by themselves; nobody but this feed listens to them.
                reply = await self._link.request(
                    self._fence, number.encode(), {"Nats-TTL": "120s"}, timeout=self._patience
                )
            except LinkError as error:
                raise FeedLost(str(error)) from None
            if b'"error"' in reply.data:
                raise FeedLost(f"the fence was refused: {reply.data[:200]!r}")
            await self._feed.wait(self._arrived, stall=stall)
        self._complete = True

    async def wait(self) -> None:
        """Pass changes on until the feed is lost.

        Raises:
            FeedLost
        """
        await self._feed.wait()

    async def close(self) -> None:
        await self._feed.close()

    def snapshot(self) -> tuple[Entry, ...]:
        return tuple(self.entries.values())

    def _take(self, record: Record) -> None:
        self._check_lag(record)
        if record.subject == self._fence:
            if record.data.decode("ascii", "replace") == self._awaited:
                self._arrived.set()
            return
        if record.subject == self._subjects.marker:
            self._clear(record.sequence)
            return
        try:
            key = self._subjects.key_of(record.subject)
        except WireError as error:
            log.warning("a foreign message on %s is left aside: %s", record.subject, error)
            return
        if key is not None:
            self._write(key, record.subject, held_of(record))

    def _clear(self, sequence: int) -> None:
        self.marker = self.revision = sequence
        self._cache.cleared(self._subjects, sequence)
        if not self._complete and (self.entries or self.graves):
            self.cleared = sequence
        self.entries.clear()
        self.graves.clear()
        if self._complete and self._on_change is not None:
            self._on_change(Cleared(sequence))

    def _write(self, key: str, subject: str, held: Held) -> None:
        if held.is_void(self.marker):
            return
        self._cache.put(subject, held)
        self.revision = held.sequence
        if held.value is None:
            self.entries.pop(key, None)
            if not self._complete:
                self.graves[subject] = held.sequence
        else:
            self.entries[key] = Entry(key, held.value, held.sequence)
            if not self._complete:
                self.graves.pop(subject, None)
        if self._complete and self._on_change is not None:
            self._on_change(Change(held.sequence, key, held.value))

    def _check_lag(self, record: Record) -> None:
        now = asyncio.get_running_loop().time()
        if record.pending == 0 or not self._complete:
            self._caught_up = now
        elif now - self._caught_up > self._most_lag:
            raise FeedLost(f"this process lags more than {self._most_lag:g} s behind")
