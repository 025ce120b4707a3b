"""What all simulated runs of a session came to, printed at its end.

Invariants: with several test processes, the one that reports adds up what the others counted.
Neighbours: ``exploring`` counts (it imports this by its full name, or there would be two of it); the hooks are taken up by
``tests/conftest.py``, which every process loads.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest

__all__ = ["TOTAL", "Total", "pytest_sessionfinish", "pytest_terminal_summary", "pytest_testnodedown"]


@attrs.define
class Total:
    """Runs, virtual and CPU seconds, and how often what was reached."""

    runs: int = 0
    virtual: float = 0.0
    cpu: float = 0.0
    covered: Counter[str] = attrs.field(factory=Counter)

    def __str__(self) -> str:
        hours = self.virtual / 3600
        speed = self.virtual / self.cpu if self.cpu else 0.0
        return (
            f"{self.runs} runs, {hours:.1f} simulated pool-hours in {self.cpu:.0f} s of CPU ({speed:.0f} x real time)"
        )


TOTAL = Total()


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["chaos"] = (TOTAL.runs, TOTAL.virtual, TOTAL.cpu)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    runs, virtual, cpu = getattr(node, "workeroutput", {}).get("chaos", (0, 0.0, 0.0))
    TOTAL.runs += runs
    TOTAL.virtual += virtual
    TOTAL.cpu += cpu


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TOTAL.runs:
        terminalreporter.write_line(f"chaos: {TOTAL}")
