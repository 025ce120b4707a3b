"""The server: all state, and nothing that waits.

Purpose: one implementation of what the driver contract means, shared by ``memory://`` and by the simulator.
Invariants:

- every operation is a plain function call that runs to its end: atomicity needs no lock;
- time comes from a `Clock` and timers from a ``call_later``, both handed in, so the same code runs on an event loop and in
  virtual time; nothing depends on hash order, object identity or the operating system;
- a revision or an event id is never given twice, and never goes back, whatever is cleared, destroyed or stopped. The one
  exception is `rollback`, which plays a store that lost acknowledged writes: revisions go back then, and ``generation``
  grows, and every watcher is told (R13).

Neighbours: a `Transport` runs requests on it. The parts: ``server_maps``, ``server_streams``, ``server_sinks``,
``server_commit``.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Sequence

import attrs

from corepool.driver import Clock, CommitResult, Op, OpResult
from corepool_memory.server_commit import commit
from corepool_memory.server_maps import MapSpace, SavedMaps
from corepool_memory.server_sinks import CallLater, Receipts, Timing
from corepool_memory.server_streams import SavedStreams, StreamSpace

__all__ = ["CallLater", "Checkpoint", "Server"]


@attrs.define(slots=True, eq=False)
class _Space:
    maps: MapSpace
    streams: StreamSpace


@attrs.frozen(slots=True)
class Checkpoint:
    """A state of a server to which `Server.rollback` can go back, any number of times. Opaque."""

    spaces: dict[str, tuple[SavedMaps, SavedStreams]]


class Server:
    """Namespaces of maps and streams.

    clock: the server's own; ``wall`` stamps events, ``monotonic`` measures ``ack_wait``.
    call_later: runs a function on the server after so many seconds.
    random: draws what tells this server's receipts from another's.
    """

    def __init__(self, *, clock: Clock, call_later: CallLater, random: random_module.Random) -> None:
        self.generation = 0
        self._timing = Timing(clock, call_later)
        self._receipts = f"{random.getrandbits(32):08x}"
        self._spaces: dict[str, _Space] = {}

    def maps(self, namespace: str) -> MapSpace:
        return self._space(namespace).maps

    def streams(self, namespace: str) -> StreamSpace:
        return self._space(namespace).streams

    def commit(self, namespace: str, ops: Sequence[Op], earlier: Sequence[OpResult] = ()) -> CommitResult:
        """Apply a batch, all or nothing. ``earlier``: results of operations before these, which a stamp may refer to."""
        space = self._space(namespace)
        return commit(space.maps, space.streams, ops, earlier)

    def _space(self, namespace: str) -> _Space:
        space = self._spaces.get(namespace)
        if space is None:
            receipts = Receipts(f"{self._receipts}-{len(self._spaces)}-")
            space = _Space(MapSpace(self.generation), StreamSpace(receipts, self._timing))
            self._spaces[namespace] = space
        return space

    # --- looking in from outside --------------------------------------------------------------------------------------

    def contents(self) -> dict[str, tuple[list[str], list[str]]]:
        """By namespace: the maps that hold something, and the streams that exist. Namespaces with neither are left out."""
        found = {name: (space.maps.names(), space.streams.names()) for name, space in self._spaces.items()}
        return {name: held for name, held in found.items() if held[0] or held[1]}

    def listener_count(self) -> int:
        """How many watches, readers and sink members are attached."""
        return sum(space.maps.watcher_count() + space.streams.listener_count() for space in self._spaces.values())

    # --- another event loop -------------------------------------------------------------------------------------------

    def move(self, call_later: CallLater) -> None:
        """Go on with other timers: the event loop that ran the old ones is gone."""
        self._timing.call_later = call_later
        for space in self._spaces.values():
            space.streams.rearm()

    # --- losing acknowledged writes -----------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """What `rollback` can go back to."""
        return Checkpoint({name: (space.maps.save(), space.streams.save()) for name, space in self._spaces.items()})

    def rollback(self, to: Checkpoint) -> None:
        """Lose every write since ``to``, as a failover to a replica that lagged does.

        Revisions go back and will be given again, to other writes; ``generation`` grows, and every watcher gets a snapshot
        that says so. Event ids and receipts do not go back. Feeds stay attached: a transport that wants its clients to lose
        their connections as well cuts them itself.
        """
        self.generation += 1
        for name, space in self._spaces.items():
            maps, streams = to.spaces.get(name, (None, None))
            space.streams.restore(streams)
            space.maps.restore(maps, self.generation)
