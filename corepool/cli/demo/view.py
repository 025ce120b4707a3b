"""What the person at the terminal sees while the demo runs.

Purpose: live where there is a terminal, one line per event where there is none.
Invariants: writes to the console it was given and nowhere else; reads the ledger, changes nothing.
Neighbours: ``story`` tells it what happens.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from corepool.cli.demo.ledger import Ledger

__all__ = ["View"]

_COLOURS = {"running": "green", "starting": "yellow", "crashed": "red", "left": "dim", "leaving": "yellow"}
_KEPT_LINES = 14


@attrs.define(slots=True)
class View:
    """The demo on a console. Use :meth:`live` around the story."""

    console: Console
    ledger: Ledger
    total: int
    url: str
    nodes: dict[str, str] = attrs.field(factory=dict)
    lines: list[str] = attrs.field(factory=list)
    _began: float = attrs.field(factory=time.monotonic)

    def live(self) -> AbstractContextManager[Any]:
        """Show the stage while the block runs, if there is a terminal."""
        if not self.console.is_terminal:
            return nullcontext()
        return Live(get_renderable=self._render, console=self.console, refresh_per_second=8, transient=True)

    def say(self, text: str) -> None:
        """An event of the story."""
        line = f"{time.monotonic() - self._began:5.1f} s  {text}"
        self.lines.append(line)
        if not self.console.is_terminal:
            self.console.print(line, markup=False)

    def node(self, name: str, status: str) -> None:
        """A node's state changed."""
        self.nodes[name] = status

    def _render(self) -> RenderableType:
        load = self.ledger.load()
        table = Table(box=None, padding=(0, 1), show_header=False)
        for name, status in self.nodes.items():
            jobs = load.get(name, 0)
            table.add_row(
                Text(f"node {name}", style="bold"),
                Text(status, style=_COLOURS.get(status, "")),
                ProgressBar(total=max(self.total, 1), completed=jobs, width=40),
                Text(f"{jobs:4d} jobs" if jobs or status == "running" else ""),
            )
        owned = sum(load.values())
        head = Text(f"corepool demo on {self.url}: {owned} of {self.total} jobs running", style="bold")
        return Group(head, table, *(Text(line, style="dim") for line in self.lines[-_KEPT_LINES:]))
