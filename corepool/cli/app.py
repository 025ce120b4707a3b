"""The application: all commands in one place, and the text that teaches.

Neighbours: started by ``corepool.cli.main``; each command lives in a module of its own.
"""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from corepool.cli import (
    conformance_command,
    demo_command,
    driver_commands,
    job_commands,
    sim_commands,
    top_command,
    worker_command,
)
from corepool.cli.bench import command as bench_command
from corepool.cli.common import stdout

__all__ = ["app", "run"]

_HELP = """
Dedicated worker pools: every job has one owner, and none is lost.

\b
First steps, without any server:
  corepool demo
  corepool sim run --seeds 5

\b
On a store of your own:
  export COREPOOL_URL=redis://localhost:6379/0 COREPOOL_POOL=feeds
  corepool check                            is the store configured to keep what it acknowledges?
  corepool worker examples.handlers:FileDigest    run a worker, in a checkout of corepool, or with
                                            a handler of your own; Ctrl-C hands its jobs over
  corepool dispatch README README.md        start a job: its key and its payload
  corepool explain README                   where does it run, and why there?
  corepool notify README refresh
  corepool stop README

\b
Exit codes:
    0  done
    1  done, and what was looked for is bad: a lost job, a violation, a dangerous setting
    2  wrong argument, URL, key, option or handler: nothing was sent
    3  the backend cannot be reached or refuses: calling again later is safe
    4  no such job, or it is gone: none is left, but it may have run
    5  a job with this key exists already
    6  the handler's own code failed
    7  not started: no worker took it in time, or too many wait; calling again is safe
    8  it may or may not have happened: look (explain) before calling again
    9  a driver or an extra is missing or broken
   10  the pool was shut down
  130  Ctrl-C, 143 SIGTERM: after cleaning up
"""

app = typer.Typer(
    name="corepool",
    help=_HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        stdout.print(f"corepool {importlib.metadata.version('corepool')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options that stand before any command."""


# the text above is what ``corepool --help`` shows; Typer would take the callback's docstring instead
app.registered_callback.help = _HELP  # type: ignore[union-attr]

demo_command.register(app)
worker_command.register(app)
job_commands.register(app)
top_command.register(app)
driver_commands.register(app)
conformance_command.register(app)
bench_command.register(app)
sim_commands.register(app)


def run() -> None:
    """Run the command line of this process."""
    app()
