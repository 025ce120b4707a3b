"""What the tests of streams stand on: any backend by URL, and a backend whose moments a test can script.

The fixture ``backend_url`` is in ``tests/conftest.py``: the tests run on every backend that ``--backend`` names, in real time.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self

import pytest

from corepool.driver import OLDEST, Backend, Capabilities, Delivery, Event, NewEvent, Start, StreamConfig, connect
from corepool.errors import BackendUnavailable
from corepool.streaming import Stream


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
async def new_stream(backend: Backend) -> AsyncIterator[Callable[..., Stream]]:
    """Streams under names that nobody used before; destroyed at the end."""
    made: list[Stream] = []

    def make(suffix: str = "", **options: Any) -> Stream:
        made.append(Stream(backend, f"test-{uuid.uuid4().hex}{suffix}", **options))
        return made[-1]

    yield make
    for stream in made:
        await stream.destroy()


class FakeReading:
    """Gives what is in its queue; raises an exception from it; ends at None."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self.closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self.queue.get()
        if event is None:
            raise StopAsyncIteration
        if isinstance(event, Exception):
            raise event
        return event

    async def aclose(self) -> None:
        self.closed = True


class FakeMember:
    """A member of a sink that hands out what is in its queue, and notes what it is told."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[list[Delivery] | Exception] = asyncio.Queue()
        self.asked: list[int] = []
        self.acked: list[str] = []
        self.nacked: list[str] = []
        self.extended: list[str] = []
        self.extend_answer: Callable[[str], Any] = lambda receipt: True
        self.ack_error: Exception | None = None
        self.close_error: Exception | None = None
        self.nack_hangs = False
        self.closed = False

    async def receive(self, max_events: int = 1) -> list[Delivery]:
        self.asked.append(max_events)
        deliveries = await self.queue.get()
        if isinstance(deliveries, Exception):
            raise deliveries
        return deliveries

    async def ack(self, receipts: Sequence[str]) -> list[bool]:
        if self.ack_error is not None:
            raise self.ack_error
        self.acked.extend(receipts)
        return [True] * len(receipts)

    async def nack(self, receipt: str, delay: float = 0.0) -> bool:
        if self.nack_hangs:
            await asyncio.Event().wait()
        self.nacked.append(receipt)
        return True

    async def extend(self, receipt: str) -> bool:
        self.extended.append(receipt)
        answer = self.extend_answer(receipt)
        return await answer if asyncio.iscoroutine(answer) else answer

    async def aclose(self) -> None:
        self.closed = True
        if self.close_error is not None:
            raise self.close_error


class FakeStreamStore:
    def __init__(self, name: str) -> None:
        self.name = name
        self.readings: list[FakeReading] = []
        self.members: list[FakeMember] = []
        self.joining: asyncio.Event | None = None
        self.there = False
        self.sealed = False
        self.others_create = 0
        self.created: list[StreamConfig] = []
        self.appended = 0

    async def append(self, event: NewEvent, *, only_if_exists: bool = False) -> str | None:
        assert only_if_exists, "a plain append would make the stream with the default configuration"
        if not self.there or self.sealed:
            return None
        self.appended += 1
        return f"{self.appended:04}"

    async def create(self, config: StreamConfig) -> bool:
        if self.there:
            return False
        if self.others_create:  # they were faster; and then they destroyed it again
            self.others_create -= 1
            return False
        self.there = True
        self.created.append(config)
        return True

    async def exists(self) -> bool:
        return self.there

    def read(self, start: Start = OLDEST) -> FakeReading:
        self.readings.append(FakeReading(start))
        return self.readings[-1]

    async def sink(self, name: str, *, start: Start = OLDEST, ack_wait: float = 30.0) -> FakeMember:
        if self.joining is not None:
            await self.joining.wait()
        self.members.append(FakeMember())
        return self.members[-1]


class FakeClock:
    now = 1000.0

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


class FakeBackend:
    """A `Backend` (and its one namespace) whose streams a test can script, with a clock that stands still."""

    def __init__(self) -> None:
        self.name = "fake"
        self.clock = FakeClock()
        self.capabilities = Capabilities(
            atomic_commit=False,
            value_ops=False,
            durable=False,
            multi_process=False,
            strict_receipts=False,
            max_key_bytes=512,
            max_name_bytes=128,
            max_value_bytes=65536,
            max_commit_ops=64,
        )
        self.random = random.Random(1)
        self.stores: dict[str, FakeStreamStore] = {}

    def namespace(self, name: str) -> FakeBackend:
        return self

    def stream(self, name: str) -> FakeStreamStore:
        return self.stores.setdefault(name, FakeStreamStore(name))

    @staticmethod
    def event(number: int, topic: str = "") -> Event:
        return Event(f"{number:04}", float(number), f"event {number}", b"payload", topic)

    def delivery(self, number: int, topic: str = "") -> Delivery:
        return Delivery(self.event(number, topic), f"receipt {number}", 1)

    @staticmethod
    def gone() -> Exception:
        return BackendUnavailable("closed")


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend()
