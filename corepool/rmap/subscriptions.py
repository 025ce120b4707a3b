"""How a user of a map hears of changes, without ever holding up the feed.

Purpose: two ways to listen. A `Subscription` coalesces ("something changed; look"), `Changes` gives every change.
Invariants: giving news is synchronous and bounded, whoever does or does not read it (M4): a subscription costs one slot, a
`Changes` at most ``limit`` of them. Nothing is skipped silently: on overflow comes `Lagged`, then a `MapSnapshot`.
Neighbours: fed by :mod:`corepool.rmap.replica`; handed out by :class:`corepool.rmap.ReplicatedMap`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, Self, TypeAlias, TypeVar

import attrs

__all__ = ["Changes", "Lagged", "MapChange", "MapCleared", "MapEvent", "MapSnapshot", "Subscription"]

T = TypeVar("T")


@attrs.frozen(slots=True)
class MapSnapshot(Generic[T]):
    """All that the replica holds, at a revision. With a larger ``generation`` the revision may be smaller than before."""

    revision: int
    generation: int
    entries: Mapping[str, T]


@attrs.frozen(slots=True)
class MapChange(Generic[T]):
    """One key changed: to ``value``, or to nothing that can be read (deleted, or set aside as undecodable) if None."""

    revision: int
    key: str
    value: T | None


@attrs.frozen(slots=True)
class MapCleared:
    """Every key is gone, in one step."""

    revision: int


@attrs.frozen(slots=True)
class Lagged:
    """The reader was too slow: ``missed`` changes were dropped. A `MapSnapshot` follows, and nothing is missing after it."""

    missed: int


MapEvent: TypeAlias = MapSnapshot[T] | MapChange[T] | MapCleared | Lagged


class Subscription:
    """Hears that something changed, in one slot: any number of changes before the next look count as one.

    Use it as ``async for _ in subscription: look()``, or ``while await subscription.changed(): look()``. Look once before
    the first wait: what happened before `subscribe` is not announced.
    """

    def __init__(self, on_close: Callable[[Subscription], None]) -> None:
        self._on_close = on_close
        self._news = asyncio.Event()
        self._pending = False
        self._closed = False

    @property
    def pending(self) -> bool:
        """Whether something changed since the last look."""
        return self._pending

    async def changed(self) -> bool:
        """Wait until something changed since the last call. False: closed, and the last change has been announced."""
        while True:
            await self._news.wait()
            if self._pending:
                self._pending = False
                if not self._closed:  # once closed the event stays set: nobody waits any more
                    self._news.clear()
                return True
            if self._closed:
                return False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> None:
        if not await self.changed():
            raise StopAsyncIteration

    def close(self) -> None:
        """End it; a pending wait ends. Idempotent."""
        self.end()
        self._on_close(self)

    def notify(self) -> None:
        """Something changed (the map's feed calls this)."""
        self._pending = True
        self._news.set()

    def end(self) -> None:
        """The map's feed ended, or the user closed the subscription."""
        self._closed = True
        self._news.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Changes(Generic[T]):
    """Every change of a map, in order: first a `MapSnapshot`, then `MapChange` and `MapCleared`.

    If more than ``limit`` of them wait to be read they are dropped, and the next two items are `Lagged` and a fresh
    `MapSnapshot`. A snapshot also comes when the feed was lost and found again, and after the store went back. Iteration
    ends, after what was waiting, when this or the map is closed. For one reading task.
    """

    def __init__(
        self, limit: int, snapshot: Callable[[], MapSnapshot[T]], on_close: Callable[[Changes[T]], None]
    ) -> None:
        self._limit = limit
        self._snapshot = snapshot
        self._on_close = on_close
        self._waiting: deque[MapEvent[T]] = deque([snapshot()])
        self._missed = 0
        self._news = asyncio.Event()
        self._news.set()
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MapEvent[T]:
        while True:
            if self._missed:
                # The snapshot is taken now, not at the overflow: everything up to this moment is in it, and what comes
                # later is queued behind it.
                lagged = Lagged(self._missed)
                self._missed = 0
                self._waiting.append(self._snapshot())
                return lagged
            if self._waiting:
                return self._waiting.popleft()
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    def push(self, event: MapEvent[T]) -> None:
        """A change (the map's feed calls this)."""
        if self._closed:
            return
        if self._missed:
            self._missed += 1
        elif len(self._waiting) >= self._limit:
            self._missed = len(self._waiting) + 1
            self._waiting.clear()
        else:
            self._waiting.append(event)
        self._news.set()

    def end(self) -> None:
        """The map's feed ended, or the user closed this."""
        self._closed = True
        self._news.set()

    async def aclose(self) -> None:
        """End it; a pending ``__anext__`` ends with ``StopAsyncIteration``. Idempotent."""
        self._waiting.clear()
        self._missed = 0
        self.end()
        self._on_close(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
