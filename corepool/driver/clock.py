"""The clock of an ordinary machine.

Purpose: the only place where the core's time comes from the operating system; a simulation gives its own `Clock`.
"""

from __future__ import annotations

import time

__all__ = ["SystemClock"]


class SystemClock:
    """A `corepool.driver.Clock` on the operating system's clocks."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()
