"""A pool under everything that can befall it: the scenario that ``corepool sim run`` explores.

Purpose: topology, operations and faults drawn from the seed; after every step the safety invariants; then the faults stop,
and everything must come right within its bound and leave nothing behind.
Invariants: every choice comes from the cluster, so a run is a function of its seed; what is judged in the end is judged by
``history``, from the outside.
Neighbours: on `Cluster`; run by the command line and by tests/chaos, with every safeguard switched off in turn.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import attrs

from corepool.errors import CorepoolError, OutcomeUnknown, Requeue
from corepool.pool import Job
from corepool.pool.store import PoolStore
from corepool.pool.wire import Attention, JobRecord, JobState, decode
from corepool.testing.cluster import Cluster, ClusterNode
from corepool.testing.history import Dispatch, Effect, Stop, judge
from corepool_memory.sim.errors import InvariantViolated, NodeCrashed, NotInTime

__all__ = ["Chaos", "chaos"]

POOL = "pool"


class Worker:
    """A handler that is sometimes slow, sometimes fails, and asks for another try now and then; as its key says."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def _draw(self, n: int, job_key: str, what: str) -> int:
        return self._cluster.choose(n, f"handler:{what}:{job_key}")

    async def start(self, job: Job) -> None:
        match self._draw(12, job.key, "start"):
            case 9:
                await asyncio.sleep(0.05 + self._draw(40, job.key, "slowness") / 10)
            case 10:
                await asyncio.sleep(0.01)
                raise ValueError("a handler that fails")
            case 11:
                raise Requeue("not now")
            case _:
                return

    async def stop(self, key: str) -> None:
        if self._draw(8, key, "stop") == 7:
            await asyncio.sleep(self._draw(5, key, "slowness") / 10)

    async def notify(self, key: str, payload: bytes) -> None:
        if self._draw(8, key, "notify") == 7:
            raise ValueError("a notify that fails")


