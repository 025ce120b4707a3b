"""Three NATS servers with three replicas: the leader of the pool's records is killed in the middle of a thousand dispatches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from corepool.driver import connect
from corepool_nats.backend import NatsBackend
from tests.drivers.cluster import OPTIONS, Cluster, settled, summary
from tests.nats.test_chaos import leader_of
from tests.servers.nats import NatsCluster
from tests.waiting import until

JOBS = 1000
CALLERS = 32


@pytest.fixture
def nats_cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    nats = NatsCluster(directory=tmp_path / "nats")
    try:
        nats.start()
        yield nats
    finally:
        for server in nats.servers:
            server.kill()


@pytest.mark.timeout(180)
async def test_the_leader_dies_in_the_middle_of_a_thousand_dispatches(
    nats_cluster: NatsCluster, tmp_path: Path
) -> None:
    url = f"{nats_cluster.url}?replicas=3"
    async with Cluster(url, tmp_path / "cluster") as cluster:
        await cluster.start(2)
        async with connect(url) as backend:
            assert isinstance(backend, NatsBackend)
            leader = await leader_of(nats_cluster, backend, backend.namespace(cluster.pool).assets.maps.asset)
        dispatching = asyncio.create_task(cluster.dispatch_all(JOBS, CALLERS))
        await until(lambda: len(cluster.dispatches) >= JOBS // 2, within=60)
        leader.kill()
        async with asyncio.timeout(100):
            seconds = await dispatching
        back = time.monotonic()

        promised = {call.key for call in cluster.dispatches if call.error is None}
        await settled(cluster, promised)
        longest = max(call.returned - call.invoked for call in cluster.dispatches if call.returned is not None)
        print(
            f"{JOBS} jobs over the death of the leader in {seconds:.1f} s: {summary(cluster.dispatches)}; "
            f"{len(promised)} acknowledged, none lost; longest call {longest:.1f} s; {len(cluster.effects())} starts; "
            f"settled {time.monotonic() - back:.1f} s after the last call"
        )
        assert len(promised) > JOBS * 0.8
        assert longest < 2 * OPTIONS["call_timeout"]
        cluster.judge()
