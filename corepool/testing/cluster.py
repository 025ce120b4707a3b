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
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from corepool.driver import Backend
from corepool.testing.machines import Call, ClusterNode, HandlerSource, Machine
from corepool.testing.recording import Recorder, StoryLog, Tenure
from corepool_memory.options import MemoryOptions
from corepool_memory.server import Checkpoint
from corepool_memory.sim.conditions import expression
from corepool_memory.sim.faults import Faults
from corepool_memory.sim.loop import Budgets
from corepool_memory.sim.node import SimNode
from corepool_memory.sim.run import Result, simulate
from corepool_memory.sim.world import World, WorldTargets

__all__ = ["Call", "Cluster", "ClusterNode", "Machine", "simulate_cluster"]


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
    most_seconds: float = 20.0,
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
            conditions=None
            if store_options in (None, MemoryOptions())
            else {"store_options": expression(store_options)},
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
