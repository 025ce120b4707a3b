"""Processes that heed SIGINT, however the tests were started."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["heeding_interrupts"]


@contextmanager
def heeding_interrupts() -> Iterator[None]:
    """Start a process in this block, and SIGINT means to it what it means by default.

    A shell lets its background jobs ignore SIGINT. That is inherited, and Python then makes no ``KeyboardInterrupt`` of it;
    of a signal that has a handler here, the child has the default.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
