"""Worker processes with a thousand jobs on real servers: one is killed, one is told to go, one hangs and wakes up.

Each handler writes down what it does, with fencing token and time; the judge of ``corepool.testing`` decides whether any job
was lost or had two live owners. The figures are printed.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from corepool import FencingToken
from tests.drivers.cluster import TTL, Cluster, Process, in_place, settled, summary
from tests.waiting import until

JOBS = 1000
CALLERS = 32


@pytest.mark.timeout(120)
async def test_a_killed_process_is_replaced_in_time(server_url: str, tmp_path: Path) -> None:
    async with Cluster(server_url, tmp_path) as cluster:
        await cluster.start(3)
        seconds = await cluster.dispatch_all(JOBS, CALLERS)
        assert summary(cluster.dispatches) == f"{JOBS} started"
        before = cluster.running()
        assert len(before) == JOBS
        victim = cluster.processes[1]
        orphans = {key for key, effect in before.items() if effect.owner == victim.name}
        assert len(orphans) > JOBS / 6, "the placement gives each worker its share"

        killed = await victim.kill()
        await until(
            lambda: len(cluster.running()) == JOBS, 4 * TTL, lambda: f"only {len(cluster.running())} of {JOBS} run"
        )
        after = cluster.running()
        late = sorted(after[key].running - killed for key in orphans)  # type: ignore[operator]
        print(
            f"{JOBS} jobs dispatched in {seconds:.1f} s; {len(orphans)} were the victim's and run elsewhere "
            f"{late[0]:.2f} to {late[-1]:.2f} s after SIGKILL (bound {2 * TTL + 2:g} s)"
        )
        assert late[-1] <= 2 * TTL + 2
        moved = [key for key, effect in before.items() if key not in orphans and after[key] != effect]
        assert not moved, "jobs of the survivors stay where they are"
        await until(lambda: len(cluster.client.pool_workers()) == 2, within=2 * TTL)
        cluster.judge()


@pytest.mark.timeout(90)
async def test_a_process_that_is_told_to_go_hands_its_jobs_over_first(server_url: str, tmp_path: Path) -> None:
    async with Cluster(server_url, tmp_path) as cluster:
        await cluster.start(3)
        await cluster.dispatch_all(JOBS // 2, CALLERS)
        assert summary(cluster.dispatches) == f"{JOBS // 2} started"
        before = cluster.running()
        leaver = cluster.processes[0]
        handed = {key for key, effect in before.items() if effect.owner == leaver.name}
        assert handed

        code = await leaver.terminate(within=15)
        assert code == 0, leaver.words
        assert leaver.gone is not None
        kept = [effect.key for effect in leaver.effects() if effect.ended == leaver.gone]
        assert not kept, "every handler was stopped before the process ended"
        assert await cluster.client.job_keys() == sorted(before)
        await until(lambda: len(cluster.running()) == len(before), within=4 * TTL)
        after = cluster.running()
        late = max(after[key].running - leaver.gone for key in handed)  # type: ignore[operator]
        print(f"{len(handed)} jobs handed over; the last one ran elsewhere {late:+.2f} s after the process had ended")
        assert late < TTL / 2, "nobody had to find out that the process was gone"
        moved = [key for key, effect in before.items() if key not in handed and after[key] != effect]
        assert not moved
        assert len(cluster.client.pool_workers()) == 2
        cluster.judge()


@pytest.mark.timeout(90)
async def test_a_process_that_hung_stops_its_jobs_when_it_wakes_up(server_url: str, tmp_path: Path) -> None:
    async with Cluster(server_url, tmp_path) as cluster:
        await cluster.start(2)
        await cluster.dispatch_all(JOBS // 5, CALLERS)
        before = cluster.running()
        sleeper = cluster.processes[0]
        stale = {key: effect for key, effect in before.items() if effect.owner == sleeper.name}
        assert stale

        sleeper.pause()
        awake = cluster.processes[1]
        await until(lambda: len(_has(awake)) == len(before), within=4 * TTL)
        resumed = time.monotonic()
        sleeper.resume()
        await until(lambda: not _has(sleeper) & {(key, effect.token) for key, effect in stale.items()}, within=TTL)
        stopped = [effect.ended for effect in sleeper.effects() if effect.suspended and effect.ended is not None]
        print(
            f"{len(stopped)} jobs were taken over and stopped {max(stopped) - resumed:.2f} s after the process woke up"
        )
        await until(lambda: bool(_has(sleeper)), within=4 * TTL)  # back under a new id, it gets its share
        await until(lambda: in_place(cluster, set(before)), 4 * TTL)
        await settled(cluster, set(before))
        taken = {key: token for key, token in _has(awake, ever=True) if key in stale}
        assert all(token > stale[key].token for key, token in taken.items()), "the token tells the newer owner"
        cluster.judge()


def _has(process: Process, *, ever: bool = False) -> set[tuple[str, FencingToken]]:
    """The jobs that it has now, or ever had, with their tokens."""
    return {(effect.key, effect.token) for effect in process.effects() if ever or effect.ended is None}
