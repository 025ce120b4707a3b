"""What all commands share: options, output, and running a coroutine to an exit code.

Invariants: results go to standard output, everything else to standard error; a command that is interrupted leaves its
``async with`` blocks in order before the process ends; no traceback for an error that the caller can do something about.
Neighbours: every command module; :mod:`corepool.cli.exits`.
"""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, NoReturn, TypeVar

import attrs
import msgspec
import typer
from rich.console import Console
from rich.text import Text

from corepool import Node
from corepool.cli.exits import Exit, exit_for
from corepool.driver import Backend, connect
from corepool.errors import CorepoolError

__all__ = [
    "JsonOption",
    "PoolOption",
    "UrlOption",
    "VerboseOption",
    "client_node",
    "emit",
    "execute",
    "fail",
    "fail_with",
    "note",
    "plain",
    "set_up_logging",
    "stderr",
    "stdout",
    "warn_if_private",
]

T = TypeVar("T")

UrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="COREPOOL_URL",
        metavar="URL",
        show_default=False,
        help="The backend, e.g. redis://localhost:6379/0 or nats://localhost. Put passwords into COREPOOL_URL: "
        "arguments can be read by everybody on the machine.",
    ),
]
PoolOption = Annotated[
    str, typer.Option("--pool", envvar="COREPOOL_POOL", metavar="NAME", show_default=False, help="The pool's name.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text for a person.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log what the node does, on standard error.")]

# soft_wrap: a narrow or missing terminal must not break lines that somebody greps.
# emoji: a module, a key or an error may hold ':x:', and is to be seen as it is.
stdout = Console(soft_wrap=True, highlight=False, emoji=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def emit(value: object) -> None:
    """Print one JSON value on one line of standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def plain(value: attrs.AttrsInstance) -> dict[str, Any]:
    """A value type of corepool as a JSON object: nested ones too, enums by their values, in the order of its fields."""

    def simpler(_owner: object, _field: object, part: Any) -> Any:
        if isinstance(part, enum.Enum):
            return part.value
        return msgspec.structs.asdict(part) if isinstance(part, msgspec.Struct) else part

    return attrs.asdict(value, value_serializer=simpler)


def note(text: str) -> None:
    """Tell the person at the terminal something that is not the command's result."""
    stderr.print(text, markup=False)


def fail(text: str, code: Exit) -> NoReturn:
    """End the command with one line on standard error."""
    stderr.print(Text.assemble(("corepool:", "red"), f" {text}"))
    raise typer.Exit(code)


def fail_with(error: Exception, code: Exit, *, as_json: bool) -> NoReturn:
    """End the command with what an error says; with ``as_json`` also as JSON on standard output."""
    if as_json:
        emit({"error": {"type": type(error).__name__, "message": str(error)}})
    fail(str(error), code)


def set_up_logging(*, verbose: bool = False, silent: bool = False) -> None:
    """Log to standard error: warnings, with ``verbose`` everything the node does, with ``silent`` nothing.

    silent: for simulations, whose machines are made to fail on purpose; what matters is in the result.
    """
    level = logging.CRITICAL + 1 if silent else logging.INFO if verbose else logging.WARNING
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=level, format=form)


def execute(
    main: Callable[[], Coroutine[Any, Any, T]],
    *,
    as_json: bool = False,
    verbose: bool = False,
    silent: bool = False,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """Run a command's coroutine; turn errors and signals into the exit codes of :class:`Exit`.

    With ``as_json`` an error is also printed as ``{"error": {"type": …, "message": …}}`` on standard output.
    loop_factory: makes another event loop than asyncio's own.
    """
    set_up_logging(verbose=verbose, silent=silent)
    try:
        if loop_factory is not None:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                return runner.run(_terminable(main))
        return asyncio.run(_terminable(main))
    except CorepoolError as error:
        fail_with(error, exit_for(error), as_json=as_json)
    except KeyboardInterrupt:
        fail("interrupted", Exit.INTERRUPTED)
    except _TerminatedError:
        fail("terminated", Exit.TERMINATED)


class _TerminatedError(Exception):
    """SIGTERM arrived and the command has cleaned up."""


async def _terminable(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Treat SIGTERM as asyncio treats Ctrl-C: cancel the command, let it clean up, then say why it ended."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    terminated = False

    def on_terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    try:
        loop.add_signal_handler(signal.SIGTERM, on_terminate)
    except (NotImplementedError, RuntimeError, ValueError):
        return await main()  # Windows, or not the main thread: SIGTERM keeps its default there
    try:
        return await main()
    except asyncio.CancelledError:
        if terminated:
            raise _TerminatedError from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def warn_if_private(backend: Backend) -> None:
    """A store that no other process sees is of no use to a command that talks to other processes: say so."""
    if not backend.capabilities.multi_process:
        note(f"{backend.url} is seen by this process alone: no other command will meet what is done here")


@asynccontextmanager
async def client_node(url: str, pool: str, **options: Any) -> AsyncGenerator[Node]:
    """A node that dispatches, stops and notifies but holds no workers, with a backend of its own."""
    async with connect(url) as backend:
        warn_if_private(backend)
        async with Node(backend, pool, client_only=True, **options) as node:
            yield node
