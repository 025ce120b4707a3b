"""A named tick that fires on exactly one node of the pool.

Purpose: periodic work that the whole pool does once.
Invariants: a tick fires on the node whose compare-and-set of its number was applied, so at most once; when it is due is each
node's own observation: an interval after this node, on its own monotonic clock, saw the last tick, so no two machines'
clocks are compared; an advance that fails is tried again, and one whose outcome is unknown is looked up before it fires.
Neighbours: the ``tickers`` map; ``schedule`` stands on it.
"""

from __future__ import annotations

import asyncio
from typing import Self

from corepool.driver import ABSENT, REVISION, Entry
from corepool.errors import InvalidOptionError, OutcomeUnknown
from corepool.pool.context import NodeContext
from corepool.pool.supervisor import TRANSIENT
from corepool.pool.wire import TickRecord, encode

__all__ = ["Ticker"]


class Ticker:
    """One node's share of a named tick. Iterate over it: each number that comes is this node's to act on."""

    def __init__(self, context: NodeContext, name: str, interval: float) -> None:
        if not name:
            raise InvalidOptionError("a ticker's name is empty; give it at least one character")
        self._context = context
        self._map = context.store.map(context.store.tickers)
        self._name = name
        self._interval = interval
        self._stopped = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._context.tickers[self] = None  # the node ends it with itself
        return self

    async def __aexit__(self, *_: object) -> None:
        self._context.tickers.pop(self, None)
        self._stopped.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        """The next tick that is this node's.

        Raises:
            StopAsyncIteration: the ticker was stopped, here or everywhere, or its node ended.
        """
        seen: Entry | None = None
        due = 0.0
        while not self._stopped.is_set():
            try:
                entry = await self._map.get(self._name)
                now = self._context.clock.monotonic()
                record = None if entry is None else self._context.store.decoded(entry.value, TickRecord, "tickers")
                if record is not None and record.stopped:
                    raise StopAsyncIteration
                if entry is None:
                    await self._map.set(self._name, self._record(0), ABSENT)
                    continue
                if seen is None or seen.revision != entry.revision:
                    seen, due = entry, now + self._interval
                number = 0 if record is None else record.number
                if now >= due and await self._advance(entry, number + 1):
                    return number + 1
            except TRANSIENT as error:
                self._context.log.warning("ticker %r: %s; trying again", self._name, error)
                now, due = self._context.clock.monotonic(), due or 0.0
            await self._rest(due - now)
        raise StopAsyncIteration

    async def _advance(self, entry: Entry, number: int) -> bool:
        record = self._record(number)
        try:
            return (await self._map.set(self._name, record, REVISION(entry.revision))).applied
        except OutcomeUnknown:
            await self._context.store.namespace.settle()
            found = await self._map.get(self._name)
            return found is not None and found.value == record

    def _record(self, number: int, *, stopped: bool = False) -> bytes:
        # The wall clock and a node's jitter make each writer's record its own, so an unknown outcome can be told.
        wall = self._context.wall() + self._context.random.random() / 1e3
        return encode(TickRecord(number, self._interval, wall, stopped))

    async def _rest(self, until_due: float) -> None:
        """Until the tick is due; at most a tenth of the interval, to see the ticks of others; with jitter."""
        pause = max(min(until_due, self._interval / 10), self._interval / 100)
        try:
            async with asyncio.timeout(pause * (0.9 + self._context.random.random() / 5)):
                await self._stopped.wait()
        except TimeoutError:
            return

    async def stop_everywhere(self) -> None:
        """No node ticks by this name any more."""
        self._stopped.set()
        await self._map.set(self._name, self._record(0, stopped=True))

    def stop(self) -> None:
        """End this node's share."""
        self._stopped.set()
