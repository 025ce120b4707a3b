"""What each flow costs on the wire (DESIGN 4.2), and that neither jobs nor nodes make it dearer."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest

from corepool.testing import Budgets, Cluster, ClusterNode, simulate_cluster
from corepool_memory.options import MemoryOptions
from tests.scenarios.looking import POOL, Keeper, Store, keys_of, ring
from tests.scenarios.wiretap import Request, Wiretap

from .counting import MESSAGE, ONE_MILLISECOND, Cost, Meter, round_trips

QUIET: dict[str, Any] = {"worker_ttl": 100_000.0, "ack_grace_period": 100_000.0, "call_timeout": 60.0}
"""So slow that nothing happens by itself while a flow is measured."""


async def _pool(cluster: Cluster, count: int, jobs: int = 0) -> tuple[Meter, list[ClusterNode], list[str]]:
    """Nodes that are at rest; the first one's worker runs so many jobs. And keys that would be its as well."""
    meter = Meter(Wiretap(cluster))
    pool = [await cluster.node(POOL, worker=Keeper(), **QUIET) for _ in range(count)]
    await cluster.eventually(lambda: all(len(ring(node).workers) == count for node in pool), within=60.0)
    await cluster.sleep(1.0)
    keys = keys_of(pool[0], jobs + 2)
    for start in range(0, jobs, 100):
        await asyncio.gather(*(pool[1].dispatch_job(key, b"payload") for key in keys[start : min(start + 100, jobs)]))
    await cluster.sleep(1.0)
    return meter, pool, keys[jobs:]


@attrs.frozen(slots=True)
class Calls:
    """What dispatching, notifying and stopping one job cost, and after how many messages its handler was called."""

    dispatch: Cost
    started: float
    notify: Cost
    stop: Cost


def _measured(nodes: int, jobs: int, *, atomic: bool = True) -> Calls:
    """Of one job on a worker that runs so many others."""
    found: list[Calls] = []

    async def scenario(cluster: Cluster) -> None:
        meter, pool, [key, _] = await _pool(cluster, nodes, jobs)
        client = pool[1]
        began = cluster.now
        dispatch = await meter.measure(cluster, client.dispatch_job(key, b"payload"))
        [tenure] = cluster.history(key)
        started = round((tenure.began - began) / MESSAGE, 3)
        notify = await meter.measure(cluster, client.notify_worker(key, b"note"))
        stop = await meter.measure(cluster, client.stop_job(key))
        found.append(Calls(dispatch, started, notify, stop))

    simulate_cluster(
        scenario,
        faults=ONE_MILLISECOND,
        store_options=MemoryOptions(atomic_commit=atomic),
        budgets=Budgets(virtual_seconds=1e6),
    ).check()
    return found[0]


@pytest.mark.parametrize(("nodes", "jobs"), [(3, 0), (30, 0), (3, 10_000)])
def test_dispatch_notify_and_stop(nodes: int, jobs: int) -> None:
    """The same numbers, and not merely the same bounds, whatever the number of nodes and of jobs on the worker."""
    cost = _measured(nodes, jobs)
    assert cost.dispatch.requests == {"commit": 3}, "answers are acknowledged later, many together"
    assert cost.dispatch.deliveries == {"sink": 2}
    assert cost.dispatch.commands <= 6
    assert cost.started <= round_trips(2, 1), "until the handler starts"
    assert cost.dispatch.path <= round_trips(3, 2), "until dispatch returns"
    for call in (cost.notify, cost.stop):
        assert call.requests == {"get": 1, "commit": 2}
        assert call.deliveries == {"sink": 2}
        assert call.commands <= 6
        assert call.path <= round_trips(3, 2)
    assert cost.dispatch.operations <= 11
    assert cost.notify.operations <= 4
    assert cost.stop.operations <= 10


def test_a_store_without_atomic_commits_pays_for_each_operation() -> None:
    """The price of the weaker promise, so that nobody is surprised by it: one command per operation, one behind the other."""
    cost = _measured(3, 0, atomic=False)
    for call, most in ((cost.dispatch, 14), (cost.notify, 7), (cost.stop, 13)):
        assert call.commands <= most
        assert call.path <= round_trips(most - 2, 2)


# --- per job, of flows that concern many --------------------------------------------------------------------------------


def _per_job(what: str, nodes: int, jobs: int = 0) -> dict[str, float]:
    """What each further job adds to a flow that takes all jobs of a worker along."""
    few, many = 20, 60
    costs = {count: _of_many(what, nodes, jobs + count) for count in (few, many)}
    more = costs[many].minus(costs[few])
    return {
        "requests": more.requests.total() / (many - few),
        "deliveries": more.deliveries["sink"] / (many - few),
        "operations": more.operations / (many - few),
    }


