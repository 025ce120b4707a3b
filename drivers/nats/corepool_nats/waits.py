"""Waiting that ends early.

Purpose: give up something that takes its time when an event says that nobody wants it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["unless"]


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
