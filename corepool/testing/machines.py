"""The machines of a simulated cluster: bare ones, and those with a pool node.

Purpose: everything that runs in a cluster runs on a machine, and dies with it.
Invariants: each method of a `ClusterNode` runs on its machine and raises `NodeCrashed` if that is crashed meanwhile;
after a restart the same object stands for the machine's next incarnation, with a new node and a new connection.
Neighbours: made by `Cluster`; runs `corepool.Node` on :class:`corepool_memory.sim.world.World`.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import attrs

from corepool.driver import Backend
from corepool.errors import BackendUnavailable, OutcomeUnknown
from corepool.pool import Explanation, Health, JobHandler, Node, Producer, Schedule, Worker, WorkerRecord
from corepool.testing.recording import recorded
from corepool_memory.sim.errors import InvariantViolated, NodeCrashed

if TYPE_CHECKING:
    from corepool.testing.cluster import Cluster

__all__ = ["Call", "ClusterNode", "HandlerSource", "Machine"]

T = TypeVar("T")

HandlerSource: TypeAlias = JobHandler | Callable[[], JobHandler]
"""A handler, or something that makes one (its class): then a machine that is restarted gets a new one, without any memory."""

_BOOT_AGAIN = 1.0
"""Seconds after which a node that could not reach the store tries again."""

_LAST_TURNS = 16
"""Turns of the event loop in which calls of the scenario that waited for the closed connection see that and end."""


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
        for _ in range(_LAST_TURNS):
            if self.tasks():
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
        except BaseException as error:  # a cancelled call, too, is told of in the story
            call.error = _frameless(error)
            cluster.world.trace.tell(cluster.now, self.sim.label, f"{shown} raises {type(error).__name__}: {error}")
            raise
        finally:
            call.returned = cluster.now
        cluster.world.trace.tell(cluster.now, self.sim.label, f"{shown} returns")
        return result


def _frameless(error: BaseException) -> BaseException:
    """An error without the frames it came through: those of thousands of calls would keep alive all that they hold."""
    try:
        return copy.copy(error)
    except Exception:  # noqa: BLE001  an error of the scenario's own that cannot be copied is kept with its frames
        return error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
