"""What happens inside the pool while it runs, counted from outside: transitions of records, and paths of recovery.

Purpose: proof that the default seeds reach every one of them. The product has no counters for this: its methods are wrapped
for the length of a run.
Invariants: a wrapped method does what it did; what is counted has really taken place (a lost race is not counted).
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import attrs

from corepool.pool.cleanup import Cleanup, CleanupLock
from corepool.pool.dispatch import JobCalls
from corepool.pool.job import OwnedJob
from corepool.pool.protocol import JobProtocol, Outcome
from corepool.pool.router import Router
from corepool.pool.session import Session
from corepool.pool.store import Stored
from corepool.pool.sweeper import Sweeper
from corepool.pool.wire import JobState
from corepool.pool.worker import Worker

__all__ = ["RECOVERIES", "TRANSITIONS", "Coverage", "watched"]

TRANSITIONS = (
    "admit",
    "claim from PENDING",
    "claim from STARTING",
    "claim from RUNNING",
    "confirm from STARTING",
    "release from PENDING",
    "release from STARTING",
    "release from RUNNING",
    "release from FAILED",
    "ask_stop from STARTING",
    "ask_stop from RUNNING",
    "fail from STARTING",
    "remove from PENDING",
    "remove from STARTING",
    "remove from STOPPING",
    "remove from FAILED",
    "restore",
)
"""Every edge of ``corepool.pool.transitions``, and R13's."""

RECOVERIES = (
    "an outcome was unknown, and turned out as applied",
    "an outcome was unknown, and turned out as not applied",
    "a worker was buried",
    "a node was buried",
    "a stale lock was taken over",
    "a stop was finished for the dead",
    "a job whose starts kill was given up",
    "a worker fenced itself",
    "a worker held its lease again",
    "a worker came back under a new id",
    "a node came back under a new id",
    "a record was sent elsewhere",
    "a doorbell rang again",
    "a payload was collected",
    "a grave was closed",
    "a job was routed from the queue",
    "a notification was routed from the queue",
    "a notification was passed on by one who has not got the job",
    "a notification was passed on from a dead inbox",
    "the whole jobs map was scanned",
    "a dispatch was taken back",
    "a review found a difference",
)


@attrs.define
class Coverage:
    """How often what happened."""

    seen: Counter[str] = attrs.field(factory=Counter)


Told = Callable[[tuple[Any, ...]], Callable[[Any], str]]
"""Looks at the arguments before a call; what it returns says of the result what the call counts as, "" if as nothing."""


@contextmanager
def watched(coverage: Coverage) -> Generator[None]:
    """Count into ``coverage`` for the length of the block."""
    with ExitStack() as stack:
        for owner, method, told in _WATCHED:
            stack.enter_context(mock.patch.object(owner, method, _telling(coverage, getattr(owner, method), told)))
        yield


def _telling(coverage: Coverage, method: Any, told: Told) -> Any:
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def awaited(*arguments: Any, **options: Any) -> Any:
            tell = told(arguments)
            result = await method(*arguments, **options)
            if what := tell(result):
                coverage.seen[what] += 1
            return result

        return awaited

    @functools.wraps(method)
    def called(*arguments: Any, **options: Any) -> Any:
        tell = told(arguments)
        result = method(*arguments, **options)
        if what := tell(result):
            coverage.seen[what] += 1
        return result

    return called


def _always(what: str) -> Told:
    return lambda _arguments: lambda _result: what


def _if_true(what: str) -> Told:
    return lambda _arguments: lambda result: what if result else ""


def _applied(what: str) -> Told:
    return lambda _arguments: lambda outcome: what if outcome.applied else ""


def _transition(name: str) -> Told:
    def told(arguments: tuple[Any, ...]) -> Callable[[Outcome], str]:
        prior: Stored = arguments[2]
        return lambda outcome: f"{name} from {prior.record.state.name}" if outcome.applied else ""

    return told


def _grown(what: str, counter: str) -> Told:
    """The object's own counter has grown meanwhile."""

    def told(arguments: tuple[Any, ...]) -> Callable[[Any], str]:
        before = getattr(arguments[0], counter)
        return lambda _result: what if getattr(arguments[0], counter) > before else ""

    return told


def _resolved(_arguments: tuple[Any, ...]) -> Callable[[Outcome], str]:
    return lambda outcome: (
        f"an outcome was unknown, and turned out as {'applied' if outcome.applied else 'not applied'}"
    )


def _moved_on(arguments: tuple[Any, ...]) -> Callable[[bool], str]:
    _, _, stored, worker, _ = arguments
    stopping = stored.record.worker == worker and stored.record.state is JobState.STOPPING
    return lambda done: "a stop was finished for the dead" if done and stopping else ""


def _buried(arguments: tuple[Any, ...]) -> Callable[[Any], str]:
    lock: CleanupLock = arguments[0]
    return lambda _result: f"a {'worker' if lock._member.startswith('w') else 'node'} was buried"


def _took_over(arguments: tuple[Any, ...]) -> Callable[[bool], str]:
    lock, seen = arguments
    return lambda taken: "a stale lock was taken over" if taken and lock._member in seen else ""


def _fenced(arguments: tuple[Any, ...]) -> Callable[[Any], str]:
    before = arguments[0].fenced
    return lambda _result: "a worker fenced itself" if arguments[0].fenced and not before else ""


def _unfenced(arguments: tuple[Any, ...]) -> Callable[[Any], str]:
    before = arguments[0].fenced
    return lambda _result: "a worker held its lease again" if before and not arguments[0].fenced else ""


def _replaced(arguments: tuple[Any, ...]) -> Callable[[Any], str]:
    return lambda _result: "" if arguments[1].successor is None else "a worker came back under a new id"


_WATCHED: list[tuple[type[Any], str, Told]] = [
    (JobProtocol, "admit", _applied("admit")),
    (JobProtocol, "restore", _applied("restore")),
    *((JobProtocol, name, _transition(name)) for name in ("claim", "confirm", "release", "ask_stop", "fail", "remove")),
    (JobProtocol, "_resolve", _resolved),
    (CleanupLock, "bury_op", _buried),
    (Cleanup, "move_on", _moved_on),
    (Cleanup, "_give_up", _applied("a job whose starts kill was given up")),
    (Cleanup, "_pass_on", _always("a notification was passed on from a dead inbox")),
    (CleanupLock, "take", _took_over),
    (Worker, "fence", _fenced),
    (Worker, "unfence", _unfenced),
    (Worker, "review", _if_true("a review found a difference")),
    (Session, "_replace", _replaced),
    (Session, "_take_new_identity", _always("a node came back under a new id")),
    (Sweeper, "_reroute", _grown("a record was sent elsewhere", "rerouted")),
    (Sweeper, "_attend", _grown("a doorbell rang again", "rung")),
    (Sweeper, "_collect", _grown("a payload was collected", "collected")),
    (Sweeper, "_close_grave", _always("a grave was closed")),
    (Sweeper, "full_scan", _always("the whole jobs map was scanned")),
    (Router, "_route_start", _grown("a job was routed from the queue", "routed")),
    (Router, "_route_notification", _if_true("a notification was routed from the queue")),
    (OwnedJob, "_pass_notification_on", _always("a notification was passed on by one who has not got the job")),
    (JobCalls, "_take_back", _always("a dispatch was taken back")),
]
