"""What a node costs that has nothing to do: the same whatever the number of nodes (DESIGN 4.3)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from corepool.testing import Cluster, simulate_cluster
from tests.scenarios.looking import POOL, Keeper, ring
from tests.scenarios.wiretap import Wiretap

from .counting import Cost, Meter

IDLE: dict[str, Any] = {"worker_ttl": 30.0, "ack_grace_period": 20.0}
PERIOD = IDLE["worker_ttl"] / 5
PERIODS = 150


def _idle(nodes: int) -> tuple[dict[str, Cost], str]:
    """What each of so many nodes costs in 150 keep-alive periods, and which of them is the warden."""
    found: list[tuple[dict[str, Cost], str]] = []

    async def scenario(cluster: Cluster) -> None:
        meter = Meter(Wiretap(cluster))
        pool = [await cluster.node(POOL, worker=Keeper(), **IDLE) for _ in range(nodes)]
        await cluster.eventually(lambda: all(len(ring(node).workers) == nodes for node in pool), within=60.0)
        await cluster.sleep(20 * PERIOD)
        meter.reset()
        await cluster.sleep(PERIODS * PERIOD)
        [warden] = [node.name for node in pool if node.node.id == min(node.node.id for node in pool)]
        found.append((meter.of, warden))

    simulate_cluster(scenario).check()
    return found[0]


def test_an_idle_node_costs_the_same_among_3_and_30() -> None:
    """One commit per period renews and watches; the only other thing is a review every four grace periods."""
    per_period: dict[int, float] = {}
    wardens: dict[int, float] = {}
    for nodes in (3, 30):
        costs, warden = _idle(nodes)
        assert len(costs) == nodes
        extra = costs.pop(warden)
        others = [cost.commands / PERIODS for cost in costs.values()]
        per_period[nodes] = sum(others) / len(others)
        wardens[nodes] = extra.commands / PERIODS
        assert max(others) <= 1.1 * min(others), "no node costs more than another"
        for cost in costs.values():
            assert set(cost.requests) <= {"commit", "scan"}
            assert cost.requests["commit"] == pytest.approx(PERIODS, rel=0.02)
            assert not cost.deliveries, "nothing is pushed while nothing happens"
            # Its own two renewals, and the keep-alives of at most three neighbours and their workers.
            assert cost.operations <= 8 * cost.requests["commit"]
    assert per_period[30] == pytest.approx(per_period[3], rel=0.02)
    assert per_period[30] <= 1.1
    # One node sweeps for all: what is on its way, and the locks, twice per grace period.
    assert wardens[30] == pytest.approx(wardens[3], rel=0.05)
    assert wardens[30] <= per_period[30] + 2 * PERIOD / IDLE["ack_grace_period"] * 1.1


def test_idle_jobs_cost_nothing_but_their_owner_s_review() -> None:
    """500 jobs that run undisturbed: their owner looks at its own list every four grace periods, in two requests or three."""
    found: dict[int, Cost] = {}

    async def scenario(cluster: Cluster, jobs: int) -> None:
        meter = Meter(Wiretap(cluster))
        node = await cluster.node(POOL, worker=Keeper(), **IDLE)
        for number in range(jobs):
            await node.dispatch_job(f"k{number}")
        await cluster.sleep(20 * PERIOD)
        meter.reset()
        await cluster.sleep(PERIODS * PERIOD)
        found[jobs] = meter.total

    for jobs in (0, 500):
        simulate_cluster(partial(scenario, jobs=jobs)).check()
    reviews = PERIODS * PERIOD / (4 * IDLE["ack_grace_period"])
    assert found[500].commands - found[0].commands <= 3 * reviews * 1.1
