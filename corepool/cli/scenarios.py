"""What ``corepool sim`` runs: the built-in scenario, or one of the user's.

Invariants: the name of a scenario is in its tokens, with what it ran under: a token replays the run it came from and no other.
Neighbours: ``corepool.testing.chaos`` is the built-in one; ``corepool.testing`` gives the cluster.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable
from typing import cast

import attrs

from corepool.cli.loading import LoadError, load
from corepool.testing import Budgets, Cluster, Faults, Result, simulate_cluster
from corepool.testing.chaos import chaos
from corepool_memory.options import MemoryOptions
from corepool_memory.sim.errors import OtherConditions

__all__ = ["BUILT_IN", "Scenario", "ScenarioError", "load_scenario"]

BUILT_IN = "chaos"
BUDGETS = Budgets(steps=5_000_000, virtual_seconds=6 * 3600.0)
"""A scenario that does not end is given up: with faults that come again and again it is never exactly stuck."""


_FAULTS = {True: Faults.everything(), False: Faults.network()}
_STORES = {True: MemoryOptions(atomic_commit=False), False: MemoryOptions()}


class ScenarioError(Exception):
    """What was asked for is no scenario."""


@attrs.frozen(slots=True)
class Scenario:
    """A scenario and what it is run under.

    faults: all kinds of them, drawn per seed; else nothing but latency.
    steps: on a store whose commits are not atomic.
    """

    function: Callable[[Cluster], Awaitable[object]]
    name: str
    faults: bool = True
    steps: bool = False

    @property
    def command(self) -> str:
        """Replays a run of it: ``{token}`` is where the token goes."""
        options = ["" if self.name == BUILT_IN else f" --scenario {shlex.quote(self.name)}"]
        options += [" --no-faults"] if not self.faults else []
        options += [" --steps"] if self.steps else []
        return f"corepool sim replay {{token}}{''.join(options)}"

    def remedy(self, refused: OtherConditions, token: str) -> str | None:
        """The command that replays a token that was recorded under other conditions; None if no option makes those."""
        faults = {None: False, "Faults.everything()": True}.get(refused.recorded.get("faults"))
        steps = {None: False, "MemoryOptions(atomic_commit=False)": True}.get(refused.recorded.get("store_options"))
        if faults is None or steps is None:
            return None
        return attrs.evolve(self, faults=faults, steps=steps).command.replace("{token}", token)

    def run(self, *, seed: int = 0, token: str | None = None, minimise: bool = True) -> Result:
        """One run. ``token`` replays another one.

        Raises:
            TokenError: the token is damaged, or of another scenario.
        """
        return simulate_cluster(
            self.function,
            seed=seed,
            token=token,
            faults=_FAULTS[self.faults],
            name=self.name,
            store_options=_STORES[self.steps],
            budgets=BUDGETS,
            most_replays=300 if minimise else 0,
        )


def load_scenario(name: str, *, faults: bool = True, steps: bool = False) -> Scenario:
    """The built-in scenario, or ``module:function``; the current folder is on the import path.

    faults, steps: see `Scenario`.

    Raises:
        ScenarioError: there is none of that name.
    """
    if name == BUILT_IN:
        return Scenario(chaos, name, faults, steps)
    try:
        function = load(name, f"the built-in scenario {BUILT_IN!r}, and not MODULE:FUNCTION")
    except LoadError as error:
        raise ScenarioError(str(error)) from error
    if not callable(function):
        raise ScenarioError(f"{name} is {type(function).__name__}, not a function: async def scenario(cluster)")
    return Scenario(cast("Callable[[Cluster], Awaitable[object]]", function), name, faults, steps)
