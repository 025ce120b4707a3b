"""A simulated cluster as an `Env`: virtual time, a seed, crashes that run no ``finally``.

Purpose: the pool layer for ``memory://``: hundreds of plans in the time of one real one.
Invariants: a run is a function of plan and seed.
Neighbours: on `corepool.testing.Cluster`, whose handlers are watched all the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from corepool.errors import CorepoolError
from corepool.pool import Job
from corepool.testing import Cluster, ClusterNode, NodeCrashed, NotInTime, simulate_cluster
from corepool.testing.history import Effect
from corepool_conformance.kit import PromiseBroken
from corepool_conformance.pool.env import Checker, died, options, run_plan
from corepool_conformance.pool.plans import FAULTS, Plan

__all__ = ["SIM_FAULTS", "run_simulated"]

SIM_FAULTS = FAULTS
_TTL = 2.0
_POOL = "pool"


def run_simulated(plan: Plan, seed: int) -> None:
    """Carry a plan out in a simulated cluster.

    Raises:
        PromiseBroken: a promise of the pool does not hold.
    """
    caught: list[PromiseBroken] = []

    async def scenario(cluster: Cluster) -> None:
        try:
            await run_plan(_SimEnv(cluster), plan)
        except PromiseBroken as broken:
            caught.append(broken)
            raise

    result = simulate_cluster(scenario, seed=seed, most_replays=0, most_seconds=0.0)
    if caught:
        raise caught[-1]
    if result.violation is not None:
        # Without its replay command: the kit says how to replay a plan.
        raise PromiseBroken("P1", "\n".join([result.violation.text, *result.story()]))


class _Handler:
    async def start(self, job: Job) -> None:
        if job.key == "k3":
            await asyncio.sleep(0.3)

    async def stop(self, key: str) -> None:
        if key == "k2":
            await asyncio.sleep(0.2)

    async def notify(self, key: str, payload: bytes) -> None:
        return


class _SimEnv:
    """See `corepool_conformance.pool.env.Env`."""

    ttl = _TTL

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._nodes: list[str] = []
        self._checker: ClusterNode | None = None

    def now(self) -> float:
        return self._cluster.now

    async def sleep(self, seconds: float) -> None:
        await self._cluster.sleep(seconds)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.ensure_future(work)

    async def start(self) -> None:
        name = f"node-{len(self._nodes)}"
        self._nodes.append(name)
        try:
            await self._cluster.node(_POOL, worker=_Handler, name=name, **options(_TTL))
        except (CorepoolError, NodeCrashed):
            return  # a fault kept it from coming up: the plan goes on without it

    def _node(self, number: int) -> ClusterNode | None:
        machine = self._cluster.get(self._nodes[number])
        return machine if isinstance(machine, ClusterNode) and machine.up else None

    def up(self) -> list[int]:
        known = {machine.name for machine in self._cluster.machines}
        return [number for number, name in enumerate(self._nodes) if name in known and self._node(number)]

    async def call(self, node: int, name: str, key: str, payload: bytes, timeout: float | None) -> None:
        machine = self._node(node)
        if machine is None:
            raise died(name)
        try:
            if name == "dispatch_job":
                await machine.dispatch_job(key, payload, timeout=timeout)
            elif name == "stop_job":
                await machine.stop_job(key)
            else:
                await machine.notify_worker(key, payload)
        except NodeCrashed:
            raise died(name) from None

    async def close(self, node: int) -> None:
        machine = self._node(node)
        if machine is not None:
            try:
                await machine.close()
            except (CorepoolError, NodeCrashed):
                return

    async def crash(self, node: int) -> None:
        if self._node(node):
            await self._cluster.crash(self._nodes[node])

    async def cut(self, node: int) -> None:
        if self._node(node):
            await self._cluster.partition(self._nodes[node])

    async def heal(self, node: int) -> None:
        await self._cluster.heal(self._nodes[node])

    async def pause(self, node: int) -> None:
        if self._node(node):
            await self._cluster.pause(self._nodes[node])

    async def resume(self, node: int) -> None:
        if self._cluster.get(self._nodes[node]).alive:
            await self._cluster.resume(self._nodes[node])

    async def workers(self) -> set[str]:
        machines = [self._node(number) for number in self.up()]
        return {worker.id for machine in machines if machine is not None for worker in machine.workers}

    def effects(self) -> list[Effect]:
        return self._cluster.recorder.effects()

    async def checker(self) -> Checker:
        if self._checker is None:
            self._checker = await self._cluster.node(_POOL, name="checker", client_only=True, **options(_TTL))
        return self._checker

    async def eventually(self, condition: Callable[[], Awaitable[bool]], within: float) -> bool:
        try:
            await self._cluster.eventually(condition, within=within, every=0.2)
        except NotInTime:
            return False
        return True
