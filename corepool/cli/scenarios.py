"""What ``corepool sim`` runs: the built-in scenario, or one of the user's.

Invariants: the name of a scenario is in its tokens: a token replays the scenario it came from and no other.
Neighbours: ``corepool.testing.chaos`` is the built-in one; ``corepool.testing`` gives the cluster.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import attrs

from corepool.cli.loading import LoadError, load
from corepool.testing import Budgets, Cluster, Faults, Result, simulate_cluster
from corepool.testing.chaos import chaos

__all__ = ["BUILT_IN", "Scenario", "ScenarioError", "load_scenario"]

BUILT_IN = "chaos"
BUDGETS = Budgets(steps=5_000_000, virtual_seconds=6 * 3600.0)
"""A scenario that does not end is given up: with faults that come again and again it is never exactly stuck."""


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
    """The built-in scenario, or ``module:function``; the current folder is on the import path.

    faults: all kinds of them, drawn per seed; else nothing but latency.

    Raises:
        ScenarioError: there is none of that name.
    """
    allowed = Faults.everything() if faults else Faults.network()
    if name == BUILT_IN:
        return Scenario(chaos, allowed, name)
    try:
        function = load(name, f"the built-in scenario {BUILT_IN!r}, and not MODULE:FUNCTION")
    except LoadError as error:
        raise ScenarioError(str(error)) from error
    if not callable(function):
        raise ScenarioError(f"{name} is {type(function).__name__}, not a function: async def scenario(cluster)")
    return Scenario(cast("Callable[[Cluster], Awaitable[object]]", function), allowed, name)
