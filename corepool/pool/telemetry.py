"""Traces and metrics through the OpenTelemetry API, for whoever has it running.

Purpose: a span and a duration for each call on a node and for each call into a handler, and how many jobs run here.
Invariants: a process that has not loaded OpenTelemetry before it makes a node pays nothing and hears nothing; what is told
changes nothing of what happens: no result, no error, no order, and the time is the backend's clock. A handler's span is the
first of its trace: the pool's tasks live longer than whatever was current when the node was opened.
Neighbours: the node's public methods go through it, and so does the handler that ``Node.add_worker`` is given.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from corepool.driver import Clock
from corepool.pool.handlers import Job

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram, UpDownCounter
    from opentelemetry.trace import Span, Tracer

__all__ = ["Silent", "Telemetry", "open_telemetry"]


class Silent:
    """Nobody listens."""

    @contextmanager
    def call(self, name: str, key: str) -> Generator[None]:
        """The length of a call on a node."""
        yield

    def handler(self, handler: Any) -> Any:
        """The handler to give to a worker."""
        return handler


def open_telemetry(pool: str, clock: Clock) -> Silent:
    """What a node of the pool tells, and to whom: to nobody, unless this process uses OpenTelemetry already."""
    if "opentelemetry.trace" not in sys.modules and "opentelemetry.metrics" not in sys.modules:
        return Silent()
    return Telemetry(pool, clock, _instruments())


@attrs.frozen(slots=True)
class _Instruments:
    tracer: Tracer
    calls: Histogram
    handlers: Histogram
    running: UpDownCounter


@functools.cache
def _instruments() -> _Instruments:
    """One set per process: the API hands them over to whatever provider is configured, also later."""
    from opentelemetry import metrics, trace

    meter = metrics.get_meter("corepool")
    return _Instruments(
        trace.get_tracer("corepool"),
        meter.create_histogram("corepool.call.duration", "s", "How long a call on a node took."),
        meter.create_histogram("corepool.handler.duration", "s", "How long a handler's method took."),
        meter.create_up_down_counter("corepool.jobs.running", "{job}", "Jobs that run on this process's workers."),
    )


class Telemetry(Silent):
    """What one node tells."""

    def __init__(self, pool: str, clock: Clock, instruments: _Instruments) -> None:
        self._pool = pool
        self._clock = clock
        self._instruments = instruments

    @contextmanager
    def call(self, name: str, key: str) -> Generator[None]:
        """A span of the caller's trace, and a duration by the kind of call and of error."""
        from opentelemetry.trace import SpanKind

        attributes = {"corepool.pool": self._pool, "corepool.job.key": key}
        span = self._instruments.tracer.start_as_current_span(
            f"corepool {name}", kind=SpanKind.CLIENT, attributes=attributes
        )
        with span, self._timed(self._instruments.calls, name):
            yield

    def handling(self, name: str, subject: Job | str) -> Handling:
        """A call of a handler's method begins."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        attributes: dict[str, Any] = {"corepool.pool": self._pool}
        if isinstance(subject, Job):
            attributes |= {"corepool.job.token": str(subject.fencing_token), "corepool.job.attempt": subject.attempt}
        attributes["corepool.job.key"] = subject.key if isinstance(subject, Job) else subject
        span = self._instruments.tracer.start_span(
            f"corepool handler.{name}", context=Context(), kind=SpanKind.CONSUMER, attributes=attributes
        )
        return Handling(self, name, span, self._clock.monotonic())

    def handled(self, name: str, began: float, error: BaseException | None) -> None:
        """It has ended: how long it took, and whether one job more or less runs here."""
        self._record(self._instruments.handlers, name, began, error)
        # a start that is interrupted gets its stop as well; one that raises does not
        started = name == "start" and (error is None or isinstance(error, asyncio.CancelledError))
        if started or name == "stop":
            self._instruments.running.add(1 if started else -1, {"corepool.pool": self._pool})

    @contextmanager
    def _timed(self, histogram: Histogram, name: str) -> Generator[None]:
        began = self._clock.monotonic()
        try:
            yield
        except BaseException as error:  # a cancelled call took its time as well
            self._record(histogram, name, began, error)
            raise
        self._record(histogram, name, began, None)

    def _record(self, histogram: Histogram, name: str, began: float, error: BaseException | None) -> None:
        attributes = {"corepool.pool": self._pool, "corepool.operation": name}
        if error is not None:
            attributes["error.type"] = type(error).__name__
        histogram.record(self._clock.monotonic() - began, attributes)

    def handler(self, handler: Any) -> Any:
        """A handler that does the same, watched."""
        return _Watched(handler, self)


@attrs.frozen(slots=True)
class Handling:
    """One call of a handler's method; of a plain one that returns an awaitable in two parts, a thread's and the loop's."""

    _telemetry: Telemetry
    _name: str
    _span: Span
    _began: float

    @contextmanager
    def part(self) -> Generator[None]:
        """A part of it, in which its span is the current one. What it raises ends it."""
        from opentelemetry.trace import Status, StatusCode, use_span

        try:
            with use_span(self._span, record_exception=False, set_status_on_exception=False):
                yield
        except BaseException as error:  # an interrupted start, too, has ended
            if not isinstance(error, asyncio.CancelledError):
                self._span.record_exception(error)
                self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
            self.end(error)
            raise

    def end(self, error: BaseException | None = None) -> None:
        self._span.end()
        self._telemetry.handled(self._name, self._began, error)


class _Watched:
    """A handler, each of whose methods is async if it was, and plain (run in a thread) if it was not."""

    def __init__(self, handler: Any, telemetry: Telemetry) -> None:
        self._handler = handler
        self.start = _watched(handler.start, partial(telemetry.handling, "start"))
        self.stop = _watched(handler.stop, partial(telemetry.handling, "stop"))
        if callable(getattr(handler, "notify", None)):
            self.notify = _watched(handler.notify, partial(telemetry.handling, "notify"))

    def __repr__(self) -> str:
        return repr(self._handler)


def _watched(method: Callable[..., Any], begin: Callable[[Any], Handling]) -> Callable[..., Any]:
    async def finish(handling: Handling, result: Awaitable[Any]) -> None:
        with handling.part():
            await result
        handling.end()

    if inspect.iscoroutinefunction(method):

        async def of_the_loop(*arguments: Any) -> None:
            await finish(begin(arguments[0]), method(*arguments))

        return of_the_loop

    def of_a_thread(*arguments: Any) -> Any:
        handling = begin(arguments[0])
        with handling.part():
            result = method(*arguments)
        if inspect.isawaitable(result):
            return finish(handling, result)
        handling.end()
        return None

    return of_a_thread
