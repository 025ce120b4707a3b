"""The event loop of a run: asyncio's own, or uvloop."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable

from corepool.errors import InvalidOptionError

__all__ = ["choose", "factory"]


def choose(wish: str) -> str:
    """``asyncio`` or ``uvloop``; ``auto`` takes uvloop where it is installed.

    Raises:
        InvalidOptionError: another name, or uvloop is not installed.
    """
    there = importlib.util.find_spec("uvloop") is not None
    if wish == "auto":
        return "uvloop" if there else "asyncio"
    if wish not in ("asyncio", "uvloop"):
        raise InvalidOptionError(f"--loop is auto, asyncio or uvloop, not {wish!r}")
    if wish == "uvloop" and not there:
        raise InvalidOptionError("uvloop is not installed; run: pip install 'corepool[uvloop]'")
    return wish


def factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes such a loop; None for the usual way."""
    if name == "asyncio":
        return None
    import uvloop

    return uvloop.new_event_loop
