"""``corepool demo``."""

from __future__ import annotations

import secrets
from typing import Annotated

import attrs
import typer
from rich.table import Table

from corepool import Node
from corepool.cli.common import JsonOption, VerboseOption, emit, execute, fail, note, stderr, stdout
from corepool.cli.demo.files import choose_files
from corepool.cli.demo.ledger import Ledger
from corepool.cli.demo.stage import InOneProcess, InProcesses, Setting, Stage
from corepool.cli.demo.story import Story, Summary
from corepool.cli.demo.view import View
from corepool.cli.exits import Exit
from corepool.driver import connect

__all__ = ["register"]

OPTIONS = {"worker_ttl": 3.0, "ack_grace_period": 2.0, "worker_shutdown_ttl": 20.0, "call_timeout": 20.0}
"""Short enough to watch: a crash is noticed after worker_ttl instead of the default 30 seconds."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(demo)


def demo(
    url: Annotated[
        str,
        typer.Option(
            "--url",
            envvar="COREPOOL_URL",
            metavar="URL",
            show_default=True,
            help="Where to run it. memory:// needs nothing; elsewhere each node is a process, and the crash a SIGKILL.",
        ),
    ] = "memory://demo",
    jobs: Annotated[int, typer.Option(min=10, max=5000, help="How many files to watch, one job each.")] = 300,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """
    Run the main job and measure its promises.

    Three nodes watch and hash the real files of the installed packages, one job per file. Then a node joins, one crashes
    and one leaves, and all jobs are notified to hash their file again. Handlers record each start and stop themselves;
    "lost" and "doubled" are counted from those records. It uses a pool of its own on the backend and removes it afterwards.

    \b
    Examples:
      corepool demo
      corepool demo --json
      corepool demo --url redis://localhost:6379/0 --jobs 1000

    Exits with 0 if nothing was lost, doubled or left over and jobs really moved, else with 1.
    """
    if url.lower().rstrip("/") == "memory:":
        url = "memory://demo"  # without a name each of the demo's connections would open a store of its own
    files = choose_files(jobs)
    ledger = Ledger()

    async def main() -> Summary:
        pool = f"demo-{secrets.token_hex(4)}"
        async with connect(url) as backend:
            setting = Setting(url, pool, 1, OPTIONS)
            many = backend.capabilities.multi_process
            stage: Stage = InProcesses(setting, ledger) if many else InOneProcess(setting, ledger)
            view = View(stderr if as_json else stdout, ledger, len(files), backend.url)
            async with Node(backend, pool, client_only=True, **OPTIONS) as client:
                try:
                    with view.live():
                        async with stage:
                            return await Story(stage, client, ledger, view, files).play()
                finally:
                    await client.shutdown()
                    for line in view.lines if view.console.is_terminal else ():
                        view.console.print(line, markup=False)

    # a crash on purpose is nothing to log at a newcomer; what matters is in the summary
    summary = execute(main, as_json=as_json, verbose=verbose, silent=not verbose)
    if as_json:
        emit({**attrs.asdict(summary), "sound": summary.sound})
    else:
        _print(summary)
    if not summary.sound:
        for error in summary.errors[:5]:
            note(f"  {error}")
        fail("the demo did not keep every promise; run it with --verbose to see what the nodes say", Exit.FOUND)


def _print(summary: Summary) -> None:
    table = Table(title="What the handlers recorded", title_justify="left", show_header=False)
    bad = "bold red"
    rows: list[tuple[str, int, str, bool]] = [
        ("jobs", summary.jobs, "real files of the installed packages, one job each", summary.jobs > 0),
        ("moved", summary.moved, "handed over by a living owner, on the join and the leave", summary.moved > 0),
        ("taken over", summary.taken_over, "restarted elsewhere after the crash", summary.taken_over > 0),
        ("lost", summary.lost, "admitted, and running nowhere", summary.lost == 0),
        ("doubled", summary.doubled, "running in two places at once", summary.doubled == 0),
        (
            "stale tokens",
            summary.stale_tokens,
            "a later owner without a larger fencing token",
            summary.stale_tokens == 0,
        ),
        ("wrong digests", summary.wrong_digests, "a job that did not hash its file", summary.wrong_digests == 0),
        ("left over", summary.left_over, "still there after it was stopped or handed over", summary.left_over == 0),
        ("failed calls", len(summary.errors), "dispatch, notify or stop raised", not summary.errors),
    ]
    for name, count, meaning, good in rows:
        table.add_row(name, f"[{'green' if good else bad}]{count}[/]", meaning)
    stdout.print(table)
    stdout.print(f"{summary.seconds:.1f} s on {summary.backend}", markup=False)
