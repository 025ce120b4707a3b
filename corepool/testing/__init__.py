"""Test your own job handlers: a whole cluster in one process, in virtual time, from a seed.

With pytest, use the fixture ``corepool_simulation`` (see :mod:`corepool.testing.plugin`); without, `simulate_cluster`.
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
