"""A stretch of a task that another task may end.

Purpose: to run a handler so that a stop or a fence can interrupt it, without a task of its own for each call: that would be the
largest part of what a call costs.
Invariants: an interruption comes out within the stretch and nowhere else; a cancellation of the whole task is never taken for
one, nor lost, whatever the handler makes of it.
Neighbours: ``job`` runs what calls the user's code in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["Interrupted", "Stretch"]


class Interrupted(Exception):
    """The stretch was ended from outside."""


class Stretch:
    """Run it once, in the task that calls :meth:`run`."""

    __slots__ = ("_interrupts", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._interrupts = 0

    def interrupt(self) -> None:
        """End it: what runs in it gets a CancelledError where it waits."""
        # Never by the task itself: it does not wait, so the cancellation would come out at its next wait, wherever that is.
        if self._task is not None and self._task is not asyncio.current_task():
            self._interrupts += 1
            self._task.cancel()

    async def run(self, work: Coroutine[Any, Any, None]) -> BaseException | None:
        """Run it to its end; what it raised, a CancelledError of its own making included.

        Raises:
            Interrupted: it was interrupted, and ended by that.
        """
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        error: BaseException | None = None
        self._task = task
        try:
            await work
        except BaseException as raised:  # the user's code may raise anything: the caller tells him
            if not isinstance(raised, Exception | asyncio.CancelledError):
                raise  # of the interpreter's: Ctrl-C, an exit
            error = raised
        finally:
            self._task = None
        for _ in range(self._interrupts):
            task.uncancel()
        if task.cancelling() > before:  # the whole task was cancelled, whatever the work made of it
            raise error if isinstance(error, asyncio.CancelledError) else asyncio.CancelledError
        if self._interrupts and isinstance(error, asyncio.CancelledError):
            raise Interrupted
        return error
