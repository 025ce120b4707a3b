"""What may go wrong in a run, and how often.

Purpose: from what a test allows (`Faults`) to what one seed gets (`FaultPlan`), and the task that crashes, pauses and
cuts off machines while a scenario runs (`Nemesis`). Invariants:

- Swarm testing: each seed draws which kinds of faults it has and how many; a run with all of them at once hides more
  than it finds.
- Every draw has 0 as its default, "not here": a minimised run holds the faults that matter and no others.
- While a `Nemesis` rests no new fault begins and those it began are undone: what must come right then can be demanded.

Neighbours: the network reads the plan for each message; the world (or a cluster above it) is the nemesis's `Targets`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import attrs

from corepool_memory.sim.chooser import Chooser

__all__ = ["FaultPlan", "Faults", "Nemesis", "Targets"]

_LEVELS = 5
"""Intensities a seed can draw for a kind of fault, 0 (none) included."""


@attrs.frozen(slots=True, kw_only=True)
class Faults:
    """The most that a run may get. All durations are virtual seconds; a probability is per request, an interval is a
    mean.

    latency: the least and the most time a message takes in one direction.
    request_loss: probability that a request vanishes; its caller waits for its time-out (`OutcomeUnknown` for a write).
    reply_loss: probability that a request is applied but its answer vanishes.
    reset: probability that the connection breaks around a request: before or after the store ran it, or while it is on its way
        (then it may be applied later, when the client has come back on a new connection).
    duplicate: probability that a delivery of a stream event arrives twice.
    crash_at_request: probability that a machine's power is cut at the very moment at which the store has run its request:
        crashes between any two steps of what it does, where a crash at a random time hardly ever hits.
    slow: probability that a message takes up to ``slow_seconds`` longer, and holds up those behind it.
    crash_every, pause_every, partition_every, clog_every, skew_every: mean seconds between such faults; None: never.
    outage: the longest crash, pause, partition or clog.
    wall_skew: how far a machine's wall clock may be off, either way; it also jumps by as much (``skew_every``).
    drift: how much a machine's clocks may be too fast or too slow: 0.01 is one percent.
    request_timeout: after how long a client gives up on an answer and breaks its connection.
    connect_timeout: how long a call on a broken connection waits before it fails with `BackendUnavailable`.
    swarm: draw kinds and intensities per seed; False: every seed gets the numbers as they stand.
    """

    latency: tuple[float, float] = (0.0002, 0.005)
    request_loss: float = 0.0
    reply_loss: float = 0.0
    reset: float = 0.0
    duplicate: float = 0.0
    crash_at_request: float = 0.0
    slow: float = 0.0
    slow_seconds: float = 2.0
    crash_every: float | None = None
    pause_every: float | None = None
    partition_every: float | None = None
    clog_every: float | None = None
    skew_every: float | None = None
    outage: float = 30.0
    wall_skew: float = 0.0
    drift: float = 0.0
    request_timeout: float = 5.0
    connect_timeout: float = 1.0
    swarm: bool = True

    @classmethod
    def network(cls) -> Faults:
        """Latency alone: what a test gets that asks for nothing."""
        return cls()

    @classmethod
    def everything(cls) -> Faults:
        """All kinds of faults, drawn per seed, at intensities a worker pool has to survive."""
        return cls(
            latency=(0.0002, 0.05),
            request_loss=0.02,
            reply_loss=0.02,
            reset=0.02,
            duplicate=0.05,
            crash_at_request=0.004,
            slow=0.01,
            crash_every=40.0,
            pause_every=40.0,
            partition_every=40.0,
            clog_every=40.0,
            skew_every=60.0,
            wall_skew=3600.0,
            drift=0.01,
        )

    def draw(self, chooser: Chooser) -> FaultPlan:
        """What one run gets."""

        def level(kind: str) -> float:
            if not self.swarm:
                return 1.0
            return chooser.choose(_LEVELS, f"plan:{kind}") / (_LEVELS - 1)

        def often(kind: str, every: float | None) -> float:
            strength = level(kind)  # drawn in any case, so that the plan's labels do not depend on each other
            return 0.0 if every is None else strength / every

        return FaultPlan(
            faults=self,
            request_loss=self.request_loss * level("request_loss"),
            reply_loss=self.reply_loss * level("reply_loss"),
            reset=self.reset * level("reset"),
            duplicate=self.duplicate * level("duplicate"),
            crash_at_request=self.crash_at_request * level("crash_at_request"),
            slow=self.slow * level("slow"),
            crashes=often("crash", self.crash_every),
            pauses=often("pause", self.pause_every),
            partitions=often("partition", self.partition_every),
            clogs=often("clog", self.clog_every),
            skews=often("skew", self.skew_every),
            wall_skew=self.wall_skew * level("wall_skew"),
            drift=self.drift * level("drift"),
        )


@attrs.frozen(slots=True, kw_only=True)
class FaultPlan:
    """What one run got: probabilities per message, rates per second, and the limits of `Faults`."""

    faults: Faults
    request_loss: float
    reply_loss: float
    reset: float
    duplicate: float
    crash_at_request: float
    slow: float
    crashes: float
    pauses: float
    partitions: float
    clogs: float
    skews: float
    wall_skew: float
    drift: float

    def describe(self) -> str:
        """The kinds that are on, for a story's first line."""
        on = [
            f"{field.name} {value:g}"
            for field in attrs.fields(FaultPlan)
            if field.name != "faults" and (value := getattr(self, field.name))
        ]
        return ", ".join(on) or "none but latency"

    @property
    def has_outages(self) -> bool:
        """Whether a nemesis has anything to do."""
        return any((self.crashes, self.pauses, self.partitions, self.clogs, self.skews))


