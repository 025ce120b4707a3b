"""``corepool top``: a pool, live."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from corepool.cli.common import JsonOption, PoolOption, UrlOption, emit, execute, plain, stdout
from corepool.cli.overview import Observer, Overview
from corepool.driver import connect

__all__ = ["register"]

SHARE = 10
"""A look may take a tenth of the time: a pool with many jobs is looked at less often than asked."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(top)


def top(
    url: UrlOption,
    pool: PoolOption,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and exit.")] = False,
    as_json: JsonOption = False,
) -> None:
    """
    A pool's nodes, workers and jobs, live. Joins nothing and changes nothing; Ctrl-C ends it.

    Without a terminal, or with --once or --json, it prints one look and exits. It reads every job record, and so looks at a
    large pool less often than asked.

    \b
    Examples:
      corepool top --pool files
      corepool top --pool files --json
    """

    async def look_once() -> Overview:
        async with connect(url) as backend:
            return await Observer(backend, pool).look()

    async def watch() -> None:
        async with connect(url) as backend:
            observer = Observer(backend, pool)
            with Live(console=stdout, screen=True, auto_refresh=False) as live:
                while True:
                    began = time.monotonic()
                    live.update(_render(await observer.look(), backend.url), refresh=True)
                    await asyncio.sleep(max(interval, SHARE * (time.monotonic() - began)))

    if once or as_json or not stdout.is_terminal:
        overview = execute(look_once, as_json=as_json)
        if as_json:
            emit(plain(overview))
        else:
            stdout.print(_render(overview, ""))
        return
    execute(watch)


def _render(overview: Overview, url: str) -> RenderableType:
    head = Text.assemble(("pool ", ""), (overview.pool, "bold"), f"  {url}" if url else "")
    if not overview.exists:
        return Group(head, Text("nobody has used this pool yet"))
    jobs = ", ".join(f"{count} {state}" for state, count in overview.jobs.items() if count) or "none"
    line = f"{overview.nodes} node(s), {overview.clients} client(s), jobs: {jobs}"
    if overview.waiting:
        line += f"; {overview.waiting} wait for any worker"
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("node", "worker", "state", "jobs", "silent for"):
        table.add_column(column, justify="right" if column in ("jobs", "silent for") else "left")
    for view in overview.workers:
        style = "green" if view.state == "active" else "yellow"
        silent = f"{view.silent_for:.1f} s" if view.silent_for else ""
        table.add_row(view.node, view.worker, Text(view.state, style=style), str(view.jobs), silent)
    ended = [Text("this pool was shut down", style="bold red")] if overview.shutdown else []
    return Group(head, Text(line), *ended, table)
