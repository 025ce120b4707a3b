"""corepool beside Python's job queues on Redis, in one run: ``python benchmarks/peers.py redis://localhost:6379/0``.

Each system gets a dispatching process and one worker process whose task does nothing, and the same two measurements:

- *start*: from the call that hands a task in until the task's code runs, one task at a time. Both processes read the machine's
  monotonic clock.
- *rate*: tasks a second with 64 tasks of the dispatcher handing in, from the first call until the last task has run.

They do not do the same: the queues take a task and forget it; corepool refuses a second job of the same key, keeps an owner for
it until it is stopped, and its call returns only when the worker has said that the job runs. Systems take turns, round by
round, and each figure is the best of its rounds: other load on the machine can only make a system look slower.

Needs: pip install 'corepool[redis,uvloop]' taskiq taskiq-redis 'faststream[redis]' streaq. One that is missing is left out, and
named. Everything is written into names of the run's own; use a database that may be thrown away, since the queues leave theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop

Send = Callable[[float], Awaitable[object]]
delays: list[float] = []


def ran(sent: float) -> None:
    """What every task does, in the worker's process."""
    delays.append(time.monotonic() - sent)


# --- each system: a worker until it is cancelled, and a sender --------------------------------------------------------


class Feeds:
    """corepool's handler."""

    async def start(self, job: Any) -> None:
        ran(float(job.payload))

    async def stop(self, key: str) -> None: ...


async def corepool_worker(url: str, name: str, ready: Callable[[], None]) -> None:
    import corepool

    async with corepool.connect(url) as backend, corepool.Node(backend, name) as node:
        await node.add_worker(Feeds())
        ready()
        await asyncio.Event().wait()


@asynccontextmanager
async def corepool_sender(url: str, name: str) -> AsyncIterator[Send]:
    import corepool

    async with corepool.connect(url) as backend, corepool.Node(backend, name, client_only=True) as node:
        numbers = iter(range(10**9))
        try:
            yield lambda sent: node.dispatch_job(f"job-{next(numbers)}", repr(sent).encode())
        finally:
            await node.shutdown()


def taskiq_task(url: str, name: str) -> tuple[Any, Any]:
    from taskiq_redis import RedisStreamBroker

    broker = RedisStreamBroker(url, queue_name=name, consumer_group_name=name)

    @broker.task(task_name="nothing")
    async def nothing(sent: float) -> None:
        ran(sent)

    return broker, nothing


async def taskiq_worker(url: str, name: str, ready: Callable[[], None]) -> None:
    from taskiq.api import run_receiver_task

    broker, _ = taskiq_task(url, name)
    broker.is_worker_process = True
    await broker.startup()
    ready()
    await run_receiver_task(broker)


@asynccontextmanager
async def taskiq_sender(url: str, name: str) -> AsyncIterator[Send]:
    broker, nothing = taskiq_task(url, name)
    await broker.startup()
    try:
        yield nothing.kiq
    finally:
        await broker.shutdown()


async def faststream_worker(url: str, name: str, ready: Callable[[], None]) -> None:
    from faststream.redis import RedisBroker, StreamSub

    broker = RedisBroker(url, logger=None)

    @broker.subscriber(stream=StreamSub(name, group="group", consumer="one"))
    async def nothing(sent: float) -> None:
        ran(sent)

    await broker.start()
    ready()
    try:
        await asyncio.Event().wait()
    finally:
        await broker.stop()


@asynccontextmanager
async def faststream_sender(url: str, name: str) -> AsyncIterator[Send]:
    from faststream.redis import RedisBroker

    async with RedisBroker(url, logger=None) as broker:
        await broker.connect()
        yield lambda sent: broker.publish(sent, stream=name)


def streaq_task(url: str, name: str) -> tuple[Any, Any]:
    from streaq import Worker

    worker: Any = Worker(redis_url=url, queue_name=name)

    @worker.task
    async def nothing(sent: float) -> None:
        ran(sent)

    return worker, nothing


async def streaq_worker(url: str, name: str, ready: Callable[[], None]) -> None:
    worker, _ = streaq_task(url, name)
    asyncio.get_running_loop().call_later(1.0, ready)
    await worker.run_async()


@asynccontextmanager
async def streaq_sender(url: str, name: str) -> AsyncIterator[Send]:
    worker, nothing = streaq_task(url, name)
    async with worker:

        async def send(sent: float) -> None:
            await nothing.enqueue(sent)

        yield send


