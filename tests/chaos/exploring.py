"""Runs of the chaos scenarios: each once, whoever asks for it, and what they covered all together.

Invariants: a run is a function of scenario, kind of store and seed; watching what happens in it changes nothing.
Neighbours: ``test_chaos`` and ``test_regressions`` ask for runs; ``coverage`` watches; ``summary`` prints what it came to.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import cache

from corepool.testing import Budgets, Cluster, Faults, simulate_cluster
from corepool.testing.chaos import chaos
from corepool.testing.disasters import minority, outage, rollback
from corepool_memory.options import MemoryOptions
from tests.chaos.summary import TOTAL

from .coverage import Coverage, watched

__all__ = ["BUDGETS", "KINDS", "SCENARIOS", "VIRTUAL", "run"]

SCENARIOS: dict[str, Callable[[Cluster], Awaitable[object]]] = {
    "chaos": chaos,
    "minority": minority,
    "outage": outage,
    "rollback": rollback,
}
KINDS = {"atomic": True, "steps": False}
"""Stores whose commits are all or nothing, and those that apply them step by step."""

VIRTUAL: dict[tuple[str, str, int], float] = {}
"""How many virtual seconds each run took that was of a seed, not of a token."""

BUDGETS = Budgets(steps=2_000_000, virtual_seconds=3 * 3600.0)


@cache
def run(scenario: str, kind: str, seed: int, token: str | None) -> str:
    """The report of a run that failed, reduced to what matters; "" if it passed. The second time it costs nothing.

    token: replay the run that it stands for instead. It has no default: a cache tells a value left out from one given.
    """
    began = time.process_time()
    coverage = Coverage()
    with watched(coverage):
        result = simulate_cluster(
            SCENARIOS[scenario],
            seed=seed,
            token=token,
            faults=Faults.everything(),
            budgets=BUDGETS,
            name=scenario,
            store_options=MemoryOptions(atomic_commit=KINDS[kind]),
        )
    if token is None:
        VIRTUAL[scenario, kind, seed] = result.virtual_seconds
    TOTAL.runs += 1
    TOTAL.virtual += result.virtual_seconds
    TOTAL.cpu += time.process_time() - began
    TOTAL.covered.update({f"fault: {name}": count for name, count in result.faults.items()})
    TOTAL.covered.update(result.sometimes)
    TOTAL.covered.update(coverage.seen)
    if result.passed:
        return ""
    # The seed as well: there is no test of that name among the default seeds if it was found beyond them.
    only = f"--chaos-first-seed {seed} --chaos-seeds 1"
    return result.report(
        f"pytest 'tests/chaos/test_chaos.py::test_{scenario}[{kind}-{seed}]' {only} --chaos-replay {{token}}"
    )
