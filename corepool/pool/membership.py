"""Who is in the pool: its nodes, its workers, and the ring of workers that jobs are placed on.

Purpose: local, replicated knowledge of the members, and the one function from it to a worker.
Invariants: R5: the ring is a pure function of the ``workers`` map at a revision, so two nodes with the same revision agree;
R11: a member's record is written first and removed last, so whatever exists can be listed by somebody; R12: removals and
changes of a record name the revision that was seen.
Neighbours: replicas from ``corepool.rmap``; liveness says who is dead, cleanup and the node change records.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

import msgspec

from corepool.driver import REVISION, Backend, Namespace
from corepool.errors import OutcomeUnknown
from corepool.pool.placement import Placement, Placer
from corepool.pool.store import SHUTDOWN_MAP, PoolStore
from corepool.pool.wire import MemberState, NodeRecord, PoolRecord, WorkerRecord, decode, encode
from corepool.rmap import ReplicatedMap, Subscription

__all__ = ["POOL_KEY", "Membership", "Ring", "StructCodec", "open_pool_map"]

T = TypeVar("T", bound=msgspec.Struct)
M = TypeVar("M", WorkerRecord, NodeRecord)

POOL_KEY = "pool"


class StructCodec(Generic[T]):
    """A codec for one wire struct."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind

    def encode(self, value: T, /) -> bytes:
        return encode(value)

    def decode(self, data: bytes, /) -> T:
        return decode(data, self._kind)


class Ring:
    """The active workers at one revision of the ``workers`` map."""

    __slots__ = ("placer", "revision", "workers")

    def __init__(self, revision: int, workers: tuple[str, ...], placer: Placer | None) -> None:
        self.revision = revision
        self.workers = workers
        self.placer = placer

    def owner(self, key: str) -> str:
        """The worker that the key belongs to, "" if there is none."""
        return self.placer.owner(key) if self.placer is not None else ""

    def __bool__(self) -> bool:
        return bool(self.workers)


