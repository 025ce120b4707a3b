"""The node's own tasks.

Purpose: background work belongs to the node, never to the task that happened to call it.
Invariants: every task is in here until it ends, so none outlives a closed node; a loop that raises is logged with its
context and started again after a pause that grows; a single task that raises is logged; cancelling a caller cancels
nothing here.
Neighbours: every part of the pool starts its tasks through it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from corepool.errors import BackendUnavailable, OutcomeUnknown

__all__ = ["TRANSIENT", "Supervisor", "backoff"]

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

TRANSIENT = (BackendUnavailable, OutcomeUnknown)
"""What the backend raises while it is away; anything else is a bug."""


def backoff(rng: random.Random, first: float, longest: float) -> Iterator[float]:
    """Pauses in seconds: doubling from ``first`` up to ``longest``, each with full jitter over its upper half."""
    pause = first
    while True:
        yield pause * (0.5 + rng.random() / 2)
        pause = min(pause * 2, longest)


class Supervisor:
    """Starts, names, restarts and ends the tasks of one node."""

    def __init__(self, name: str, rng: random.Random, log: logging.LoggerAdapter[logging.Logger]) -> None:
        self._name = name
        self._random = rng
        self._log = log
        # A dict keeps the order of creation: cancellation must not depend on hashes.
        self._tasks: dict[asyncio.Task[Any], None] = {}
        # The context of whoever opened the node: later callers' context variables must not leak into its loops.
        self._context = contextvars.copy_context()
        self._closed = False
        self.restarts = 0

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run once. An error is logged; the task's result is there for whoever awaits it."""
        if self._closed:
            work.close()
            raise RuntimeError(f"{self._name} is closed; it starts no {name}")
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name}/{name}", context=self._context.copy())
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def tidy(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        """Run once, unless the node is closed: then others find what is left."""
        if self._closed:
            work.close()
        else:
            self.spawn(name, work)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("task %s failed", task.get_name(), exc_info=error)

    def loop(self, name: str, body: Callable[[], Awaitable[None]]) -> asyncio.Task[Any]:
        """Run for ever: ``body`` is called again when it returns, and after a pause when it raises."""
        return self.spawn(name, self._again(name, body))

    async def _again(self, name: str, body: Callable[[], Awaitable[None]]) -> None:
        pauses: Iterator[float] | None = None
        while True:
            try:
                await body()
                pauses = None
                continue
            except TRANSIENT as error:
                self._log.warning("%s: %s; trying again", name, error)
            except Exception:  # noqa: BLE001  a loop must outlive any bug in one of its turns; it is logged with its context
                self.restarts += 1
                self._log.exception("%s failed; starting it again", name)
            pauses = pauses or backoff(self._random, _FIRST_PAUSE, _LONGEST_PAUSE)
            await asyncio.sleep(next(pauses))

    async def persist(self, what: object, attempt: Callable[[], Awaitable[T]], give_up: Callable[[], bool]) -> T:
        """Call ``attempt`` until the backend answers, or until ``give_up``.

        Raises:
            BackendUnavailable, OutcomeUnknown: the last one, once ``give_up`` said so.
        """
        pauses: Iterator[float] | None = None
        while True:
            try:
                return await attempt()
            except TRANSIENT as error:
                if give_up():
                    raise
                self._log.debug("%s: %s; trying again", what, error)
            pauses = pauses or backoff(self._random, _FIRST_PAUSE, _LONGEST_PAUSE)
            await asyncio.sleep(next(pauses))  # here the error is over, and what it held is free

    async def cancel(self, *tasks: asyncio.Task[Any]) -> None:
        """Cancel and wait until they have ended."""
        for task in tasks:
            task.cancel()
        for task in tasks:
            await _ended(task)

    async def close(self) -> None:
        """Cancel everything and wait until nothing is left. Idempotent. The calling task is spared."""
        self._closed = True
        current = asyncio.current_task()
        while rest := [task for task in self._tasks if task is not current and not task.done()]:
            await self.cancel(*rest)


async def _ended(task: asyncio.Task[Any]) -> None:
    # wait, unlike awaiting the task, tells our own cancellation from the task's.
    if not task.done():
        await asyncio.wait([task])
