"""The judge of a history: what was called, what handlers did, and whether that keeps the pool's promises.

Purpose: DESIGN 5, decided from the outside: recorded calls and effects alone, no look inside the pool, so the same judge
serves simulated clusters and real ones.
Invariants judged, by the numbers of DESIGN 5:

- 1 at most one live owner per key; with a paused owner the later one's token is larger;
- 2 a dispatch that returned success had its job started, and the job is there unless somebody stopped it;
- 3 a dispatch that raised anything but `OutcomeUnknown` left no job behind; `DispatchTimeoutError`: it never started;
- 4 a stopped job never runs again; a second dispatch of a live key is refused;
- 5 tokens of one key only grow;
- 9 every call returned.

A job is told by its payload, which must be its own: one dispatch, one payload.
Neighbours: fed by ``chaos`` and by the conformance kit's pool layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence

import attrs

from corepool.errors import (
    BackendUnavailable,
    DispatchTimeoutError,
    JobExistsError,
    JobNotFoundError,
    NodeClosedError,
    OutcomeUnknown,
    PoolShutdownError,
    QueueFullError,
)
from corepool.pool import FencingToken

__all__ = ["Dispatch", "Effect", "HistoryViolation", "Stop", "judge"]


@attrs.frozen(slots=True, kw_only=True)
class Dispatch:
    """A call of dispatch_job. error: what it raised; None and ``returned`` None: it never returned."""

    key: str
    payload: bytes
    invoked: float
    returned: float | None
    error: BaseException | None = None


@attrs.frozen(slots=True, kw_only=True)
class Stop:
    """A call of stop_job, or anything else that may end a key's job (a shutdown), with the same meaning of its fields."""

    key: str
    invoked: float
    returned: float | None
    error: BaseException | None = None


@attrs.frozen(slots=True, kw_only=True)
class Effect:
    """A handler had a job: from the call of start until stop returned, start failed, or the process died.

    running: when start had returned; None if it had not. stopping: when stop was called. ended: None if it has the job still.
    suspended: its process was paused or cut off for longer than the lease meanwhile: then only the token protects.
    """

    key: str
    payload: bytes
    owner: str
    token: FencingToken
    began: float
    running: float | None
    stopping: float | None
    ended: float | None
    suspended: bool = False


class HistoryViolation(AssertionError):
    """A promise was broken; the text begins with its number in DESIGN 5."""


_NEVER_SENT = (BackendUnavailable, JobExistsError, QueueFullError, NodeClosedError, DispatchTimeoutError)
"""After these the job certainly never started."""


def judge(
    dispatches: Sequence[Dispatch],
    stops: Sequence[Stop],
    effects: Sequence[Effect],
    *,
    settled_at: float,
    failed: Collection[str] = (),
) -> None:
    """Judge a whole history.

    settled_at: when all faults were over and everything had had its time to come right.
    failed: keys whose jobs are FAILED by now: too many attempts to start them anew, as their handlers wanted.

    Raises:
        HistoryViolation: a promise was broken.
    """
    calls: list[Dispatch | Stop] = [*dispatches, *stops]
    for call in calls:
        if call.returned is None and not isinstance(call.error, OutcomeUnknown):
            raise HistoryViolation(f"9: a call on {call.key!r} at {call.invoked:.3f} never returned")
    keys = sorted({call.key for call in dispatches} | {effect.key for effect in effects})
    for key in keys:
        mine = [effect for effect in effects if effect.key == key]
        _judge_owners(key, mine)
        _judge_key(
            key,
            [call for call in dispatches if call.key == key],
            [call for call in stops if call.key == key],
            mine,
            settled_at,
            key in failed,
        )


