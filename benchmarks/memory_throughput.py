"""How many jobs a second the pool starts on the in-memory store: ``python benchmarks/memory_throughput.py``.

One process, one event loop, one node with one worker whose handler does nothing, 64 dispatchers that each await their job. What
is measured is the pool itself, without a network: every job is admitted, claimed, started and confirmed, and its dispatcher
answered. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time

import attrs

from corepool import Job, Node
from corepool.driver import open_backend


class Nothing:
    """A handler that does nothing."""

    async def start(self, job: Job) -> None: ...

    async def stop(self, key: str) -> None: ...


@attrs.frozen(slots=True)
class Rate:
    """Jobs per second by the clock, and per second of processor time: the latter hardly depends on what else runs here."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:,.0f}/s ({self.cpu:,.0f} per processor second)"


async def measure(jobs: int, dispatchers: int) -> tuple[Rate, Rate]:
    """How fast jobs are started (until dispatch returned), and stopped."""
    backend = await open_backend("memory://")
    async with Node(backend, "benchmark") as node:
        await node.add_worker(Nothing())

        async def each(call: str) -> Rate:
            keys = iter(range(jobs))

            async def one_after_the_other() -> None:
                for number in keys:
                    await getattr(node, call)(f"job-{number}")

            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(one_after_the_other() for _ in range(dispatchers)))
            return Rate(jobs / (time.perf_counter() - wall), jobs / (time.process_time() - cpu))

        found = await each("dispatch_job"), await each("stop_job")
    await backend.aclose()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--dispatchers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for number in range(arguments.rounds):
        started, stopped = asyncio.run(measure(arguments.jobs, arguments.dispatchers))
        print(f"round {number + 1}: started {started}, stopped {stopped}")


if __name__ == "__main__":
    main()
