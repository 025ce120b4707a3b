"""The judge of a history: what was called, what handlers did, and whether that keeps the pool's promises.

Purpose: DESIGN 5, decided from the outside: recorded calls and effects alone, no look inside the pool, so the same judge
serves simulated clusters and real ones.
Invariants judged, by the numbers of DESIGN 5:

- 1 at most one live owner per key; with a paused owner the later one's token is larger;
- 2 a dispatch that returned success had its job started, and the job is there unless somebody stopped it;
- 3 a dispatch that raised anything but `OutcomeUnknown` left no job behind; `DispatchTimeoutError`: it never started;
- 4 a stopped job never runs again; a second dispatch of a live key is refused, and none is refused without a first;
- 5 tokens of one key only grow;
- 8 a tick fires at most once;
- 9 every call returned.

And from DESIGN 4.2, as ``notify``: a notification that was confirmed had been handed to a handler by then.

A job is told by its payload, which must be its own: one dispatch, one payload; and so with notifications. All times are of
one clock. What a caller does not know (`OutcomeUnknown`, a call that its machine did not survive) may have happened, may
happen at any later time, or never: the judge takes whichever explains what it sees.
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

__all__ = ["Dispatch", "Effect", "Heard", "HistoryViolation", "Notification", "Stop", "Tick", "judge", "judge_end"]


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
class Notification:
    """A call of notify_worker, with the same meaning of its fields."""

    key: str
    payload: bytes
    invoked: float
    returned: float | None
    error: BaseException | None = None


@attrs.frozen(slots=True, kw_only=True)
class Effect:
    """A handler had a job: from the call of start until stop returned, start failed, or the process died.

    running: when start had returned; None if it had not. stopping: when stop was called. ended: None if it has the job still.
    suspended: its process was paused for longer than the lease meanwhile: then only the token protects.
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


@attrs.frozen(slots=True, kw_only=True)
class Heard:
    """A handler's notify was called."""

    key: str
    payload: bytes
    owner: str
    at: float


@attrs.frozen(slots=True, kw_only=True)
class Tick:
    """A ticker gave a number to a node."""

    name: str
    number: int
    node: str
    at: float


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
    notifications: Sequence[Notification] = (),
    heard: Sequence[Heard] = (),
    ticks: Sequence[Tick] = (),
) -> None:
    """Judge a whole history.

    settled_at: when all faults were over and everything had had its time to come right.
    failed: keys whose jobs are FAILED by now: too many attempts to start them anew, as their handlers wanted.
    notifications and heard; ticks: for a history that has them.

    Raises:
        HistoryViolation: a promise was broken.
    """
    calls: list[Dispatch | Stop | Notification] = [*dispatches, *stops, *notifications]
    for call in calls:
        if call.returned is None and not isinstance(call.error, OutcomeUnknown):
            raise HistoryViolation(f"9: a call on {call.key!r} at {call.invoked:.3f} never returned")
    for key in sorted({call.key for call in dispatches} | {effect.key for effect in effects}):
        mine = [effect for effect in effects if effect.key == key]
        attempts = sorted((call for call in dispatches if call.key == key), key=lambda call: call.invoked)
        its_stops = [call for call in stops if call.key == key]
        _judge_owners(key, mine)
        for attempt in attempts:
            starts = [effect for effect in mine if effect.payload == attempt.payload]
            _judge_dispatch(key, attempt, starts, settled_at)
            _judge_stops(key, attempt, its_stops, starts)
        succeeded = [call for call in attempts if call.error is None and call.returned is not None]
        _judge_seconds(key, succeeded, its_stops)
        _judge_refusals(key, attempts, its_stops)
        if key not in failed:
            _judge_not_found(key, succeeded, its_stops)
            _judge_end(key, succeeded, its_stops, mine)
    _judge_notifications(notifications, heard)
    _judge_ticks(ticks)


