"""The server is killed with SIGKILL and started again while a thousand jobs are dispatched to worker processes.

Valkey and Redis write their file before they answer (``appendonly``, fsync every second), NATS stores in files: a process that
dies loses nothing that it acknowledged. The third outage outlasts the leases: every worker fences itself and starts its jobs
anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drivers.cluster import OPTIONS, TTL, Cluster, settled, summary
from tests.servers.live import LiveServer, make_server
from tests.waiting import until

JOBS = 1000
CALLERS = 32
OUTAGES = ((200, 0.0), (450, 0.0), (700, 1.2 * TTL))
"""After how many calls the server is killed, and for how many seconds it stays away."""


@pytest.fixture
def own_server(server_name: str, tmp_path: Path) -> Iterator[LiveServer]:
    server = make_server(server_name, tmp_path / "server")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.mark.timeout(180)
async def test_the_server_dies_in_the_middle_of_a_thousand_dispatches(own_server: LiveServer, tmp_path: Path) -> None:
    async with Cluster(own_server.url, tmp_path / "cluster") as cluster:
        await cluster.start(2)
        dispatching = asyncio.create_task(cluster.dispatch_all(JOBS, CALLERS))
        for calls, away in OUTAGES:
            await until(lambda calls=calls: len(cluster.dispatches) >= calls, within=60)  # type: ignore[misc]
            own_server.kill()
            await asyncio.sleep(away)  # leases run out in real time
            own_server.start()
        async with asyncio.timeout(100):
            seconds = await dispatching
        back = time.monotonic()

        promised = {call.key for call in cluster.dispatches if call.error is None}
        unclear = {call.key for call in cluster.dispatches if call.error is not None} - promised
        await settled(cluster, promised)
        longest = max(call.returned - call.invoked for call in cluster.dispatches if call.returned is not None)
        tokens = {effect.token.generation for effect in cluster.effects()}
        starts = len(cluster.effects())
        print(
            f"{JOBS} jobs over {len(OUTAGES)} outages in {seconds:.1f} s: {summary(cluster.dispatches)}; "
            f"{len(promised)} acknowledged, none lost; {len(unclear)} unclear; longest call {longest:.1f} s; "
            f"{starts} starts; settled {time.monotonic() - back:.1f} s after the last call"
        )
        assert len(promised) > JOBS * 0.8, "an outage costs the calls that are under way, and no more"
        assert starts > len(promised), "the long outage was long enough for the workers to fence themselves"
        assert longest < 2 * OPTIONS["call_timeout"]
        assert tokens == {0}, "the store lost nothing, and nobody thought it had"
        cluster.judge()