@attrs.define(slots=True)
class Chaos:
    """One run's clients, operators and records."""

    cluster: Cluster
    ttl: float
    options: dict[str, Any]
    dispatches: list[Dispatch] = attrs.field(factory=list)
    stops: list[Stop] = attrs.field(factory=list)
    notified: Counter[str] = attrs.field(factory=Counter)
    ticks: dict[int, str] = attrs.field(factory=dict)
    numbers: int = 0
    failed: set[str] = attrs.field(factory=set)

    def choose(self, n: int, label: str) -> int:
        return self.cluster.choose(n, label)

    def up(self) -> list[ClusterNode]:
        return [machine for machine in self.cluster.machines if isinstance(machine, ClusterNode) and machine.up]

    # --- operations ---------------------------------------------------------------------------------------------------

    async def boot(self, *, workers: bool = True) -> None:
        """A new machine; if the faults do not let it come up, it is switched off and on again."""
        name = f"node-{len(self.cluster.machines) + 1}"
        handler = (lambda: Worker(self.cluster)) if workers else None
        options = dict(self.options) if workers else {**self.options, "client_only": True}
        try:
            await self.cluster.node(POOL, worker=handler, name=name, **options)
            return
        except (CorepoolError, NodeCrashed):
            self.cluster.sometimes("a node did not come up at once")
        while not self._is_up(name):
            await self.cluster.sleep(1.0)
            machine = self.cluster.get(name)
            if isinstance(machine, ClusterNode) and not machine.up and machine.alive:
                try:
                    await self.cluster.restart(name)
                except (CorepoolError, NodeCrashed):
                    continue

    def _is_up(self, name: str) -> bool:
        machine = self.cluster.get(name)
        return isinstance(machine, ClusterNode) and machine.up

    async def client(self, name: str, operations: int) -> None:
        """Calls on a few keys, from any node, one after the other."""
        for _ in range(operations):
            await self.cluster.sleep(self.choose(24, name) / 8)
            nodes = self.up()
            if not nodes:
                continue
            node = nodes[self.choose(len(nodes), f"{name}:node")]
            key = f"k{self.choose(5, f'{name}:key')}"
            match self.choose(8, f"{name}:call"):
                case 0 | 1 | 2 | 3:
                    await self._dispatch(node, key)
                case 4 | 5:
                    await self._stop(node, key)
                case 6:
                    await self._notify(node, key)
                case _:
                    await self._retry(node, key)

    async def _dispatch(self, node: ClusterNode, key: str) -> None:
        self.numbers += 1
        payload = b"%d" % self.numbers
        invoked = self.cluster.now
        error: CorepoolError | None = None
        timeout = (2.0, 4.0, 1.0)[self.choose(3, "patience")] * self.ttl
        try:
            await node.dispatch_job(key, payload, timeout=timeout)
        except NodeCrashed:
            error = OutcomeUnknown("the caller's machine crashed")
        except CorepoolError as raised:
            error = raised
        self.cluster.sometimes(f"dispatch: {type(error).__name__ if error else 'started'}")
        self.dispatches.append(
            Dispatch(key=key, payload=payload, invoked=invoked, returned=self.cluster.now, error=error)
        )

    async def _stop(self, node: ClusterNode, key: str) -> None:
        invoked = self.cluster.now
        error: CorepoolError | None = None
        try:
            await node.stop_job(key)
        except NodeCrashed:
            error = OutcomeUnknown("the caller's machine crashed")
        except CorepoolError as raised:
            error = raised
        self.cluster.sometimes(f"stop: {type(error).__name__ if error else 'stopped'}")
        self.stops.append(Stop(key=key, invoked=invoked, returned=self.cluster.now, error=error))

    async def _notify(self, node: ClusterNode, key: str) -> None:
        try:
            await node.notify_worker(key, b"news")
        except (CorepoolError, NodeCrashed) as error:
            self.cluster.sometimes(f"notify: {type(error).__name__}")
            return
        self.cluster.sometimes("notify: handled")

    async def _retry(self, node: ClusterNode, key: str) -> None:
        try:
            await node.retry_job(key)
        except (CorepoolError, NodeCrashed):
            return
        self.cluster.sometimes("retry")

    async def operator(self, changes: int) -> None:
        """Nodes and workers join and leave."""
        for _ in range(changes):
            await self.cluster.sleep(0.5 + self.choose(16, "operator:pause") / 2)
            nodes = [node for node in self.up() if not node.node.options.client_only]
            what = self.choose(4, "operator:what")
            try:
                if what == 0 or len(nodes) < 2:
                    await self.boot()
                elif what == 1:
                    await nodes[self.choose(len(nodes), "operator:node")].close()
                    self.cluster.sometimes("a node closed")
                elif what == 2:
                    await nodes[self.choose(len(nodes), "operator:node")].add_worker(Worker(self.cluster))
                    self.cluster.sometimes("a worker was added")
                else:
                    node = nodes[self.choose(len(nodes), "operator:node")]
                    workers = node.workers
                    if len(workers) > 1:
                        await node.remove_worker(workers[-1])
                        self.cluster.sometimes("a worker was removed")
            except (CorepoolError, NodeCrashed):
                continue

    async def ticker(self) -> None:
        """Invariant 8: a number that two nodes were given would be a tick that fired twice."""
        node = self.up()[0]
        async for number in node.ticker("tick", self.ttl / 2):
            if number in self.ticks:
                raise InvariantViolated(f"8: tick {number} fired on {self.ticks[number]} and on {node.name}")
            self.ticks[number] = node.name

    # --- the end ------------------------------------------------------------------------------------------------------

    def effects(self) -> list[Effect]:
        """What the handlers did, as the cluster's recorder wrote it down."""
        told: list[Effect] = []
        for key in sorted(self.cluster.recorder.tenures):
            for tenure in self.cluster.recorder.of(key):
                told.append(
                    Effect(
                        key=key,
                        payload=tenure.payload,
                        owner=tenure.machine,
                        token=tenure.token,
                        began=tenure.began,
                        running=tenure.running,
                        stopping=tenure.stopping,
                        ended=tenure.ended,
                        suspended=tenure.paused,
                    )
                )
        return told

    async def settle(self) -> None:
        """Liveness: within a stated multiple of the TTL after the last fault, everything has come right."""
        bound = 12 * self.ttl + self.options["worker_shutdown_ttl"]
        if not self.up():
            await self.boot()
        reader = self.cluster.machine("reader")
        problem = "nothing was looked at"

        async def right() -> bool:
            nonlocal problem
            problem = await reader.run(lambda: self._problem(reader.backend))
            return not problem

        try:
            await self.cluster.eventually(right, within=bound, every=0.5)
        except NotInTime:
            self.cluster.tell(f"not right: {problem}")
            raise InvariantViolated(f"not right {bound:g} s after the last fault: {problem}") from None
        judge(self.dispatches, self.stops, self.effects(), settled_at=self.cluster.now, failed=self.failed)

    async def _problem(self, backend: Any) -> str:
        """Invariants 10 to 12: what is not as it must be in the end, or ""."""
        self.failed.clear()
        nodes = [node for node in self.up() if node.node._session is not None]  # pyright: ignore[reportPrivateUsage]
        if not nodes:
            return "no node is up"
        session = nodes[0].node._session  # pyright: ignore[reportPrivateUsage]
        assert session is not None
        store: PoolStore = session.context.store
        namespace = backend.namespace(POOL)
        records = {entry.key: decode(entry.value, JobRecord) async for entry in namespace.map(store.jobs).scan()}
        workers = {worker.id for node in nodes for worker in node.workers}
        listed = {entry.key async for entry in namespace.map(store.workers).scan()}
        if listed != workers:
            return f"workers in the map and workers alive differ: {sorted(listed ^ workers)}"
        ids = {node.node.id for node in nodes}
        listed = {entry.key async for entry in namespace.map(store.nodes).scan()}
        if listed != ids:
            return f"nodes in the map and nodes alive differ: {sorted(listed ^ ids)}"
        for key, record in records.items():
            running = self.cluster.running(key)
            if record.state is JobState.FAILED:
                self.failed.add(key)
                continue
            if record.state is not JobState.RUNNING or record.worker not in workers:
                return f"{key} is {record.state.value} at {record.worker or 'nobody'}"
            if len(running) != 1:
                return f"{key} is RUNNING by its record, and runs on {[machine.name for machine in running]}"
        for key in sorted(self.cluster.recorder.tenures):
            if key not in records and self.cluster.owners(key):
                return f"{key} has no record, and {self.cluster.owners(key)[0].name} has it"
        return await self._leftovers(namespace, store, records, workers, ids)

    async def _leftovers(
        self, namespace: Any, store: PoolStore, records: dict[str, JobRecord], workers: set[str], ids: set[str]
    ) -> str:
        async def keys(name: str) -> set[str]:
            return {entry.key async for entry in namespace.map(name).scan()}

        async for entry in namespace.map(store.attention).scan():
            return f"an attention entry is left: {entry.key} {decode(entry.value, Attention)}"
        wanted = {record.job_id for record in records.values()}
        if (payloads := await keys(store.payloads)) != wanted:
            return f"payloads and jobs differ: {sorted(payloads ^ wanted)}"
        if locks := await keys(store.worker_cleanup):
            return f"cleanup locks are left: {sorted(locks)}"
        if (beats := await keys(store.worker_keep_alive)) != workers:
            return f"keep-alives of workers that are not there: {sorted(beats ^ workers)}"
        if (beats := await keys(store.node_keep_alive)) != ids:
            return f"keep-alives of nodes that are not there: {sorted(beats ^ ids)}"
        maps, streams = self.cluster.world.server.contents().get(POOL, ([], []))
        inboxes = {store.worker_inbox(worker) for worker in workers} | {store.node_inbox(node) for node in ids}
        if extra := sorted(set(streams) - inboxes - {store.queue}):
            return f"streams that belong to nobody: {extra}"
        indexes = {store.owned(worker) for worker in workers}
        if extra := sorted(name for name in maps if name.startswith("owned@") and name not in indexes):
            return f"indexes of workers that are not there: {extra}"
        for worker in sorted(workers):
            owned = await keys(store.owned(worker))
            mine = {key for key, record in records.items() if record.worker == worker}
            if owned != mine:
                return f"the index of {worker} differs from its jobs: {sorted(owned ^ mine)}"
        return ""


