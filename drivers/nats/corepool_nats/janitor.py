"""Sweeps the traces of deleted keys and destroyed maps.

Purpose: a tombstone must stay until everybody has seen it, and must not stay for ever: job keys come and go without end.
Invariants:

- Nothing is purged before it is `tombstone_grace` old (counted here, on this process's clock, from when it was written or first
  met). A watch that lags behind by half of that begins anew, so no watch misses a tombstone.
- A purge names its subject and an upper sequence, both of messages known to be dead: run late or twice it harms nothing.
- The newest message of a map is never purged (it is what the map's own revision is), except the marker of a destroyed map.
- What a crashed process leaves is met by the next snapshot or scan of the map, and swept then.

Neighbours: maps tell it what they deleted; watches and scans what they found.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict

import attrs
import msgspec

from corepool.errors import CorepoolError
from corepool_nats import api
from corepool_nats.assets import Assets
from corepool_nats.mapfeed import MapFeed
from corepool_nats.names import MapSubjects
from corepool_nats.records import Reads

__all__ = ["Janitor"]

log = logging.getLogger("corepool.nats")

_MOST = 100_000
_CLEARED_GRACE = 60.0


@attrs.frozen(slots=True)
class _Grave:
    map: MapSubjects
    filter: str
    sequence: int
    due: float
    whole: bool


class Janitor:
    """One per namespace and backend object. Its task runs only while there is something to wait for."""

    def __init__(self, assets: Assets, reads: Reads) -> None:
        self._assets = assets
        self._reads = reads
        self._client = assets.client
        self._grace = assets.client.settings.tombstone_grace
        self._graves: OrderedDict[str, _Grave] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def deleted(self, subjects: MapSubjects, subject: str, sequence: int) -> None:
        """This process wrote a tombstone."""
        self._add(_Grave(subjects, subject, sequence, time.monotonic() + self._grace, whole=False))

    def cleared(self, subjects: MapSubjects, marker: int) -> None:
        """This process stored a marker: what is below it can go, once no write under way may ask for it any more."""
        patience = max(_CLEARED_GRACE, 4 * self._client.settings.timeout)
        due = time.monotonic() + min(self._grace, patience)
        self._add(_Grave(subjects, subjects.every_key, marker - 1, due, whole=False))

    def met(self, subjects: MapSubjects, feed: MapFeed) -> None:
        """Traces that a snapshot met. Whoever left them sweeps them sooner, if it still lives."""
        late = time.monotonic() + self._grace * (1.5 + self._client.random.random())
        for subject, sequence in feed.graves.items():
            if subject not in self._graves:
                self._add(_Grave(subjects, subject, sequence, late, whole=False))
        if feed.cleared and subjects.every_key not in self._graves:
            self._add(_Grave(subjects, subjects.every_key, feed.cleared - 1, late, whole=False))

    def destroyed(self, subjects: MapSubjects, sequence: int) -> None:
        """This process destroyed a map with the marker of this sequence."""
        due = time.monotonic() + self._grace
        self._add(_Grave(subjects, subjects.everything, sequence, due, whole=True))

    def _add(self, grave: _Grave) -> None:
        if len(self._graves) >= _MOST:
            self._graves.popitem(last=False)  # a later snapshot meets it again
        self._graves[grave.filter] = grave
        self._graves.move_to_end(grave.filter)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="corepool-nats-janitor")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._graves:
            soonest = min(grave.due for grave in self._graves.values())  # what is added meanwhile is due later
            await asyncio.sleep(max(soonest - time.monotonic(), self._grace / 20))
            try:
                await self._sweep()
            except CorepoolError as error:
                log.info("sweeping has to wait: %s", error)
                await asyncio.sleep(5.0)
            except Exception:  # a fault here must not end the sweeping for good
                log.exception("sweeping failed and begins again")
                await asyncio.sleep(5.0)

    async def _sweep(self) -> None:
        """Purge what is due.

        Raises:
            CorepoolError
        """
        now = time.monotonic()
        due = [grave for grave in self._graves.values() if grave.due <= now]
        newest: dict[str, int] = {}
        for grave in due:
            base = grave.map.base
            if base not in newest:
                query = {"last_by_subj": grave.map.everything}
                record = await self._reads.one(self._assets.maps, query, self._client.deadline())
                newest[base] = record.sequence if record is not None else 0
            alone = newest[base] == grave.sequence
            if alone and not grave.whole:
                self._again(grave)
                continue
            if alone or not grave.whole:  # a marker that others follow stays: it tells which of them are void
                await self._purge(grave.filter, grave.sequence + 1)
            if self._graves.get(grave.filter) is grave:
                del self._graves[grave.filter]

    def _again(self, grave: _Grave) -> None:
        """The newest message of its map: look again later."""
        if self._graves.get(grave.filter) is grave:
            self._graves[grave.filter] = attrs.evolve(grave, due=time.monotonic() + self._grace)

    async def _purge(self, subject: str, below: int) -> None:
        body = msgspec.json.encode({"filter": subject, "seq": below})
        await self._client.api(f"STREAM.PURGE.{self._assets.maps.asset}", body, api.Done, self._client.deadline())
