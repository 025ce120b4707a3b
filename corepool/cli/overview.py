"""The state of a whole pool at a glance, read from its records without joining it.

Purpose: what ``corepool top`` shows.
Invariants: reads only; a pool that was never used is not created; "silent for" is measured on this machine's own clock from
when a keep-alive was last seen to change, and never compares anybody's wall clock (DESIGN 4.3).
Neighbours: reads what :mod:`corepool.pool.wire` defines, through the driver contract.
"""

from __future__ import annotations

import logging
from collections import Counter

import attrs

from corepool.driver import Backend
from corepool.pool.membership import POOL_KEY
from corepool.pool.store import SHUTDOWN_MAP, PoolStore
from corepool.pool.wire import JobRecord, JobState, KeepAlive, NodeRecord, PoolRecord, WorkerRecord, decode

__all__ = ["Observer", "Overview", "WorkerView"]

_log = logging.LoggerAdapter(logging.getLogger("corepool.cli"), {})


@attrs.frozen(slots=True)
class WorkerView:
    """A worker as an observer sees it. silent_for: seconds since its keep-alive was last seen to change."""

    worker: str
    node: str
    state: str
    jobs: int
    silent_for: float


@attrs.frozen(slots=True)
class Overview:
    """A pool at one moment. jobs: how many are in each state. waiting: jobs that no worker has been chosen for."""

    pool: str
    exists: bool
    shutdown: bool
    nodes: int
    clients: int
    workers: tuple[WorkerView, ...]
    jobs: dict[str, int]
    waiting: int


class Observer:
    """Looks at one pool again and again, and remembers when it saw what change."""

    def __init__(self, backend: Backend, pool: str) -> None:
        self._backend = backend
        self._pool = pool
        self._seen: dict[str, tuple[int, float]] = {}

    async def look(self) -> Overview:
        """The pool now. Reads every job record: its cost grows with the number of jobs.

        Raises:
            BackendUnavailable, WireError
        """
        namespace = self._backend.namespace(self._pool)
        entry = await namespace.map(SHUTDOWN_MAP).get(POOL_KEY)
        if entry is None:
            return Overview(self._pool, False, False, 0, 0, (), {}, 0)
        pool = decode(entry.value, PoolRecord)
        store = PoolStore(namespace, self._backend.capabilities, pool.incarnation, _log)
        states: Counter[str] = Counter()
        owned: Counter[str] = Counter()
        async for one in store.jobs_map.scan():
            record = store.decoded(one.value, JobRecord, store.jobs)
            if record is not None:
                states[record.state.value] += 1
                owned[record.worker] += 1
        nodes = [
            node
            async for one in store.map(store.nodes).scan()
            if (node := store.decoded(one.value, NodeRecord, store.nodes)) is not None
        ]
        workers = {
            one.key: worker
            async for one in store.map(store.workers).scan()
            if (worker := store.decoded(one.value, WorkerRecord, store.workers)) is not None
        }
        silence = await self._silence(store)
        views = [
            WorkerView(key, worker.node, worker.state.value, owned[key], silence.get(key, 0.0))
            for key, worker in workers.items()
        ]
        return Overview(
            pool=self._pool,
            exists=True,
            shutdown=pool.shutdown,
            nodes=sum(not node.client_only for node in nodes),
            clients=sum(node.client_only for node in nodes),
            workers=tuple(sorted(views, key=lambda view: (view.node, view.worker))),
            jobs={state.value: states[state.value] for state in JobState},
            waiting=owned[""],
        )

    async def _silence(self, store: PoolStore) -> dict[str, float]:
        now = self._backend.clock.monotonic()
        seen: dict[str, tuple[int, float]] = {}
        async for one in store.map(store.worker_keep_alive).scan():
            record = store.decoded(one.value, KeepAlive, store.worker_keep_alive)
            if record is not None:
                nonce, since = self._seen.get(one.key, (record.nonce, now))
                seen[one.key] = (record.nonce, since if nonce == record.nonce else now)
        self._seen = seen
        return {key: now - since for key, (_, since) in seen.items()}
