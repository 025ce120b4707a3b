"""What the named scenarios stand on: both kinds of store, handlers that remember, and a look into the store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from corepool.testing import Budgets, Cluster, Faults, Result
from corepool.testing.fixtures import SimulationRunner
from corepool_memory.options import MemoryOptions

Scenario = Callable[[Cluster], Awaitable[object]]


class Simulated:
    """Runs a scenario with several seeds on one kind of store."""

    def __init__(self, runner: SimulationRunner, *, atomic: bool) -> None:
        self._runner = runner
        self.atomic = atomic
        """Whether the store's commits are all or nothing."""

    def __call__(
        self,
        scenario: Scenario,
        *,
        reaches: Iterable[str] = (),
        seeds: int = 4,
        faults: Faults | None = None,
        **options: Any,
    ) -> list[Result]:
        return self._runner(
            scenario,
            reaches=reaches,
            seeds=seeds,
            faults=faults,
            budgets=Budgets(steps=2_000_000, virtual_seconds=3600.0),
            store_options=MemoryOptions(atomic_commit=self.atomic),
            **options,
        )


@pytest.fixture(params=[True, False], ids=["atomic", "steps"])
def simulated(request: pytest.FixtureRequest, corepool_simulation: SimulationRunner) -> Simulated:
    """Correctness never depends on atomic commits: every scenario runs on both kinds of store."""
    return Simulated(corepool_simulation, atomic=request.param)
