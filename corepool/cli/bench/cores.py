"""Which processor cores the benchmark's processes stay on.

A round trip on one machine takes half as long or twice as long depending on where the scheduler puts client and server:
pinned, a figure can be repeated.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

import attrs

from corepool.errors import InvalidOptionError

__all__ = ["Cores", "choose", "pinned"]


@attrs.frozen(slots=True)
class Cores:
    """A core for the dispatching process and one for the worker's; None: wherever the scheduler likes."""

    dispatcher: int | None
    worker: int | None


def choose(wish: str | None) -> Cores:
    """Read ``"2,3"``, ``"none"``, or without a wish take the last two, which leaves the first to a server on this machine.

    Raises:
        InvalidOptionError: it is neither, or there is no such core for this process.
    """
    if not hasattr(os, "sched_getaffinity"):
        if wish in (None, "none"):
            return Cores(None, None)
        raise InvalidOptionError("this system does not pin processes to cores; leave --cores out")
    usable = sorted(os.sched_getaffinity(0))
    if wish == "none" or (wish is None and len(usable) < 2):
        return Cores(None, None)
    if wish is None:
        return Cores(usable[-1], usable[-2])
    try:
        dispatcher, worker = (int(part) for part in wish.split(","))
    except ValueError:
        raise InvalidOptionError(f"--cores is two numbers, as in 2,3, or none; not {wish!r}") from None
    if not {dispatcher, worker} <= set(usable):
        raise InvalidOptionError(f"--cores {wish}: this process may use {', '.join(map(str, usable))}")
    return Cores(dispatcher, worker)


@contextlib.contextmanager
def pinned(core: int | None) -> Generator[None]:
    """Stay on one core for the length of the block."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
