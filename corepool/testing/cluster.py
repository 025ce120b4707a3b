"""A simulated cluster of pool nodes: what a scenario holds.

Purpose: everything that can befall a cluster, as a method, and the questions a test asks.
Invariants:

- everything runs in virtual time on one event loop, and is a function of the seed; a test that waits an hour takes
  milliseconds;
- each node lives on a machine of its own: crash it, and nothing of it runs any more, not even a ``finally`` block;
- handlers are watched: a job with two live owners, a fencing token that does not grow, or a stop without a start ends
  the run as a failure, whatever the test looks at.

Neighbours: on :class:`corepool_memory.sim.world.World`; the only place that knows both the simulator and
``corepool.Node``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import attrs

from corepool.driver import Backend
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool.pool import Explanation, Health, JobHandler, Node, Producer, Schedule, Worker, WorkerRecord
from corepool.testing.recording import Recorder, StoryLog, Tenure, recorded
from corepool_memory.options import MemoryOptions
from corepool_memory.server import Checkpoint
from corepool_memory.sim.errors import InvariantViolated, NodeCrashed
from corepool_memory.sim.faults import Faults
from corepool_memory.sim.loop import Budgets
from corepool_memory.sim.node import SimNode
from corepool_memory.sim.run import Result, simulate
from corepool_memory.sim.world import World, WorldTargets

__all__ = ["Call", "Cluster", "ClusterNode", "Machine", "simulate_cluster"]

T = TypeVar("T")

HandlerSource: TypeAlias = JobHandler | Callable[[], JobHandler]
"""A handler, or something that makes one (its class): then a machine that is restarted gets a new one, without any memory."""

_BOOT_AGAIN = 1.0
"""Seconds after which a node that could not reach the store tries again."""


@attrs.define(slots=True, eq=False)
class Call:
    """A call of the scenario on a node: for checks of whole histories.

    name and arguments: of the method. invoked, returned: true virtual seconds; ``returned`` is None while it is under
    way.
    error: what it raised. result: what it returned.
    """

    node: str
    name: str
    arguments: tuple[Any, ...]
    invoked: float
    returned: float | None = None
    error: BaseException | None = None
    result: object = None


class Machine:
    """A machine of a cluster.

    name: ``node-1``, ... unless it was given one.
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.sim = cluster.world.add_node(name)
        self.backend: Backend = cluster.world.backend(self.sim, cluster.store_options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sim.label}, {self.sim.state}>"

    @property
    def alive(self) -> bool:
        """Whether the machine is not crashed."""
        return self.sim.alive

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await ``function()`` as code of this machine: it stops when the machine is paused, and dies when it is
        crashed.

        Raises:
            NodeCrashed: the machine is crashed, or was before the call ended.
        """
        return await self.cluster.world.on(self.sim, function)

    def tasks(self) -> list[str]:
        """The names of the machine's unfinished tasks."""
        return self.cluster.world.tasks(self.name)

    async def reboot(self) -> None:
        """Start the machine again (see `Cluster.restart`)."""
        self._power_on()

    def _power_on(self) -> None:
        self.cluster.recorder.machine_crashed(self.sim)
        self.sim = self.cluster.world.restart(self.name)
        self.backend = self.cluster.world.backend(self.sim, self.cluster.store_options)


