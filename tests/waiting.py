"""Waiting in tests: for a condition, with a bound; never for a length of time.

The bounds are generous on purpose: they end a test that hangs, they do not measure. A test in which time itself matters runs on
virtual time, or says beside its ``sleep`` why it must really pass.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["soon", "until"]

R = TypeVar("R")


async def until(
    condition: Callable[[], object],
    within: float = 20.0,
    otherwise: Callable[[], object] = lambda: "it never came true",
) -> None:
    """Wait until it holds, plain or async; fail with what ``otherwise`` says if it does not within so many seconds."""
    end = time.monotonic() + within
    while True:
        holds = condition()
        if await holds if inspect.isawaitable(holds) else holds:
            return
        assert time.monotonic() < end, f"not within {within:g} s: {otherwise()}"
        await asyncio.sleep(0.002)


async def soon(awaitable: Awaitable[R], within: float = 20.0) -> R:
    """What it returns: nothing may block for ever."""
    async with asyncio.timeout(within):
        return await awaitable
