"""Memory and time as a pool grows: a node's share alone counts, and local reads stay local."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from corepool import Job, Node, ReplicatedMap
from corepool.driver import ALWAYS, SystemClock, open_backend
from corepool.pool.placement import JumpHash, MultiProbe
from corepool.pool.wire import JobRecord, JobState, encode
from corepool_memory.backend import MemoryBackend
from corepool_memory.server import Server
from corepool_memory.transport import EmbeddedTransport

POOL = "feeds"
RECORDS, OWN = 100_000, 1_000
MIB = 1024 * 1024


class Small:
    """A handler that keeps nothing of its own."""

    async def start(self, job: Job) -> None: ...

    async def stop(self, key: str) -> None: ...


@pytest.fixture
def traced() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    yield
    tracemalloc.stop()


def _server_with(records: int) -> Server:
    """A store that holds so many running jobs of somebody else's, with payloads, as the pool would have written them."""
    loop = asyncio.get_running_loop()
    server = Server(clock=SystemClock(), call_later=loop.call_later, random=random.Random(1))
    maps = server.maps(POOL)
    for number in range(records):
        key, job_id = f"https://example.org/feeds/{number}", f"j{number:020x}"
        record = JobRecord(JobState.RUNNING, job_id, f"w{number % 99:020x}", started=True, token=number + 1)
        maps.set("jobs.1", key, encode(record), ALWAYS)
        maps.set("job_payloads.1", job_id, b"payload", ALWAYS)
    return server


async def _grown(server: Server, jobs: int) -> int:
    """How many bytes are taken by a node that starts so many jobs, with what the store holds of them."""
    transport = EmbeddedTransport(server, SystemClock(), random.Random(jobs))
    before = tracemalloc.get_traced_memory()[0]
    node = await Node.open(MemoryBackend(transport), POOL)
    await node.add_worker(Small())
    for start in range(0, jobs, 50):
        await asyncio.gather(*(node.dispatch_job(f"own-{number}", b"x" * 100) for number in range(start, start + 50)))
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    await (node.abandon() if jobs else node.close())
    return taken


@pytest.mark.usefixtures("traced")
@pytest.mark.timeout(120)
async def test_a_node_with_one_percent_of_100_000_jobs() -> None:
    """It stays under 60 MiB above an empty one. The jobs of others are in the store, and cost it nothing."""
    tracemalloc.stop()  # what the store itself holds is not the node's
    server = _server_with(RECORDS)
    tracemalloc.start()
    empty = await _grown(server, 0)
    owner = await _grown(server, OWN)
    assert empty < MIB, "an empty node holds nothing of 100,000 jobs"
    assert owner - empty < 60 * MIB
    assert owner - empty < 16 * 1024 * OWN, "16 KiB per job, the store's own records of it included"


def _best(function: Callable[[], object], calls: int, rounds: int = 25) -> float:
    """Seconds of processor time per call, in the best of several rounds: the machine may be busy with other things."""
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(calls):
            function()
        best = min(best, time.process_time() - began)
    return best / calls


async def test_a_replicated_get_takes_less_than_a_microsecond() -> None:
    backend = await open_backend("memory://")
    async with await ReplicatedMap.join(backend, "m") as members:
        for number in range(1000):
            await members.set(f"k{number}", "v")
        await members.set_and_wait("k", "v")
        get = members.get
        assert _best(lambda: get("k"), 10_000) < 1e-6 + _best(lambda: None, 10_000)
    await backend.aclose()


@pytest.mark.parametrize("strategy", [MultiProbe(), JumpHash()], ids=["multiprobe", "jump"])
def test_a_lookup_among_100_workers_takes_less_than_10_microseconds(strategy: MultiProbe | JumpHash) -> None:
    """Of a key that was never looked up before."""
    placer = strategy.place([f"w{number:020x}" for number in range(100)])
    fresh = iter([f"https://example.org/feeds/{number}" for number in range(25 * 2000)])
    assert _best(lambda: placer.owner(next(fresh)), 2000) < 10e-6
