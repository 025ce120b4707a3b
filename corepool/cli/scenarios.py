"""What ``corepool sim`` runs: the built-in scenario, or one of the user's.

Invariants: a scenario takes every choice from the cluster (``cluster.choose``), so that it is a function of the seed.
Neighbours: ``corepool.testing`` gives the cluster, which checks ownership and tokens by itself.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

import attrs

from corepool import Job
from corepool.errors import (
    BackendUnavailable,
    CorepoolError,
    JobExistsError,
    JobGoneError,
    JobNotFoundError,
    OutcomeUnknown,
)
from corepool.testing import Budgets, Cluster, ClusterNode, Faults, NodeCrashed, NotInTime, Result, simulate_cluster

__all__ = ["Scenario", "ScenarioError", "load_scenario", "pool"]

POOL = "pool"
BUDGETS = Budgets(steps=5_000_000, virtual_seconds=6 * 3600.0)
"""A scenario that does not end is given up: with faults that come again and again it is never exactly stuck."""
SETTLES_WITHIN = 20
"""Times worker_ttl, after the faults have stopped, until every job must run where it belongs."""


class ScenarioError(Exception):
    """What was asked for is no scenario."""


@attrs.frozen(slots=True)
class Scenario:
    """A scenario and the faults it is run under."""

    function: Callable[[Cluster], Awaitable[object]]
    faults: Faults
    name: str

    def run(self, *, seed: int = 0, token: str | None = None, minimise: bool = True) -> Result:
        """One run. ``token`` replays another one.

        Raises:
            TokenError: the token is damaged, or of another scenario.
        """
        return simulate_cluster(
            self.function,
            seed=seed,
            token=token,
            faults=self.faults,
            name=self.name,
            budgets=BUDGETS,
            most_replays=300 if minimise else 0,
        )


def load_scenario(name: str, *, faults: bool = True) -> Scenario:
    """The built-in scenario ``pool``, or ``module:function``; the current folder is on the import path.

    faults: all kinds of them, drawn per seed; else nothing but latency.

    Raises:
        ScenarioError: there is none of that name.
    """
    allowed = Faults.everything() if faults else Faults.network()
    if name == POOL:
        return Scenario(pool, allowed, name)
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ScenarioError(f"{name!r} is neither the built-in scenario {POOL!r} nor MODULE:FUNCTION")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module may raise anything on import; it becomes one line that names it
        raise ScenarioError(f"cannot load {name}: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ScenarioError(f"{name} is {type(function).__name__}, not a function: async def scenario(cluster)")
    return Scenario(cast("Callable[[Cluster], Awaitable[object]]", function), allowed, name)


# --- the built-in scenario -------------------------------------------------------------------------------------------


class Keeper:
    """A handler that keeps what it was given."""

    def __init__(self) -> None:
        self.payloads: dict[str, bytes] = {}

    async def start(self, job: Job) -> None:
        self.payloads[job.key] = job.payload

    async def stop(self, key: str) -> None:
        self.payloads.pop(key, None)

    async def notify(self, key: str, payload: bytes) -> None:
        self.payloads[key] = payload


@attrs.define(slots=True)
class _Client:
    """Works on keys of its own, one call after the other, and knows what must be true of them in the end."""

    cluster: Cluster
    name: str
    operations: int
    keys: list[str] = attrs.field(factory=list)
    running: set[str] = attrs.field(factory=set)
    stopped: set[str] = attrs.field(factory=set)

    async def work(self) -> None:
        for number in range(self.operations):
            await self.cluster.sleep(self._choose(20) / 4)
            node = self._some_node()
            if node is None:
                continue
            key = f"{self.name}-{self._choose(4)}"
            action = (self._dispatch, self._dispatch, self._stop, self._notify)[self._choose(4)]
            try:
                await action(node, key, number)
            except NodeCrashed:
                self._forget(key)
            except (BackendUnavailable, JobNotFoundError):
                pass  # certainly nothing happened: what was true of the key still is
            except CorepoolError:
                self._forget(key)

    async def _dispatch(self, node: ClusterNode, key: str, number: int) -> None:
        try:
            await node.dispatch_job(key, b"%d" % number, timeout=30.0)
        except JobExistsError:
            return
        except (OutcomeUnknown, JobGoneError, NodeCrashed):
            self._forget(key)
            return
        self.stopped.discard(key)
        self.running.add(key)
        self.cluster.sometimes("a job was dispatched")

    async def _stop(self, node: ClusterNode, key: str, number: int) -> None:
        self._forget(key)
        await node.stop_job(key)
        self.stopped.add(key)
        self.cluster.sometimes("a job was stopped")

    async def _notify(self, node: ClusterNode, key: str, number: int) -> None:
        try:
            await node.notify_worker(key, b"note %d" % number)
        except (CorepoolError, NodeCrashed):
            return  # a notification changes nothing of where the job runs
        self.cluster.sometimes("a job was notified")

    def _forget(self, key: str) -> None:
        """Nobody knows any more what must be true of the key."""
        self.running.discard(key)
        self.stopped.discard(key)

    def _some_node(self) -> ClusterNode | None:
        nodes = [one for one in self.cluster.machines if isinstance(one, ClusterNode) and one.up]
        return nodes[self._choose(len(nodes))] if nodes else None

    def _choose(self, n: int) -> int:
        return self.cluster.choose(n, self.name)


async def pool(cluster: Cluster) -> None:
    """Nodes come and go under faults while clients dispatch, notify and stop; then everything must come right."""
    ttl = (10.0, 5.0, 30.0)[cluster.choose(3, "ttl")]
    options: dict[str, Any] = {"worker_ttl": ttl, "ack_grace_period": ttl, "call_timeout": 4 * ttl}
    for _ in range(2 + cluster.choose(3, "nodes")):
        await _boot(cluster, options)
    clients = [_Client(cluster, f"client-{number}", 8 + cluster.choose(9, "operations")) for number in range(2)]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.work())
        group.create_task(_come_and_go(cluster, options))
    running = sorted(key for client in clients for key in client.running)
    stopped = sorted(key for client in clients for key in client.stopped)

    def settled() -> bool:
        return all(len(cluster.running(key)) == 1 for key in running) and not any(map(cluster.owners, stopped))

    try:
        await cluster.eventually(
            settled, within=SETTLES_WITHIN * ttl, what="every admitted job runs, no stopped one does"
        )
    except NotInTime as error:
        wrong = [f"{key} runs on {len(cluster.running(key))}" for key in running if len(cluster.running(key)) != 1]
        wrong += [f"{key} was stopped and is on {cluster.owners(key)}" for key in stopped if cluster.owners(key)]
        raise NotInTime(f"{error}: {'; '.join(wrong)}") from error


async def _boot(cluster: Cluster, options: dict[str, Any]) -> None:
    """A new machine with a worker; if the faults do not let it come up, it is switched off and on again."""
    name = f"node-{len(cluster.machines) + 1}"
    try:
        await cluster.node("pool", worker=Keeper, name=name, **options)
        return
    except (CorepoolError, NodeCrashed):
        cluster.sometimes("a node did not come up at once")
    while True:
        try:
            await cluster.restart(name)
            return
        except (CorepoolError, NodeCrashed):
            await cluster.sleep(1.0)


async def _come_and_go(cluster: Cluster, options: dict[str, Any]) -> None:
    for _ in range(cluster.choose(3, "newcomers")):
        await cluster.sleep(1.0 + cluster.choose(20, "pause"))
        await _boot(cluster, options)
        await cluster.sleep(1.0 + cluster.choose(20, "pause"))
        nodes = [one for one in cluster.machines if isinstance(one, ClusterNode) and one.up]
        if len(nodes) > 2:
            leaver = nodes[cluster.choose(len(nodes), "leaver")]
            try:
                await leaver.close()
                cluster.sometimes("a node left")
            except (CorepoolError, NodeCrashed):
                continue  # it crashed on its way out, and is started again
