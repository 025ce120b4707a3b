"""One scenario, one verdict.

Purpose: run a scenario in a simulated world; if it fails, reduce the failure and tell its story.
Invariants:

- `simulate` never raises for what it finds: the verdict is a `Result`. It raises for wrong arguments, and lets through
  what must stop everything (``KeyboardInterrupt``, a test framework's own signals).
- A digest is the same in every process for the same Python version, scenario, seed or token.
- A failure is replayed with all of its recorded decisions first: if that does not fail alike, the code under test is
  not a function of its seed, and the report says so instead of showing a story that did not happen.

Neighbours: used by ``corepool.testing`` and the ``corepool`` command; everything else of this package is its parts.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, overload

import attrs

import corepool.driver
import corepool_memory
from corepool_memory.sim.chooser import Chooser, Deviations, SeededChooser, SparseChooser
from corepool_memory.sim.conditions import expression, refuse_others
from corepool_memory.sim.deadlock import describe_stuck, describe_wait
from corepool_memory.sim.errors import DeadlockError, SimulationError, TokenError
from corepool_memory.sim.faults import Faults
from corepool_memory.sim.loop import Budgets, SimLoop, tasks_of
from corepool_memory.sim.minimise import minimise
from corepool_memory.sim.token import ReplayToken, decode_token, encode_token, scenario_hash
from corepool_memory.sim.trace import Moment
from corepool_memory.sim.verdict import Result, Violation
from corepool_memory.sim.world import World, torn_out

__all__ = ["Result", "Violation", "simulate"]

S = TypeVar("S")

_LONGER = 2
"""How many times longer than the shortest failure found a replay may be, when it is sought to reduce it."""


# --- one run ---------------------------------------------------------------------------------------------------------


@attrs.frozen(slots=True, kw_only=True)
class _Setup:
    scenario: Callable[[Any], Awaitable[object]]
    subject: Callable[[World], Any]
    name: str
    seed: int
    faults: Faults
    budgets: Budgets
    conditions: Mapping[str, str]

    def token(self, deviations: Deviations | None) -> str:
        return encode_token(ReplayToken(scenario_hash(self.name), self.seed, deviations, self.conditions))


def _faults(faults: Faults | None) -> dict[str, str]:
    """As a condition: nothing, if they are the default."""
    if faults is None or faults == Faults.network():
        return {}
    return {"faults": expression(faults, everything=Faults.everything())}


def _once(setup: _Setup, chooser: Chooser) -> Result:
    frozen = gc.get_freeze_count() == 0
    if frozen:
        _freeze()
    loop = SimLoop(setup.budgets)
    try:
        return _run(setup, chooser, loop)
    finally:
        with torn_out(loop):
            gc.collect()
        if frozen:
            gc.unfreeze()


_known = 0
"""How many objects the process had when they were last looked at."""

_MANY = 200_000
"""Objects: what some tens of runs leave whose failures were kept for a while."""


def _freeze() -> None:
    """Set aside all that is there: nothing of it may be finalized in the middle of a run; and a collection that looks at the
    run's own objects alone takes no time, however large the process is.

    What is set aside is not collected, run after run, even if it is garbage: so look at it when it has become much more.
    """
    global _known
    gc.freeze()
    if gc.get_freeze_count() > _known + _MANY:
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        _known = gc.get_freeze_count()


def _run(setup: _Setup, chooser: Chooser, loop: SimLoop) -> Result:
    began = time.perf_counter()
    plan = setup.faults.draw(chooser)
    world = World(loop=loop, chooser=chooser, plan=plan, seed=setup.seed)
    loop.on_stuck = lambda: describe_stuck(loop, _facts(world))
    violation: Violation | None = None
    try:
        try:
            violation = _drive(setup, world)
        except SimulationError as error:  # deadlock and exhausted budgets come out of the loop itself
            kind = "deadlock" if isinstance(error, DeadlockError) else "budget"
            text = str(error) if kind == "deadlock" else f"{error}\n{_what_it_waits_for(world)}"
            violation = Violation(kind, f"{kind}: {type(error).__name__}", text, error)
        result = Result(
            scenario=setup.name,
            seed=setup.seed,
            digest="",
            steps=loop.steps,
            virtual_seconds=loop.now,
            wall_seconds=0.0,
            plan=plan.describe(),
            faults=dict(world.trace.faults),
            sometimes=dict(world.trace.sometimes),
            trace=tuple(map(str, _story(world, violation))),
            violation=violation,
            token="",
            decisions=None,
        )
        world.trace.tell(
            loop.now, "", f"ends after {loop.steps} steps: {violation.signature if violation else 'passed'}"
        )
        digest = world.trace.digest()
    finally:
        world.tear_down()
    return attrs.evolve(result, digest=digest, wall_seconds=time.perf_counter() - began)


def _drive(setup: _Setup, world: World) -> Violation | None:
    loop = world.loop
    main = loop.create_task(_main(setup, world), name="scenario")
    main.add_done_callback(lambda _done: loop.stop())
    loop.run_forever()
    if world.violation is not None:
        return _found("invariant", world.violation)
    error = main.exception()
    if error is None:
        return _left_over(world)
    if not isinstance(error, Exception):
        raise error  # KeyboardInterrupt, a test framework's skip: not ours to judge
    return _found("raised", error)


async def _main(setup: _Setup, world: World) -> None:
    if world.plan.has_outages:
        world.unleash()
    await setup.scenario(setup.subject(world))


def _found(kind: str, error: BaseException) -> Violation:
    cause = error.__cause__ if kind == "invariant" and error.__cause__ is not None else error
    frames = traceback.extract_tb(cause.__traceback__)
    raised, asked = _place(frames[-1:]), _place([frame for frame in frames if not _is_ours(frame.filename)][-1:])
    message = str(error) or type(error).__name__
    text = message if kind == "invariant" or not str(error) else f"{type(error).__name__}: {message}"
    at = asked or raised
    return Violation(
        kind, f"{kind}: {type(cause).__name__} at {raised} from {asked}", f"{text} (at {at})" if at else text, error
    )


_OURS = tuple(
    os.path.dirname(os.path.abspath(module.__file__ or "")) for module in (corepool.driver, corepool_memory, asyncio)
)


def _is_ours(filename: str) -> bool:
    """Whether a frame is of this project or of asyncio: a person wants to see where the test was."""
    directory = os.path.dirname(os.path.abspath(filename))
    return directory.startswith((os.path.dirname(_OURS[0]), *_OURS[1:]))


def _place(frames: list[traceback.FrameSummary]) -> str:
    return f"{os.path.basename(frames[0].filename)}:{frames[0].lineno}" if frames else ""


def _left_over(world: World) -> Violation | None:
    """What an otherwise good run leaves behind: nobody would ever learn of it."""
    gc.collect()  # lets tasks whose exception nobody retrieved say so
    found = [*world.problems, *(f"task {name!r} was never awaited to its end" for name in world.leftovers())]
    if not found:
        return None
    return Violation("left over", "left over", "the scenario ended, but:\n" + "\n".join(f"  {line}" for line in found))


def _what_it_waits_for(world: World) -> str:
    """Where the scenario was, and the calls it made on machines, when the run was given up."""
    waiting = [task for task in tasks_of(world.loop) if task.node is None and task is not world.nemesis_task]
    return "\n".join(map(describe_wait, waiting + world.calls_in_progress()))


def _facts(world: World) -> list[str]:
    found: list[str] = []
    for name, node in world.nodes.items():
        if not node.running:
            found.append(f"machine {node.label} is {node.state}")
        if world.network.link(name).blocked:
            found.append(f"machine {node.label} is cut off from the store")
    return found


def _story(world: World, violation: Violation | None) -> list[Moment]:
    story = list(world.trace.story)
    if violation is not None:
        # The requests just before the end show what the machines were doing; interleave them by time.
        last = world.trace.requests()[-8:]
        story = sorted([*story, *last], key=lambda moment: moment.time)
    return story


# --- many runs -------------------------------------------------------------------------------------------------------


@overload
def simulate(
    scenario: Callable[[World], Awaitable[object]],
    *,
    seed: int = 0,
    token: str | None = None,
    faults: Faults | None = None,
    budgets: Budgets | None = None,
    name: str | None = None,
    conditions: Mapping[str, str] | None = None,
    most_replays: int = 300,
    most_seconds: float = 20.0,
) -> Result: ...
@overload
def simulate(
    scenario: Callable[[S], Awaitable[object]],
    *,
    subject: Callable[[World], S],
    seed: int = 0,
    token: str | None = None,
    faults: Faults | None = None,
    budgets: Budgets | None = None,
    name: str | None = None,
    conditions: Mapping[str, str] | None = None,
    most_replays: int = 300,
    most_seconds: float = 20.0,
) -> Result: ...
def simulate(
    scenario: Callable[[Any], Awaitable[object]],
    *,
    subject: Callable[[World], Any] | None = None,
    seed: int = 0,
    token: str | None = None,
    faults: Faults | None = None,
    budgets: Budgets | None = None,
    name: str | None = None,
    conditions: Mapping[str, str] | None = None,
    most_replays: int = 300,
    most_seconds: float = 20.0,
) -> Result:
    """Run ``scenario`` once, in virtual time; if it fails, find the smallest run that fails alike.

    scenario: ``async def scenario(world)``; it raises (an ``assert``) if what it wants to see does not happen.
    subject: makes what the scenario gets from the world (a cluster); by default the world itself.
    seed: decides everything, unless there is a ``token``.
    token: replay this run instead, of the same scenario. It is not reduced any further.
    faults: what may go wrong; by default nothing but latency.
    budgets: when to give up a run that does not end.
    name: stands for the scenario in reports and tokens; by default its qualified name.
    conditions: what else the run depends on and is not the default: options of the subject, as expressions, by name. They go
        into the token, which replays under the same conditions alone.
    most_replays, most_seconds: how much to spend on reducing a failure; 0 replays: do not.

    Raises:
        TokenError: the token is damaged, or belongs to another scenario (`OtherConditions`: to other faults or conditions).
        RuntimeError: an event loop is running in this thread already.
    """
    _refuse_running_loop()
    if name is None:
        name = str(getattr(scenario, "__qualname__", type(scenario).__name__))
    replay = None if token is None else decode_token(token)
    if replay is not None and replay.scenario != scenario_hash(name):
        raise TokenError(f"the token was recorded with another scenario than {name!r}; select the test it belongs to")
    setup = _Setup(
        scenario=scenario,
        subject=subject or _the_world,
        name=name,
        seed=seed if replay is None else replay.seed,
        faults=faults or Faults.network(),
        budgets=budgets or Budgets(),
        conditions={**_faults(faults), **(conditions or {})},
    )
    if replay is not None:
        refuse_others(replay.conditions, setup.conditions)
    if replay is not None and replay.deviations is not None:
        result = _once(setup, SparseChooser(replay.deviations))
        return attrs.evolve(result, token=setup.token(replay.deviations), decisions=replay.deviations)
    chooser = SeededChooser(setup.seed)
    result = attrs.evolve(_once(setup, chooser), token=setup.token(None))
    if result.violation is None or replay is not None or most_replays <= 0:
        return result
    return _reduced(setup, result, chooser.recorded, most_replays, most_seconds)


def _reduced(setup: _Setup, found: Result, recorded: Deviations, most_replays: int, most_seconds: float) -> Result:
    violation = found.violation
    assert violation is not None
    again = _once(setup, SparseChooser(recorded))
    if again.digest != found.digest:
        return attrs.evolve(found, reproducible=False)
    until = time.monotonic() + most_seconds
    best = again

    def replay(deviations: Deviations) -> Deviations | None:
        nonlocal best
        chooser = SparseChooser(deviations)
        result = _once(_cut_short(setup, best), chooser)
        if not violation.is_like(result.violation):
            return None
        best = result
        return chooser.recorded

    decisions = minimise(recorded, replay, most_replays=most_replays, give_up=lambda: time.monotonic() > until)
    # Each time that it failed was with something smaller, so the last one was with these.
    return attrs.evolve(best, token=setup.token(decisions), decisions=decisions)


def _cut_short(setup: _Setup, best: Result) -> _Setup:
    """With a budget of some times what the failure takes so far: a replay that is much longer mostly does not fail at all."""
    assert best.violation is not None
    if best.violation.kind == "budget":
        return setup
    steps = min(setup.budgets.steps, _LONGER * best.steps + 1000)
    return attrs.evolve(setup, budgets=attrs.evolve(setup.budgets, steps=steps))


def _the_world(world: World) -> World:
    return world


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("a simulation runs an event loop of its own: call it from a plain function (def, not async def)")
