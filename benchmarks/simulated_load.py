"""How much faster than real time a simulated pool runs: ``python benchmarks/simulated_load.py``.

Five nodes with a worker each, a keep-alive a second, ten jobs dispatched a second and stopped again later, under every kind of
fault at the default rates, for as many virtual minutes as asked. Then the faults stop, and every job must be gone. Ownership
is checked after every step, as in any simulation. What is counted is processor time.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from functools import partial

from corepool import CorepoolError, Job, JobNotFoundError
from corepool.testing import Budgets, Cluster, ClusterNode, Faults, simulate_cluster
from corepool_memory.sim.errors import NodeCrashed

NODES, JOBS_PER_SECOND, LIFE = 5, 10, 5.0
WORKER_TTL = 5.0  # a keep-alive is due every fifth of it


class Nothing:
    """A handler that does nothing."""

    async def start(self, job: Job) -> None: ...

    async def stop(self, key: str) -> None: ...


async def load(minutes: float, cluster: Cluster) -> None:
    """Dispatch at a steady rate, each job for ``LIFE`` seconds. A stop is tried until the job is surely gone, also where nobody
    knows what became of the dispatch: else jobs would be left behind, and the load would grow with them."""
    nodes = [
        await cluster.node("load", worker=Nothing, worker_ttl=WORKER_TTL, ack_grace_period=4.0) for _ in range(NODES)
    ]

    async def some_node(number: int) -> ClusterNode:
        while not (up := [node for node in nodes if node.up]):
            await cluster.sleep(1.0)
        return up[number % len(up)]

    async def one(number: int) -> None:
        key = f"k{number}"
        try:
            await (await some_node(number)).dispatch_job(key, b"payload")
            cluster.sometimes("a job was dispatched")
        except (CorepoolError, NodeCrashed) as error:  # its node crashed, or the network ate it
            cluster.sometimes(f"a dispatch ended with {type(error).__name__}")
        await cluster.sleep(LIFE)
        while True:
            try:
                await (await some_node(number)).stop_job(key)
            except JobNotFoundError:
                return
            except (CorepoolError, NodeCrashed) as error:
                cluster.sometimes(f"a stop ended with {type(error).__name__}")
            else:
                return
            await cluster.sleep(LIFE)

    calls = []
    for number in range(round(minutes * 60 * JOBS_PER_SECOND)):
        calls.append(asyncio.ensure_future(one(number)))
        await cluster.sleep(1 / JOBS_PER_SECOND)

    def all_over() -> bool:
        while calls and calls[-1].done():
            calls.pop().result()
        return not calls

    await cluster.eventually(all_over, within=120.0)  # the faults stop, and so does all that was begun


def main() -> None:
    """Run some seeds and print the ratio of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5.0, help="virtual minutes of load per seed")
    args = parser.parse_args()
    virtual = cpu = 0.0
    for seed in range(args.seeds):
        began = time.process_time()
        result = simulate_cluster(
            partial(load, args.minutes),
            seed=seed,
            faults=Faults.everything(),
            budgets=Budgets(steps=50_000_000),
            name="load",
        )
        took = time.process_time() - began
        virtual, cpu = virtual + result.virtual_seconds, cpu + took
        jobs = result.sometimes.get("a job was dispatched", 0)
        print(
            f"seed {seed}: {result.virtual_seconds / took:5.0f} x real time, {jobs} jobs, "
            f"{sum(result.faults.values())} faults, {'passed' if result.passed else result.report('')}",
            flush=True,
        )
    print(f"{virtual / cpu:.0f} x real time over {virtual / 3600:.1f} virtual hours")


if __name__ == "__main__":
    main()
