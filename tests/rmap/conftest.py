"""What the tests of the replicated map stand on: any backend by URL, and a store whose moments a test can script.

The fixture ``backend_url`` is in ``tests/conftest.py``: the tests run on every backend that ``--backend`` names, in real time.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Self

import pytest

from corepool.driver import (
    ALWAYS,
    Backend,
    Change,
    Cleared,
    Commit,
    Entry,
    Set,
    Snapshot,
    SystemClock,
    Updated,
    ValueOp,
    WatchEvent,
    When,
    Write,
    apply_value_op,
    connect,
)
from corepool.rmap import TEXT, Codec, ReplicatedMap
from tests.rmap.joining import Join
from tests.waiting import soon


@pytest.fixture
async def backend(backend_url: str) -> AsyncIterator[Backend]:
    async with connect(backend_url) as backend:
        yield backend


@pytest.fixture
async def other_backend(backend_url: str) -> AsyncIterator[Backend]:
    """Another connection to the same data, as another process would have it."""
    async with connect(backend_url) as backend:
        yield backend


@pytest.fixture
def fresh() -> str:
    """A name that nobody used before."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
async def opened(store: FakeStore) -> AsyncIterator[Callable[..., Awaitable[ReplicatedMap[Any]]]]:
    """Opens maps on the scripted store, and closes them."""
    maps: list[ReplicatedMap[Any]] = []

    async def open_map(codec: Codec[Any] = TEXT, **options: Any) -> ReplicatedMap[Any]:
        one = await ReplicatedMap.open(store, codec=codec, clock=SystemClock(), random=random.Random(1), **options)
        maps.append(one)
        return one

    yield open_map
    for one in maps:
        await one.aclose()


@pytest.fixture
async def join(backend: Backend, other_backend: Backend, fresh: str) -> AsyncIterator[Join]:
    """Joins the test's map; with ``other=True`` as another process would."""
    joined: list[ReplicatedMap[Any]] = []

    async def join_map(*, other: bool = False, name: str = fresh, **options: Any) -> ReplicatedMap[Any]:
        one = await soon(ReplicatedMap.join(other_backend if other else backend, name, **options))
        joined.append(one)
        return one

    yield join_map
    for one in joined:
        await soon(one.aclose())
    await soon(backend.namespace("maps").map(fresh).destroy())


class FakeWatch:
    """A feed from a queue; an exception in the queue is raised."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[WatchEvent | Exception | None] = asyncio.Queue()
        self.closed = False
        self.close_error: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent:
        event = await self.queue.get()
        if event is None:
            raise StopAsyncIteration
        if isinstance(event, Exception):
            raise event
        return event

    async def aclose(self) -> None:
        self.closed = True
        self.queue.put_nowait(None)
        if self.close_error is not None:
            raise self.close_error


class FakeStore:
    """A `MapStore` whose watch and refusals a test can script. While ``holding``, commits reach no watch until `release`."""

    def __init__(self, name: str = "fake") -> None:
        self._name = name
        self.entries: dict[str, Entry] = {}
        self.revision = 0
        self.generation = 0
        self.watches: list[FakeWatch] = []
        self.holding = False
        self.held: list[WatchEvent] = []
        self.calls: list[str] = []
        self.before_write: Callable[[], Awaitable[None]] | None = None
        self.watch_error: Exception | None = None

    @property
    def name(self) -> str:
        return self._name

    def emit(self, event: WatchEvent) -> None:
        if self.holding:
            self.held.append(event)
            return
        for watch in self.watches:
            if not watch.closed:
                watch.queue.put_nowait(event)

    def release(self) -> None:
        self.holding = False
        held, self.held = self.held, []
        for event in held:
            self.emit(event)

    def snapshot(self) -> Snapshot:
        return Snapshot(self.revision, tuple(self.entries.values()), self.generation)

    def go_back(self, revision: int, entries: dict[str, bytes]) -> None:
        """Lose acknowledged writes, and say so on the watches."""
        self.revision, self.generation = revision, self.generation + 1
        self.entries = {key: Entry(key, value, revision) for key, value in entries.items()}
        self.emit(self.snapshot())

    def put(self, key: str, value: bytes | None) -> int:
        """A write by somebody else."""
        self.revision += 1
        if value is None:
            self.entries.pop(key, None)
        else:
            self.entries[key] = Entry(key, value, self.revision)
        self.emit(Change(self.revision, key, value))
        return self.revision

    async def _write(self, key: str, value: bytes | None, when: When) -> Commit:
        if self.before_write is not None:
            await self.before_write()
        previous = self.entries.get(key)
        if when.revision is not None and when.revision != (previous.revision if previous else 0):
            return Commit(False, self.revision, previous)
        if value is None and previous is None:
            return Commit(True, self.revision, None)
        return Commit(True, self.put(key, value), previous)

    async def get(self, key: str) -> Entry | None:
        self.calls.append("get")
        await asyncio.sleep(0)
        return self.entries.get(key)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        self.calls.append("get_many")
        return {key: self.entries[key] for key in keys if key in self.entries}

    async def set(self, key: str, value: bytes, when: When = ALWAYS) -> Commit:
        self.calls.append("set")
        return await self._write(key, value, when)

    async def delete(self, key: str, when: When = ALWAYS) -> Commit:
        self.calls.append("delete")
        return await self._write(key, None, when)

    async def clear(self, when: When = ALWAYS) -> Commit:
        self.calls.append("clear")
        if when.revision is not None and when.revision != self.revision:
            return Commit(False, self.revision, None)
        self.entries.clear()
        self.revision += 1
        self.emit(Cleared(self.revision))
        return Commit(True, self.revision, None)

    async def apply(self, writes: Sequence[Write]) -> list[Commit]:
        return [
            await (self.set(w.key, w.value, w.when) if isinstance(w, Set) else self.delete(w.key, w.when))
            for w in writes
        ]

    async def update(self, key: str, op: ValueOp) -> Updated:
        self.calls.append("update")
        previous = self.entries.get(key)
        value = apply_value_op(previous.value if previous else None, op)
        if previous is not None and previous.value == value:
            return Updated(value, previous.revision, previous)
        return Updated(value, self.put(key, value), previous)

    async def scan(self, prefix: str = "") -> AsyncIterator[Entry]:
        for entry in list(self.entries.values()):
            if entry.key.startswith(prefix):
                yield entry

    def watch(self) -> FakeWatch:
        if self.watch_error is not None:
            raise self.watch_error
        watch = FakeWatch()
        watch.queue.put_nowait(self.snapshot())
        self.watches.append(watch)
        return watch

    async def destroy(self) -> None:
        await self.clear()