class Targets(Protocol):
    """What a nemesis can do. Machines are named; a name that is gone meanwhile is ignored."""

    def names(self) -> list[str]:
        """Those that may be hit now, in a stable order."""
        ...

    def crash(self, name: str) -> None: ...

    def revive(self, name: str) -> None: ...

    def pause(self, name: str) -> None: ...

    def resume(self, name: str) -> None: ...

    def partition(self, name: str) -> None: ...

    def heal(self, name: str) -> None: ...

    def clog(self, name: str, seconds: float) -> None: ...

    def skew(self, name: str, seconds: float) -> None: ...


class Nemesis:
    """Hits machines at random moments.

    targets: what it can hit; may be replaced before it strikes.
    tick: seconds between its looks; each kind of fault begins at most once per look.
    """

    def __init__(self, plan: FaultPlan, chooser: Chooser, targets: Targets, *, tick: float = 0.5) -> None:
        self._plan = plan
        self._chooser = chooser
        self.targets = targets
        self._tick = tick
        self._resting = 0
        self._undo: dict[tuple[str, str], Callable[[], None]] = {}

    async def run(self) -> None:
        """Strike for ever."""
        while True:
            await asyncio.sleep(self._tick)
            if not self._resting:
                self._look()

    def rest(self) -> None:
        """Begin no more faults and undo those that last, until `rise` was called as often."""
        self._resting += 1
        undo, self._undo = self._undo, {}
        for action in undo.values():
            action()

    def rise(self) -> None:
        """Go on after `rest`."""
        self._resting -= 1

    def _look(self) -> None:
        plan, targets = self._plan, self.targets
        self._strike("crash", plan.crashes, targets.crash, targets.revive)
        self._strike("pause", plan.pauses, targets.pause, targets.resume)
        self._strike("partition", plan.partitions, targets.partition, targets.heal)
        self._strike("clog", plan.clogs, self._clog, None)
        self._strike("skew", plan.skews, self._skew, None)

    def _strike(self, kind: str, rate: float, begin: Callable[[str], None], end: Callable[[str], None] | None) -> None:
        if not self._chooser.chance(rate * self._tick, f"nemesis:{kind}"):
            return
        names = self.targets.names()
        if not names:
            return
        name = names[self._chooser.choose(len(names), f"nemesis:{kind}:target")]
        self._begin(kind, name, begin, end)

    def cut_power(self, name: str) -> bool:
        """Crash a machine now, if it may be hit, and bring it back later (see ``Faults.crash_at_request``). Whether it was."""
        if self._resting or name not in self.targets.names():
            return False
        return self._begin("crash", name, self.targets.crash, self.targets.revive)

    def _begin(self, kind: str, name: str, begin: Callable[[str], None], end: Callable[[str], None] | None) -> bool:
        if (kind, name) in self._undo:
            return False
        begin(name)
        if end is not None:
            self._later(kind, name, self._duration(kind), end)
        return True

    def _later(self, kind: str, name: str, seconds: float, end: Callable[[str], None]) -> None:
        def undo() -> None:
            end(name)

        def expire() -> None:
            if self._undo.pop((kind, name), None) is not None:
                undo()

        self._undo[kind, name] = undo
        asyncio.get_running_loop().call_later(seconds, expire)

    def _duration(self, kind: str) -> float:
        """Short ones are more likely; the longest is ``outage``."""
        share = (1 + self._chooser.choose(16, f"nemesis:{kind}:seconds")) / 16
        return self._plan.faults.outage * share * share

    def _clog(self, name: str) -> None:
        self.targets.clog(name, self._duration("clog"))

    def _skew(self, name: str) -> None:
        steps = self._chooser.choose(21, "nemesis:skew:by")
        self.targets.skew(name, self._plan.wall_skew * ((steps + 10) % 21 - 10) / 10)
