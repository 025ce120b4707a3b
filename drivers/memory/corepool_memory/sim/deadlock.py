"""An exact report of a deadlock: who waits for what, who holds it, and the cycle.

Purpose: when nothing is ready and nothing is timed, say why, in names that a person finds in their code.
Invariants: it changes nothing (no coroutine is closed, no future is touched), works on any mix of asyncio's
primitives, and holds no addresses, so that the report is the same in every process.
Neighbours: the loop asks for it through ``on_stuck``; :mod:`~corepool_memory.sim.run` prints it.

How: a task's await chain is walked from its coroutine to the innermost object it awaits. What that is (a lock's
``acquire``, an event's ``wait``, another task) is read from the innermost frames. Who holds a lock is not recorded by
asyncio: but a coroutine suspended inside ``async with lock`` keeps the lock's ``__aexit__`` on its stack, where the
garbage collector's view of it shows it.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, cast

import attrs

from corepool_memory.sim.loop import SimFuture, SimLoop, SimTask, as_task, describe_task, tasks_of

__all__ = ["describe_stuck", "describe_wait"]

_KIND_NAMES = {"SimFuture": "Future", "_GatheringFuture": "gather"}
_MOST_TASKS = 60
_DEEPEST_CHAIN = 60

_HELD = (asyncio.Lock, asyncio.Condition, asyncio.Semaphore)
_COLLECTIONS = (set, frozenset, list, tuple)
_NAMED = (*_HELD, asyncio.Event, asyncio.Queue, asyncio.Barrier, asyncio.Future, asyncio.TaskGroup)


@attrs.define(slots=True, eq=False)
class _Wait:
    """What one task waits for.

    frames: its await chain, outermost first. chain: the objects of that chain.
    thing: the primitive, task or future at its end. tasks: the tasks that could end the wait, as far as is known.
    """

    task: SimTask[Any]
    frames: list[FrameType]
    chain: list[Any]
    thing: Any = None
    verb: str = "waits for"
    tasks: list[SimTask[Any]] = attrs.field(factory=list["SimTask[Any]"])


def describe_stuck(loop: SimLoop, facts: list[str] | None = None) -> str:
    """The report. ``facts``: lines about the world (cut-off, paused and crashed machines)."""
    tasks = [task for task in tasks_of(loop) if task.node is None or task.node.alive]
    waits = {task: _wait_of(task) for task in tasks}
    names = _names(list(waits.values()))
    holders = _holders(list(waits.values()))
    for wait in waits.values():
        wait.tasks = [task for task in _enders(wait, holders) if task in waits]
    lines = [
        f"deadlock at {loop.now:.6f} virtual seconds: nothing is ready and nothing is timed; {len(tasks)} tasks wait for ever"
    ]
    lines.extend(facts or [])
    cycle = _cycle(waits)
    if cycle:
        lines.append("the wait cycle:")
        lines.extend(f"  {describe_task(task)} {_what(waits[task], names, holders)}" for task in cycle)
    for task in tasks[:_MOST_TASKS]:
        wait = waits[task]
        lines.append(f"{describe_task(task)}{_state(task)} {_what(wait, names, holders)}")
        lines.extend(f"    {_where(frame)}" for frame in wait.frames)
    if len(tasks) > _MOST_TASKS:
        lines.append(f"... and {len(tasks) - _MOST_TASKS} more tasks")
    return "\n".join(lines)


def describe_wait(task: SimTask[Any]) -> str:
    """What one task waits for, with its await chain, and so on for the task it waits for: for runs that end while it
    waits."""
    lines: list[str] = []
    seen: set[SimTask[Any]] = set()
    following: SimTask[Any] | None = task
    while following is not None and following not in seen:
        seen.add(following)
        wait = _wait_of(following)
        lines.append(f"{describe_task(following)}{_state(following)} {_what(wait, _names([wait]), {})}")
        lines.extend(f"    {_where(frame)}" for frame in wait.frames)
        following = as_task(wait.thing)
    return "\n".join(lines)


def _state(task: SimTask[Any]) -> str:
    return "" if task.node is None or task.node.running else f" ({task.node.state})"


# --- walking ---------------------------------------------------------------------------------------------------------


def _wait_of(task: SimTask[Any]) -> _Wait:
    chain = list(_chain(task.get_coro()))
    frames = [frame for item in chain if (frame := _frame(item)) is not None]
    wait = _Wait(task, frames, chain)
    for frame in reversed(frames):
        verb = _VERBS.get((os.path.basename(frame.f_code.co_filename), frame.f_code.co_name))
        if verb is not None:
            wait.verb = verb
            wait.thing = frame.f_locals.get("self", frame.f_locals.get("fs"))
            return wait
    wait.thing = _shielded(getattr(task, "_fut_waiter", None))
    return wait


def _shielded(future: Any) -> Any:
    """What a future of ``asyncio.shield`` stands for; any other future is itself."""
    for callback, _context in getattr(future, "_callbacks", None) or ():
        if getattr(callback, "__name__", "") == "_outer_done_callback":
            names = callback.__code__.co_freevars
            cells = dict(zip(names, callback.__closure__ or (), strict=True))
            return cells["inner"].cell_contents if "inner" in cells else future
    return future


_VERBS = {
    ("locks.py", "acquire"): "waits for",
    ("locks.py", "wait"): "waits for",
    ("locks.py", "wait_for"): "waits for",
    ("queues.py", "get"): "waits to get from",
    ("queues.py", "put"): "waits to put into",
    ("queues.py", "join"): "waits for all items of",
    ("taskgroups.py", "__aexit__"): "waits for the tasks of",
    ("tasks.py", "_wait"): "waits for some of",
}


_SUSPENDED: tuple[tuple[type, str, str], ...] = (
    (CoroutineType, "cr_await", "cr_frame"),
    (GeneratorType, "gi_yieldfrom", "gi_frame"),
    (AsyncGeneratorType, "ag_await", "ag_frame"),
)
_KINDS = tuple(kind for kind, _, _ in _SUSPENDED)


def _is(thing: object, kinds: type | tuple[type, ...]) -> bool:
    """``isinstance`` that leaves the type alone: generic asyncio classes would narrow it to something unknown."""
    return isinstance(thing, kinds)


def _chain(item: Any) -> Iterator[Any]:
    for _ in range(_DEEPEST_CHAIN):
        if item is None:
            return
        yield item
        for kind, following, _frame_name in _SUSPENDED:
            if _is(item, kind):
                item = getattr(item, following)
                break
        else:
            # ``__anext__`` objects and coroutine wrappers do not say what they stand for, but refer to nothing else.
            item = next((inner for inner in gc.get_referents(item) if _is(inner, _KINDS)), None)


def _frame(item: Any) -> FrameType | None:
    for kind, _following, frame_name in _SUSPENDED:
        if _is(item, kind):
            return cast("FrameType | None", getattr(item, frame_name))
    return None


def _where(frame: FrameType) -> str:
    code = frame.f_code
    return f"at {code.co_qualname} ({os.path.basename(code.co_filename)}:{frame.f_lineno})"


# --- who holds, who could end a wait ---------------------------------------------------------------------------------


def _holders(waits: list[_Wait]) -> dict[int, list[SimTask[Any]]]:
    """By ``id`` of a lock: the tasks that are inside it."""
    held: dict[int, list[SimTask[Any]]] = {}
    for wait in waits:
        for item in wait.chain:
            for referent in gc.get_referents(item):
                owner = getattr(referent, "__self__", None)
                if (
                    isinstance(owner, _HELD)
                    and getattr(referent, "__name__", "") == "__aexit__"
                    and owner is not wait.thing
                ):
                    held.setdefault(id(owner), []).append(wait.task)
    return held


def _enders(wait: _Wait, holders: dict[int, list[SimTask[Any]]]) -> list[SimTask[Any]]:
    thing = wait.thing
    if isinstance(thing, _HELD):
        return holders.get(id(thing), [])
    if (task := as_task(thing)) is not None:
        return [task]
    if _is(thing, _COLLECTIONS):
        return _unfinished(thing)
    # a task group's tasks, or what a gather gathers
    return _unfinished(getattr(thing, "_tasks", None) or getattr(thing, "_children", None) or ())


def _unfinished(entries: Any) -> list[SimTask[Any]]:
    found = [task for entry in entries if (task := as_task(entry)) is not None and not task.done()]
    return sorted(found, key=lambda task: task.number)


def _cycle(waits: dict[SimTask[Any], _Wait]) -> list[SimTask[Any]]:
    """A cycle of tasks that wait for each other, or nothing."""
    finished: set[SimTask[Any]] = set()
    for start in waits:
        path: list[SimTask[Any]] = []
        iterators: list[Iterator[SimTask[Any]]] = []
        if start in finished:
            continue
        path.append(start)
        iterators.append(iter(waits[start].tasks))
        while path:
            following = next(iterators[-1], None)
            if following is None:
                finished.add(path.pop())
                iterators.pop()
            elif following in path:
                return path[path.index(following) :]
            elif following not in finished:
                path.append(following)
                iterators.append(iter(waits[following].tasks))
    return []


# --- names -----------------------------------------------------------------------------------------------------------


def _names(waits: list[_Wait]) -> dict[int, str]:
    """By ``id`` of a primitive: what the waiting code calls it."""
    names: dict[int, str] = {}
    for wait in waits:
        for frame in wait.frames:
            if _is_asyncio(frame):
                continue
            for name, value in frame.f_locals.items():
                _name(names, name, value)
                inside: dict[str, object] = getattr(value, "__dict__", {})
                for attribute, part in inside.items():
                    _name(names, f"{name if name != 'self' else type(value).__name__}.{attribute}", part)
            for name in frame.f_code.co_names:
                _name(names, name, frame.f_globals.get(name))
    return names


def _name(names: dict[int, str], name: str, value: object) -> None:
    if _is(value, _NAMED):
        names.setdefault(id(value), name)


def _is_asyncio(frame: FrameType) -> bool:
    return os.path.basename(os.path.dirname(frame.f_code.co_filename)) == "asyncio"


def _what(wait: _Wait, names: dict[int, str], holders: dict[int, list[SimTask[Any]]]) -> str:
    thing: Any = wait.thing
    name = names.get(id(thing), "")
    task = as_task(thing)
    label = thing.label if _is(thing, SimFuture) else ""
    if task is not None:
        text = describe_task(task)
    elif label:
        text = label
    elif _is(thing, _COLLECTIONS):
        text = f"{len(wait.tasks)} tasks"
    elif thing is None:
        text = "nothing that can be seen"
    else:
        kind = _KIND_NAMES.get(type(thing).__name__, type(thing).__name__)
        text = f"{kind} {name!r}" if name else f"a {kind}"
    if isinstance(thing, _HELD):
        inside = holders.get(id(thing), [])
        text += f", held by {', '.join(map(describe_task, inside))}" if inside else ", held outside any 'async with'"
    elif wait.tasks and task is None:
        text += f": {', '.join(map(describe_task, wait.tasks[:5]))}"
    return f"{wait.verb} {text}"