class Membership:
    """The replicas of ``workers``, ``nodes`` and ``shutdown``, and changes to their records."""

    def __init__(
        self,
        store: PoolStore,
        placement: Placement,
        workers: ReplicatedMap[WorkerRecord],
        nodes: ReplicatedMap[NodeRecord],
        pool: ReplicatedMap[PoolRecord],
    ) -> None:
        self._store = store
        self._placement = placement
        self._workers = workers
        self._nodes = nodes
        self._pool = pool
        self._ring: Ring | None = None

    @classmethod
    async def join(
        cls, store: PoolStore, placement: Placement, pool: ReplicatedMap[PoolRecord], backend: Backend
    ) -> Membership:
        """Follow the members of one incarnation; returns with a first snapshot of each map."""
        clock, rng = backend.clock, backend.random
        workers = await ReplicatedMap.open(
            store.map(store.workers), codec=StructCodec(WorkerRecord), clock=clock, random=rng
        )
        try:
            nodes = await ReplicatedMap.open(
                store.map(store.nodes), codec=StructCodec(NodeRecord), clock=clock, random=rng
            )
        except BaseException:
            await workers.aclose()  # whatever ended the join must not leave half of it behind
            raise
        return cls(store, placement, workers, nodes, pool)

    async def close(self) -> None:
        await asyncio.gather(self._workers.aclose(), self._nodes.aclose(), self._pool.aclose())

    # --- looking ---

    @property
    def ring(self) -> Ring:
        """The ring at the newest revision seen here."""
        revision = self._workers.revision
        if self._ring is None or self._ring.revision != revision:
            active = tuple(sorted(name for name, record in self._workers.items() if record.state is MemberState.ACTIVE))
            if self._ring is not None and active == self._ring.workers:
                placer = self._ring.placer
            else:
                placer = self._placement.place(active) if active else None
            self._ring = Ring(revision, active, placer)
        return self._ring

    @property
    def pool(self) -> PoolRecord:
        """The pool's own record."""
        return self._pool.get(POOL_KEY) or PoolRecord(self._store.incarnation, shutdown=True)

    @property
    def generations(self) -> tuple[int, int, int]:
        """Of the replicas: grows where the store was seen to have gone back (R13)."""
        return (self._workers.generation, self._nodes.generation, self._pool.generation)

    def worker(self, worker: str) -> WorkerRecord | None:
        return self._workers.get(worker)

    def node(self, node: str) -> NodeRecord | None:
        return self._nodes.get(node)

    def workers(self) -> dict[str, WorkerRecord]:
        """All workers, whatever their state, by id in a fixed order."""
        return dict(sorted(self._workers.items()))

    def nodes(self) -> dict[str, NodeRecord]:
        """All nodes, whatever their state, by id in a fixed order."""
        return dict(sorted(self._nodes.items()))

    def workers_of(self, node: str) -> list[str]:
        return sorted(name for name, record in self._workers.items() if record.node == node)

    def warden(self) -> str:
        """The node that sweeps: an election by name. Two that disagree do the same work twice, which harms nothing."""
        return min(self._nodes.keys(), default="")

    def watch_workers(self) -> Subscription:
        return self._workers.subscribe()

    def watch_nodes(self) -> Subscription:
        return self._nodes.subscribe()

    def watch_pool(self) -> Subscription:
        return self._pool.subscribe()

    # --- changing ---

    async def put_worker(self, worker: str, record: WorkerRecord) -> None:
        """Write a worker's own record, and wait until this node's ring shows it."""
        await self._workers.set_and_wait(worker, record)

    async def put_node(self, node: str, record: NodeRecord) -> None:
        await self._nodes.set_and_wait(node, record)

    async def change_worker(self, worker: str, state: MemberState) -> bool:
        """Move a worker's record to ``state`` at the revision seen. False if it is gone."""
        return await _change(self._workers, worker, state)

    async def change_node(self, node: str, state: MemberState) -> bool:
        """Move a node's record to ``state`` at the revision seen. False if it is gone."""
        return await _change(self._nodes, node, state)

    async def is_gone(self, member: str) -> bool:
        """Whether neither a worker nor a node of this id has a record, linearizable."""
        for name in (self._store.workers, self._store.nodes):
            if await self._store.map(name).get(member) is not None:
                return False
        return True

    async def remove_worker(self, worker: str) -> None:
        """The record goes, whatever stands there: a worker's id is never used again (R7)."""
        await self._settled(self._store.workers, worker)

    async def remove_node(self, node: str) -> None:
        """As `remove_worker`, for a node."""
        await self._settled(self._store.nodes, node)

    async def _settled(self, name: str, key: str) -> None:
        try:
            await self._store.map(name).delete(key)
        except OutcomeUnknown:
            await self._store.namespace.settle()
            await self._store.map(name).delete(key)

    async def change_pool(self, seen: PoolRecord, changed: PoolRecord) -> bool:
        """Compare-and-set of the pool's record on its value. False: somebody was faster."""
        written = await self._pool.test_and_set(POOL_KEY, seen, changed)
        await self._pool.wait_for_revision(written.revision)
        return written.applied

    async def settled_pool(self) -> PoolRecord | None:
        """The pool's record, linearizable."""
        return await self._pool.fetch(POOL_KEY)


async def _change(members: ReplicatedMap[M], member: str, state: MemberState) -> bool:
    while True:
        held = await members.fetch_entry(member)
        if held is None:
            return False
        if held.value.state is state:
            await members.wait_for_revision(held.revision)
            return True
        changed = msgspec.structs.replace(held.value, state=state)
        written = await members.set(member, changed, when=REVISION(held.revision))
        if written.applied:
            await members.wait_for_revision(written.revision)
            return True


async def open_pool_map(namespace: Namespace, backend: Backend) -> ReplicatedMap[PoolRecord]:
    """The map that tells the pool's incarnation, the only one whose name does not carry it."""
    return await ReplicatedMap.open(
        namespace.map(SHUTDOWN_MAP), codec=StructCodec(PoolRecord), clock=backend.clock, random=backend.random
    )
