"""Maps: the client side of :mod:`corepool.driver.maps` on a `Transport`.

Purpose: checks before anything is sent, one request per call, and a watch that cannot grow without bound.
Invariants: see the contract. A call is one request, so M2 and M6 are the transport's; a watch that falls more than
``WATCH_BUFFER`` events behind drops them and its feed, and goes on with a new snapshot when it is read again (M3, M4).
Neighbours: `MemoryNamespace` makes the stores; `MapSpace` gives the requests their meaning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Self

from corepool.driver import (
    ALWAYS,
    Capabilities,
    Commit,
    Entry,
    Set,
    Updated,
    ValueOp,
    WatchEvent,
    When,
    Write,
    check_key,
    check_value,
)
from corepool.errors import UnsupportedCapability
from corepool_memory.feeds import Feed, Feeds
from corepool_memory.transport import Attach

__all__ = ["WATCH_BUFFER", "MemoryMap", "MemoryWatch"]

WATCH_BUFFER = 1024
"""Events an unread watch holds before it starts over with a snapshot."""


class MemoryWatch:
    """A feed of one map (see `corepool.driver.Watch`). Nothing is asked of the server before the first ``__anext__``."""

    def __init__(self, feeds: Feeds, namespace: str, name: str) -> None:
        self._namespace = namespace
        self._name = name
        self._events: deque[WatchEvent] = deque()
        self._feed: Feed[WatchEvent] = Feed(feeds, f"watch {name}", attach=self._attach, receive=self._receive)

    def _attach(self) -> Attach[WatchEvent]:
        namespace, name = self._namespace, self._name
        return lambda server, push: server.maps(namespace).watch(name, push)

    def _receive(self, event: WatchEvent) -> None:
        if len(self._events) < WATCH_BUFFER:
            self._events.append(event)
        else:  # nobody reads: what is here is old, and the snapshot of the next feed says it all
            self._events.clear()
            self._feed.drop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent:
        while not self._feed.closed:
            if self._events:
                return self._events.popleft()
            await self._feed.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._feed.close()
        self._events.clear()


class MemoryMap:
    """One map (see `corepool.driver.MapStore`)."""

    def __init__(self, feeds: Feeds, capabilities: Capabilities, namespace: str, name: str) -> None:
        self._feeds = feeds
        self._call = feeds.transport.call
        self._capabilities = capabilities
        self._namespace = namespace
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    async def get(self, key: str) -> Entry | None:
        check_key(key, self._capabilities)
        namespace, name = self._namespace, self._name
        return await self._call("get", lambda server: server.maps(namespace).get(name, key), write=False)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        wanted = tuple(keys)
        for key in wanted:
            check_key(key, self._capabilities)
        namespace, name = self._namespace, self._name
        return await self._call("get_many", lambda server: server.maps(namespace).get_many(name, wanted), write=False)

    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        check_key(key, self._capabilities)
        check_value(value, self._capabilities)
        namespace, name = self._namespace, self._name
        return await self._call("set", lambda server: server.maps(namespace).set(name, key, value, when), write=True)

    async def delete(self, key: str, when: When = ALWAYS) -> Commit:
        check_key(key, self._capabilities)
        namespace, name = self._namespace, self._name
        return await self._call("delete", lambda server: server.maps(namespace).delete(name, key, when), write=True)

    async def clear(self, when: When = ALWAYS) -> Commit:
        namespace, name = self._namespace, self._name
        return await self._call("clear", lambda server: server.maps(namespace).clear(name, when), write=True)

    async def apply(self, writes: Sequence[Write]) -> list[Commit]:
        wanted = tuple(writes)
        for write in wanted:
            check_key(write.key, self._capabilities)
            if isinstance(write, Set):
                check_value(write.value, self._capabilities)
        namespace, name = self._namespace, self._name
        return await self._call("apply", lambda server: server.maps(namespace).apply(name, wanted), write=True)

    async def update(self, key: str, op: ValueOp) -> Updated:
        if not self._capabilities.value_ops:
            raise UnsupportedCapability(
                "this backend was opened with value_ops=False; open it without, or use a loop over get and set"
            )
        check_key(key, self._capabilities)
        namespace, name, limit = self._namespace, self._name, self._capabilities.max_value_bytes
        return await self._call(
            "update", lambda server: server.maps(namespace).update(name, key, op, limit), write=True
        )

    async def scan(self, prefix: str = "") -> AsyncIterator[Entry]:
        namespace, name = self._namespace, self._name
        for entry in await self._call("scan", lambda server: server.maps(namespace).entries(name, prefix), write=False):
            yield entry

    def watch(self) -> MemoryWatch:
        return MemoryWatch(self._feeds, self._namespace, self._name)

    async def destroy(self) -> None:
        namespace, name = self._namespace, self._name
        await self._call("destroy map", lambda server: server.maps(namespace).destroy(name), write=True)
