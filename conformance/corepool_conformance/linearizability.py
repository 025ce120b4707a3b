"""Is a history of concurrent calls on one map possible for a single atomic map? (M2)

Purpose: a checker after Wing & Gong (1993) with Lowe's memory of visited configurations (2017), for maps whose keys are
registers with compare-and-set, outcomes unknown allowed; and the reduction of a bad history to a short one.
Invariants: linearizability is compositional, so a history is judged key by key, unless it holds a `clear`, which joins all
keys. Every value written in a history is unique, so a value says which write it is. Cutting a history at a point in time,
and removing calls that changed nothing, never make a good history bad: a reduced history proves what the whole one proves.
Neighbours: pure; `corepool_conformance.recording` makes the histories, the contract tests judge them.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TypeAlias

import attrs

__all__ = ["NEVER", "Call", "Kind", "Seen", "find_violation", "is_linearizable", "render", "shorten_history"]

NEVER = 2**62
"""The return time of a call that never returned: it may take effect at any time after it began, or not at all."""


class Kind(enum.Enum):
    """What a call does. A WRITE of None is a delete."""

    GET = "get"
    WRITE = "write"
    CLEAR = "clear"


@attrs.frozen(slots=True)
class Seen:
    """A key as a call saw it: its value (None: absent) and its revision (0: absent or not told)."""

    value: bytes | None
    revision: int = 0


_ABSENT = Seen(None)


@attrs.frozen(slots=True, kw_only=True)
class Call:
    """One call of one client.

    began, ended: logical times; ``ended`` is NEVER for an outcome that stays unknown.
    expect: the condition of a write: None always, else what must stand there (``Seen(None)``: nothing).
    known: whether the call returned. If not, it took effect between ``began`` and ``ended``, or never.
    applied: for a write that returned: whether it says that it was applied.
    revision: for an applied write: its commit's revision (0: not told).
    seen: what a get returned; what a write or delete says stood there before.
    """

    client: int
    kind: Kind
    key: str
    began: int
    ended: int
    value: bytes | None = None
    expect: Seen | None = None
    known: bool = True
    applied: bool = False
    revision: int = 0
    seen: Seen = _ABSENT


@attrs.frozen(slots=True)
class _State:
    """One key: what stands there, and the largest revision known to have been used."""

    value: bytes | None = None
    revision: int = 0
    floor: int = 0


_Map: TypeAlias = tuple[tuple[str, _State], ...]
"""The states of the keys that were touched, sorted by key: hashable."""


def is_linearizable(history: Sequence[Call]) -> bool:
    """Whether the calls could have been made one after another, each between its beginning and its end."""
    return all(_search(part) for part in _partition(history))


def find_violation(history: Sequence[Call]) -> list[Call] | None:
    """None if the history is linearizable, else a short history that is not, taken from it."""
    for part in _partition(history):
        if not _search(part):
            return shorten_history(part)
    return None


def shorten_history(history: Sequence[Call]) -> list[Call]:
    """The shortest prefix in time that is not linearizable, without the calls that it does not need."""
    ends = sorted({call.ended for call in history if call.known})
    low, high = 0, len(ends) - 1
    while low < high:  # a prefix of a linearizable history is linearizable: bisect
        middle = (low + high) // 2
        if is_linearizable(_until(history, ends[middle])):
            low = middle + 1
        else:
            high = middle
    short = _until(history, ends[low])
    for call in list(short):
        if call.known and not (call.kind is not Kind.GET and call.applied):
            without = [other for other in short if other is not call]
            if not is_linearizable(without):
                short = without
    return short


def _until(history: Sequence[Call], time: int) -> list[Call]:
    """The history as it was known just after ``time``: what had not returned then is unknown."""
    return [
        call
        if call.ended <= time
        else attrs.evolve(call, ended=NEVER, known=False, applied=False, revision=0, seen=_ABSENT)
        for call in history
        if call.began <= time
        and not (call.kind is Kind.GET and call.ended > time)  # a read without a result says nothing
    ]


def _partition(history: Sequence[Call]) -> list[list[Call]]:
    if any(call.kind is Kind.CLEAR for call in history):
        return [list(history)]
    parts: dict[str, list[Call]] = {}
    for call in history:
        parts.setdefault(call.key, []).append(call)
    return list(parts.values())


def _search(calls: Sequence[Call]) -> bool:
    """Depth-first over the orders that respect real time, remembering the configurations that led nowhere."""
    calls = sorted(calls, key=lambda call: call.began)
    count = len(calls)
    required = sum(1 << index for index, call in enumerate(calls) if call.known)
    start: tuple[int, _Map] = (0, ())
    visited: set[tuple[int, _Map]] = {start}
    stack: list[tuple[int, _Map]] = [start]
    while stack:
        done, state = stack.pop()
        if done & required == required:
            return True
        horizon = min(calls[index].ended for index in range(count) if not done >> index & 1)
        for index in range(count):
            call = calls[index]
            if call.began > horizon:
                break
            if done >> index & 1:
                continue
            for after in _outcomes(state, call):
                configuration = (done | 1 << index, after)
                if configuration not in visited:
                    visited.add(configuration)
                    stack.append(configuration)
    return not required


def _outcomes(state: _Map, call: Call) -> list[_Map]:
    """The states the call can lead to, given what it returned: none if it cannot come next."""
    if call.kind is Kind.CLEAR:
        cleared = _clear(state, call)
        outcomes = [] if cleared is None else [cleared]
    else:
        held = dict(state)
        after = _step(held.get(call.key, _State()), call)
        if after is None:
            outcomes = []
        else:
            held[call.key] = after
            outcomes = [tuple(sorted(held.items()))]
    if not call.known and state not in outcomes:
        outcomes.append(state)  # it may never have happened
    return outcomes


def _clear(state: _Map, call: Call) -> _Map | None:
    floor = max((held.floor for _, held in state), default=0)
    if call.known and call.revision < floor:
        return None
    return tuple((key, _State(None, 0, max(call.revision, held.floor))) for key, held in state)


def _step(state: _State, call: Call) -> _State | None:
    """One key's state after the call; None if what the call returned contradicts the state."""
    if call.known:
        if call.seen.value != state.value:
            return None
        if call.seen.revision and state.revision and call.seen.revision != state.revision:
            return None
        if call.seen.revision:  # the revision of a write whose outcome was unknown is learnt from who saw it
            if not state.revision and call.seen.revision <= state.floor and state.value is not None:
                return None
            state = attrs.evolve(state, revision=call.seen.revision, floor=max(state.floor, call.seen.revision))
    if call.kind is Kind.GET:
        return state
    holds = call.expect is None or (
        call.expect.value == state.value
        and not (call.expect.revision and state.revision and call.expect.revision != state.revision)
    )
    if call.known and holds != call.applied:
        return None
    if not holds:
        return state
    if not call.known:
        return _State(call.value, 0, state.floor)
    nothing = call.value is None and state.value is None  # deleting what is absent may have no revision of its own
    if 0 < call.revision <= state.floor and not nothing:
        return None
    return _State(call.value, 0 if call.value is None else call.revision, max(state.floor, call.revision))


