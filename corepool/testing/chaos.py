"""A pool under everything that can befall it: the scenario that ``corepool sim run`` explores.

Purpose: topology, operations and faults drawn from the seed; after every step the safety invariants; then the faults stop,
and everything must come right within its bound, stay right, and leave nothing behind.
Invariants: every choice comes from the cluster, so a run is a function of its seed; a violation begins with the number of the
invariant of DESIGN 5 that it breaks. Handlers are judged by the cluster's recorder, the store by ``rules``, the end by
``atrest``, and what callers were told by ``history``, from the outside.
Neighbours: on `Cluster`; run by the command line and by tests/chaos, and by tests/mutations with each safeguard switched off;
``disasters`` adds what befalls a whole pool at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import attrs

from corepool.errors import CorepoolError, OutcomeUnknown, PoolShutdownError
from corepool.testing.actors import PLANNED, Planner, Worker
from corepool.testing.atrest import AtRest
from corepool.testing.cluster import Cluster, ClusterNode
from corepool.testing.history import Dispatch, Effect, Heard, Notification, Stop, Tick, judge
from corepool.testing.rules import StoreRules
from corepool_memory.sim.errors import InvariantViolated, NodeCrashed, NotInTime

__all__ = ["POOL", "Chaos", "chaos"]

POOL = "pool"

_KEYS = 5
_LONGEST = 600.0
"""Virtual seconds after which clients begin no more calls, and the faults stop."""
_LOST = 6.0
"""Seconds after which a request that was lost with the last fault is given up, and its connection made anew."""
_HANDLERS = 12.0
"""Seconds that a job's handler may take to start at last: it is slow, or fails, at each of its attempts."""


