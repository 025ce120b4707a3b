"""How the behaviour tests join a map, on whatever backend they run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from corepool.rmap import ReplicatedMap

R = TypeVar("R")
Join = Callable[..., Awaitable[ReplicatedMap[Any]]]

ODD = [
    *(" ", "a b", "\U0001f600", "a\0b", "\0", "*", ">", "a.b", "..", "/", ":", "%00", "{x}", "\n", "\u202e"),
    "\u00e9",
    "e\u0301",  # looks like the one before and is another key
    "K" * 512,
]
"""Keys that some backend would like to give a meaning to."""


FAR = 2**62
"""A revision that no map reaches: backends may begin with large ones."""


async def soon(awaitable: Awaitable[R]) -> R:
    """Nothing here may block for ever."""
    async with asyncio.timeout(15):
        return await awaitable


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.001)
