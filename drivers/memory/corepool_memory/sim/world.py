"""The simulated world: machines, their network, the store, and what befalls them.

Purpose: one object that a scenario holds, on which everything it can do to a cluster is a method.
Invariants:

- everything in it is a function of the seed and the decisions (:mod:`~corepool_memory.sim.chooser`);
- code runs on a machine or outside all of them (the scenario, the server); what runs on a machine dies with it;
- the server lives outside all machines: its state survives everything but `rollback`.

Neighbours: :mod:`~corepool_memory.sim.run` makes one per run and tears it down. It knows no worker pools:
``corepool.testing`` builds a cluster of those on top.
"""

from __future__ import annotations

import asyncio
import logging
import random as random_module
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from contextvars import Context
from typing import Any, TypeVar, cast

from corepool_memory.backend import MemoryBackend
from corepool_memory.options import MemoryOptions
from corepool_memory.server import Checkpoint, Server
from corepool_memory.sim.chooser import Chooser
from corepool_memory.sim.clocks import NodeClock, ServerClock
from corepool_memory.sim.errors import InvariantViolated, NodeCrashed, NotInTime
from corepool_memory.sim.faults import FaultPlan, Nemesis
from corepool_memory.sim.loop import SimFuture, SimLoop, SimTask, tasks_of
from corepool_memory.sim.network import Network
from corepool_memory.sim.node import SimNode, current_node
from corepool_memory.sim.trace import Trace
from corepool_memory.sim.transport import SimTransport

__all__ = ["World", "WorldTargets", "torn_out"]

T = TypeVar("T")


class _Crash:
    """How a call ends whose machine was crashed."""


_CRASHED = _Crash()

_SKEW_STEPS = 21
_ORIGIN = 10_000.0
"""How far apart the machines' monotonic clocks start."""


