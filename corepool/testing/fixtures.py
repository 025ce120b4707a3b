"""What the pytest fixtures do.

Purpose: run a scenario once per seed, or once from a token, and turn a failure into a report.
Invariants: seeds run in order and the first failure ends the test; a token of another test is refused rather than
replayed.
Neighbours: made by :mod:`corepool.testing.plugin`, which is imported in every session; this is not.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Iterable

import attrs
import pytest

from corepool.testing.cluster import Cluster, simulate_cluster
from corepool_memory.options import MemoryOptions
from corepool_memory.sim.faults import Faults
from corepool_memory.sim.loop import Budgets
from corepool_memory.sim.run import Result

__all__ = ["SimulationRunner"]


@attrs.frozen(slots=True, kw_only=True)
class SimulationRunner:
    """The fixture ``corepool_simulation``: call it.

    test: the test's node id: part of a token's identity and of the command that replays it.
    seeds: how many the command line asks for, or None. first_seed: where they begin. token: to replay instead.
    """

    test: str
    seeds: int | None
    default_seeds: int
    first_seed: int
    token: str | None

    def __call__(
        self,
        scenario: Callable[[Cluster], Awaitable[object]],
        *,
        faults: Faults | None = None,
        seeds: int | None = None,
        budgets: Budgets | None = None,
        reaches: Iterable[str] = (),
        check_ownership: bool = True,
        store_options: MemoryOptions | None = None,
    ) -> list[Result]:
        """Run ``async def scenario(cluster)`` with each seed, and fail the test at the first failure.

        faults: what goes wrong by itself: ``Faults.everything()``, or a `Faults` of your own; by default nothing but
            latency, which leaves the crashes and partitions to the scenario.
        seeds: how many runs, unless the command line says otherwise.
        budgets: when to give up a run that does not end.
        reaches: situations (``cluster.sometimes``) that must have been reached in at least one of the runs; else the
            test tests less than it says, and fails. Not asked of a replay.
        check_ownership: fail when the pool breaks its promises about who runs a job.
        store_options: of the simulated store.

        Returns the verdict of each run.
        """

        def run(seed: int, token: str | None) -> Result:
            result = simulate_cluster(
                scenario,
                seed=seed,
                token=token,
                faults=faults,
                budgets=budgets,
                name=self._name(scenario),
                check_ownership=check_ownership,
                store_options=store_options,
            )
            if not result.passed:
                pytest.fail(result.report(self._command), pytrace=False)
            return result

        if self.token is not None:
            return [run(0, self.token)]
        count = self.seeds or seeds or self.default_seeds
        results = [run(seed, None) for seed in range(self.first_seed, self.first_seed + count)]
        missed = [name for name in reaches if not any(result.sometimes.get(name) for result in results)]
        if missed:
            pytest.fail(f"in none of {count} runs this was reached: {', '.join(missed)}", pytrace=False)
        return results

    def _name(self, scenario: Callable[[Cluster], Awaitable[object]]) -> str:
        # Without the directory: the same test is called from other places, and a token must fit there too.
        return f"{self.test.rpartition('/')[2]}:{getattr(scenario, '__name__', 'scenario')}"

    @property
    def _command(self) -> str:
        return f"pytest {shlex.quote(self.test)} --corepool-replay {{token}}"