def _of_many(what: str, nodes: int, jobs: int) -> Cost:
    found: list[Cost] = []

    async def scenario(cluster: Cluster) -> None:
        meter, pool, _ = await _pool(cluster, nodes, jobs)
        keys = list(Store(cluster).jobs())

        async def flow() -> None:
            if what == "move":
                await pool[0].remove_worker(pool[0].workers[0])
            elif what == "takeover":
                await cluster.crash(pool[0])
            else:  # cut off for so long that it stops its jobs, and for too short a time for others to take them
                await cluster.partition(pool[0])
                await cluster.sleep(0.85 * QUIET["worker_ttl"])
                assert not any(map(cluster.running, keys))
                await cluster.heal(pool[0])
            await cluster.eventually(
                lambda: all(len(cluster.running(key)) == 1 for key in keys), within=4 * QUIET["worker_ttl"], every=100.0
            )

        meter.reset()
        await flow()
        await cluster.sleep(1.0)
        found.append(meter.total)

    simulate_cluster(scenario, faults=ONE_MILLISECOND, budgets=Budgets(virtual_seconds=1e7)).check()
    return found[0]


@attrs.frozen(slots=True)
class Way:
    """One job's way to its next owner, in messages since it was released (by its owner, or by the cleaner of a dead one).

    found: before that, since the dead worker's tombstone was written; 0 for a move.
    writes: when each commit that writes the record was sent. stopped, started: when a handler let go of it, when the next
    one began.
    """

    found: float
    writes: list[float]
    stopped: float
    started: float


def _way(what: str, nodes: int) -> Way:
    """Of the only job of a worker that is removed, or whose node crashes."""
    ways: list[Way] = []

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        _, pool, _ = await _pool(cluster, nodes, jobs=1)
        [key] = Store(cluster).jobs()
        writes: list[float] = []
        tombstones: list[float] = []

        def note(request: Request) -> None:
            if any(op.key == key for op in request.sets("jobs.")):
                writes.append(cluster.now)
            elif request.what == "set" and any(request.sets("worker_keep_alive.")):
                tombstones.append(cluster.now)

        tap.on_request.append(note)
        if what == "move":
            await pool[0].remove_worker(pool[0].workers[0])
        else:
            await cluster.crash(pool[0])
        await cluster.eventually(lambda: len(cluster.history(key)) == 2, within=4 * QUIET["worker_ttl"], every=100.0)
        await cluster.sleep(1.0)
        before, after = cluster.history(key)
        assert before.ended is not None
        began = writes[0]

        def since(then: float) -> float:
            return round((then - began) / MESSAGE, 3)

        found = -since(tombstones[0]) if tombstones else 0.0
        ways.append(Way(found, list(map(since, writes)), since(before.ended), since(after.began)))

    simulate_cluster(scenario, faults=ONE_MILLISECOND, budgets=Budgets(virtual_seconds=1e7)).check()
    return ways[0]


@pytest.mark.parametrize("nodes", [3, 30])
@pytest.mark.parametrize("what", ["move", "takeover"])
def test_the_path_of_one_job_to_its_next_owner(what: str, nodes: int) -> None:
    """As of a dispatch, whose record and doorbell are one commit as well: two sequential round trips and a delivery until the
    handler starts, a third until the record says so."""
    way = _way(what, nodes)
    release, claim, confirm = way.writes
    assert (release, way.started) == (0.0, confirm), "nothing is waited for between handler.start and the confirmation"
    assert claim <= round_trips(1, 1) - 1, "the doorbell is on its way before the owner hears of its release"
    assert way.started <= round_trips(2, 1)
    assert confirm + round_trips(1, 0) <= round_trips(3, 1)
    if what == "move":
        assert way.stopped == release, "nothing is waited for between handler.stop and the release"
    else:
        assert 0 < way.found <= round_trips(9, 0), "tombstone, lock, and what is listed of the dead, whatever there is"


@pytest.mark.parametrize("nodes", [3, 30])
def test_a_move_of_each_job(nodes: int) -> None:
    """The old owner releases it and rings; the next one claims it and confirms: three commits, one delivery."""
    cost = _per_job("move", nodes)
    assert cost["requests"] == 3
    assert cost["deliveries"] <= 1
    assert cost["operations"] <= 12


@pytest.mark.parametrize("nodes", [3, 30])
def test_a_takeover_of_each_job(nodes: int) -> None:
    """As a move, with the cleaner in the place of the old owner, who reads the records of all jobs in a few requests."""
    cost = _per_job("takeover", nodes)
    assert cost["requests"] <= 3.1
    assert cost["deliveries"] <= 1
    assert cost["operations"] <= 12


def test_a_worker_that_holds_its_lease_again_claims_and_confirms_each_job() -> None:
    """What the review has read of all jobs in a few requests need not be read again of each."""
    cost = _per_job("cut off", 3)
    assert cost["requests"] <= 2.1
    assert cost["deliveries"] <= 0
    assert cost["operations"] <= 8


def test_answers_are_acknowledged_together() -> None:
    """And none comes a second time."""

    async def scenario(cluster: Cluster) -> None:
        meter = Meter(Wiretap(cluster))
        client = await cluster.node(POOL, client_only=True, **{**QUIET, "ack_grace_period": 40.0})
        await cluster.node(POOL, worker=Keeper(), **{**QUIET, "ack_grace_period": 40.0})
        await cluster.sleep(1.0)
        meter.reset()
        for number in range(30):
            await client.dispatch_job(f"job-{number}", b"payload")
        await cluster.sleep(11.0)
        assert meter.of[client.name].requests["ack"] == 1
        meter.reset()
        await cluster.sleep(100.0)
        assert client.name not in meter.of or not meter.of[client.name].deliveries

    simulate_cluster(scenario, faults=ONE_MILLISECOND, budgets=Budgets(virtual_seconds=1e6)).check()