def _judge_owners(key: str, effects: Iterable[Effect]) -> None:
    earlier: list[Effect] = []
    for effect in sorted(effects, key=lambda effect: effect.began):
        for other in earlier:
            if other.token >= effect.token:
                raise HistoryViolation(
                    f"5: {key!r} started on {effect.owner} with token {effect.token} after {other.owner} had {other.token}"
                )
            ended = math.inf if other.ended is None else other.ended
            if ended > effect.began and not other.suspended:
                raise HistoryViolation(
                    f"1: {key!r} started on {effect.owner} at {effect.began:.3f} while {other.owner} had it"
                )
        earlier.append(effect)


def _judge_key(
    key: str, dispatches: list[Dispatch], stops: list[Stop], effects: list[Effect], settled_at: float, failed: bool
) -> None:
    succeeded: list[Dispatch] = []
    for call in sorted(dispatches, key=lambda call: call.invoked):
        starts = [effect for effect in effects if effect.payload == call.payload]
        returned = settled_at if call.returned is None else call.returned
        if call.error is None and call.returned is not None:
            if not any(effect.running is not None and effect.running <= returned for effect in starts):
                raise HistoryViolation(f"2: dispatch of {key!r} returned at {returned:.3f}, but nothing had started it")
            succeeded.append(call)
        elif isinstance(call.error, _NEVER_SENT) and starts:
            raise HistoryViolation(
                f"3: dispatch of {key!r} raised {type(call.error).__name__}, but it started at {starts[0].began:.3f}"
            )
        elif not isinstance(call.error, OutcomeUnknown | PoolShutdownError):
            late = [effect for effect in starts if effect.began > returned]
            if late:
                raise HistoryViolation(
                    f"3: dispatch of {key!r} raised {type(call.error).__name__} at {returned:.3f}, "
                    f"but it started at {late[0].began:.3f}"
                )
        _judge_stops(key, call, stops, starts)
    _judge_seconds(key, succeeded, stops)
    if not failed:
        _judge_end(key, succeeded, stops, effects)


def _judge_stops(key: str, call: Dispatch, stops: list[Stop], starts: list[Effect]) -> None:
    if call.returned is None or isinstance(call.error, OutcomeUnknown):
        return  # it may be applied at any time
    for stop in stops:
        if stop.error is not None or stop.returned is None or stop.invoked <= call.returned:
            continue
        for effect in starts:
            if effect.began > stop.returned:
                raise HistoryViolation(
                    f"4: {key!r} was stopped at {stop.returned:.3f} and started again at {effect.began:.3f} on {effect.owner}"
                )


def _may_have_stopped(stop: Stop, since: float, until: float) -> bool:
    ended = math.inf if stop.returned is None or isinstance(stop.error, OutcomeUnknown) else stop.returned
    return (
        not isinstance(stop.error, JobNotFoundError | BackendUnavailable) and ended >= since and stop.invoked <= until
    )


def _judge_seconds(key: str, succeeded: list[Dispatch], stops: list[Stop]) -> None:
    for first, second in itertools.pairwise(succeeded):
        assert first.returned is not None
        assert second.returned is not None
        if second.invoked < first.returned:
            first, second = (first, second) if first.returned <= second.returned else (second, first)
        if not any(_may_have_stopped(stop, first.invoked, second.returned or math.inf) for stop in stops):
            raise HistoryViolation(
                f"4: {key!r} was dispatched at {first.invoked:.3f} and again at {second.invoked:.3f}, and nobody stopped it"
            )


def _judge_end(key: str, succeeded: list[Dispatch], stops: list[Stop], effects: list[Effect]) -> None:
    running = [effect for effect in effects if effect.ended is None and effect.running is not None]
    for call in succeeded[-1:]:
        assert call.returned is not None
        if any(_may_have_stopped(stop, call.invoked, math.inf) for stop in stops):
            continue
        if [effect.payload for effect in running] != [call.payload]:
            where = ", ".join(f"{effect.owner} ({effect.payload!r})" for effect in running) or "nowhere"
            raise HistoryViolation(f"2: {key!r}, dispatched at {call.invoked:.3f}, was never stopped and runs {where}")