@attrs.define(slots=True)
class Chaos:
    """One run's clients, operators and records.

    dark: the whole store is away: no machine can be switched on that would see it.
    last_orders: clients and operators begin nothing more.
    schedulers: go on until everything has come right, for what they want is part of it.
    took: how many seconds after the last fault each liveness property held, by its number.
    """

    cluster: Cluster
    ttl: float
    options: dict[str, Any]
    rules: StoreRules
    dispatches: list[Dispatch] = attrs.field(factory=list)
    stops: list[Stop] = attrs.field(factory=list)
    notifications: list[Notification] = attrs.field(factory=list)
    heard: list[Heard] = attrs.field(factory=list)
    ticks: list[Tick] = attrs.field(factory=list)
    numbers: int = 0
    dark: bool = False
    last_orders: bool = False
    failed: set[str] = attrs.field(factory=set)
    schedulers: list[asyncio.Task[None]] = attrs.field(factory=list)
    took: dict[int, float] = attrs.field(factory=dict)

    @classmethod
    def draw(cls, cluster: Cluster, *, full_scan: float = 20.0) -> Chaos:
        """The knobs of one run. full_scan: times to live between two full scans; longer than any bound, for what only a scan
        finds is found too late, unless the store went back."""
        ttl = (5.0, 10.0, 2.0)[cluster.choose(3, "ttl")]
        options: dict[str, Any] = {
            "worker_ttl": ttl,
            "ack_grace_period": ttl * (0.5, 1.0)[cluster.choose(2, "grace")],
            "call_timeout": 3 * ttl,
            "worker_shutdown_ttl": 6 * ttl,
            "start_backoff": 0.2,
            "max_start_backoff": 2.0,
            "max_start_attempts": (5, 2, 1)[cluster.choose(3, "attempts")],
            "neighbours": (3, 1)[cluster.choose(2, "neighbours")],
            "max_queued_jobs": (1000, 1)[cluster.choose(2, "queue")],
            "max_moves_in_flight": (32, 1)[cluster.choose(2, "moves")],
            "full_scan_interval": full_scan * ttl,
        }
        return cls(cluster, ttl, options, StoreRules(cluster, POOL, ttl=ttl))

    def choose(self, n: int, label: str) -> int:
        return self.cluster.choose(n, label)

    def up(self) -> list[ClusterNode]:
        """The machines whose nodes are up."""
        return [machine for machine in self.cluster.machines if isinstance(machine, ClusterNode) and machine.up]

    # --- machines -----------------------------------------------------------------------------------------------------

    async def boot(self, *, workers: bool = True, client_only: bool = False) -> None:
        """A new machine; if the faults do not let it come up, it is switched off and on again."""
        while self.dark:
            await self.cluster.sleep(0.5)
        name = f"node-{len(self.cluster.machines) + 1}"
        handler = (lambda: Worker(self)) if workers and not client_only else None
        booting = self.cluster.node(POOL, worker=handler, name=name, client_only=client_only, **self.options)
        if self.choose(8, "power cut while joining") < 7:
            error = await self._quietly(lambda: booting)
        else:
            cut = asyncio.get_running_loop().create_task(self._cut_power(name))
            error = await self._quietly(lambda: booting)
            await cut
        while error is not None:
            self.cluster.sometimes("a node did not come up at once")
            await self.cluster.sleep(1.0)
            error = await self._quietly(lambda: self.cluster.restart(name))

    async def _cut_power(self, name: str) -> None:
        """In the middle of its first steps, if it takes so long."""
        await self.cluster.sleep(self.choose(24, "power cut after") / 48)
        if not self._is_up(name):
            await self.cluster.crash(name)

    def _is_up(self, name: str) -> bool:
        machine = self.cluster.get(name)
        return isinstance(machine, ClusterNode) and machine.up

    async def _quietly(self, call: Callable[[], Awaitable[object]], done: str = "") -> CorepoolError | None:
        """What it raised; a machine that crashed meanwhile leaves the outcome open."""
        try:
            await call()
        except NodeCrashed:
            return OutcomeUnknown("the caller's machine crashed")
        except CorepoolError as error:
            return error
        if done:
            self.cluster.sometimes(done)
        return None

    # --- clients ------------------------------------------------------------------------------------------------------

    async def client(self, name: str, operations: int) -> None:
        """Calls on a few keys, from any node, one after the other."""
        for _ in range(operations):
            await self.cluster.sleep(self.choose(24, name) / 8)
            if self.last_orders:
                return
            nodes = self.up()
            if not nodes:
                continue
            node = nodes[self.choose(len(nodes), f"{name}:node")]
            key = f"k{self.choose(_KEYS, f'{name}:key')}"
            match self.choose(8, f"{name}:call"):
                case 0 | 1 | 2 | 3:
                    await self._dispatch(node, key)
                case 4 | 5:
                    await self._stop(node, key)
                case 6:
                    await self._notify(node, key)
                case _:  # as somebody does who has seen that jobs failed
                    for number in range(_KEYS):
                        await self._quietly(partial(node.retry_job, f"k{number}"), "retry")

    def number(self) -> bytes:
        """A payload of its own."""
        self.numbers += 1
        return b"%d" % self.numbers

    def jobs(self) -> set[str]:
        """The keys that have a record."""
        return {entry.key for entry in self.cluster.world.server.maps(POOL).entries("jobs.1")}

    def _told(self, call: str, error: CorepoolError | None) -> None:
        self.cluster.sometimes(f"{call}: {type(error).__name__ if error else 'success'}")

    async def _dispatch(self, node: ClusterNode, key: str) -> None:
        payload, invoked = self.number(), self.cluster.now
        timeout = (2.0, 4.0, 1.0, 0.2)[self.choose(4, "patience")] * self.ttl
        call = partial(node.dispatch_job, key, payload, timeout=timeout)
        error = await self._quietly(lambda: self._impatiently("dispatch", call()))
        self._told("dispatch", error)
        self.dispatches.append(
            Dispatch(key=key, payload=payload, invoked=invoked, returned=self.cluster.now, error=error)
        )

    async def _impatiently(self, what: str, call: Awaitable[object], one_in: int = 12) -> None:
        """Now and then a caller is cancelled in the middle: what became of its call it does not know."""
        if self.choose(one_in, "impatience") < one_in - 1:
            await call
            return
        try:
            async with asyncio.timeout((1 + self.choose(8, "how impatient")) / 40):
                await call
        except TimeoutError:
            self.cluster.sometimes(f"a caller of {what} was cancelled")
            raise OutcomeUnknown("the caller was cancelled") from None

    async def _stop(self, node: ClusterNode, key: str) -> None:
        invoked = self.cluster.now
        error = await self._quietly(lambda: node.stop_job(key))
        self._told("stop", error)
        self.stops.append(Stop(key=key, invoked=invoked, returned=self.cluster.now, error=error))

    async def _notify(self, node: ClusterNode, key: str) -> None:
        payload, invoked = self.number(), self.cluster.now
        error = await self._quietly(lambda: node.notify_worker(key, payload))
        self._told("notify", error)
        self.notifications.append(
            Notification(key=key, payload=payload, invoked=invoked, returned=self.cluster.now, error=error)
        )

    async def ticker(self, name: str) -> None:
        """Listens to a ticker on one node after the other."""
        while True:
            nodes = [node for node in self.up() if not node.node.options.client_only]
            if nodes:
                node = nodes[self.choose(len(nodes), f"{name}:node")]
                await self._quietly(partial(self._listen, node))
            await self.cluster.sleep(1.0)

    async def _listen(self, node: ClusterNode) -> None:
        async for number in node.ticker("tick", self.ttl / 2):
            self.ticks.append(Tick(name="tick", number=number, node=node.name, at=self.cluster.now))
            self.cluster.sometimes("a tick")

    async def scheduler(self, name: str) -> None:
        """Has the schedule on one node after the other."""
        planner = Planner(self)
        while True:
            nodes = [node for node in self.up() if not node.node.options.client_only]
            if nodes:
                node = nodes[self.choose(len(nodes), f"{name}:node")]
                await self._quietly(partial(self._follow, node, planner))
            await self.cluster.sleep(1.0)

    async def _follow(self, node: ClusterNode, planner: Planner) -> None:
        machine, schedule = node.sim, await node.schedule(planner, self.ttl / 2)
        while node.up and node.sim is machine and schedule.running:
            await self.cluster.sleep(0.5)

    # --- operators ----------------------------------------------------------------------------------------------------

    async def operator(self, name: str, changes: int) -> None:
        """Nodes and workers join and leave; now and then a machine is restarted."""
        for _ in range(changes):
            await self.cluster.sleep(0.5 + self.choose(16, f"{name}:pause") / 2)
            if self.last_orders:
                return
            nodes = [node for node in self.up() if not node.node.options.client_only]
            what = self.choose(6, f"{name}:what")
            if what == 0 or not nodes or (what != 2 and len(nodes) < 2):
                await self.boot()
                continue
            node = nodes[self.choose(len(nodes), f"{name}:node")]
            match what:
                case 1:
                    await self._quietly(node.close, "a node closed")
                case 2:
                    add = partial(node.add_worker, Worker(self))
                    await self._quietly(partial(self._hastily, add), "a worker was added")
                case 3 | 4:
                    if workers := node.workers:
                        await self._quietly(
                            partial(node.remove_worker, workers[-1]),
                            "a worker was removed",
                        )
                case _:
                    await self._quietly(partial(self.cluster.restart, node), "a machine was restarted")

    async def _hastily(self, add: Callable[[], Awaitable[object]]) -> None:
        await self._impatiently("add_worker", add(), one_in=3)

    # --- a run --------------------------------------------------------------------------------------------------------

    async def found(self) -> None:
        """The first machines."""
        for number in range(1 + self.choose(4, "nodes")):
            await self.boot(workers=bool(number) or self.choose(2, "the first is idle") == 0)
        if self.choose(2, "client node"):
            await self.boot(client_only=True)

    async def live(self, *disasters: Coroutine[Any, Any, None]) -> None:
        """Clients, operators and what befalls the pool, until all of them are through.

        Raises:
            InvariantViolated: 9: a call does not return, although no fault keeps it from it any more.
        """
        create = asyncio.get_running_loop().create_task
        tickers = [create(self.ticker(f"ticker-{number}")) for number in range(self.choose(3, "tickers"))]
        self.schedulers = [
            create(self.scheduler(f"scheduler-{number}")) for number in range(self.choose(3, "schedulers"))
        ]
        tasks = [
            create(self.client(f"client-{number}", 6 + self.choose(10, "operations")))
            for number in range(1 + self.choose(3, "clients"))
        ]
        tasks.extend(
            create(self.operator(f"operator-{number}", self.choose(5, "changes")))
            for number in range(1 + self.choose(2, "operators"))
        )
        tasks.extend(create(disaster) for disaster in disasters)
        await asyncio.wait(tasks, timeout=_LONGEST)
        self.last_orders = True
        self.cluster.world.calm()
        await self._return_of(tasks)
        for ticker in tickers:
            ticker.cancel()
        if tickers:
            await asyncio.wait(tickers)
        for task in tasks:
            task.result()

    async def _return_of(self, tasks: list[asyncio.Task[None]]) -> None:
        """Invariant 9."""
        began = await self._last_fault()
        _, late = await asyncio.wait(tasks, timeout=self.bounds[9])
        if late:
            calls = [
                f"{call.name}{call.arguments} on {call.node}" for call in self.cluster.calls if call.returned is None
            ]
            raise InvariantViolated(
                f"9: these have not returned {self.bounds[9]:g} s after the last fault: {calls or late}"
            )
        self.took[9] = self.cluster.now - began

    async def _last_fault(self) -> float:
        """Until what is held up has arrived: the last fault."""
        cluster, network = self.cluster, self.cluster.world.network
        clogged = max((network.link(machine.name).clogged_until for machine in cluster.machines), default=0.0)
        await cluster.sleep(max(0.0, clogged - cluster.now))
        return cluster.now

    @property
    def bounds(self) -> dict[int, float]:
        """Within how many seconds after the last fault each liveness property of DESIGN 5 holds, by its number; docs/model.md
        tells what each is made of."""
        ttl = self.ttl
        return {9: 7 * ttl + _LOST, 10: 6 * ttl + _LOST + _HANDLERS, 11: 10 * ttl + 2 * _LOST, 12: 6 * ttl + _LOST}

    async def settle(self, *, went_back: bool = False) -> None:
        """Liveness: each property holds within its bound, and everything stays right for a time to live. went_back: see
        `AtRest`.

        Raises:
            InvariantViolated: one does not.
        """
        cluster = self.cluster
        cluster.world.calm()
        await self._last_fault()
        if not any(node.workers for node in self.up()):
            await self.boot()
        look = AtRest(cluster, POOL, went_back=went_back)
        began = since = cluster.now

        def right() -> bool:
            nonlocal since
            found = look.problems()
            if late := self._unplanned(look.failed):
                found.setdefault(10, late)
            for number, text in found.items():
                since = cluster.now
                self.took[number] = max(self.took.get(number, 0.0), since - began)
                if since - began > self.bounds[number]:
                    raise InvariantViolated(f"{text}, {self.bounds[number]:g} s after the last fault")
            return not found and cluster.now - since > self.ttl

        await cluster.eventually(right, within=max(self.bounds.values()) + 2 * self.ttl, every=0.25)
        for scheduler in self.schedulers:
            scheduler.cancel()
        self.failed = look.failed
        for edge, count in sorted(self.rules.edges.items()):
            cluster.world.trace.sometimes[f"a record took the way {edge}"] += count

    def _unplanned(self, failed: set[str]) -> str:
        """What differs from the plan that the schedule makes in the end, or ""."""
        wanted, other = PLANNED
        if self.schedulers and wanted not in failed and not self.cluster.running(wanted):
            return f"10: {wanted} is wanted by a plan, and does not run"
        if self.schedulers and self.cluster.running(other):
            return f"10: {other} runs, and no plan wants it"
        return ""

    def effects(self) -> list[Effect]:
        """What the handlers did."""
        return self.cluster.recorder.effects()

    def judge(self) -> None:
        """What callers were told, against what handlers did.

        Raises:
            HistoryViolation: a promise was broken.
        """
        judge(
            self.dispatches,
            self.stops,
            self.effects(),
            settled_at=self.cluster.now,
            failed=self.failed,
            notifications=self.notifications,
            heard=self.heard,
            ticks=self.ticks,
        )

    # --- shutdown -----------------------------------------------------------------------------------------------------

    async def shut_down(self) -> None:
        """R6: the pool ends while jobs are dispatched and workers join. Then nothing of it is left and no handler runs; the
        next incarnation begins empty.

        Raises:
            InvariantViolated: something is left.
        """
        cluster = self.cluster
        node = self.up()[0]
        began, self.last_orders = cluster.now, False
        create = asyncio.get_running_loop().create_task
        others = [create(self.client(f"late-{number}", 4)) for number in range(2)]
        others.append(create(self._late_workers()))
        await cluster.sleep(self.choose(16, "shutdown:after") / 8)
        error = await self._quietly(node.shutdown, "a pool was shut down")
        if error is not None:
            raise InvariantViolated(f"9: shutdown raised {type(error).__name__}: {error}")
        self.last_orders = True
        await self._return_of(others)
        try:
            await cluster.eventually(lambda: not self._left(), within=8 * self.ttl)
        except NotInTime:
            raise InvariantViolated(f"10 (R6): after a shutdown there is still {self._left()}") from None
        unknown = OutcomeUnknown("a shutdown")
        self.stops += [Stop(key=f"k{number}", invoked=began, returned=None, error=unknown) for number in range(_KEYS)]
        self.failed.clear()
        self.judge()

    async def _late_workers(self) -> None:
        nodes = [node for node in self.up() if not node.node.options.client_only]
        for _ in range(2):
            await self.cluster.sleep(self.choose(16, "shutdown:join") / 8)
            node = nodes[self.choose(len(nodes), "shutdown:node")]
            error = await self._quietly(partial(node.add_worker, Worker(self)))
            self.cluster.sometimes("a worker came too late", isinstance(error, PoolShutdownError))

    def _left(self) -> list[str]:
        maps, streams = self.cluster.world.server.contents().get(POOL, ([], []))
        mine = ("jobs", "job_payloads", "attention", "owned@", "workers", "worker:", "queue")
        handled = [f"{key} on a handler" for key in self.cluster.recorder.tenures if self.cluster.owners(key)]
        return handled + [name for name in (*maps, *streams) if name.startswith(mine) and name.endswith(".1")]


async def chaos(cluster: Cluster) -> None:
    """Nodes come, go and crash under faults while clients call; then everything must come right."""
    run = Chaos.draw(cluster)
    await run.found()
    await run.live()
    await run.settle()
    run.judge()
    if cluster.choose(4, "shutdown") == 3:
        await run.shut_down()