def judge_end(
    dispatches: Sequence[Dispatch], stops: Sequence[Stop], effects: Sequence[Effect], *, failed: Collection[str] = ()
) -> None:
    """Judge only where a history ends: for a store that lost acknowledged writes, which may break other promises on the way.

    Leave out the dispatches that may be among what was lost, and give the stops among it as `OutcomeUnknown`.

    Raises:
        HistoryViolation: 1 or 2: one owner of what was dispatched and never stopped; 5: its token is not the largest.
    """
    for key in sorted({call.key for call in dispatches} | {effect.key for effect in effects}):
        mine = [effect for effect in effects if effect.key == key]
        live = [effect for effect in mine if effect.ended is None]
        if len(live) > 1:
            raise HistoryViolation(f"1: {key!r} has two owners in the end: {live[0].owner} and {live[1].owner}")
        for owner in live:
            if any(effect.token > owner.token for effect in mine):
                raise HistoryViolation(f"5: {owner.owner} has {key!r} in the end with a token that is not the largest")
        calls = sorted((call for call in dispatches if call.key == key), key=lambda call: call.invoked)
        if key not in failed:
            succeeded = [call for call in calls if call.error is None and call.returned is not None]
            _judge_end(key, succeeded, [stop for stop in stops if stop.key == key], mine)


# --- owners ----------------------------------------------------------------------------------------------------------


def _judge_owners(key: str, effects: Iterable[Effect]) -> None:
    earlier: list[Effect] = []
    for effect in sorted(effects, key=lambda effect: effect.began):
        for other in earlier:
            if other.token >= effect.token:
                raise HistoryViolation(
                    f"5: {key!r} started on {effect.owner} with token {effect.token} after {other.owner} had {other.token}"
                )
            if _end(other) > effect.began and not other.suspended:
                raise HistoryViolation(
                    f"1: {key!r} started on {effect.owner} at {effect.began:.3f} while {other.owner} had it"
                )
        earlier.append(effect)


def _end(effect: Effect) -> float:
    return math.inf if effect.ended is None else effect.ended


# --- one dispatch ----------------------------------------------------------------------------------------------------


def _judge_dispatch(key: str, call: Dispatch, starts: list[Effect], settled_at: float) -> None:
    returned = settled_at if call.returned is None else call.returned
    if call.error is None:
        if not any(effect.running is not None and effect.running <= returned for effect in starts):
            raise HistoryViolation(f"2: dispatch of {key!r} returned at {returned:.3f}, but nothing had started it")
        return
    if isinstance(call.error, OutcomeUnknown):
        return
    raised = f"3: dispatch of {key!r} raised {type(call.error).__name__} at {returned:.3f}"
    if isinstance(call.error, _NEVER_SENT):
        if starts:
            raise HistoryViolation(f"{raised}, but it started at {starts[0].began:.3f}")
        return
    if isinstance(call.error, PoolShutdownError):
        returned = settled_at  # the shutdown that is under way ends the job
    for effect in starts:
        if effect.began > returned:
            raise HistoryViolation(f"{raised}, but it started at {effect.began:.3f}")
        if _end(effect) > returned and not effect.suspended:
            raise HistoryViolation(f"{raised}, but {effect.owner} had it still")


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
            if _end(effect) > stop.returned and not effect.suspended:
                raise HistoryViolation(
                    f"4: {key!r} was stopped at {stop.returned:.3f}, but {effect.owner} had it still"
                )


# --- several calls on one key ----------------------------------------------------------------------------------------


def _may_have_stopped(stop: Stop, since: float, until: float) -> bool:
    ended = math.inf if stop.returned is None or isinstance(stop.error, OutcomeUnknown) else stop.returned
    return (
        not isinstance(stop.error, JobNotFoundError | BackendUnavailable) and ended >= since and stop.invoked <= until
    )


def _judge_seconds(key: str, succeeded: list[Dispatch], stops: list[Stop]) -> None:
    """Two that succeeded need a stop in between."""
    for first, second in itertools.pairwise(succeeded):
        assert first.returned is not None
        assert second.returned is not None
        since, until = min(first.invoked, second.invoked), max(first.returned, second.returned)
        if not any(_may_have_stopped(stop, since, until) for stop in stops):
            raise HistoryViolation(
                f"4: {key!r} was dispatched at {first.invoked:.3f} and again at {second.invoked:.3f}, and nobody stopped it"
            )


