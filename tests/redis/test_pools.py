"""Pools of worker processes on a cluster and behind Sentinels, while slots move, workers die and primaries die.

Each handler writes down what it does; the judge of ``corepool.testing`` decides. The figures are printed.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from corepool.testing.history import Dispatch, judge_end
from corepool_redis.keys import scope_of
from corepool_redis.routes import slot_of
from tests.drivers.cluster import OPTIONS, TTL, Cluster, in_place, settled, summary
from tests.redis.test_failover import is_replica, migrate, owner
from tests.servers.valkey import Server, command, running, start_cluster, start_sentinel
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)
JOBS = 600
CALLERS = 16
LONG = 12.0
"""A time to live that outlasts a failover."""
FOUND = 0.5
"""Seconds within which no Sentinel finds out that the primary is gone."""
BALLAST = b"x" * 2**25
"""More than the sockets between two servers hold: what is written after it stays in the primary while its replica sleeps."""


async def test_a_pool_on_a_cluster_while_its_slot_moves_and_a_worker_dies(binary: Path, tmp_path: Path) -> None:
    servers: list[Server] = []
    with running(servers):
        servers += start_cluster(binary, tmp_path / "servers")
        async with Cluster(f"redis+cluster://127.0.0.1:{servers[0].port}", tmp_path / "cluster") as cluster:
            await cluster.start(3)
            slot = slot_of(scope_of(cluster.pool))
            hosts = [owner(servers, slot)]
            dispatching = asyncio.create_task(cluster.dispatch_all(JOBS, CALLERS))
            for calls in (JOBS // 6, JOBS // 2):
                await until(lambda calls=calls: len(cluster.dispatches) >= calls)  # type: ignore[misc]
                target = next(server for server in servers if server not in hosts)
                await migrate(servers, slot, target, pause=0.01)  # of some 60 keys: well within a call's time
                hosts.append(owner(servers, slot))
            seconds = await dispatching
            assert len(set(hosts)) == 3, "each primary had the pool once"
            assert len({call.key for call in cluster.dispatches if call.error is None}) == JOBS
            longest = max(call.returned - call.invoked for call in cluster.dispatches if call.returned is not None)

            before = cluster.running()
            assert len(before) == JOBS
            victim = cluster.processes[1]
            orphans = {key for key, effect in before.items() if effect.owner == victim.name}
            assert orphans
            killed = await victim.kill()
            await until(lambda: len(cluster.running()) == JOBS, 4 * TTL)
            after = cluster.running()
            late = max(after[key].running - killed for key in orphans)  # type: ignore[operator]
            print(
                f"{JOBS} jobs over two moves of the slot in {seconds:.1f} s: {summary(cluster.dispatches)}, longest call "
                f"{longest:.2f} s; {len(orphans)} of a killed worker run elsewhere within {late:.2f} s (bound {2 * TTL + 2:g})"
            )
            assert late <= 2 * TTL + 2
            assert all(after[key] == effect for key, effect in before.items() if key not in orphans)
            assert {effect.token.generation for effect in cluster.effects()} == {0}, "a slot that moves loses nothing"
            cluster.judge()


@pytest.mark.parametrize(
    ("lagging", "ttl"),
    [(False, LONG), (True, LONG), (True, TTL)],
    ids=["replica up to date", "replica lags", "replica lags and leases end"],
)
async def test_the_primary_dies_in_the_middle_of_dispatches(
    binary: Path, tmp_path: Path, lagging: bool, ttl: float
) -> None:
    """SIGKILL, and the Sentinels fail over to the replica. Replication is asynchronous: what the primary acknowledged while the
    replica lagged is not there. Workers whose leases outlive the failover write again what they run: no acknowledged job is
    lost. Where they do not, just those can be gone that were dispatched in that moment (docs/redis.md); nobody runs them, and
    their keys are free.
    """
    servers, sentinels = start_sentinel(binary, tmp_path / "servers")
    primary, replica = servers
    with running([*sentinels, *servers]):
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in sentinels)
        async with Cluster(f"redis+sentinel://{hosts}/pool", tmp_path / "cluster", worker_ttl=ttl) as cluster:
            await cluster.start(2)
            dispatching = asyncio.create_task(cluster.dispatch_all(JOBS, CALLERS))
            await until(lambda: len(cluster.dispatches) >= JOBS // 3)
            if lagging:
                replica.pause()
                command(primary.port, "SET", "ballast", BALLAST)
            behind, before = time.monotonic(), len(cluster.dispatches)
            await until(lambda: len(cluster.dispatches) >= before + JOBS // 6)
            primary.kill()
            killed = time.monotonic()
            if lagging:
                replica.resume()
            seconds = await dispatching
            assert not is_replica(replica)
            assert command(replica.port, "EXISTS", "ballast") == 0, "the replica did lag"

            acked = [call for call in cluster.dispatches if call.error is None]
            kept = [call for call in acked if ttl == LONG or not behind <= _returned(call) <= killed + FOUND]
            await settled(cluster, {call.key for call in kept})
            there = set(await cluster.client.job_keys())
            await until(lambda: in_place(cluster, there))  # who fenced himself comes back, and jobs move
            lost = [call for call in acked if call.key not in there]
            stray = cluster.running().keys() - {call.key for call in acked}
            unsent = sum(1 for call in acked if behind <= _returned(call) <= killed) if lagging else 0
            longest = max(_returned(call) - call.invoked for call in cluster.dispatches)
            print(
                f"{JOBS} jobs over the death of the primary in {seconds:.1f} s: {summary(cluster.dispatches)}; {len(acked)} "
                f"acknowledged, {unsent} of them unknown to the replica, {len(lost)} lost; longest call {longest:.1f} s; "
                f"{len(stray)} of the others run; {len(cluster.effects())} starts"
            )
            assert len(acked) > JOBS * 0.8
            assert longest < 2 * OPTIONS["call_timeout"]
            if not lagging:
                cluster.judge()
                return
            assert unsent >= JOBS // 12
            again = await asyncio.gather(*(cluster.dispatch(call.key) for call in lost))
            assert [call.error for call in again] == [None] * len(lost)
            await settled(cluster, {call.key for call in [*kept, *again]})
            judge_end([call for call in cluster.dispatches if call not in lost], [], cluster.effects())


def _returned(call: Dispatch) -> float:
    assert call.returned is not None
    return call.returned