async def chaos(cluster: Cluster) -> None:
    """Nodes come, go and crash under faults while clients call; then everything must come right."""
    ttl = (5.0, 10.0, 2.0)[cluster.choose(3, "ttl")]
    options: dict[str, Any] = {
        "worker_ttl": ttl,
        "ack_grace_period": ttl * (0.5, 1.0)[cluster.choose(2, "grace")],
        "call_timeout": 3 * ttl,
        "worker_shutdown_ttl": 6 * ttl,
        "start_backoff": 0.2,
        "max_start_backoff": 2.0,
        "max_start_attempts": (5, 2)[cluster.choose(2, "attempts")],
        "neighbours": (3, 1)[cluster.choose(2, "neighbours")],
        "max_queued_jobs": (1000, 2)[cluster.choose(2, "queue")],
        "full_scan_interval": 4 * ttl,
    }
    run = Chaos(cluster, ttl, options)
    for _ in range(1 + cluster.choose(4, "nodes")):
        await run.boot()
    if cluster.choose(2, "client node"):
        await run.boot(workers=False)
    async with asyncio.TaskGroup() as group:
        for number in range(1 + cluster.choose(3, "clients")):
            group.create_task(run.client(f"client-{number}", 6 + cluster.choose(10, "operations")))
        group.create_task(run.operator(cluster.choose(5, "changes")))
    await run.settle()
    if run.dispatches and cluster.choose(4, "shutdown") == 3:
        await _shut_down(run)


async def _shut_down(run: Chaos) -> None:
    """R6: after a shutdown nothing of the pool is left, and no handler runs."""
    cluster = run.cluster
    cluster.world.calm()
    node = run.up()[0]
    await node.shutdown()
    cluster.sometimes("a pool was shut down")
    store = node.node._session.context.store if node.node._session else None  # pyright: ignore[reportPrivateUsage]
    assert store is not None

    def clean() -> bool:
        maps, _ = cluster.world.server.contents().get(POOL, ([], []))
        handled = any(cluster.owners(key) for key in cluster.recorder.tenures)
        return not handled and not [
            name for name in maps if name.startswith(("jobs", "job_payloads", "owned@", "workers"))
        ]

    await cluster.eventually(clean, within=8 * run.ttl, what="a pool that was shut down is empty")
