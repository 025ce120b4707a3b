"""Memory and time per job as a pool grows: ``python benchmarks/growth.py``.

One process holds the store and all nodes, so the memory is that of everything together: the store's records and payloads, and
what the owner of each job keeps. The rate is per second of processor time, which hardly depends on what else runs on the
machine. The last job costs what the first did, and nothing that is done for a job is done for each node: the commands are
the same (tests/budgets). The rate still falls with the nodes, for one thing because less is shared: the 64 jobs that are under
way together reach one worker in a few deliveries, and a hundred workers in 64. benchmarks/README.md has the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import time
import tracemalloc

from corepool import Job, Node
from corepool.driver import SystemClock
from corepool_memory.backend import MemoryBackend
from corepool_memory.server import Server
from corepool_memory.transport import EmbeddedTransport

DISPATCHERS = 64


class Nothing:
    """A handler that does nothing and keeps nothing."""

    async def start(self, job: Job) -> None: ...

    async def stop(self, key: str) -> None: ...


async def grow(nodes: int, jobs: int, *, traced: bool) -> tuple[float, float]:
    """The last tenth of so many jobs on so many nodes: jobs per processor second, and bytes per job."""
    loop = asyncio.get_running_loop()
    server = Server(clock=SystemClock(), call_later=loop.call_later, random=random.Random(0))
    pool: list[Node] = []
    for number in range(nodes):
        transport = EmbeddedTransport(server, SystemClock(), random.Random(number))
        pool.append(await Node.open(MemoryBackend(transport), "growth", worker_ttl=300.0))
        await pool[-1].add_worker(Nothing())
    await _dispatch(pool[0], 0, jobs - jobs // 10)
    gc.collect()
    before, cpu = _memory(traced), time.process_time()
    await _dispatch(pool[0], jobs - jobs // 10, jobs)
    rate = (jobs // 10) / (time.process_time() - cpu)
    gc.collect()
    taken = (_memory(traced) - before) / (jobs // 10)
    for node in pool:
        await node.abandon()
    return rate, taken


def _memory(traced: bool) -> int:
    return tracemalloc.get_traced_memory()[0] if traced else 0


async def _dispatch(node: Node, first: int, end: int) -> None:
    numbers = iter(range(first, end))

    async def one_after_the_other() -> None:
        for number in numbers:
            await node.dispatch_job(f"https://example.org/feeds/{number}", b"payload")

    await asyncio.gather(*(one_after_the_other() for _ in range(DISPATCHERS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 10, 100])
    arguments = parser.parse_args()
    print(f"{'nodes':>6} {'jobs':>8} {'started per s':>14} {'bytes per job':>14}")
    for nodes in arguments.nodes:
        for jobs in arguments.jobs:
            rate, _ = asyncio.run(grow(nodes, jobs, traced=False))
            tracemalloc.start()  # apart from the timing, which it would spoil
            _, taken = asyncio.run(grow(nodes, jobs, traced=True))
            tracemalloc.stop()
            print(f"{nodes:>6} {jobs:>8,} {rate:>14,.0f} {taken:>14,.0f}", flush=True)


if __name__ == "__main__":
    main()
