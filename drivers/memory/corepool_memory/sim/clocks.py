"""What time it is, on a simulated machine and on the store's server.

Purpose: `corepool.driver.Clock` on virtual time, skewed and drifting per machine.
Invariants: a machine's monotonic clock starts at an origin of its own, so that code which compares two machines'
clocks is wrong in every run; it never goes back, whatever the wall clock does. ``asyncio``'s own time on a machine is
the same clock.
Neighbours: :class:`~corepool_memory.sim.node.SimNode` holds offset and rate; the world hands these clocks to backends
and server.
"""

from __future__ import annotations

from typing import Final

from corepool_memory.sim.loop import SimLoop
from corepool_memory.sim.node import SimNode

__all__ = ["EPOCH", "NodeClock", "ServerClock"]

EPOCH: Final = 1_700_000_000.0
"""Wall-clock time at the beginning of every simulation, in seconds since 1970."""


class NodeClock:
    """The clocks of one machine."""

    __slots__ = ("_loop", "_node")

    def __init__(self, loop: SimLoop, node: SimNode) -> None:
        self._loop = loop
        self._node = node

    def wall(self) -> float:
        node = self._node
        return EPOCH + self._loop.now + node.wall_offset

    def monotonic(self) -> float:
        return self._node.local_time(self._loop.now)


class ServerClock:
    """The store's clocks: true time."""

    __slots__ = ("_loop",)

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def wall(self) -> float:
        return EPOCH + self._loop.now

    def monotonic(self) -> float:
        return self._loop.now
