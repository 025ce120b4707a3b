"""Several streams poured into one, each in its own order, fairly and with bounds.

Purpose: what `Reader` and `Sink` share: one pump task per stream with a bounded buffer, one place to take from.
Invariants:

- A full buffer stops its own pump and no other. Taking goes round the streams that have something (a busy one starves none).
- Taking is synchronous once something is there, so a cancelled taker loses nothing.
- A pump that raises is logged with its context and restarted after a growing, jittered pause; it never dies silently.
- Pumps belong to the merge, never to the caller's task.

Neighbours: used by :mod:`corepool.streaming.reader` and :mod:`corepool.streaming.sink`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

__all__ = ["Key", "Merge", "Source"]

T = TypeVar("T")
logger = logging.getLogger("corepool.streaming")

Key: TypeAlias = tuple[str, str]
"""A stream: its namespace and its name."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0


class Source(Generic[T]):
    """One stream's buffer. Its pump waits for `room` and then puts; what was put is taken through the `Merge`."""

    def __init__(self, key: Key, limit: int, on_ready: Callable[[Source[T]], None]) -> None:
        self.key = key
        self.ended = False
        self.removed = False
        self.ready = False
        self.buffer: deque[T] = deque()
        self.task: asyncio.Task[None] | None = None
        self._limit = limit
        self._on_ready = on_ready
        self._room = asyncio.Event()

    async def room(self) -> int:
        """Wait until something fits; how many do."""
        while len(self.buffer) >= self._limit:
            self._room.clear()
            await self._room.wait()
        return self._limit - len(self.buffer)

    def put(self, items: Sequence[T]) -> None:
        """Append; the pump asked for `room` before."""
        if items and not self.removed:
            self.buffer.extend(items)
            self._on_ready(self)

    def put_back(self, item: T) -> None:
        """Return to the front what was taken and could not be handed out."""
        if not self.removed:
            self.buffer.appendleft(item)
            self._on_ready(self)

    def pop(self) -> T:
        item = self.buffer.popleft()
        self._room.set()
        return item


class Merge(Generic[T]):
    """The sources, and those that have something to give."""

    def __init__(self, limit: int, rng: random.Random) -> None:
        self._limit = limit
        self._random = rng
        self._sources: dict[Key, Source[T]] = {}
        self._ready: deque[Source[T]] = deque()
        self._news = asyncio.Event()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def keys(self) -> list[Key]:
        """The streams, in the order they were added."""
        return list(self._sources)

    def add(self, key: Key, pump: Callable[[Source[T]], Awaitable[None]]) -> Source[T]:
        """Start a pump. It returns when its stream can give nothing more (the backend was closed)."""
        source: Source[T] = Source(key, self._limit, self._announce)
        self._sources[key] = source
        source.task = asyncio.get_running_loop().create_task(
            self._run(source, pump), name=f"corepool stream pump {key[0]}/{key[1]}"
        )
        return source

    async def remove(self, key: Key) -> list[T]:
        """Stop a pump; what it had put and nobody took."""
        source = self._sources.pop(key, None)
        if source is None:
            return []
        leftover = await self._stop(source)
        self._news.set()  # those who wait must see that a source is gone
        return leftover

    async def take(self) -> tuple[Source[T], T] | None:
        """The next item, from the next stream that has one; None when there will never be one again."""
        while True:
            while self._ready:
                source = self._ready.popleft()
                if source.removed or not source.buffer:
                    source.ready = False
                    continue
                item = source.pop()
                if source.buffer:
                    self._ready.append(source)
                else:
                    source.ready = False
                return source, item
            if self._closed or (self._sources and all(source.ended for source in self._sources.values())):
                return None
            self._news.clear()
            await self._news.wait()

    async def aclose(self) -> list[tuple[Key, T]]:
        """Stop all pumps; what they had put and nobody took. Those who wait in `take` get None. Idempotent."""
        self._closed = True
        self._news.set()
        sources = list(self._sources.values())
        self._sources.clear()
        self._ready.clear()
        leftover: list[tuple[Key, T]] = []
        for source in sources:
            leftover.extend((source.key, item) for item in await self._stop(source))
        return leftover

    async def _stop(self, source: Source[T]) -> list[T]:
        source.removed = True  # from now on nothing is put, so the leftover is complete
        leftover = list(source.buffer)
        source.buffer.clear()
        if source.task is not None:
            source.task.cancel()
            await asyncio.wait([source.task])
        return leftover

    def _announce(self, source: Source[T]) -> None:
        if not source.ready:
            source.ready = True
            self._ready.append(source)
        self._news.set()

    async def _run(self, source: Source[T], pump: Callable[[Source[T]], Awaitable[None]]) -> None:
        pause = _FIRST_PAUSE
        while not source.removed:
            try:
                await pump(source)
                break
            except Exception:  # one loop for whatever a driver raises: a pump must not die silently
                logger.exception(
                    "stream %s/%s: its pump failed and is restarted",
                    *source.key,
                    extra={"corepool_namespace": source.key[0], "corepool_stream": source.key[1]},
                )
            await asyncio.sleep(self._random.uniform(pause / 2, pause))
            pause = min(_LONGEST_PAUSE, pause * 2)
        source.ended = True
        self._news.set()
