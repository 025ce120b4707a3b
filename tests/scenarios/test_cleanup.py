"""Named scenarios: those who clean up after the dead, in each other's way, and dying themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from corepool.pool.wire import JobState
from corepool.testing import Cluster, ClusterNode

from .conftest import Simulated
from .looking import FOUND, POLL, QUICK, TTL, Store, keys_of, nodes
from .wiretap import Match, Request, Wiretap, both, cleanup_lock, writes_job

MOVED = FOUND
"""Until a death is found, and the time that moving a few jobs takes."""
CLEANER_DIED_TOO = FOUND + max(TTL + 2 * POLL, 2.5 * QUICK["ack_grace_period"])
"""Until its death is found, and then: its lock was seen to be stale by one who looked at it twice; or, of a record that it had
released without ringing, the next warden's sweeper has seen twice that nobody acts on it."""


async def _with_jobs(cluster: Cluster, count: int, jobs: int = 6) -> tuple[list[ClusterNode], str, list[str]]:
    """Nodes, the worker of the first of them, and its jobs."""
    pool = await nodes(cluster, count)
    keys = keys_of(pool[0], jobs)
    for key in keys:
        await pool[0].dispatch_job(key)
    [worker] = pool[0].workers
    return pool, worker.id, keys


def _all_run(cluster: Cluster, keys: list[str], where: list[ClusterNode]) -> bool:
    return all(len(cluster.running(key)) == 1 and cluster.running(key)[0] in where for key in keys)


def test_two_cleaners_of_one_worker(simulated: Simulated) -> None:
    """Both have seen that the lock is free, and reach for it. One gets it; each job is moved once."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        pool, dead, keys = await _with_jobs(cluster, 4)
        gate = tap.hold(cleanup_lock(dead))
        await cluster.crash(pool[0])
        await asyncio.wait_for(gate.reached(2), 4 * TTL)
        cluster.sometimes("two cleaners reached for one lock", len({held.machine for held in gate.waiting}) >= 2)
        moves: list[Request] = []
        tap.applied(writes_job(JobState.PENDING), moves.append, times=100)
        gate.open()
        await cluster.eventually(lambda: _all_run(cluster, keys, pool[1:]), within=TTL)
        await Store(cluster).tidy()
        assert len({request.machine for request in moves}) == 1, "more than one of them moved jobs"
        for key in keys:
            assert len(cluster.history(key)) == 2
            record = Store(cluster).job(key)
            assert record is not None
            assert record.epoch == 1

    simulated(scenario, reaches=["two cleaners reached for one lock"])


STAGES: dict[str, Callable[[str], Match]] = {
    "after the tombstone": lambda dead: (
        lambda request: any(op.key == dead for op in request.sets("worker_keep_alive."))
    ),
    "after it took the lock": cleanup_lock,
    "after it marked the worker dead": lambda dead: (
        lambda request: any(op.key == dead for op in request.sets("workers."))
    ),
    "after it moved a job": lambda dead: writes_job(JobState.PENDING),
    "after it moved half of the jobs": lambda dead: writes_job(JobState.PENDING),
    "after it sealed the inbox": lambda dead: lambda request: request.calls("seal", f"worker:{dead}"),
    "after it destroyed the inbox": lambda dead: lambda request: request.calls("destroy", f"worker:{dead}"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_cleaner_dies_midway(simulated: Simulated, stage: str) -> None:
    """Whatever it had done, the next one finishes: no job is lost, and nothing of the dead is left."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        pool, dead, keys = await _with_jobs(cluster, 5)
        seen: list[str] = []
        enough = len(keys) // 2 if "half" in stage else 1

        def power_cut(request: Request) -> None:
            seen.append(request.machine)
            if len(seen) == enough:
                cluster.hit_crash(request.machine)

        of_another: Match = lambda request: request.machine != pool[0].name  # noqa: E731
        tap.applied(both(of_another, STAGES[stage](dead)), power_cut, times=enough)
        await cluster.crash(pool[0])
        await cluster.eventually(lambda: len(seen) == enough, within=MOVED)
        cluster.sometimes("the cleaner died in the middle", any(not node.alive for node in pool[1:]))
        left = [node for node in pool if node.alive]
        assert len(left) == 3
        # The cleaner is found dead like anyone; its lock is stale a time to live after it was first seen to stand.
        await cluster.eventually(lambda: _all_run(cluster, keys, left), within=CLEANER_DIED_TOO)
        await Store(cluster).tidy()
        assert set(Store(cluster).workers()) == {worker.id for node in left for worker in node.workers}

    simulated(scenario, reaches=["the cleaner died in the middle"])


