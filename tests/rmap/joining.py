"""How the behaviour tests join a map, on whatever backend they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from corepool.rmap import ReplicatedMap

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
