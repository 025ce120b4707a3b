"""A simulated machine: the identity that every task, callback and timer of it carries.

Purpose: decide, for each callback about to run, whether its machine still runs it.
Invariants:

- One `SimNode` is one incarnation: after a restart a new object with the same name takes its place, so nothing of the
  old incarnation can run again.
- A crash is a power cut: no ``CancelledError`` is thrown and no ``finally`` block runs. Everything that belonged to
  the machine is kept in its graveyard (dropping the last reference to a suspended coroutine would run its ``finally``
  blocks).
- A pause parks callbacks in order; local time goes on meanwhile, as on a stopped process.

Neighbours: :mod:`~corepool_memory.sim.loop` asks ``running`` before each callback; the world crashes, pauses and
restarts; :mod:`~corepool_memory.sim.clocks` reads the clocks.
"""

from __future__ import annotations

from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from corepool_memory.sim.loop import SimHandle

__all__ = ["CURRENT", "SimNode", "current_node"]


class SimNode:
    """One incarnation of a machine.

    name: unique among machines; network faults are keyed by it.
    incarnation: 1, then one more per restart.
    alive: False after a crash, for good.
    paused: callbacks are parked until `resume`.
    running: alive and not paused.
    crashed_at: when, in true virtual seconds; None while it is alive.
    wall_offset: seconds by which the machine's wall clock is ahead of true time.
    rate: how fast the machine's clocks run; 1.0 is true time.
    """

    __slots__ = (
        "_base_global",
        "_base_local",
        "alive",
        "context",
        "crashed_at",
        "graveyard",
        "incarnation",
        "name",
        "parked",
        "paused",
        "rate",
        "running",
        "wall_offset",
    )

    def __init__(self, name: str, *, incarnation: int = 1, wall_offset: float = 0.0) -> None:
        self.name: Final = name
        self.incarnation: Final = incarnation
        self.alive = True
        self.paused = False
        self.running = True
        self.crashed_at: float | None = None
        self.wall_offset = wall_offset
        self.rate = 1.0
        self.parked: list[SimHandle] = []
        self.graveyard: list[object] = []
        self._base_local = 0.0
        self._base_global = 0.0
        self.context: Final[Context] = Context()
        self.context.run(CURRENT.set, self)

    def __repr__(self) -> str:
        return f"<SimNode {self.label} {self.state}>"

    @property
    def label(self) -> str:
        """``name``, and from the second incarnation on ``name#2``."""
        return self.name if self.incarnation == 1 else f"{self.name}#{self.incarnation}"

    @property
    def state(self) -> str:
        """``running``, ``paused`` or ``crashed``: for reports."""
        if not self.alive:
            return "crashed"
        return "paused" if self.paused else "running"

    # --- local time ------------------------------------------------------------------------------------------------

    def local_time(self, true_time: float) -> float:
        """The machine's monotonic clock at ``true_time``."""
        if self.rate == 1.0:
            return true_time + (self._base_local - self._base_global)
        return self._base_local + (true_time - self._base_global) * self.rate

    def true_time(self, local_time: float) -> float:
        """When the machine's monotonic clock shows ``local_time``, if its rate does not change before."""
        return self._base_global + (local_time - self._base_local) / self.rate

    def set_clock(self, local_time: float, true_time: float) -> None:
        """Let the machine's monotonic clock show ``local_time`` now."""
        self._base_local = local_time
        self._base_global = true_time

    def set_rate(self, rate: float, true_time: float) -> None:
        """Let the machine's clocks run ``rate`` times as fast from now on; timers that are set already keep their
        instant."""
        if not rate > 0:
            raise ValueError(f"a clock rate is positive, not {rate}")
        self._base_local = self.local_time(true_time)
        self._base_global = true_time
        self.rate = rate

    # --- life and death --------------------------------------------------------------------------------------------

    def shelve(self, handle: SimHandle) -> None:
        """Keep a callback that must not run: for later if paused, for ever if dead."""
        (self.parked if self.alive else self.graveyard).append(handle)

    def die(self, belongings: list[Any]) -> None:
        """Cut the power. ``belongings`` (the tasks) are kept so that nothing of them is finalized during the run."""
        self.alive = self.running = self.paused = False
        self.graveyard.extend(self.parked)
        self.parked.clear()
        self.graveyard.extend(belongings)

    def pause(self) -> None:
        """Park everything from now on."""
        self.paused = True
        self.running = False

    def resume(self) -> list[SimHandle]:
        """Go on; returns what was parked, in order."""
        self.paused = False
        self.running = self.alive
        handles, self.parked = self.parked, []
        return handles


CURRENT: ContextVar[SimNode | None] = ContextVar("corepool_memory_sim_node", default=None)


def current_node() -> SimNode | None:
    """The machine the running code belongs to; None for the scenario itself and for the store's server."""
    return CURRENT.get()
