"""The task that feeds a replica from the store's watch.

Purpose: one background task per replicated map, which belongs to the map and to nobody who calls it.
Invariants: a watch that raises is logged with its context and replaced after a growing, jittered pause; it never dies
silently. Only before the first snapshot does an error reach the caller, from `start`. When it returns the replica is frozen.
Neighbours: drives :class:`corepool.rmap.replica.Replica`; started and stopped by `ReplicatedMap`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Generic, TypeVar

from corepool.driver import Clock, MapStore
from corepool.errors import BackendUnavailable
from corepool.rmap.loops import Backoff
from corepool.rmap.replica import Replica

__all__ = ["Feed"]

T = TypeVar("T")
logger = logging.getLogger("corepool.rmap")

_BREATHE_EVERY = 256
"""Events taken in without giving the loop a turn: a driver with a long backlog would starve the other tasks."""


class Feed(Generic[T]):
    """Runs the watch of one map into its replica."""

    def __init__(self, store: MapStore, replica: Replica[T], clock: Clock, rng: random.Random) -> None:
        self._store = store
        self._replica = replica
        self._clock = clock
        self._random = rng
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.restarts = 0
        self.fed_at = clock.monotonic()

    async def start(self) -> None:
        """Start the task; returns after the first snapshot. Cancelled or failed, it leaves no task behind.

        Raises:
            Whatever the first watch raised; BackendUnavailable if the watch ended at once.
        """
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"corepool map feed {self._store.name}")
        try:
            await self._loaded
        except BaseException:  # cancellation included: a half-open map must not leave its task behind
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the task and wait until it is gone. Idempotent, and safe to call from several tasks."""
        if self._task is not None:
            if not self._stopping:  # a second cancel would interrupt the task while it closes its watch
                self._stopping = True
                self._task.cancel()
            await asyncio.wait([self._task])
        self._finish()

    async def _run(self) -> None:
        backoff = Backoff(self._random, base=0.05, cap=5.0, attempts=1)
        try:
            while True:
                fed = self.fed_at
                try:
                    await self._watch_once()
                    return  # the watch ended: the backend was closed
                except Exception as error:  # one loop for whatever a driver raises: the feed must not die silently
                    if self._stopping:  # the watch failed to close; going round again would outlive `stop`
                        logger.exception("map %s: closing its watch failed", self._store.name)
                        return
                    if not self._replica.loaded:
                        if not self._loaded.done():
                            self._loaded.set_exception(error)
                        return
                    if self.fed_at != fed:
                        backoff.attempts = 1
                    self.restarts += 1
                    logger.exception(
                        "map %s: its watch failed at revision %d and is replaced",
                        self._store.name,
                        self._replica.revision,
                        extra={"corepool_map": self._store.name, "restarts": self.restarts},
                    )
                await backoff.pause()
        finally:
            self._finish()

    async def _watch_once(self) -> None:
        watch = self._store.watch()
        self._replica.begin_watch()
        taken = 0
        try:
            async for event in watch:
                self._replica.apply(event)
                self.fed_at = self._clock.monotonic()
                if self._replica.loaded and not self._loaded.done():
                    self._loaded.set_result(None)
                taken += 1
                if taken % _BREATHE_EVERY == 0:
                    await asyncio.sleep(0)
        finally:
            await watch.aclose()

    def _finish(self) -> None:
        name = self._store.name
        if not self._loaded.done():
            self._loaded.set_exception(BackendUnavailable(f"the watch of map {name!r} ended before its first snapshot"))
            self._loaded.exception()  # nobody may be waiting for it any more: it is not an error of its own
        if not self._replica.ended:
            self._replica.end(
                BackendUnavailable(f"map {name!r} was closed while its revision was waited for; join it again")
            )
