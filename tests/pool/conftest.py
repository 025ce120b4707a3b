"""What the pool's behaviour tests stand on: nodes on any backend, and a handler that records what happens to it.

The fixture ``backend_url`` is in ``tests/conftest.py``: the tests run on every backend that ``--backend`` names, in real time.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import corepool
from corepool import Backend, Job, Node, Worker
from corepool.pool.wire import MemberState

QUICK = {
    "worker_ttl": 2.0,
    "ack_grace_period": 0.5,
    "call_timeout": 10.0,
    "worker_shutdown_ttl": 10.0,
    "start_backoff": 0.02,
    "max_start_backoff": 0.1,
}
"""Options that make the pool's periods short enough for a test in real time."""


class Recorder:
    """A handler that records starts and stops, and checks that they alternate."""

    def __init__(self, name: str = "handler") -> None:
        self.name = name
        self.running: dict[str, Job] = {}
        self.starts: list[Job] = []
        self.stops: list[str] = []
        self.notified: list[tuple[str, bytes]] = []
        self.on_start: Callable[[Job], Awaitable[None]] | None = None
        self.on_stop: Callable[[str], Awaitable[None]] | None = None
        self.on_notify: Callable[[str, bytes], Awaitable[None]] | None = None

    async def start(self, job: Job) -> None:
        assert job.key not in self.running, f"{job.key} started twice on {self.name}"
        self.starts.append(job)
        if self.on_start is not None:
            await self.on_start(job)
        self.running[job.key] = job

    async def stop(self, key: str) -> None:
        self.stops.append(key)
        if self.on_stop is not None:
            await self.on_stop(key)
        self.running.pop(key, None)

    async def notify(self, key: str, payload: bytes) -> None:
        assert key in self.running, f"{key} notified on {self.name}, where it does not run"
        if self.on_notify is not None:
            await self.on_notify(key, payload)
        self.notified.append((key, payload))


class Pool:
    """Nodes of one fresh pool, each on a connection of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = f"test-{uuid.uuid4().hex[:12]}"
        self.nodes: list[Node] = []
        self.backends: list[Backend] = []
        self.handlers: list[Recorder] = []

    async def node(self, *, workers: int = 0, **options: Any) -> Node:
        backend = await corepool.open_backend(self.url)
        self.backends.append(backend)
        node = await Node.open(backend, self.name, **{**QUICK, **options})
        self.nodes.append(node)
        for _ in range(workers):
            await self.worker(node)
        return node

    async def worker(
        self, node: Node, on_start: Callable[[Job], Awaitable[None]] | None = None
    ) -> tuple[Worker, Recorder]:
        handler = Recorder(f"handler {len(self.handlers)}")
        handler.on_start = on_start  # before it joins: jobs may come at once
        self.handlers.append(handler)
        worker = await node.add_worker(handler)
        await eventually(lambda: all(self._has_heard(other, worker) for other in self.nodes))
        return worker, handler

    def _has_heard(self, node: Node, worker: Worker) -> bool:
        """Whether a node's own ring names the worker: until then its dispatches go elsewhere, and are moved afterwards."""
        session = node._session
        if session is None or session.ended is not None:
            return True
        record = node.pool_workers().get(worker.current().id)
        return record is not None and record.state is MemberState.ACTIVE

    def owners(self, key: str) -> list[Recorder]:
        return [handler for handler in self.handlers if key in handler.running]

    def running(self) -> dict[str, int]:
        """How many handlers run each key."""
        counts: dict[str, int] = {}
        for handler in self.handlers:
            for key in handler.running:
                counts[key] = counts.get(key, 0) + 1
        return counts

    async def close(self) -> None:
        await asyncio.gather(*(node.close() for node in self.nodes))
        for backend in self.backends:
            await backend.aclose()


async def eventually(predicate: Callable[[], bool], within: float = 10.0) -> None:
    """Wait until it holds; it must within so many seconds."""
    async with asyncio.timeout(within):
        while not predicate():
            await asyncio.sleep(0.01)


@pytest.fixture
async def pool(backend_url: str) -> AsyncIterator[Pool]:
    pool = Pool(backend_url)
    yield pool
    before = asyncio.all_tasks()
    await pool.close()
    left = [task.get_name() for task in asyncio.all_tasks() & before if "/" in task.get_name() and not task.done()]
    assert not left, f"tasks that outlived their node: {left}"
