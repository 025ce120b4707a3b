"""``corepool worker module:Handler``: run workers until told to stop, then hand their jobs over.

Invariants: the first SIGINT or SIGTERM hands the jobs over and exits with 0; a second one ends at once with 130. What the
handler's module does on import is the user's business, but a failure there is one line that names it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Annotated, Any, cast

import typer

from corepool import JobHandler, Node
from corepool.cli.common import PoolOption, UrlOption, VerboseOption, execute, fail, note, warn_if_private
from corepool.cli.exits import Exit
from corepool.cli.loading import LoadError, load, why
from corepool.driver import connect
from corepool.errors import InvalidHandlerError

__all__ = ["load_handler_factory", "register"]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(worker)


def worker(
    handler: Annotated[
        str, typer.Argument(metavar="MODULE:HANDLER", help="A handler class, or a function that makes handlers.")
    ],
    url: UrlOption,
    pool: PoolOption,
    workers: Annotated[int, typer.Option("--workers", "-n", min=1, max=1000, help="How many workers to run.")] = 1,
    worker_ttl: Annotated[
        float, typer.Option(help="Seconds of silence after which a worker is declared dead; the same on all nodes.")
    ] = 30.0,
    worker_shutdown_ttl: Annotated[float, typer.Option(help="Seconds that handing over may take at the end.")] = 120.0,
    verbose: VerboseOption = False,
) -> None:
    """
    Run a node with workers in this process.

    The current folder is on the import path. Ctrl-C (or SIGTERM) hands the jobs over to other workers and exits with 0;
    a second Ctrl-C leaves at once, and the jobs are taken over when the worker's time to live has passed.

    \b
    Examples:
      corepool worker examples.handlers:FileDigest --url redis://localhost:6379/0 --pool files
      COREPOOL_URL=nats://localhost COREPOOL_POOL=feeds corepool worker myapp.feeds:make_handler -n 4
    """
    factory = _load_or_fail(handler)

    async def main() -> None:
        stop = _stop_signals()
        options: dict[str, Any] = {"worker_ttl": worker_ttl, "worker_shutdown_ttl": worker_shutdown_ttl}
        async with connect(url) as backend, Node(backend, pool, **options) as node:
            for _ in range(workers):
                await node.add_worker(_make(factory, handler))
            warn_if_private(backend)
            note(f"{workers} worker(s) of pool {pool} on {backend.url}, process {os.getpid()}; Ctrl-C hands over")
            await stop.wait()
            note("handing over; once more to leave at once")
        note("handed over")

    execute(main, verbose=verbose)


def _make(factory: Callable[[], JobHandler], path: str) -> JobHandler:
    try:
        return factory()
    except (Exception, SystemExit) as error:  # the user's constructor may raise anything: one line that names it
        raise InvalidHandlerError(f"cannot make a handler with {path}: {why(error)}") from error


def _stop_signals() -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; the second one ends the process."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            note("left at once")
            os._exit(Exit.INTERRUPTED)  # no finally may run: that is what leaving at once means
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, on_signal)
        except (NotImplementedError, RuntimeError, ValueError):
            # Windows, or not the main thread: Ctrl-C then cancels the command, whose ``async with`` hands over as well
            continue
    return stop


def load_handler_factory(path: str) -> Callable[[], JobHandler]:
    """What ``module:attribute`` names, as a function that makes a handler: a class, a function, or one handler for all.

    Raises:
        InvalidHandlerError: nothing is there, or its module cannot be imported.
    """
    try:
        found = load(path, "MODULE:HANDLER, e.g. myapp.feeds:Feeds")
    except LoadError as error:
        raise InvalidHandlerError(str(error)) from error
    if isinstance(found, type) or not hasattr(found, "start"):
        if not callable(found):
            raise InvalidHandlerError(
                f"{path} is {type(found).__name__}, neither a handler nor something that makes one"
            )
        return cast("Callable[[], JobHandler]", found)
    return lambda: cast("JobHandler", found)


def _load_or_fail(path: str) -> Callable[[], JobHandler]:
    try:
        return load_handler_factory(path)
    except InvalidHandlerError as error:
        fail(str(error), Exit.USAGE)