def test_a_cleaner_that_sleeps_past_its_lock(simulated: Simulated) -> None:
    """Another takes the stale lock over by its revision and finishes. The sleeper wakes up and destroys nothing (R12)."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        pool, dead, keys = await _with_jobs(cluster, 5)
        gate = tap.hold(writes_job(JobState.PENDING), times=1)
        await cluster.crash(pool[0])
        await gate.reached()
        sleeper = next(node for node in pool if node.name == gate.seen[0].machine)
        await cluster.pause(sleeper)
        gate.open()
        awake = [node for node in pool[1:] if node is not sleeper]
        await cluster.eventually(lambda: _all_run(cluster, keys, awake), within=CLEANER_DIED_TOO)
        await cluster.eventually(lambda: dead not in Store(cluster).workers(), within=CLEANER_DIED_TOO)
        before = {key: Store(cluster).jobs()[key].job_id for key in keys}
        cluster.sometimes("the sleeper woke up in the middle of a cleanup", bool(gate.waiting))
        await cluster.resume(sleeper)
        await Store(cluster).tidy()
        assert {key: record.job_id for key, record in Store(cluster).jobs().items()} == before
        assert all(len(cluster.running(key)) == 1 for key in keys)

    simulated(scenario, reaches=["the sleeper woke up in the middle of a cleanup"])


def test_a_stale_lock_is_taken_over_by_one_of_two(simulated: Simulated) -> None:
    """The cleaner dies with the lock in its hand. Two others find it stale at once: delete-then-create would let both in."""

    async def scenario(cluster: Cluster) -> None:
        tap = Wiretap(cluster)
        pool, dead, keys = await _with_jobs(cluster, 5)
        first = tap.applied(cleanup_lock(dead), lambda request: cluster.hit_crash(request.machine))
        await cluster.crash(pool[0])
        await cluster.eventually(lambda: first.hits, within=MOVED)
        gate = tap.hold(
            both(cleanup_lock(dead), lambda request: any(op.when.revision for op in request.sets("worker_cleanup.")))
        )
        await asyncio.wait_for(gate.reached(2), CLEANER_DIED_TOO)
        cluster.sometimes("two took over one stale lock", len({held.machine for held in gate.waiting}) == 2)
        moves: list[Request] = []
        of_the_dead: Match = lambda request: any(op.key in keys for op in request.sets("jobs."))  # noqa: E731
        tap.applied(both(of_the_dead, writes_job(JobState.PENDING)), moves.append, times=100)
        gate.open()
        left = [node for node in pool if node.alive]
        await cluster.eventually(lambda: _all_run(cluster, keys, left), within=TTL)
        assert len({request.machine for request in moves}) == 1, "more than one of them moved jobs"
        await Store(cluster).tidy()

    simulated(scenario, reaches=["two took over one stale lock"])


def test_everybody_but_one_dies_at_once(simulated: Simulated) -> None:
    """No neighbour of most of the dead is left to notice. On a first suspicion the survivor looks at everybody (R10)."""

    async def scenario(cluster: Cluster) -> None:
        pool = await nodes(cluster, 7)
        keys = [f"k{number}" for number in range(20)]
        for key in keys:
            await pool[0].dispatch_job(key)
        await cluster.sleep(2 * TTL)
        for node in pool[:6]:
            await cluster.crash(node)
        cluster.sometimes("more died than a node watches", sum(not node.alive for node in pool) > 3)
        await cluster.eventually(lambda: _all_run(cluster, keys, pool[6:]), within=MOVED)
        await Store(cluster).tidy()
        assert len(Store(cluster).workers()) == 1
        assert len(Store(cluster).map("nodes")) == 1

    simulated(scenario, reaches=["more died than a node watches"])
