"""Test your own job handlers: a whole cluster in one process, in virtual time, from a seed.

With pytest, use the fixture ``corepool_simulation``; without, `simulate_cluster`::

    def test_no_feed_is_lost(corepool_simulation):
        async def scenario(cluster):
            a, b, c = [await cluster.node("feeds", worker=Feeds) for _ in range(3)]
            await a.dispatch_job("k", b"payload")
            await cluster.crash(a)
            await cluster.eventually(lambda: cluster.running("k"), within=120)
        corepool_simulation(scenario)

- The test is a plain ``def``; the scenario is ``async`` and runs on an event loop of its own, in which an hour of
  waiting takes milliseconds. Inside it, ``asyncio`` works as usual; threads, sockets and signals are refused.
- Give ``worker=`` a class, and a machine that is restarted gets a new handler without any memory, as in real life.
- Your handler sees what a real one sees: ``start`` and ``stop`` alternate, fencing tokens grow, and a machine that is
  crashed runs not even a ``finally`` block. If the pool ever breaks such a promise, the run fails by itself.
- ``faults=Faults.everything()`` lets machines crash, pause, drift and be cut off by themselves, differently with each
  seed; then calls on a node may raise `NodeCrashed`, ``BackendUnavailable`` or ``OutcomeUnknown``, as they may in real
  life. ``cluster.eventually`` waits with the faults at rest.
- Take random choices from ``cluster.choose``, times from ``asyncio.get_running_loop().time()``, and ids from the seed:
  a run must be a function of its seed, or its failure cannot be replayed. The report says so if it is not.
- ``cluster.sometimes("name", condition)`` with ``corepool_simulation(scenario, reaches=["name"])`` proves that a
  situation was really reached.
- A failure prints what happened, line by line in virtual time, and one command with ``--corepool-replay TOKEN`` that
  runs the smallest failing run again, everywhere. ``--corepool-seeds 200`` looks at more runs.
- When nothing can ever go on, the run ends at once with the name of each task, its await chain, what it waits for, and
  the cycle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corepool.testing.cluster import Cluster, simulate_cluster
    from corepool.testing.machines import ClusterNode, Machine
    from corepool.testing.recording import Tenure
    from corepool_memory.sim.errors import NodeCrashed, NotInTime, SimulationFailed
    from corepool_memory.sim.faults import Faults
    from corepool_memory.sim.loop import Budgets
    from corepool_memory.sim.run import Result

__all__ = [
    "Budgets",
    "Cluster",
    "ClusterNode",
    "Faults",
    "Machine",
    "NodeCrashed",
    "NotInTime",
    "Result",
    "SimulationFailed",
    "Tenure",
    "simulate_cluster",
]

# Loaded on first use: pytest imports this package in every session, for the plugin, whether it is needed or not.
_HOMES = {
    "Budgets": "corepool_memory.sim.loop",
    "Cluster": "corepool.testing.cluster",
    "ClusterNode": "corepool.testing.machines",
    "Faults": "corepool_memory.sim.faults",
    "Machine": "corepool.testing.machines",
    "NodeCrashed": "corepool_memory.sim.errors",
    "NotInTime": "corepool_memory.sim.errors",
    "Result": "corepool_memory.sim.run",
    "SimulationFailed": "corepool_memory.sim.errors",
    "Tenure": "corepool.testing.recording",
    "simulate_cluster": "corepool.testing.cluster",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)
