"""What handlers did in a simulated cluster, and the rules they can rely on.

Purpose: wrap each handler, write down when it had which job, and check at each step what the pool promises.
Invariants checked (numbers as in the design, section 5):

- 1: while a machine runs a job nobody else starts it. A machine that was paused meanwhile may not have noticed that
  its lease ran out: then only the fencing tokens protect, and it is the tokens that are checked.
- 5: tokens of a key only grow; for one key on one worker start and stop strictly alternate.

Neighbours: the cluster wraps the handlers it is given; a violation ends the run (``World.fail``); ``history`` judges `effects`.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from typing import Any

import attrs

from corepool.pool import FencingToken, Job
from corepool.testing.history import Effect
from corepool_memory.sim.errors import InvariantViolated
from corepool_memory.sim.node import SimNode, current_node
from corepool_memory.sim.world import World

__all__ = ["Recorder", "StoryLog", "Tenure", "recorded"]


@attrs.define(slots=True, eq=False)
class Tenure:
    """One worker's time with one job.

    machine: where, with the incarnation (``node-1``, ``node-1#2``). token: the fencing token it was given.
    began: when ``start`` was called. running: when it returned, None if it has not. stopping: when ``stop`` was
        called. ended: when the handler was rid of the job: ``stop`` returned, or ``start`` failed. All in true virtual
        seconds.
    """

    key: str
    machine: str
    token: FencingToken
    payload: bytes
    attempt: int
    node: SimNode
    began: float
    running: float | None = None
    stopping: float | None = None
    ended: float | None = None
    paused: bool = False

    @property
    def gone(self) -> float | None:
        """When the handler no longer had the job: ``ended``, or the machine's crash. None if it still has it."""
        return self.ended if self.ended is not None else self.node.crashed_at

    @property
    def holds(self) -> bool:
        """The handler has the job: its start was called and its stop has not returned, on a machine that is not
        crashed."""
        return self.ended is None and self.node.alive

    @property
    def runs(self) -> bool:
        """The handler runs the job: its start has returned and its stop was not called, on a machine that is not
        crashed."""
        return self.holds and self.running is not None and self.stopping is None


class Recorder:
    """All tenures of a run.

    check: whether to hold the pool to its promises.
    """

    def __init__(self, world: World, *, check: bool = True) -> None:
        self.world = world
        self.check = check
        self.tenures: dict[str, list[Tenure]] = {}
        self._by_node: dict[SimNode, list[Tenure]] = {}
        """Those of each machine that had not ended when they were last looked at."""

    def of(self, key: str) -> list[Tenure]:
        """The tenures of a key, oldest first."""
        return self.tenures.get(key, [])

    def effects(self) -> list[Effect]:
        """All tenures, as the judge of histories takes them."""
        return [
            Effect(
                key=key,
                payload=tenure.payload,
                owner=tenure.machine,
                token=tenure.token,
                began=tenure.began,
                running=tenure.running,
                stopping=tenure.stopping,
                ended=tenure.gone,
                suspended=tenure.paused,
            )
            for key, tenures in sorted(self.tenures.items())
            for tenure in tenures
        ]

    def machine_paused(self, node: SimNode) -> None:
        """From now on what the machine has may be taken over without its knowledge."""
        for tenure in self._open(node):
            tenure.paused = True

    def machine_crashed(self, node: SimNode) -> None:
        """Whatever the machine had, it has no longer."""
        for tenure in self._open(node):
            tenure.ended = self.world.now

    def _open(self, node: SimNode) -> list[Tenure]:
        """What the machine has."""
        found = self._by_node[node] = [tenure for tenure in self._by_node.get(node, ()) if tenure.ended is None]
        return found

    def begin(self, node: SimNode, job: Job, own: dict[str, Tenure]) -> Tenure:
        """A handler's ``start`` is about to be called."""
        earlier = self.tenures.setdefault(job.key, [])
        tenure = Tenure(
            job.key, node.label, job.fencing_token, job.payload, job.attempt, node, self.world.now, paused=node.paused
        )
        if self.check:
            self._check(tenure, earlier, own)
        earlier.append(tenure)
        self._by_node.setdefault(node, []).append(tenure)
        self.world.tell(f"start({job.key!r}) token {job.fencing_token}, attempt {job.attempt}")
        return tenure

    def _check(self, tenure: Tenure, earlier: list[Tenure], own: dict[str, Tenure]) -> None:
        key = tenure.key
        if key in own:
            self._fail(f"start({key!r}) was called on {tenure.machine}, which has the job already (no stop in between)")
        for other in earlier:
            if other.token >= tenure.token:
                self._fail(
                    f"start({key!r}) on {tenure.machine} has token {tenure.token}, but {other.machine} had {other.token} "
                    f"before: tokens of a key only grow"
                )
            if other.holds and not other.paused:
                self._fail(
                    f"start({key!r}) on {tenure.machine} (token {tenure.token}) while {other.machine} has the job "
                    f"(token {other.token}, since {other.began:.3f}): two live owners"
                )

    def stop_called(self, node: SimNode, key: str, own: dict[str, Tenure]) -> Tenure | None:
        """A handler's ``stop`` is about to be called."""
        tenure = own.get(key)
        self.world.tell(f"stop({key!r})")
        if tenure is None:
            if self.check:
                self._fail(f"stop({key!r}) was called on {node.label}, which does not have the job")
            return None
        tenure.stopping = self.world.now
        return tenure

    def _fail(self, text: str) -> None:
        violation = InvariantViolated(text)
        self.world.fail(violation)
        raise violation


class StoryLog(logging.Handler):
    """Puts what corepool logs as a warning or worse into a run's story, with virtual times and machines."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = weakref.ref(world)  # it goes with its run, and does not wait for whoever removes this handler

    def emit(self, record: logging.LogRecord) -> None:
        node, world = current_node(), self._world()
        if world is None:
            return
        text = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            text += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        world.trace.log(world.now, "" if node is None else node.label, text)


class _RecordedHandler:
    """A handler that writes down what it is asked, and asks the user's."""

    def __init__(self, recorder: Recorder, node: SimNode, handler: Any) -> None:
        self._recorder = recorder
        self._node = node
        self._handler = handler
        self._own: dict[str, Tenure] = {}

    def __repr__(self) -> str:
        return repr(self._handler)

    async def start(self, job: Job) -> None:
        recorder, own = self._recorder, self._own
        tenure = recorder.begin(self._node, job, own)
        own[job.key] = tenure
        try:
            await _called(self._handler.start, job)
        except (
            Exception
        ) as error:  # not a cancellation: a start that is interrupted gets its stop, which ends the tenure
            tenure.ended = recorder.world.now  # not started: there will be no stop
            own.pop(job.key, None)
            recorder.world.tell(f"start({job.key!r}) raised {type(error).__name__}: {error}")
            raise
        tenure.running = recorder.world.now

    async def stop(self, key: str) -> None:
        recorder = self._recorder
        tenure = recorder.stop_called(self._node, key, self._own)
        try:
            await _called(self._handler.stop, key)
        finally:
            self._own.pop(key, None)
            if tenure is not None:
                tenure.ended = recorder.world.now


class _NotifiedHandler(_RecordedHandler):
    """The same for a handler that takes notifications."""

    async def notify(self, key: str, payload: bytes) -> None:
        self._recorder.world.tell(f"notify({key!r}, {payload[:40]!r})")
        await _called(self._handler.notify, key, payload)


async def _called(method: Any, *arguments: Any) -> None:
    result = method(*arguments)
    if inspect.isawaitable(result):
        await result


def recorded(recorder: Recorder, node: SimNode, handler: Any) -> Any:
    """``handler`` under observation."""
    kind = _NotifiedHandler if callable(getattr(handler, "notify", None)) else _RecordedHandler
    return kind(recorder, node, handler)