class ClusterNode(Machine):
    """A machine with a `corepool.Node` on it. Its methods are the node's own; each runs on the machine."""

    def __init__(
        self, cluster: Cluster, name: str, pool: str, handlers: tuple[HandlerSource, ...], options: dict[str, Any]
    ) -> None:
        super().__init__(cluster, name)
        self.pool = pool
        self.up = False
        self._handlers = handlers
        self._options = options
        self._node: Node | None = None

    @property
    def node(self) -> Node:
        """The node itself, to look at. Call its methods through this object: it runs them on the machine.

        Raises:
            NodeCrashed: it is not up.
        """
        if self._node is None:
            raise NodeCrashed(f"{self.name} is not up; restart it first")
        return self._node

    # --- its life -----------------------------------------------------------------------------------------------------

    async def boot(self) -> None:
        """Open the node and add its workers, again until the store can be reached."""
        await self.run(self._open)
        self.up = True

    async def _open(self) -> None:
        node = await self._again(lambda: Node.open(self.backend, self.pool, **self._options))
        for source in self._handlers:
            await self._again(partial(self._add, node, source))
        self._node = node

    async def _again(self, attempt: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await attempt()
            except (BackendUnavailable, OutcomeUnknown):
                await asyncio.sleep(_BOOT_AGAIN)

    async def _add(self, node: Node, source: HandlerSource) -> Worker:
        maker: Any = source
        handler = maker() if inspect.isclass(source) or not hasattr(source, "start") else source
        return await node.add_worker(recorded(self.cluster.recorder, self.sim, handler))

    async def reboot(self) -> None:
        self.went_down()
        self._power_on()
        await self.boot()

    def reboot_soon(self) -> None:
        """As `reboot`, without waiting until it is up: for a nemesis."""
        self.went_down()
        self._power_on()
        self.cluster.world.spawn(self.sim, self._boot_here(), name=f"{self.name}/boot")

    async def _boot_here(self) -> None:
        await self._open()
        self.up = True

    def went_down(self) -> None:
        """The machine was crashed, or its node closed."""
        self.up = False
        self._node = None

    async def close(self) -> None:
        """Close the node and its connection. Nothing of it may be left on the machine then.

        Raises:
            InvariantViolated: tasks were left.
        """
        node = self.node

        async def closing() -> None:
            await node.close()
            await self.backend.aclose()

        self.up = False  # a nemesis leaves it alone from here on
        await self._call("close", (), closing)
        await asyncio.sleep(0)
        if left := self.tasks():
            raise InvariantViolated(f"{self.name} was closed, but these tasks are left on it: {', '.join(left)}")
        self.went_down()

    # --- the node's own methods ---------------------------------------------------------------------------------------

    async def add_worker(self, handler: HandlerSource) -> Worker:
        """See `corepool.Node.add_worker`. After a restart of the machine it is gone; those given to `Cluster.node` are
        not."""
        node = self.node
        return await self._call("add_worker", (), lambda: self._add(node, handler))

    async def remove_worker(self, worker: Worker) -> None:
        """See `corepool.Node.remove_worker`."""
        node = self.node
        await self._call("remove_worker", (), lambda: node.remove_worker(worker))

    @property
    def workers(self) -> list[Worker]:
        """See `corepool.Node.workers`."""
        return self.node.workers

    def pool_workers(self) -> dict[str, WorkerRecord]:
        """See `corepool.Node.pool_workers`."""
        return self.node.pool_workers()

    async def dispatch_job(self, key: str, payload: bytes = b"", *, timeout: float | None = None) -> None:
        """See `corepool.Node.dispatch_job`."""
        node = self.node
        await self._call("dispatch_job", (key, payload), lambda: node.dispatch_job(key, payload, timeout=timeout))

    async def stop_job(self, key: str) -> None:
        """See `corepool.Node.stop_job`."""
        node = self.node
        await self._call("stop_job", (key,), lambda: node.stop_job(key))

    async def notify_worker(self, key: str, payload: bytes = b"") -> None:
        """See `corepool.Node.notify_worker`."""
        node = self.node
        await self._call("notify_worker", (key, payload), lambda: node.notify_worker(key, payload))

    async def retry_job(self, key: str) -> None:
        """See `corepool.Node.retry_job`."""
        node = self.node
        await self._call("retry_job", (key,), lambda: node.retry_job(key))

    async def job_keys(self) -> list[str]:
        """See `corepool.Node.job_keys`."""
        node = self.node
        return await self._call("job_keys", (), node.job_keys)

    async def job_payload(self, key: str) -> bytes | None:
        """See `corepool.Node.job_payload`."""
        node = self.node
        return await self._call("job_payload", (key,), lambda: node.job_payload(key))

    async def explain(self, key: str) -> Explanation | None:
        """See `corepool.Node.explain`."""
        node = self.node
        return await self._call("explain", (key,), lambda: node.explain(key))

    async def health(self, *, timeout: float = 5.0) -> Health:
        """See `corepool.Node.health`."""
        node = self.node
        return await self._call("health", (), lambda: node.health(timeout=timeout))

    async def schedule(self, producer: Producer, interval: float) -> Schedule:
        """See `corepool.Node.schedule`."""
        node = self.node
        return await self._call("schedule", (interval,), lambda: node.schedule(producer, interval))

    async def ticker(self, name: str, interval: float) -> AsyncIterator[int]:
        """See `corepool.Node.ticker`. Ends when the machine is crashed."""
        ticks = self.node.ticker(name, interval)
        try:
            while True:
                try:
                    number = await self.run(lambda: anext(ticks))
                except (StopAsyncIteration, NodeCrashed):
                    return
                yield number
        finally:
            if self.alive and isinstance(ticks, AsyncGenerator):
                await self.run(ticks.aclose)

    async def shutdown(self) -> None:
        """See `corepool.Node.shutdown`."""
        node = self.node
        await self._call("shutdown", (), node.shutdown)

    async def _call(self, name: str, arguments: tuple[Any, ...], function: Callable[[], Awaitable[T]]) -> T:
        cluster = self.cluster
        call = Call(self.sim.label, name, arguments, cluster.now)
        cluster.calls.append(call)
        shown = f"{name}({', '.join(map(_short, arguments))})"
        cluster.world.trace.tell(cluster.now, self.sim.label, f"{shown} is called")
        try:
            call.result = result = await self.run(function)
        except BaseException as error:
            call.error = error
            cluster.world.trace.tell(cluster.now, self.sim.label, f"{shown} raises {type(error).__name__}: {error}")
            raise
        finally:
            call.returned = cluster.now
        cluster.world.trace.tell(cluster.now, self.sim.label, f"{shown} returns")
        return result


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


class Cluster:
    """A cluster in virtual time.

    world: the simulator underneath, for what is not here.
    calls: every call of the scenario on a node, in order.
    """

    def __init__(
        self, world: World, *, check_ownership: bool = True, store_options: MemoryOptions | None = None
    ) -> None:
        self.world = world
        self.calls: list[Call] = []
        self.recorder = Recorder(world, check=check_ownership)
        self.store_options = store_options or MemoryOptions()
        self._machines: dict[str, Machine] = {}
        world.nemesis.targets = _Targets(self)

    # --- building -----------------------------------------------------------------------------------------------------

    async def node(
        self, pool: str, *, worker: HandlerSource | None = None, name: str | None = None, **options: Any
    ) -> ClusterNode:
        """A new machine with a node of the pool on it; returns when the node is up.

        worker: a job handler, or its class. A class is called anew when the machine is restarted; a handler object
            lives on, with everything it remembers, so give the class if it must not. None: no worker; add some later,
            or none.
        name: of the machine; ``node-1``, ``node-2``, ... unless given.
        options: of `corepool.Node` (``worker_ttl=10.0``, ``client_only=True``, ...).
        """
        handlers = () if worker is None else (worker,)
        node = ClusterNode(self, name or f"node-{len(self._machines) + 1}", pool, handlers, options)
        self._machines[node.name] = node
        await node.boot()
        return node

    def machine(self, name: str | None = None) -> Machine:
        """A new machine without a node: run your own code on it, against ``machine.backend``."""
        machine = Machine(self, name or f"machine-{len(self._machines) + 1}")
        self._machines[machine.name] = machine
        return machine

    def backend(self) -> Backend:
        """A connection to the store from a new machine: for tests of maps and streams alone."""
        return self.machine().backend

    @property
    def machines(self) -> list[Machine]:
        """All machines, in the order they were made."""
        return list(self._machines.values())

    def get(self, machine: Machine | str) -> Machine:
        """The machine of that name."""
        if isinstance(machine, Machine):
            return machine
        try:
            return self._machines[machine]
        except KeyError:
            raise KeyError(
                f"no machine is named {machine!r}; there are {', '.join(self._machines) or 'none'}"
            ) from None

    # --- what befalls it ----------------------------------------------------------------------------------------------

    async def crash(self, machine: Machine | str) -> None:
        """Cut a machine's power: nothing of it runs any more, no ``finally`` block, no farewell. What it had sent
        already may still reach the store. Calls that wait for it raise `NodeCrashed`."""
        self.hit_crash(self.get(machine).name)

    async def restart(self, machine: Machine | str) -> None:
        """Start a machine again, crashed or not, with the same name and clock; its node comes up anew and has no
        memory of before. Returns when it is up."""
        await self.get(machine).reboot()

    async def pause(self, machine: Machine | str) -> None:
        """Stop a machine's code until `resume`, as a frozen virtual machine or a very long garbage collection does;
        its clocks go on, and what is sent to it waits."""
        self.hit_pause(self.get(machine).name)

    async def resume(self, machine: Machine | str) -> None:
        """Let a paused machine go on."""
        self.world.resume(self.get(machine).name)

    async def partition(self, *machines: Machine | str) -> None:
        """Cut machines off from the store; without arguments, all of them: the store is down."""
        self.world.partition(*(self.get(machine).name for machine in machines))

    async def heal(self, *machines: Machine | str) -> None:
        """End the partition of some machines; without arguments, of all."""
        self.world.heal(*(self.get(machine).name for machine in machines))

    async def clog(self, machine: Machine | str, seconds: float) -> None:
        """Hold up everything a machine sends or is sent within the next ``seconds``, until they are over."""
        self.world.clog(self.get(machine).name, seconds)

    async def reset(self, machine: Machine | str) -> None:
        """Break a machine's connections to the store; it may reconnect at once."""
        self.world.reset(self.get(machine).name)

    async def skew(self, machine: Machine | str, seconds: float) -> None:
        """Set a machine's wall clock ``seconds`` ahead of true time, or behind."""
        self.world.skew(self.get(machine).name, seconds)

    async def set_clock_rate(self, machine: Machine | str, rate: float) -> None:
        """Let a machine's clocks run ``rate`` times as fast as true time."""
        self.world.set_rate(self.get(machine).name, rate)

    def checkpoint(self) -> Checkpoint:
        """The store's state of now, for `rollback`."""
        return self.world.checkpoint()

    async def rollback(self, to: Checkpoint) -> None:
        """Let the store lose all that was written since ``to``, as a failover to a lagging replica does."""
        self.world.rollback(to)

    async def sleep(self, seconds: float) -> None:
        """Let virtual time go by."""
        await asyncio.sleep(seconds)

    def hit_crash(self, name: str) -> None:
        """`crash`, by name and at once."""
        machine = self.get(name)
        self.world.crash(name)
        self.recorder.machine_crashed(machine.sim)
        if isinstance(machine, ClusterNode):
            machine.went_down()

    def hit_pause(self, name: str) -> None:
        """`pause`, by name and at once."""
        self.world.pause(name)
        self.recorder.machine_paused(self.world.node(name))

    # --- looking ------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """True virtual seconds since the run began."""
        return self.world.now

    def running(self, key: str) -> list[Machine]:
        """The machines that run the job: the handler's ``start`` has returned, ``stop`` was not called, and they are
        not crashed."""
        return [self._machine_of(tenure.node) for tenure in self.recorder.of(key) if tenure.runs]

    def owners(self, key: str) -> list[Machine]:
        """The machines whose handler has the job: from the call of ``start`` until ``stop`` has returned."""
        return [self._machine_of(tenure.node) for tenure in self.recorder.of(key) if tenure.holds]

    def history(self, key: str) -> list[Tenure]:
        """Who had the job when, oldest first, with the fencing tokens."""
        return list(self.recorder.of(key))

    def _machine_of(self, node: SimNode) -> Machine:
        return self._machines[node.name]

    async def eventually(
        self, predicate: Callable[[], object], *, within: float, every: float = 0.05, what: str | None = None
    ) -> None:
        """Return as soon as ``predicate()`` is true, within ``within`` virtual seconds.

        Faults that the plan injects rest meanwhile, and those it began are undone; what the scenario did itself (a
        crash, a partition) stays. ``predicate`` may be async.

        Raises:
            NotInTime: it was not true in time.
        """
        await self.world.eventually(predicate, within=within, every=every, what=what)

    def always(self, name: str, check: Callable[[], None]) -> None:
        """Call ``check`` after every step of the store; the run fails if it raises."""
        self.world.always(name, check)

    def sometimes(self, name: str, condition: bool = True) -> None:
        """Count that a situation was reached (``Result.sometimes``): proof that a test has tested something."""
        self.world.sometimes(name, condition)

    def choose(self, n: int, label: str) -> int:
        """A number from 0 to ``n - 1``, from the seed: use it for the scenario's own choices, so that a failure is
        reduced in them too. 0 is the simplest choice."""
        return self.world.chooser.choose(n, f"scenario:{label}")

    def tell(self, what: str) -> None:
        """Add a line to the story that a failure prints."""
        self.world.tell(what)


class _Targets(WorldTargets):
    """What the plan's faults may hit: nodes that are up. Machines without a node are the scenario's own affair."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.world)
        self._cluster = cluster

    def names(self) -> list[str]:
        up = {machine.name for machine in self._cluster.machines if isinstance(machine, ClusterNode) and machine.up}
        return [name for name in super().names() if name in up]

    def crash(self, name: str) -> None:
        self._cluster.hit_crash(name)

    def pause(self, name: str) -> None:
        self._cluster.hit_pause(name)

    def revive(self, name: str) -> None:
        machine = self._cluster.get(name)
        if isinstance(machine, ClusterNode) and not machine.alive:
            machine.reboot_soon()


def simulate_cluster(
    scenario: Callable[[Cluster], Awaitable[object]],
    *,
    seed: int = 0,
    token: str | None = None,
    faults: Faults | None = None,
    budgets: Budgets | None = None,
    name: str | None = None,
    check_ownership: bool = True,
    store_options: MemoryOptions | None = None,
    most_replays: int = 300,
    most_seconds: float = 30.0,
) -> Result:
    """Run ``async def scenario(cluster)`` once; see `corepool_memory.sim.run.simulate`. What corepool logs as a warning or
    worse goes into the story, and nowhere else.

    check_ownership: end the run as failed when the pool breaks its promises about who runs a job.
    store_options: of the simulated store; ``MemoryOptions(atomic_commit=False)`` is one that can do less.
    """
    stories: list[StoryLog] = []
    logger = logging.getLogger("corepool")
    propagate, logger.propagate = logger.propagate, False  # else every replay of a failure floods the test's output

    def cluster(world: World) -> Cluster:
        story = StoryLog(world)
        _replace(logger, stories, story)
        return Cluster(world, check_ownership=check_ownership, store_options=store_options)

    try:
        return simulate(
            scenario,
            subject=cluster,
            seed=seed,
            token=token,
            faults=faults,
            budgets=budgets,
            name=name,
            most_replays=most_replays,
            most_seconds=most_seconds,
        )
    finally:
        _replace(logger, stories, None)
        logger.propagate = propagate


def _replace(logger: logging.Logger, installed: list[StoryLog], story: StoryLog | None) -> None:
    """One story at a time listens: a failure is replayed many times."""
    while installed:
        logger.removeHandler(installed.pop())
    if story is not None:
        installed.append(story)
        logger.addHandler(story)