SYSTEMS: dict[str, tuple[str, Any, Any]] = {
    "corepool": ("corepool", corepool_worker, corepool_sender),
    "taskiq (stream broker)": ("taskiq_redis", taskiq_worker, taskiq_sender),
    "FastStream (stream group)": ("faststream", faststream_worker, faststream_sender),
    "streaq": ("streaq", streaq_worker, streaq_sender),
}


# --- the worker's process -------------------------------------------------------------------------------------------------


async def be_worker(system: str, url: str, name: str) -> None:
    """Run one system's worker; for each line that comes in, tell the delays since the last one; end with the input."""

    def say(value: object) -> None:
        os.write(1, json.dumps(value).encode() + b"\n")

    running = asyncio.ensure_future(SYSTEMS[system][1](url, name, lambda: say("ready")))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    while await reader.readline():
        say(delays)
        delays.clear()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


class WorkerProcess:
    """A worker in a process of its own, on a core of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def running(cls, system: str, url: str, name: str, core: int | None) -> AsyncIterator[WorkerProcess]:
        pipe = asyncio.subprocess.PIPE
        arguments = [
            __file__,
            url,
            "--worker",
            system,
            "--name",
            name,
            *(["--core", str(core)] if core is not None else []),
        ]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdin=pipe, stdout=pipe, limit=1 << 26
        )
        worker = cls(process)
        try:
            async with asyncio.timeout(30):
                if await worker.line() != "ready":
                    raise RuntimeError(f"the worker of {system} did not come up")
            yield worker
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    async def line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(await self._process.stdout.readline())

    async def take(self, count: int) -> list[float]:
        """The delays of so many tasks, once all have run."""
        assert self._process.stdin is not None
        found: list[float] = []
        async with asyncio.timeout(120):
            while len(found) < count:
                self._process.stdin.write(b"\n")
                found += await self.line()
                await asyncio.sleep(0.002)
        return found


# --- measuring ----------------------------------------------------------------------------------------------------------


async def measure(system: str, url: str, sizes: argparse.Namespace) -> dict[str, float]:
    name = f"peers-{secrets.token_hex(4)}"
    async with (
        WorkerProcess.running(system, url, name, sizes.worker_core) as worker,
        SYSTEMS[system][2](url, name) as send,
    ):
        for _ in range(20):
            await send(time.monotonic())
        await worker.take(20)
        for _ in range(sizes.samples):
            await send(time.monotonic())
            await asyncio.sleep(0.002)  # one at a time: the worker is idle again
        starts = sorted(await worker.take(sizes.samples))
        numbers = iter(range(sizes.tasks))

        async def sender() -> None:
            for _ in numbers:
                await send(time.monotonic())

        began = time.perf_counter()
        await asyncio.gather(*(sender() for _ in range(64)))
        await worker.take(sizes.tasks)
        rate = sizes.tasks / (time.perf_counter() - began)
    return {
        "start_p50_us": statistics.median(starts) * 1e6,
        "start_p99_us": starts[int(0.99 * len(starts))] * 1e6,
        "per_second": rate,
    }


async def ping(url: str, count: int) -> float:
    """The floor of the same run: PING by redis-py, which the queues stand on."""
    from redis.asyncio import Redis

    client: Any = Redis.from_url(url)
    times: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        await client.ping()
        times.append(time.perf_counter() - began)
    await client.aclose()
    return statistics.median(times) * 1e6


async def study(url: str, sizes: argparse.Namespace) -> dict[str, dict[str, float]]:
    best: dict[str, dict[str, float]] = {}
    floor = float("inf")
    for number in range(sizes.rounds):
        floor = min(floor, await ping(url, 300))
        for system, (module, _, _) in SYSTEMS.items():
            if importlib.util.find_spec(module) is None:
                print(f"{system}: not installed, left out", file=sys.stderr)
                continue
            found = await measure(system, url, sizes)
            print(f"round {number + 1}, {system}: {found}", file=sys.stderr)
            seen = best.setdefault(system, found)
            best[system] = {
                key: (max if key == "per_second" else min)(value, seen[key]) for key, value in found.items()
            }
    print(f"PING by redis-py: {floor:,.0f} µs")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, help="of this process")
    parser.add_argument("--worker-core", type=int)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if given.worker:
            runner.run(be_worker(given.worker, given.url, given.name))
            return
        best = runner.run(study(given.url, given))
    for system, found in best.items():
        print(
            f"{system:<28} start p50 {found['start_p50_us']:>8,.0f} µs, p99 {found['start_p99_us']:>8,.0f} µs, "
            f"{found['per_second']:>8,.0f} tasks a second"
        )


if __name__ == "__main__":
    main()