class World:
    """Machines, network and store of one run.

    now: true virtual seconds since the run began.
    nodes: the newest incarnation of each machine, by name.
    violation: the first check that failed.
    problems: what asyncio would have logged: exceptions nobody retrieved, callbacks that failed.
    """

    def __init__(self, *, loop: SimLoop, chooser: Chooser, plan: FaultPlan, seed: int) -> None:
        self.loop = loop
        self.chooser = chooser
        self.plan = plan
        self.seed = seed
        self.trace = Trace()
        self.nodes: dict[str, SimNode] = {}
        self.violation: BaseException | None = None
        self.problems: list[str] = []
        self.server = Server(
            clock=ServerClock(loop),
            call_later=self._server_timer,
            random=random_module.Random(f"corepool:{seed}:store"),
        )
        self.network = Network(loop, chooser, plan, self.server)
        self.network.on_request = self._on_request
        self.network.on_fault = lambda kind, name, what: self.trace.fault(loop.now, kind, name, what)
        self.nemesis = Nemesis(plan, chooser, WorldTargets(self))
        self.network.cut_power = self.nemesis.cut_power
        self.nemesis_task: SimTask[None] | None = None
        self._checks: dict[str, Callable[[], None]] = {}
        self._calls: dict[SimNode, dict[SimFuture[Any], SimTask[Any]]] = {}
        self._connections: Counter[str] = Counter()
        self._boots = 0
        self._calm = 0
        loop.on_problem = self.problems.append

    @property
    def now(self) -> float:
        return self.loop.now

    def _server_timer(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self.loop.at_true_time(self.loop.now + max(0.0, seconds), callback, context=Context())

    # --- machines ---------------------------------------------------------------------------------------------------

    def add_node(self, name: str) -> SimNode:
        """A new machine.

        Raises:
            ValueError: there is one of that name.
        """
        if name in self.nodes:
            raise ValueError(f"there is a machine {name!r} already; restart it, or choose another name")
        steps = self.chooser.choose(_SKEW_STEPS, f"skew:{name}")
        node = SimNode(name, wall_offset=self.plan.wall_skew * _centred(steps))
        if node.wall_offset:
            self.trace.faults["clock off"] += 1
        self._boot(node)
        drift = self.plan.drift * _centred(self.chooser.choose(_SKEW_STEPS, f"drift:{name}"))
        if drift:
            self.trace.faults["clock drift"] += 1
            node.set_rate(1.0 + drift, self.now)
        return node

    def _boot(self, node: SimNode) -> None:
        self._boots += 1
        node.set_clock(_ORIGIN * self._boots, self.now)
        self.nodes[node.name] = node
        self._calls[node] = {}

    def node(self, name: str) -> SimNode:
        """The machine of that name.

        Raises:
            KeyError: there is none; the message names those there are.
        """
        try:
            return self.nodes[name]
        except KeyError:
            raise KeyError(f"no machine is named {name!r}; there are {', '.join(self.nodes) or 'none'}") from None

    def backend(self, node: SimNode, options: MemoryOptions | None = None) -> MemoryBackend:
        """A new connection of a machine to the store, with the machine's clock and random numbers."""
        self._connections[node.label] += 1
        source = random_module.Random(f"corepool:{self.seed}:{node.label}:{self._connections[node.label]}")
        return MemoryBackend(
            SimTransport(self.network, node, NodeClock(self.loop, node), source), options=options or MemoryOptions()
        )

    def spawn(self, node: SimNode, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> SimTask[T]:
        """Start a task on a machine. It dies with it, silently."""
        if not node.alive:
            coro.close()
            raise NodeCrashed(f"machine {node.label} is crashed; restart it first")
        return self.loop.create_task(coro, name=name, context=node.context.copy())

    async def on(self, node: SimNode, function: Callable[[], Awaitable[T]], *, name: str | None = None) -> T:
        """Await ``function()`` as code of the machine.

        Raises:
            NodeCrashed: the machine is crashed, or was before the call ended.
        """
        if current_node() is node:
            return await function()
        outcome: SimFuture[T | _Crash] = self.loop.create_future()
        task = self.spawn(node, self._into(outcome, node, function), name=name)
        outcome.label = f"the end of {task.get_name()!r} on {node.label}"
        self._calls[node][outcome] = task
        try:
            result = await outcome
            if isinstance(
                result, _Crash
            ):  # raised here: what the dead hold on to for the rest of the run must be little
                raise NodeCrashed(f"machine {node.label} crashed: {outcome.label} will never come")
            return result
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            del outcome, task  # an exception keeps this frame, and must not keep itself alive through it

    async def _into(self, outcome: SimFuture[T | _Crash], node: SimNode, function: Callable[[], Awaitable[T]]) -> None:
        """Let ``outcome`` be that of ``function()``: on a machine that is crashed first, this never comes to its end."""
        try:
            result = await function()
        except (asyncio.CancelledError, GeneratorExit):
            outcome.cancel()
            raise
        except BaseException as error:  # a test framework's own signals as well: they are for the scenario
            if not outcome.done():
                outcome.set_exception(error)
                outcome.exception()  # the caller may have died meanwhile: then it is nobody's
            if isinstance(error, SystemExit | KeyboardInterrupt):
                raise
        else:
            if not outcome.done():
                outcome.set_result(result)
        finally:
            self._calls[node].pop(outcome, None)
            del outcome  # as above

    def tasks(self, name: str) -> list[str]:
        """The names of a machine's unfinished tasks. A crashed one has none."""
        return [task.get_name() for task in tasks_of(self.loop, self.node(name))]

    # --- faults -----------------------------------------------------------------------------------------------------

    def crash(self, name: str) -> None:
        """Cut a machine's power: no ``finally`` runs, no farewell is sent. Requests already sent may still be
        applied."""
        node = self.node(name)
        if not node.alive:
            return
        self.trace.fault(self.now, "crash", name, "")
        self.network.machine_died(node)
        node.crashed_at = self.now
        node.die(self.loop.bury(node))
        calls, self._calls[node] = self._calls[node], {}
        for outcome in calls:
            if not outcome.done():
                outcome.set_result(_CRASHED)

    def restart(self, name: str) -> SimNode:
        """Boot a crashed machine (a running one is crashed first): a new incarnation with the same name and clocks."""
        self.crash(name)
        old = self.node(name)
        self.trace.tell(self.now, name, "restarts")
        node = SimNode(name, incarnation=old.incarnation + 1, wall_offset=old.wall_offset)
        self._boot(node)
        node.set_rate(old.rate, self.now)
        return node

    def pause(self, name: str) -> None:
        """Stop a machine's code (SIGSTOP, a long collection, a frozen virtual machine); its clocks go on."""
        node = self.node(name)
        if node.alive and not node.paused:
            self.trace.fault(self.now, "pause", name, "")
            node.pause()

    def resume(self, name: str) -> None:
        """Let a paused machine go on, with everything that came in meanwhile."""
        node = self.node(name)
        if node.alive and node.paused:
            self.trace.tell(self.now, name, "resumes")
            self.loop.unpark(node.resume())

    def partition(self, *names: str) -> None:
        """Cut machines off from the store; without names, all of them (the store is down)."""
        for name in names or tuple(self.nodes):
            self.trace.fault(self.now, "partition", self.node(name).name, "")
            self.network.block(name)

    def heal(self, *names: str) -> None:
        """End partitions; without names, all of them."""
        for name in names or tuple(self.nodes):
            if self.network.link(name).blocked:
                self.trace.tell(self.now, name, "healed")
                self.network.unblock(name)

    def clog(self, name: str, seconds: float) -> None:
        """Let nothing that a machine sends or is sent arrive before ``seconds`` are over."""
        self.trace.fault(self.now, "clog", self.node(name).name, f"{seconds:g} s")
        self.network.clog(name, seconds)

    def reset(self, name: str) -> None:
        """Break a machine's connections; what was sent over them may still be applied, even later."""
        self.trace.fault(self.now, "reset", self.node(name).name, "")
        self.network.reset(name)

    def skew(self, name: str, seconds: float) -> None:
        """Set a machine's wall clock ``seconds`` ahead of true time (behind, if negative)."""
        self.trace.fault(self.now, "skew", self.node(name).name, f"wall clock {seconds:+g} s")
        self.node(name).wall_offset = seconds

    def set_rate(self, name: str, rate: float) -> None:
        """Let a machine's clocks run ``rate`` times as fast as true time."""
        self.trace.fault(self.now, "rate", self.node(name).name, f"clocks run {rate:g} x")
        self.node(name).set_rate(rate, self.now)

    def checkpoint(self) -> Checkpoint:
        """The store's state of now, for `rollback`."""
        return self.server.checkpoint()

    def rollback(self, to: Checkpoint) -> None:
        """Let the store lose every write since ``to``, acknowledged or not, as a failover to a lagging replica does.
        All connections break."""
        self.trace.fault(self.now, "rollback", "", "the store lost acknowledged writes")
        self.server.rollback(to)
        for name in self.nodes:
            self.network.reset(name)

    # --- the plan's outages -----------------------------------------------------------------------------------------

    def unleash(self) -> None:
        """Let the plan's outages begin."""
        if self.nemesis_task is None:
            self.nemesis_task = self.loop.create_task(self.nemesis.run(), name="nemesis", context=Context())

    def calm(self) -> None:
        """No new faults from the plan, and an end to those it began, until `storm` was called as often. Latency, and
        what the scenario itself did, go on."""
        self._calm += 1
        self.network.calm = True
        self.nemesis.rest()

    def storm(self) -> None:
        """The plan's faults may happen again, after `calm`."""
        self._calm -= 1
        self.network.calm = self._calm > 0 or self.network.shut
        self.nemesis.rise()

    # --- looking ----------------------------------------------------------------------------------------------------

    def sometimes(self, name: str, condition: bool = True) -> None:
        """Count that a situation was reached: proof that a test has tested something (see ``Result.sometimes``)."""
        if condition:
            self.trace.sometimes[name] += 1

    def tell(self, what: str) -> None:
        """Add an event to the story."""
        node = current_node()
        self.trace.tell(self.now, "" if node is None else node.label, what)

    def always(self, name: str, check: Callable[[], None]) -> None:
        """Call ``check`` after every request that the store runs; the run fails if it raises."""
        self._checks[name] = check

    def fail(self, error: BaseException) -> None:
        """End the run: something that must never happen has happened. The first one counts."""
        if self.violation is None:
            self.violation = error
            self.loop.stop()

    async def eventually(
        self, predicate: Callable[[], object], *, within: float, every: float = 0.05, what: str | None = None
    ) -> None:
        """Return as soon as ``predicate()`` is true (or awaits to something true).

        The plan's faults rest meanwhile, and those it began are undone: what must hold in spite of them belongs in
        `always`.

        within: virtual seconds.
        every: virtual seconds between looks.
        what: names the condition in the error.

        Raises:
            NotInTime: it was not true in time.
        """
        self.calm()
        try:
            until = self.now + within
            while True:
                if await _true(predicate):
                    return
                if self.now >= until:
                    raise NotInTime(f"{what or 'the condition'} did not come true within {within:g} virtual seconds")
                await asyncio.sleep(every)
        finally:
            self.storm()

    def _on_request(self, name: str, what: str, error: BaseException | None) -> None:
        self.trace.request(self.loop.now, name, what, error)
        for check_name, check in self._checks.items():
            try:
                check()
            except Exception as raised:  # noqa: BLE001  whatever a check raises is its finding
                violation = InvariantViolated(f"{check_name}: {raised or type(raised).__name__}")
                violation.__cause__ = raised
                self.fail(violation)

    # --- the end ----------------------------------------------------------------------------------------------------

    def calls_in_progress(self) -> list[SimTask[Any]]:
        """The tasks that carry out calls of `on`, in the order they were made."""
        found = [task for calls in self._calls.values() for task in calls.values() if not task.done()]
        return sorted(found, key=lambda task: task.number)

    def leftovers(self) -> list[str]:
        """Names of unfinished tasks that belong to no machine: the scenario forgot to await them."""
        return [task.get_name() for task in tasks_of(self.loop) if task.node is None and task is not self.nemesis_task]

    def tear_down(self) -> None:
        """Cut every power and close what is left, in creation order. Nothing that happens here is part of the run."""
        self.chooser.seal()
        tasks = {task.number: task for task in (*tasks_of(self.loop), *self.loop.buried)}
        for node in self.nodes.values():
            node.die([])
        self.network.shut = self.network.calm = True
        with torn_out(self.loop):
            self.loop.close()
            for number in sorted(tasks):
                _close(tasks[number])
            tasks.clear()
            self.loop.buried.clear()
            for node in self.nodes.values():
                node.graveyard.clear()


@contextmanager
def torn_out(loop: SimLoop) -> Generator[None]:
    """Where the ``finally`` blocks of code run that is torn out of its loop.

    What they leave unawaited, and log, says nothing of that code, and is not heard. And what they still ask of asyncio goes to
    the loop they belong to, which is closed and forgets it. Without a running loop asyncio would take the thread's own, a real
    one: their tasks would wait there for whoever runs it next.
    """
    level = logging.root.manager.disable
    running = asyncio._get_running_loop()
    logging.disable(logging.CRITICAL)
    asyncio._set_running_loop(loop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        asyncio._set_running_loop(running)
        logging.disable(level)


class WorldTargets:
    """What a nemesis can do to a world: bare machines. Subclass it for what runs on them."""

    def __init__(self, world: World) -> None:
        self.world = world

    def names(self) -> list[str]:
        """Machines that nothing ails yet: so a nemesis never undoes what a scenario did."""
        world = self.world
        return [name for name, node in world.nodes.items() if node.running and not world.network.link(name).blocked]

    def crash(self, name: str) -> None:
        self.world.crash(name)

    def revive(self, name: str) -> None:
        if not self.world.node(name).alive:
            self.world.restart(name)

    def pause(self, name: str) -> None:
        self.world.pause(name)

    def resume(self, name: str) -> None:
        self.world.resume(name)

    def partition(self, name: str) -> None:
        self.world.partition(name)

    def heal(self, name: str) -> None:
        self.world.heal(name)

    def clog(self, name: str, seconds: float) -> None:
        self.world.clog(name, seconds)

    def skew(self, name: str, seconds: float) -> None:
        self.world.skew(name, seconds)


def _centred(steps: int) -> float:
    """From a decision to a number between -1 and 1, with 0 for 0."""
    half = _SKEW_STEPS // 2
    return ((steps + half) % _SKEW_STEPS - half) / half


async def _true(predicate: Callable[[], object]) -> bool:
    answer = predicate()
    if isinstance(answer, Awaitable):
        return bool(await cast("Awaitable[object]", answer))
    return bool(answer)


def _close(task: SimTask[Any]) -> None:
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own switch for tasks that are dropped
    coro, loop = task.get_coro(), task.get_loop()
    asyncio._enter_task(loop, task)
    try:
        for _ in range(100):  # each ``await`` in a ``finally`` block needs a close of its own
            try:
                coro.close()
            except (Exception, GeneratorExit, asyncio.CancelledError):  # noqa: BLE001  it has no power: what it raises is void
                continue
            return
    finally:
        asyncio._leave_task(loop, task)