def _judge_refusals(key: str, calls: list[Dispatch], stops: list[Stop]) -> None:
    """One that was refused because the key has a job needs another dispatch whose job may have been there."""
    for refused in calls:
        if not isinstance(refused.error, JobExistsError) or refused.returned is None:
            continue
        if not any(call is not refused and _may_be_there(call, refused, stops) for call in calls):
            raise HistoryViolation(
                f"4: dispatch of {key!r} at {refused.invoked:.3f} raised JobExistsError, but there was no other job of that key"
            )


def _may_be_there(call: Dispatch, refused: Dispatch, stops: list[Stop]) -> bool:
    """Whether the job of ``call`` may have had the key at some time while ``refused`` was under way."""
    assert refused.returned is not None
    if call.invoked > refused.returned or isinstance(call.error, JobExistsError):
        return False
    if call.returned is None or isinstance(call.error, OutcomeUnknown | PoolShutdownError):
        return True
    if call.returned >= refused.invoked:
        return True
    if call.error is not None:
        return False  # it left no job behind
    # Gone before: a stop that found nothing says so as well as one that stopped.
    return not any(
        (stop.error is None or isinstance(stop.error, JobNotFoundError))
        and stop.returned is not None
        and stop.invoked > call.returned
        and stop.returned < refused.invoked
        for stop in stops
    )


def _judge_not_found(key: str, succeeded: list[Dispatch], stops: list[Stop]) -> None:
    """A stop that found no job needs somebody who ended the last one."""
    for lost in stops:
        if not isinstance(lost.error, JobNotFoundError) or lost.returned is None:
            continue
        before = [call for call in succeeded if call.returned is not None and call.returned < lost.invoked]
        if not before:
            continue
        last = max(before, key=lambda call: call.invoked)
        if not any(_may_have_stopped(stop, last.invoked, lost.returned) for stop in stops):
            raise HistoryViolation(
                f"2: {key!r}, dispatched at {last.invoked:.3f}, was not there at {lost.invoked:.3f}, and nobody stopped it"
            )


def _judge_end(key: str, succeeded: list[Dispatch], stops: list[Stop], effects: list[Effect]) -> None:
    """The last one that succeeded runs in the end, unless somebody may have stopped it."""
    running = [effect for effect in effects if effect.ended is None and effect.running is not None]
    for call in succeeded[-1:]:
        if any(_may_have_stopped(stop, call.invoked, math.inf) for stop in stops):
            continue
        if [effect.payload for effect in running] != [call.payload]:
            where = ", ".join(f"on {effect.owner} ({effect.payload!r})" for effect in running) or "nowhere"
            raise HistoryViolation(f"2: {key!r}, dispatched at {call.invoked:.3f}, was never stopped and runs {where}")


# --- notifications and ticks -----------------------------------------------------------------------------------------


def _judge_notifications(notifications: Iterable[Notification], heard: Iterable[Heard]) -> None:
    told: dict[tuple[str, bytes], float] = {}
    for hearing in heard:
        told.setdefault((hearing.key, hearing.payload), hearing.at)
    for call in notifications:
        if call.error is not None:
            continue
        at = told.get((call.key, call.payload), math.inf)
        if call.returned is not None and at > call.returned:
            raise HistoryViolation(
                f"notify: {call.key!r} confirmed {call.payload!r} at {call.returned:.3f}, but no handler had been told"
            )


def _judge_ticks(ticks: Iterable[Tick]) -> None:
    fired: dict[tuple[str, int], Tick] = {}
    for tick in ticks:
        first = fired.setdefault((tick.name, tick.number), tick)
        if first is not tick:
            raise HistoryViolation(
                f"8: tick {tick.number} of {tick.name!r} fired on {first.node} at {first.at:.3f}, and on {tick.node}"
            )
