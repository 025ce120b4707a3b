"""Looking into the simulated store from outside, and handlers that remember.

Purpose: what a scenario asserts about what is left behind (DESIGN 5, 11), without asking a node.
Neighbours: reads the server of a `World` directly: no request, no latency, no fault.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from corepool import Job
from corepool.pool.membership import Ring
from corepool.pool.store import SHUTDOWN_MAP
from corepool.pool.wire import Attention, JobRecord, JobState, KeepAlive, MemberState, PoolRecord, WorkerRecord, decode
from corepool.testing import Cluster, ClusterNode

__all__ = [
    "FOUND",
    "FOUND_ONE",
    "POLL",
    "POOL",
    "QUICK",
    "TTL",
    "Keeper",
    "Store",
    "gathered",
    "keeper",
    "keys_of",
    "nodes",
    "ring",
]

POOL = "feeds"
TTL = 5.0
POLL = TTL / 5
FOUND_ONE = TTL + POLL + 0.5
"""DESIGN 4.3: a death is found within the time to live and a poll, if one who watches the dead survives. The half second is
for what is on the wire, and for moving the jobs."""
FOUND = 2 * TTL + POLL + 0.5
"""The same for any number of simultaneous deaths."""
QUICK: dict[str, Any] = {
    "worker_ttl": TTL,
    "ack_grace_period": 4.0,
    "call_timeout": 60.0,
    "worker_shutdown_ttl": 30.0,
}


class Keeper:
    """A handler that remembers, and lets the scenario act in the middle of its calls."""

    def __init__(self) -> None:
        self.running: dict[str, bytes] = {}
        self.notes: list[tuple[str, bytes]] = []
        self.on_start: Callable[[Job], Awaitable[object]] | None = None
        self.on_stop: Callable[[str], Awaitable[object]] | None = None
        self.on_notify: Callable[[str, bytes], Awaitable[object]] | None = None

    async def start(self, job: Job) -> None:
        if self.on_start is not None:
            await self.on_start(job)
        self.running[job.key] = job.payload

    async def stop(self, key: str) -> None:
        if self.on_stop is not None:
            await self.on_stop(key)
        self.running.pop(key, None)

    async def notify(self, key: str, payload: bytes) -> None:
        assert key in self.running, f"{key} was notified where it does not run"
        self.notes.append((key, payload))
        if self.on_notify is not None:
            await self.on_notify(key, payload)


async def nodes(cluster: Cluster, count: int, **options: Any) -> list[ClusterNode]:
    """So many nodes with a worker each, whose rings show all of them."""
    made = [await cluster.node(POOL, worker=Keeper(), **{**QUICK, **options}) for _ in range(count)]
    await cluster.eventually(lambda: all(len(ring(node).workers) == count for node in made), within=5.0)
    return made


def ring(node: ClusterNode) -> Ring:
    """The ring as this node sees it."""
    return node.node._open().context.membership.ring


def keeper(node: ClusterNode) -> Keeper:
    """The handler of a node's worker."""
    [handler] = node._handlers
    assert isinstance(handler, Keeper)
    return handler


def keys_of(node: ClusterNode, count: int, *, then: ClusterNode | None = None) -> list[str]:
    """So many keys that placement gives to the worker of ``node``; and, once that has gone, to the worker of ``then``."""
    [worker] = node.workers
    now = ring(node)
    rest = node.node.options.placement.place([name for name in now.workers if name != worker.id] or [worker.id])
    heir = None if then is None else then.workers[0].id
    found: list[str] = []
    for key in (f"k{number}" for number in itertools.count()):
        if now.owner(key) == worker.id and heir in (None, rest.owner(key)):
            found.append(key)
        if len(found) == count:
            return found
    raise AssertionError("there are keys without end")


class Store:
    """The pool's maps and streams as they stand now."""

    def __init__(self, cluster: Cluster, pool: str = POOL, incarnation: int = 1) -> None:
        self._server = cluster.world.server
        self._pool = pool
        self._suffix = f".{incarnation}"
        self._cluster = cluster

    def map(self, name: str) -> dict[str, bytes]:
        return {entry.key: entry.value for entry in self._server.maps(self._pool).entries(name + self._suffix, "")}

    def job(self, key: str) -> JobRecord | None:
        value = self.map("jobs").get(key)
        return None if value is None else decode(value, JobRecord)

    def jobs(self) -> dict[str, JobRecord]:
        return {key: decode(value, JobRecord) for key, value in self.map("jobs").items()}

    def workers(self) -> dict[str, WorkerRecord]:
        return {key: decode(value, WorkerRecord) for key, value in self.map("workers").items()}

    def pool(self) -> PoolRecord:
        [entry] = self._server.maps(self._pool).entries(SHUTDOWN_MAP, "")
        return decode(entry.value, PoolRecord)

    def keep_alives(self) -> dict[str, KeepAlive]:
        return {
            key: decode(value, KeepAlive)
            for name in ("worker_keep_alive", "node_keep_alive")
            for key, value in self.map(name).items()
        }

    def untidy(self) -> list[str]:
        """Whatever is there although no job is on its way and nobody is dead (DESIGN 5, 11)."""
        found: list[str] = []
        jobs, workers = self.jobs(), self.workers()
        for key, record in jobs.items():
            if record.state is not JobState.RUNNING:
                found.append(f"{key} is {record.state.value}")
            elif record.worker not in workers or workers[record.worker].state is not MemberState.ACTIVE:
                found.append(f"{key} is owned by {record.worker}, which is not active")
        ids = {record.job_id for record in jobs.values()}
        found += [f"a payload of {job_id} is left" for job_id in self.map("job_payloads") if job_id not in ids]
        found += [
            f"{key} has no payload" for key, record in jobs.items() if record.job_id not in self.map("job_payloads")
        ]
        for name, value in self.map("attention").items():
            found.append(f"attention {name} for {decode(value, Attention).key}")
        found += [f"a cleanup lock of {member}" for member in self.map("worker_cleanup")]
        found += [
            f"the keep-alive of {member}"
            for member in self.keep_alives()
            if member not in {**workers, **self.map("nodes")}
        ]
        maps, streams = self._server.contents().get(self._pool, ([], []))
        found += [
            f"map {name}" for name in maps if name.startswith("owned@") and name[6:].partition(".")[0] not in workers
        ]
        for worker in workers:
            owned = self.map(f"owned@{worker}")
            found += [f"{worker} lists {key}" for key in owned if key not in jobs or jobs[key].worker != worker]
        known = {f"worker:{worker}" for worker in workers} | {f"node:{node}" for node in self.map("nodes")} | {"queue"}
        found += [f"stream {name}" for name in streams if name.partition(".")[0] not in known]
        return found

    async def tidy(self, within: float = 12 * TTL) -> None:
        """Everything that is not at rest comes to rest, and nothing is left of what has gone."""
        try:
            await self._cluster.eventually(lambda: not self.untidy(), within=within, every=0.25)
        except AssertionError as error:
            raise AssertionError(f"after {within:g} s there is still: {'; '.join(self.untidy())}") from error


async def gathered(*calls: Awaitable[object]) -> list[object]:
    """The results, or what was raised instead."""
    return list(await asyncio.gather(*calls, return_exceptions=True))
