"""Where a plan is carried out, and the verdict on what happened.

Purpose: the one protocol behind simulated and real clusters, and the one run that both share.
Invariants: everything is judged from the outside, by recorded calls and effects (``corepool.testing.history``); once the
faults have stopped everything must come right within ``bound``; a call that does not return is a failure.
Neighbours: implemented by ``sim_env`` and ``real_env``; plans come from ``plans``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

import attrs

from corepool.errors import CorepoolError, OutcomeUnknown
from corepool.pool import Explanation, JobState
from corepool.testing.history import Dispatch, Effect, HistoryViolation, Stop, judge
from corepool_conformance.kit import PromiseBroken
from corepool_conformance.pool.plans import Plan, Step

__all__ = ["POOL_PROMISES", "Checker", "Env", "History", "died", "options", "run_plan"]

POOL_PROMISES = ("P1", "P2", "P3", "P4", "P5", "P9", "P10", "P11")


def options(ttl: float) -> dict[str, Any]:
    """The options of all nodes of a run."""
    return {
        "worker_ttl": ttl,
        "ack_grace_period": ttl / 2,
        "call_timeout": 4 * ttl,
        "worker_shutdown_ttl": 6 * ttl,
        "start_backoff": 0.05,
        "max_start_backoff": 0.5,
        "full_scan_interval": 4 * ttl,
    }


class Checker(Protocol):
    """A node that only looks."""

    async def job_keys(self) -> list[str]: ...

    async def explain(self, key: str) -> Explanation | None: ...

    def pool_workers(self) -> dict[str, Any]: ...


class Env(Protocol):
    """A cluster: nodes by number, in the order they were started."""

    @property
    def ttl(self) -> float:
        """``worker_ttl`` in seconds."""
        ...

    def now(self) -> float:
        """Seconds, one clock for the whole cluster."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...

    async def start(self) -> None:
        """A new node with one worker; returns when it is up."""
        ...

    def up(self) -> list[int]:
        """The nodes that can be called."""
        ...

    async def call(self, node: int, name: str, key: str, payload: bytes, timeout: float | None) -> None:
        """A method of a node. Raises its `CorepoolError`; `OutcomeUnknown` if the node's process died meanwhile."""
        ...

    async def close(self, node: int) -> None: ...

    async def crash(self, node: int) -> None: ...

    async def cut(self, node: int) -> None: ...

    async def heal(self, node: int) -> None: ...

    async def pause(self, node: int) -> None: ...

    async def resume(self, node: int) -> None: ...

    async def workers(self) -> set[str]:
        """The ids of the workers of all nodes that are up."""
        ...

    def effects(self) -> list[Effect]:
        """What all handlers did so far."""
        ...

    async def checker(self) -> Checker: ...

    async def eventually(self, condition: Callable[[], Awaitable[bool]], within: float) -> bool:
        """Whether the condition came true in time."""
        ...


@attrs.define(slots=True)
class History:
    """What was called."""

    dispatches: list[Dispatch] = attrs.field(factory=list[Dispatch])
    stops: list[Stop] = attrs.field(factory=list[Stop])
    calls: int = 0

    def lines(self, effects: Sequence[Effect]) -> list[str]:
        """Calls and effects, by time."""
        told = [(call.invoked, _call_line("dispatch", call)) for call in self.dispatches]
        told += [(call.invoked, _call_line("stop", call)) for call in self.stops]
        told += [(effect.began, _effect_line(effect)) for effect in effects]
        start = min((at for at, _ in told), default=0.0)
        return [f"{at - start:>8.3f}  {text}" for at, text in sorted(told)]


def _call_line(what: str, call: Dispatch | Stop) -> str:
    payload = f" {call.payload.decode()}" if isinstance(call, Dispatch) else ""
    if call.returned is None:
        return f"{what} {call.key}{payload}: never returned"
    result = type(call.error).__name__ if call.error else "success"
    return f"{what} {call.key}{payload}: {result} after {call.returned - call.invoked:.3f} s"


def _effect_line(effect: Effect) -> str:
    lasted = "has it still" if effect.ended is None else f"had it {effect.ended - effect.began:.3f} s"
    flag = ", suspended" if effect.suspended else ""
    return f"  start {effect.key} {effect.payload.decode()} on {effect.owner}, token {effect.token}: {lasted}{flag}"


async def run_plan(env: Env, plan: Plan) -> None:
    """Carry a plan out, stop the faults, wait until everything has come right, and judge.

    Raises:
        PromiseBroken: a promise of the pool does not hold; the text ends with the history.
    """
    history = History()
    tasks: list[asyncio.Task[None]] = []
    for _ in range(plan.nodes):
        await env.start()
    for step in plan.steps:
        if step.what == "wait":
            await env.sleep(step.ttls * env.ttl)
        elif work := _work(env, step, history):
            tasks.append(env.spawn(work))
            await env.sleep(0)
    await _all_return(env, tasks, history)
    if not env.up():
        await env.start()
    problem = await _settle(env)
    if problem:
        number, _, text = problem.partition(": ")
        raise PromiseBroken(number, _told(text, env, history))
    failed: set[str] = set()
    try:
        judge(history.dispatches, history.stops, env.effects(), settled_at=env.now(), failed=failed)
    except HistoryViolation as violation:
        number, _, text = str(violation).partition(": ")
        raise PromiseBroken(f"P{number}", _told(text, env, history)) from violation


