"""Waiting that ends early, and waiting for several things at once.

Purpose: give up something that takes its time when an event says that nobody wants it any more; make no task where one
thing alone is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

__all__ = ["at_once", "unless"]

T = TypeVar("T")


async def at_once(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """`asyncio.gather`, without a task if there is only one."""
    if len(work) == 1:
        return [await work[0]]
    return list(await asyncio.gather(*work))


async def unless(work: Coroutine[Any, Any, None], *events: asyncio.Event) -> None:
    """Do the work, but return early, with the work cancelled, once one of the events is set.

    Raises: what the work raises.
    """
    task = asyncio.ensure_future(work)
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait([task, *waits], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
    finally:
        for wait in waits:
            wait.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
