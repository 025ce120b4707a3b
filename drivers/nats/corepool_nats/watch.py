"""Watches of maps: a snapshot, then changes, over one feed after the other.

Purpose: `corepool.driver.Watch` on `MapFeed`.
Invariants: what is yielded never goes back within a generation; a watch that nobody reads holds at most `MOST_UNREAD` changes,
then one snapshot instead (M4); a cancelled read takes nothing away (M6); a lost feed is replaced without an error.
A generation begins when the store is seen to have gone back: its stream was made again (another creation time), or ends below
what this watch has seen.
Neighbours: made by :mod:`corepool_nats.maps`; ends with its backend.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Self

from corepool.driver import Change, Cleared, Snapshot, WatchEvent
from corepool.errors import BackendUnavailable, CorepoolError
from corepool_nats import api
from corepool_nats.assets import Assets
from corepool_nats.feed import FeedLost
from corepool_nats.held import Cache
from corepool_nats.janitor import Janitor
from corepool_nats.link import Link
from corepool_nats.mapfeed import MapFeed
from corepool_nats.names import MapSubjects

__all__ = ["MOST_UNREAD", "NatsWatch"]

log = logging.getLogger("corepool.nats")

MOST_UNREAD = 8192
MOST_UNREAD_BYTES = 16 << 20


class NatsWatch:
    """See `corepool.driver.Watch`."""

    def __init__(
        self, assets: Assets, subjects: MapSubjects, cache: Cache, janitor: Janitor, ended: Callable[[NatsWatch], None]
    ) -> None:
        self._assets = assets
        self._client = assets.client
        self._subjects = subjects
        self._cache = cache
        self._janitor = janitor
        self._ended = ended
        self._queue: deque[Change | Cleared] = deque()
        self._bytes = 0
        self._feed: MapFeed | None = None
        self._due = False
        """A snapshot is to be yielded next: taken from the feed's state when it is."""
        self._yielded = -1
        self._revision = 0
        self._generation = 0
        self._created: str | None = None
        self._failures = 0
        self._closed = False
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="corepool-nats-watch")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent:
        while True:
            if self._closed:
                raise StopAsyncIteration
            if self._due and self._feed is not None:
                return self._snapshot(self._feed)
            if self._queue:
                event = self._queue.popleft()
                self._bytes -= _size(event)
                self._yielded = event.revision
                return event
            self._wake.clear()
            await self._wake.wait()

    async def aclose(self) -> None:
        """See `corepool.driver.Watch.aclose`."""
        if not self._closed:
            self._closed = True
            self._wake.set()
            self._task.cancel()
            self._ended(self)
        await asyncio.wait([self._task])

    # --- what is yielded ---------------------------------------------------------------------------------------------

    def _snapshot(self, feed: MapFeed) -> Snapshot:
        """The state as it is now; everything that was queued is in it."""
        self._due = False
        self._queue.clear()
        self._bytes = 0
        self._yielded = max(feed.revision, self._yielded, 0)
        return Snapshot(self._yielded, feed.snapshot(), self._generation)

    def _changed(self, event: Change | Cleared) -> None:
        self._revision = max(self._revision, event.revision)
        if not self._due:
            self._queue.append(event)
            self._bytes += _size(event)
            if len(self._queue) > MOST_UNREAD or self._bytes > MOST_UNREAD_BYTES:
                self._queue.clear()
                self._bytes = 0
                self._due = True
        self._wake.set()

    # --- feeds -------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """One feed after the other. Nothing but closing ends it: a fault is logged and tried again."""
        try:
            while True:
                try:
                    link = await self._client.link(self._client.deadline())
                    await self._session(link)
                except FeedLost as error:
                    self._failures += 1
                    log.info("the watch of %s begins again: %s", self._subjects.base, error)
                except BackendUnavailable as error:
                    if self._client.closed.is_set():
                        return
                    log.warning("the watch of %s cannot go on yet: %s", self._subjects.base, error)
                except CorepoolError as error:
                    log.warning("the watch of %s: %s", self._subjects.base, error)
                except (
                    Exception
                ):  # a fault of ours must not end a watch silently: its replica would stand still for ever
                    log.exception("the watch of %s failed and begins again", self._subjects.base)
                await asyncio.sleep(0.005 + 0.02 * self._client.random.random())
        finally:
            self._closed = True
            self._wake.set()

    async def _session(self, link: Link) -> None:
        """Follow one feed until it is lost.

        Raises:
            FeedLost
        """
        seen = self._revision  # by earlier feeds: what this one passes on meanwhile does not count
        asset = await self._assets.refresh(self._assets.maps, self._client.deadline())
        feed = MapFeed(self._assets, link, self._subjects, self._cache, self._changed)
        try:
            await feed.open(self._failures)
            self._failures = 0
            if self._created is not None and await self._went_back(asset.created, seen):
                self._generation += 1
                self._yielded = -1
                self._revision = 0
            self._created = asset.created
            self._revision = max(self._revision, feed.revision)
            self._queue.clear()
            self._bytes = 0
            self._feed, self._due = feed, True
            self._wake.set()
            self._janitor.met(self._subjects, feed)
            await feed.wait()
        finally:
            await feed.close()

    async def _went_back(self, created: str, seen: int) -> bool:
        if created != self._created:
            log.warning("the stream %s was made again: %s, %s before", self._assets.maps.asset, created, self._created)
            return True
        target = self._assets.maps
        info = await self._client.api(f"STREAM.INFO.{target.asset}", b"", api.StreamInfo, self._client.deadline())
        back = info.error is None and info.state.last_seq < seen
        if back:
            log.warning("the stream %s ends at %d, this watch has seen %d", target.asset, info.state.last_seq, seen)
            self._client.report_loss(target.asset)
        return back


def _size(event: Change | Cleared) -> int:
    return len(event.value) + 64 if isinstance(event, Change) and event.value is not None else 64
