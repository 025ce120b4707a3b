"""The measurements, one after the other, in one run.

Invariants: the samples of a time are taken in rounds, and before each round the floor is sampled on the same connections; all
that is written lies in names of this run's own, and is removed when the run ends, also when it is interrupted.
Neighbours: `command` prints the results; `floors` has what is compared with; `workers` is the other end of a dispatch.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import attrs

from corepool import BYTES, Backend, CorepoolError, Node, ReplicatedMap, Stream
from corepool.cli.bench.cores import Cores
from corepool.cli.bench.figures import Figure, Results
from corepool.cli.bench.floors import Floor, floor_of
from corepool.cli.bench.sizes import GOALS, Sizes
from corepool.cli.bench.workers import InAProcess, InThisProcess, Workplace
from corepool.driver import NEWEST, open_backend
from corepool.pool.options import NodeOptions
from corepool.pool.store import SHUTDOWN_MAP

__all__ = ["Study"]

LATE = 10.0
"""Seconds after which something that should take microseconds is given up."""


@attrs.define(slots=True, kw_only=True, eq=False)
class Study:
    """One run against one URL.

    loop: the name of the event loop, for the worker's process. progress: told what is measured now.
    """

    url: str
    sizes: Sizes
    cores: Cores
    loop: str
    progress: Callable[[str], None]
    results: Results = attrs.field(factory=Results)
    shown: str = ""
    family: str = ""
    floor_text: str = ""
    _name: str = attrs.field(init=False, factory=lambda: f"bench-{secrets.token_hex(4)}")
    _floor: Floor = attrs.field(init=False)
    _floor_samples: list[float] = attrs.field(init=False, factory=list[float])

    async def run(self) -> Results:
        """Measure everything.

        Raises:
            CorepoolError: the backend cannot be reached, or went away.
        """
        async with AsyncExitStack() as stack:
            backend, other = [await self._open(stack) for _ in range(2)]
            self.shown = backend.url
            self._floor = await floor_of(backend, other)
            stack.push_async_callback(self._floor.aclose)
            self.family, self.floor_text = self._floor.family, self._floor.text
            await self._maps(backend, other)
            await self._streams(backend, other)
            await self._pool(backend)
            for nodes in self.sizes.idle_nodes:
                await self._idle(nodes)
        if self._floor_samples:
            self.results.add(Figure.of_times("floor", self.floor_text, self._floor_samples))
        return self.results

    async def _open(self, stack: AsyncExitStack) -> Backend:
        backend = await open_backend(self.url)
        stack.push_async_callback(backend.aclose)
        return backend

    @staticmethod
    @asynccontextmanager
    async def _gone_afterwards(backend: Backend, pool: str) -> AsyncGenerator[None]:
        """A pool that was shut down keeps the number of its incarnation, for its next life; this one has none."""
        try:
            yield
        finally:
            await backend.namespace(pool).map(SHUTDOWN_MAP).destroy()

    # --- how ---------------------------------------------------------------------------------------------------------

    def _add(self, figure: Figure, *, judged: bool = True) -> None:
        goal = GOALS.get(self.family, {}).get(figure.name) if judged else None
        self.results.add(attrs.evolve(figure, goal=goal))

    async def _time(self, name: str, title: str, sample: Callable[[], Awaitable[float]], count: int) -> None:
        """Samples of ``sample``, in turns with the floor."""
        self.progress(title)
        samples: list[float] = []
        floors: list[float] = []
        each = max(1, count // self.sizes.rounds)
        await sample()  # the first one finds cold caches and unloaded scripts
        gc.collect()
        for _ in range(self.sizes.rounds):
            floors += await self._floor.sample(each)
            samples += [await sample() for _ in range(each)]
        self._floor_samples += floors
        floor = statistics.median(floors) * 1e6 if floors else None
        self._add(Figure.of_times(name, title, samples, floor=floor, against=self.floor_text))

    @staticmethod
    def _timed(call: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[float]]:
        async def sample() -> float:
            began = time.perf_counter()
            await call()
            return time.perf_counter() - began

        return sample

    @staticmethod
    async def _rate(numbers: Sequence[int], callers: int, call: Callable[[int], Awaitable[object]]) -> float:
        """How many calls a second with so many callers at once, one call for each number."""
        left = iter(numbers)

        async def caller() -> None:
            for number in left:
                await call(number)

        gc.collect()
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
        return len(numbers) / (time.perf_counter() - began)

    # --- maps --------------------------------------------------------------------------------------------------------

    async def _maps(self, backend: Backend, other: Backend) -> None:
        sizes, value = self.sizes, b"x" * self.sizes.payload
        store = backend.namespace(self._name).map("map")
        try:
            await self._time("set", "map: set, 1 caller", self._timed(lambda: store.set("key", value)), sizes.samples)
            self.progress(f"map: sets per second, {sizes.callers} callers")
            rates: list[float] = []
            peers: list[float] = []
            for _ in range(sizes.rounds):
                share = max(1, sizes.rate // sizes.rounds)
                peer = await self._floor.rate(store, value, share)
                if isinstance(peer, str):
                    self.results.miss("floor of sets_per_second", peer)
                else:
                    peers.append(peer)
                rates.append(await self._rate(range(share), sizes.callers, lambda n: store.set(f"key-{n % 64}", value)))
            self._add(
                Figure(
                    name="sets_per_second",
                    title=f"map: sets per second, {sizes.callers} callers",
                    value=statistics.median(rates),
                    unit="/s",
                    floor=statistics.median(peers) if len(peers) == len(rates) else None,
                    against="redis-py's pool, the same script",
                )
            )
            async with (
                await ReplicatedMap.join(backend, "map", namespace=self._name, codec=BYTES) as here,
                await ReplicatedMap.join(other, "map", namespace=self._name, codec=BYTES) as there,
            ):
                self._gets(here)
                await self._propagation(here, there)
        finally:
            await store.destroy()

    def _gets(self, replica: ReplicatedMap[bytes]) -> None:
        get = replica.get
        began = time.perf_counter()
        for _ in range(self.sizes.gets):
            get("key")
        each = (time.perf_counter() - began) / self.sizes.gets
        self._add(Figure(name="get", title="map: get from the replica", value=each * 1e9, unit="ns"))

    async def _propagation(self, here: ReplicatedMap[bytes], there: ReplicatedMap[bytes]) -> None:
        numbers = iter(range(10**9))
        with there.subscribe() as subscription:

            async def sample() -> float:
                value = b"%0*d" % (self.sizes.payload, next(numbers))
                began = time.perf_counter()
                writing = asyncio.ensure_future(here.set("key", value))
                async with asyncio.timeout(LATE):
                    while there.get("key") != value:
                        await subscription.changed()
                took = time.perf_counter() - began
                await writing
                return took

            await self._time("propagation", "map: set until another replica has it", sample, self.sizes.samples)

    # --- streams -----------------------------------------------------------------------------------------------------

    async def _streams(self, backend: Backend, other: Backend) -> None:
        payload = b"x" * self.sizes.payload
        stream = Stream(backend, "stream", namespace=self._name)
        far = Stream(other, "stream", namespace=self._name)
        try:
            await stream.create()
            add = self._timed(lambda: stream.add("event", payload))
            await self._time("append", "stream: append", add, self.sizes.samples)
            async with await far.sink("sink", start=NEWEST) as sink:

                async def sample() -> float:
                    began = time.perf_counter()
                    adding = asyncio.ensure_future(stream.add("event", payload))
                    async with asyncio.timeout(LATE):
                        received = await sink.receive()
                    took = time.perf_counter() - began
                    await adding
                    if received is not None:
                        await sink.ack(received)
                    return took

                await self._time(
                    "delivery", "stream: append until a sink elsewhere has it", sample, self.sizes.samples // 2
                )
        finally:
            await stream.destroy()

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def _pool(self, backend: Backend) -> None:
        alone = not backend.capabilities.multi_process
        self.progress("starting a worker")
        async with self._gone_afterwards(backend, self._name), Node(backend, self._name) as node:
            work: Workplace = InThisProcess(node) if alone else InAProcess(node, self.url, self.loop, self.cores.worker)
            where = "one process" if alone else "two processes"
            try:
                async with work:
                    try:
                        await self._calls(node, work, where)
                        await self._starts(node, work, where)
                    finally:
                        self.progress("ending the pool")
                        await node.shutdown()  # with the worker still there: nobody has to find out that it is gone
            finally:
                await node.shutdown()  # also if the worker did not come up

    async def _calls(self, node: Node, work: Workplace, where: str) -> None:
        sizes, count = self.sizes, iter(range(10**9))
        dispatched: list[str] = []

        async def dispatch() -> None:
            key = f"job-{next(count)}"
            dispatched.append(key)
            await node.dispatch_job(key, b"%.9f" % time.monotonic())

        await work.report()
        await self._time("dispatch", f"dispatch, {where}", self._timed(dispatch), sizes.calls)
        delays = (await work.report()).delays
        floor = self.results.figures["dispatch"].floor
        title = f"dispatch until the handler starts, {where}"
        self._add(Figure.of_times("handler_start", title, delays, floor=floor, against=self.floor_text))
        key = dispatched[-1]
        notify = self._timed(lambda: node.notify_worker(key, b"news"))
        await self._time("notify", f"notify until it is handled, {where}", notify, sizes.calls)
        left = iter(dispatched)
        stop = self._timed(lambda: node.stop_job(next(left)))
        await self._time("stop", f"stop, {where}", stop, len(dispatched) - sizes.rounds)

    async def _starts(self, node: Node, work: Workplace, where: str) -> None:
        sizes = self.sizes
        title = f"jobs started per second, {sizes.dispatchers} dispatchers, {where}"
        self.progress(title)
        await self._dispatches(node, "warm", sizes.dispatchers)
        here, there = time.process_time(), (await work.report()).cpu
        empty = statistics.median(await self._dispatches(node, "first", sizes.jobs))
        here, there = time.process_time() - here, (await work.report()).cpu - there
        self._add(Figure(name="starts_per_second", title=title, value=empty, unit="/s"))
        if isinstance(work, InThisProcess):
            costs = {"start_cpu": ("processor time per started job", here)}
        else:
            costs = {
                "dispatcher_cpu": ("processor time per started job, dispatcher", here),
                "worker_cpu": ("processor time per started job, worker", there),
            }
        for name, (title, cost) in costs.items():
            self._add(Figure(name=name, title=title, value=cost / sizes.jobs * 1e6, unit="µs"))
        title = f"the same with {sizes.many:,} jobs on the worker"
        self.progress(title)
        await self._dispatches(node, "ballast", max(0, sizes.many - sizes.jobs))
        full = statistics.median(await self._dispatches(node, "second", sizes.jobs))
        self._add(
            Figure(
                name="same_with_many_jobs",
                title=title,
                value=full,
                unit="/s",
                floor=empty,
                against="the rate without them",
            )
        )

    async def _dispatches(self, node: Node, prefix: str, count: int) -> list[float]:
        """Start so many jobs; the rates of as many parts as there are rounds."""
        share = -(-count // self.sizes.rounds)
        parts = [range(first, min(first + share, count)) for first in range(0, count, share or 1)]
        callers = self.sizes.dispatchers
        return [await self._rate(part, callers, lambda n: node.dispatch_job(f"{prefix}-{n}")) for part in parts]

    # --- doing nothing -----------------------------------------------------------------------------------------------

    async def _idle(self, count: int) -> None:
        """So many nodes with a worker each and a connection each, with default options, that do nothing."""
        self.progress(f"{count} idle node{'s' * (count > 1)}, {self.sizes.idle_seconds:g} s")
        pool, floor = f"{self._name}-idle-{count}", self._floor
        async with AsyncExitStack() as stack:
            backends = [await self._open(stack) for _ in range(count)]
            await stack.enter_async_context(self._gone_afterwards(backends[0], pool))
            nodes: list[Node] = []
            try:
                for backend in backends:
                    node = await stack.enter_async_context(Node(backend, pool))
                    nodes.append(node)
                await asyncio.gather(*(node.add_worker(_Nothing()) for node in nodes))
                async with asyncio.timeout(LATE):
                    while any(len(node.pool_workers()) < count for node in nodes):
                        await asyncio.sleep(0.01)
                await asyncio.sleep(min(1.0, self.sizes.idle_seconds / 2))  # joining rings a few more bells
                try:
                    before = [await self._counts(backend) for backend in backends]
                    began = time.perf_counter()
                    await asyncio.sleep(self.sizes.idle_seconds)
                    took = time.perf_counter() - began
                    after = [await self._counts(backend) for backend in backends]
                    connections = [await floor.connections(backend) for backend in backends]
                except CorepoolError as error:
                    self.results.miss(f"idle_{count}", f"the server does not say: {error}")
                    return
            finally:
                for node in nodes[:1]:
                    await node.shutdown()
        title = f"{count} node{'s' * (count > 1)} idle"
        rates: list[float | None] = []
        for which in (0, 1):
            pairs = [(early[which], late[which]) for early, late in zip(before, after, strict=True)]
            sent = [late - early for early, late in pairs if early is not None and late is not None]
            rates.append(sum(sent) / len(sent) / took if sent else None)
        whole = (
            self.sizes.idle_seconds >= NodeOptions().poll_period
        )  # in less there may be all of a period's work, or none
        there = [each for each in connections if each is not None]
        for name, what, value, unit in (
            (f"idle_commands_{count}", "commands sent per node", rates[0], "/s"),
            (f"idle_inside_{count}", "the same with what scripts do inside", rates[1], "/s"),
            (f"connections_{count}", "connections per node", sum(there) / len(there) if there else None, ""),
        ):
            if value is None:
                self.results.miss(name, floor.uncounted)
            else:
                figure = Figure(name=name, title=f"{title}: {what}", value=value, unit=unit)
                self._add(figure, judged=whole or unit != "/s")

    async def _counts(self, backend: Backend) -> tuple[int | None, int | None]:
        return await self._floor.commands(backend), await self._floor.inside(backend)


class _Nothing:
    async def start(self, job: object) -> None: ...

    async def stop(self, key: str) -> None: ...