def render(history: Sequence[Call]) -> list[str]:
    """One line per call, in order of their beginnings."""
    return [_line(call) for call in sorted(history, key=lambda call: call.began)]


def _line(call: Call) -> str:
    until = "    …" if call.ended == NEVER else f"{call.ended:>5}"
    return f"client {call.client}  [{call.began:>4}, {until}]  {_what(call)}  ->  {_result(call)}"


def _what(call: Call) -> str:
    match call.kind:
        case Kind.GET:
            return f"get {call.key!r}"
        case Kind.CLEAR:
            return "clear"
        case Kind.WRITE:
            act = f"delete {call.key!r}" if call.value is None else f"set {call.key!r} = {call.value!r}"
            if call.expect is None:
                return act
            return f"{act} if it is {_shown(call.expect)}"


def _result(call: Call) -> str:
    if not call.known:
        return "outcome unknown"
    if call.kind is Kind.GET:
        return _shown(call.seen)
    if call.kind is Kind.CLEAR:
        return f"applied as revision {call.revision}"
    return (
        f"applied as revision {call.revision} over {_shown(call.seen)}"
        if call.applied
        else f"refused by {_shown(call.seen)}"
    )


def _shown(seen: Seen) -> str:
    if seen.value is None:
        return "nothing"
    return f"{seen.value!r} of revision {seen.revision}" if seen.revision else repr(seen.value)
