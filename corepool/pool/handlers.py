"""The user's code: what a handler must have, and how it is called.

Purpose: one place that calls into user code, so that one place decides what its errors, hangs and plain functions mean.
Invariants: a handler's exception never reaches a loop of the pool; a plain function runs in a thread on an ordinary loop
(inline in simulation, where the loop runs executor jobs inline); ``stop`` is bounded in time.
Neighbours: called by ``job``, checked by ``Node.add_worker``.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
from collections.abc import Callable
from types import FunctionType
from typing import Any, Protocol

import msgspec

from corepool.driver import shorten
from corepool.errors import InvalidHandlerError

__all__ = ["FencingToken", "HandlerCalls", "Job", "JobHandler"]


class FencingToken(msgspec.Struct, frozen=True, order=True, gc=False):
    """Larger for every later owner of a key (R3): give it to whatever the job writes to, and let that refuse smaller ones.

    Ordered by generation, then revision; ``int(token)`` keeps the order.
    """

    generation: int
    revision: int

    def __int__(self) -> int:
        return (self.generation << 64) | self.revision

    def __str__(self) -> str:
        return f"{self.generation}.{self.revision}"


class Job(msgspec.Struct, frozen=True, gc=False):
    """What a handler's ``start`` is given.

    attempt: 1 for the first try since the job last ran; larger after failures and crashes during start.
    """

    key: str
    payload: bytes
    fencing_token: FencingToken
    attempt: int


class JobHandler(Protocol):
    """What runs jobs. Each method may be ``async`` or a plain function (run in a thread). ``notify`` is optional.

    For one key on one worker start and stop strictly alternate. ``start`` returns when the job is under way; the work goes on
    in tasks or threads of the handler's own until ``stop``. A start that raises counts as not started and gets no stop;
    one that is interrupted (by a stop, or by fencing) gets one. Raise `corepool.Requeue` to be tried again later.
    """

    def start(self, job: Job) -> Any: ...

    def stop(self, key: str) -> Any: ...


def check_handler(handler: object) -> None:
    """Raises:
    InvalidHandlerError: ``start`` or ``stop`` is missing or cannot be called with what it is given.
    """
    for name, arguments in (("start", 1), ("stop", 1), ("notify", 2)):
        method = getattr(handler, name, None)
        if method is None and name == "notify":
            continue
        if not callable(method):
            raise InvalidHandlerError(
                f"a handler needs a method {name!r}; {shorten(handler)} has none. It needs start(job) and stop(key), "
                f"and may have notify(key, payload)"
            )
        if inspect.isclass(handler):
            raise InvalidHandlerError(
                f"a handler is an object, not the class {handler.__name__}; pass {handler.__name__}()"
            )
        try:
            inspect.signature(method).bind(*range(arguments))
        except TypeError as error:
            raise InvalidHandlerError(
                f"{shorten(handler)}.{name} cannot be called with {arguments} argument(s): {error}"
            ) from None
        except ValueError:
            continue  # a builtin without a signature: the call itself will tell


def _is_async(method: Callable[..., Any]) -> bool:
    function = getattr(method, "__func__", method)
    return _looked_up(function) if isinstance(function, FunctionType) else inspect.iscoroutinefunction(method)


_looked_up = functools.lru_cache(256)(inspect.iscoroutinefunction)  # it takes longer than the call


class HandlerCalls:
    """Calls into one handler."""

    def __init__(self, handler: Any, stop_limit: float, log: logging.LoggerAdapter[logging.Logger]) -> None:
        self._handler = handler
        self._stop_limit = stop_limit
        self._log = log
        self.active: dict[asyncio.Task[Any], None] = {}

    @property
    def takes_notifications(self) -> bool:
        return callable(getattr(self._handler, "notify", None))

    async def start(self, job: Job) -> None:
        """Raises whatever the handler raises."""
        await self._call(self._handler.start, job)

    async def notify(self, key: str, payload: bytes) -> None:
        """Raises whatever the handler raises."""
        await self._call(self._handler.notify, key, payload)

    async def stop(self, key: str) -> None:
        """Errors are logged, and a stop that takes longer than the limit is given up: the job must go on to its next owner."""
        try:
            async with asyncio.timeout(self._stop_limit):
                await self._call(self._handler.stop, key)
        except TimeoutError:
            self._log.error(
                "handler.stop(%r) did not end within %g s; giving it up", key, self._stop_limit, extra={"job": key}
            )
        except Exception:  # noqa: BLE001  the handler's own error: logged, since nobody waits for it
            self._log.exception("handler.stop(%r) failed", key, extra={"job": key})

    async def _call(self, method: Callable[..., Any], *arguments: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.active[task] = None
        try:
            if _is_async(method):
                await method(*arguments)
                return
            loop = asyncio.get_running_loop()
            context = contextvars.copy_context()
            result = await loop.run_in_executor(None, functools.partial(context.run, method, *arguments))
            if inspect.isawaitable(result):  # a plain function that returned a coroutine, e.g. a decorated one
                await result
        finally:
            self.active.pop(task, None)