def _told(text: str, env: Env, history: History) -> str:
    return text + "\n" + "\n".join(history.lines(env.effects()))


def _work(env: Env, step: Step, history: History) -> Coroutine[Any, Any, None] | None:
    """What a step does, as a coroutine that never raises a `CorepoolError`."""
    if step.what == "start":
        return env.start()
    up = env.up()
    if not up:
        return None
    node, key = up[step.node % len(up)], f"k{step.key}"
    match step.what:
        case "dispatch":
            return _dispatch(env, node, key, step.ttls * env.ttl, history)
        case "stop":
            return _stop(env, node, key, history)
        case "notify":
            return _notify(env, node, key)
        case "close":
            return env.close(node)
        case "crash":
            return env.crash(node)
        case "cut":
            return _for_a_while(env, env.cut, env.heal, node, step.ttls * env.ttl)
        case "pause":
            return _for_a_while(env, env.pause, env.resume, node, step.ttls * env.ttl)
        case _:
            raise ValueError(f"a plan cannot {step.what!r}")


async def _for_a_while(
    env: Env, begin: Callable[[int], Awaitable[None]], end: Callable[[int], Awaitable[None]], node: int, seconds: float
) -> None:
    await begin(node)
    try:
        await env.sleep(seconds)
    finally:
        await end(node)


async def _dispatch(env: Env, node: int, key: str, patience: float, history: History) -> None:
    history.calls += 1
    call = Dispatch(key=key, payload=b"j%d" % history.calls, invoked=env.now(), returned=None)
    at = len(history.dispatches)
    history.dispatches.append(call)
    error: CorepoolError | None = None
    try:
        await env.call(node, "dispatch_job", key, call.payload, patience)
    except CorepoolError as raised:
        error = raised
    history.dispatches[at] = attrs.evolve(call, returned=env.now(), error=error)


async def _stop(env: Env, node: int, key: str, history: History) -> None:
    call = Stop(key=key, invoked=env.now(), returned=None)
    at = len(history.stops)
    history.stops.append(call)
    error: CorepoolError | None = None
    try:
        await env.call(node, "stop_job", key, b"", None)
    except CorepoolError as raised:
        error = raised
    history.stops[at] = attrs.evolve(call, returned=env.now(), error=error)


async def _notify(env: Env, node: int, key: str) -> None:
    with contextlib.suppress(CorepoolError):  # there may be no such job, or no such node any more
        await env.call(node, "notify_worker", key, b"news", None)


async def _all_return(env: Env, tasks: Sequence[asyncio.Task[None]], history: History) -> None:
    """P9: every call returns; the longest are a close and a dispatch with all its patience."""

    async def done() -> bool:
        return all(task.done() for task in tasks)

    if not await env.eventually(done, 14 * env.ttl):
        for task in tasks:
            task.cancel()
        raise PromiseBroken("P9", _told(f"a call has not returned after {14 * env.ttl:g} s", env, history))
    for task in tasks:
        task.result()


async def _settle(env: Env) -> str:
    """Wait until all is right; what is not, if that takes longer than it may, as ``P10: …``."""
    bound = 12 * env.ttl + options(env.ttl)["worker_shutdown_ttl"]
    problem = "P10: nothing was looked at"

    async def right() -> bool:
        nonlocal problem
        problem = await _problem(env)
        return not problem

    if await env.eventually(right, bound):
        return ""
    number, _, text = problem.partition(": ")
    return f"{number}: {bound:g} s after the last fault: {text}"


async def _problem(env: Env) -> str:
    checker = await env.checker()
    running: dict[str, list[Effect]] = {}
    effects = env.effects()
    for effect in effects:
        if effect.ended is None:
            running.setdefault(effect.key, []).append(effect)
    try:
        keys = await checker.job_keys()
        explanations = {key: await checker.explain(key) for key in keys}
        workers = checker.pool_workers()
    except (CorepoolError, TimeoutError) as error:
        return f"P10: the pool cannot be looked at: {type(error).__name__}: {error}"
    for key, explanation in explanations.items():
        if explanation is None:
            return f"P10: {key} is going"
        if explanation.state is not JobState.RUNNING:
            return f"P10: {key} is {explanation.state.value} at {explanation.owner or 'nobody'}"
        held = running.get(key, [])
        if len(held) != 1:
            return f"P10: {key} is RUNNING by its record, and {len(held)} handlers have it"
    if extra := sorted(set(running) - set(keys)):
        return f"P11: {extra[0]} has no record, and {running[extra[0]][0].owner} has it"
    if set(workers) != (alive := await env.workers()):
        return f"P11: workers of the pool and workers alive differ: {sorted(set(workers) ^ alive)}"
    if env.effects() != effects:
        return "P10: jobs move"  # what was read of one of them no longer stands, and the judge looks at this moment
    return ""


def died(what: str) -> OutcomeUnknown:
    """What a call raises whose node died under it."""
    return OutcomeUnknown(f"{what}: the caller's process died")
